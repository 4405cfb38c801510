"""The pure core of the breakers: policies, windows, the decision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fsm import BREAKER
from fsm.breakers import Consecutive, CountWindow, Policy, Rule, SlowCalls, TimeWindow, core
from fsm.breakers.core import BreakerFacts, BreakerRefusal, BreakerStep, decide_breaker, judge, left_s, unseen
from fsm.breakers.counters import Recorder
from fsm.breakers.verdicts import CANCELLED, FAILURE, IGNORED, SUCCESS, throttled
from fsm.machine.timeouts import MAX_SECONDS
from fsm.stores.breakers import BreakerRow

POLICY = Policy(cooldown_s=10.0, cooldown_max_s=35.0, jitter=0.0, probes_at_once=2, successes_needed=2)


def facts(**given) -> BreakerFacts:
    return BreakerFacts(**{"at": 1000.0, "policy": POLICY, **given})


def test_the_core_knows_every_name_of_the_table():
    """Every fact and every change that the table names has its meaning in the core, and nothing else has."""
    assert set(core.ANSWERS) == {fact.name for fact in BREAKER.facts}
    assert set(core.CHANGES) == {name for row in BREAKER.transitions for name in row.assign}


def test_a_refusal_changes_nothing_and_says_the_tables_words():
    """What the table does not say is refused with a reason, and the row is as it was."""
    row = unseen("k")
    refused = decide_breaker(row, "trip", facts())
    assert isinstance(refused, BreakerRefusal)
    assert (refused.reason, refused.detail) == ("guard", "the policy is not met")
    assert decide_breaker(row, "acquire", facts()).reason == "not_allowed"
    assert decide_breaker(row, "explode", facts()).reason == "unknown_event"
    assert row == unseen("k")


def test_the_cooldown_grows_to_its_cap_and_is_reset():
    """Each failed probe doubles the cooldown up to the cap; closing takes it back to the beginning."""
    row = decide_breaker(unseen("k"), "trip", facts(policy_met=True, enough_calls=True)).after
    lengths = [row.until - row.since]
    for _ in range(3):
        row = decide_breaker(row, "acquire", facts(token="p")).after
        row = judge(row, row.generation, "p", FAILURE, facts()).after
        lengths.append(row.until - row.since)
    assert lengths == [10.0, 20.0, 35.0, 35.0]
    assert decide_breaker(row, "reset", facts()).after.openings == 0


@given(openings=st.integers(0, 5000), draw=st.floats(0, 1), jitter=st.floats(0, 1))
def test_the_jitter_only_shortens(openings, draw, jitter):
    """Whatever number is drawn, a cooldown is never above its cap and never below its share of itself."""
    policy = Policy(cooldown_s=10.0, cooldown_max_s=600.0, jitter=jitter)
    whole = min(600.0, 10.0 * 2.0 ** min(openings, 20))
    assert whole * (1 - jitter) - 1e-9 <= policy.cooldown(openings, draw) <= whole


@given(until_in=st.floats(-1e5, 1e5), whole=st.floats(0, 1e4), jump=st.floats(-1e6, 1e6))
def test_nobody_waits_longer_than_the_whole_cooldown(until_in, whole, jump):
    """Whatever the wall clock says, what is left of a cooldown is between nothing and all of it."""
    row = BreakerRow("k", "open", since=5e6 + until_in - whole, until=5e6 + until_in)
    assert 0 <= left_s(row, 5e6 + jump) <= row.until - row.since


@pytest.mark.parametrize("verdict", [SUCCESS, FAILURE, IGNORED, CANCELLED, throttled(99.0)])
@pytest.mark.parametrize("state", ["closed", "half_open", "forced_open", "disabled"])
def test_an_old_verdict_changes_no_state(state, verdict):
    """A verdict of an old generation only feeds metrics."""
    row = BreakerRow(
        "k", state, version=7, generation=5, probes=(("p", 2000.0),) if state == "half_open" else ()
    )
    assert judge(row, 4, "p", verdict, facts(policy_met=True, enough_calls=True)) is None


def test_an_old_throttle_may_lengthen_a_cooldown_but_not_shorten_it():
    """The one thing that a late verdict still knows better is how long the server wants to be left alone."""
    row = BreakerRow("k", "open", version=7, generation=5, since=990.0, until=1010.0)
    longer = judge(row, 4, None, throttled(60.0), facts(left_s=10.0))
    assert isinstance(longer, BreakerStep)
    assert (longer.after.state, longer.after.generation, longer.after.until) == ("open", 5, 1060.0)
    assert judge(row, 4, None, throttled(5.0), facts(left_s=10.0)) is None
    for asked_s, until in ((5.0, 1010.0), (None, 1010.0), (60.0, 1060.0)):
        assert decide_breaker(row, "throttle", facts(left_s=10.0, retry_after_s=asked_s)).after.until == until


def test_a_probe_is_given_back_by_each_verdict():
    """Whatever a probe's verdict, its place is free or the generation is over."""
    row = BreakerRow("k", "half_open", version=7, generation=5, probes=(("p", 2000.0), ("q", 2000.0)))
    expected = {
        SUCCESS: ("half_open", 1, 0), IGNORED: ("half_open", 0, 0), CANCELLED: ("half_open", 0, 1),
    }  # fmt: skip
    for verdict, (state, successes, abandoned) in expected.items():
        step = judge(row, 5, "p", verdict, facts())
        assert step.event is None
        assert (step.after.state, step.after.successes, step.after.abandoned) == (state, successes, abandoned)
        assert step.after.probes == (("q", 2000.0),)
        assert step.after.version == 8
    for verdict, until in ((FAILURE, 1020.0), (throttled(3.0), 1003.0)):
        after = judge(row, 5, "p", verdict, facts()).after
        assert (after.state, after.generation, after.probes, after.until) == ("open", 6, (), until)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cooldown_s": 0.0}, {"cooldown_s": float("nan")}, {"cooldown_s": "30"}, {"cooldown_factor": 0.5},
        {"cooldown_s": 30.0, "cooldown_max_s": 20.0}, {"jitter": 1.5}, {"probes_at_once": 0}, {"trip": ()},
        {"successes_needed": 1.5}, {"unknown": 1}, {"trip": {"kind": "count", "calls": 5, "minimum_calls": 6}},
        {"trip": {"kind": "slow", "calls": 5, "minimum_calls": 6}}, {"trip": {"kind": "sometimes"}},
    ],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    """A policy with an impossible value is refused."""
    with pytest.raises(ValidationError):
        Policy(**wrong)


