"""The proof's words and the decision's mean the same: one table of assignments, said twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm import BREAKER, EXECUTION, InvalidMachine
from fsm.breakers import Policy
from fsm.breakers import core as breakers
from fsm.core import decide as deciding
from fsm.core.decide import DERIVED, EXECUTIONS, create, decide
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Snapshot, Step
from fsm.core.request import Request
from fsm.machine.expressions import NoExpression, parse
from fsm.machine.grammar import invariant
from fsm.stores.breakers import BreakerRow

z3 = pytest.importorskip("z3")
from fsm.proof.symbolic import STAYS, World  # noqa: E402

WORLD = World(EXECUTION, EXECUTIONS)
CODEC = Codec(EXECUTION, frozenset(DERIVED))
BREAKING = World(BREAKER, breakers.BREAKERS)
CONSTANTS = {"attempts_max": "attempts_max", "model_attempts_max": "model_attempts_max"}


class Codes(dict[Any, int]):
    """A number for each thing, 0 for none."""

    def of(self, value: Any) -> Any:
        if value is None:
            return 0
        if isinstance(value, (tuple, list)):
            return len(value)
        if isinstance(value, (bool, int)):
            return value
        return self.setdefault(value, len(self) + 1)


def words_of(record: Snapshot, codes: Codes) -> dict[str, Any]:
    return {word: codes.of(getattr(record, word)) for word in EXECUTIONS.words}


@st.composite
def records(draw: st.DrawFn) -> Snapshot:
    identity = Identity(
        "exec_1", EXECUTION.content_hash, "a", "u", "t", None, None, 0.0, draw(st.integers(1, 3)),
        draw(st.integers(1, 3)), None, None,
    )  # fmt: skip
    maybe = st.none() | st.floats(1, 99)
    return create(EXECUTION, identity).after._replace(
        state=draw(st.sampled_from(EXECUTION.states)).name,
        version=draw(st.integers(0, 5)),
        attempt=draw(st.integers(0, 4)),
        fence=draw(st.integers(0, 5)),
        owner=draw(st.none() | st.sampled_from(["w1", "w2"])),
        tools=tuple(
            draw(st.lists(st.tuples(st.sampled_from(["s", "r"]), st.sampled_from([None, "c"])), max_size=3))
        ),
        model_attempt=draw(st.integers(0, 4)),
        not_before=draw(maybe),
        breaker=draw(st.none() | st.just("key")),
        limit_s=draw(maybe),
        suspended=draw(st.booleans()),
    )


PAYLOADS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "owner": st.sampled_from(["w1", "w3"]), "retryable": st.booleans(), "permit": st.booleans(),
    "retry_in_s": st.floats(0, 9), "breaker": st.just("key"), "expires_s": st.floats(1, 9),
    "name": st.sampled_from(["s", "x"]), "call_id": st.sampled_from(["c", "d"]),
}  # type: ignore[dict-item] # fmt: skip


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_decision_is_the_move_that_the_proof_takes(data: st.DataObject) -> None:
    """On every record and payload the proof takes exactly the row that `decide` takes, and makes the same record."""
    before = data.draw(records())
    event = data.draw(st.sampled_from(EXECUTION.events))
    model = CODEC._models[event]
    payload = data.draw(
        st.fixed_dictionaries({}, optional={k: v for k, v in PAYLOADS.items() if k in model.model_fields})
    )
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    payload = dict.fromkeys(needed - payload.keys(), "s") | payload
    checked, text = CODEC.encode(event, payload)
    facts = Request(event, before.updated_at, checked, text, fence=before.fence, worker="w2", ordered=True)
    decided = decide(EXECUTION, before, facts)
    codes = Codes()
    record, known = WORLD.record(before.state)
    known = [*known, *(record.words[word] == value for word, value in words_of(before, codes).items())]
    known += [WORLD.constants[word] == getattr(before.identity, word) for word in CONSTANTS]
    known.append(WORLD.constants["tools_max"] == deciding.MAX_OPEN_TOOLS)
    given_inputs = {name: codes.of(ask(before, facts)) for name, ask in deciding.INPUTS.items()}
    given_inputs |= {fact: checked.get(fact) is True for fact in ("retryable", "permit") if fact in checked}
    given_inputs["tool_known"] = DERIVED["tool_known"](before, checked)
    taken = []
    for move in WORLD.moves:
        if move.event != event or before.state not in move.sources:
            continue
        found = WORLD.take(move, record)
        inputs = [found.inputs[name] == value for name, value in given_inputs.items() if name in found.inputs]
        solver = z3.Solver()
        solver.add(*known, *inputs, found.when)
        if solver.check() == z3.sat:
            taken.append((move, found, solver))
    assert bool(taken) is isinstance(decided, Step)
    if isinstance(decided, Step):
        ((move, found, solver),) = taken
        assert (move.target or before.state) == decided.after.state
        after = words_of(decided.after, codes)
        same = z3.And([found.after.words[word] == value for word, value in after.items()])
        assert solver.check(z3.Not(same)) == z3.unsat, (move, after)


def test_a_new_execution_is_what_the_proof_begins_with() -> None:
    """`create` makes the record that `begins` describes."""
    identity = Identity("exec_1", EXECUTION.content_hash, "a", "u", "t", None, None, 0.0, 1, 1, None, None)
    record, known = WORLD.begin()
    solver = z3.Solver()
    solver.add(*known)
    words = words_of(create(EXECUTION, identity).after, Codes())
    assert record.state == EXECUTION.initial
    assert (
        solver.check(z3.Not(z3.And([record.words[word] == value for word, value in words.items()])))
        == z3.unsat
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_breakers_decision_is_the_move_that_the_proof_takes(data: st.DataObject) -> None:
    """The breaker's decision and the proof's move make the same of every row, verdicts on probes included."""
    counts = st.integers(0, 3)
    probes = tuple((f"p{number}", 5.0) for number in range(data.draw(counts)))
    row = BreakerRow(
        "k", data.draw(st.sampled_from(BREAKER.states)).name, data.draw(counts), data.draw(st.integers(1, 3)), 1.0,
        data.draw(st.none() | st.just(2.0)), data.draw(st.none() | st.just(3.0)), data.draw(counts), probes,
        data.draw(counts), data.draw(counts),
    )  # fmt: skip
    policy = Policy(probes_at_once=2, successes_needed=2, abandoned_limit=2)
    flags = {"policy_met": data.draw(st.booleans()), "enough_calls": data.draw(st.booleans())}
    facts = breakers.BreakerFacts(7.0, policy, data.draw(st.sampled_from([0.0, 1.0])), token="new", **flags)
    event = data.draw(st.sampled_from(BREAKER.events))
    decided = breakers.decide_breaker(row, event, facts)
    codes = Codes()
    record, known = BREAKING.record(row.state)
    words = breakers.BREAKERS.words
    known = [*known, *(record.words[word] == codes.of(getattr(row, word)) for word in words)]
    known += [constant == getattr(policy, name) for name, constant in BREAKING.constants.items()]
    said = {
        "rule_met": flags["policy_met"],
        "calls_seen": flags["enough_calls"],
        "cooled_down": facts.left_s <= 0,
    }
    taken = []
    for move in BREAKING.moves:
        if move.event == event and row.state in move.sources:
            found = BREAKING.take(move, record)
            solver = z3.Solver()
            solver.add(*known, found.when, *(found.inputs[name] == value for name, value in said.items()))
            if solver.check() == z3.sat:
                taken.append((move, found, solver))
    assert bool(taken) is isinstance(decided, breakers.BreakerStep)
    if isinstance(decided, breakers.BreakerStep):
        ((move, found, solver),) = taken
        assert (move.target or row.state) == decided.after.state
        # What an instant is, the proof does not know; whether there is one, it does.
        for word, sort in words.items():
            value = codes.of(getattr(decided.after, word))
            same = found.after.words[word] == value
            if sort == "thing":
                same = (found.after.words[word] == 0) == (value == 0)
            assert solver.check(z3.Not(same)) == z3.unsat, (move, word)


def test_a_note_is_the_breakers_only_change_beside_its_table() -> None:
    """The proof has a move for what a verdict on a probe notes, and no other without a row."""
    assert [str(move) for move in BREAKING.moves if move.event == STAYS] == [STAYS]
    assert not [move for move in WORLD.moves if move.event == STAYS]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "attempt <",
        "attempt ** 2",
        "f(attempt)",
        "attempt.real",
        "'x'",
        "1.5",
        "x" * 301,
        "[1]",
        "{1}",
        "a := 1",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    """Only words, whole numbers, comparisons, sums, choices and joins are of the grammar."""
    with pytest.raises(NoExpression):
        parse(text)


def test_only_the_grammar_is_ever_run() -> None:
    """A machine whose invariant is no expression is refused when it is built, with the invariant's name."""
    with pytest.raises(InvalidMachine, match="bad_invariant: evil"):
        EXECUTION.model_copy(
            update={"invariants": (invariant("evil", "It runs", "__import__('os').getpid() > 0"),)}
        )
