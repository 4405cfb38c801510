"""The breaker as a whole: a stateful model, a fuzz with lost permits, and every arrow of the table taken."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fsm import BREAKER, BreakerOpen
from fsm.breakers import CANCELLED, FAILURE, IGNORED, SUCCESS, Breakers, Consecutive, Kind, Policy, throttled
from fsm.breakers.core import PROBE_WAIT_S, unseen
from fsm.clock import ManualClock
from fsm.stores.opening import open_store

LEASE_S = 60.0


class Model(RuleBasedStateMachine):
    """Two processes on one store, a clock that is set, permits that get lost, and what must always hold."""

    permits = Bundle("permits")

    @initialize(
        failures=st.integers(1, 3),
        at_once=st.integers(1, 3),
        needed=st.integers(1, 3),
        abandoned=st.integers(1, 3),
    )
    def begin(self, failures, at_once, needed, abandoned):
        self.clock = ManualClock()
        self.policy = Policy(
            trip=Consecutive(failures=failures), cooldown_s=10.0, cooldown_max_s=80.0, jitter=0.5,
            throttle_max_s=100.0, probes_at_once=at_once, successes_needed=needed, abandoned_limit=abandoned,
            probe_lease_s=LEASE_S,
        )  # fmt: skip
        store = open_store("memory://")
        self.both = [Breakers(store, self.clock, policy=self.policy) for _ in range(2)]
        self.seen_generation = 1

    def truth(self):
        """The shared row."""
        return self.both[0]._shared._store.breaker_load("k") or unseen("k")

    @rule(target=permits, which=st.integers(0, 1))
    def acquire(self, which):
        breaker = self.both[which].get("k")
        before = breaker.row
        call, refused = attempt(self.both[which])
        row = breaker.row
        if refused is not None:
            longest = {"half_open": PROBE_WAIT_S, "forced_open": self.policy.cooldown_s}.get(
                refused.state, 100.0
            )
            assert row.state not in {"closed", "disabled"}
            assert 0 < refused.retry_after_s <= longest + 1e-6  # an instant of today has 200 ns
            return None
        assert call.generation == row.generation
        assert (call.token is not None) == (row.state == "half_open")
        if call.token is None:
            assert row.state in {"closed", "disabled"}
            assert row is before or self.truth() == row, "a call while closed changes nothing"
        else:
            assert call.token in {token for token, _ in self.truth().probes}
        return (which, call)

    @rule(
        permit=consumes(permits),
        verdict=st.sampled_from([SUCCESS, FAILURE, IGNORED, CANCELLED])
        | st.builds(throttled, st.floats(0, 200)),
    )
    def release(self, permit, verdict):
        if permit is None:
            return
        which, call = permit
        breaker = self.both[which].get("k")
        mirror, truth, failures = breaker.row, self.truth(), breaker.failures
        left, lines = breaker.retry_after_s(), len(self.both[0].history("k", 10_000))
        self.both[which].release("k", call, verdict)
        after = self.truth()
        events = [entry.event for entry in self.both[0].history("k", 10_000)[lines:]]
        if call.generation != truth.generation:
            assert after.state == truth.state, "an old verdict changes no state"
            assert events in ([], ["throttle"])
            if mirror == truth and after.state == "open":
                assert breaker.retry_after_s() >= left - 1e-6, "and shortens no cooldown"
        elif mirror != truth:
            return  # this process has not looked yet: what it does is what the others allow
        elif truth.state == "closed":
            assert events == self.when_closed(verdict, failures)
            if verdict.kind in {Kind.CANCELLED, Kind.IGNORED}:
                assert breaker.failures == failures, "neither counted nor erased"
        elif truth.state == "half_open" and call.token in {token for token, _ in truth.probes}:
            assert events == self.when_half_open(verdict, truth)
            assert call.token not in {token for token, _ in after.probes}
        else:
            assert events == []

    def when_closed(self, verdict, failures):
        """What the table's rows for closed make of a verdict."""
        if verdict.kind is Kind.THROTTLED:
            return ["throttle"]
        return ["trip"] if verdict is FAILURE and failures + 1 >= self.policy.trip[0].calls else []

    def when_half_open(self, verdict, row):
        """What the table's rows for half_open make of a verdict."""
        if verdict.kind is Kind.SUCCESS:
            return ["probes_ok"] if row.successes + 1 >= self.policy.successes_needed else []
        if verdict.kind is Kind.CANCELLED:
            return ["abandoned"] if row.abandoned + 1 >= self.policy.abandoned_limit else []
        return {Kind.FAILURE: ["probe_failed"], Kind.THROTTLED: ["throttle"], Kind.IGNORED: []}[verdict.kind]

    @rule(permit=consumes(permits))
    def lose(self, permit):
        """A task is lost: its permit is never given back."""

    @rule(seconds=st.floats(0, 120))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(seconds=st.floats(-7200, 7200))
    def set_the_clock(self, seconds):
        self.clock.jump(seconds)

    @rule(which=st.integers(0, 1))
    def look(self, which):
        self.both[which].poll()

    @rule(which=st.integers(0, 1), order=st.sampled_from(["force_open", "disable", "reset"]))
    def order(self, which, order):
        getattr(self.both[which], order)("k", by="ada")

    @invariant()
    def rows_are_in_order(self):
        """The shared row is of the table, its probes never exceed the limit, and its generation never goes back."""
        if not hasattr(self, "both"):
            return
        row = self.truth()
        assert row.state in BREAKER.by_name
        assert len(row.probes) <= self.policy.probes_at_once
        assert row.generation >= self.seen_generation
        assert (row.until is not None) == (row.state == "open")
        assert not (row.probes and row.state != "half_open")
        self.seen_generation = row.generation

    @invariant()
    def the_journal_is_a_path_of_the_table(self):
        """Every line of the journal is a row of the table and begins where the last one ended."""
        if not hasattr(self, "both"):
            return
        legal = {(arrow.source, arrow.event, arrow.target) for arrow in BREAKER.arrows}
        state, generation = "closed", 1
        for entry in self.both[0].history("k", 10_000):
            assert (entry.source, entry.event, entry.target) in legal
            assert entry.source == state
            assert entry.generation == generation + (entry.target != entry.source or entry.event in BY_HAND)
            state, generation = entry.target, entry.generation

    def teardown(self):
        if hasattr(self, "both"):
            assert not_stuck(self.both[0], self.clock)


