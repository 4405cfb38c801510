"""FSM010: a second enum of execution states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found, reasons

CODE: Final = "FSM010"


def find(tree: Tree) -> Iterator[Finding]:
    """Report enums that list the states of executions once more."""
    for info, role in tree.of("enum"):
        yield found(CODE, info, f"{info.name} is a second enum of execution states: it {reasons(role)}")


RULE: Final = Rule(
    "FSM010",
    "a second enum of execution states",
    "warning",
    why="Two lists of states need a translation, and the translation is wrong after the next change.",
    hint="Read execution.state and execution.category; derive states of your own with EXECUTION.extend(…).",
    bad="""
        from enum import Enum

        class JobStatus(Enum):
            PENDING = "pending"
            RUNNING = "running"
            COMPLETED = "completed"
            FAILED = "failed"
    """,
    good="""
        from fsm import get_tracker

        def is_running(execution_id):
            return get_tracker().get(execution_id).category == "running"
    """,
    replaces="a status enum, a phase tracker",
    find=find,
)