def test_a_policy_is_data():
    """A policy can be written as JSON and read back, and one rule may stand where several may."""
    policy = Policy(
        trip=(Consecutive(failures=3), SlowCalls(slow_call_s=2.5)), cooldown_s=0.5, cooldown_max_s=0.75
    )
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert Policy(trip=TimeWindow()).trip == (TimeWindow(),)


def feed(recorder: Recorder, calls: str, now: float = 0.0, took_s: float = 0.0) -> list[bool]:
    """Note calls, x a failure and . a success; return after which of them the rules were met."""
    out = []
    for call in calls:
        recorder.note(now, failed=call == "x", took_s=took_s)
        out.append(all(recorder.standing(now)))
    return out


def test_consecutive_failures():
    """Only failures in a row count, and a success starts the count again."""
    recorder = Recorder(Policy(trip=Consecutive(failures=3)))
    assert feed(recorder, "xx.xxx") == [False] * 5 + [True]
    assert recorder.quiet is False
    feed(recorder, ".")
    assert recorder.quiet is True


def test_a_count_window():
    """The share counts among the last calls only, and not before the minimum."""
    rule = CountWindow(calls=4, failure_rate=0.5, minimum_calls=3)
    assert feed(Recorder(Policy(trip=rule)), "xx") == [False, False]
    assert feed(Recorder(Policy(trip=rule)), "xx.") == [False, False, True]
    assert feed(Recorder(Policy(trip=rule)), "x...x.") == [False] * 6
    assert feed(Recorder(Policy(trip=rule)), "x...xx") == [False] * 5 + [True]


def test_a_time_window_forgets():
    """Failures that are older than the window do not count, and the minimum is asked for within it."""
    recorder = Recorder(Policy(trip=TimeWindow(window_s=10.0, failure_rate=0.5, minimum_calls=3)))
    assert feed(recorder, "xx", now=0.0) == [False, False]
    assert feed(recorder, "x", now=5.0) == [True]
    assert feed(recorder, "x", now=11.0) == [False], "two of the last ten seconds are not the minimum"
    assert feed(recorder, "x", now=11.5) == [True]


