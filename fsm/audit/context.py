"""What a rule gets to see of a file, and how it reports."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.config import AuditConfig
from fsm.audit.files import Source
from fsm.audit.limits import Work
from fsm.audit.made import Maker
from fsm.audit.model import Finding
from fsm.audit.names import snake
from fsm.audit.scopes import FunctionNode, Scope, last_name, release

_LONGEST: Final = 80
_TAIL = re.compile(r"(_?(\d+|[a-z]|str|hex|value|first|second|one|two|user_?\d+|user_?[ab]))?$")


class IdNames:
    """Says whether a name means an execution id."""

    __slots__ = ("_known", "_pattern", "_spellings")

    def __init__(self, names: list[str]) -> None:
        options = "|".join(re.escape(snake(name)) for name in names) or "(?!)"
        squeezed = "|".join(re.escape(snake(name).replace("_", "")) for name in names) or "(?!)"
        self._pattern = re.compile(rf"((.*_)?({options})s?|({squeezed}))(?=(.*))")
        # execution.id = uuid4() and id = f"run_{n}" have no such name, and make such an id all the same.
        spellings = {snake(name).replace("_", joint) for name in names for joint in ("_", "-", "")}
        quoted = [quote + word for quote in "\"'" for word in ("exec", "run", "agent_exec", "agent_run")]
        self._spellings = [*sorted(spellings), "uuid", *quoted]
        self._known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        """Judge one name."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._judge(name)
        return known

    def mentions(self, text: str) -> list[int]:
        """Find where a text may speak of such an id at all; looking closer elsewhere is a waste of time."""
        lowered = text.lower()
        places: list[int] = []
        for spelling in self._spellings:
            # Many plain searches are several times faster than one pattern of alternatives.
            place = lowered.find(spelling)
            while place >= 0:
                places.append(place)
                place = lowered.find(spelling, place + 1)
        lines: list[int] = []
        line, last = 1, 0
        for place in sorted(places):
            line += lowered.count("\n", last, place)
            last = place
            lines.append(line)
        return lines

    def _judge(self, name: str) -> bool:
        if not name.isascii() or len(name) > _LONGEST or not name.replace("-", "_").isidentifier():
            return False
        match = self._pattern.match(snake(name.replace("-", "_")))
        return match is not None and _TAIL.fullmatch(match.group(5)) is not None


class FileContext:
    """One file on its way through the rules."""

    __slots__ = (
        "_signatures",
        "config",
        "findings",
        "id_names",
        "keeper",
        "maker",
        "scopes",
        "source",
        "text",
        "work",
    )

    def __init__(
        self, source: Source, text: str, scopes: list[Scope], config: AuditConfig, id_names: IdNames
    ) -> None:
        self.source = source
        self.text = text
        self.scopes = scopes
        self.config = config
        self.id_names = id_names
        self.work = Work()
        self.maker = Maker(source, tuple(config.id_makers), id_names, self.work)
        self.findings: list[Finding] = []
        self.keeper = ""
        self._signatures: dict[str, list[str]] | None = None

    def close(self) -> None:
        """Let go of the syntax tree, without waiting for the collector to find the cycles."""
        release(self.scopes)
        self.scopes = []

    def parameters_of(self, func: ast.expr, scope: Scope) -> list[str]:
        """Name the positional parameters of a function or class that this file defines."""
        if not self.has_id_parameters():
            return []
        if isinstance(func, ast.Name):
            name = func.id
        elif isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self":
            owner = scope.enclosing_class()
            name = f"{owner.qualname}.{func.attr}" if owner is not None else ""
        else:
            return []
        return (self._signatures or {}).get(name, [])

    def has_id_parameters(self) -> bool:
        """Say whether the file defines anything that is handed an execution id by position."""
        if self._signatures is None:
            every = signatures(self.scopes).items()
            self._signatures = {name: names for name, names in every if any(map(self.id_names, names))}
        return bool(self._signatures)

    def report(
        self, code: str, node: ast.AST, message: str, scope: Scope, *, span: ast.AST | None = None
    ) -> None:
        """Record a finding."""
        line: int = getattr(node, "lineno", 1)
        end: int = getattr(span if span is not None else node, "end_lineno", None) or line
        self.findings.append(
            Finding(
                path=self.source.shown,
                line=line,
                col=getattr(node, "col_offset", 0) + 1,
                code=code,
                message=message,
                symbol=scope.symbol(),
                end_line=end,
                keeper=self.keeper,
            )
        )


def signatures(scopes: list[Scope]) -> dict[str, list[str]]:
    """List the positional parameters of what a file defines."""
    found: dict[str, list[str]] = {}
    for scope in scopes:
        node = scope.node
        if isinstance(node, FunctionNode):
            names = [parameter.arg for parameter in (*node.args.posonlyargs, *node.args.args)]
            owner = scope.parent if scope.parent is not None and scope.parent.kind == "class" else None
            names = names[1:] if owner is not None and names[:1] in (["self"], ["cls"]) else names
            found[scope.qualname] = names
            if owner is not None and scope.name == "__init__":
                found[owner.qualname] = names
        elif isinstance(node, ast.ClassDef) and _is_dataclass(node):
            fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            found.setdefault(scope.qualname, [field.id for field in fields if isinstance(field, ast.Name)])
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(last_name(decorator) in {"dataclass", "define", "attrs"} for decorator in decorators)
