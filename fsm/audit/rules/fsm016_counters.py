"""FSM016: counters beside the state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.names import snake
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found

CODE: Final = "FSM016"
_COUNTS: Final = re.compile(
    r"(^|_)(total|active|successful|success(es)?|succeeded|failed|failures?|completed|completions|running|cancelled|timed_out|timeouts?|executed)"
    r"(_|$)"
)
_RUNS: Final = re.compile(r"(^|_)(executions?|runs?|tasks?|jobs?|workflows?|agents?|attempts?)(_|$)")


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that count executions beside the registry."""
    for info in tree.judged("engine"):
        counted = [name for name in info.fact.counters if _COUNTS.search(snake(name))]
        runs = tree.speaks_of_runs(info.fact) or any(_RUNS.search(snake(name)) for name in counted)
        if len(counted) > 1 and runs and not info.roles.keys() & {"tracker", "engine", "breaker"}:
            message = f"{info.name} counts executions beside the registry in {', '.join(sorted(counted)[:4])}"
            yield found(CODE, info, message)


RULE: Final = Rule(
    code=CODE,
    title="counters beside the state",
    severity="note",
    why="A counter that is raised by hand misses what dies, and is zero after a restart.",
    hint="Count what is committed: tracker.counts(), tracker.durations(execution_id).",
    bad="""
        class RunStats:
            def __init__(self):
                self.total_runs = 0
                self.failed_runs = 0

            def note(self, failed):
                self.total_runs += 1
                if failed:
                    self.failed_runs += 1
    """,
    good="""
        from fsm import get_tracker

        def failed():
            return get_tracker().counts().get("failed", 0)
    """,
    replaces="counters beside the state",
    find=find,
)
