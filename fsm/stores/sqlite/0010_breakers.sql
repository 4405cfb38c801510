-- The breakers' journal is bounded: of each key the newest 1,000 lines are kept (`fsm.stores.base.BREAKER_LINES`).

-- The oldest lines of a key go with a newer one, so the last position is never deleted and none is given out twice; a
-- subscriber that was far behind misses lines, and still finds newer ones of every key that changed.
DROP TRIGGER breaker_journal_kept;

DELETE FROM breaker_journal WHERE position IN (
    SELECT position FROM (
        SELECT position, row_number() OVER (PARTITION BY key ORDER BY position DESC) AS number FROM breaker_journal
    ) WHERE number > 1000
);

CREATE TRIGGER breaker_journal_kept BEFORE DELETE ON breaker_journal
WHEN (
    SELECT count(*) FROM (
        SELECT 1 FROM breaker_journal WHERE key = OLD.key AND position > OLD.position LIMIT 1000
    )
) < 1000
BEGIN
    SELECT RAISE (ABORT, 'fsm: the newest lines of the journal are kept');
END;

CREATE TRIGGER breaker_journal_bounded AFTER INSERT ON breaker_journal
BEGIN
    DELETE FROM breaker_journal WHERE key = NEW.key AND position <= (
        SELECT position FROM breaker_journal WHERE key = NEW.key ORDER BY position DESC LIMIT 1 OFFSET 1000
    );
END;

-- What no process could read is refused: numbers that are texts, probes that are no JSON.
CREATE TRIGGER breaker_begins_readable BEFORE INSERT ON breakers
WHEN typeof(NEW.key) IS NOT 'text' OR typeof(NEW.version) IS NOT 'integer'
    OR typeof(NEW.generation) IS NOT 'integer' OR typeof(NEW.openings) IS NOT 'integer'
    OR typeof(NEW.successes) IS NOT 'integer' OR typeof(NEW.abandoned) IS NOT 'integer'
    OR typeof(NEW.changed_at) IS NOT 'real' OR typeof(NEW.at) IS NOT 'real'
    OR typeof(NEW.since) NOT IN ('real', 'null') OR typeof(NEW.until) NOT IN ('real', 'null')
    OR (NEW.probes IS NOT NULL AND NOT coalesce(json_valid(NEW.probes), 0))
BEGIN
    SELECT RAISE (ABORT, 'fsm: a breaker''s numbers are numbers, and its probes are JSON');
END;

CREATE TRIGGER breaker_moves_readable BEFORE UPDATE ON breakers
WHEN typeof(NEW.key) IS NOT 'text' OR typeof(NEW.version) IS NOT 'integer'
    OR typeof(NEW.generation) IS NOT 'integer' OR typeof(NEW.openings) IS NOT 'integer'
    OR typeof(NEW.successes) IS NOT 'integer' OR typeof(NEW.abandoned) IS NOT 'integer'
    OR typeof(NEW.changed_at) IS NOT 'real' OR typeof(NEW.at) IS NOT 'real'
    OR typeof(NEW.since) NOT IN ('real', 'null') OR typeof(NEW.until) NOT IN ('real', 'null')
    OR (NEW.probes IS NOT NULL AND NOT coalesce(json_valid(NEW.probes), 0))
BEGIN
    SELECT RAISE (ABORT, 'fsm: a breaker''s numbers are numbers, and its probes are JSON');
END;
