"""FSM003: a second tracker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found, reasons

CODE: Final = "FSM003"


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that keep executions beside the registry."""
    for info, role in tree.of("tracker"):
        yield found(CODE, info, f"{info.name} is a second tracker: it {reasons(role)}")


RULE: Final = Rule(
    "FSM003",
    "a second tracker",
    "error",
    why="A class that keeps executions and states for itself drifts from the registry at once.",
    hint="Keep no executions: read them with get_tracker().find(…), and follow them with tracker.subscribe(…).",
    bad="""
        class RunBook:
            def __init__(self):
                self._executions = {}

            def begin(self, execution_id):
                self._executions[execution_id] = {"status": "running"}

            def set_state(self, execution_id, state):
                self._executions[execution_id]["status"] = state
    """,
    good="""
        from fsm import get_tracker

        class RunView:
            def running(self):
                return get_tracker().find(category="running")
    """,
    replaces="a status enum, a phase tracker",
    find=find,
)
