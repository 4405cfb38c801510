"""FSM010: a second enum of execution states."""

from __future__ import annotations

import re
from typing import Final

from fsm.audit.lifecycle import ACTIVE_WORDS, ENDED_WORDS, ENUM_BASE, OPEN_WORDS, WORDS
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.names import snake
from fsm.audit.roles import RUN_NOUN, Tree, says
from fsm.audit.rule import Rule

_STATE: Final = re.compile(r"(^|_)(state|status|phase|lifecycle|stage)(_\w+)?s?$")
_FOREIGN: Final = re.compile(
    r"(^|_)(orders?|payments?|invoices?|connections?|sockets?|http|health|circuit|breakers?|uploads?|downloads?|files?|tickets?|issues?"
    r"|emails?|messages?|notifications?|subscriptions?|migrations?|imports?|exports?|deploy(ment)?s?|users?|accounts?|builds?|tests?"
    r"|checks?|reviews?|pull_requests?|containers?|pods?|servers?|services?|nodes?|hosts?|documents?|index(ing)?|events?|log|exit"
    r"|return|response|todo|plan|billing|shipment|transactions?|stream|player|game|device|cluster|sync|webhooks?|locks?|install(ation)?"
    r"|plugins?|span|sandbox(es)?|callbacks?|runtimes?|components?|resources?|features?|projects?|tenants?|incidents?|alerts?|rollbacks?|switch|traffic|branch(es)?|merge|models?|systems?|app(lication)?s?|environments?)(_|$)"
)
# What is started and stopped is a server; what runs comes out somehow.
_OUTCOMES: Final = ENDED_WORDS - {"stopped", "dead", "terminated", "killed", "expired", "interrupted", "ok"}
_RUNS: Final = {"running", "executing", "queued", "thinking", "working", "doing"}
# The status of an agent is that of its executions only where it may be running.
_OF_AGENT: Final = re.compile(r"(^|_)agent_(status|state|phase|lifecycle)$")
_SHARED: Final = 4
"""States that two enums share, for the one to be a copy of the other."""


def judge(tree: Tree, info: ClassInfo) -> Role | None:
    """Say whether an enum lists the states of executions once more."""
    fact = info.fact
    named = {member: member if member in WORDS else member.rpartition("_")[2] for member in fact.members}
    words = {word for word in named.values() if word in WORDS}
    if len(words) < 2 or not (words & OPEN_WORDS and words & _OUTCOMES):  # noqa: PLR2004
        return None
    is_enum = any(ENUM_BASE.search(base) for base in fact.bases)
    if not is_enum and not (set(fact.members) == words and not fact.methods):
        return None
    name = snake(info.name)
    noun, state = RUN_NOUN.search(name) is not None, _STATE.search(name) is not None
    bare = state and name.count("_") == 0
    sure = noun and state and not _OF_AGENT.search(name)
    shown = sum(word in WORDS for word in named.values())
    if (_FOREIGN.search(name) and not sure) or (_OF_AGENT.search(name) and not words & _RUNS):
        return None
    evidence = {"members": f"lists {', '.join(sorted(words)[:4])}"}
    if len(words) >= (2 if sure else 3) and shown * (8 if sure else 5) >= len(fact.members) * 2:
        if state and (noun or (bare and words & ACTIVE_WORDS) or words & _RUNS):
            evidence["name"] = "is called like the state of something that runs"
        users = [
            other.name for other in info.module.classes.values() if _speaks(other) and _uses(other, info.name)
        ]
        if users:
            evidence["use"] = f"is the type of a field of {users[0]}"
    if len(evidence) == 1 and is_enum and len(words) >= _SHARED:
        for other, role in tree.of("enum"):
            shared = words & set(role.keeps)
            if len(shared) >= _SHARED and len(shared) * 2 > len(fact.members):
                evidence["overlap"] = f"shares {', '.join(sorted(shared)[:4])} with {other.name}"
                break
    return Role("enum", evidence, tuple(sorted(words))) if len(evidence) > 1 else None


def _speaks(info: ClassInfo) -> bool:
    return says(RUN_NOUN, info.name)


def _uses(info: ClassInfo, name: str) -> bool:
    return any(name in re.findall(r"\w+", note) for note in info.fact.fields.values() if note)


RULE: Final = Rule(
    code="FSM010",
    title="a second enum of execution states",
    severity="warning",
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
    role="enum",
    judge=judge,
    says="a second enum of execution states",
)
