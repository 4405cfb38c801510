"""One breaker of this process: the mirror of its shared row, and the short way past it.

While it is closed and all is well, a call reads two numbers: `fast_in` on its way in and `fast_out` on its way out.
No lock, no store, no run of the machine. Everything else goes through `take` and `leave`, and what changes the row
goes through the table and the shared store, one compare-and-set at a time.

Two locks: `_noting` guards what this process has seen, for microseconds; `_changing` makes the changes of the row
one after another and may wait for a disk. Neither is held while anybody's call runs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fsm import ids
from fsm.breakers.core import (
    PASSING,
    BreakerFacts,
    BreakerRefusal,
    decide_breaker,
    judge,
    left_s,
    unseen,
    wait_s,
)
from fsm.breakers.policy import Policy
from fsm.breakers.shared import Shared
from fsm.breakers.verdicts import CANCELLED, FAILURE, Classifier, Kind, Verdict, is_cancellation
from fsm.breakers.windows import Recorder
from fsm.errors import BreakerOpen
from fsm.locks import Lock
from fsm.stores.base import BreakerRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsm.breakers.core import BreakerStep
    from fsm.breakers.permit import Permit

logger = logging.getLogger(__name__)

MAX_ROUNDS = 100
"""So often a change is decided anew because somebody else was faster; each time somebody got on."""
MAX_WHY = 200
"""So many characters of an error are noted in the journal."""


class Call:
    """A call's permit, as far as its breaker knows it.

    Attributes:
        generation: The breaker's generation when the permit was given.
        token: The name of the probe that it is, ``None`` for an ordinary call.
        started: When it began, in monotonic seconds; 0 if nobody asks.
    """

    __slots__ = ("generation", "started", "token")

    def __init__(self, generation: int, token: str | None = None, started: float = 0.0) -> None:
        self.generation = generation
        self.token = token
        self.started = started


class Breaker:
    """The breaker of one key in this process; get it from ``tracker.breakers.get(key)``.

    Attributes:
        key: What it protects.
        policy: How it behaves.
        classifier: Who pronounces verdicts.
        clock: Where time comes from.
        instant: Whether nothing here ever waits.
        permit: Makes the permits: ``with breaker.permit():``, which saves the look-up of the key.
        row: Its row as this process knows it; immutable, replaced as a whole.
        fast_in: The generation if calls go through without asking, else 0.
        fast_out: The generation if a success has nothing to change, else 0.
        succeeded: How many calls went well.
        tally: How many calls came to the other verdicts; ``late`` are those of an old generation, ``refused`` those
            that got no permit.
        pending: Changes that the store has not seen, since it was down: (version before, row, journal line).
    """

    __slots__ = (
        "_changing", "_due", "_leases", "_noting", "_recorder", "_shared", "_timed", "classifier", "clock",
        "fast_in", "fast_out", "instant", "key", "pending", "permit", "policy", "row", "succeeded", "tally",
    )  # fmt: skip

    def __init__(self, key: str, policy: Policy, classifier: Classifier, shared: Shared) -> None:
        """Begin with what is known of the key.

        Args:
            key: What it protects.
            policy: How it behaves.
            classifier: Who pronounces verdicts.
            shared: The way to the other processes.
        """
        self.key = key
        self.policy = policy
        self.classifier = classifier
        self.permit: Callable[[], Permit]
        self.clock = shared.clock
        self.instant = shared.instant
        self._shared = shared
        self._recorder = Recorder(policy)
        self._timed = self._recorder.slow_call_s is not None
        self.succeeded = 0
        self.tally: dict[str, int] = dict.fromkeys((*Kind, "late", "refused"), 0)
        self.pending: list[object] = []
        self._due = 0.0
        self._leases: dict[str, float] = {}
        self.row = unseen(key)
        self.renew_locks()
        self._adopt(shared.rows.get(key, self.row))

    def renew_locks(self) -> None:
        """Begin anew in a forked child: another thread of the parent may have held a lock."""
        self._noting = Lock("a breaker")
        self._changing = Lock("a breaker")

    # --- in ---------------------------------------------------------------------------------------------------

    def shut(self) -> BreakerOpen | None:
        """Return why there is no permit, if that is certain without asking anybody; ``None`` if it is not."""
        row = self.row
        if row.state == "forced_open" or (row.state == "open" and self._left_s() > 0):
            return self._refusal(row)
        return None

    def take(self) -> Call:
        """Return a permit; may wait for a disk while the breaker is not closed.

        Raises:
            BreakerOpen: There is none.
        """
        started = self.clock.monotonic() if self._timed else 0.0
        row = self.row
        if row.state in PASSING:
            return Call(row.generation, None, started)
        shut = self.shut()
        if shut is not None:
            raise shut
        call = self._take_probe()
        call.started = started
        return call

    def _take_probe(self) -> Call:
        token = ids.make("call")
        with self._changing:
            fresh = False
            for _ in range(MAX_ROUNDS):
                row = self.row
                if row.state in PASSING:
                    return Call(row.generation)
                facts = self._facts(token)
                lost = row.state == "half_open" and self._a_lease_ended()
                decided = decide_breaker(row, "lease_expired" if lost else "acquire", facts)
                if isinstance(decided, BreakerRefusal):
                    # A probe may just have been given back by another process: refuse on a fresh row only.
                    if fresh or row.state != "half_open" or not self._refresh():
                        raise self._refusal(row)
                    fresh = True
                elif self._write(row, decided, "a probe's lease ran out" if lost else None) and not lost:
                    return Call(decided.after.generation, token)
        raise self._refusal(self.row)

    def _refusal(self, row: BreakerRow) -> BreakerOpen:
        self.tally["refused"] += 1
        seconds = wait_s(row, self._facts())
        return BreakerOpen(self.key, seconds, self.clock.wall() + seconds, row.state)

    # --- out --------------------------------------------------------------------------------------------------

    def verdict(self, error: BaseException) -> Verdict:
        """Return what an exception means for this breaker; a cancellation is one, whatever a classifier says."""
        if is_cancellation(error):
            return CANCELLED
        return self.classifier.error(error, self.clock.wall())

    def leave(self, call: Call, verdict: Verdict) -> Verdict | None:
        """Note what a call came to, without waiting for anything.

        Args:
            call: Its permit.
            verdict: What it came to.

        Returns:
            The verdict to `settle` if the row has to change, ``None`` if all is done.
        """
        now = self.clock.monotonic()
        took_s = now - call.started if self._timed else 0.0
        row = self.row
        kind = verdict.kind
        if kind is Kind.SUCCESS:
            self.succeeded += 1
        else:
            self.tally[kind] += 1
        if call.generation != row.generation:
            self.tally["late"] += 1
        elif row.state == "closed" and kind in {Kind.SUCCESS, Kind.FAILURE}:
            with self._noting:
                if self.row.generation == call.generation:
                    self._recorder.note(now, failed=kind is Kind.FAILURE, took_s=took_s)
                    self._show()
                standing = self._recorder.standing(now)
            if not (standing.policy_met and standing.enough_calls):
                return None  # as the table would say; most calls of a window's policy end here
        elif kind is Kind.SUCCESS and self._timed and took_s >= (self._recorder.slow_call_s or 0.0):
            verdict = FAILURE  # a probe that is as slow as what opened the breaker shows no recovery
        changes = judge(row, call.generation, call.token, verdict, self._facts()) is not None
        return verdict if changes or call.token is not None else None

    def settle(self, call: Call, verdict: Verdict, why: str | None = None) -> None:
        """Carry a verdict into the row; may wait for a disk.

        Args:
            call: The permit.
            verdict: What `leave` returned.
            why: For the journal.
        """
        with self._changing:
            for _ in range(MAX_ROUNDS):
                row = self.row
                step = judge(row, call.generation, call.token, verdict, self._facts())
                if step is None or self._write(row, step, why):
                    return
        logger.warning("breaker %s: other processes were faster %d times in a row", self.key, MAX_ROUNDS)

    def finish(self, call: Call, verdict: Verdict, why: str | None = None) -> None:
        """Do `leave`, and `settle` if it is needed."""
        open_question = self.leave(call, verdict)
        if open_question is not None:
            self.settle(call, open_question, why)

    def finish_error(self, call: Call, error: BaseException) -> None:
        """Note that a call raised `error`; whatever goes wrong here, the caller's exception goes first."""
        self.finish(call, self.verdict(error), why_of(error))

    def give_back(self, call: Call) -> None:
        """Return a permit whose call was cancelled."""
        self.finish(call, CANCELLED)

    # --- by hand, and from others -----------------------------------------------------------------------------

    def order(self, event: str, by: str | None, why: str | None) -> BreakerRow:
        """Carry out ``force_open``, ``disable`` or ``reset``.

        Args:
            event: Which one.
            by: Who gives the order.
            why: What for.

        Returns:
            The row after it.
        """
        with self._changing:
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
        """Take over what another process wrote.

        Args:
            row: The row as it is in the store.
        """
        with self._changing:
            if self._shared.mend(self) and row.version > self.row.version:
                self._adopt(row)

    def catch_up(self) -> None:
        """Write what the store missed while it was down."""
        with self._changing:
            self._shared.mend(self)

    # --- the row ----------------------------------------------------------------------------------------------

    def _write(self, row: BreakerRow, step: BreakerStep, why: str | None, by: str | None = None) -> bool:
        """Commit a step, or take over what somebody faster wrote."""
        if self._shared.write(self, row, step, by, why):
            self._adopt(step.after)
            if step.event is not None and step.after.state != step.source:
                logger.info(
                    "breaker %s: %s --%s--> %s (generation %d)%s", self.key, step.source, step.event,
                    step.after.state, step.after.generation, f": {why}" if why else "",
                )  # fmt: skip
            return True
        self._refresh()
        return False

    def _refresh(self) -> bool:
        """Read the row; return whether there was a newer one."""
        row = self._shared.read(self)
        if row is None or row.version == self.row.version:
            return False
        self._adopt(row)
        return True

    def adopt(self, row: BreakerRow) -> None:
        """Take over a row, under the lock that the caller holds."""
        self._adopt(row)

    def _adopt(self, row: BreakerRow) -> None:
        before = self.row
        now, wall = self.clock.monotonic(), self.clock.wall()
        if (row.generation, row.since, row.until) != (before.generation, before.since, before.until):
            self._due = now + left_s(row, wall)
        lease_s = self.policy.probe_lease_s
        self._leases = {
            token: self._leases.get(token, now + min(max(0.0, ends - wall), lease_s))
            for token, ends in row.probes
        }
        with self._noting:
            if row.generation != before.generation:
                self._recorder.reset()
            self.row = row
            self._show()

    def _show(self) -> None:
        row = self.row
        live = row.generation if row.state in PASSING else 0
        self.fast_in = 0 if self._timed else live
        self.fast_out = self.fast_in if self._recorder.quiet or row.state == "disabled" else 0

    def _left_s(self) -> float:
        return max(0.0, self._due - self.clock.monotonic())

    def _a_lease_ended(self) -> bool:
        now = self.clock.monotonic()
        return any(ends <= now for ends in self._leases.values())

    def _facts(self, token: str = "") -> BreakerFacts:
        clock = self.clock
        with self._noting:
            standing = self._recorder.standing(clock.monotonic())
        return BreakerFacts(
            clock.wall(), self.policy, self._left_s(), standing.policy_met, standing.enough_calls, None, token,
            self._shared.draw(),
        )  # fmt: skip

    def retry_after_s(self) -> float:
        """Return in how many seconds a permit may be given; 0 while calls go through."""
        return wait_s(self.row, self._facts())

    @property
    def failures(self) -> int:
        """How many calls of this process failed in a row since the last success."""
        return self._recorder.failures


def storable(said: str) -> str:
    """Return a text without characters that no encoding knows; a broken error message must not break a breaker."""
    return said.encode(errors="replace").decode()


def why_of(error: BaseException) -> str:
    """Return an exception as a few words for the journal."""
    return storable(f"{type(error).__name__}: {error}"[:MAX_WHY])
