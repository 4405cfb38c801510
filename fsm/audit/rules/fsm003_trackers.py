"""FSM003: a second tracker."""

from __future__ import annotations

import re
from typing import Final

from fsm.audit.lifecycle import ENGINE_DRIVES, is_state_name
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.names import snake
from fsm.audit.roles import RUN, Tree, says
from fsm.audit.rule import Rule

_NAME: Final = re.compile(
    rf"(^|_)({RUN}|phase|state|status|lifecycle|progress|timeout|deadline|heartbeat|death|liveness)_(\w+_)?"
    r"(tracker|monitor|ledger|keeper|detector|state_machine|bookkeeper)$"
    # A registry of agents or tools holds what may run; one of executions holds what runs.
    r"|(^|_)(executions?|runs?|tasks?|jobs?|subagents?|attempts?|futures)_(\w+_)?registry$"
    rf"|(^|_)({RUN}|phase|state|status|lifecycle|timeout|process)_(\w+_)?(manager|store|coordinator|supervisor|table|backend)$"
    r"|^(tracker|state_tracker|state_manager)$|(^|_)(task|job)_queue_(service|manager)$|(^|_)(execution|run)_(service|manager)$"
)
_AGENT: Final = re.compile(r"(^|_)(agent|tool|assistant|chain|llm|model)$")
_BEGINS: Final = re.compile(
    r"^_*(start|begin|register|add|create|track|open|submit|enqueue|launch|schedule|acquire|record|set|put|new|init|spawn|enter)(_|$)"
)
_ENDS: Final = re.compile(
    r"^_*(complete|finish|end|fail|cancel|remove|unregister|delete|stop|close|abort|release|kill|untrack|mark|terminate|done|expire"
    r"|cleanup|clean_up|on_(success|failure|error|complete|end|finish|done)|discard|pop|success|timeout|interrupt)(_|$)"
)
_HANDLES: Final = re.compile(
    r"^_*(set|update|save|get|load|reset|transition|advance|change)_(\w+_)?(state|status|phase)(_|$)"
)
_STORES: Final = re.compile(
    r"(^|_)(redis|connection|conn|client|store|storage|cache|db|backend|session|pool|collection)\."
    r"(hset|hmset|hdel|zadd|zrem|sadd|srem|setex|set|delete|expire|[lr]push|add|merge|insert_one|update_one|delete_one|execute)$"
)
_ONE: Final = {"execution", "run", "record", "job", "task"}


def judge(tree: Tree, info: ClassInfo) -> Role | None:  # noqa: C901, PLR0911, PLR0912, PLR0915 # a branch per family
    """Say whether a class keeps executions beside the registry."""
    if (inherited := tree.inherited(info, "tracker")) is not None:
        return inherited
    fact, near = info.fact, info.module
    named = says(_NAME, info.name)
    engine = "engine" in info.roles or says(_AGENT, info.name)
    if not fact.methods or "record" in info.roles or (engine and not named):
        return None
    why = {b.name: tree.keeps_runs(b, near) for b in fact.boxes if b.inserts or b.removes or b.mapping}
    kept = [box for box in fact.boxes if why.get(box.name)]
    mappings = [box for box in kept if box.mapping]
    if (
        not kept
        and not named
        and not fact.parts
        and not any("redis" in part or "conn" in part for part in fact.fields)
    ):
        # Most classes: nothing below could give a role to what keeps nothing and hands nothing on.
        return None
    setters = [
        m.name for m in fact.methods if m.sets_state and not (ENGINE_DRIVES.match(m.name) and m.drives)
    ]
    runs = [m for m in fact.methods if tree.takes_run(m)]
    begins = [m.name for m in runs if not m.name.startswith("__") and _BEGINS.match(m.name)]
    ends = [m.name for m in runs if _ENDS.match(m.name)]
    evidence: dict[str, str] = {}
    if kept:
        evidence["keeps"] = f"keeps executions in {', '.join(sorted(b.name for b in kept)[:3])}"
    if setters:
        evidence["states"] = f"sets their state in {', '.join(sorted(setters)[:3])}"
    if begins and ends:
        evidence["methods"] = f"begins them in {begins[0]} and ends them in {ends[0]}"
    held = [b for b in kept if b.inserts and b.removes and (why[b.name] == "key" or b.mapping)]
    if held:
        evidence["membership"] = f"an id that is in {held[0].name} is running"
    if any("time" in b.values for b in kept) or (fact.clocks and fact.compared):
        evidence["time"] = "judges them by a clock of its own"
    if named:
        evidence["name"] = "is called like a tracker"
    keeps = tuple(sorted(b.name for b in kept))
    certain = any(why[b.name] != "name" for b in mappings) or any(why[b.name] == "key" for b in held)
    # What is kept has been established by then, so any id will do.
    takes = bool(runs) or any(p.endswith("_id") or p in _ONE for m in fact.methods for p in m.params)
    if mappings and setters and takes and (certain or named or any(b.inserts for b in mappings)):
        return Role("tracker", evidence, keeps)
    if held and certain and takes and evidence.keys() & {"methods", "name", "time"}:
        return Role("tracker", evidence, keeps)
    if named and kept and (begins or ends) and len(evidence) >= 3:  # noqa: PLR2004
        return Role("tracker", evidence, keeps)
    if engine:
        return None
    own = [a for a, words in fact.states.items() if len(words) >= 2 and a[-1] != ")"]  # noqa: PLR2004
    handled = [m.name for m in fact.methods if _HANDLES.match(m.name)]
    kept_state = [name for name in fact.fields if is_state_name(snake(name), tree.config.state_names)]
    if named and (own or (setters and begins and ends) or (kept_state and len(handled) > 1)):
        goes = ", ".join(own or setters[:1] or kept_state)
        evidence.setdefault("states", f"goes through states in {goes}")
        return Role("tracker", evidence, keeps or tuple(own or kept_state))
    stored = sorted({call for m in runs for call in m.forwards if _STORES.search(call)})
    if begins and ends and len(stored) > 1 and (named or says(_REGISTRY, info.name)):
        evidence["store"] = f"keeps them with {stored[0]}"
        evidence["name"] = "is called like a tracker"
        return Role("tracker", evidence, ())
    parts = {a: p for a, p in tree.parts(info, "tracker").items() if p[1]}
    forwarded = [m.name for m in fact.methods if any(c.partition(".")[0] in parts for c in m.forwards)]
    if parts and (named or (begins and ends)) and len(forwarded) > 1:
        part, (of, _) = next(iter(parts.items()))
        evidence["parts"] = f"constructs {of} as {part}"
        evidence["delegation"] = f"hands {', '.join(forwarded[:3])} on to it"
        return Role("tracker", evidence, (part,))
    return None


_REGISTRY: Final = re.compile(r"(registry|tracker|store|repository|backend)$")


RULE: Final = Rule(
    code="FSM003",
    title="a second tracker",
    severity="error",
    why="A class that keeps executions and states for itself drifts from the registry at once.",
    hint="Keep no executions: read them with get_tracker().find(…), and follow them with tracker.subscribe(…).",
    bad="""
        class RunBook:
            def __init__(self):
                self._executions = {}

            def begin(self, execution_id):
                self._executions[execution_id] = {"status": "running"}

            def set_state(self, execution_id, state):
                self._executions[execution_id]["status"] = state
    """,
    good="""
        from fsm import get_tracker

        class RunView:
            def running(self):
                return get_tracker().find(category="running")
    """,
    replaces="a status enum, a phase tracker",
    role="tracker",
    judge=judge,
    says="a second tracker",
)
