"""What a rule is: one module of `fsm.audit.rules` with a `RULE`, found by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING

from fsm.audit.config import Severity
from fsm.audit.model import Finding
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.roles import Tree

if TYPE_CHECKING:
    from fsm.audit.context import FileContext


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        code: Its code, such as ``FSM001``.
        title: What it finds, in a few words.
        severity: How much it matters, unless configured otherwise.
        why: What goes wrong in production when it is ignored.
        hint: What to do.
        bad: An example that it reports.
        good: The same done right, which no rule reports.
        replaces: The row of the README's table of what to replace that it finds.
        local: Reports what needs nothing but one file, while the file's tree is at hand.
        find: Finds what needs the facts of the whole tree.
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

    def __post_init__(self) -> None:
        """Take the indentation of this source out of the examples."""
        for name in ("bad", "good"):
            object.__setattr__(self, name, dedent(getattr(self, name)).strip() + "\n")

    def explain(self) -> str:
        """Explain the rule with a bad example and what takes its place."""

        def block(text: str) -> str:
            return "\n".join(f"    {line}".rstrip() for line in text.splitlines())

        return (
            f"{self.code}: {self.title} ({self.severity})\n\n{self.why}\n\nBad:\n\n{block(self.bad)}\n\n"
            f"Good:\n\n{block(self.good)}\n\nWhat to do: {self.hint}\n"
            f"To silence one place: # noqa: {self.code}. "
            f'To turn the rule off: [tool.fsm.audit] ignore = ["{self.code}"]\n'
        )


def found(code: str, info: ClassInfo, message: str) -> Finding:
    """Report a class."""
    fact = info.fact
    return Finding(info.module.source.shown, fact.line, 1, code, message, fact.qualname, end_line=fact.end)


def reasons(role: Role) -> str:
    """Write the families of evidence for a role."""
    texts = list(role.evidence.values())
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)
