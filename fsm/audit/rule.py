"""What a rule is: one module of `fsm.audit.rules` with a `RULE`, found by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from textwrap import dedent

from fsm.audit.config import Severity
from fsm.audit.context import FileContext
from fsm.audit.model import Finding
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.roles import Judge, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: its examples are the documentation, and what it reports of them is tested.

    ``local`` reports what needs nothing but one file, while the file's tree is at hand; ``find`` finds what needs the
    facts of the whole tree; ``judge`` says which classes have the ``role`` that the rule reports as ``says``.
    ``replaces`` is the row of the README's table of what to replace.
    """

    code: str
    title: str
    severity: Severity
    why: str
    hint: str
    bad: str
    good: str
    replaces: str = ""
    local: Callable[[FileContext], None] | None = None
    find: Callable[[Tree], Iterable[Finding]] | None = None
    role: str = ""
    judge: Judge | None = None
    says: str = ""

    def __post_init__(self) -> None:
        """Take the indentation of this source out of the examples."""
        for name in ("bad", "good"):
            object.__setattr__(self, name, dedent(getattr(self, name)).strip() + "\n")

    def findings(self, tree: Tree) -> Iterator[Finding]:
        """Report what the rule finds in the whole tree."""
        for info, role in tree.of(self.role):
            yield found(self.code, info, f"{info.name} is {self.says}: it {reasons(role)}")
        if self.find is not None:
            yield from self.find(tree)

    def explain(self) -> str:
        """Explain the rule with a bad example and what takes its place."""
        bad, good = (
            "\n".join(f"    {line}".rstrip() for line in t.splitlines()) for t in (self.bad, self.good)
        )
        return (
            f"{self.code}: {self.title} ({self.severity})\n\n{self.why}\n\nBad:\n\n{bad}\n\n"
            f"Good:\n\n{good}\n\nWhat to do: {self.hint}\n"
            f"To silence one place: # noqa: {self.code}. "
            f'To turn the rule off: [tool.fsm.audit] ignore = ["{self.code}"]\n'
        )


def found(code: str, info: ClassInfo, message: str) -> Finding:
    """Report a class."""
    fact = info.fact
    return Finding(info.module.source.shown, fact.line, 1, code, message, fact.qualname, end_line=fact.end)


def reasons(role: Role) -> str:
    """Write the families of evidence for a role."""
    *first, last = role.evidence.values()
    return f"{', '.join(first)} and {last}" if first else last
