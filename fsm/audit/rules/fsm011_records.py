"""FSM011: a second record of an execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found, reasons

CODE: Final = "FSM011"


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that carry the id, the state and the times of an execution."""
    for info, role in tree.of("record"):
        yield found(CODE, info, f"{info.name} is a second record of an execution: it {reasons(role)}")


RULE: Final = Rule(
    "FSM011",
    "a second record of an execution",
    "warning",
    why="A copy of an execution is right when it is made, and wrong after the next transition.",
    hint="Keep the id, and read tracker.get(execution_id) when you need it; put data of your own into metadata.",
    bad="""
        from dataclasses import dataclass

        @dataclass
        class JobRecord:
            job_id: str
            status: str
            started_at: float
    """,
    good="""
        from fsm import get_tracker

        def age(execution_id, now):
            return now - get_tracker().get(execution_id).created_at
    """,
    find=find,
)
