"""What can go wrong between a worker and its store, and when: as data, drawn from a seed or listed one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from fsm.core.records import Receipt, Snapshot, Step
from fsm.errors import StoreUnavailable
from fsm.registry.command import Command
from fsm.simulation.handles import Process
from fsm.simulation.loop import SteppedLoop
from fsm.stores.base import Barred, Conflict, Due, Order, Store

T = TypeVar("T")

StoreFault = Literal["fail_before", "fail_after", "unknown", "hang", "slow", "read_fails"]
ProcessFault = Literal["crash", "pause", "jump"]
FaultKind = Literal[
    "fail_before", "fail_after", "unknown", "hang", "slow", "read_fails", "crash", "pause", "jump"
]
STORE_FAULTS: tuple[StoreFault, ...] = ("fail_before", "fail_after", "unknown", "hang", "slow", "read_fails")
PROCESS_FAULTS: tuple[ProcessFault, ...] = ("crash", "pause", "jump")


class Fault(NamedTuple):
    """One thing that goes wrong at a set step.

    Attributes:
        step: At this step of the loop, counted from 1; a store fault waits from here on for the worker's next write
            (or read, for ``read_fails``).
        kind: ``fail_before``: the write fails, nothing is committed, and the caller is told so. ``fail_after``: it is
            committed, but the caller only hears that nobody can tell. ``unknown``: it is not committed, and the
            caller hears the same. ``hang``: the write reaches the store after `for_s`. ``slow``: it is committed at
            once, the answer comes after `for_s`. ``read_fails``: a read raises. ``crash``: the worker is killed and
            comes back after `for_s`. ``pause``: it is stopped for `for_s`. ``jump``: its wall clock jumps by `for_s`.
        worker: The number of the worker, from 0; taken modulo the number of workers.
        for_s: Virtual seconds; only ``jump`` may go back.
    """

    step: int
    kind: FaultKind
    worker: int = 0
    for_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """How often things go wrong by themselves. Everything is 0 unless it is given.

    Attributes:
        fail_before: The share of writes that fail before the commit, told as such.
        fail_after: The share of writes that are committed while the caller hears that nobody can tell.
        unknown: The share of writes that are not committed while the caller hears that nobody can tell.
        hang: The share of writes that reach the store late.
        slow: The share of writes whose answer comes late.
        read_fails: The share of reads that fail.
        late_s: The mean of how late, in virtual seconds.
        latency_s: The mean way to the store and back, in virtual seconds; half of all ways take no time at all.
        crash_every_s: The mean virtual time from one crash of some worker to the next; 0 for none.
        down_s: The mean time until a crashed worker comes back.
        pause_every_s: The mean virtual time from one pause of some worker to the next; 0 for none.
        pause_s: The mean length of a pause.
        jump_every_s: The mean virtual time from one jump of some wall clock to the next; 0 for none.
        jump_s: The longest jump, forth or back.
    """

    fail_before: float = 0.0
    fail_after: float = 0.0
    unknown: float = 0.0
    hang: float = 0.0
    slow: float = 0.0
    read_fails: float = 0.0
    late_s: float = 5.0
    latency_s: float = 0.002
    crash_every_s: float = 0.0
    down_s: float = 5.0
    pause_every_s: float = 0.0
    pause_s: float = 20.0
    jump_every_s: float = 0.0
    jump_s: float = 3600.0


CALM = Chaos()
"""Nothing goes wrong, but every way to the store takes its time."""
STORM = Chaos(
    fail_before=0.02, fail_after=0.02, unknown=0.02, hang=0.01, slow=0.02, read_fails=0.005,
    crash_every_s=60.0, pause_every_s=45.0, jump_every_s=120.0,
)  # fmt: skip
"""Everything goes wrong, all the time."""


_PROTOCOL = frozenset(name for name in vars(Store) if not name.startswith("_"))
_STEADY = frozenset(
    {"register", "machines", "machine_count", "timeline", "timeline_set", "timeline_mark", "worker_add"}
)
"""What a worker needs in order to begin at all; one that cannot would be tried again until it can."""


class Carried(Protocol):
    """A round of the committer on its way to the store: the steps, who wants them, and what came of it."""

    steps: list[Step]
    commands: list[Command]
    outcomes: Sequence[Receipt | Conflict | Barred]
    error: BaseException | None


class Observer(Protocol):
    """Who watches the store from outside."""

    def committed(self, process: Process, command: Command, step: Step, receipt: Receipt) -> None:
        """Take note of a commit at the moment when it happens, whether or not anybody ever hears of it."""
        ...

    def renewed(self, worker_id: str) -> None:
        """Take note of a lease that was renewed at this moment."""
        ...

    def pruned(self, execution_ids: Sequence[str]) -> None:
        """Take note of executions that will be deleted at this moment."""
        ...

    def note(self, who: str, what: str, detail: object = "") -> None:
        """Take note of something for the trace."""
        ...


class FaultyStore:
    """One worker's way to the one store that all share: it takes time, and it breaks.

    Writes that come with the committer are carried asynchronously (`carry`); once a write is under way it arrives
    whatever becomes of the worker, as a packet does. Everything else is called inline and can only fail.
    """

    instant = False

    def __init__(
        self,
        store: Store,
        loop: SteppedLoop,
        process: Process,
        network: Context,
        rng: Random,
        chaos: Chaos,
        observer: Observer,
    ) -> None:
        """Lay a way to a store.

        Args:
            store: The one that all workers share.
            loop: Where time comes from.
            process: Whose way it is.
            network: The context that what is under way belongs to; it outlives the process.
            rng: Decides what goes wrong.
            chaos: How often.
            observer: Is told what is committed.
        """
        self._store = store
        self._loop = loop
        self._process = process
        self._network = network
        self._random = rng.random
        self._expo = rng.expovariate
        self._chaos = chaos
        self._observer = observer
        self._writes = _Wheel(
            ("fail_before", chaos.fail_before), ("fail_after", chaos.fail_after), ("unknown", chaos.unknown),
            ("hang", chaos.hang), ("slow", chaos.slow),
        )  # fmt: skip
        self.armed: deque[Fault] = deque()
        self.seen: dict[tuple[str, ...], Any] = {}
        self.cut = False
        self.closed = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"simulated://{self._process.name}"

    # --- writes -----------------------------------------------------------------------------------------------

    def carry(self, this: Carried, answer: Callable[[], None]) -> None:
        """Take a round of the committer to the store in virtual time.

        Args:
            this: The round; its `outcomes` or its `error` is set when the answer is there.
            answer: Called in the worker's process at that moment, unless it is dead by then.
        """
        kind, late_s = self._draw()
        there_s, back_s = self.latency_s(), self.latency_s()
        if kind == "hang":
            there_s += late_s
        elif kind == "slow":
            back_s += late_s
        elif kind == "fail_before":
            this.error = StoreUnavailable("simulated: the connection is refused")
            self._loop.call_later(there_s, answer)
            return
        elif kind == "unknown":
            this.error = StoreUnavailable("simulated: the connection broke on the way there", committed=None)
            self._loop.call_later(there_s, answer)
            return
        home = copy_context()
        self._loop.call_later(there_s, self._arrive, this, kind, back_s, answer, home, context=self._network)

    def _arrive(
        self, this: Carried, kind: str, back_s: float, answer: Callable[[], None], home: Context
    ) -> None:
        self.apply(this)
        if kind == "fail_after" and this.error is None:
            this.error = StoreUnavailable("simulated: the connection broke on the way back", committed=None)
        self._loop.call_later(back_s, answer, context=home)

    def carry_now(self, this: Carried) -> None:
        """Take a round to the store at once, for a caller that blocks: what would be late is in time."""
        kind, _ = self._draw()
        if kind == "fail_before":
            this.error = StoreUnavailable("simulated: the connection is refused")
        elif kind == "unknown":
            this.error = StoreUnavailable("simulated: the connection broke on the way there", committed=None)
        else:
            self.apply(this)
            if kind == "fail_after" and this.error is None:
                this.error = StoreUnavailable(
                    "simulated: the connection broke on the way back", committed=None
                )

    def apply(self, this: Carried) -> None:
        """Commit a round in the store itself, and tell the observer."""
        if self.cut:
            this.error = StoreUnavailable("simulated: the run is over")
            return
        try:
            this.outcomes = outcomes = self._store.append(this.steps)
        except Exception as error:  # noqa: BLE001 - as the committer takes it
            this.error = error
            return
        committed, process = self._observer.committed, self._process
        for command, step, outcome in zip(this.commands, this.steps, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                committed(process, command, step, outcome)

    def _draw(self) -> tuple[str, float]:
        """Return what happens to the next write, and how late it is."""
        armed = self.armed
        if armed:
            for fault in armed:
                if fault.kind != "read_fails":
                    armed.remove(fault)
                    self._observer.note(self._process.name, fault.kind, fault.for_s)
                    return fault.kind, abs(fault.for_s)
        kind = self._writes.spin(self._random())
        if not kind:
            return kind, 0.0
        late_s = self._expo(1.0 / self._chaos.late_s)
        self._observer.note(self._process.name, kind, late_s)
        return kind, late_s

    def latency_s(self) -> float:
        """Return how long one way takes, in virtual seconds."""
        mean_s = self._chaos.latency_s
        return self._expo(0.5 / mean_s) if mean_s > 0.0 and self._random() < 0.5 else 0.0  # noqa: PLR2004

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Refuse: every write goes through the committer."""
        raise NotImplementedError("a simulated write goes through the committer")

    # --- reads ------------------------------------------------------------------------------------------------

    def _read(self) -> Store:
        if self.cut or self.closed:
            raise StoreUnavailable("simulated: the store is closed")
        if self.armed:
            for fault in self.armed:
                if fault.kind == "read_fails":
                    self.armed.remove(fault)
                    self._observer.note(self._process.name, fault.kind)
                    raise StoreUnavailable("simulated: the read failed")
        share = self._chaos.read_fails
        if share and self._random() < share:
            self._observer.note(self._process.name, "read_fails")
            raise StoreUnavailable("simulated: the read failed")
        return self._store

    def __getattr__(self, name: str) -> Any:
        """Hand every other call of the protocol on, or fail it."""
        if name in _STEADY:
            return getattr(self._store, name)
        if name not in _PROTOCOL:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._read(), name)(*args, **kwargs)

        setattr(self, name, call)
        return call

    def due(self, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return what is due, or what was due when the sweeper looked."""
        seen: list[Due] | None = self.seen.pop(("due",), None)
        return self._read().due(now, limit, after) if seen is None else seen

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Return which workers are lost, or were when the sweeper looked."""
        seen: list[str] | None = self.seen.pop(("lose",), None)
        return self._read().lose(now, spare=spare) if seen is None else seen

    def owned(self, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return what a worker owns, or owned when the sweeper looked."""
        seen: list[tuple[str, int]] | None = self.seen.pop(("owned", worker_id), None)
        return self._read().owned(worker_id, limit, after) if seen is None else seen

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return what is left to be carried out, or was when the sweeper looked."""
        seen: list[Order] | None = self.seen.pop(("orders", after), None)
        return self._read().orders(after, limit) if seen is None else seen

    def forget(self, execution_ids: Sequence[str], keep: int = 0) -> int:
        """Delete ended executions, and tell the observer before."""
        store = self._read()
        self._observer.pruned(execution_ids)
        return store.forget(execution_ids, keep)

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease, and tell the observer if it was."""
        renewed = self._read().worker_renew(worker_id, now)
        if renewed:
            self._observer.renewed(worker_id)
        return renewed

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record; the one read that is made often."""
        return self._read().load(execution_id)

    def close(self) -> None:
        """Close this way to the store; the store itself lives on."""
        self.closed = True


class _Wheel:
    """Draws one of several kinds, each with its share, from one number."""

    def __init__(self, *shares: tuple[str, float]) -> None:
        total = 0.0
        self._bounds: list[tuple[float, str]] = []
        for kind, share in shares:
            total += share
            self._bounds.append((total, kind))
        self._total = total

    def spin(self, number: float) -> str:
        if number >= self._total:
            return ""
        return next(kind for bound, kind in self._bounds if number < bound)
