"""What must have no answer in a schema whose law is complete: the table, the column, what is wrong, the question."""

from __future__ import annotations

MAX_FOUND = 1000
"""Maximum number of damages of one kind that an inspection names."""

_SPACE = "(SELECT relnamespace FROM pg_class WHERE oid = 'fsm.layout'::regclass)"
_TRIGGERS = (
    "identity_begins", "identity_stays", "identity_kept", "execution_begins", "execution_begun", "execution_moves",
    "execution_stays", "executions_buried", "tombstone_follows", "bygone_follows", "journal_follows", "journal_stays",
    "machine_begins", "machine_stays", "machine_kept", "states_begin", "states_stay", "law_begins", "law_stays",
    "worker_changes", "worker_departs", "departed_follows", "breaker_changes", "breaker_stays",
    "breaker_journal_follows", "breaker_journal_stays",
)  # fmt: skip
_MISSING = f"""
    SELECT wanted FROM unnest(ARRAY[{", ".join(f"'{one}'" for one in _TRIGGERS)}]) AS wanted
    WHERE NOT EXISTS (
        SELECT FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = {_SPACE} AND t.tgname = wanted AND t.tgenabled IN ('O', 'A')
    )
"""
_KEYS = f"""
    SELECT wanted FROM unnest(ARRAY['journal_law', 'breaker_journal_law']) AS wanted
    WHERE NOT EXISTS (
        SELECT FROM pg_constraint WHERE connamespace = {_SPACE} AND conname = wanted AND convalidated
    )
"""
_GHOST = f"SELECT id FROM fsm.executions JOIN fsm.tombstones USING (id) LIMIT {MAX_FOUND}"
_LAST = f"""
    SELECT e.id FROM fsm.executions AS e WHERE NOT EXISTS (
        SELECT FROM fsm.journal AS j
        WHERE j.position = e.position AND j.execution_id = e.id AND j.version = e.version AND j.target = e.state
    ) LIMIT {MAX_FOUND}
"""
_STRAY = f"""
    SELECT j.position FROM fsm.journal AS j
    WHERE NOT EXISTS (SELECT FROM fsm.executions AS e WHERE e.id = j.execution_id) LIMIT {MAX_FOUND}
"""
_GAP = f"""
    SELECT j.position FROM fsm.journal AS j WHERE j.version > 0 AND NOT EXISTS (
        SELECT FROM fsm.journal AS before
        WHERE before.execution_id = j.execution_id AND before.version = j.version - 1 AND before.target = j.source
    ) LIMIT {MAX_FOUND}
"""
_UNSEALED = "SELECT content_hash FROM fsm.machines WHERE NOT sealed"
_SILENT = """
    SELECT key FROM fsm.breakers AS b
    WHERE NOT EXISTS (SELECT FROM fsm.breaker_journal AS j WHERE j.key = b.key)
"""

QUESTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("schema", "trigger", "is missing or switched off: the law is not complete", _MISSING),
    ("schema", "constraint", "is missing: the law is not complete", _KEYS),
    ("executions", "id", "has a tombstone although it is there: it was deleted and born again", _GHOST),
    ("executions", "position", "is not where the journal has its last row", _LAST),
    ("journal", "execution_id", "names an execution that is not there", _STRAY),
    ("journal", "source", "is not where the row before it led", _GAP),
    ("machines", "sealed", "is not set: its states and rows were never completed", _UNSEALED),
    ("breakers", "key", "has no line in the journal", _SILENT),
)
