"""FSM014: a heartbeat or a death detector per execution."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.facts import ClassFact
from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found

CODE: Final = "FSM014"
_BEAT: Final = re.compile(r"heart_?beat|last_(seen|beat|ping|alive|active|activity)|liveness")
_DEAD: Final = re.compile(
    r"(^|_)(dead|death|stale|zombie|lost|missed|orphan(ed)?|alive|stuck|hung|unresponsive)(_|$|s$)"
)


def _families(fact: ClassFact, tree: Tree) -> dict[str, str]:
    words = [*fact.fields, *(box.name for box in fact.boxes), *fact.counters]
    families: dict[str, str] = {}
    beats = [word for word in words if _BEAT.search(word)]
    methods = [method.name for method in fact.methods]
    if beats:
        families["beats"] = f"keeps {beats[0]}"
    dead = [name for name in [*methods, *words] if _DEAD.search(name)]
    if dead and (fact.clocks or any("time" in box.values for box in fact.boxes)):
        families["deaths"] = f"judges by {dead[0]} who is dead"
    if not tree.speaks_of_runs(fact) and not any(
        tree.is_run_id(key) for box in fact.boxes for key in box.keys
    ):
        return {}
    if any(_BEAT.search(name) for name in methods) and fact.clocks:
        families["methods"] = "stamps them by a clock"
    return families


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that watch over executions by heartbeats of their own."""
    for info in tree.judged("tracker"):
        families = _families(info.fact, tree)
        if len(families) > 1 and "beats" in families and "tracker" not in info.roles:
            yield found(
                CODE,
                info,
                f"{info.name} watches executions by heartbeats: it {'; it '.join(families.values())}",
            )


RULE: Final = Rule(
    code=CODE,
    title="a heartbeat or a death detector per execution",
    severity="warning",
    why="A heartbeat per execution floods the store, and a detector that dies itself finds nobody dead.",
    hint="Hold one lease per process, as the engine does, or tracker.worker().",
    bad="""
        import time

        class AgentHeartbeat:
            def __init__(self, agent_id):
                self.agent_id = agent_id
                self.last_heartbeat = time.time()

            def beat(self):
                self.last_heartbeat = time.time()

            def is_dead(self):
                return time.time() - self.last_heartbeat > 30
    """,
    good="""
        from fsm import get_tracker

        def work(do):
            with get_tracker().worker() as worker:
                do(worker)
    """,
    replaces="a heartbeat and a death detector per execution",
    find=find,
)
