"""FSM005: a second engine."""

from __future__ import annotations

import re
from typing import Final

from fsm.audit.facts import ClassFact, Method
from fsm.audit.lifecycle import ENGINE_DRIVES
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.names import snake
from fsm.audit.roles import RUN, RUN_NOUN, Tree, says
from fsm.audit.rule import Rule

_NAME: Final = re.compile(
    r"(engine|executor|orchestrator|runner|dispatcher|scheduler|supervisor|execution_manager|execution_core|launcher|worker"
    r"|agent_loop|(engine|executor|orchestrator|runner|scheduler|dispatcher)_(adapter|wrapper|proxy|bridge|facade|delegate|service|server)|(agent|execution|workflow|task)_runtime|(agent|task|work|run|execution)_controller"
    r"|(worker|process|run)_manager|scheduler_loop|(agent|task|job)_consumer|execution_service)$"
)
_FOREIGN: Final = re.compile(
    r"(^|_)(database|db|sql|query|rules?|templates?|search|storage|render(er)?|physics|game|browser|tts|speech|inference|vllm|ocr"
    r"|policy|recommendation|benchmark|migration|commands?|command_line|cmd|cmd_line|shell|http|web|python|bash|notebook|doc|qt"
    r"|lint|regex|dialog|audio|video|image|chat|memory|index|retrieval|embedding|connection|thread_pool|process_pool|jinja)_"
)
# These run something else than executions, unless they keep the state of runs.
_ASIDE: Final = re.compile(
    r"(^|_)(nlp|ml|decision|tools?|hooks?|eval(uation)?|test|cleanup|validation|discovery|analysis|security|permissions?|threat"
    r"|detection|expression|condition(al)?|sandbox(ed)?|code|notification|error|consistency|reward|thinking|failure|learning|ranking|scoring)_"
)
# A runner of jobs submits them to a cluster, which keeps their state.
_CLUSTER: Final = re.compile(r"(^|_)jobs?_runner$|(^|_)(docker|kubernetes|ssh|local|remote|shell|script)_")
_POOL: Final = re.compile(r"(ThreadPoolExecutor|ProcessPoolExecutor|(^|\.)(cf|futures|_base)\.Executor)$")
_AGENT: Final = re.compile(r"(^|_)(agent|tool|assistant|chain|llm|model)$")
# These verbs drive executions only in a class that is called an engine; elsewhere they start anything.
_STARTS: Final = re.compile(
    r"^_*(start|submit|spawn|dispatch|call|handle|__call__|schedule|main_loop|work|queue|fork|a?stream)(_|$)"
)
_RUNS: Final = re.compile(rf"_{RUN}(_|$)")
_SURE: Final = re.compile(
    r"^_*(a?run|a?execute|drive|launch|a?invoke|orchestrate|kickoff|loop|perform|submit|dispatch|schedule|spawn|start|a?stream"
    r"|main_loop)(_|$)"
)
_AGENTS: Final = re.compile(
    r"^_*\w{0,40}(agents?|workflow|flow|crew|chain|pipeline)\.(a?run|execute|a?invoke|a?stream|step|kickoff|start|process)"
)
_STOPS: Final = re.compile(r"^_*(a?stop|shutdown|shut_down|terminate|kill|close|drain|request_stop)(_|$)")
_QUERY: Final = re.compile(r"^_*execute_(query|sql|statement|many|script|code|command|one|raw|read|write)")
_RUN_STATE: Final = re.compile(
    r"(^|_)(active|current|running|in_flight|inflight|pending|completed|finished)_(runs?|executions?|agents?|tasks?|jobs?)"
    r"|(^|_)(run|execution)s?_(history|state|states|status|log|stats|results?|records?|queue|tasks?|registry|map)$"
    r"|^_*(runs|executions|in_flight|inflight|workers|futures|queued_tasks|running)$"
    rf"|^_*(active|running|in_flight|inflight|submitting|executing)_(\w+_)?({RUN}|futures|workers|ids)(_\w+)?$"
)
_NOW: Final = re.compile(r"^_*(active|running|in_flight|inflight|submitting|executing)_\w+$")
_OTHER: Final = re.compile(
    r"(connections?|containers?|sessions?|streams?|files?|users?|alerts?|filters?|clients?|websockets?)$"
)
_COUNTS: Final = re.compile(
    r"(^|_)(total|active|successful|success|succeeded|failed|failure|completed|running|pending|cancelled|timed_out|started|error)"
    rf"s?_({RUN}|requests?|count|counter)$|^_*(n_|num_)?(rounds|turns|iterations|stalls)$|^_*({RUN})_(count|total|started|completed|failed|succeeded|executed|run|processed)$"
)
_WORKED: Final = re.compile(
    rf"(^|_)({RUN}|nodes?|stages?|plans?|levels?|batch(es)?|ready|runnable|queue\w*|workers?)(_|$)|^queue:"
)
_BUSY: Final = 3


