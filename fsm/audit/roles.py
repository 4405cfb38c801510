"""Which classes are trackers, engines, breakers, records and enums of states: a fixpoint over the class graph.

A role needs two independent families of evidence: what a class is called says little, and what it keeps says little,
but both together say much. Each role is judged by the rule that reports it; a class that inherits, wraps or keeps what
has a role is judged again until nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Final

from fsm.audit.config import AuditConfig, matches_name
from fsm.audit.facts import Box, ClassFact, Method
from fsm.audit.limits import LONGEST_NAME, ROUNDS
from fsm.audit.model import Construction
from fsm.audit.modules import UNKNOWN, ClassInfo, Linker, Module, Role
from fsm.audit.names import IdNames, is_double_name, snake
from fsm.audit.protection import Protection

RUN: Final = (
    r"(executions?|execs?|runs?|tasks?|jobs?|workflows?|flows?|agents?|tool_calls?|attempts?|invocations?|operations?|dags?"
    r"|actions?|triggers?|steps?|pipelines?|crews?|sagas?|activities|activity|work_items?|subagents?)"
)
RUN_NOUN: Final = re.compile(rf"(^|_){RUN}(_|$)")
# The id of a workflow, an action or a trigger is mostly that of a definition, not of a run of it.
_RUN_ID: Final = re.compile(
    r"(^|_)(execution|exec|run|task|job|tool_call|attempt|invocation|activity|work_item|subagent)_?(id|uuid|key|pk)s?$"
)
_WIDE_ID: Final = re.compile(
    rf"(^|_)({RUN}|request|worker|session|process|conversation|thread)(_?(id|uuid|key|pk|name)s?)?$"
)
_PLURAL: Final = re.compile(
    r"(^|_)(executions|execs|runs|tasks|jobs|attempts|invocations|futures|subagents)(_by_\w+|_map|_dict|_registry)?$"
    r"|(^|_)(active|running|live|pending|in_flight|inflight|current)_(agents|workflows|flows|operations|actions|steps|crews)$"
)
# These words speak of what serves executions, not of executions.
_SERVICE: Final = re.compile(
    r"(^|_)(caches?|locks?|factory|factories|events?|configs?|callbacks?|handlers?|listeners?|semaphores?|pools?|metrics?|stats"
    r"|statistics|analytics|counts?|counters?|times?|durations?|limits?|plans?|hooks?|results?|waiters?|types?|classes|class|names?"
    r"|logs?|schemas?|definitions?|templates?|options?|params?|settings?|outputs?|inputs?|messages?|functions?|tools?|aliases|deps?"
    r"|dependencies|dependents|prompts?|nodes?|edges?|keys?|groups?|subscribers?|queries|docs?|descriptions?|metadata|references?"
    r"|allocations?|reservations?|assignments?|assigned_\w+|mappings?|checkpoints?|checks?|patterns?|to_\w+|costs?|budgets?|scores?"
    r"|subscriptions?|connections?|clients?|websockets?|artifacts?|files?|errors?|registrations?|contexts?|resources?|instances?)$"
)
# An agent that is held may run; what runs is held as a run of it.
_HELD_RUN: Final = re.compile(
    r"(^|_)(executions?|execs?|runs?|tasks?|jobs?|attempts?|invocations?|operations?|steps?|workflows?|subagents?)(_|$)"
)
_CONTAINERS: Final = frozenset("Dict List Optional Any Union Set Callable ClassVar".split())
_TYPE_WORD: Final = re.compile(r"[A-Za-z_][\w.]*")
_VALUE_TYPE: Final = re.compile(
    r"\b\w{0,40}(Execution(?!Plan|Config|Lock|Factory|Error|Policy|Options)|ExecutionRecord|AgentRun(?!time|ner)|RunState"
    r"|RunRecord|RunContext|AgentState|AgentPhase|RunInfo)"
)
Judge = Callable[["Tree", ClassInfo], Role | None]
GROUPS: Final = (("enum",), ("record",), ("breaker", "engine", "tracker"))
"""The roles in the order in which they are judged: what is judged later asks for what was judged before."""
KEEPERS: Final = ("tracker", "engine", "breaker")


@lru_cache(maxsize=65_536)
def says(pattern: re.Pattern[str], name: str) -> bool:
    """Say whether a pattern is found in a name in snake case."""
    return pattern.search(snake(name[:LONGEST_NAME])) is not None


class Tree:
    """The classes of all files, and the role of each."""

    def __init__(self, modules: list[Module], config: AuditConfig, judges: Mapping[str, Judge]) -> None:
        self.modules = modules
        self.config = config
        self.linker = Linker(modules)
        self.id_names = IdNames(config.id_names)
        self._known: dict[tuple[str, str], ClassInfo | None] = {}
        self._bases: dict[str, list[ClassInfo]] = {}
        self.classes = [
            info
            for module in modules
            if not module.source.is_test
            for info in module.classes.values()
            if not is_double_name(info.name) and not info.fact.qualname.startswith("Test")
        ]
        self._settle(judges)

    def _settle(self, judges: Mapping[str, Judge]) -> None:
        for group in GROUPS:
            waiting = self.classes
            for _ in range(ROUNDS):
                changed = [info for info in waiting for kind in group if self._give(info, kind, judges[kind])]
                if not changed:
                    break
                # What hangs on no other class has been judged for good.
                waiting = [info for info in waiting if len(group) == 1 or self._hangs(info)]

    def _hangs(self, info: ClassInfo) -> bool:
        """Say whether a class inherits, constructs or asks another class of the tree."""
        fact, near = info.fact, info.module
        if (
            self.bases(info)
            or self.heirs(info)
            or any(self.resolve(s, near) for found in fact.parts.values() for s in found)
        ):
            return True
        notes = {fact.fields.get(c.partition(".")[0], "") for m in fact.methods for c in m.forwards}
        return any(self.typed(note, near) for note in {*notes, *(box.note for box in fact.boxes)} if note)

    def _give(self, info: ClassInfo, kind: str, judge: Judge) -> bool:
        if kind in info.roles or matches_name(info.symbol, self.config.exempt(kind)):
            return False
        role = judge(self, info)
        if role is not None:
            info.roles[kind] = role
        return role is not None

    def of(self, *kinds: str) -> Iterator[tuple[ClassInfo, Role]]:
        """Give the classes that have one of some roles."""
        return ((info, info.roles[kind]) for info in self.classes for kind in kinds if kind in info.roles)

    # The graph.

    def resolve(self, symbol: str, near: Module) -> ClassInfo | None:
        """Find the class of the tree that a symbol stands for."""
        if symbol.startswith(UNKNOWN):
            return None
        key = (symbol, near.name)
        if key not in self._known:
            self._known[key] = self.linker.resolve(symbol, near).info
        return self._known[key]

    def typed(self, note: str, near: Module) -> ClassInfo | None:
        """Find the first class of the tree that a declared type mentions."""
        for word in _TYPE_WORD.findall(note)[:4]:
            last = word.rpartition(".")[2]
            if last[:1].isupper() and last not in _CONTAINERS:
                info = near.classes.get(word) or self.resolve(f"{near.name}.{word}", near)
                if info is not None:
                    return info
        return None

    def bases(self, info: ClassInfo) -> list[ClassInfo]:
        """Give the bases of a class that the tree defines."""
        if info.symbol not in self._bases:
            found = [self.resolve(symbol, info.module) for symbol in self.linker.bases_of(info)]
            self._bases[info.symbol] = [base for base in found if base is not None and base is not info]
        return self._bases[info.symbol]

    def heirs(self, info: ClassInfo) -> list[ClassInfo]:
        """Give the classes that inherit a class directly."""
        return self._heirs.get(info.symbol, [])

    @cached_property
    def _heirs(self) -> dict[str, list[ClassInfo]]:
        heirs: dict[str, list[ClassInfo]] = {}
        for info in self.classes:
            for base in self.bases(info):
                heirs.setdefault(base.symbol, []).append(info)
        return heirs

    def inherited(self, info: ClassInfo, kind: str) -> Role | None:
        """Give the role that a class has since one of its bases has it."""
        for base in self.bases(info):
            if kind in base.roles and "derived" not in base.roles[kind].evidence:
                evidence = {"bases": f"inherits what {base.name} keeps", "base": f"{base.name} is a {kind}"}
                return Role(kind, evidence, base.roles[kind].keeps)
        return None

    def parts(self, info: ClassInfo, kind: str) -> dict[str, tuple[str, bool]]:
        """Find the parts that have a role: the class of each, and whether it is constructed here."""
        found: dict[str, tuple[str, bool]] = {}
        for attribute, symbols in info.fact.parts.items():
            for symbol in symbols:
                held = self.resolve(symbol, info.module)
                last = symbol.rpartition(".")[2]
                outside = held is None and kind == "tracker" and last in self.config.protected
                if (held is not None and held is not info and kind in held.roles) or outside:
                    found[attribute] = (last, True)
        forwarded = {call.partition(".")[0] for method in info.fact.methods for call in method.forwards}
        for attribute in sorted(forwarded - found.keys()):
            held = self.typed(info.fact.fields.get(attribute, ""), info.module)
            if held is not None and held is not info and kind in held.roles:
                found[attribute] = (held.name, False)
        return found

    # What a class keeps.

    def is_run_id(self, word: str) -> bool:
        """Say whether a name is an id of an execution, a task, a job and the like."""
        return says(_RUN_ID, word) or self.id_names(word)

    def takes_run(self, method: Method) -> bool:
        """Say whether a method is handed, or returns, an id of a run or the run itself."""
        return any(self.is_run_id(p) or says(_WIDE_ID, p) for p in method.params) or any(
            map(self.is_run_id, method.gives)
        )

    def keeps_runs(self, box: Box, near: Module) -> str:
        """Say why a container keeps executions: ``key``, ``value``, ``name``, or nothing."""
        name = snake(box.name)
        if _SERVICE.search(name):
            return ""
        if any(self.is_run_id(key) for key in box.keys):
            return "key"
        for kind in box.values:
            if kind.startswith("="):
                held = self.resolve(f"{near.name}.{kind[1:]}", near) or near.classes.get(kind[1:])
                if held is not None and ("record" in held.roles or says(_HELD_RUN, held.name)):
                    return "value"
        held = self.typed(box.note, near) if box.note else None
        if (held is not None and held.roles.keys() & {"record", "enum"}) or _VALUE_TYPE.search(box.note):
            return "value"
        words = set(name.split("_"))
        known = self.config.registry_words
        plural = words & {word for word in known if word.endswith("s")}
        mixed = words & {*known, "agent", "agents"} and words & {"state", "states", "status", "phases"}
        return "name" if plural or mixed or _PLURAL.search(name) else ""

    # What rules ask.

    def judged(self, kind: str) -> Iterator[ClassInfo]:
        """Give the classes that do not belong to the one registry."""
        return (i for i in self.classes if not matches_name(i.symbol, self.config.exempt(kind)))

    def speaks_of_runs(self, fact: ClassFact) -> bool:
        """Say whether a class is called after executions, tasks, agents and the like."""
        return says(RUN_NOUN, fact.name)

    @cached_property
    def constructions(self) -> list[Construction]:
        """Every construction of a class with a role, or protected by name, in the order of the files."""
        return list(self._constructions())

    def _constructions(self) -> Iterator[Construction]:
        protection = Protection(self.linker, self.config)
        for module in self.modules:
            seen: set[tuple[int, int]] = set()
            for symbol, rows in sorted(
                module.facts.calls.items(), key=lambda item: (item[1][0][:2], item[0])
            ):
                owner = protection.protected(symbol, module)
                for line, col, end, scope, how in rows if owner is not None else ():
                    if owner is None or (line, col) in seen:
                        continue
                    seen.add((line, col))
                    name, shown = protection.owner_name(owner), module.source.shown
                    allowed = protection.may_construct(scope, module, owner)
                    by = f"{module.name}.{scope}" if scope else module.name
                    yield Construction(name, by, shown, line, allowed, col, end, scope, how)
