-- Children: they are born under an open parent only, and an order to cancel them outlives the process that gave it.

ALTER TABLE states ADD COLUMN stopping INTEGER NOT NULL DEFAULT 0;

-- Machines that were sealed before this column was there say it in their document.
DROP TRIGGER states_stay;
UPDATE states SET stopping = 1 WHERE EXISTS (
    SELECT 1 FROM machines JOIN json_each(machines.document, '$.states') AS state
    WHERE machines.id = states.machine
        AND json_extract(state.value, '$.name') = states.name
        AND json_extract(state.value, '$.category') = 'stopping'
);
CREATE TRIGGER states_stay BEFORE UPDATE ON states
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

-- Written in the transaction of the step that gives the order, deleted when it is carried out: nearly always empty,
-- so that whoever looks for what a dead process has left undone looks at nothing else.
CREATE TABLE orders (
    execution_id TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    event TEXT NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER execution_has_a_parent BEFORE INSERT ON executions
WHEN NEW.parent_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM executions AS parent
    JOIN states ON states.machine = parent.machine AND states.name = parent.state
    WHERE parent.id = NEW.parent_id AND NOT states.terminal AND NOT states.stopping
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an execution that has ended, or is about to, starts no children');
END;
