-- An attempt whose worker was lost while a person was asked goes on with the next claim; it is not a new attempt.

ALTER TABLE executions ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER execution_born_going BEFORE INSERT ON executions
WHEN NEW.suspended IS NOT 0
BEGIN
    SELECT RAISE (ABORT, 'fsm: nothing is suspended at its birth');
END;

CREATE TRIGGER execution_is_suspended BEFORE UPDATE OF suspended ON executions
WHEN NOT (NEW.suspended IS 0 OR NEW.suspended IS 1)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an attempt is suspended or not');
END;
