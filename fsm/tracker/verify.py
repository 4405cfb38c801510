"""Verification: every journal is folded again, and compared with the record that it leads to.

A store keeps for each execution a record and a journal. `verify` reads both, page by page, and carries every recorded
event out once more through `fsm.core.decide`, so that whatever the table, its guards and its assignments say must
come out as it is recorded: state, version, attempt, owner, fence, open tools, waits, the end. What a store's own law
cannot judge (a deadline that was taken away, a claim that no event made) shows here.

What a journal does not record is compared within bounds: the steady timeline (`since_at`, waits, deadlines that count
from silence), the jitter of a backoff. A deadline that counts from creation or from the entry into a state is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from fsm.core.decide import create, deadline, decide
from fsm.core.journal import legal_rows, record_of
from fsm.core.records import CANCEL_CHILDREN, Receipt, Snapshot
from fsm.core.request import Request
from fsm.errors import DamagedRecord, Finding, FsmError, Refusal
from fsm.lifecycles.breaker import BREAKER
from fsm.machine.grammar import CREATE, Arrow, Category
from fsm.machine.machine import Machine
from fsm.registry.catalog import Law
from fsm.registry.registry import Registry
from fsm.stores.base import Damage, Order, Query, Store
from fsm.stores.breakers import BreakerEntry, BreakerRow, BreakerStore

PAGE = 500
"""Number of records that are read at a time: memory stays flat, however many there are."""
MAX_LOOKS = 5
"""How often a record that others are changing is looked at again before it is reported as it was seen last."""
MAX_SEEN = 10_000
"""Maximum number of executions that the walk through the journal remembers as existing."""
FUTURE_S = 86_400.0
"""An instant of the steady timeline may lie so far ahead, in seconds: a file may come from another machine."""
_NEAR_S = 0.001
_OVER = frozenset({Category.TERMINAL, Category.STOPPING})
_RESTORE = "Restore the store from a backup, or have a person judge what is right"
_LEFT = "Somebody wrote past the library: find out who, and judge by the journal what is right"

T = TypeVar("T")


class _Folded(NamedTuple):
    """What a journal leads to.

    Attributes:
        record: The record as it must be, on a timeline of its own.
        waited: How long after the state's entry its wait is over, in seconds, if the row that entered ordered it.
    """

    record: Snapshot
    waited: float | None


def verify(registry: Registry) -> Iterator[Finding]:
    """Look through a store and yield what does not fit. Other processes may go on writing.

    Args:
        registry: The registry; its machines and payload models decide what can be folded.

    Yields:
        Findings, as they come: ``code`` names the invariant, ``row`` the record.

    Raises:
        StoreUnavailable: The store did not answer.
        NotAStore: The file is so damaged that it cannot be read through.
    """
    store = registry.store
    told: set[tuple[str, str]] = set()
    for damage in store.inspect():
        told.add((damage.table, damage.key))
        yield _damage(damage)
    yield from _machines(registry)
    after: str | None = None
    while page := store.find(Query(limit=PAGE, after=after)):
        for snapshot in page:
            yield from _execution(registry, snapshot)
        after = page[-1].identity.id
    yield from _journal(store)
    yield from _orders(store)
    if isinstance(store, BreakerStore):
        yield from _breakers(store)
    for damage in store.damaged():
        if (damage.table, damage.key) not in told:
            yield _damage(damage)


def _damage(damage: Damage) -> Finding:
    where = " ".join(part for part in (damage.table, damage.key) if part)
    column = f"{damage.column} " if damage.column else ""
    return Finding("damaged", where, f"{column}{damage.why}", _RESTORE)


# --- machines -------------------------------------------------------------------------------------------------


def _machines(registry: Registry) -> Iterator[Finding]:
    """Compare the documents in the store with the hashes under which they are kept."""
    for content_hash, document in registry.store.machines().items():
        try:
            machine = Machine.from_json(document)
        except (ValueError, FsmError) as error:
            said = " ".join(str(error).split())[:200]
            yield Finding(
                "machine", f"machine {content_hash}", f"its document cannot be read: {said}", _RESTORE
            )
            continue
        try:
            known = registry.law_of(content_hash).machine
        except FsmError:
            continue  # a perpetual machine; the breakers' journal is folded on it
        if {record_of(machine)[3:]} != {record_of(known)[3:]}:
            message = "its document says other states or rows than the machine of that hash has"
            yield Finding("machine", f"machine {content_hash}", message, _RESTORE)


# --- one execution ----------------------------------------------------------------------------------------------


def _execution(registry: Registry, record: Snapshot) -> Iterator[Finding]:
    """Yield what is wrong with one execution; one that changes during it is looked at again."""
    found: list[Finding] = []
    for _ in range(MAX_LOOKS):
        try:
            found = list(_judge(registry, record, registry.store.history(record.identity.id)))
            now = registry.store.load(record.identity.id) if found else record
        except DamagedRecord as damage:
            found = [_damage(Damage(damage.table, damage.key, damage.column, damage.why))]
            break
        if now is None:
            return  # it was pruned in between
        if now == record:
            break
        record = now
    yield from found


def _judge(registry: Registry, record: Snapshot, history: Sequence[Receipt]) -> Iterator[Finding]:
    identity = record.identity
    try:
        law = registry.law_of(identity.machine)
    except FsmError as error:
        yield Finding("machine", identity.id, str(error), _RESTORE)
        return
    broken = list(_shape(record, history))
    yield from broken
    yield from _keys(registry.store, record, history)
    yield from _relatives(registry, record, law)
    yield from _ahead(record, registry.now())
    if broken:
        return
    try:
        folded = _fold(law, record, history)
    except _Misfit as misfit:
        yield misfit.finding
        return
    yield from _compare(law.machine, record, folded)


def _shape(record: Snapshot, history: Sequence[Receipt]) -> Iterator[Finding]:
    """Compare versions, positions and the links between rows, before anything is folded."""
    execution_id = record.identity.id

    def finding(code: str, message: str) -> Finding:
        return Finding(code, execution_id, message, _LEFT)

    if not history:
        yield finding("journal", "it has no journal")
        return
    versions = [one.version for one in history]
    if versions != list(range(len(versions))) or len(versions) <= record.version:
        yield finding(
            "versions", f"its versions are {_some(versions)}, and the record is at version {record.version}"
        )
    positions = [one.position for one in history]
    if any(later <= earlier for earlier, later in pairwise(positions)):
        yield finding("positions", f"its positions do not ascend: {_some(positions)}")
    if any(one.execution_id != execution_id for one in history):
        yield finding("journal", "rows of another execution are in its journal")
    for earlier, later in pairwise(history):
        if later.source != earlier.target:
            yield finding(
                "chain",
                f"version {later.version} begins in {later.source!r}, the one before ended in {earlier.target!r}",
            )
        if later.fence < earlier.fence or later.attempt < earlier.attempt:
            yield finding("fence", f"fence or attempt fall at version {later.version}")


def _some(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:5]))}{' …' if len(numbers) > 5 else ''}"  # noqa: PLR2004 - for a person


def _keys(store: Store, record: Snapshot, history: Sequence[Receipt]) -> Iterator[Finding]:
    execution_id = record.identity.id
    seen: dict[str, int] = {}
    for one in history:
        if one.key is None:
            continue
        if one.key in seen:
            yield Finding(
                "keys",
                execution_id,
                f"the key {one.key!r} was used for version {seen[one.key]} and for version {one.version}",
                _LEFT,
            )
        elif store.keyed(execution_id, one.key) != one:
            yield Finding(
                "keys", execution_id, f"the key {one.key!r} does not lead to version {one.version}", _RESTORE
            )
        seen.setdefault(one.key, one.version)


def _relatives(registry: Registry, record: Snapshot, law: Law) -> Iterator[Finding]:
    """Compare a child with its parent. One that is not there was pruned; a store that remembers says if it was not."""
    identity = record.identity
    if identity.parent_id is None:
        return
    if identity.parent_id == identity.id:
        yield Finding("parent", identity.id, "it is its own parent", _LEFT)
        return
    parent = registry.store.load(identity.parent_id)
    if parent is None:
        return
    if parent.identity.user_id != identity.user_id:
        yield Finding(
            "parent", identity.id, f"its parent {identity.parent_id} belongs to another user", _LEFT
        )
    mine = law.machine
    if mine.by_name[record.state].category in _OVER or "cancel" not in mine.by_source[record.state]:
        return
    machine = registry.law_of(parent.identity.machine).machine
    if not _told_to_stop(machine, parent, registry.store):
        return
    orders = registry.store.orders(_before(identity.parent_id), 1)
    if not any(order.execution_id == identity.parent_id for order in orders):
        message = (
            f"its parent {identity.parent_id} has ended, it is still open, and no order to cancel it is left"
        )
        yield Finding("orphan", identity.id, message, f"Cancel it: fsm cancel {identity.id}")


def _before(execution_id: str) -> str:
    """Return a text that sorts right before an id, for orders that come after it."""
    return execution_id[:-1] + chr(ord(execution_id[-1]) - 1) + "\x7f" if execution_id else ""


def _told_to_stop(machine: Machine, parent: Snapshot, store: Store) -> bool:
    """Return whether the event that ended an execution, or is about to, ordered the cancel of its children."""
    if parent.state not in machine.by_name or machine.by_name[parent.state].category not in _OVER:
        return False
    for one in reversed(store.history(parent.identity.id)):
        arrows: Iterable[Arrow] = machine.by_source.get(one.source or "", {}).get(one.event, ())
        if any(arrow.target == one.target and CANCEL_CHILDREN in arrow.effects for arrow in arrows):
            return True
        if one.target not in machine.by_name or machine.by_name[one.target].category not in _OVER:
            return False
    return False


def _ahead(record: Snapshot, now: float) -> Iterator[Finding]:
    for name, at in (("born_at", record.identity.born_at), ("since_at", record.since_at)):
        if at > now + FUTURE_S:
            yield Finding(
                "future",
                record.identity.id,
                f"{name} lies {(at - now) / 3600:.0f} h ahead of the timeline, and its deadlines with it",
                "Cancel it, and look at this machine's clock",
            )


# --- the fold -----------------------------------------------------------------------------------------------------


class _Misfit(Exception):
    """Carries a finding out of a fold; it never leaves this module."""

    def __init__(self, code: str, record: Snapshot, message: str, fix: str = _LEFT) -> None:
        super().__init__(message)
        self.finding = Finding(code, record.identity.id, message, fix)


def _fold(law: Law, record: Snapshot, history: Sequence[Receipt]) -> _Folded:
    """Carry the recorded events out again, up to the record's version.

    Raises:
        _Misfit: The table refuses one of them, or something else than what is recorded comes out.
    """
    machine = law.machine
    first = history[0]
    after = create(machine, record.identity).after._replace(entered_at=first.at, updated_at=first.at)
    if (first.source, first.event) != (None, CREATE) or first.target != after.state:
        raise _Misfit("birth", record, f"it begins with {first.event!r} in {first.target!r}")
    if first.at != record.identity.created_at:
        raise _Misfit(
            "birth", record, f"it was created at {record.identity.created_at}, its journal says {first.at}"
        )
    _same(record, first, after)
    waited: float | None = None
    for one in history[1 : record.version + 1]:
        if (one.source, one.event, one.target) not in legal_rows(machine):
            raise _Misfit(
                "illegal",
                record,
                f"version {one.version}: {one.source} --{one.event}--> {one.target} is no row",
            )
        before = after
        try:
            step = decide(machine, before, _request(law, before, one))
        except Exception as error:  # a payload model or an assignment of somebody else's
            raise _Misfit(
                "payload", record, f"version {one.version}: the payload of {one.event!r} cannot be read: {error}",
                "Register the payload models of its machine in this process, or restore the store from a backup",
            ) from error  # fmt: skip
        if isinstance(step, Refusal):
            raise _Misfit(
                "refused",
                record,
                f"version {one.version}: {one.event!r} in {one.source!r}: {step.reason}: {step.detail}",
            )
        after = step.after
        _same(record, one, after)
        if after.since_at != before.since_at or after.state != before.state:
            waited = None if after.not_before is None else after.not_before - after.since_at
        elif after.not_before != before.not_before:
            waited = None  # counted from an instant that is not recorded
    return _Folded(after, waited)


def _request(law: Law, before: Snapshot, one: Receipt) -> Request:
    """Return what a recorded event was decided on, as far as it is recorded: the caller held the fence."""
    payload = law.codec.decode(one.event, one.payload_json)
    return Request(
        one.event,
        one.at,
        payload,
        one.payload_json,
        fence=before.fence,
        key=one.key,
        worker=one.owner,
        ordered=True,
    )


def _same(record: Snapshot, one: Receipt, after: Snapshot) -> None:
    """Compare a row of the journal with what comes out."""
    expected: dict[str, Any] = {
        "target": after.state,
        "version": after.version,
        "at": after.updated_at,
        "attempt": after.attempt,
        "fence": after.fence,
        "owner": after.owner,
    }
    for name, value in expected.items():
        found = getattr(one, name)
        if found != value:
            said = f"after {one.event!r} {name} is {found!r}, and follows as {value!r}"
            raise _Misfit("fold", record, f"version {one.version}: {said}")


_DERIVED = (
    "state", "version", "entered_at", "updated_at", "attempt", "owner", "fence", "tools", "model_attempt", "breaker",
    "limit_s", "end_json",
)  # fmt: skip
"""What follows from a journal exactly."""


def _compare(machine: Machine, record: Snapshot, folded: _Folded) -> Iterator[Finding]:
    """Compare a record with what its journal leads to."""
    for name in _DERIVED:
        is_, follows = getattr(record, name), getattr(folded.record, name)
        if is_ != follows:
            said = f"{name} is {is_!r}, and its journal leads to {follows!r}"
            yield Finding("fold", record.identity.id, said[:500], _LEFT)
    yield from _wait(record, folded)
    if record.state in machine.terminal:
        if record.due_at is not None or record.due_kind is not None:
            yield Finding("deadline", record.identity.id, "it has ended, and has a deadline", _LEFT)
    else:
        yield from _deadline(machine, record)


def _wait(record: Snapshot, folded: _Folded) -> Iterator[Finding]:
    wait, follows = record.not_before, folded.record.not_before
    if (wait is None) != (follows is None):
        message = f"not_before is {wait!r}, and its journal orders {'no' if follows is None else 'a'} wait"
        yield Finding("fold", record.identity.id, message, _LEFT)
    elif wait is not None and folded.waited is not None:
        waits_s = wait - record.since_at
        # A backoff is shortened by up to half, at random.
        if not folded.waited / 2 - _NEAR_S <= waits_s <= folded.waited + _NEAR_S:
            message = f"it waits for {waits_s:g} s, and its journal orders {folded.waited:g} s at most"
            yield Finding("fold", record.identity.id, message, _LEFT)


def _deadline(machine: Machine, record: Snapshot) -> Iterator[Finding]:
    """Compare the deadline of an open execution with the limits of its machine and its own."""
    identity = record.identity
    limits = machine.limits_for(identity.timeouts_json)
    due_at, kind = deadline(
        limits._replace(idle_s=None), record.state, identity.born_at, record.since_at, record.since_at,
        record.not_before, record.limit_s,
    )  # fmt: skip
    idle_s = limits.idle_s if record.state in limits.idle_states else None
    message = ""
    if record.due_kind == "idle" and record.due_at is not None:
        # Counted from the last event, whose instant on the steady timeline is not recorded.
        if idle_s is None:
            message = "its deadline counts from silence, which its limits do not name here"
        elif due_at is not None and record.due_at > due_at:
            message = "its deadline lies behind a nearer one"
        elif record.due_at < record.since_at + idle_s - _NEAR_S:
            message = "its deadline lies before the limit of silence can have passed"
    elif (record.due_at, record.due_kind) != (due_at, kind):
        follows = "none" if due_at is None else f"{kind} at {due_at!r}"
        message = (
            f"its deadline is {record.due_kind or 'none'} at {record.due_at!r}, and follows as {follows}"
        )
    elif idle_s is not None and due_at is None:
        message = "it has no deadline, and its limits name one of silence"
    if message:
        yield Finding("deadline", identity.id, message, _LEFT)


# --- the journal as a whole, orders, breakers -----------------------------------------------------------------------


def _journal(store: Store) -> Iterator[Finding]:
    """Walk through the whole journal: positions ascend, and every row belongs to an execution."""
    after = 0
    seen: dict[str, None] = {}
    while page := store.journal(after, PAGE):
        for one in page:
            if one.position <= after:
                yield Finding("positions", f"position {one.position}", f"it comes after {after}", _RESTORE)
                return
            after = one.position
            if one.execution_id in seen:
                continue
            if _lost(store, one):
                message = f"its execution {one.execution_id} is not there"
                yield Finding("journal", f"position {one.position}", message, _RESTORE)
            if len(seen) >= MAX_SEEN:
                del seen[next(iter(seen))]
            seen[one.execution_id] = None


def _lost(store: Store, one: Receipt) -> bool:
    """Return whether a row of the journal belongs to nothing; what is being pruned is gone at the second look."""
    try:
        if store.load(one.execution_id) is not None:
            return False
    except DamagedRecord:
        return False  # it is there, and is reported as what it is
    return any(row.position == one.position for row in store.journal(one.position - 1, 1))


def _orders(store: Store) -> Iterator[Finding]:
    after = ""
    while page := store.orders(after, PAGE):
        for order in page:
            try:
                history = store.history(order.execution_id)
            except DamagedRecord:
                continue  # reported as what it is
            if (
                history
                and not _given(order, history)
                and order in store.orders(_before(order.execution_id), 1)
            ):
                message = f"an order to cancel its children names {order.event!r} at version {order.version}"
                yield Finding("orders", order.execution_id, f"{message}, which is not in its journal", _LEFT)
        after = page[-1].execution_id


def _given(order: Order, history: Sequence[Receipt]) -> bool:
    return any(one.version == order.version and one.event == order.event for one in history)


def _breakers(store: BreakerStore) -> Iterator[Finding]:
    """Fold the journal of each breaker on its machine."""
    for row in store.breaker_list():
        found: list[Finding] = []
        for _ in range(MAX_LOOKS):
            found = list(_breaker(store, row))
            now = store.breaker_load(row.key) if found else row
            if now is None or now == row:
                break
            row = now  # noqa: PLW2901 - it was changed while it was looked at
        yield from found


def _breaker(store: BreakerStore, row: BreakerRow) -> Iterator[Finding]:
    rows = legal_rows(BREAKER)
    last: BreakerEntry | None = None
    state, generation, version = BREAKER.initial, 1, 0

    def finding(message: str) -> Finding:
        return Finding("breaker", f"breaker {row.key}", message, _LEFT)

    for one in _lines(lambda after: store.breaker_changes(after, PAGE, row.key)):
        if one.version > row.version:
            break
        where = f"version {one.version}"
        if one.source != state or (one.source, one.event, one.target) not in rows:
            yield finding(f"{where}: {one.source} --{one.event}--> {one.target} does not follow from {state}")
        if one.version <= version:
            yield finding(f"{where} comes after version {version}")
        if one.generation != generation + (one.event in _ANEW):
            yield finding(f"{where}: generation {one.generation} comes after {generation}")
        state, generation, version, last = one.target, one.generation, one.version, one
    if last is not None and (row.state, row.generation) != (state, generation):
        yield finding(
            f"it is {row.state} in generation {row.generation}, and its journal leads to {state} in {generation}"
        )


_ANEW = frozenset(row.event for row in BREAKER.transitions if "next_generation" in row.assign)
"""The events that raise the generation, even if the state stays."""


def _lines(read: Callable[[int], list[BreakerEntry]]) -> Iterator[BreakerEntry]:
    after = 0
    while page := read(after):
        yield from page
        after = page[-1].position
