"""Which classes are trackers, engines, breakers, records and enums of states: a fixpoint over the class graph.

A role needs two independent families of evidence: what a class is called says little, and what it keeps says little,
but both together say much. A class that inherits, wraps or keeps what has a role is judged again until nothing changes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fsm.audit.config import AuditConfig
from fsm.audit.context import IdNames
from fsm.audit.facts import Box, ClassFact, Method
from fsm.audit.lifecycle import ACTIVE_WORDS, ENDED_WORDS, OPEN_WORDS, WORDS, is_state_name
from fsm.audit.limits import LONGEST_NAME
from fsm.audit.model import Construction
from fsm.audit.modules import UNKNOWN, ClassInfo, Linker, Module, Role
from fsm.audit.names import is_double_name, snake
from fsm.audit.protection import Protection

ROUNDS: Final = 30
"""How often the class graph is judged again; a chain of more classes that wrap one another keeps its last ones."""
KEEPERS: Final = ("tracker", "engine", "breaker")
_RUN: Final = (
    r"(executions?|execs?|runs?|tasks?|jobs?|workflows?|flows?|agents?|tool_calls?|attempts?|invocations?|operations?|dags?"
    r"|commands?|actions?|triggers?|steps?|pipelines?|crews?|sagas?|activities|activity|work_items?|subagents?)"
)
# The id of a workflow, an action or a trigger is mostly that of a definition, not of a run of it.
_RUN_ID: Final = re.compile(
    r"(^|_)(execution|exec|run|task|job|tool_call|attempt|invocation|activity|work_item|subagent)_?(id|uuid|key|pk)s?$"
)
_WIDE_ID: Final = re.compile(
    rf"(^|_)({_RUN}|request|worker|session|process|conversation|thread)(_?(id|uuid|key|pk|name)s?)?$"
)
_RUN_NOUN: Final = re.compile(rf"(^|_){_RUN}(_|$)")
_PLURAL: Final = re.compile(
    r"(^|_)(executions|execs|runs|tasks|jobs|attempts|invocations|futures|subagents)(_by_\w+|_map|_dict|_registry)?$"
    r"|(^|_)(active|running|live|pending|in_flight|inflight|current)_(agents|workflows|flows|operations|commands|actions|steps|crews)$"
)
# These words speak of what serves executions, not of executions.
_SERVICE: Final = re.compile(
    r"(^|_)(caches?|locks?|factory|factories|events?|configs?|callbacks?|handlers?|listeners?|semaphores?|pools?|metrics?|stats"
    r"|counts?|counters?|times?|durations?|limits?|plans?|hooks?|results?|waiters?|types?|classes|class|names?|logs?|schemas?"
    r"|definitions?|templates?|options?|params?|settings?|outputs?|inputs?|messages?|functions?|tools?|aliases|deps?"
    r"|dependencies|dependents|prompts?|nodes?|edges?|keys?|groups?|subscribers?|queries|docs?|descriptions?)$"
)
_TRACKER_NAME: Final = re.compile(
    rf"(^|_)({_RUN}|phase|state|status|lifecycle|progress|timeout|deadline|heartbeat|death|liveness)_(\w+_)?"
    r"(tracker|monitor|ledger|keeper|detector|state_machine|bookkeeper)$"
    # A registry of agents or tools holds what may run; one of executions holds what runs.
    r"|(^|_)(executions?|runs?|tasks?|jobs?|subagents?|attempts?|futures)_(\w+_)?registry$"
    rf"|(^|_)({_RUN}|phase|state|status|lifecycle|timeout|process)_(\w+_)?(manager|store|coordinator|supervisor|table|backend)$"
    r"|^(tracker|state_tracker|state_manager)$|(^|_)(task|job|execution|run)_?(queue)?_?(service|manager)$"
)
_ENGINE_NAME: Final = re.compile(
    r"(engine|executor|orchestrator|runner|dispatcher|scheduler|supervisor|execution_manager|execution_core|launcher|worker"
    r"|agent_loop|executor_adapter|engine_adapter|engine_wrapper|engine_proxy|(agent|task|work|run|execution)_controller)$"
)
_FOREIGN_ENGINE: Final = re.compile(
    r"(^|_)(database|db|sql|query|rules?|templates?|search|storage|render(er)?|physics|game|browser|tts|speech|inference|vllm|ocr"
    r"|policy|recommendation|test|benchmark|migration|command_line|shell|http|web|code|python|bash|notebook|doc"
    r"|lint|regex|dialog|audio|video|image|chat|memory|index|retrieval|embedding|connection|thread_pool|process_pool|jinja)_"
)
_DRIVES: Final = re.compile(
    r"^(a?run|a?execute|process|drive|launch|a?invoke|orchestrate|kickoff|loop|perform)(_|$)"
)
# These verbs drive executions only in a class that is called an engine; elsewhere they start anything.
_STARTS: Final = re.compile(
    r"^_*(start|submit|spawn|dispatch|call|handle|__call__|schedule|main_loop|work|queue|fork)(_|$)"
)
_RUN_STATE: Final = re.compile(
    r"(^|_)(active|current|running|in_flight|inflight|pending|completed|finished)_(runs?|executions?|agents?|tasks?|jobs?)"
    r"|(^|_)(run|execution)s?_(history|state|states|status|log|stats|results?|records?|queue|tasks?|registry|map)$"
    r"|^_*(runs|executions|in_flight|inflight|workers|futures|queued_tasks|running)$"
    r"|^_*(active|running|in_flight|inflight|submitting|executing)_\w+$"
)
_COUNTS: Final = re.compile(
    r"(^|_)(total|active|successful|success|succeeded|failed|failure|completed|running|pending|cancelled|timed_out|started|error)"
    rf"s?_({_RUN}|requests?|count|counter)$|^_*(n_|num_)?(rounds|turns|iterations|stalls)$|^_*({_RUN})_(count|total|started|completed|failed|succeeded|executed|run|processed)$"
)
_BEGINS: Final = re.compile(
    r"^_*(start|begin|register|add|create|track|open|submit|enqueue|launch|schedule|acquire|record|set|put|new|init|spawn|enter)(_|$)"
)
_ENDS: Final = re.compile(
    r"^_*(complete|finish|end|fail|cancel|remove|unregister|delete|stop|close|abort|release|kill|untrack|mark|terminate|done|expire"
    r"|cleanup|clean_up|on_(success|failure|error|complete|end|finish|done)|discard|pop|success|timeout|interrupt)(_|$)"
)
_FAILURES: Final = re.compile(
    r"(failure|error|fail)s?_?(count|counter|total)?s?$|consecutive_(failures|errors)"
)
_OPENED: Final = re.compile(
    r"(circuit|breaker).*(open|state|tripped)|(open(ed)?|tripped)_(at|until|since)|last_failure|last_opened|(^|_)(is_)?half_open"
)
_THRESHOLD: Final = re.compile(r"threshold|max_fail|failure_limit|max_errors|fail_max")
_BREAKS: Final = re.compile(
    r"^_*(record_(failure|success)|on_(failure|success)|allow(_request|s)?|can_execute|(is_)?(open|closed|half_open)|trip|reset|call"
    r"|call_failed|call_succeeded|__a?enter__|__a?exit__|__call__|before_call|handle_(failure|success|error)|should_attempt_reset|protect|decorate)(_|$)"
)
_ENUM_BASE: Final = re.compile(r"(Enum|Choices|Flag)$")
_STATE_SUFFIX: Final = re.compile(r"(^|_)(state|status|phase|lifecycle|stage)(_\w+)?s?$")
_FOREIGN_STATE: Final = re.compile(
    r"(^|_)(orders?|payments?|invoices?|connections?|sockets?|http|health|circuit|breakers?|uploads?|downloads?|files?|tickets?|issues?"
    r"|emails?|messages?|subscriptions?|migrations?|imports?|exports?|deploy(ment)?s?|users?|accounts?|builds?|tests?|checks?|reviews?"
    r"|pull_requests?|containers?|pods?|servers?|services?|nodes?|hosts?|documents?|index(ing)?|events?|log|exit|return|response"
    r"|todo|plan|billing|shipment|transactions?|stream|player|game|device|cluster|sync|webhooks?|locks?|install|plugins?|span|sandbox(es)?|callbacks?|runtimes?)(_|$)"
)
_RECORD_NOT: Final = re.compile(
    r"(response|request|dto|event|message|schema|create|update|patch|config|configuration|options|params?|filter|filters|query|error"
    r"|exception|args|input|output|view|serializer|form|out|in|command|notification|payload|spec|settings|mixin|base|read|handler"
    r"|client|api|service|page|tool|provider|callback|plugin|parser|model|orm|test|metrics?|stats|statistics|summary|report"
    r"|manager|registry|store|tracker|monitor|engine|executor|runner|orchestrator|scheduler|worker|queue|agent|breaker|backend)s?$"
)
_MOMENT: Final = re.compile(
    r"(_at|_time|_ts|_date|timestamp|started|created|finished|ended|completed|updated|duration|deadline|elapsed|heartbeat)$|^(time|start|end)$"
)
_ORM: Final = re.compile(
    r"(^|\.)(Model|Base|SQLModel|Document|DeclarativeBase|DBBaseModel|ORMBase|BaseSchema|MongoModel)$"
)
_COLUMN: Final = re.compile(
    r"Column|Mapped|relationship|(Char|Text|Integer|DateTime|Foreign\w*|JSON|UUID|Boolean|String)(Field|Key)$"
)
_FACTORY: Final = re.compile(
    r"^_*(get|create|make|build|new|init|initialize|provide|configure|default|setup|ensure|obtain|spawn|for|from)(_|$)|_factory$|_provider$"
)
_TYPE_WORD: Final = re.compile(r"[A-Za-z_][\w.]*")


@lru_cache(maxsize=65_536)
def _says(pattern: re.Pattern[str], name: str) -> bool:
    return pattern.search(snake(name[:LONGEST_NAME])) is not None


def matches_name(name: str, patterns: list[str]) -> bool:
    """Say whether a dotted name is one of those that a configuration names, with or without their module."""
    return _any_of(tuple(patterns)).match(name) is not None


@lru_cache(maxsize=64)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    options = [fnmatch.translate(each) for p in patterns for each in (p, f"*.{p}")]
    return re.compile("|".join(options) or "(?!)")


_SHARED: Final = 4
"""States that two enums share, for the one to be a copy of the other."""
_RECORD_FAMILIES: Final = 4
"""Families that make a record: id and state are in half of all classes."""


class Tree:
    """The classes of all files, and the role of each."""

    def __init__(self, modules: list[Module], config: AuditConfig) -> None:
        self.modules = modules
        self.config = config
        self.linker = Linker(modules)
        self.id_names = IdNames(config.id_names)
        self._known: dict[tuple[str, str], ClassInfo | None] = {}
        self.classes = [
            info for m in modules if not m.source.is_test for info in m.classes.values() if self._plays(info)
        ]
        self._bases: dict[str, list[ClassInfo]] = {}
        self._made: list[Construction] | None = None
        self._settle()

    def _plays(self, info: ClassInfo) -> bool:
        return not is_double_name(info.name) and not info.fact.qualname.startswith("Test")

    def of(self, *kinds: str) -> Iterator[tuple[ClassInfo, Role]]:
        """Give the classes that have one of some roles."""
        for info in self.classes:
            for kind in kinds:
                if kind in info.roles:
                    yield info, info.roles[kind]

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
            if last[:1].isupper() and last not in {
                "Dict",
                "List",
                "Optional",
                "Any",
                "Union",
                "Set",
                "Callable",
                "ClassVar",
            }:
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

    def _settle(self) -> None:
        for info in self.classes:
            self._give(info, "enum", _enum)
        self._shared_words()
        for info in self.classes:
            self._give(info, "record", _record)
        waiting = self.classes
        for _ in range(ROUNDS):
            changed = False
            for info in waiting:
                for kind, judge in (("breaker", _breaker), ("engine", _engine), ("tracker", _tracker)):
                    changed |= self._give(info, kind, judge)
            if not changed:
                break
            # What hangs on no other class has been judged for good.
            waiting = [info for info in waiting if self._hangs(info)]

    def _hangs(self, info: ClassInfo) -> bool:
        """Say whether a class inherits, constructs or asks another class of the tree."""
        if self.bases(info) or any(
            self.resolve(s, info.module) for found in info.fact.parts.values() for s in found
        ):
            return True
        notes = [info.fact.fields.get(c.partition(".")[0], "") for m in info.fact.methods for c in m.forwards]
        return any(
            self.typed(note, info.module) for note in {*notes, *(box.note for box in info.fact.boxes)} if note
        )

    def _give(self, info: ClassInfo, kind: str, judge: Callable[[Tree, ClassInfo], Role | None]) -> bool:
        if kind in info.roles or matches_name(info.symbol, self.config.exempt(kind)):
            return False
        role = judge(self, info)
        if role is None:
            return False
        info.roles[kind] = role
        return True

    def _shared_words(self) -> None:
        """An enum of states that says too little by its name is one by what it shares with a certain one."""
        certain = [(info, set(info.fact.members) & WORDS) for info, _ in self.of("enum")]
        for info in self.classes:
            words = set(info.fact.members) & WORDS
            if (
                "enum" in info.roles
                or len(words) < _SHARED
                or not _is_enum(info.fact)
                or _says(_FOREIGN_STATE, info.name)
            ):
                continue
            for other, theirs in certain:
                shared = words & theirs
                if (
                    len(shared) >= _SHARED
                    and len(shared) * 2 > len(info.fact.members)
                    and words & ENDED_WORDS
                ):
                    text = f"shares {', '.join(sorted(shared)[:4])} with {other.name}"
                    members = f"lists {', '.join(sorted(words)[:4])}"
                    info.roles["enum"] = Role(
                        "enum", {"members": members, "overlap": text}, tuple(sorted(words))
                    )
                    break

    # What a class keeps.

    def is_run_id(self, word: str) -> bool:
        """Say whether a name in snake case is an id of an execution, a task, a job and the like."""
        return _says(_RUN_ID, word) or self.id_names(word)

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
                if held is not None and (held.roles.keys() & {"record"} or _says(_RUN_NOUN, held.name)):
                    return "value"
        held = self.typed(box.note, near) if box.note else None
        if held is not None and held.roles.keys() & {"record", "enum"}:
            return "value"
        if _VALUE_TYPE.search(box.note):
            return "value"
        words = set(name.split("_"))
        plural = words & {word for word in self.config.registry_words if word.endswith("s")}
        mixed = words & {*self.config.registry_words, "agent", "agents"} and words & {
            "state",
            "states",
            "status",
            "phases",
        }
        return "name" if plural or mixed or _PLURAL.search(name) else ""

    # What rules ask.

    def judged(self, kind: str) -> Iterator[ClassInfo]:
        """Give the classes that do not belong to the one registry."""
        return (i for i in self.classes if not matches_name(i.symbol, self.config.exempt(kind)))

    def may(self, symbol: str) -> bool:
        """Say whether a place belongs to the one engine."""
        return matches_name(symbol, self.config.engine_patterns)

    def is_registry(self, symbol: str) -> bool:
        """Say whether a class is the one registry, by the configuration."""
        return matches_name(symbol, self.config.tracker_patterns)

    def speaks_of_runs(self, fact: ClassFact) -> bool:
        """Say whether a class is called after executions, tasks, agents and the like."""
        return _says(_RUN_NOUN, fact.name)

    def factories(self) -> Iterator[tuple[Place, ClassInfo, Role, str]]:
        """Give the functions and classes that hand out what has a role: where, what, its role, and why."""
        for module in self.modules:
            if module.source.is_test or self.may(f"{module.name}.x"):
                continue
            shown = module.source.shown
            for method in module.facts.functions:
                for info, role, why in self._hands_out(method, module, ""):
                    yield Place(shown, method.line, method.end, method.name), info, role, why
                    break
            for owner in module.facts.classes:
                handed = [
                    (method, found)
                    for method in owner.methods
                    for found in self._hands_out(method, module, owner.qualname)
                ]
                if handed and _says(_FACTORY_CLASS, owner.name):
                    method, (info, role, why) = handed[0]
                    yield (
                        Place(shown, owner.line, owner.end, owner.qualname),
                        info,
                        role,
                        f"{why} in {method.name}",
                    )
                else:
                    seen: set[int] = set()
                    for method, (info, role, why) in handed:
                        if _says(_MAKES, method.name) and method.line not in seen:
                            seen.add(method.line)
                            symbol = f"{owner.qualname}.{method.name}"
                            yield Place(shown, method.line, method.end, symbol), info, role, why

    def _hands_out(self, method: Method, module: Module, owner: str) -> Iterator[tuple[ClassInfo, Role, str]]:
        for symbol in method.makes:
            info = self.resolve(symbol, module)
            if info is None or info.fact.qualname == owner:
                continue
            role = next((info.roles[kind] for kind in KEEPERS if kind in info.roles), None)
            if role is None:
                continue
            named = _says(_FACTORY, method.name)
            noted = set(_TYPE_WORD.findall(method.note))
            typed = info.name in noted or any(base.name in noted for base in self.bases(info))
            given = f"{info.name}()" in method.gives or bool(method.gives and method.calls <= _SMALL)
            if named and (typed or given):
                yield info, role, f"constructs and returns {info.name}"
            elif typed and given:
                yield info, role, f"constructs {info.name} and is declared to return it"

    def constructions(self) -> list[Construction]:
        """Give every construction of a class with a role, or protected by name, in the order of the files."""
        if self._made is None:
            self._made = list(_constructions(self))
        return self._made


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands."""

    path: str
    line: int
    end: int
    symbol: str


