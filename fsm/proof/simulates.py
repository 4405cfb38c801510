"""Whether a new machine allows all that an old one does, proved on the tables; else the shortest breaking journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fsm.machine.expressions import Vocabulary
from fsm.machine.machine import Machine
from fsm.proof.diff import ladders
from fsm.proof.prover import MAX_PATH, Counterexample, Prover
from fsm.proof.symbolic import Move, Record


class Simulation(NamedTuple):
    """What came of it.

    Attributes:
        holds: Whether every journal that the old machine allows is one that the new machine allows.
        breaks: The shortest journal that is not; its last step is what the new machine does not do.
        row: The row of the old machine that the new one does not follow.
    """

    holds: bool
    breaks: Counterexample | None = None
    row: str = ""


def simulates(old: Machine, new: Machine, vocabulary: Vocabulary) -> Simulation:
    """Say whether each step of the old machine is one of the new machine: to the same state, with the same record.

    Raises:
        ConfigurationError: The tables differ, and z3 is not installed.
    """
    if old.initial != new.initial:
        return Simulation(holds=False, row=f"an execution begins in {new.initial!r}, not in {old.initial!r}")
    before, after = ladders(old), ladders(new)
    # Where other facts are taken for granted, or other states are ends, an equal row may do another thing.
    all_of_them = old.terminal != new.terminal or old.fact_defaults != new.fact_defaults
    suspects = {key for key, text in before.items() if all_of_them or after.get(key) != text}
    if not suspects:
        return Simulation(holds=True)
    return _Pair(old, new, vocabulary).judge(suspects)


class _Pair:
    """The two machines, over one record."""

    def __init__(self, old: Machine, new: Machine, vocabulary: Vocabulary) -> None:
        self.old = Prover(old, vocabulary)
        self.new = Prover(new, vocabulary)
        defaults = old.fact_defaults.items() & new.fact_defaults.items()
        self._differ = {*old.fact_defaults, *new.fact_defaults} - dict(defaults).keys()
        self.lemmas, _ = self.old.inductive(old.invariants)

    def judge(self, suspects: set[tuple[str, str]]) -> Simulation:
        """Look at the rows that changed, and search a way to those that the new machine does not follow."""
        z3 = self.old.z3
        broken: list[tuple[str, Move]] = []
        for move in self.old.world.moves:
            for source in move.sources:
                if (source, move.event) not in suspects:
                    continue
                record, known = self.old.world.record(source)
                solver = self.old.solver()
                solver.add(
                    *known, *self.old.assumed(self.lemmas, record), self._strays(move, source, record)[0]
                )
                if solver.check() != z3.unsat:
                    broken.append((source, move))
        if not broken:
            return Simulation(holds=True)
        path = self._way(broken)
        said = "; ".join(dict.fromkeys(str(move) for _, move in broken))
        return Simulation(holds=False, breaks=path, row=said)

    def _strays(self, move: Move, source: str, record: Record) -> tuple[Any, Any]:
        """Return that the old machine takes a row from a record, and the new machine does not make the same of it."""
        z3 = self.old.z3
        record = record._replace(state=source)
        taken = self.old.world.take(move, record)
        target = move.target or source
        # What a payload leaves unsaid is the same for both only if both take the same for granted.
        shared = {name: symbol for name, symbol in taken.inputs.items() if name not in self._differ}
        follows = []
        for other in self.new.world.moves:
            if other.event == move.event and source in other.sources and (other.target or source) == target:
                same = self.new.world.take(other, record, shared)
                words = [same.after.words[name] == value for name, value in taken.after.words.items()]
                follows.append(z3.And(same.when, *words))
        return z3.And(taken.when, z3.Not(z3.Or(follows))), taken

    def _way(self, broken: Sequence[tuple[str, Move]]) -> Counterexample | None:
        """Return the shortest path of the old machine that ends with a row which the new machine does not follow."""
        world, z3, prover = self.old.world, self.old.z3, self.old
        solver = prover.solver()
        begin, known = world.begin()
        solver.add(*known, *world.few(3))
        record = begin._replace(state=z3.IntVal(world.index[world.machine.initial]))
        trail: list[Any] = []
        for depth in range(MAX_PATH):
            for source, move in broken:
                strays, taken = self._strays(move, source, record)
                here = [record.state == world.index[source], strays]
                if solver.check(*here) == z3.sat:
                    # The row itself is the last step of the path.
                    number = z3.Int("last")
                    index = world.moves.index(move)
                    after = taken.after._replace(state=z3.IntVal(world.index[move.target or source]))
                    inputs = [taken.inputs if at == index else {} for at in range(len(world.moves))]
                    solver.add(*here, number == index)
                    solver.check()
                    trail.append((number, after, inputs))
                    return prover.path(solver.model(), trail)
            number = z3.Int(f"way!{depth}")
            some, record, inputs = world.any_move(record, number)
            solver.add(some)
            trail.append((number, record, inputs))
        return None
