"""Hypothesis strategies that several test files share: random machines that hold together, and their questions.

The machines are valid by construction. What makes a ladder of guards valid (each row can be taken, no case is left
out) is computed here from its truth table, independently of `fsm.machine.validation`, so that drawing a machine
tests the proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from hypothesis import strategies as st

from fsm import Category, Fact, Machine, State, Timeouts, Transition
from fsm.machine.grammar import DeadlineKind

OPEN = (Category.PENDING, Category.RUNNING, Category.WAITING, Category.STOPPING)
KINDS: tuple[DeadlineKind, ...] = ("queue", "phase", "input", "grace", "cooldown")
FACT_NAMES = ("warm", "paid", "urgent", "ready")

Literals = tuple[tuple[str, bool], ...]


def cases(facts: Sequence[str]) -> Iterator[dict[str, bool]]:
    """Yield every combination of answers to some facts."""
    for answers in product((False, True), repeat=len(facts)):
        yield dict(zip(facts, answers, strict=True))


def holds(literals: Literals, known: Mapping[str, bool]) -> bool:
    """Say whether every literal of a guard holds."""
    return all(known[fact] is wanted for fact, wanted in literals)


def guard_text(literals: Literals) -> str | None:
    return " and ".join(fact if wanted else f"not {fact}" for fact, wanted in literals) or None


@st.composite
def ladders(draw: st.DrawFn, facts: Sequence[str]) -> tuple[list[Literals], bool]:
    """Draw the guards of one (source, event), narrow ones first, and whether the last must say `otherwise`."""
    one = st.dictionaries(st.sampled_from(facts), st.booleans(), max_size=3) if facts else st.just({})
    drawn = [tuple(literals.items()) for literals in draw(st.lists(one, min_size=1, max_size=4))]
    left = list(cases(facts))
    rungs: list[Literals] = []
    for literals in drawn:
        taken = [known for known in left if holds(literals, known)]
        if taken:  # else an earlier row always goes first
            rungs.append(literals)
            left = [known for known in left if known not in taken]
    if left and draw(st.booleans()):
        rungs.append(())
        left = []
    return rungs, bool(left)


def _words(prefix: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from([f"{prefix}_{n}" for n in range(3)]), max_size=2, unique=True).map(tuple)


@st.composite
def machines(
    draw: st.DrawFn,
    *,
    name: str = "drawn",
    facts: Sequence[str] = FACT_NAMES,
    assign: st.SearchStrategy[tuple[str, ...]] | None = None,
    payloads: Mapping[str, str] | None = None,
    events: Sequence[str] = ("go", "turn", "mark"),
) -> Machine:
    """Draw a machine that holds together.

    Args:
        draw: Hypothesis' drawer.
        name: The machine's name.
        facts: The facts that guards may ask.
        assign: What rows may note; words of no meaning if it is not given.
        payloads: Payload models by event, kept for the events that the machine has.
        events: The events of the rows that are drawn freely; more are added to reach every state.
    """
    perpetual = draw(st.booleans())
    categories = [
        draw(st.sampled_from(OPEN[:2])),
        *draw(st.lists(st.sampled_from(OPEN), min_size=1, max_size=4)),
    ]
    names = [f"s{n}" for n in range(len(categories))]
    states = [
        State(
            name=one,
            category=category,
            deadline=draw(
                st.sampled_from(KINDS) if category == "waiting" else st.none() | st.sampled_from(KINDS)
            ),
            doc=draw(st.text(max_size=5)),
        )
        for one, category in zip(names, categories, strict=True)
    ]
    ends = [] if perpetual else [f"end{n}" for n in range(draw(st.integers(1, 2)))]
    states += [State(name=one, category=Category.TERMINAL) for one in ends]
    assign = _words("note") if assign is None else assign
    everywhere = tuple(f"@{category}" for category in dict.fromkeys(categories))

    rows: list[Transition] = []
    for index, target in enumerate([*names[1:], *ends]):
        source = names[draw(st.integers(0, min(index, len(names) - 1)))]
        rows.append(Transition(source=(source,), event=f"to_{target}", target=target, assign=draw(assign)))
    if perpetual:
        rows.append(Transition(source=everywhere, event="reset", target=names[0]))
    else:
        rows += [Transition(source=everywhere, event=one, target=ends[0]) for one in ("cancel", "time_out")]
    for event in events:
        rows += draw(_rows_of(event, states, facts, [*names, *ends], assign))

    known = {row.event for row in rows}
    return Machine(
        name=name,
        initial=names[0],
        states=tuple(states),
        transitions=tuple(rows),
        facts=tuple(Fact(name=fact, default=draw(st.booleans())) for fact in facts),
        payloads=tuple((event, model) for event, model in (payloads or {}).items() if event in known),
        timeouts=draw(limits()),
        perpetual=perpetual,
        doc=draw(st.text(max_size=5)),
    )


@st.composite
def _rows_of(
    draw: st.DrawFn,
    event: str,
    states: Sequence[State],
    facts: Sequence[str],
    targets: Sequence[str],
    assign: st.SearchStrategy[tuple[str, ...]],
) -> list[Transition]:
    """Draw the rows of one event: selectors and names, each state in one ladder of guards at most."""
    free = {one.name: one.category for one in states if one.category != "terminal"}
    rows: list[Transition] = []
    while free and draw(st.booleans()):
        whole = [
            category
            for category in dict.fromkeys(free.values())
            if all(one.name in free for one in states if one.category == category)
        ]
        selector = draw(st.sampled_from([f"@{category}" for category in whole] + list(free)))
        source = [selector]
        gone = [one for one in free if selector in {one, f"@{free[one]}"}]
        rest = [one for one in free if one not in gone]
        if rest and draw(st.booleans()):
            extra = draw(st.sampled_from(rest))
            source.append(extra)
            gone.append(extra)
        for one in gone:
            del free[one]
        rungs, otherwise = draw(ladders(facts))
        for index, literals in enumerate(rungs):
            last = otherwise and index == len(rungs) - 1
            rows.append(
                Transition(
                    source=tuple(source),
                    event=event,
                    target=draw(st.none() | st.sampled_from(targets)),
                    guard=guard_text(literals),
                    assign=draw(assign),
                    effects=draw(_words("order")),
                    otherwise="not now" if last else None,
                )
            )
    return rows


def limits() -> st.SearchStrategy[Timeouts]:
    """Draw time limits, each given or not."""
    seconds = st.none() | st.floats(0.001, 1e6)
    fields: dict[str, st.SearchStrategy[Any]] = {
        f"{kind}_s": seconds for kind in ("total", "queue", "phase", "idle", "input", "grace")
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: Timeouts(**given))
