"""FSM001: a tracker, engine or breaker, or a class that is protected by name, constructed outside its factory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule

CODE: Final = "FSM001"


def find(tree: Tree) -> Iterator[Finding]:
    """Report every construction of a protected class that its factory does not make."""
    for made in tree.constructions:
        if not made.allowed:
            short = made.owner.rpartition(".")[2]
            message = f"{short} {made.how} outside its factory; ask the factory for the one instance"
            yield Finding(
                made.path, made.line, made.col, CODE, message, made.scope or "<module>", end_line=made.end
            )


RULE: Final = Rule(
    code=CODE,
    title="direct construction of a protected class",
    severity="error",
    why="Two trackers in one process know different executions, and each calls its own half the truth.",
    hint="Ask the factory, get_tracker(), for the one instance; in tests use the fixture.",
    bad="""
        from fsm import Tracker

        def handle(request):
            tracker = Tracker()
            return tracker.get(request.execution)
    """,
    good="""
        from fsm import get_tracker

        def handle(request):
            tracker = get_tracker()
            return tracker.get(request.execution)
    """,
    find=find,
)