_FACTORY_CLASS: Final = re.compile(r"(factory|provider|builder|container|locator)$")
_MAKES: Final = re.compile(r"^_*(get|create|make|build|new|provide|obtain|spawn|for|default)_")
_SMALL: Final = 40


def _constructions(tree: Tree) -> Iterator[Construction]:
    protection = Protection(tree.linker, tree.config)
    for module in tree.modules:
        seen: set[tuple[int, int]] = set()
        for symbol, rows in sorted(module.facts.calls.items(), key=lambda item: (item[1][0][:2], item[0])):
            owner = protection.protected(symbol, module)
            if owner is None:
                continue
            for line, col, end, scope, how in rows:
                if (line, col) in seen:
                    continue
                seen.add((line, col))
                allowed = protection.may_construct(scope, module, owner)
                by = f"{module.name}.{scope}" if scope else module.name
                yield Construction(
                    protection.owner_name(owner), by, module.source.shown, line, allowed, col, end, scope, how
                )


_VALUE_TYPE: Final = re.compile(
    r"\b\w{0,40}(Execution(?!Plan|Config|Lock|Factory|Error|Policy|Options)|ExecutionRecord|AgentRun(?!time|ner)|RunState"
    r"|RunRecord|RunContext|AgentState|AgentPhase|RunInfo)"
)


