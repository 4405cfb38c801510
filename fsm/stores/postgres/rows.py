"""Records as rows: what a batch is sent as, and what is made of the rows that come back.

The database's types and its law keep a row whole, so that nothing is looked at twice here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fsm.core.records import CANCEL_CHILDREN, Identity, Receipt, Snapshot, Step
from fsm.errors import DamagedRecord
from fsm.stores.breakers import BreakerEntry, BreakerRow

Row = tuple[Any, ...]

_RENAMED = {"metadata_json": "metadata", "timeouts_json": "timeouts", "key": "born_key", "end_json": "ending"}
BORN = tuple(_RENAMED.get(name, name) for name in Identity._fields)
LIVED = tuple(_RENAMED.get(name, name) for name in Snapshot._fields[1:])
"""The columns of an identity and of an execution, in the order of the records' fields."""
_TOOLS = LIVED.index("tools")

SNAPSHOT = ", ".join(
    ["m.content_hash AS machine" if name == "machine" else f"i.{name}" for name in BORN]
    + [f"e.{name}" for name in LIVED]
)
TABLES = (
    "fsm.executions AS e JOIN fsm.identities AS i ON i.id = e.id JOIN fsm.machines AS m ON m.id = i.machine"
)
RECEIPT = "position, execution_id, version, event, nullif(source, ''), target, at, attempt, fence, owner, key, payload"


def snapshot(row: Row) -> Snapshot:
    """Return the record of a row of `SNAPSHOT`."""
    lived = list(row[len(BORN) :])
    if lived[_TOOLS] is None:
        lived[_TOOLS] = ()
    else:
        lived[_TOOLS] = tuple((name, call_id) for name, call_id in json.loads(lived[_TOOLS]))
    return Snapshot(Identity._make(row[: len(BORN)]), *lived)


def receipt(row: Row) -> Receipt:
    """Return the receipt of a row of `RECEIPT`."""
    return Receipt._make(row)


def sent(steps: Sequence[Step]) -> str:
    """Return a batch as ``fsm.append`` takes it."""
    return json.dumps([_sent(step) for step in steps], separators=(",", ":"))


def _sent(step: Step) -> dict[str, Any]:
    after, before = step.after, step.before
    out = {name: value for name, value in zip(LIVED, after[1:], strict=True) if value is not None}
    if after.tools:
        out["tools"] = json.dumps(after.tools, separators=(",", ":"))
    else:
        del out["tools"]
    if step.source is None:
        out |= {name: value for name, value in zip(BORN, after.identity, strict=True) if value is not None}
    else:
        out["id"] = after.identity.id
        out["source"] = step.source
        if before is None or before.owner != after.owner:
            out["claims"] = True
        if CANCEL_CHILDREN in step.effects:
            out["orders"] = True
    out["event"] = step.event
    if step.key is not None:
        out["key"] = step.key
    if step.payload_json is not None:
        out["payload"] = step.payload_json
    return out


def chained(execution_id: str, receipts: Sequence[Receipt]) -> None:
    """Refuse a history with a gap; raises `DamagedRecord`."""
    for version, one in enumerate(receipts):
        if one.version != version:
            raise DamagedRecord("journal", execution_id, "version", f"{version} is missing")


BREAKER = "key, state, version, generation, changed_at, since, until, openings, probes, successes, abandoned"
BREAKER_ENTRY = "position, key, version, event, source, target, generation, at, actor, reason"


def breaker(row: Row) -> BreakerRow:
    """Return a breaker."""
    probes = tuple((token, expires_at) for token, expires_at in json.loads(row[8] or "[]"))
    return BreakerRow._make((*row[:8], probes, *row[9:]))


def breaker_entry(row: Row) -> BreakerEntry:
    """Return a line of the breakers' journal."""
    return BreakerEntry._make(row)
