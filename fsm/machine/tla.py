"""The table as a TLA+ module: every row an action, every invariant a formula that TLC can check.

The module says what the proof says (`fsm.proof`), for another checker: counters, guards and assignments, with the facts
that come with a payload as choices. What an instant, an owner or a text is, it does not say; only whether there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from fsm.machine.expressions import Vocabulary, said, words_in
from fsm.machine.grammar import Arrow, Literals
from fsm.machine.machine import Machine

_SIGNS = {"==": "=", "!=": "#", "<=": "<=", ">=": ">="}
_DOMAINS = {"flag": "BOOLEAN", "thing": "{0, 1}", "present": "{1}", "count": "Nat"}
MOST = "most"
"""The constant that bounds the counters, so that a checker comes to an end."""


class _Tla:
    """The sense of TLA+: formulas in which each word is what `terms` says, or itself."""

    def __init__(
        self, machine: Machine, vocabulary: Vocabulary, terms: Mapping[str, str], *, primed: bool = False
    ) -> None:
        self._machine = machine
        self._vocabulary = vocabulary
        self._terms = terms
        self._prime = "'" if primed else ""

    def word(self, name: str, *, before: bool) -> str:
        vocabulary, prime = self._vocabulary, "" if before else self._prime
        if name in vocabulary.words:
            return self._terms.get(name, f"{name}{prime}")
        text = vocabulary.facts.get(name) or vocabulary.defined.get(name)
        if text is not None:
            there = _Tla(self._machine, vocabulary, self._terms, primed=bool(prime))
            return f"({said(text, there)})"
        return f'(state{prime} = "{name}")' if name in self._machine.by_name else name

    def category(self, name: str, *, before: bool) -> str:
        return f"(state{'' if before else self._prime} \\in {_set(sorted(self._machine.of(name)))})"

    def constant(self, value: int | tuple[()] | None) -> str:
        return str(value).upper() if isinstance(value, bool) else str(value or 0)

    def negated(self, part: str) -> str:
        return f"~{part}"

    def joined(self, how: Literal["and", "or", "implies"], parts: list[str]) -> str:
        sign = {"and": " /\\ ", "or": " \\/ ", "implies": " => "}[how]
        return f"({sign.join(parts)})"

    def compared(self, sign: str, left: str, right: str) -> str:
        return f"({left} {_SIGNS.get(sign, sign)} {right})"

    def chosen(self, condition: str, one: str, other: str) -> str:
        return f"(IF {condition} THEN {one} ELSE {other})"


def _set(names: Iterable[str]) -> str:
    return "{" + ", ".join(f'"{name}"' for name in names) + "}"


def to_tla(machine: Machine, vocabulary: Vocabulary) -> str:
    """Write a machine as a TLA+ module.

    Each row is an action that is called like its event and its number in the table. Invariants of records are state
    formulas; those that speak of the record before are formulas over steps, ``[][…]_vars``. `MOST` bounds the counters.

    Args:
        machine: Any machine.
        vocabulary: What the words of its rows mean.

    Returns:
        The module; equal machines give equal bytes.
    """
    variables = ["state", *vocabulary.words]
    plain = _Tla(machine, vocabulary, {})
    actions = list(_actions(machine, vocabulary))
    begins = [f'state = "{machine.initial}"']
    begins += [f"{word} = {said(text, plain)}" for word, text in vocabulary.begins.items()]
    types = [f"state \\in {_set(state.name for state in machine.states)}"]
    types += [
        f"{word} \\in {'BOOLEAN' if sort == 'flag' else 'Nat'}" for word, sort in vocabulary.words.items()
    ]
    counts = [word for word, sort in vocabulary.words.items() if sort == "count"]
    bounds = [f"{name} >= {least}" for name, least in vocabulary.constants.items()]
    out = [
        f"---- MODULE {machine.name} ----",
        f"\\* {machine.doc or machine.name}. Made from the table with the hash {machine.content_hash}.",
        "\\* What may be absent (an owner, a wait) is 0 if it is. Check TypeOK and the formulas at the end.",
        "EXTENDS Integers",
        f"CONSTANTS {', '.join([*vocabulary.constants, MOST])}",
        f"VARIABLES {', '.join(variables)}",
        f"vars == <<{', '.join(variables)}>>",
        f"ASSUME {_all(bounds or ['TRUE'])}",
        "",
        f"TypeOK == {_all(types)}",
        "",
        f"Init == {_all(begins)}",
        "",
        *(text for _, text in actions),
        "Next ==",
        *(f"    \\/ {name}" for name, _ in actions),
        "",
        "Spec == Init /\\ [][Next]_vars",
        f"Bounded == {_all(f'{word} <= {MOST}' for word in counts)}",
        "",
    ]
    for one in machine.invariants:
        steps = any(before for _, before in words_in(one.holds))
        formula = said(one.holds, _Tla(machine, vocabulary, {}, primed=steps))
        out += [f"\\* {one.says}.", f"{one.name} == {f'[][{formula}]_vars' if steps else formula}"]
    return "\n".join([*out, "===="]) + "\n"


def _all(parts: Iterable[str]) -> str:
    return "".join(f"\n    /\\ {part}" for part in parts)


def _actions(machine: Machine, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    alike: dict[tuple[int, tuple[Literals, ...]], list[Arrow]] = {}
    for arrow in machine.arrows:
        rows = machine.by_source[arrow.source][arrow.event]
        earlier = tuple(one.literals for one in rows[: rows.index(arrow)])
        alike.setdefault((arrow.row, earlier), []).append(arrow)
    seen: dict[str, int] = {}
    for (row, earlier), arrows in alike.items():
        first = arrows[0]
        name = f"{first.event}_{row + 1}"
        seen[name] = seen.get(name, 0) + 1
        name += f"_{seen[name]}" if seen[name] > 1 else ""
        ends = not first.internal and first.target in machine.terminal
        stages = vocabulary.assigned(first.assign, internal=first.internal, ends=ends)
        guards = [f"~{_guard(machine, vocabulary, one)}" for one in earlier]
        guards += [_guard(machine, vocabulary, first.literals)] if first.literals else []
        asked = {fact for one in (*earlier, first.literals) for fact, _ in one}
        sources = f"state \\in {_set(arrow.source for arrow in arrows)}"
        target = "" if first.internal else first.target
        comment = f"\\* {' '.join(machine.transitions[row].source)} --{first.event}--> {target or '(stays)'}"
        yield name, _action(machine, vocabulary, (name, comment), [sources, *guards], (asked, stages, target))
    for name, (condition, change) in vocabulary.beside.items():
        guard = said(condition, _Tla(machine, vocabulary, {}))
        named = (f"beside_{name}", "\\* what changes without a row of the table")
        yield named[0], _action(machine, vocabulary, named, [guard], (set(), [change], ""))


def _guard(machine: Machine, vocabulary: Vocabulary, literals: Literals) -> str:
    sense = _Tla(machine, vocabulary, {})
    parts = [said(fact if wanted else f"not {fact}", sense) for fact, wanted in literals]
    conjunction = " /\\ ".join(parts)
    return f"({conjunction})" if parts else "TRUE"


def _action(
    machine: Machine,
    vocabulary: Vocabulary,
    named: tuple[str, str],
    guards: list[str],
    does: tuple[set[str], Sequence[Mapping[str, str]], str],
) -> str:
    asked, stages, target = does
    terms: dict[str, str] = {}
    used = set(asked)
    for stage in stages:
        sense = _Tla(machine, vocabulary, dict(terms))
        used |= {word for text in stage.values() for word, _ in words_in(text)}
        changed = {word: said(text, sense) for word, text in stage.items() if word in vocabulary.words}
        terms |= changed
    for meanings in (vocabulary.facts, vocabulary.defined):
        used |= {word for name in used & meanings.keys() for word, _ in words_in(meanings[name])}
    inputs = {name: _DOMAINS[vocabulary.inputs[name]] for name in sorted(used & vocabulary.inputs.keys())}
    inputs |= dict.fromkeys(sorted(asked - vocabulary.facts.keys() - vocabulary.inputs.keys()), "BOOLEAN")
    known = set(inputs) | vocabulary.words.keys()
    assumed = [
        said(text, _Tla(machine, vocabulary, {}))
        for text in vocabulary.assume
        if {word for word, _ in words_in(text)} <= known
    ]
    then = [f"state' = {_quoted(target)}" if target else "state' = state"]
    then += [f"{word}' = {terms.get(word, word)}" for word in vocabulary.words]
    name, comment = named
    if not inputs:
        return f"{comment}\n{name} =={_all([*guards, *then])}\n"
    body = "".join(f"\n        /\\ {part}" for part in [*guards[1:], *assumed, *then])
    some = ", ".join(f"{name} \\in {domain}" for name, domain in inputs.items())
    return f"{comment}\n{name} ==\n    /\\ {guards[0]}\n    /\\ \\E {some} :{body}\n"


def _quoted(text: str) -> str:
    return f'"{text}"'
