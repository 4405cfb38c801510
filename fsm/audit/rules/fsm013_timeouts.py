"""FSM013: a timeout of executions with a clock of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.facts import ClassFact
from fsm.audit.model import Finding
from fsm.audit.names import snake
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found

CODE: Final = "FSM013"
_NAME: Final = re.compile(r"(timeout|deadline|time_limit|watchdog|expir)", re.IGNORECASE)
_BOUND: Final = re.compile(
    r"(timeout|deadline|time_limit|max_(duration|runtime|time|seconds)|expires?(_at)?|ttl)"
)


def _families(fact: ClassFact, tree: Tree) -> dict[str, str]:
    families: dict[str, str] = {}
    clocks = [*fact.clocks, *(box.name for box in fact.boxes if "time" in box.values)]
    bounds = [name for name in [*fact.compared, *fact.fields] if _BOUND.search(name)]
    if clocks and bounds:
        families["clock"] = f"compares {clocks[0]} with {bounds[0]}"
    if _NAME.search(fact.name) and tree.speaks_of_runs(fact):
        families["name"] = "is called so"
    if any(tree.is_run_id(snake(name)) for name in fact.fields) or any(
        tree.is_run_id(key) for box in fact.boxes for key in box.keys
    ):
        families["identity"] = "does so by the id of an execution"
    if any(fact.states) or any(method.sets_state for method in fact.methods):
        families["state"] = "sets their state"
    return families


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that time executions with a clock of their own."""
    for info in tree.judged("tracker"):
        families = _families(info.fact, tree)
        if "clock" in families and len(families) > 1 and "tracker" not in info.roles:
            message = (
                f"{info.name} times executions with a clock of its own: it {'; it '.join(families.values())}"
            )
            yield found(CODE, info, message)


RULE: Final = Rule(
    code=CODE,
    title="a timeout of executions with a clock of its own",
    severity="warning",
    why="A timeout that only one process knows is lost with it, and two clocks end one run twice.",
    hint="Give timeouts at tracker.create(…); the engine meets them, and tracker.sweep() finds what nobody met.",
    bad="""
        import time

        class Job:
            def __init__(self, job_id, timeout):
                self.job_id = job_id
                self.started = time.time()
                self.timeout = timeout

            def is_overdue(self):
                return time.time() - self.started > self.timeout
    """,
    good="""
        from fsm import Timeouts, get_tracker

        def start(user, thread):
            limits = Timeouts(total_s=600)
            return get_tracker().create("a", user_id=user, thread_id=thread, timeouts=limits)
    """,
    replaces="a timeout manager with its own clock",
    find=find,
)
