-- Whoever was registered as a worker and is lost, or has left, claims nothing any more.

CREATE TABLE departed (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE
);

CREATE TRIGGER worker_departs AFTER DELETE ON workers
BEGIN
    INSERT OR IGNORE INTO departed (id) VALUES (OLD.id);
    DELETE FROM departed WHERE number <= (SELECT max(number) FROM departed) - 10000;
END;

-- Costs nothing where nobody claims: SQLite asks only statements that name the owner.
CREATE TRIGGER execution_claimed BEFORE UPDATE OF owner ON executions
WHEN NEW.owner IS NOT NULL AND NEW.owner IS NOT OLD.owner AND (
    EXISTS (SELECT 1 FROM workers WHERE id = NEW.owner AND lost)
    OR EXISTS (SELECT 1 FROM departed WHERE id = NEW.owner)
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker that was lost, or has left, claims nothing');
END;