def _is_enum(fact: ClassFact) -> bool:
    return any(_ENUM_BASE.search(base) for base in fact.bases)


_OUTCOMES: Final = ENDED_WORDS - {"stopped", "dead", "terminated", "killed", "expired", "interrupted", "ok"}


def _enum(_tree: Tree, info: ClassInfo) -> Role | None:
    fact = info.fact
    words = set(fact.members) & WORDS
    sure = _says(_RUN_NOUN, info.name) and _says(_STATE_SUFFIX, info.name)
    if len(words) < (2 if sure else 3) or not (words & OPEN_WORDS and words & ENDED_WORDS):
        return None
    if not words & _OUTCOMES:
        # What is started and stopped is a server; what runs comes out somehow.
        return None
    if not _is_enum(fact) and not (len(fact.members) == len(words) and not fact.methods):
        return None
    name = snake(info.name)
    noun = _RUN_NOUN.search(name) is not None
    if len(words) * (8 if sure else 5) < len(fact.members) * 2 or (_FOREIGN_STATE.search(name) and not noun):
        return None
    evidence = {"members": f"lists {', '.join(sorted(words)[:4])}"}
    if _STATE_SUFFIX.search(name) and (noun or words & ACTIVE_WORDS):
        evidence["name"] = "is called like the state of something that runs"
    elif any(
        _says(_RUN_NOUN, other.name) and _uses(other, info.name) for other in info.module.classes.values()
    ):
        evidence["use"] = "is the type of a field beside it"
    return Role("enum", evidence, tuple(sorted(words))) if len(evidence) > 1 else None


