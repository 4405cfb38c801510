"""What a process has seen of a key since the breaker closed, and what a policy's rules say of it.

These are the only mutable parts of a breaker's judgement. They know no clock (time is handed in), and are used under
the breaker's own short lock. A signal handler may note a call while another one is being noted, and an interrupt may
come between two lines: what a window counts is right again once it has moved on.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from fsm.breakers.policy import Policy, Rule

SLICES = 10
"""A time window is counted in this many slices; it is exact to one of them."""


class Standing(NamedTuple):
    """What the rules say: the two facts of the table's ``trip``.

    Attributes:
        policy_met: A threshold is reached.
        enough_calls: The rule that says so has seen its minimum number of calls.
    """

    policy_met: bool
    enough_calls: bool


class Counter:
    """Counts the calls in the window of one rule, in slices that leave it one after another.

    A slice is one call of the last calls, a tenth of the last seconds, or the whole of a run of bad calls. Each keeps
    how many calls there were up to its end, and how many bad ones, so the window's own are one subtraction.
    """

    __slots__ = ("_gone", "_in_a_row", "_limit_s", "_minimum", "_rate", "_slice_s", "_slices", "_width")

    def __init__(self, rule: Rule) -> None:
        self._limit_s = rule.slow_call_s
        self._rate = rule.rate
        self._minimum = rule.minimum_calls
        self._in_a_row = rule.in_a_row
        self._slice_s = (rule.window_s or 0.0) / SLICES
        self._width = rule.calls or SLICES  # in slices
        self._slices: deque[tuple[int, int, int]] = deque()  # (number, calls and bad calls up to its end)
        self._gone = (0, 0, 0)  # the last slice that left the window

    def note(self, now: float, *, failed: bool, took_s: float) -> None:
        """Note one call that ended at a monotonic instant and took a number of seconds."""
        slices, slice_s = self._slices, self._slice_s
        bad = failed if self._limit_s is None else took_s >= self._limit_s
        last, calls, worse = slices[-1] if slices else self._gone
        number = int(now / slice_s) if slice_s else 0 if self._in_a_row else last + 1
        noted = (number, calls + 1, worse + bad)
        if slices and number == last:
            slices[-1] = noted
        else:
            slices.append(noted)
        if self._in_a_row and not bad:
            slices.clear()
            self._gone = noted
        elif slices[0][0] <= number - self._width:
            self._move_on(number)

    def standing(self, now: float) -> Standing:
        """Return what the rule says at a monotonic instant."""
        slices = self._slices
        if self._slice_s:
            self._move_on(int(now / self._slice_s))
        _, calls, worse = slices[-1] if slices else self._gone
        seen, bad = calls - self._gone[1], worse - self._gone[2]
        return Standing(seen > 0 and bad >= self._rate * seen, seen >= self._minimum)

    def _move_on(self, number: int) -> None:
        while self._slices and self._slices[0][0] <= number - self._width:
            self._gone = self._slices.popleft()


class Recorder:
    """Notes calls for every rule of a policy.

    Attributes:
        policy: Whose rules are asked.
        counts_successes: Whether a success changes anything while nothing has failed. If not, a call that goes well
            has nothing to note.
        slow_call_s: From how many seconds on a call is slow, or ``None`` if no rule asks.
        failures: How many calls failed since the last success.
    """

    __slots__ = ("_counters", "counts_successes", "failures", "policy", "slow_call_s")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts_successes = not all(rule.in_a_row for rule in policy.trip)
        self.slow_call_s = min(
            (rule.slow_call_s for rule in policy.trip if rule.slow_call_s is not None), default=None
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything; a breaker that closes starts again."""
        self.failures = 0
        self._counters = [Counter(rule) for rule in self.policy.trip]

    @property
    def quiet(self) -> bool:
        """Whether a success has nothing to change now."""
        return not self.counts_successes and not self.failures

    def note(self, now: float, *, failed: bool, took_s: float) -> None:
        """Note one call that ended at a monotonic instant and took a number of seconds."""
        self.failures = self.failures + 1 if failed else 0
        for counter in self._counters:
            counter.note(now, failed=failed, took_s=took_s)

    def standing(self, now: float) -> Standing:
        """Return what the rules say at a monotonic instant; of several, one that is met by enough calls."""
        said = [counter.standing(now) for counter in self._counters]
        for standing in said:
            if standing.policy_met and standing.enough_calls:
                return standing
        return Standing(any(one.policy_met for one in said), all(one.enough_calls for one in said))