BY_HAND = {"force_open", "disable", "reset"}

TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def not_stuck(breakers: Breakers, clock: ManualClock, key: str = "k") -> bool:
    """Whether a breaker whose provider is well again closes by itself, with nothing but time and calls.

    One that is held by hand is reset first.
    """
    breakers.poll()
    if breakers.status_of(key).state in {"forced_open", "disabled"}:
        breakers.reset(key)
    policy = breakers.get(key).policy
    # Each lost lease and each cooldown passes at most once; then the probes that are needed go well.
    for _ in range(4 + policy.successes_needed):
        if breakers.status_of(key).state == "closed":
            return True
        clock.advance(max(LEASE_S, policy.throttle_max_s, policy.cooldown_max_s))
        try:
            call = breakers.acquire(key)
        except BreakerOpen:
            continue
        breakers.release(key, call, SUCCESS)
    return breakers.status_of(key).state == "closed"


@pytest.mark.parametrize("block", range(8))
def test_no_sequence_leaves_it_stuck(block):
    """After any sequence of operations with lost permits, time and good calls alone close the breaker again.

    400 sequences of 400 operations, in eight blocks; the seed of a failure is in its message.
    """
    for seed in range(block * 50, block * 50 + 50):
        dice = random.Random(seed)
        clock = ManualClock()
        policy = Policy(
            trip=Consecutive(failures=dice.randint(1, 4)), cooldown_s=5.0, cooldown_max_s=60.0,
            probes_at_once=dice.randint(1, 3), successes_needed=dice.randint(1, 4),
            abandoned_limit=dice.randint(1, 3), probe_lease_s=LEASE_S, throttle_max_s=90.0,
        )  # fmt: skip
        breakers = Breakers(open_store("memory://"), clock, policy=policy, draw=dice.random)
        held = []
        for _ in range(400):
            operate(breakers, clock, held, dice)
        assert not_stuck(breakers, clock), f"seed {seed}: {breakers.status_of('k')}"


