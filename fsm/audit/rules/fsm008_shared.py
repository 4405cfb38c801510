"""FSM008: mutable state at module or class level, shared between users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.facts import Box
from fsm.audit.model import Finding
from fsm.audit.names import snake
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule

CODE: Final = "FSM008"
# What belongs to one user or one run; a registry of plugins or a cache of constants does not.
_PERSONAL: Final = re.compile(
    r"(^|_)(executions?|execs|runs|sessions|users|agents?_(states?|status|runs?)|run_(states?|records?|contexts?)"
    r"|conversations|requests|jobs|user_(contexts?|states?|data))(_by_\w+|_map|_registry|_store|_cache|_dict)?$"
    r"|(^|_)(executions?|runs?|agents?)_(states?|records?|registry|contexts?|tracker|info|data|store|map|phases?|status)"
)
# What these keep alive serves the process, not a user.
_SERVICE: Final = re.compile(
    r"(^|_)(locks?|semaphores?|pools?|background_tasks|tasks_refs?|task_refs|factory|factories|handlers?|hooks?|events?)$"
)
_KEY: Final = re.compile(
    r"(^|_)(execution|exec|run|session|user|thread|agent|task|request|conversation|job)_?(id|uuid|key)$"
)


def find(tree: Tree) -> Iterator[Finding]:
    """Report containers of executions that all users of a process share."""
    for module in tree.modules:
        for box in module.facts.boxes:
            if is_personal(box):
                message = f"{box.name!r} is mutable state at module level: all users of the process share it"
                yield Finding(module.source.shown, box.line, 1, CODE, message, end_line=box.end)
        for fact in module.facts.classes:
            for box in fact.boxes:
                if box.shared and (box.inserts or box.removes) and is_personal(box):
                    message = f"{fact.name}.{box.name} is mutable state at class level: all objects and users share it"
                    yield Finding(
                        module.source.shown, box.line, 1, CODE, message, fact.qualname, end_line=box.end
                    )


def is_personal(box: Box) -> bool:
    """Say whether a container, by its name or by a key that is used on it, belongs to users or runs."""
    word = snake(box.name)
    if _SERVICE.search(word):
        return False
    return _PERSONAL.search(word) is not None or any(_KEY.search(key) for key in box.changed)


RULE: Final = Rule(
    code=CODE,
    title="mutable state shared between users",
    severity="warning",
    why="State at module or class level is one for all users: one user's run shows up for another.",
    hint="Keep executions in the registry and narrow it with tracker.for_user(user_id).",
    bad="""
        _active_executions = {}

        def begin(execution_id, record):
            _active_executions[execution_id] = record
    """,
    good="""
        from fsm import get_tracker

        def running(user):
            return get_tracker().for_user(user).find(category="running")
    """,
    find=find,
)