def _uses(info: ClassInfo, name: str) -> bool:
    return any(name in note for note in info.fact.fields.values())


def _record(tree: Tree, info: ClassInfo) -> Role | None:
    fact = info.fact
    names = {snake(name): note for name, note in fact.fields.items()}
    name = snake(info.name)
    if _is_enum(fact) or _RECORD_NOT.search(name) or any(_ORM.search(base) for base in fact.bases):
        return None
    if any(_COLUMN.search(note) for note in fact.fields.values()) or any(
        b.mapping and b.inserts for b in fact.boxes
    ):
        return None
    states = [n for n in names if is_state_name(n, tree.config.state_names)]
    moments = [n for n in names if _MOMENT.search(n)]
    noun = _RUN_NOUN.search(name) is not None
    ids = [n for n in names if tree.is_run_id(n) or (noun and n in {"id", "uid", "uuid", "key"})]
    if any(m.name in {"run", "execute", "process"} and m.drives for m in fact.methods):
        return None
    if not states or not ids or _FOREIGN_STATE.search(name):
        return None
    evidence = {"identity": f"carries {ids[0]}", "state": f"carries {states[0]}"}
    typed = [
        n for n in states if (held := tree.typed(names[n], info.module)) is not None and "enum" in held.roles
    ]
    if moments:
        evidence["time"] = f"carries {', '.join(moments[:2])}"
    if typed:
        evidence["use"] = f"its {typed[0]} is an enum of states"
    if noun:
        evidence["name"] = "is called like an execution"
    return (
        Role("record", evidence, (*ids[:1], *states[:1], *moments[:2]))
        if len(evidence) >= _RECORD_FAMILIES
        else None
    )


