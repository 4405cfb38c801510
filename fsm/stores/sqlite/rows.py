"""Rows of the file as records. What cannot be one is `DamagedRecord`, with the record and the column that are at fault.

A file may hold anything: flipped bits, text that is no UTF-8, what a script wrote before there was a law against it.
So a row is looked at before it becomes a record: each value's type, instants within bounds, JSON that can be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from fsm.core.records import Identity, Receipt, Snapshot
from fsm.core.timeline import Era, Mark
from fsm.errors import DamagedRecord
from fsm.machine.timeouts import Timeouts
from fsm.stores.base import Beat, Due, Order, WorkerRow
from fsm.stores.breakers import BreakerEntry, BreakerRow

MAX_INSTANT = 1e12
"""Maximum distance of an instant from 1970, in seconds; the file's law says the same."""
MAX_COUNT = 2**60
"""A count (a version, an attempt, a position) is at most so large: one more must still fit into 64 bits."""
MAX_SIGNATURES = 4096
"""Maximum number of combinations of types that are remembered as sound, per shape; then the memory starts over."""

Row = tuple[Any, ...]

_NONE = type(None)
_MOST = sys.float_info.max
_KINDS: dict[str, frozenset[type]] = {
    "text": frozenset({str}),
    "text?": frozenset({str, _NONE}),
    "whole": frozenset({int}),
    "number": frozenset({float, int}),
    "number?": frozenset({float, int, _NONE}),
}
_NAMES = {bytes: "no text", str: "a text", int: "a whole number", float: "a number", _NONE: "missing"}


class Shape:
    """What the columns of a query hold."""

    def __init__(self, table: str, key: str, /, **columns: str) -> None:
        """Describe a query.

        Args:
            table: The table that it reads.
            key: The column that says which record a row is.
            columns: The kind of each column, in the order of the query.
        """
        self.table = table
        self.columns = tuple(columns)
        self._kinds = tuple(columns.values())
        self._key = self.columns.index(key)
        self._sound: set[tuple[type, ...]] = set()

    def check(self, row: Row) -> Row:
        """Return a row whose values are of their columns' kinds.

        Raises:
            DamagedRecord: One is not.
        """
        signature = tuple(map(type, row))
        if signature in self._sound:
            return row
        for name, kind, value in zip(self.columns, self._kinds, row, strict=True):
            if type(value) not in _KINDS[kind]:
                raise self.damage(row, name, f"is {_NAMES.get(type(value), 'nothing known')}")
        if len(self._sound) >= MAX_SIGNATURES:
            self._sound.clear()
        self._sound.add(signature)
        return row

    def damage(self, row: Row, column: str, why: str) -> DamagedRecord:
        """Return the error for a column of a row."""
        return DamagedRecord(self.table, shown(row[self._key]), column, why)


def shown(key: object) -> str:
    """Return a record's key as text that can be printed, whatever it is."""
    text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
    return text.encode("ascii", "backslashreplace").decode()[:200]


