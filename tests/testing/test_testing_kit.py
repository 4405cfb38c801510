"""The testing kit itself: what it must find, what it must reach, and what the coverage plugin must say."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import unittest

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import Field

from fsm import BREAKER, EXECUTION, Machine
from fsm.core import decide as deciding
from fsm.core.decide import decide
from fsm.core.payloads import PAYLOADS, Payload
from fsm.core.records import Step
from fsm.errors import ConfigurationError
from fsm.machine.executor import Executor
from fsm.machine.grammar import Fact, row, state
from fsm.registry import committer
from fsm.testing import coverage
from fsm.testing.machine import oracle
from fsm.testing.machine.driver import GuaranteeBroken
from fsm.testing.machine.machines import machine_test

pytest_plugins = ["pytester"]

QUICK = settings(max_examples=25, database=None, derandomize=True, phases=[Phase.generate])

ERRAND = Machine(
    name="errand",
    initial="open",
    states=(state("open", "pending"), state("going", "running"), state("done", "terminal")),
    facts=(Fact(name="urgent"), Fact(name="paid", default=True)),
    transitions=(
        row("open", "go", "going", "urgent and paid", assign="claim"),
        row("open", "go", None, "not paid"),
        row("open", "go", "going"),
        row("going", "tick"),
        row("open going", "finish", "done", "paid", otherwise="pay first"),
    ),
)
"""A machine as a user would declare it: no payloads, facts of its own."""


# --- machine_test: what it must find --------------------------------------------------------------------------


def wrong_target(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    if isinstance(decided, Step) and decided.event == "think":
        return decided._replace(after=decided.after._replace(state="completing"))
    return decided


def test_a_broken_executor_is_found(monkeypatch):
    """A machine that is run bare is held to its table too: a trigger that asks no guard is found."""
    acquire = next(arrow for arrow in BREAKER.arrows if arrow.event == "acquire")

    def always(question):
        question.arrow = acquire
        return True

    monkeypatch.setitem(BREAKER.executor.triggers, "acquire", always)
    with pytest.raises(GuaranteeBroken, match="what the table does not allow is refused"):
        machine_test(BREAKER, settings=QUICK).explore()


def test_a_failing_example_tells_what_happened(monkeypatch):
    """What hypothesis shows of a failure reads as a story: who was created, what was taken, with what."""
    monkeypatch.setattr(committer, "decide", wrong_target)
    with pytest.raises(GuaranteeBroken) as failed:
        machine_test(EXECUTION, settings=settings(QUICK, phases=[Phase.generate, Phase.shrink])).explore()
    story = "\n".join(failed.value.__notes__)
    assert "create with attempts" in story
    assert "#1 (starting, version" in story
    assert "--think--> thinking" in story


def test_a_fault_off_the_drawn_path_tells_the_way(monkeypatch):
    """What breaks on a shortest way after the drawing names the rows that led there."""
    monkeypatch.setattr(committer, "decide", wrong_target)
    case = machine_test(EXECUTION, settings=QUICK)
    with pytest.raises(GuaranteeBroken) as failed:
        case._rules.plan.walk()
    story = "\n".join(failed.value.__notes__)
    assert story.startswith("on the way:\n    created --")
    assert "--think--> thinking" in story


def test_a_test_run_does_not_load_hypothesis():
    """The plugin, which pytest loads in every run, leaves hypothesis to those who ask for machine_test."""
    code = "import sys, fsm.testing.plugin; print('hypothesis' in sys.modules); from fsm.testing import machine_test"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("gone", "wanted"),
    [
        ("hypothesis", "from fsm.testing import machine_test"),
        ("hypothesis", "import fsm.simulation.plans"),
        ("pytest", "from fsm.testing import StoreConformance"),
    ],
)
def test_what_is_not_installed_names_its_extra(gone, wanted):
    """Without hypothesis or pytest a suite says which extra brings it, and the rest of the kit works."""
    code = (
        f"import sys; sys.modules[{gone!r}] = None\n"
        "from fsm.testing import ManualClock, fresh_tracker\n"
        f"try: {wanted}\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'agent-fsm[testing]'" in done.stdout


def test_the_plugins_fixtures_bear_its_name(pytester):
    """The plugin offers fsm_tracker and fsm_clock, and no fixture of a name that a user's tests may have."""
    pytester.makepyfile(
        """
        from fsm import get_tracker

        def test_one(fsm_tracker, fsm_clock):
            assert get_tracker() is fsm_tracker
            made = fsm_tracker.create("a", user_id="u", thread_id="t")
            fsm_clock.advance(5.0)
            assert fsm_tracker.durations(made.id)["created"] == 5.0

        def test_two(tracker): ...
        def test_three(clock): ...
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, errors=2)
    done.stdout.fnmatch_lines(["*fixture 'tracker' not found", "*fixture 'clock' not found"])


# --- machine_test: what it must reach -------------------------------------------------------------------------

RUNNING = "@running @waiting"
NEVER = [
    arrow
    for arrow in EXECUTION.arrows
    if (arrow.event, arrow.target) == ("cancel", "cancelled")
    and EXECUTION.by_name[arrow.source].category in {"running", "waiting"}
    and arrow.source != "awaiting_input"
]
"""Every way into running claims, so that a running execution without an owner, for which these are, never is. Only a
question outlives the worker that asked it."""


@pytest.mark.parametrize(
    ("machine", "never"),
    [(EXECUTION, NEVER), (BREAKER, []), (ERRAND, [])],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_arrow_is_taken_that_can_be(machine, never):
    """A run takes every row of the table, and every arrow for which there is a record that meets its guard."""
    taken = machine_test(machine, settings=QUICK).explore()
    assert (taken.missing_rows, list(taken.missing)) == ((), never)


@pytest.mark.parametrize(
    ("machine", "least"), [(EXECUTION, 60), (BREAKER, 15), (ERRAND, 6)], ids=lambda value: str(value)[:12]
)
def test_drawing_alone_gets_far(machine, least):
    """What is drawn, without the shortest ways afterwards, takes a good part of the arrows by itself."""
    taken = machine_test(machine, settings=QUICK).explore()
    assert sum(1 for arrow in machine.arrows if taken.drawn[arrow]) >= least


@st.composite
def machines(draw) -> Machine:
    """Draw a machine in which every arrow can be taken: guards ask payloads only, each its own fact."""
    count = draw(st.integers(1, 4))
    names = [f"s{number}" for number in range(count)]
    states = [
        state(
            name,
            draw(st.sampled_from(("pending", "running", "stopping"))),
            draw(st.sampled_from((None, "phase", "queue"))),
        )
        for name in names
    ]
    changes = st.sampled_from(
        ("", "claim", "release", "wait", "open_tool", "close_tool", "ask", "claim wait")
    )
    rows = [row(" ".join(names), event, "end", assign=draw(changes)) for event in ("cancel", "time_out")]
    rows += [
        row(names[number], "onward", names[number + 1], assign=draw(changes)) for number in range(count - 1)
    ]
    for number, source in enumerate(names):
        for fact in draw(st.lists(st.sampled_from(("red", "green")), unique=True)):
            target = draw(st.sampled_from((None, "end", *names)))
            rows.append(row(source, f"turn_{number}", target, fact, assign=draw(changes)))
        rows.append(
            row(source, f"turn_{number}", draw(st.sampled_from((None, *names))), assign=draw(changes))
        )
    facts = tuple(Fact(name=name, default=draw(st.booleans())) for name in ("red", "green"))
    limits = draw(
        st.fixed_dictionaries(
            {}, optional={"total_s": st.just(50.0), "phase_s": st.just(5.0), "queue_s": st.just(9.0)}
        )
    )
    return Machine(
        name="drawn", initial="s0", states=(*states, state("end", "terminal")), transitions=tuple(rows), facts=facts,
        timeouts=limits,
    )  # fmt: skip


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given])
@given(machines())
def test_every_arrow_of_any_machine_is_taken(machine):
    """Whatever machine is declared, the tracker does what its table says, and every arrow is taken."""
    taken = machine_test(machine, settings=settings(QUICK, max_examples=3, stateful_step_count=25)).explore()
    assert taken.missing == ()


def test_a_row_that_nothing_can_take_is_reported():
    """A row whose guard no record ever meets is named by the report, and fails the test that asks for every row."""
    machine = Machine(
        name="hopeful",
        initial="open",
        states=(state("open", "running"), state("done", "terminal"), state("gone", "terminal")),
        facts=(Fact(name="tools_open"),),
        transitions=(row("open", "go", "done", "tools_open"), row("open", "go", "gone"), row("open", "tick")),
    )
    case = machine_test(machine, settings=QUICK, require_all=True)
    assert case.explore().missing_rows == (machine.transitions[0],)
    assert "row never taken: open --go [tools_open]--> done" in case.report()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert [test.id().rpartition(".")[2] for test, _ in result.failures] == ["test_every_row"]
    assert (result.testsRun, result.errors) == (2, [])


# --- machine_test: its arguments ------------------------------------------------------------------------------


def test_executions_live_where_they_are_told_to(tmp_path):
    """A function as `store` is asked for a place for every example, and the guarantees hold there too."""
    numbers = itertools.count()
    case = machine_test(
        ERRAND,
        store=lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db?synchronous=NORMAL",
        settings=settings(QUICK, max_examples=3, stateful_step_count=15),
    )
    assert case.explore().missing == ()
    assert len(list(tmp_path.glob("*.db"))) == next(numbers) >= 3


def test_a_required_field_has_to_be_given(monkeypatch):
    """A machine whose payload has a required field is refused until the test says what to send."""

    class Signed(Payload):
        by: str = Field(min_length=1)

    monkeypatch.setitem(PAYLOADS, "signed", Signed)
    fields = {name: getattr(ERRAND, name) for name in Machine.model_fields}
    machine = Machine(**fields | {"name": "signed_errand", "payloads": (("finish", "signed"),)})
    with pytest.raises(ConfigurationError, match=r"'finish' needs by: say .* payloads="):
        machine_test(machine)
    case = machine_test(machine, settings=QUICK, payloads={"finish": {"by": "ada"}})
    assert case.explore().missing == ()


def test_a_change_that_nobody_knows_is_refused():
    """A machine that ends and assigns what executions do not have is refused, not run without its executions."""
    fields = {name: getattr(ERRAND, name) for name in Machine.model_fields}
    machine = Machine(**fields | {"transitions": (*ERRAND.transitions, row("open", "mark", assign="clame"))})
    with pytest.raises(ConfigurationError, match="'errand' assigns clame, which executions do not have"):
        machine_test(machine)


def test_the_oracle_knows_what_executions_know():
    """Whatever fact or change the library gives to executions, the oracle has a second reading of it."""
    assert deciding.DERIVED.keys() <= oracle.FACTS.keys()
    assert deciding.CHANGES.keys() <= oracle.CHANGES.keys()


# --- the coverage plugin --------------------------------------------------------------------------------------

FLOW = """
    from fsm import Machine
    from fsm.machine.grammar import row, state

    FLOW = Machine(
        name="flow",
        initial="open",
        states=(state("open", "running"), state("shut", "terminal")),
        transitions=(row("open", "tick"), row("open", "shut", "shut"), row("open", "cancel", "shut")),
    )
    NOTHING = 1
"""
HALF = """
    import pytest
    from flow import FLOW
    from fsm.tracker.process import fresh_tracker

    def fire(*events):
        with fresh_tracker(machines=[FLOW]) as tracker:
            execution = tracker.create("a", user_id="u", thread_id="t", machine=FLOW)
            for event in events:
                tracker.fire(execution.id, event)

    def test_one():
        fire("tick", "shut")
"""
OTHER_HALF = """

    def test_other():
        fire("cancel")
"""
COVERED = ("--fsm-cover-machine", "flow:FLOW")


@pytest.fixture
def suite(pytester, monkeypatch):
    """Return a function that runs a small suite of two tests, or one, over a machine of its own."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(flow=FLOW)
    pytester.syspathinsert()

    def run(tests, *options, subprocess=False):
        pytester.makepyfile(test_flow=tests)
        how = pytester.runpytest_subprocess if subprocess else pytester.runpytest_inprocess
        return how("-p", "no:cacheprovider", *options)

    return run


def test_what_was_not_taken_is_named(suite):
    """The report says how many arrows of the named machine were taken, and names the others; the run passes."""
    result = suite(HALF, *COVERED)
    result.stdout.fnmatch_lines(["*fsm transition coverage*", "flow: 2 of 3 arrows taken"])
    result.stdout.fnmatch_lines(["  never taken: open --cancel--> shut"])
    result.stdout.no_fnmatch_line("*never taken: open --tick*")
    result.stdout.no_fnmatch_line("execution: *")
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        (HALF, pytest.ExitCode.TESTS_FAILED),
        (HALF + OTHER_HALF, pytest.ExitCode.OK),
        (HALF + OTHER_HALF + "\n    def test_wrong():\n        assert False\n", pytest.ExitCode.TESTS_FAILED),
        ("", pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
    ids=["an arrow is missing", "all were taken", "all were taken, but a test fails", "there is no test"],
)
def test_the_exit_code(suite, tests, code):
    """With --fsm-cover-fail a run fails exactly if an arrow is missing or it would have failed anyway."""
    assert suite(tests, *COVERED, "--fsm-cover-fail").ret == code


def test_workers_are_merged(suite):
    """What several workers of pytest-xdist took counts together."""
    result = suite(HALF + OTHER_HALF, *COVERED, "--fsm-cover-fail", "-n", "2", subprocess=True)
    result.stdout.fnmatch_lines(["flow: 3 of 3 arrows taken"])
    assert result.ret == pytest.ExitCode.OK


def test_workers_can_lack_an_arrow(suite):
    """An arrow that no worker took fails the run, and the main process draws it."""
    result = suite(HALF, *COVERED, "--fsm-cover-fail", "--fsm-cover-draw", "out", "-n", "2", subprocess=True)
    result.stdout.fnmatch_lines(["flow: 2 of 3 arrows taken", "  never taken: open --cancel--> shut"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_drawing(suite, pytester):
    """The drawing has every arrow, and exactly those in red that were not taken; it is there as DOT and as SVG."""
    suite(HALF, *COVERED, "--fsm-cover-draw", "out/deep")
    dot = (pytester.path / "out" / "deep" / "flow.dot").read_text(encoding="utf-8")
    colours = {event: colour for colour, event in re.findall(r'color="(#\w+)">(\w+)</font>', dot)}
    assert colours.keys() == {"tick", "shut", "cancel"}
    assert colours["tick"] == colours["shut"] != colours["cancel"] == "#C81E1E"
    assert b">cancel<" in (pytester.path / "out" / "deep" / "flow.svg").read_bytes()


def test_a_test_can_be_left_out(suite):
    """What a test takes that is marked fsm_no_cover does not count, what the next one takes does."""
    marked = OTHER_HALF.replace("    def", "    @pytest.mark.fsm_no_cover\n    def")
    result = suite(
        HALF + marked + "\n    def test_last():\n        fire('shut')\n", *COVERED, "--strict-markers"
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["flow: 2 of 3 arrows taken"])


def test_the_shipped_machines_are_covered_by_default(suite):
    """Without a name both shipped machines are reported, a row that was taken from no source at all once."""
    result = suite(HALF, "--fsm-cover")
    result.stdout.fnmatch_lines(["execution: 0 of 192 arrows taken", "breaker: 0 of 25 arrows taken"])
    result.stdout.fnmatch_lines(["  never taken: @running @waiting --progress [[]owned]--> (stays)"])
    assert result.ret == pytest.ExitCode.OK


def test_nothing_is_watched_unasked(suite):
    """Without an option no executor is touched and nothing is said."""
    untouched = """

    def test_untouched():
        from fsm.machine.executor import Executor
        assert Executor.__init__.__module__ == "fsm.machine.executor"
        assert {trigger.__module__ for trigger in FLOW.executor.triggers.values()} == {"fsm.machine.executor"}
    """
    result = suite(HALF + untouched, subprocess=True)
    result.stdout.no_fnmatch_line("*transition coverage*")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("name", ["flow:NOPE", "flow", "nowhere:FLOW", "flow:NOTHING", ":"])
def test_a_machine_that_is_none(suite, name):
    """A name that leads to no machine is a usage error that says what to write or what was found."""
    result = suite(HALF, "--fsm-cover-machine", name)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--fsm-cover-machine {name}:*"])


def test_the_watch_ends():
    """After the last observer has left, the executors are as they were; one that leaves does not stop another."""
    triggers, before = ERRAND.executor.triggers, dict(ERRAND.executor.triggers)
    build = Executor.__init__
    seen: list[tuple[str, str]] = []
    with coverage.observed(lambda machine, arrow: seen.append((machine.name, arrow.event)), [ERRAND]):
        with coverage.observed(lambda *_: None, [ERRAND]):
            pass
        machine_test(ERRAND, settings=settings(QUICK, max_examples=1)).explore()
    assert {event for name, event in seen if name == "errand"} == set(ERRAND.events)
    assert (triggers, Executor.__init__) == (before, build)