def _takes_run(tree: Tree, method: Method) -> bool:
    if any(tree.is_run_id(snake(p)) or _says(_WIDE_ID, p) for p in method.params):
        return True
    return any(tree.is_run_id(snake(given)) for given in method.gives)


def _inherited(tree: Tree, info: ClassInfo, kind: str) -> Role | None:
    for base in tree.bases(info):
        role = base.roles.get(kind)
        if role is not None:
            return Role(
                kind,
                {"bases": f"inherits what {base.name} keeps", "base": f"{base.name} is a {kind}"},
                role.keeps,
            )
    return None


def _parts(tree: Tree, info: ClassInfo, kind: str) -> dict[str, tuple[str, bool]]:
    """Find the parts that have a role: the class of each, and whether it is constructed here."""
    found: dict[str, tuple[str, bool]] = {}
    for attribute, symbols in info.fact.parts.items():
        for symbol in symbols:
            held = tree.resolve(symbol, info.module)
            last = symbol.rpartition(".")[2]
            outside = held is None and kind == "tracker" and last in tree.config.protected
            if (held is not None and held is not info and kind in held.roles) or outside:
                found[attribute] = (last, True)
    forwarded = {call.partition(".")[0] for method in info.fact.methods for call in method.forwards}
    for attribute in forwarded - found.keys():
        held = tree.typed(info.fact.fields.get(attribute, ""), info.module)
        if held is not None and held is not info and kind in held.roles:
            found[attribute] = (held.name, False)
    return found


