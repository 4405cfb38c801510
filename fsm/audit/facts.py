"""What the audit keeps of a file: small records of plain values, which a cache can hold."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from fsm.audit.model import Finding


@dataclass(slots=True)
class Box:
    """A container that a class or module keeps: how it is keyed, which methods put in and take out, and what.

    What is put in is ``state``, ``row`` (it carries a state), ``time``, ``task``, or ``=`` and a constructed class.
    ``changed`` are the keys under which something is put in or taken out.
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

    ``drives`` says that it calls what does the work; ``forwards`` are calls on parts as ``part.method``; ``makes``
    symbols of classes; ``gives`` what it returns; ``loops`` words about a loop that tries again (``try``, ``sleep``,
    ``call:name``); ``works`` what it works through, item by item.
    """

    name: str
    line: int
    end: int
    params: list[str] = field(default_factory=list)
    is_async: bool = False
    sets_state: bool = False
    drives: bool = False
    forwards: list[str] = field(default_factory=list)
    makes: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    works: list[str] = field(default_factory=list)
    note: str = ""
    calls: int = 0


@dataclass(slots=True)
class ClassFact:
    """A class: its bases as they are written, fields, containers, parts, counters, states and methods.

    ``members`` are the names that its body binds, ``fields`` the declared types of its attributes, ``parts`` the
    symbols of the classes that attributes are constructed from, ``states`` the lifecycle words that an attribute is
    set to, ``clocks`` what holds a moment, and ``compared`` what is compared with a bound.
    """

    qualname: str
    line: int
    end: int
    bases: list[str]
    nested: bool
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

    ``names`` says for each top-level name what it may stand for (an absolute symbol after ``=``, or a name of this
    module), ``stars`` which modules are star-imported, ``calls`` which symbols are constructed (rows of line, column,
    last line, scope and how), ``local`` which findings need nothing but the file, ``skipped`` what was not judged.
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
_KINDS: dict[tuple[type, str], type] = {
    (FileFacts, "classes"): ClassFact,
    (FileFacts, "functions"): Method,
    (FileFacts, "boxes"): Box,
    (FileFacts, "local"): Finding,
    (ClassFact, "boxes"): Box,
    (ClassFact, "methods"): Method,
}
_NONE: list[Any] = []


def as_row(record: Any) -> list[Any]:
    """Flatten a record for the cache; `from_row` reads it back."""
    kind = type(record)
    return [
        [as_row(item) for item in value] if (kind, name) in _KINDS else value
        for name in _COLUMNS[kind]
        for value in (getattr(record, name),)
    ]


def from_row(row: list[Any], kind: type = FileFacts) -> Any:
    """Read a record as `as_row` wrote it. Most lists are empty, nothing changes them any more, and all are one."""
    values = [_NONE if value == _NONE else value for value in row]
    for at, name in enumerate(_COLUMNS[kind]):
        inner = _KINDS.get((kind, name))
        if inner is not None and values[at]:
            values[at] = [from_row(item, inner) for item in values[at]]
    return kind(*values)


def slim(facts: FileFacts) -> None:
    """Let all empty lists be one, as `from_row` does."""
    records: list[Any] = [*facts.classes, *facts.functions, *facts.boxes]
    for info in facts.classes:
        records += [*info.boxes, *info.methods]
    for record in records:
        for name in _COLUMNS[type(record)]:
            if getattr(record, name) == _NONE:
                setattr(record, name, _NONE)
