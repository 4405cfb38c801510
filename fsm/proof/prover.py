"""Invariants proved by induction, or refuted by a shortest path.

An invariant that holds at the start, and that no row breaks on a record of which all invariants hold, holds for ever;
all of them are proved together. What is no such invariant is tried again over `MAX_K` steps, and what is still not
proved is searched for a path from the start that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fsm.machine.expressions import Vocabulary, words_in
from fsm.machine.grammar import Invariant
from fsm.machine.machine import Machine
from fsm.proof.symbolic import Move, Record, World

MAX_K = 3
"""The longest run of steps over which an invariant is assumed before it is proved of the next."""
MAX_PATH = 16
"""Maximum number of steps of a path that refutes an invariant."""
FEW = 3
"""Maximum number of attempts and the like on a path that refutes an invariant: a short one needs few."""
PATIENCE_MS = 20_000
"""Maximum time of one question to the solver, in milliseconds; then the answer is unknown."""


class Leg(NamedTuple):
    """One step of a path that refutes an invariant.

    Attributes:
        source: The state before.
        event: The event, or `fsm.proof.symbolic.STAYS`.
        target: The state after.
        inputs: What came from outside: the payload's answers, and what may be absent as 0.
        words: The record after it; what may be absent is 0 if it is.
    """

    source: str
    event: str
    target: str
    inputs: Mapping[str, int | bool]
    words: Mapping[str, int | bool]


class Counterexample(NamedTuple):
    """A shortest path on which an invariant does not hold.

    Attributes:
        constants: What the instance is born with: ``attempts_max`` and the like.
        legs: The steps; none if the initial record breaks it.
    """

    constants: Mapping[str, int]
    legs: tuple[Leg, ...]


class Verdict(NamedTuple):
    """What came of one invariant.

    Attributes:
        invariant: The invariant.
        proved: Whether it holds of every record that can be reached.
        k: Over how many steps the induction went, if it is proved.
        breaks: The path that refutes it, if one was found.
        near: The row that might break it, if it is neither proved nor refuted.
    """

    invariant: Invariant
    proved: bool
    k: int = 1
    breaks: Counterexample | None = None
    near: str = ""


def prove_invariants(
    machine: Machine, vocabulary: Vocabulary, invariants: Sequence[Invariant] | None = None
) -> list[Verdict]:
    """Prove the invariants of a machine.

    Args:
        machine: The machine.
        vocabulary: What its words mean.
        invariants: What to prove; defaults to the machine's own.

    Raises:
        ConfigurationError: z3 is not installed.
        UnknownWord: An invariant or a row has a word that is not known.
    """
    prover = Prover(machine, vocabulary)
    wanted = machine.invariants if invariants is None else tuple(invariants)
    kept, near = prover.inductive(wanted)
    verdicts: dict[str, Verdict] = {one.name: Verdict(one, proved=True) for one in kept}
    left = [one for one in wanted if one.name not in verdicts]
    found = prover.refute(left)
    for one in left:
        if one.name in found:
            verdicts[one.name] = Verdict(one, proved=False, breaks=found[one.name])
    left = [one for one in left if one.name not in found]
    for k in range(2, MAX_K + 1):
        if not left:
            break
        proved = prover.inductive_over(k, left, kept)
        verdicts |= {one.name: Verdict(one, proved=True, k=k) for one in proved}
        kept = [*kept, *proved]
        left = [one for one in left if one not in proved]
    verdicts |= {one.name: Verdict(one, proved=False, near=near[one.name]) for one in left}
    return [verdicts[one.name] for one in wanted]


def of_steps(invariant: Invariant) -> bool:
    """Return whether an invariant speaks of the record before: it then holds of steps, not of records."""
    return any(before for _, before in words_in(invariant.holds))


class Prover:
    """One machine, and the questions that are asked of it."""

    def __init__(self, machine: Machine, vocabulary: Vocabulary) -> None:
        self.world = World(machine, vocabulary)
        self.z3 = self.world.z3

    def solver(self) -> Any:
        """Return a solver that knows the bounds of the machine's constants."""
        solver = self.z3.Solver()
        solver.set("timeout", PATIENCE_MS)
        solver.add(*self.world.bounds)
        return solver

    def assumed(self, invariants: Iterable[Invariant], record: Record) -> list[Any]:
        """Return the invariants of one record as formulas."""
        return [self.world.say(one.holds, record) for one in invariants if not of_steps(one)]

    def inductive(self, invariants: Sequence[Invariant]) -> tuple[list[Invariant], dict[str, str]]:
        """Return those that hold together: the most of them that are true at the start and that no row breaks.

        Also says for each of the others which row breaks it.
        """
        kept, broken = list(invariants), dict[str, str]()
        record, known = self.world.begin()
        solver = self.solver()
        solver.add(*known)
        for one in invariants:
            if not of_steps(one) and self._can(solver, self.z3.Not(self.world.say(one.holds, record))):
                broken[one.name] = "the initial record"
        again = True
        while again:
            kept = [one for one in kept if one.name not in broken]
            again = False
            for move in self.world.moves:
                for one in self._broken_by(move, kept):
                    broken[one.name] = str(move)
                    again = True
                kept = [one for one in kept if one.name not in broken]
        return kept, broken

    def _broken_by(self, move: Move, kept: Sequence[Invariant]) -> list[Invariant]:
        record, known = self.world.record(move.sources[0] if len(move.sources) == 1 else None)
        taken = self.world.take(move, record)
        solver = self.solver()
        solver.add(*known, taken.when, *self.assumed(kept, record))
        goals = [self.world.say(one.holds, taken.after, before=record) for one in kept]
        if not self._can(solver, self.z3.Not(self.z3.And(goals))):
            return []
        return [one for one, goal in zip(kept, goals, strict=True) if self._can(solver, self.z3.Not(goal))]

    def _can(self, solver: Any, what: Any) -> bool:
        """Return whether something can be, or is not known to be impossible."""
        return bool(solver.check(what) != self.z3.unsat)

    def inductive_over(
        self, k: int, invariants: Sequence[Invariant], lemmas: Sequence[Invariant]
    ) -> list[Invariant]:
        """Return the invariants that hold of a step because they held of the k steps before it, and of the first k."""
        return [
            one
            for one in invariants
            if not any(self._breaks(one, steps, lemmas, born=True) for steps in range(k + 1))
            and not self._breaks(one, k, lemmas, born=False)
        ]

    def _breaks(self, one: Invariant, steps: int, lemmas: Sequence[Invariant], *, born: bool) -> bool:
        """Return whether an invariant may fail at the last of some steps, of which it holds until then."""
        world = self.world
        record, known = world.begin() if born else world.record()
        if born:
            record = record._replace(state=self.z3.IntVal(world.index[world.machine.initial]))
        goal = self.z3.BoolVal(True) if of_steps(one) else world.say(one.holds, record)
        solver = self.solver()
        solver.add(*known, *self.assumed(lemmas, record))
        for step in range(steps):
            solver.add(goal)
            some, after, _ = world.any_move(record, self.z3.Int(f"move!{step}"))
            goal = world.say(one.holds, after, before=record)
            solver.add(some, *self.assumed(lemmas, after))
            record = after
        return self._can(solver, self.z3.Not(goal))

    def refute(self, invariants: Sequence[Invariant]) -> dict[str, Counterexample]:
        """Return a shortest path for each invariant that one of up to `MAX_PATH` steps breaks."""
        found: dict[str, Counterexample] = {}
        if not invariants:
            return found
        z3, world = self.z3, self.world
        solver = self.solver()
        begin, known = world.begin()
        solver.add(*known, *world.few(FEW))
        for one in invariants:
            if not of_steps(one) and solver.check(z3.Not(world.say(one.holds, begin))) == z3.sat:
                found[one.name] = Counterexample(self._constants(solver.model()), ())
        record = begin._replace(state=z3.IntVal(world.index[begin.state]))
        trail: list[tuple[Any, Record, list[Mapping[str, Any]]]] = []
        for depth in range(MAX_PATH):
            left = [one for one in invariants if one.name not in found]
            if not left:
                break
            number = z3.Int(f"step!{depth}")
            some, after, inputs = world.any_move(record, number)
            solver.add(some)
            trail.append((number, after, inputs))
            for one in left:
                if solver.check(z3.Not(world.say(one.holds, after, before=record))) == z3.sat:
                    found[one.name] = self.path(solver.model(), trail)
            record = after
        return found

    def _constants(self, model: Any) -> dict[str, int]:
        return {
            name: model.eval(symbol, model_completion=True).as_long()
            for name, symbol in self.world.constants.items()
        }

    def path(
        self, model: Any, trail: Sequence[tuple[Any, Record, list[Mapping[str, Any]]]]
    ) -> Counterexample:
        """Return the path that a model of the solver describes: for each step its number, its record and inputs."""

        def value(symbol: Any) -> int | bool:
            found = model.eval(symbol, model_completion=True)
            return bool(self.z3.is_true(found)) if self.z3.is_bool(found) else int(found.as_long())

        legs: list[Leg] = []
        state = self.world.machine.initial
        states = [one.name for one in self.world.machine.states]
        for number, after, inputs in trail:
            move = self.world.moves[value(number)]
            given = {name: value(symbol) for name, symbol in inputs[value(number)].items()}
            words = {name: value(symbol) for name, symbol in after.words.items()}
            legs.append(Leg(state, move.event, target := states[value(after.state)], given, words))
            state = target
        return Counterexample(self._constants(model), tuple(legs))
