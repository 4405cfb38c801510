"""FSM012: a factory or accessor of a second tracker, engine or breaker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule

CODE: Final = "FSM012"


def find(tree: Tree) -> Iterator[Finding]:
    """Report functions and classes that hand out a second tracker, engine or breaker."""
    for place, info, role, reason in tree.factories():
        yield Finding(
            place.path,
            place.line,
            1,
            CODE,
            f"{place.symbol} hands out {info.name}, a second {role.kind}: it {reason}",
            place.symbol,
            end_line=place.end,
        )


RULE: Final = Rule(
    "FSM012",
    "a factory or accessor of a second tracker, engine or breaker",
    "warning",
    why="A factory hides which of several instances its callers get, so each part of the code asks another one.",
    hint="Ask get_tracker() for the one tracker, and hand one Engine to who needs it.",
    bad="""
        class RunTracker:
            def __init__(self):
                self._runs = {}

            def start(self, run_id):
                self._runs[run_id] = {"status": "running"}

            def finish(self, run_id):
                self._runs.pop(run_id)

        def create_run_tracker():
            return RunTracker()
    """,
    good="""
        from fsm import get_tracker

        def tracker_of(user):
            return get_tracker().for_user(user)
    """,
    find=find,
)
