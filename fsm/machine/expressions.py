"""Expressions over a record, as text: what facts, assignments and invariants are written in.

    attempt < attempts_max                        numbers are compared, added and subtracted
    attempt if suspended else attempt + 1         one of two
    owner is not none and not tools_open          none stands for what is absent
    @pending implies not owned                    a category, as in a row's source; a state is called by its name
    before.fence <= fence                         the record before the last step, in invariants
    fence never falls                             the same in words

An expression is data: it has one meaning, and each `Sense` says it in another world. `compiled` says it in Python, the
proof in the words of a solver, the export in TLA+. The words themselves (`attempt`, `owned`) come with a `Vocabulary`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

MAX_LENGTH = 300
"""The longest expression, in characters; it bounds the depth of its tree as well."""
Sort = Literal["count", "flag", "thing", "present"]
"""What a word stands for: a whole number, yes or no, something that may be absent, something that never is."""
_SIGNS: dict[type[ast.AST], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "==",
    ast.IsNot: "!=", ast.Add: "+", ast.Sub: "-",
}  # fmt: skip
_CONSTANTS = {"none": None, "true": True, "false": False}
_NEVER_FALLS = re.compile(r"^([a-z_]+) never falls$")

T = TypeVar("T")


class NoExpression(ValueError):
    """A text is no expression; the message says where and why."""


class Vocabulary(NamedTuple):
    """What the words of a machine's expressions mean, and what its assignments do.

    Attributes:
        words: What the record holds, and what sort each word is of.
        constants: The words of the record that no step changes; each is at least this number.
        facts: The facts that the record answers, each as an expression.
        inputs: What a step takes from outside the record, and its sort; it may come out any way.
        assume: What holds of the inputs; each is an expression.
        defined: Words that stand for an expression over the others.
        begins: The record of a new instance; a word that is left out may begin as anything.
        changes: What a row's `assign` can name: the new value of each word, over the record before.
        frame: What else a row changes: ``always``, when it ``moved`` to a state, when it ``ended``.
        beside: What changes the record without a row of the table: for each a condition and the changes.
        python: The words of the record as Python source over the argument ``record``, for those who look at a record.
        in_turn: Whether each change is over the record that the last one left, and not over the record before.
    """

    words: Mapping[str, Sort]
    constants: Mapping[str, int]
    facts: Mapping[str, str]
    inputs: Mapping[str, Sort]
    assume: tuple[str, ...]
    defined: Mapping[str, str]
    begins: Mapping[str, str]
    changes: Mapping[str, Mapping[str, str]]
    frame: Mapping[str, Mapping[str, str]]
    beside: Mapping[str, tuple[str, Mapping[str, str]]] = {}
    python: Mapping[str, str] = {}
    in_turn: bool = False

    def assigned(self, assign: tuple[str, ...], *, internal: bool, ends: bool) -> list[Mapping[str, str]]:
        """Return what a row does to the record: stages, each of them an expression for each word that it changes.

        Every expression is over the record before its stage. There is one stage unless changes are made `in_turn`;
        where two changes of a stage name one word, the later counts.

        Args:
            assign: What the row notes.
            internal: Whether the state stays by declaration.
            ends: Whether the row leads to a terminal state.
        """
        stages = [self.frame.get("always", {})]
        if not internal:
            stages.append(self.frame.get("moved", {}))
        stages += [self.changes[name] for name in assign]
        if ends:
            stages.append(self.frame.get("ended", {}))
        return stages if self.in_turn else [{word: text for stage in stages for word, text in stage.items()}]


class Sense(Protocol[T]):
    """What expressions say in one world: how each of their forms is made there."""

    def word(self, name: str, *, before: bool) -> T:
        """Say a word of the record, a fact, an input or a state."""
        ...

    def category(self, name: str, *, before: bool) -> T:
        """Say that the state is of a category."""
        ...

    def constant(self, value: int | tuple[()] | None) -> T:
        """Say a number, a truth, nothing, or an empty list."""
        ...

    def negated(self, part: T) -> T:
        """Say ``not``."""
        ...

    def joined(self, how: Literal["and", "or", "implies"], parts: list[T]) -> T:
        """Say ``and``, ``or`` or ``implies``."""
        ...

    def compared(self, sign: str, left: T, right: T) -> T:
        """Say a comparison, a sum or a difference."""
        ...

    def chosen(self, condition: T, one: T, other: T) -> T:
        """Say ``one if condition else other``."""
        ...


@lru_cache(maxsize=4096)
def parse(text: str) -> ast.expr:
    """Return the tree of an expression.

    Raises:
        NoExpression: The text is too long or not of the grammar.
    """
    if len(text) > MAX_LENGTH:
        raise NoExpression(f"it has {len(text)} characters, {MAX_LENGTH} at most")
    plain = _NEVER_FALLS.sub(r"before.\1 <= \1", text.strip())
    parts = re.split(r"\bimplies\b", re.sub(r"@(?=[a-z])", "at.", plain))
    try:
        trees = [ast.parse(part.strip(), mode="eval").body for part in parts]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise NoExpression(f"{text!r} cannot be read: {error}") from None
    for tree in trees:
        for _ in _words(tree):  # looks at every node
            pass
    tree = trees.pop()
    while trees:  # a implies b implies c: a implies (b implies c)
        tree = ast.IfExp(trees.pop(), tree, ast.Name("true"))
    return tree


def _words(tree: ast.expr) -> Iterator[tuple[str, bool]]:
    """Yield each word and whether it is of the record before; categories begin with an @."""
    if isinstance(tree, ast.Name):
        if tree.id not in _CONSTANTS:
            yield tree.id, False
    elif isinstance(tree, ast.Attribute):
        yield _named(tree)
    elif isinstance(tree, ast.Constant):
        if type(tree.value) is not int:
            raise NoExpression(f"{ast.unparse(tree)} is no whole number; write none, true or false for these")
    elif isinstance(tree, ast.Tuple) and not tree.elts:
        return
    else:
        for part in _parts(tree):
            yield from _words(part)


def _named(tree: ast.Attribute) -> tuple[str, bool]:
    match tree:
        case ast.Attribute(ast.Name("before"), name):
            return name, True
        case ast.Attribute(ast.Name("at"), name):
            return f"@{name}", False
        case ast.Attribute(ast.Attribute(ast.Name("before"), "at"), name):
            return f"@{name}", True
    raise NoExpression(f"{ast.unparse(tree)} is no word; only before. and @ stand before one")


def _parts(tree: ast.expr) -> list[ast.expr]:
    match tree:
        case ast.BoolOp(_, values):
            return values
        case ast.UnaryOp(ast.Not(), operand):
            return [operand]
        case ast.Compare(left, signs, others) if all(type(sign) in _SIGNS for sign in signs):
            return [left, *others]
        case ast.BinOp(left, ast.Add() | ast.Sub(), right):
            return [left, right]
        case ast.IfExp(test, body, orelse):
            return [test, body, orelse]
    raise NoExpression(f"{ast.unparse(tree)} is not of the grammar of expressions")


def words_in(text: str) -> frozenset[tuple[str, bool]]:
    """Return the words of an expression, each with whether it is of the record before; a category begins with an @."""
    return frozenset(_words(parse(text)))


def said(text: str, sense: Sense[T]) -> T:
    """Say an expression in the words of another world."""
    return _say(parse(text), sense)


def _say(tree: ast.expr, sense: Sense[T]) -> T:  # noqa: C901, PLR0911 - one case for each form of the grammar
    match tree:
        case ast.Name(name):
            constant = name in _CONSTANTS
            return sense.constant(_CONSTANTS[name]) if constant else sense.word(name, before=False)
        case ast.Attribute():
            name, before = _named(tree)
            if name.startswith("@"):
                return sense.category(name[1:], before=before)
            return sense.word(name, before=before)
        case ast.Constant(value):
            return sense.constant(value)  # type: ignore[arg-type] # `parse` let whole numbers through
        case ast.Tuple():
            return sense.constant(())
        case ast.IfExp(premise, conclusion, ast.Name("true")):
            return sense.joined("implies", [_say(premise, sense), _say(conclusion, sense)])
        case ast.BoolOp(how, values):
            return sense.joined(
                "and" if isinstance(how, ast.And) else "or", [_say(value, sense) for value in values]
            )
        case ast.UnaryOp(_, operand):
            return sense.negated(_say(operand, sense))
        case ast.Compare(left, signs, others):
            terms = [_say(term, sense) for term in (left, *others)]
            links = [
                sense.compared(_SIGNS[type(sign)], terms[index], terms[index + 1])
                for index, sign in enumerate(signs)
            ]
            return links[0] if len(links) == 1 else sense.joined("and", links)
        case ast.BinOp(left, sign, right):
            return sense.compared(_SIGNS[type(sign)], _say(left, sense), _say(right, sense))
        case ast.IfExp(test, body, orelse):
            return sense.chosen(_say(test, sense), _say(body, sense), _say(orelse, sense))
    raise NoExpression(f"{ast.unparse(tree)} is not of the grammar of expressions")


class _Python:
    """The sense of Python: source text over the arguments that `terms` speak of."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms = terms

    def word(self, name: str, *, before: bool) -> str:
        key = f"before.{name}" if before else name
        if key not in self._terms:
            raise NoExpression(f"no such word {key!r}; words are: {', '.join(sorted(self._terms))}")
        return self._terms[key]

    def category(self, name: str, *, before: bool) -> str:
        return self.word(f"@{name}", before=before)

    def constant(self, value: int | tuple[()] | None) -> str:
        return repr(value)

    def negated(self, part: str) -> str:
        return f"(not {part})"

    def joined(self, how: Literal["and", "or", "implies"], parts: list[str]) -> str:
        return f"((not {parts[0]}) or {parts[1]})" if how == "implies" else f"({f' {how} '.join(parts)})"

    def compared(self, sign: str, left: str, right: str) -> str:
        sign = {"==": "is", "!=": "is not"}.get(sign, sign) if right == "None" else sign
        return f"({left} {sign} {right})"

    def chosen(self, condition: str, one: str, other: str) -> str:
        return f"({one} if {condition} else {other})"


