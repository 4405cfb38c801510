"""What the audit keeps of a file: small records of plain values, which a cache can hold."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fsm.audit.model import Finding

T = TypeVar("T")


@dataclass(slots=True)
class Box:
    """A container that a class or module keeps: what it is called, how it is keyed, what goes in and comes out.

    Attributes:
        note: Its declared type, as text.
        keys: Names of the expressions that it is keyed by, in snake case.
        inserts: Methods that put something in.
        removes: Methods that take something out.
        values: What is put in: ``state``, ``row`` (it carries a state), ``time``, ``task``, or ``=`` and the
            symbol of a constructed class.
        changed: The keys among them under which something is put in or taken out.
    """

    name: str
    line: int
    end: int
    mapping: bool
    shared: bool
    note: str = ""
    keys: list[str] = field(default_factory=list)
    inserts: list[str] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Method:
    """A method or function: its parameters, what it asks of the parts of its object, and what it constructs.

    Attributes:
        drives: Whether it calls or awaits what does the work: ``work``, ``await`` or nothing.
        forwards: Calls on parts of the object, as ``part.method``.
        makes: Symbols of the classes that it constructs.
        gives: Names and attributes that it returns.
        loops: Words about a loop that tries again: ``try``, ``sleep``, ``call:name``.
    """

    name: str
    line: int
    end: int
    params: list[str] = field(default_factory=list)
    is_async: bool = False
    sets_state: bool = False
    drives: str = ""
    forwards: list[str] = field(default_factory=list)
    makes: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    note: str = ""
    calls: int = 0


@dataclass(slots=True)
class ClassFact:
    """A class: its bases, fields, containers, parts, counters, states and methods.

    Attributes:
        bases: Its bases, dotted as they are written.
        members: Names that its body binds, in snake case, for an enum.
        fields: Declared types of its attributes by name, the empty text where there is none.
        parts: Symbols of the classes that its attributes are constructed from.
        counters: Attributes that are counted up.
        states: Lifecycle words that an attribute of the object is set to.
        clocks: Attributes that hold a moment, or are compared with one.
        compared: Attributes that are compared with a bound.
    """

    qualname: str
    line: int
    end: int
    bases: list[str]
    nested: bool
    decorators: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)
    counters: list[str] = field(default_factory=list)
    states: dict[str, list[str]] = field(default_factory=dict)
    clocks: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.qualname.rpartition(".")[2]


@dataclass(slots=True)
class FileFacts:
    """Everything that the audit keeps of one file.

    Attributes:
        names: For each top-level name, what it may stand for: an absolute symbol after ``=``, or a name of this module.
        stars: Modules that are star-imported.
        calls: Constructions by symbol: rows of line, column, last line, scope and how.
        local: Findings that need nothing but the file.
        skipped: Line and reason where the file was not read, or judged in part.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    classes: list[ClassFact] = field(default_factory=list)
    functions: list[Method] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    calls: dict[str, list[list[Any]]] = field(default_factory=dict)
    local: list[Finding] = field(default_factory=list)
    skipped: list[list[Any]] = field(default_factory=list)
    noqa: bool = False


_COLUMNS: dict[type, list[str]] = {
    kind: [f.name for f in fields(kind)] for kind in (Box, Method, ClassFact, FileFacts, Finding)
}


def as_row(record: Any) -> list[Any]:
    """Flatten a record for the cache; `from_row` reads it back."""
    return [_plain(getattr(record, name)) for name in _COLUMNS[type(record)]]


def _plain(value: Any) -> Any:
    if isinstance(value, list) and value and type(value[0]) in _COLUMNS:
        return [as_row(item) for item in value]
    return value


def from_row(row: list[Any]) -> FileFacts:
    """Read the facts of a file as `as_row` wrote them."""
    facts = FileFacts(*row)
    facts.classes = [ClassFact(*item) for item in facts.classes]  # type: ignore[misc] # rows until here
    for info in facts.classes:
        info.boxes = [Box(*item) for item in info.boxes]  # type: ignore[misc]
        info.methods = [Method(*item) for item in info.methods]  # type: ignore[misc]
    facts.functions = [Method(*item) for item in facts.functions]  # type: ignore[misc]
    facts.boxes = [Box(*item) for item in facts.boxes]  # type: ignore[misc]
    facts.local = [Finding(*item) for item in facts.local]  # type: ignore[misc]
    return facts


_NONE: list[Any] = []


def slim(facts: FileFacts) -> None:
    """Let all empty lists be one; most lists of most records are empty, and nothing changes them any more."""
    records: list[Any] = [*facts.classes, *facts.functions, *facts.boxes]
    for info in facts.classes:
        records += [*info.boxes, *info.methods]
    for record in records:
        for name in _COLUMNS[type(record)]:
            value = getattr(record, name)
            if value.__class__ is list and not value:
                setattr(record, name, _NONE)