def test_the_slow_call_rate():
    """Slow calls count even if they succeed, and fast failures do not count as slow."""
    recorder = Recorder(Policy(trip=SlowCalls(slow_call_s=2.0, slow_rate=0.5, calls=4, minimum_calls=4)))
    assert feed(recorder, "xx", took_s=1.9) == [False, False]
    assert feed(recorder, "..", took_s=2.0) == [False, True]
    assert recorder.slow_call_s == 2.0


def test_several_rules():
    """Any one of several rules is enough, whatever the others still lack."""
    recorder = Recorder(Policy(trip=(CountWindow(calls=100, minimum_calls=100), Consecutive(failures=2))))
    assert feed(recorder, "xx") == [False, True]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ({"kind": "consecutive"}, Consecutive()),
        ({"kind": "consecutive", "failures": 3}, Consecutive(failures=3)),
        ({"kind": "count", "calls": 8, "failure_rate": 0.25, "minimum_calls": 4}, CountWindow(
            calls=8, failure_rate=0.25, minimum_calls=4)),
        ({"kind": "time", "window_s": 5.0}, TimeWindow(window_s=5.0)),
        ({"kind": "slow", "slow_rate": 0.9}, SlowCalls(slow_rate=0.9)),
    ],
)  # fmt: skip
def test_a_rule_that_is_written_with_its_kind(kind, rule):
    """A rule that was stored with the name of its kind is read as the rule that it always was."""
    assert Policy.model_validate({"trip": [kind]}).trip == (rule,)


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"calls": 5}, {"calls": 20, "window_s": 5.0}, {"kind": "consecutive", "minimum_calls": 2},
        {"kind": "count", "window_s": 5.0}, {"kind": ["count"]}, {"kind": "count", "calls": None},
    ],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    """A rule has one window that can be filled, and with a kind no field of another one."""
    with pytest.raises(ValidationError):
        Rule.model_validate(wrong)


@pytest.mark.parametrize(
    "field", "cooldown_s cooldown_max_s throttle_max_s probe_lease_s slow_call_s window_s".split()
)
def test_a_duration_has_an_upper_limit(field):
    """No duration of a policy or a rule is longer than the longest one that clocks take."""
    kind, rest = (Policy, {}) if field in Policy.model_fields else (Rule, {"calls": 20, "minimum_calls": 1})
    if field == "window_s":
        del rest["calls"]
    if field == "cooldown_s":
        rest = {"cooldown_max_s": MAX_SECONDS}
    assert getattr(kind(**rest, **{field: MAX_SECONDS}), field) == MAX_SECONDS
    with pytest.raises(ValidationError):
        kind(**rest, **{field: MAX_SECONDS * 1.001})


RULES = st.builds(
    lambda slow, window, rate, minimum: Rule(
        slow_call_s=slow, calls=window if isinstance(window, int) else None,
        window_s=window if isinstance(window, float) else None, rate=rate,
        minimum_calls=min(minimum, window) if isinstance(window, int) else minimum,
    ),
    st.sampled_from([None, 1.0]), st.sampled_from([1, 3, 5, 2.0, 10.0]), st.sampled_from([0.2, 0.5, 1.0]),
    st.integers(1, 5),
)  # fmt: skip


@given(rule=RULES, calls=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3))))
def test_every_rule_counts_what_its_window_holds(rule, calls):
    """On both axes, whatever counts over whatever window: a rule is met when enough calls in it are bad enough."""
    recorder, seen, now = Recorder(Policy(trip=rule)), [], 0
    for failed, slow, later in calls:
        now += later
        recorder.note(float(now), failed=failed, took_s=1.0 if slow else 0.5)
        seen.append((now, failed if rule.slow_call_s is None else slow))
        if rule.calls is not None:
            window = [bad for _, bad in seen[-rule.calls :]]
        else:  # in tenths of the window, as it moves on
            tenth = rule.window_s / 10
            window = [bad for at, bad in seen if int(at / tenth) > int(now / tenth) - 10]
        met = sum(window) >= rule.rate * len(window) and len(window) >= rule.minimum_calls
        assert all(recorder.standing(float(now))) == met
