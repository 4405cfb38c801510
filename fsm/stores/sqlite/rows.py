"""Rows of the file as records. What cannot be one is `DamagedRecord`, with the record and the column that are at fault.

A file may hold anything: flipped bits, text that is no UTF-8, what a script wrote before there was a law against it.
So a row is looked at before it becomes a record: each value's type, instants within bounds, JSON that can be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

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
T = TypeVar("T")

_NONE = type(None)
_MOST = sys.float_info.max
_KINDS: dict[Any, frozenset[type]] = {
    str: frozenset({str}),
    str | None: frozenset({str, _NONE}),
    int: frozenset({int}),
    bool: frozenset({int}),
    float: frozenset({float, int}),
    float | None: frozenset({float, int, _NONE}),
}
_NAMES = {bytes: "no text", str: "a text", int: "a whole number", float: "a number", _NONE: "missing"}


def columns(record: type[Any], names: Mapping[str, str], **kinds: Any) -> dict[str, Any]:
    """Return the columns that keep a record, each with the type that it holds, in the order of the record's fields.

    Args:
        record: A class of named tuples.
        names: The column of a field, where it is not called like the field.
        kinds: The type that the file holds for a field, where it is not the field's.
    """
    hints = get_type_hints(record) | kinds
    return {names.get(field, field): hints[field] for field in record._fields}


class Shape:
    """What the columns of a query hold."""

    def __init__(
        self, table: str, key: str, kinds: Mapping[str, Any], *, instants: str = "", counts: str = ""
    ) -> None:
        """Describe a query.

        Args:
            table: The table that it reads.
            key: The column that says which record a row is.
            kinds: The type of each column, in the order of the query.
            instants: The columns that hold instants of a clock.
            counts: The columns that hold what one is added to.
        """
        self.table = table
        self.columns = tuple(kinds)
        self._kinds = tuple(_KINDS[kind] for kind in kinds.values())
        self._key = self.columns.index(key)
        self._sound: set[tuple[type, ...]] = set()
        self._bounds: list[tuple[int, float, float, str]] = []
        for index, name in enumerate(self.columns):
            if name in instants.split():
                self._bounds.append((index, -MAX_INSTANT, MAX_INSTANT, "is no instant"))
            elif name in counts.split():
                self._bounds.append((index, 0, MAX_COUNT, "is no count"))
            elif float in self._kinds[index]:
                self._bounds.append((index, -_MOST, _MOST, "is without end"))

    def check(self, row: Row) -> Row:
        """Return a row whose values are of their columns' types, and within bounds.

        Raises:
            DamagedRecord: One is not.
        """
        signature = tuple(map(type, row))
        if signature not in self._sound:
            for name, kinds, value in zip(self.columns, self._kinds, row, strict=True):
                if type(value) not in kinds:
                    raise self.damage(row, name, f"is {_NAMES.get(type(value), 'nothing known')}")
            if len(self._sound) >= MAX_SIGNATURES:
                self._sound.clear()
            self._sound.add(signature)
        for index, least, most, why in self._bounds:
            if row[index] is not None and not least <= row[index] <= most:
                raise self.damage(row, self.columns[index], why)
        return row

    def made(self, make: Callable[[Row], T]) -> Callable[[Row], T]:
        """Return what makes a record of a row that is whole, and raises `DamagedRecord` for another."""
        return lambda row: make(self.check(row))

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

BORN = columns(
    Identity, {"metadata_json": "metadata", "timeouts_json": "timeouts", "key": "born_key"}, machine=int
)
"""The columns of what an execution is born with; a machine is named by its number."""
LIVED = columns(Snapshot, {"end_json": "ending"}, tools=str | None)
"""The columns of what changes."""
del LIVED["identity"]
EXECUTIONS = Shape(
    "executions", "id", BORN | LIVED | {"objects": int},
    instants="created_at born_at entered_at updated_at since_at",
    counts="version attempt fence model_attempt attempts_max",
)  # fmt: skip


_AT = {column: index for index, column in enumerate(EXECUTIONS.columns)}
_MACHINE, _STATE, _METADATA = _AT["machine"], _AT["state"], _AT["metadata"]
_TIMEOUTS, _TOOLS, _SUSPENDED = _AT["timeouts"], _AT["tools"], _AT["suspended"]


def number_of(row: Row) -> Any:
    """Return the number of the machine that a row of `executions` names."""
    return row[_MACHINE]


def snapshot(row: Row, machines: Mapping[int, tuple[str, frozenset[str]]]) -> Snapshot:
    """Return the record of a row of `executions`.

    Args:
        row: Its values, in the order of `EXECUTIONS`, which is that of the record's fields.
        machines: For each number of a machine its content hash and its states.

    Raises:
        DamagedRecord: It is none.
    """
    values = list(EXECUTIONS.check(row))
    if not values.pop():
        column = "metadata" if row[_METADATA] and not _is_object(row[_METADATA]) else "ending"
        raise EXECUTIONS.damage(row, column, "is no JSON object")
    if row[_TIMEOUTS] and not _are_timeouts(row[_TIMEOUTS]):
        raise EXECUTIONS.damage(row, "timeouts", "are no time limits")
    machine = machines.get(row[_MACHINE])
    if machine is None:
        raise EXECUTIONS.damage(row, "machine", "is not registered")
    values[_MACHINE], states = machine
    if row[_STATE] not in states:
        raise EXECUTIONS.damage(row, "state", "is no state of its machine")
    values[_TOOLS] = _tools(row, row[_TOOLS]) if row[_TOOLS] else ()
    values[_SUSPENDED] = bool(row[_SUSPENDED])
    return Snapshot._make((Identity._make(values[: len(BORN)]), *values[len(BORN) :]))


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

ENTRY = columns(Receipt, {"payload_json": "payload"})
JOURNAL = Shape("journal", "position", ENTRY | {"objects": int}, instants="at")


def receipt(row: Row) -> Receipt:
    """Return the receipt of a row of the journal; raises `DamagedRecord` if it is none."""
    JOURNAL.check(row)
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
        if one.execution_id != execution_id:
            raise DamagedRecord("journal", one.position, "previous", "leads into another execution's journal")
        if one.version != version:
            raise DamagedRecord(
                "journal", shown(execution_id), "previous", f"does not lead to version {version}"
            )


def position(value: object) -> int:
    """Return the journal's last position; raises `DamagedRecord` if it is none."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise DamagedRecord("horizon", 1, "position", "is no position")
    return value


