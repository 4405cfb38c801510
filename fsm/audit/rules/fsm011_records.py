"""FSM011: a second record of an execution."""

from __future__ import annotations

import re
from typing import Final

from fsm.audit.lifecycle import ENUM_BASE, is_state_name
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.names import snake
from fsm.audit.roles import RUN_NOUN, Tree
from fsm.audit.rule import Rule

_FOREIGN: Final = re.compile(
    r"(response|request|dto|event|message|schema|create|update|patch|config|configuration|options|params?|filter|filters|query|error"
    r"|exception|args|input|output|view|serializer|form|out|in|command|notification|payload|spec|settings|mixin|base|read|handler"
    r"|client|api|service|page|tool|provider|callback|plugin|parser|model|orm|test|metrics?|stats|statistics|summary|report|definition"
    r"|manager|registry|store|tracker|monitor|engine|executor|runner|orchestrator|scheduler|worker|queue|agent|breaker|backend|db"
    r"|frontmatter|template|plan|deployment|rollback|installation|frontend|ui|assignment)s?$"
    r"|(^|_)(search|order|payment|invoice|ticket|rollback|deployment|migration|eval|parsed|scheduled|billing)(_|$)"
)
_MOMENT: Final = re.compile(
    r"(_at|_time|_ts|_date|timestamp|started|created|finished|ended|completed|updated|duration|deadline|elapsed|heartbeat)$|^(time|start|end)$"
)
_ORM: Final = re.compile(
    r"(^|\.)(Model|Base|SQLModel|Document|DeclarativeBase|DBBaseModel|ORMBase|BaseSchema|MongoModel|BaseDBModel|Resource)$"
)
_COLUMN: Final = re.compile(
    r"Column|Mapped|relationship|(Char|Text|Integer|DateTime|Foreign\w*|JSON|UUID|Boolean|String)(Field|Key)$"
)
# An agent is no execution, whatever is known of it.
_AGENT: Final = re.compile(
    r"(^|_)agents?(_(info|instance|definition|details|profile|data|card|metadata|record))?$"
)
_FAMILIES: Final = 4
"""Families that make a record: id and state are in half of all classes."""


def judge(tree: Tree, info: ClassInfo) -> Role | None:
    """Say whether a class carries the id, the state and the times of one execution."""
    fact = info.fact
    name = snake(info.name)
    if any(ENUM_BASE.search(base) or _ORM.search(base) for base in fact.bases) or _FOREIGN.search(name):
        return None
    names = {snake(each): note for each, note in fact.fields.items()}
    known = tree.config.state_names
    states = [each for each in names if is_state_name(each, known) or each.endswith("_stage")]
    if not states or any(_COLUMN.search(note) for note in fact.fields.values()):
        return None
    noun = RUN_NOUN.search(_AGENT.sub("", name)) is not None
    own = {"id", "uid", "uuid", "key", *(f"{word}_id" for word in name.split("_"))}
    ids = [each for each in names if tree.is_run_id(each) or (noun and each in own)]
    keeps = any(box.mapping and box.inserts and tree.keeps_runs(box, info.module) for box in fact.boxes)
    drives = any(m.name in {"run", "execute", "process"} and m.drives for m in fact.methods)
    if not ids or keeps or drives:
        return None
    evidence = {"identity": f"carries {ids[0]}", "state": f"carries {states[0]}"}
    moments = [each for each in names if _MOMENT.search(each)]
    typed = [
        n for n in states if (held := tree.typed(names[n], info.module)) is not None and "enum" in held.roles
    ]
    moved = [a for a, words in fact.states.items() if len(words) > 1 and a[-1] != ")"]
    if moments:
        evidence["time"] = f"carries {', '.join(moments[:2])}"
    if typed:
        evidence["use"] = f"its {typed[0]} is an enum of states"
    if moved:
        evidence["moves"] = f"goes through {', '.join(fact.states[moved[0]][:3])}"
    if noun:
        evidence["name"] = "is called like an execution"
    held_here = (*ids[:1], *states[:1], *moments[:2])
    return Role("record", evidence, held_here) if len(evidence) >= _FAMILIES else None


RULE: Final = Rule(
    code="FSM011",
    title="a second record of an execution",
    severity="warning",
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
    role="record",
    judge=judge,
    says="a second record of an execution",
)