def _forwarded(info: ClassInfo, attributes: dict[str, tuple[str, bool]]) -> list[str]:
    return [
        m.name for m in info.fact.methods if any(call.partition(".")[0] in attributes for call in m.forwards)
    ]


_ONE: Final = {"execution", "run", "record", "job", "task"}


def _tracker(  # noqa: C901, PLR0911, PLR0912 # a branch per family of evidence
    tree: Tree, info: ClassInfo
) -> Role | None:
    if (inherited := _inherited(tree, info, "tracker")) is not None:
        return inherited
    fact, near = info.fact, info.module
    if not fact.methods or "record" in info.roles:
        return None
    why = {
        box.name: tree.keeps_runs(box, near)
        for box in fact.boxes
        if box.inserts or box.removes or box.mapping
    }
    kept = [box for box in fact.boxes if why.get(box.name)]
    mappings = [box for box in kept if box.mapping]
    engine = "engine" in info.roles or _says(_AGENT, info.name)
    named = _says(_TRACKER_NAME, info.name)
    if engine and not named:
        return None
    if not kept and not named and not fact.parts:
        # Most classes: nothing below could give a role to what keeps nothing and hands nothing on.
        return None
    setters = [m.name for m in fact.methods if m.sets_state and not (_DRIVES.match(m.name) and m.drives)]
    begins = [
        m.name
        for m in fact.methods
        if not m.name.startswith("__") and _BEGINS.match(m.name) and _takes_run(tree, m)
    ]
    ends = [m.name for m in fact.methods if _ENDS.match(m.name) and _takes_run(tree, m)]
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
    any_id = any(p.endswith("_id") or p in _ONE for m in fact.methods for p in m.params)
    takes = any_id or any(_takes_run(tree, m) for m in fact.methods)
    if (
        mappings
        and setters
        and takes
        and (certain or named or (begins and ends) or any(b.inserts for b in mappings))
    ):
        return Role("tracker", evidence, keeps)
    if held and certain and len(evidence.keys() & {"methods", "name", "time"}) >= 1 and takes:
        return Role("tracker", evidence, keeps)
    if named and kept and (begins or ends) and len(evidence) >= 3:  # noqa: PLR2004
        return Role("tracker", evidence, keeps)
    own = [a for a, words in fact.states.items() if len(words) >= 2]  # noqa: PLR2004
    if named and (own or (setters and begins and ends)) and not engine:
        evidence.setdefault("states", f"goes through states in {', '.join(own) or setters[0]}")
        return Role("tracker", evidence, keeps or tuple(own))
    parts = {a: p for a, p in _parts(tree, info, "tracker").items() if p[1]}
    forwarded = _forwarded(info, parts)
    if parts and not engine and (named or (begins and ends)) and len(forwarded) >= 2:  # noqa: PLR2004
        part, (of, _) = next(iter(parts.items()))
        evidence["parts"] = f"constructs {of} as {part}"
        evidence["delegation"] = f"hands {', '.join(forwarded[:3])} on to it"
        return Role("tracker", evidence, (part,))
    return None