# --- the smaller tables ---------------------------------------------------------------------------------------

DUE = Shape("executions", "id", columns(Due, {"execution_id": "id", "kind": "due_kind"}))
OWNED = Shape("executions", "id", {"id": str, "version": int})
ENDED = Shape("executions", "id", {"id": str})
COUNTS = Shape("executions", "state", {"state": str, "count": int})
MACHINES = Shape("machines", "content_hash", {"content_hash": str, "document": str})
NUMBERS = Shape("machines", "id", {"id": int, "content_hash": str})
STATES = Shape("states", "machine", {"machine": int, "name": str})
ORDERS = Shape("orders", "execution_id", columns(Order, {}))
ERAS = Shape("eras", "offset_s", columns(Era, {}))
LAST = Shape("executions", "since_at", {"since_at": float, "entered_at": float})
MARKS = Shape("mark", "steady_at", columns(Mark, {}))
WORKERS = Shape("workers", "id", columns(WorkerRow, {}), instants="started_at renewed_at")
BEATS = Shape(
    "beats", "process", columns(Beat, {}), instants="failed_at succeeded_at alive_at started_at seen_at"
)
BREAKERS = Shape(
    "breakers", "key", columns(BreakerRow, {}, probes=str | None) | {"known": int},
    counts="version generation openings successes abandoned",
)  # fmt: skip
BREAKER_JOURNAL = Shape(
    "breaker_journal", "position", columns(BreakerEntry, {"by": "actor", "why": "reason"}), instants="at"
)


due = DUE.made(Due._make)
owned = OWNED.made(lambda row: (str(row[0]), int(row[1])))
ended = ENDED.made(lambda row: str(row[0]))
order = ORDERS.made(Order._make)
era = ERAS.made(Era._make)
mark = MARKS.made(Mark._make)
breaker_entry = BREAKER_JOURNAL.made(BreakerEntry._make)


def worker(row: Row) -> WorkerRow:
    """Return a registered worker."""
    one = WorkerRow._make(WORKERS.check(row))
    return one._replace(lost=bool(one.lost))


def beat(row: Row) -> Beat:
    """Return what a process wrote of one of its loops."""
    one = Beat._make(BEATS.check(row))
    return one._replace(running=bool(one.running))


def breaker(row: Row) -> BreakerRow:
    """Return a breaker."""
    *values, known = BREAKERS.check(row)
    if not known:
        raise BREAKERS.damage(row, "state", "is no state of its machine")
    one = BreakerRow._make(values)
    return one._replace(probes=_probes(row, one.probes)) if one.probes else one._replace(probes=())


def _probes(row: Row, text: Any) -> tuple[tuple[str, float], ...]:
    try:
        probes = tuple((token, expires_at) for token, expires_at in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise BREAKERS.damage(row, "probes", "are no list of probes") from None
    if not all(isinstance(token, str) and _is_instant(at) for token, at in probes):
        raise BREAKERS.damage(row, "probes", "are no list of probes")
    return probes


def _is_instant(value: object) -> bool:
    return type(value) in {int, float} and math.isfinite(value)  # type: ignore[arg-type]