def judge(tree: Tree, info: ClassInfo) -> Role | None:  # noqa: C901, PLR0911, PLR0912, PLR0915 # a branch per family
    """Say whether a class drives executions beside the engine."""
    if (inherited := tree.inherited(info, "engine")) is not None:
        return inherited
    fact, near = info.fact, info.module
    name = snake(info.name)
    if (
        not fact.methods
        or "record" in info.roles
        or _AGENT.search(name)
        or any(map(_POOL.search, fact.bases))
    ):
        # What is driven is no engine: an agent has a state, and is asked to run.
        return None
    named = says(_NAME, name) and not says(_FOREIGN, name)
    aside = says(_ASIDE, name)
    kinds = (_RUN_STATE, _NOW) if named and not aside else (_RUN_STATE,)
    states = [b.name for b in fact.boxes if any(says(k, b.name) for k in kinds) and not says(_OTHER, b.name)]
    drivers = [m for m in fact.methods if _drives(m, named=named)]
    if named and not drivers and states:
        # Where the name and what is kept say so, the work may be done by what is handed on.
        drivers = [
            m for m in fact.methods if ENGINE_DRIVES.match(m.name.lstrip("_")) or _STARTS.match(m.name)
        ]
    if not drivers:
        return _base_of_engines(tree, info) if named else None
    changed = [b for b in fact.boxes if b.inserts or b.removes]
    kept = [b.name for b in changed if b.name in states or (b.mapping and tree.keeps_runs(b, near))]
    known = tree.config.state_names
    own = [a for a, w in fact.states.items() if len(w) >= (2 if named else 3) and a.strip("_") in known]
    told = {a: w for a, w in fact.states.items() if a.endswith(")") and len(w) > 1}
    counted = [c for c in fact.counters if says(_COUNTS, c)]
    evidence = {"drives": f"{drivers[0].name}() drives executions"}
    if kept or own:
        evidence["keeps"] = f"keeps run state of its own in {', '.join(sorted({*kept, *own})[:4])}"
    if named:
        evidence["name"] = "is called like an engine"
    if counted:
        evidence["counters"] = f"counts them in {', '.join(sorted(counted)[:3])}"
    parts = tree.parts(info, "engine")
    wrapped = [d for d in drivers if any(c.partition(".")[0] in parts for c in d.forwards)]
    if told:
        evidence["tells"] = (
            f"says with {next(iter(told))} that they are {' or '.join(next(iter(told.values()))[:2])}"
        )
    if wrapped:
        part = next(iter(parts))
        evidence["parts"] = f"wraps {parts[part][0]} as {part}"
    noun = RUN_NOUN.search(name) is not None
    speaks = noun or any(tree.takes_run(d) or _of_runs(d) for d in drivers)
    certain = any(tree.keeps_runs(b, near) in {"key", "value"} for b in changed if b.name in kept)
    if (kept or own) and (named or (speaks and certain) or any(k in states for k in kept) or own):
        return Role("engine", evidence, tuple(sorted({*kept, *own})))
    if not named:
        return None
    if aside and not counted:
        return None
    if counted or (wrapped and any(made for _, made in parts.values())):
        return Role("engine", evidence, tuple(sorted(counted)) or tuple(parts))
    if _CLUSTER.search(name) or _only_forwards(fact, drivers):
        return None
    worked = sorted({work for m in fact.methods for work in m.works if _WORKED.search(work)})
    if worked:
        evidence["works"] = f"works through {worked[0].removeprefix('queue:') or 'a queue'}"
    asked = sorted({call for m in fact.methods for call in m.forwards if _AGENTS.match(call)})
    if asked:
        evidence["agents"] = f"asks {asked[0]}"
    stops = [m.name for m in fact.methods if _STOPS.match(m.name)]
    if stops and any(m.name.lstrip("_") in {"start", "run", "serve", "main_loop", "loop"} for m in drivers):
        evidence["lives"] = f"runs until {stops[0]}()"
    drivers = [m for m in drivers if _SURE.match(m.name) or says(_RUNS, m.name)]
    speaks = speaks and bool(drivers)
    if stops and any(m.name == "submit" for m in drivers):
        evidence["contract"] = f"takes work in submit() until {stops[0]}()"
    setters = [m.name for m in fact.methods if m.sets_state]
    if noun and len(setters) > 1:
        evidence["states"] = f"sets their state in {', '.join(setters[:3])}"
    busy = any(m.drives or m.is_async for m in drivers) and sum(m.calls for m in fact.methods) >= _BUSY * 2
    if speaks and busy:
        evidence["run"] = "what it drives is called an execution, a task, an agent or the like"
    return (
        Role("engine", evidence, ())
        if evidence.keys() & {"works", "run", "tells", "contract", "states", "agents"}
        else None
    )


def _base_of_engines(tree: Tree, info: ClassInfo) -> Role | None:
    """Judge a class that leaves the driving to those that inherit it, and keeps what they share."""
    heirs = tree.heirs(info)
    engines = [other.name for other in heirs if "engine" in other.roles]
    shares = sum(method.calls > 0 for method in info.fact.methods) >= _BUSY
    if not shares or len(engines) * 2 <= len(heirs):
        return None
    evidence = {
        "name": "is called like an engine",
        "derived": f"is what {engines[0]} rests on, which is an engine",
    }
    return Role("engine", evidence, ())


def _of_runs(driver: Method) -> bool:
    return says(_RUNS, driver.name) or any(says(RUN_NOUN, p) for p in driver.params)


def _only_forwards(fact: ClassFact, drivers: list[Method]) -> bool:
    """Say whether a class hands what it is asked on to one part that it was given."""
    given = {call.partition(".")[0] for m in drivers for call in m.forwards}
    return bool(given) and all(len(m.forwards) == m.calls for m in drivers) and not given & fact.parts.keys()


def _drives(method: Method, *, named: bool) -> bool:
    name = method.name.lstrip("_") if named else method.name
    if _QUERY.match(name) or not (ENGINE_DRIVES.match(name) or (named and _STARTS.match(name))):
        return False
    stages = method.calls >= _BUSY and says(_RUNS, name)
    return method.drives or (named and method.is_async) or (ENGINE_DRIVES.match(name) is not None and stages)


RULE: Final = Rule(
    code="FSM005",
    title="a second engine",
    severity="warning",
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
    role="engine",
    judge=judge,
    says="a second engine",
)