class Compiled(NamedTuple, Generic[T]):
    """How Python gets at the words.

    Attributes:
        arguments: The arguments of the compiled function, as in ``"record, given"``.
        terms: For each word the Python source that yields it; ``before.`` and @ belong to the word.
        names: What the sources refer to beside the arguments.
    """

    arguments: str
    terms: Mapping[str, str]
    names: Mapping[str, Any]


def source(text: str, terms: Mapping[str, str]) -> str:
    """Return an expression as Python source.

    Raises:
        NoExpression: It is not of the grammar, or has a word that `terms` lacks.
    """
    return said(text, _Python(terms))


def compiled(texts: str | list[str], how: Compiled[T]) -> Callable[..., T]:
    """Return a function that evaluates an expression, or several to a tuple, as fast as if it were written by hand.

    Only what `parse` let through is ever run: words that `how` knows, comparisons, sums and choices.

    Raises:
        NoExpression: A text is not of the grammar, or has a word that `how` lacks.
    """
    if isinstance(texts, str):
        body = source(texts, how.terms)
    else:
        body = "".join(f"{source(text, how.terms)}, " for text in texts)
        body = f"({body})"
    function: Callable[..., T] = eval(f"lambda {how.arguments}: {body}", dict(how.names))  # noqa: S307 - see above
    return function
