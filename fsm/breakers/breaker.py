"""One breaker of this process: the mirror of its shared row, and the short way past it.

While it is closed and nothing has failed, a call reads two numbers: `fast_in` when it begins and `fast_out` when it
ends. No lock, no store, no run of the machine. Everything else goes through `ask`, `take_probe`, `leave` and `settle`,
and what changes the row goes through the table and the shared store, one compare-and-set at a time.

Two locks: `_noting` guards what this process has seen, for microseconds; `_changing` makes the changes of the row one
after another and may wait for a disk. Neither is held while a caller's call runs. A finaliser or a handler may make a
call in the middle of either, so both are taken with `Lock.run_nested`.

An error in here (a classifier that raises, a store, a log handler) is logged and counted, and never replaces the
outcome of the call itself. An interrupt at any line loses no probe: a probe belongs to a weakly referenced object that
exists before the probe is asked for, and once that object is gone the next caller, status or poll gives it back
(`reap`).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsm import ids
from fsm.breakers.core import BreakerFacts, BreakerRefusal, decide_breaker, judge, left_s, unseen, wait_s
from fsm.breakers.counters import Recorder, Standing
from fsm.breakers.foreign import DROPPED, say, storable
from fsm.breakers.policy import Policy
from fsm.breakers.shared import Shared
from fsm.breakers.verdicts import (
    CANCELLED,
    FAILURE,
    SUCCESS,
    Classifier,
    Kind,
    Verdict,
    http_result,
    is_cancellation,
    of_error,
    sound,
)
from fsm.concurrency.locks import Lock
from fsm.errors import BreakerOpen
from fsm.lifecycles.breaker import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, OPEN, PASSING
from fsm.stores.breakers import BreakerRow

if TYPE_CHECKING:
    from fsm.breakers.core import BreakerStep

logger = logging.getLogger(__name__)

P = TypeVar("P")

MAX_ROUNDS = 100
"""Maximum number of times that a change is decided again because another process was faster."""


class Held:
    """What keeps a probe taken until its `Call` is in the caller's hands."""

    __slots__ = ("__weakref__",)


class Call:
    """A call's permit, as far as its breaker knows it.

    Attributes:
        generation: The breaker's generation when the permit was given.
        token: The name of the probe that it is, ``None`` for an ordinary call.
        started: When it began, in monotonic seconds; ``None`` if the time was not asked for.
    """

    __slots__ = ("generation", "started", "token")

    def __init__(self, generation: int, token: str | None = None, started: float | None = None) -> None:
        self.generation = generation
        self.token = token
        self.started = started