def lenient(raw: bytes) -> str | bytes:
    """Return a text cell as text, or as bytes if it is no UTF-8: the text factory of a second look."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def is_object(column: str) -> str:
    """Return SQL that says whether a column holds a JSON object or nothing: SQLite looks through it faster than we."""
    return (
        f"({column} IS NULL OR CASE typeof({column}) WHEN 'text' "
        f"THEN {column} = '' OR substr({column}, 1, 1) = '{{' AND json_valid({column}) ELSE 0 END)"
    )


# --- executions -----------------------------------------------------------------------------------------------

EXECUTIONS = Shape(
    "executions", "id",
    id="text", machine="whole", agent="text", user_id="text", thread_id="text", parent_id="text?", retry_of="text?",
    created_at="number", attempts_max="whole", model_attempts_max="whole", metadata="text?", timeouts="text?",
    born_at="number", backoff_s="number", backoff_cap_s="number", born_key="text?",
    depth="whole",
    state="text", version="whole", entered_at="number", updated_at="number", due_at="number?", due_kind="text?",
    attempt="whole", owner="text?", fence="whole", tools="text?", model_attempt="whole", not_before="number?",
    breaker="text?", limit_s="number?", ending="text?", since_at="number",
    paused_s="number", suspended="whole",
    objects="whole",
)  # fmt: skip
_AT = {name: index for index, name in enumerate(EXECUTIONS.columns)}
_LIVED = _AT["state"]
_INSTANTS = tuple(_AT[name] for name in ("created_at", "born_at", "entered_at", "updated_at", "since_at"))
_COUNTED = tuple(_AT[name] for name in ("version", "attempt", "fence", "model_attempt", "attempts_max"))
_LENGTHS = tuple(
    _AT[name] for name in ("backoff_s", "backoff_cap_s", "due_at", "not_before", "limit_s", "paused_s")
)
_METADATA, _TIMEOUTS, _TOOLS, _MACHINE, _STATE = (
    _AT["metadata"],
    _AT["timeouts"],
    _AT["tools"],
    _AT["machine"],
    _AT["state"],
)


def snapshot(row: Row, machines: Mapping[int, tuple[str, frozenset[str]]]) -> Snapshot:
    """Return the record of a row of `executions`.

    Args:
        row: Its values, in the order of `EXECUTIONS`.
        machines: For each number of a machine its content hash and its states.

    Raises:
        DamagedRecord: It is none.
    """
    EXECUTIONS.check(row)
    _check_numbers(row)
    _check_json(row)
    machine = machines.get(row[_MACHINE])
    if machine is None:
        raise EXECUTIONS.damage(row, "machine", "is not registered")
    if row[_STATE] not in machine[1]:
        raise EXECUTIONS.damage(row, "state", "is no state of its machine")
    lived = list(row[_LIVED:-1])
    tools = row[_TOOLS]
    lived[_TOOLS - _LIVED] = _tools(row, tools) if tools else ()
    lived[-1] = bool(lived[-1])
    return Snapshot(Identity(row[0], machine[0], *row[2:_LIVED]), *lived)


def _check_numbers(row: Row) -> None:
    for index in _INSTANTS:
        if not -MAX_INSTANT <= row[index] <= MAX_INSTANT:
            raise EXECUTIONS.damage(row, EXECUTIONS.columns[index], "is no instant")
    for index in _LENGTHS:
        if row[index] is not None and not -_MOST <= row[index] <= _MOST:
            raise EXECUTIONS.damage(row, EXECUTIONS.columns[index], "is without end")
    for index in _COUNTED:
        if not 0 <= row[index] <= MAX_COUNT:
            raise EXECUTIONS.damage(row, EXECUTIONS.columns[index], "is no count")


def _check_json(row: Row) -> None:
    if not row[-1]:
        column = "metadata" if row[_METADATA] and not _is_object(row[_METADATA]) else "ending"
        raise EXECUTIONS.damage(row, column, "is no JSON object")
    if row[_TIMEOUTS] and not _are_timeouts(row[_TIMEOUTS]):
        raise EXECUTIONS.damage(row, "timeouts", "are no time limits")


def _tools(row: Row, text: str) -> tuple[tuple[str, str | None], ...]:
    try:
        found = json.loads(text)
        tools = tuple((name, call_id) for name, call_id in found)
    except (ValueError, TypeError, RecursionError):
        raise EXECUTIONS.damage(row, "tools", "are no list of calls") from None
    if not all(isinstance(name, str) and isinstance(call_id, (str, _NONE)) for name, call_id in tools):
        raise EXECUTIONS.damage(row, "tools", "are no list of calls")
    return tools


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=256)
def _are_timeouts(text: str) -> bool:
    try:
        Timeouts.model_validate_json(text)
    except ValidationError:
        return False
    return True


# --- the journal ----------------------------------------------------------------------------------------------

JOURNAL = Shape(
    "journal", "position",
    position="whole", execution_id="text", version="whole", event="text", source="text?", target="text", at="number",
    attempt="whole", fence="whole", owner="text?", key="text?", payload="text?",
    objects="whole",
)  # fmt: skip
_WHEN = JOURNAL.columns.index("at")


def receipt(row: Row) -> Receipt:
    """Return the receipt of a row of the journal; raises `DamagedRecord` if it is none."""
    JOURNAL.check(row)
    if not -MAX_INSTANT <= row[_WHEN] <= MAX_INSTANT:
        raise JOURNAL.damage(row, "at", "is no instant")
    if not row[-1]:
        raise JOURNAL.damage(row, "payload", "is no JSON object")
    return Receipt._make(row[:-1])


def chained(execution_id: str, receipts: Sequence[Receipt], *, whole: bool) -> None:
    """Refuse rows that are not the history of one execution.

    Args:
        execution_id: The execution.
        receipts: What the chain of its rows led to, by position.
        whole: Whether the chain was followed to the beginning.

    Raises:
        DamagedRecord: A row is missing, or another's.
    """
    first = 0 if whole else receipts[0].version if receipts else 0
    for version, one in enumerate(receipts, first):
        if one[1] != execution_id:
            raise DamagedRecord("journal", one.position, "previous", "leads into another execution's journal")
        if one[2] != version:
            raise DamagedRecord(
                "journal", shown(execution_id), "previous", f"does not lead to version {version}"
            )


def position(value: object) -> int:
    """Return the journal's last position; raises `DamagedRecord` if it is none."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise DamagedRecord("horizon", 1, "position", "is no position")
    return value


# --- the smaller tables ---------------------------------------------------------------------------------------