_POOL: Final = re.compile(r"(ThreadPoolExecutor|ProcessPoolExecutor|(^|\.)(cf|futures|_base)\.Executor)$")
# A runner of jobs submits them to a cluster, which keeps their state.
_CLUSTER: Final = re.compile(r"(^|_)jobs?_runner$|(^|_)(docker|kubernetes|ssh|local|remote|shell|script)_")
_AGENT: Final = re.compile(r"(^|_)(agent|tool|assistant|chain|llm|model)$")


def _engine(tree: Tree, info: ClassInfo) -> Role | None:  # noqa: C901, PLR0911, PLR0912 # a branch per family
    if (inherited := _inherited(tree, info, "engine")) is not None:
        return inherited
    fact = info.fact
    if not fact.methods or "record" in info.roles:
        return None
    name = snake(info.name)
    named = _ENGINE_NAME.search(name) is not None and not _FOREIGN_ENGINE.search(name)
    if any(_POOL.search(base) for base in fact.bases):
        return None
    drivers = [m for m in fact.methods if _drives(m, engine=named)]
    if named and not drivers and any(_says(_RUN_STATE, box.name) for box in fact.boxes):
        # Where the name and what is kept say so, the work may be done by what is handed on.
        drivers = [m for m in fact.methods if _DRIVES.match(m.name.lstrip("_")) or _STARTS.match(m.name)]
    if not drivers:
        return None
    kept = [
        box.name
        for box in fact.boxes
        if (box.inserts or box.removes)
        and (_says(_RUN_STATE, box.name) or (box.mapping and tree.keeps_runs(box, info.module)))
    ]
    own = [
        a
        for a, w in fact.states.items()
        if len(w) >= (2 if named else 3) and a.strip("_") in tree.config.state_names
    ]
    if _AGENT.search(name):
        # What is driven is no engine: an agent has a state, and is asked to run.
        return None
    counted = [c for c in fact.counters if _says(_COUNTS, c)]
    evidence = {"drives": f"{drivers[0].name}() drives executions"}
    if kept or own:
        evidence["keeps"] = f"keeps run state of its own in {', '.join(sorted({*kept, *own})[:4])}"
    if named:
        evidence["name"] = "is called like an engine"
    if counted:
        evidence["counters"] = f"counts them in {', '.join(sorted(counted)[:3])}"
    parts = _parts(tree, info, "engine")
    wrapped = [m for m in _forwarded(info, parts) if any(m == d.name for d in drivers)]
    if wrapped:
        part = next(iter(parts))
        evidence["parts"] = f"wraps {parts[part][0]} as {part}"
    run = _RUN_NOUN.search(name) is not None
    takes = run or any(
        _takes_run(tree, d) or {snake(p) for p in d.params} & {"agent", "agents", "workflow"} for d in drivers
    )
    certain = any(tree.keeps_runs(b, info.module) in {"key", "value"} for b in fact.boxes if b.name in kept)
    if (kept or own) and (
        named or (takes and certain) or (kept and any(_says(_RUN_STATE, k) for k in kept)) or len(own) > 0
    ):
        return Role("engine", evidence, tuple(sorted({*kept, *own})))
    if named and (counted or (wrapped and any(made for _, made in parts.values()))):
        return Role("engine", evidence, tuple(sorted(counted)) or tuple(parts))
    busy = sum(m.calls for m in drivers if m.drives or m.is_async) > 2  # noqa: PLR2004
    if named and run and busy and not _CLUSTER.search(name) and not _only_forwards(fact, drivers):
        evidence["run"] = "what it drives is called an execution, a task, an agent or the like"
        return Role("engine", evidence, ())
    return None