class Breaker(Generic[P]):
    """The breaker of one key in this process; get it from ``tracker.breakers.get(key)``.

    Attributes:
        key: What it protects.
        classifier: Gives the verdicts.
        clock: Where time comes from.
        instant: Whether nothing here ever waits.
        permit: Makes the permits: ``with breaker.permit():``, which saves the look-up of the key.
        row: Its row as this process knows it; immutable, replaced as a whole.
        fast_in: The generation if calls go through without asking, else 0.
        fast_out: The generation if a success has nothing to change, else 0.
        fast_call: The same as `fast_in` for a decorated function, 0 if its results are judged.
        succeeded: Number of calls that succeeded.
        tally: Number of calls with each other verdict; ``late`` are those of an old generation, ``refused`` those
            that got no permit, ``misjudged`` those on which a classifier raised or returned no verdict.
        seen: Number of calls when it was last examined whether the breaker is used.
        pending: Changes that the store has not seen, since it was down: (version before, row, journal line).
    """

    __slots__ = (
        "__weakref__", "_changing", "_due", "_leases", "_noting", "_out", "_recorder", "_shared",
        "classifier", "clock", "fast_call", "fast_in", "fast_out", "instant", "key", "pending", "permit",
        "row", "seen", "succeeded", "tally",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        policy: Policy,
        classifier: Classifier,
        shared: Shared,
        permit: Callable[[Breaker[P]], P],
    ) -> None:
        """Begin with what is known of the key."""
        self.key = key
        self.classifier = classifier
        self.permit: Callable[[], P] = partial(permit, self)
        self.clock = shared.clock
        self.instant = shared.instant
        self._shared = shared
        self._recorder = Recorder(policy)
        self.succeeded = 0
        self.tally: dict[str, int] = dict.fromkeys((*Kind, "late", "refused", "misjudged"), 0)
        self.seen = 0
        self.pending: list[object] = []
        self._due = 0.0
        self._leases: dict[str, float] = {}
        self._out: dict[str, Callable[[], object]] = {}
        self._noting = Lock("what a breaker has seen")
        self._changing = Lock("a change of a breaker")
        self.row = unseen(key)
        self.adopt(shared.rows.get(key, self.row))

    def after_fork(self) -> None:
        """Forget, in a forked child, the probes of the parent."""
        self._out = {}

    def govern(self, policy: Policy, classifier: Classifier) -> None:
        """Behave differently from the next call on; under another policy what was counted is forgotten.

        The state stays: an open breaker stays open until its cooldown ends, and what is decided after that goes by
        the new policy.
        """
        self._noting.run_nested(self._govern, policy, classifier)

    def _govern(self, policy: Policy, classifier: Classifier) -> None:
        self.fast_in = self.fast_out = self.fast_call = 0  # no call takes the fast path while it is half done
        self.classifier = classifier
        if policy != self.policy:
            self._recorder = Recorder(policy)
        self._show()

    @property
    def policy(self) -> Policy:
        """How it behaves."""
        return self._recorder.policy

    @property
    def _timed(self) -> bool:
        return self._recorder.slow_call_s is not None

    @property
    def calls(self) -> int:
        """Number of calls, whatever their verdict."""
        return self.succeeded + sum(self.tally.values())

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with it: closed, nothing counted, no probe out, the store knows all."""
        return self.row.state == CLOSED and not (self._recorder.failures or self.pending or self._out)

    # --- in ---------------------------------------------------------------------------------------------------

    def ask(self) -> Call | None:
        """Return a permit that is there without waiting, ``None`` if a probe has to be asked for with `take_probe`.

        Raises:
            BreakerOpen: There is none, which is certain without asking the store.
        """
        row = self.row
        if row.state in PASSING:
            return Call(row.generation, None, self._begun())
        if row.state == FORCED_OPEN or (row.state == OPEN and self._left_s() > 0):
            raise self._refusal(row)
        return None

    def _begun(self) -> float | None:
        return self.clock.monotonic() if self._timed else None

    def take_probe(self, held: object | None = None) -> Call:
        """Return a permit that may be a probe; may wait for a disk.

        Args:
            held: If the permit is a probe, it counts as given back once nothing refers to this any more. Without it
                the caller alone gives it back.

        Raises:
            BreakerOpen: There is none.
        """
        started = self._begun()
        keeper: Any = Held() if held is None else held
        token = ids.make("call")
        # Before the probe is asked for: an interrupt between the grant and its receiver must not lose it.
        self._out[token] = weakref.ref(keeper)
        try:
            call = self._changing.run_nested(self._take_probe, token, started)
        except BreakerOpen:
            self._out.pop(token, None)
            raise
        except BaseException as error:
            self.lose(token)
            if not isinstance(error, Exception):
                raise
            self._shared.complain(self.key, "asking for a probe", error)
            raise self._refusal(self.row) from error
        if held is None or call.token is None:
            self._out.pop(token, None)
        return call

    def _take_probe(self, token: str, started: float | None) -> Call:
        self._reap()
        fresh = False
        for _ in range(MAX_ROUNDS):
            row = self.row
            if row.state in PASSING:
                return Call(row.generation, None, started)
            if any(name == token for name, _ in row.probes):
                return Call(row.generation, token, started)  # it was granted, only the answer was lost
            facts = self._facts(token)
            lost = row.state == HALF_OPEN and self._a_lease_ended()
            decided = decide_breaker(row, "lease_expired" if lost else "acquire", facts)
            if isinstance(decided, BreakerRefusal):
                # A probe may just have been given back by another process: refuse on a fresh row only.
                if fresh or row.state != HALF_OPEN or not self._refresh():
                    raise self._refusal(row)
                fresh = True
            elif self._write(row, decided, "a probe's lease ran out" if lost else None) and not lost:
                return Call(decided.after.generation, token, started)
        raise self._refusal(self.row)

    def lose(self, token: str | None) -> None:
        """Note that no caller settles a probe any more, even if a traceback still refers to its permit."""
        if token is not None:
            self._out[token] = _no_holder

    def abandon(self, held: object) -> None:
        """Do `lose` for what an interrupted `take_probe` may have left to its holder."""
        for token, holder in list(self._out.items()):
            if holder() is held:
                self.lose(token)

    def reap(self) -> None:
        """Give back the probes of permits that are gone without having been settled."""
        if self._out:
            self._changing.run_nested(self._reap)

    def _reap(self) -> None:
        gone = [token for token, held in list(self._out.items()) if held() is None]
        if not {token for token, _ in self.row.probes}.issuperset(gone):
            self._refresh()  # an interrupt may have come between the grant and its being known here
        for token in gone:
            self._settle(Call(self.row.generation, token), CANCELLED, "its permit was thrown away")
            if not self._shared.down:  # otherwise it may be out there still
                self._out.pop(token, None)

    def _refusal(self, row: BreakerRow) -> BreakerOpen:
        self.tally["refused"] += 1
        seconds = wait_s(row, self._facts())
        return BreakerOpen(self.key, seconds, self.clock.wall() + seconds, row.state)

    # --- out --------------------------------------------------------------------------------------------------

    def verdict(self, error: BaseException) -> Verdict:
        """Return what an exception means for this breaker; a cancellation is one, whatever a classifier says.

        Where a classifier raises, or returns no verdict, the ready one decides. What that one cannot read either is
        a FAILURE, like every unknown exception.
        """
        now = self.clock.wall()
        try:
            if is_cancellation(error):
                return CANCELLED
            return sound(self.classifier.error(error, now))
        except DROPPED as mistake:
            self.misjudged("classifying an exception", mistake)
        try:
            return of_error(error, now)
        except DROPPED:
            return FAILURE

    def verdict_of(self, result: object) -> Verdict:
        """Return what a result means for this breaker.

        If the classifier raises or returns no verdict, it is a SUCCESS, like everything that returns.
        """
        classifier, now = self.classifier, self.clock.wall()
        try:
            return sound(
                classifier.result(result, now) if classifier.judges_results else http_result(result, now)
            )
        except DROPPED as mistake:
            self.misjudged("classifying a result", mistake)
            return SUCCESS

    def misjudged(self, doing: str, mistake: BaseException) -> None:
        """Count, and log once, an error of a hook that judges calls."""
        self.tally["misjudged"] += 1
        self._shared.complain(self.key, doing, mistake)

    def leave(self, call: Call, verdict: Verdict) -> Verdict | None:
        """Note a call's verdict, without waiting for anything.

        Returns:
            The verdict to `settle` if the row has to change, ``None`` if all is done.
        """
        try:
            return self._leave(call, verdict)
        except Exception as mistake:  # noqa: BLE001 - the caller's own error or result goes first
            self._shared.complain(self.key, "noting a verdict", mistake)
            return None if call.token is None else verdict

    def _leave(self, call: Call, verdict: Verdict) -> Verdict | None:
        now = self.clock.monotonic()
        took_s = now - call.started if self._timed and call.started is not None else 0.0
        row = self.row
        kind = verdict.kind
        if kind is Kind.SUCCESS:
            self.succeeded += 1
        else:
            self.tally[kind] += 1
        if call.generation != row.generation:
            self.tally["late"] += 1
        elif row.state == CLOSED and kind in {Kind.SUCCESS, Kind.FAILURE}:
            standing = self._noting.run_nested(self._note, call.generation, now, kind is Kind.FAILURE, took_s)
            if not (standing.policy_met and standing.enough_calls):
                return None  # as the table would say; most calls of a window's policy end here
        elif kind is Kind.SUCCESS and self._timed and took_s >= (self._recorder.slow_call_s or 0.0):
            verdict = FAILURE  # a probe that is as slow as what opened the breaker shows no recovery
        changes = judge(row, call.generation, call.token, verdict, self._facts()) is not None
        return verdict if changes or call.token is not None else None

    def _note(self, generation: int, now: float, failed: bool, took_s: float) -> Standing:  # noqa: FBT001 - see run
        if self.row.generation == generation:
            self._recorder.note(now, failed=failed, took_s=took_s)
            self._show()
        return self._recorder.standing(now)

    def settle(self, call: Call, verdict: Verdict, why: str | None = None) -> None:
        """Carry the verdict that `leave` returned into the row; may wait for a disk."""
        try:
            self._changing.run_nested(self._settle, call, verdict, why)
        except BaseException as mistake:
            self.lose(call.token)
            if not isinstance(mistake, Exception):
                raise
            self._shared.complain(self.key, "settling a verdict", mistake)
        else:
            if call.token is not None:
                self._out.pop(call.token, None)

    def _settle(self, call: Call, verdict: Verdict, why: str | None) -> None:
        for _ in range(MAX_ROUNDS):
            row = self.row
            step = judge(row, call.generation, call.token, verdict, self._facts())
            if step is None or self._write(row, step, why):
                return
        say(
            logger, logging.WARNING, "breaker %s: other processes were faster %d times in a row", self.key,
            MAX_ROUNDS,
        )  # fmt: skip

    # --- by hand, and from others -----------------------------------------------------------------------------

    def order(self, event: str, by: str | None, why: str | None) -> BreakerRow:
        """Carry out ``force_open``, ``disable`` or ``reset``; return the row after it."""
        return self._changing.run_nested(self._order, event, by, why)

    def _order(self, event: str, by: str | None, why: str | None) -> BreakerRow:
        self._refresh()
        for _ in range(MAX_ROUNDS):
            row = self.row
            step = decide_breaker(row, event, self._facts())
            if isinstance(step, BreakerRefusal):
                raise TypeError(f"{event!r} is no order: they are force_open, disable and reset")
            said = [None if one is None else storable(one) for one in (why, by)]
            if self._write(row, step, *said):
                return step.after
        raise self._shared.beaten(self.key)

    def learn(self, row: BreakerRow) -> None:
        """Take over what another process wrote."""
        self._changing.run_nested(self._learn, row)

    def _learn(self, row: BreakerRow) -> None:
        if self._shared.mend(self) and row.version > self.row.version:
            self.adopt(row)

    def catch_up(self) -> None:
        """Write what the store missed while it was down, and give back the probes that are not held any more."""
        if self.pending:
            self._changing.run_nested(self._shared.mend, self)
        self.reap()

    # --- the row ----------------------------------------------------------------------------------------------

    def _write(self, row: BreakerRow, step: BreakerStep, why: str | None, by: str | None = None) -> bool:
        """Commit a step, or take over what a faster process wrote."""
        if self._shared.write(self, row, step, by, why):
            if step.after.version > self.row.version:  # a signal handler may have gone further already
                self.adopt(step.after)
            if step.event is not None and step.after.state != step.source:
                say(
                    logger, logging.INFO, "breaker %s: %s --%s--> %s (generation %d)%s", self.key, step.source,
                    step.event, step.after.state, step.after.generation, f": {why}" if why else "",
                )  # fmt: skip
            return True
        self._refresh()
        return False

    def _refresh(self) -> bool:
        """Read the row; return whether there was another one."""
        row = self._shared.read(self)
        if row is None or row.version == self.row.version:
            return False
        self.adopt(row)
        return True

    def adopt(self, row: BreakerRow) -> None:
        """Take over a row; the caller holds the lock for changes."""
        self._noting.run_nested(self._take_over, row)

    def _take_over(self, row: BreakerRow) -> None:
        before = self.row
        now, wall = self.clock.monotonic(), self.clock.wall()
        lease_s = self.policy.probe_lease_s
        leases = {
            token: self._leases.get(token, now + min(max(0.0, ends - wall), lease_s))
            for token, ends in row.probes
        }
        # First of all: should an interrupt end this half-way, every call asks, and none passes an open breaker by.
        self.fast_in = self.fast_out = self.fast_call = 0
        self._leases = leases
        if (row.generation, row.since, row.until) != (before.generation, before.since, before.until):
            self._due = now + left_s(row, wall)
        if row.generation != before.generation:
            self._recorder.reset()
        self.row = row
        self._shared.remember(row)
        self._show()

    def _show(self) -> None:
        row = self.row
        live = row.generation if row.state in PASSING else 0
        self.fast_in = fast = 0 if self._timed else live
        self.fast_call = 0 if self.classifier.judges_results else fast
        self.fast_out = fast if self._recorder.quiet or row.state == DISABLED else 0

    def _left_s(self) -> float:
        return max(0.0, self._due - self.clock.monotonic())

    def _a_lease_ended(self) -> bool:
        now = self.clock.monotonic()
        return any(ends <= now for ends in self._leases.values())

    def _facts(self, token: str = "") -> BreakerFacts:
        clock = self.clock
        standing = self._noting.run_nested(self._standing)
        return BreakerFacts(
            clock.wall(), self.policy, self._left_s(), standing.policy_met, standing.enough_calls, None, token,
            self._shared.draw(),
        )  # fmt: skip

    def _standing(self) -> Standing:
        return self._recorder.standing(self.clock.monotonic())

    def retry_after_s(self) -> float:
        """Return in how many seconds a permit may be given; 0 while calls go through."""
        return wait_s(self.row, self._facts())

    @property
    def failures(self) -> int:
        """Number of calls of this process that failed since the last success."""
        return self._recorder.failures


def _no_holder() -> None:
    """Stand for the holder of a probe that no caller will settle."""