DUE = Shape("executions", "id", id="text", version="whole", due_at="number", due_kind="text")
OWNED = Shape("executions", "id", id="text", version="whole")
ENDED = Shape("executions", "id", id="text")
COUNTS = Shape("executions", "state", state="text", count="whole")
MACHINES = Shape("machines", "content_hash", content_hash="text", document="text")
NUMBERS = Shape("machines", "id", id="whole", content_hash="text")
STATES = Shape("states", "machine", machine="whole", name="text")
ORDERS = Shape("orders", "execution_id", execution_id="text", version="whole", event="text")
ERAS = Shape(
    "eras", "offset_s",
    offset_s="number", held_at="number?", begun_s="number", lag_s="number", drift_s="number", even_s="number",
)  # fmt: skip
LAST = Shape("executions", "since_at", since_at="number", entered_at="number")
MARKS = Shape("mark", "steady_at", steady_at="number", wall_at="number", monotonic_s="number?")
WORKERS = Shape(
    "workers", "id",
    id="text", name="text", ttl_s="number", started_at="number", renewed_at="number", lost="whole",
)  # fmt: skip
BEATS = Shape(
    "beats", "process",
    process="text", loop="text", worker="text", host="text", pid="whole", running="whole", turns="whole",
    failures="whole", failing="whole", last_error="text?", failed_at="number?", succeeded_at="number?",
    alive_at="number?", started_at="number", seen_at="number",
)  # fmt: skip
BREAKERS = Shape(
    "breakers", "key",
    key="text", state="text", version="whole", generation="whole", changed_at="number", since="number?",
    until="number?", openings="whole", probes="text?", successes="whole", abandoned="whole",
    known="whole",
)  # fmt: skip
BREAKER_JOURNAL = Shape(
    "breaker_journal", "position",
    position="whole", key="text", version="whole", event="text", source="text", target="text", generation="whole",
    at="number", actor="text?", reason="text?",
)  # fmt: skip


def due(row: Row) -> Due:
    """Return a deadline that has passed."""
    return Due._make(DUE.check(row))


def owned(row: Row) -> tuple[str, int]:
    """Return id and version of what a worker owns."""
    execution_id, version = OWNED.check(row)
    return execution_id, version


def ended(row: Row) -> str:
    """Return the id of what has ended."""
    return str(ENDED.check(row)[0])


def order(row: Row) -> Order:
    """Return an order."""
    return Order._make(ORDERS.check(row))


def era(row: Row) -> Era:
    """Return an era; raises `DamagedRecord` if a column is no number."""
    return Era._make(_finite(ERAS, row))


def mark(row: Row) -> Mark:
    """Return a mark; raises `DamagedRecord` if a column is no number."""
    return Mark._make(_finite(MARKS, row))


def _finite(shape: Shape, row: Row) -> Row:
    for name, value in zip(shape.columns, shape.check(row), strict=True):
        if value is not None and not -_MOST <= value <= _MOST:
            raise shape.damage(row, name, "is without end")
    return row


def worker(row: Row) -> WorkerRow:
    """Return a registered worker."""
    WORKERS.check(row)
    for index, name in ((2, "ttl_s"), (3, "started_at"), (4, "renewed_at")):
        if not math.isfinite(row[index]) or (
            name != "ttl_s" and not -MAX_INSTANT <= row[index] <= MAX_INSTANT
        ):
            raise WORKERS.damage(row, name, "is no instant")
    return WorkerRow(row[0], row[1], row[2], row[3], row[4], bool(row[5]))


def beat(row: Row) -> Beat:
    """Return what a process wrote of one of its loops."""
    BEATS.check(row)
    for index in (10, 11, 12, 13, 14):
        if row[index] is not None and not -MAX_INSTANT <= row[index] <= MAX_INSTANT:
            raise BEATS.damage(row, BEATS.columns[index], "is no instant")
    return Beat._make(row)._replace(running=bool(row[5]))


def breaker(row: Row) -> BreakerRow:
    """Return a breaker."""
    BREAKERS.check(row)
    if not row[-1]:
        raise BREAKERS.damage(row, "state", "is no state of its machine")
    probes: tuple[tuple[str, float], ...] = ()
    if row[8]:
        try:
            probes = tuple((token, expires_at) for token, expires_at in json.loads(row[8]))
        except (ValueError, TypeError, RecursionError):
            raise BREAKERS.damage(row, "probes", "are no list of probes") from None
        if not all(isinstance(token, str) and _is_instant(at) for token, at in probes):
            raise BREAKERS.damage(row, "probes", "are no list of probes")
    for index in (2, 3, 7, 9, 10):
        if not 0 <= row[index] <= MAX_COUNT:
            raise BREAKERS.damage(row, BREAKERS.columns[index], "is no count")
    for index in (4, 5, 6):
        if row[index] is not None and not math.isfinite(row[index]):
            raise BREAKERS.damage(row, BREAKERS.columns[index], "is no instant")
    return BreakerRow._make((*row[:8], probes, *row[9:-1]))


def breaker_entry(row: Row) -> BreakerEntry:
    """Return a line of the breakers' journal."""
    BREAKER_JOURNAL.check(row)
    if not -MAX_INSTANT <= row[7] <= MAX_INSTANT:
        raise BREAKER_JOURNAL.damage(row, "at", "is no instant")
    return BreakerEntry._make(row)


def _is_instant(value: object) -> bool:
    return type(value) in {int, float} and math.isfinite(value)  # type: ignore[arg-type]
