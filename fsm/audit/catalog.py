"""The rules for people: what each finds, why it matters, a bad and a good example, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent
from typing import Final

from fsm.audit.config import Severity
from fsm.audit.errors import AuditError


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        code: Its code, such as ``FSM001``.
        title: What it finds, in a few words.
        severity: How much it matters, unless configured otherwise.
        why: What goes wrong in production when it is ignored.
        hint: What to do.
        bad: An example that it reports.
        good: The same done right, which it does not report.
    """

    code: str
    title: str
    severity: Severity
    why: str
    hint: str
    bad: str
    good: str


def _rule(code: str, title: str, severity: Severity, *, why: str, hint: str, bad: str, good: str) -> Rule:
    return Rule(code, title, severity, why, hint, dedent(bad).strip() + "\n", dedent(good).strip() + "\n")


_ALL: Final = (
    _rule(
        "FSM001",
        "direct construction of a protected class",
        "error",
        why="Two trackers in one process know different executions, and each calls its own half the truth.",
        hint="Ask the factory (get_tracker()) for the one instance; in tests use the fixture.",
        bad="""
            from fsm import Tracker

            def handle(request):
                tracker = Tracker()
                return tracker.get(request.execution)
        """,
        good="""
            from fsm import get_tracker

            def handle(request):
                tracker = get_tracker()
                return tracker.get(request.execution)
        """,
    ),
    _rule(
        "FSM002",
        "an execution id made by hand",
        "error",
        why="An id that the registry did not hand out belongs to no execution: logs point nowhere.",
        hint="Take the id from tracker.create(...).id, or name what may make ids in id_makers.",
        bad="""
            import uuid

            def start(agent):
                execution_id = f"exec_{uuid.uuid4().hex[:8]}"
                return agent.run(execution_id)
        """,
        good="""
            from fsm import get_tracker

            def start(agent, user, thread):
                execution = get_tracker().create(agent.name, user_id=user, thread_id=thread)
                return agent.run(execution.id)
        """,
    ),
    _rule(
        "FSM003",
        "a second tracker",
        "error",
        why="A class that keeps executions and states for itself drifts from the registry at once.",
        hint="Keep no executions: read them from get_tracker(), and subscribe to what you want to know.",
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
    ),
    _rule(
        "FSM004",
        "a second table of transitions",
        "error",
        why="Two tables disagree after the next change, and what one allows the other refuses.",
        hint="Declare the machine once, or derive one with EXECUTION.extend(...), and ask it with allowed().",
        bad="""
            ALLOWED = {
                "pending": {"running", "cancelled"},
                "running": {"completed", "failed", "cancelled"},
                "completed": set(),
            }
        """,
        good="""
            from fsm import get_tracker

            def may(execution_id, event):
                return event in get_tracker().allowed(execution_id)
        """,
    ),
    _rule(
        "FSM005",
        "a second engine",
        "warning",
        why="An engine with run state of its own decides alone what is running, and forgets it when it dies.",
        hint="Drive agents with fsm's Engine, and keep no runs beside the registry.",
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
    ),
    _rule(
        "FSM006",
        "a state written around the tracker",
        "error",
        why="A state that no transition led to has no guard, no journal row and no deadline.",
        hint="Fire the event (tracker.fire(execution_id, 'complete')) and let the table decide.",
        bad="""
            def give_up(execution):
                execution.state = "failed"
        """,
        good="""
            from fsm import get_tracker

            def give_up(execution):
                get_tracker().fire(execution.id, "fail", retryable=False)
        """,
    ),
    _rule(
        "FSM007",
        "a circuit breaker of its own per object",
        "warning",
        why="A breaker per object learns nothing from the others: each hammers the same broken service.",
        hint="Share one breaker per key (provider, model, tenant), as run.model(...) does for you.",
        bad="""
            class Client:
                def __init__(self):
                    self.breaker = CircuitBreaker(failure_threshold=5)
        """,
        good="""
            class Client:
                def __init__(self, breakers):
                    self.breaker = breakers.for_key("openai:gpt-5")
        """,
    ),
    _rule(
        "FSM008",
        "mutable state shared between users",
        "warning",
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
    ),
    _rule(
        "FSM100",
        "a noqa that silences nothing",
        "warning",
        why="A suppression that outlived its reason hides the next real finding on that line.",
        hint="Remove the code from the noqa comment.",
        bad="""
            LIMIT = 10  # noqa: FSM002
        """,
        good="""
            LIMIT = 10
        """,
    ),
)
RULES: Final = {rule.code: rule for rule in _ALL}


def explain(code: str) -> str:
    """Explain a rule with a bad and a good example.

    Args:
        code: A rule's code, in upper or lower case.

    Returns:
        Text of several lines.

    Raises:
        AuditError: No rule has that code.
    """
    rule = RULES.get(code.upper())
    if rule is None:
        raise AuditError(f"no rule is called {code!r}; the rules are {', '.join(RULES)}")

    def block(text: str) -> str:
        return "\n".join(f"    {line}".rstrip() for line in text.splitlines())

    return (
        f"{rule.code}: {rule.title} ({rule.severity})\n\n{rule.why}\n\nBad:\n\n{block(rule.bad)}\n\n"
        f"Good:\n\n{block(rule.good)}\n\nWhat to do: {rule.hint}\n"
        f"To silence one place: # noqa: {rule.code}. "
        f'To turn the rule off: [tool.fsm.audit] ignore = ["{rule.code}"]\n'
    )
