"""A machine in the words of a solver (z3): a record is symbols, and a row what it asks and what it makes of them.

Counters are whole numbers without bound. What may be absent (an owner, a wait) is a number too, and 0 stands for none.
What comes from outside, a payload's facts above all, may come out any way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fsm.errors import ConfigurationError, FsmError
from fsm.machine.expressions import NoExpression, Sort, Vocabulary, said
from fsm.machine.grammar import Arrow, Literals
from fsm.machine.machine import Machine

STAYS = "(beside the table)"
"""What stands for the event of a change that no row makes (`Vocabulary.beside`)."""


class UnknownWord(FsmError, ValueError):
    """An invariant, a guard or an assignment has a word that neither the record nor the machine has."""


class Record(NamedTuple):
    """A record as symbols.

    Attributes:
        state: The index of its state among the machine's, as a symbol, or its name where it is known.
        words: What each word of the record is.
    """

    state: Any
    words: Mapping[str, Any]


class Move(NamedTuple):
    """One way from a record to the next: a row, or a change beside the table.

    Attributes:
        sources: The states before, between which it makes no difference.
        event: The event; `STAYS` for a change beside the table.
        target: The state after; ``None`` if it stays.
        arrow: The row, if it is one, for the first of its sources.
        earlier: The guards of the rows of the same state and event that are tried before it.
        stages: What it changes, stage by stage.
        condition: What must hold beside the guard, as an expression.
    """

    sources: tuple[str, ...]
    event: str
    target: str | None
    arrow: Arrow | None
    earlier: tuple[Literals, ...]
    stages: tuple[Mapping[str, str], ...]
    condition: str = "true"

    def __str__(self) -> str:
        if self.arrow is None:
            return STAYS
        more = f" (and from {', '.join(self.sources[1:])})" if len(self.sources) > 1 else ""
        return f"{self.arrow}{more}"


class Taken(NamedTuple):
    """A move that is taken on a symbolic record.

    Attributes:
        when: The condition under which it is.
        after: The record after it.
        inputs: What comes from outside, by name: the payload's facts and the vocabulary's inputs.
    """

    when: Any
    after: Record
    inputs: Mapping[str, Any]


class World:
    """A machine and the meaning of its words."""

    def __init__(self, machine: Machine, vocabulary: Vocabulary) -> None:
        """Read a declaration.

        Raises:
            ConfigurationError: z3 is not installed.
            UnknownWord: A row assigns what the vocabulary does not have.
        """
        try:
            import z3  # noqa: PLC0415 - here, since no other command has a use for it
        except ImportError:
            raise ConfigurationError("a proof needs z3: pip install 'agent-fsm[prove]'") from None
        self.z3: Any = z3
        self.machine = machine
        self.vocabulary = vocabulary
        self.index = {state.name: number for number, state in enumerate(machine.states)}
        self.constants = {name: self.z3.Int(name) for name in vocabulary.constants}
        self.bounds = [self.constants[name] >= least for name, least in vocabulary.constants.items()]
        self.moves = tuple(self._moves())
        self._made = 0

    def _moves(self) -> Iterator[Move]:
        machine, vocabulary = self.machine, self.vocabulary
        strange = {name for row in machine.transitions for name in row.assign} - vocabulary.changes.keys()
        if strange:
            raise UnknownWord(
                f"machine {machine.name!r} assigns {', '.join(sorted(strange))}, whose meaning is not stated; "
                f"known are: {', '.join(vocabulary.changes)}"
            )
        alike: dict[tuple[int, tuple[Literals, ...]], list[Arrow]] = {}
        for arrow in machine.arrows:
            rows = machine.by_source[arrow.source][arrow.event]
            earlier = tuple(one.literals for one in rows[: rows.index(arrow)])
            alike.setdefault((arrow.row, earlier), []).append(arrow)
        for (_, earlier), arrows in alike.items():
            first = arrows[0]
            ends = not first.internal and first.target in machine.terminal
            stages = vocabulary.assigned(first.assign, internal=first.internal, ends=ends)
            sources = tuple(arrow.source for arrow in arrows)
            target = None if first.internal else first.target
            yield Move(sources, first.event, target, first, earlier, tuple(stages))
        everywhere = tuple(state.name for state in machine.states)
        for condition, change in vocabulary.beside.values():
            yield Move(everywhere, STAYS, None, None, (), (change,), condition)

    def few(self, most: int) -> list[Any]:
        """Return that no constant is above a number, and that those with a value of their own have it."""
        python = self.vocabulary.python
        return [
            constant == int(python[name]) if python.get(name, "").isdigit() else constant <= most
            for name, constant in self.constants.items()
        ]

    # --- records ----------------------------------------------------------------------------------------------

    def fresh(self, name: str, sort: Sort) -> tuple[Any, list[Any]]:
        """Return a new symbol of a sort, and what holds of it."""
        self._made += 1
        if sort == "flag":
            return self.z3.Bool(f"{name}!{self._made}"), []
        symbol = self.z3.Int(f"{name}!{self._made}")
        return symbol, [symbol >= (1 if sort == "present" else 0)]

    def record(self, state: str | None = None) -> tuple[Record, list[Any]]:
        """Return a record of which nothing is known but the sorts of its words, and perhaps its state."""
        words: dict[str, Any] = {}
        known: list[Any] = []
        for name, sort in self.vocabulary.words.items():
            words[name], bound = self.fresh(name, sort)
            known += bound
        at: Any = state
        if state is None:
            at, _ = self.fresh("state", "count")
            known += [at >= 0, at < len(self.index)]
        record = Record(at, words)
        return record, known + self._assumed(record, {})

    def begin(self) -> tuple[Record, list[Any]]:
        """Return the record of a new instance."""
        record, known = self.record(self.machine.initial)
        words = dict(record.words)
        for name, text in self.vocabulary.begins.items():
            known.append(words[name] == self.say(text, record))
        return record, known

    def _assumed(self, record: Record, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the assumptions of the vocabulary that speak of no input which is not given."""
        lacking = self.vocabulary.inputs.keys() - inputs.keys()
        found = []
        for text in self.vocabulary.assume:
            try:
                found.append(said(text, _Solver(self, record, None, inputs, lacking)))
            except _Lacking:
                continue
        return found

    def say(
        self,
        text: str,
        record: Record,
        before: Record | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return an expression over a record as a formula.

        Raises:
            UnknownWord: It has a word that is not known, or speaks of the record before where there is none.
        """
        try:
            return said(text, _Solver(self, record, before, inputs or {}, frozenset()))
        except NoExpression as error:
            raise UnknownWord(str(error)) from None

    # --- moves ------------------------------------------------------------------------------------------------

    def take(self, move: Move, record: Record, shared: Mapping[str, Any] | None = None) -> Taken:
        """Return what a move asks of a record, and what it makes of it.

        Args:
            move: The move.
            record: The record.
            shared: What comes from outside, where it is the same as for another move (of the first stage).
        """
        guards = (*move.earlier, move.arrow.literals if move.arrow else ())
        facts = {fact for guard in guards for fact, _ in guard}
        inputs: dict[str, Any] = {}
        shared = shared or {}
        when: list[Any] = [self.at(record, move.sources)]
        for fact in facts - self.vocabulary.facts.keys() - self.vocabulary.inputs.keys():
            inputs[fact] = (
                shared[fact] if fact in shared else self.fresh(fact, "flag")[0]
            )  # an answer that comes with the payload
        for number, stage in enumerate(move.stages or ({},)):
            given = dict(inputs)
            for name, sort in self.vocabulary.inputs.items():
                if number == 0 and name in shared:
                    given[name] = shared[name]
                    continue
                given[name], bound = self.fresh(name, sort)
                when += bound
            when += self._assumed(record, given)
            if number == 0:
                when.append(self.say(move.condition, record, inputs=given))
                when += [self.z3.Not(self._guard(guard, record, given)) for guard in guards[:-1]]
                when.append(self._guard(guards[-1], record, given))
                inputs = given
            changed = {name: self.say(text, record, inputs=given) for name, text in stage.items()}
            changed = {name: value for name, value in changed.items() if name in self.vocabulary.words}
            record = record._replace(words={**record.words, **changed})
        after = record if move.target is None else record._replace(state=move.target)
        return Taken(self.z3.And(when), after, inputs)

    def _guard(self, guard: Literals, record: Record, inputs: Mapping[str, Any]) -> Any:
        parts = [(self.say(fact, record, inputs=inputs), wanted) for fact, wanted in guard]
        return self.z3.And([part if wanted else self.z3.Not(part) for part, wanted in parts])

    def at(self, record: Record, states: Iterable[str]) -> Any:
        """Return that a record is in one of some states."""
        if isinstance(record.state, str):
            return self.z3.BoolVal(record.state in states)
        return self.z3.Or([record.state == self.index[state] for state in states])

    def any_move(self, record: Record, number: Any) -> tuple[Any, Record, list[Mapping[str, Any]]]:
        """Return that some move, whose number is a symbol, leads from a record to a new one."""
        after, known = self.record()
        ways: list[Any] = []
        inputs: list[Mapping[str, Any]] = []
        for index, move in enumerate(self.moves):
            taken = self.take(move, record)
            inputs.append(taken.inputs)
            same = [after.words[name] == value for name, value in taken.after.words.items()]
            target = record.state if move.target is None else self.index[move.target]
            ways.append(self.z3.And(number == index, after.state == target, taken.when, *same))
        return self.z3.And(self.z3.Or(ways), *known), after, inputs


class _Lacking(Exception):
    """A word is an input that is not given here."""


_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "+": operator.add, "-": operator.sub,
}  # fmt: skip


class _Solver:
    """The sense of the solver: formulas over one record, and perhaps the one before it."""

    def __init__(
        self,
        world: World,
        record: Record,
        before: Record | None,
        inputs: Mapping[str, Any],
        lacking: frozenset[str] | set[str],
    ) -> None:
        self._world = world
        self._record = record
        self._before = before
        self._inputs = inputs
        self._lacking = lacking

    def _of(self, name: str, *, before: bool) -> Record:
        if not before:
            return self._record
        if self._before is None:
            raise NoExpression(f"before.{name} has no meaning here: there is no record before")
        return self._before

    def word(self, name: str, *, before: bool) -> Any:
        world, record = self._world, self._of(name, before=before)
        if name in record.words:
            return record.words[name]
        if name in world.constants:
            return world.constants[name]
        text = world.vocabulary.facts.get(name) or world.vocabulary.defined.get(name)
        if text is not None:
            return world.say(text, record, inputs=self._inputs)
        if name in self._inputs:
            return self._inputs[name]
        if name in self._lacking:
            raise _Lacking
        if name in world.index:
            return world.at(record, (name,))
        words = sorted({*record.words, *world.constants, *world.vocabulary.facts, *world.vocabulary.defined})
        raise NoExpression(
            f"no such word {name!r}: it is neither a state of {world.machine.name!r}, nor one of {', '.join(words)}"
        )

    def category(self, name: str, *, before: bool) -> Any:
        return self._world.at(self._of(f"@{name}", before=before), sorted(self._world.machine.of(name)))

    def constant(self, value: int | tuple[()] | None) -> Any:
        if isinstance(value, bool):
            return self._world.z3.BoolVal(value)
        return self._world.z3.IntVal(value or 0)

    def negated(self, part: Any) -> Any:
        return self._world.z3.Not(part)

    def joined(self, how: Literal["and", "or", "implies"], parts: Sequence[Any]) -> Any:
        return {"and": self._world.z3.And, "or": self._world.z3.Or, "implies": self._world.z3.Implies}[how](
            *parts
        )

    def compared(self, sign: str, left: Any, right: Any) -> Any:
        return _SIGNS[sign](left, right)

    def chosen(self, condition: Any, one: Any, other: Any) -> Any:
        return self._world.z3.If(condition, one, other)
