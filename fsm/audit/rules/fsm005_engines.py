"""FSM005: a second engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found, reasons

CODE: Final = "FSM005"


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that drive executions and keep run state of their own."""
    for info, role in tree.of("engine"):
        yield found(CODE, info, f"{info.name} is a second engine: it {reasons(role)}")


RULE: Final = Rule(
    "FSM005",
    "a second engine",
    "warning",
    why="An engine with run state of its own decides alone what is running, and forgets it when it dies.",
    hint="Drive agents with engine.run(…), and keep no runs beside the registry.",
    bad="""
        class AgentRunner:
            def __init__(self):
                self.active_runs = {}

            async def execute(self, agent, run_id):
                self.active_runs[run_id] = "running"
                try:
                    return await agent.run()
                finally:
                    self.active_runs.pop(run_id)
    """,
    good="""
        from fsm import Engine

        class AgentRunner:
            def __init__(self, engine: Engine):
                self.engine = engine

            async def execute(self, agent, user, thread):
                return await self.engine.run(agent, agent_name="a", user_id=user, thread_id=thread)
    """,
    replaces="an engine per kind of agent",
    find=find,
)
