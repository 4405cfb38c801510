"""FSM003 and FSM005: classes that keep executions, or drive them, beside the registry."""

from __future__ import annotations

import ast
import fnmatch
import re
from typing import Final

from fsm.audit.model import Owner
from fsm.audit.rules.containers import own_attribute, stores
from fsm.audit.rules.context import FileContext
from fsm.audit.rules.lifecycle import state_word
from fsm.audit.rules.profile import ClassProfile
from fsm.audit.scopes import FunctionNode, Scope, last_name

TRACKER: Final = "FSM003"
ENGINE: Final = "FSM005"
_DRIVES: Final = re.compile(r"^(a?run|a?execute|process|drive|launch|a?invoke|orchestrate)(_|$)")
# These verbs drive executions only in a class that is called an engine; elsewhere they start anything.
_STARTS: Final = re.compile(r"^(start|submit|spawn|dispatch|call|handle|__call__)(_|$)")
_WORK: Final = {
    "execute",
    "run",
    "arun",
    "invoke",
    "ainvoke",
    "aexecute",
    "astream",
    "process",
    "step",
    "act",
} | {
    "create_task",
    "ensure_future",
    "wait_for",
    "gather",
    "run_in_executor",
    "run_agent",
    "execute_agent",
    "run_once",
    "to_thread",
    "execute_with_retry",
}
_WORK_VERB: Final = re.compile(r"^_*(a?run|a?execute|a?invoke)_")
_ENGINE_NAME: Final = re.compile(
    r"(Engine|Executor|Orchestrator|Runner|Supervisor|Dispatcher|Worker|ExecutionManager|ExecutionCore)$"
)
_RUN_STATE: Final = re.compile(
    r"(^|_)(active|current|running|in_flight|inflight|pending|completed|finished)_(runs?|executions?|agents?|tasks?)"
    r"|(^|_)(run|execution)s?_(history|state|states|status|log|stats|results?|records?|queue|tasks?|registry|map)$"
    r"|^_*(runs|executions|in_flight|inflight)$"
)


def check(context: FileContext) -> None:
    """Report classes that are a second tracker or a second engine.

    Args:
        context: The file.
    """
    for profile in context.profiles():
        name = f"{context.source.module}.{profile.scope.qualname}"
        if not matches_name(name, context.config.tracker_patterns):
            _tracker(context, profile, name)
        if not matches_name(name, context.config.engine_patterns):
            _engine(context, profile, name)


def matches_name(name: str, patterns: list[str]) -> bool:
    """Say whether a class is one of those that a configuration names.

    Args:
        name: The dotted name of the class.
        patterns: Names, with or without their module, with ``*`` as a wildcard.

    Returns:
        True when one of them matches.
    """
    return any(
        fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")
        for pattern in patterns
    )


def _tracker(context: FileContext, profile: ClassProfile, name: str) -> None:
    registries = profile.registries()
    # A method that also drives agents makes an engine, which is reported as such.
    setters = profile.setters - {method.name for method in profile.methods if _drives(method, profile)}
    if not registries or not setters:
        return
    if not any(_takes_or_gives_id(method, profile) for method in profile.methods):
        return
    kept = sorted(keeping.name for keeping in registries)
    message = (
        f"{profile.name} is a second tracker: it keeps executions in {', '.join(kept)} "
        f"and sets their state in {', '.join(sorted(setters)[:3])}"
    )
    context.report(TRACKER, profile.scope.node, message, profile.scope, span=profile.scope.node.body[0])  # type: ignore[attr-defined] # a class has a body
    context.owners.append(
        Owner(name, context.source.shown, profile.scope.node.lineno, "tracker", tuple(kept))  # type: ignore[attr-defined] # a class has a line
    )


def _takes_or_gives_id(method: Scope, profile: ClassProfile) -> bool:
    node = method.node
    if not isinstance(node, FunctionNode):
        return False
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if any(_is_key(parameter.arg, profile) for parameter in parameters):
        return True
    return any(result.value is not None and profile.is_id(result.value) for result in method.of(ast.Return))


def _is_key(name: str, profile: ClassProfile) -> bool:
    # A tracker of agents is keyed by agents; what it keeps has been established by then.
    return profile.context.id_names(name) or name.endswith("_id") or name in {"execution", "run", "record"}


def _engine(context: FileContext, profile: ClassProfile, name: str) -> None:
    drivers = [method for method in profile.methods if _drives(method, profile)]
    if not drivers:
        return
    kept = _run_state(profile)
    if not kept:
        return
    message = (
        f"{profile.name} is a second engine: {drivers[0].name}() drives executions "
        f"and keeps run state of its own in {', '.join(kept)}"
    )
    context.report(ENGINE, profile.scope.node, message, profile.scope, span=profile.scope.node.body[0])  # type: ignore[attr-defined] # a class has a body
    context.owners.append(
        Owner(name, context.source.shown, profile.scope.node.lineno, "engine", tuple(kept))  # type: ignore[attr-defined] # a class has a line
    )


def _drives(method: Scope, profile: ClassProfile) -> bool:
    engine = _ENGINE_NAME.search(profile.name)
    name = method.name.lstrip("_") if engine else method.name
    if not _DRIVES.match(name) and not (engine and _STARTS.match(name)):
        return False
    if engine and isinstance(method.node, ast.AsyncFunctionDef):
        # What a coroutine of an engine awaits may go by any name, such as handler(…).
        return True
    for call in method.of(ast.Call):
        name = last_name(call.func)
        if name in _WORK or _WORK_VERB.match(name):
            return True
    return False


def _run_state(profile: ClassProfile) -> list[str]:
    """List the attributes in which a class keeps what runs, and changes it as it goes."""
    kept = {
        keeping.name
        for keeping in profile.keepings.values()
        if keeping.mutated
        and (_RUN_STATE.search(keeping.name) or (keeping.mapping and profile.keeps_runs(keeping)))
    }
    kept.update(_own_states(profile))
    return sorted(kept)


def _own_states(profile: ClassProfile) -> set[str]:
    """Find a state attribute of the object itself that goes through several lifecycle words."""
    words: dict[str, set[str]] = {}
    for method in profile.methods:
        for target, value in stores(method):
            name = own_attribute(target)
            word = state_word(value)
            if name.lstrip("_") in profile.context.config.state_names and word:
                words.setdefault(name, set()).add(word)
    enough = 2 if _ENGINE_NAME.search(profile.name) else 3
    return {name for name, seen in words.items() if len(seen) >= enough}