def _only_forwards(fact: ClassFact, drivers: list[Method]) -> bool:
    """Say whether a class hands what it is asked on to one part that it was given."""
    given = {call.partition(".")[0] for m in drivers for call in m.forwards}
    return bool(given) and all(len(m.forwards) == m.calls for m in drivers) and not given & fact.parts.keys()


def _drives(method: Method, *, engine: bool) -> bool:
    name = method.name.lstrip("_") if engine else method.name
    if not _DRIVES.match(name) and not (engine and _STARTS.match(method.name)):
        return False
    return (engine and method.is_async) or bool(method.drives)


def _breaker(tree: Tree, info: ClassInfo) -> Role | None:
    if (inherited := _inherited(tree, info, "breaker")) is not None:
        return inherited
    fact = info.fact
    names = [snake(n) for n in dict.fromkeys([*fact.fields, *fact.counters, *(b.name for b in fact.boxes)])]
    failures = sorted(n for n in names if _FAILURES.search(n) and not _THRESHOLD.search(n))
    opened = sorted(n for n in names if _OPENED.search(n) and not _THRESHOLD.search(n))
    breaks = [m.name for m in fact.methods if _BREAKS.match(m.name)]
    evidence: dict[str, str] = {}
    if failures:
        evidence["failures"] = f"counts {failures[0]}"
    if opened:
        evidence["opened"] = f"opens {opened[0]}"
    if len(breaks) > 1:
        evidence["methods"] = f"decides in {', '.join(breaks[:3])}"
    if any(fnmatch.fnmatchcase(info.name, pattern) for pattern in tree.config.breaker_patterns):
        evidence["name"] = "is called a breaker"
        return Role("breaker", evidence, (*failures[:1], *opened[:1])) if len(evidence) > 1 else None
    if failures and opened and {snake(c) for c in fact.compared} & set(failures):
        evidence["compared"] = "compares them with a bound"
        return Role("breaker", evidence, (failures[0], opened[0]))
    return None
