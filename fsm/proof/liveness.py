"""Whether an end is reached: from every record that the table can lead to, if only deadlines fire.

A deadline that passes fires `time_out`. It must be taken wherever an instance can be, and must lead to an end in
finitely many steps. No rows that the system takes by itself may lead round in a circle without a guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fsm.errors import Finding
from fsm.machine.grammar import Arrow, Invariant
from fsm.proof.prover import Prover
from fsm.proof.symbolic import Move

DEADLINE = "time_out"
"""The event of every deadline that passes."""
LAPSE = "lapse"
"""The event of a worker that was lost."""


def find_stalls(prover: Prover, proved: Sequence[Invariant]) -> list[Finding]:
    """Return what keeps an instance from its end; an empty list means that each reaches one.

    Args:
        prover: The machine.
        proved: The invariants that were proved of it; they rule out what cannot be.
    """
    machine = prover.world.machine
    findings = list(_livelocks(machine.arrows))
    if not machine.perpetual:
        findings += _unbounded(prover)
        findings += _refused(prover, proved)
        findings += _circles(prover, proved)
    return findings


def _livelocks(arrows: Iterable[Arrow]) -> Iterator[Finding]:
    edges = {
        (arrow.source, arrow.target): arrow
        for arrow in arrows
        if not arrow.literals and (arrow.by == "system" or arrow.event in {DEADLINE, LAPSE})
    }
    circle = _circle(list(edges))
    if circle:
        rows = "; ".join(str(edges[edge]) for edge in circle)
        yield Finding(
            "livelock",
            rows,
            "the system takes these rows round and round, and no guard stops it",
            "Let one of them lead to an end, or give it a guard",
        )


def _unbounded(prover: Prover) -> Iterator[Finding]:
    machine = prover.world.machine
    limits = machine.limits()
    for state in machine.states:
        bounded = limits.by_state[state.name] is not None or limits.total_s is not None
        idle = limits.idle_s is not None and state.name in limits.idle_states
        if state.name not in machine.terminal and not bounded and not idle:
            yield Finding(
                "endless_stay",
                state.name,
                "no deadline bounds a stay here",
                "Give the machine a limit (timeouts=Timeouts(total_s=…)), or the state a deadline=",
            )


def _refused(prover: Prover, proved: Sequence[Invariant]) -> Iterator[Finding]:
    world, z3 = prover.world, prover.z3
    for state in world.machine.states:
        arrows = world.machine.by_source[state.name].get(DEADLINE, ())
        if state.name in world.machine.terminal:
            continue
        record, known = world.record(state.name)
        last = Move((state.name,), DEADLINE, None, None, tuple(arrow.literals for arrow in arrows), ())
        solver = prover.solver()
        solver.add(*known, *prover.assumed(proved, record), world.take(last, record).when)
        if solver.check() != z3.unsat:
            yield Finding(
                "deadline_refused",
                state.name,
                f"a deadline that passes here may fire {DEADLINE!r} and be refused: it stays for ever",
                f"Add a row for {DEADLINE!r} without a guard",
            )


def _circles(prover: Prover, proved: Sequence[Invariant]) -> Iterator[Finding]:
    """Yield a circle of deadlines that nothing is shown to bound."""
    world = prover.world
    edges: dict[tuple[str, str], list[tuple[Move, Any, Any, Any]]] = {}
    for move in world.moves:
        if move.event != DEADLINE:
            continue
        for source in move.sources:
            record, known = world.record(source)
            taken = world.take(move, record)
            solver = prover.solver()
            solver.add(*known, *prover.assumed(proved, record), taken.when)
            if solver.check() != prover.z3.unsat:
                edges.setdefault((source, move.target or source), []).append((move, record, taken, solver))
    counts = [name for name, sort in world.vocabulary.words.items() if sort == "count"]
    measures = [f"{most} - {name}" for most in world.constants for name in counts] + counts
    while circle := _circle(list(edges)):
        decreasing = next(filter(None, (_falls(prover, measure, edges) for measure in measures)), None)
        if decreasing is None:
            rows = "; ".join(str(edges[edge][0][0]) for edge in circle)
            yield Finding(
                "endless_deadlines",
                rows,
                "deadlines lead round in a circle, and nothing is shown to run out",
                "Let one of them lead to an end, or guard it with attempts_left",
            )
            return
        for edge in decreasing:
            del edges[edge]


def _falls(prover: Prover, measure: str, edges: dict[tuple[str, str], Any]) -> list[tuple[str, str]]:
    """Return the edges on which a measure falls and stays at 0 or above, if it rises on none."""
    world = prover.world
    falling = []
    for edge, ways in edges.items():
        falls = True
        for _, record, taken, solver in ways:
            before, after = world.say(measure, record), world.say(measure, taken.after)
            if solver.check(after > before) != prover.z3.unsat:
                return []
            falls = falls and solver.check(prover.z3.Not(prover.z3.And(after < before, after >= 0))) == (
                prover.z3.unsat
            )
        if falls:
            falling.append(edge)
    return falling


def _circle(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the edges of a circle, empty if there is none."""
    for first in edges:
        ways: dict[str, list[tuple[str, str]]] = {first[1]: [first]}
        todo = [first[1]]
        while todo:
            here = todo.pop(0)
            if here == first[0]:
                return ways[here]
            for edge in edges:
                if edge[0] == here and edge[1] not in ways:
                    ways[edge[1]] = [*ways[here], edge]
                    todo.append(edge[1])
    return []