def operate(breakers, clock, held, dice) -> None:
    """Do one thing of those that happen, in proportions that keep all states busy."""
    roll = dice.random()
    if roll < 0.45:
        try:
            held.append(breakers.acquire("k"))
        except BreakerOpen as refused:
            if dice.random() < 0.3:
                clock.advance(refused.retry_after_s)
    elif roll < 0.80 and held:
        call = held.pop(dice.randrange(len(held)))
        verdict = dice.choice(
            [SUCCESS, SUCCESS, FAILURE, FAILURE, CANCELLED, IGNORED, throttled(dice.random() * 120)]
        )
        breakers.release("k", call, verdict)
    elif roll < 0.90 and held:
        held.pop(dice.randrange(len(held)))  # its task is lost
    elif roll < 0.97:
        clock.advance(dice.random() * 40)
    elif roll < 0.98:
        clock.jump(dice.uniform(-3600, 3600))
    elif roll < 0.99:
        dice.choice([breakers.force_open, breakers.disable])("k")
    else:
        breakers.reset("k")


def test_every_arrow_of_the_table_is_taken_through_the_runtime():
    """Each transition of the breaker's table happens through permits, verdicts, time and orders alone."""
    taken: set[tuple[str, str, str]] = set()
    for arrow in BREAKER.arrows:
        stage = Stage()
        for action in WAYS[arrow.source]:
            getattr(stage, action)()
        assert stage.breakers.status_of("k").state == arrow.source
        for action in ENDS[arrow.event]:
            getattr(stage, action)()
        new = {(entry.source, entry.event, entry.target) for entry in stage.breakers.history("k")}
        assert (arrow.source, arrow.event, arrow.target) in new, f"not taken: {arrow}"
        taken |= new
    assert taken == {(arrow.source, arrow.event, arrow.target) for arrow in BREAKER.arrows}


WAYS = {
    "closed": [],
    "open": ["fail"],
    "half_open": ["fail", "wait", "take"],
    "forced_open": ["force_open"],
    "disabled": ["disable"],
}
"""How to get into each state."""
ENDS = {
    "trip": ["fail"],
    "throttle": ["throttle"],
    "acquire": ["wait", "take"],
    "probes_ok": ["succeed"],
    "probe_failed": ["fail_held"],
    "lease_expired": ["lose", "take"],
    "abandoned": ["cancel"],
    **{order: [order] for order in BY_HAND},
}
"""What users do for each event to happen."""


class Stage:
    """A breaker, a call that began while it was closed, and everything that people and time do."""

    def __init__(self):
        self.clock = ManualClock()
        self.policy = Policy(
            trip=Consecutive(failures=1), cooldown_s=10.0, jitter=0.0, abandoned_limit=1, probes_at_once=2
        )
        self.breakers = Breakers(open_store("memory://"), self.clock, policy=self.policy)
        self.held = self.breakers.acquire("k")

    def __getattr__(self, order):
        return lambda: getattr(self.breakers, order)("k")

    def fail(self):
        self.breakers.release("k", self.breakers.acquire("k"), FAILURE)

    def wait(self):
        self.clock.advance(10.0)

    def lose(self):
        self.clock.advance(self.policy.probe_lease_s)

    def take(self):
        self.held, _ = attempt(self.breakers)

    def throttle(self):
        self.breakers.release("k", self.held, throttled(30.0))

    def succeed(self):
        self.breakers.release("k", self.held, SUCCESS)

    def fail_held(self):
        self.breakers.release("k", self.held, FAILURE)

    def cancel(self):
        self.breakers.release("k", self.held, CANCELLED)


def attempt(breakers):
    """Return a permit and no refusal, or no permit and the refusal."""
    try:
        return breakers.acquire("k"), None
    except BreakerOpen as refused:
        return None, refused
