"""What a process has seen of a key since the breaker closed, and what a policy's rules say of it.

These are the only mutable parts of a breaker's judgement. They are small, know no clock (time is handed in), and are
used under the breaker's own short lock. A signal handler may note a call while another one is being noted, and an
interrupt may come between two lines: what a window counts is right again once it has moved on.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from fsm.breakers.policy import Consecutive, CountWindow, Policy, Rule, SlowCalls, TimeWindow

SLICES = 10
"""A time window is counted in so many slices; it is exact to one of them."""


class Standing(NamedTuple):
    """What the rules say: the two facts of the table's ``trip``.

    Attributes:
        policy_met: A threshold is reached.
        enough_calls: The rule that says so has seen its minimum number of calls.
    """

    policy_met: bool
    enough_calls: bool


class _Window(Protocol):
    def note(self, now: float, *, failed: bool, slow: bool) -> None: ...

    def standing(self, now: float) -> Standing: ...


class _InARow:
    def __init__(self, rule: Consecutive) -> None:
        self._limit = rule.failures
        self.failures = 0

    def note(self, now: float, *, failed: bool, slow: bool) -> None:
        del now, slow
        self.failures = self.failures + 1 if failed else 0

    def standing(self, now: float) -> Standing:
        del now
        return Standing(self.failures >= self._limit, enough_calls=True)


class _Last:
    """The last calls, as a count window or as a slow-call rate."""

    def __init__(self, rule: CountWindow | SlowCalls) -> None:
        self._slow = isinstance(rule, SlowCalls)
        self._rate = rule.slow_rate if isinstance(rule, SlowCalls) else rule.failure_rate
        self._minimum = rule.minimum_calls
        self._calls: deque[tuple[bool, int]] = deque(maxlen=rule.calls)  # (bad, bad ones up to and with it)

    def note(self, now: float, *, failed: bool, slow: bool) -> None:
        del now
        bad = slow if self._slow else failed
        before = self._calls[-1][1] if self._calls else 0
        self._calls.append((bad, before + bad))

    def standing(self, now: float) -> Standing:
        del now
        seen = len(self._calls)
        if not seen:
            return Standing(policy_met=False, enough_calls=False)
        first = self._calls[0]
        bad = self._calls[-1][1] - first[1] + first[0]
        return Standing(bad >= self._rate * seen, seen >= self._minimum)


class _Recent:
    def __init__(self, rule: TimeWindow) -> None:
        self._rate = rule.failure_rate
        self._minimum = rule.minimum_calls
        self._slice_s = rule.window_s / SLICES
        self._slices: deque[list[int]] = deque()  # [number of the slice, calls, failures]

    def note(self, now: float, *, failed: bool, slow: bool) -> None:
        del slow
        number = self._drop_old(now)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed

    def standing(self, now: float) -> Standing:
        self._drop_old(now)
        seen = sum(one[1] for one in self._slices)
        bad = sum(one[2] for one in self._slices)
        return Standing(seen > 0 and bad >= self._rate * seen, seen >= self._minimum)

    def _drop_old(self, now: float) -> int:
        number = int(now / self._slice_s)
        while self._slices and self._slices[0][0] <= number - SLICES:
            self._slices.popleft()
        return number


def _window(rule: Rule) -> _Window:
    if isinstance(rule, Consecutive):
        return _InARow(rule)
    return _Recent(rule) if isinstance(rule, TimeWindow) else _Last(rule)


class Recorder:
    """Notes calls for every rule of a policy.

    Attributes:
        policy: Whose rules are asked.
        counts_successes: Whether a success changes anything while nothing has failed. If not, a call that goes well
            has nothing to note.
        slow_call_s: From how many seconds on a call is slow, or ``None`` if no rule asks.
    """

    __slots__ = ("_windows", "counts_successes", "failures", "policy", "slow_call_s")

    def __init__(self, policy: Policy) -> None:
        """Begin with nothing seen.

        Args:
            policy: Whose rules are asked.
        """
        self.policy = policy
        self.counts_successes = any(not isinstance(rule, Consecutive) for rule in policy.trip)
        slow = [rule.slow_call_s for rule in policy.trip if isinstance(rule, SlowCalls)]
        self.slow_call_s = min(slow) if slow else None
        self.reset()

    def reset(self) -> None:
        """Forget everything; a breaker that closes begins anew."""
        self.failures = 0
        self._windows = [(rule, _window(rule)) for rule in self.policy.trip]

    @property
    def quiet(self) -> bool:
        """Whether a success has nothing to change now."""
        return not self.counts_successes and not self.failures

    def note(self, now: float, *, failed: bool, took_s: float) -> None:
        """Note one call.

        Args:
            now: Monotonic time in seconds.
            failed: Whether it was a failure.
            took_s: How long it took, in seconds.
        """
        self.failures = self.failures + 1 if failed else 0
        for rule, window in self._windows:
            slow = isinstance(rule, SlowCalls) and took_s >= rule.slow_call_s
            window.note(now, failed=failed, slow=slow)

    def standing(self, now: float) -> Standing:
        """Return what the rules say; of several, the one that is met by enough calls.

        Args:
            now: Monotonic time in seconds.
        """
        said = [window.standing(now) for _, window in self._windows]
        for standing in said:
            if standing.policy_met and standing.enough_calls:
                return standing
        return Standing(any(one.policy_met for one in said), all(one.enough_calls for one in said))
