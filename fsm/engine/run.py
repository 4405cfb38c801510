"""What an agent gets: its execution, as the things that it does: call a model, use a tool, ask a person.

None of these knows the rules of the phases. Each hands in the event that it means, with the way that the table says
leads there; what the table does not allow is refused, and what comes after the end is `RunOver`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from fsm.breakers import Backoff
from fsm.core.arguments import text
from fsm.core.results import clipped, jsonable
from fsm.engine.admission import Seat
from fsm.engine.calls import ModelPhase, ToolPhase
from fsm.engine.connection import Connection
from fsm.engine.inflight import InFlight
from fsm.engine.model_calls import ModelTries
from fsm.engine.recorder import Recorder
from fsm.machine.grammar import Category

T = TypeVar("T")
CURRENT: ContextVar[Run | None] = ContextVar("fsm_run", default=None)
_FORGOTTEN = "the agent that started it has come to its end"


def current_run() -> Run | None:
    """Return the run of the agent that calls this, however deep inside; ``None`` outside of any."""
    return CURRENT.get()


class Answer(NamedTuple):
    """What a person answered.

    Attributes:
        verdict: approved, refused, or text.
        text: What was said.
        by: Who said it.
    """

    verdict: Literal["approved", "refused", "text"]
    text: str | None
    by: str | None

    @property
    def approved(self) -> bool:
        """Whether the answer is a yes."""
        return self.verdict == "approved"


def answer_of(payload_json: str | None) -> Answer:
    """Return the answer that the payload of ``receive_input`` holds."""
    payload = json.loads(payload_json) if payload_json else {}
    return Answer(payload.get("verdict") or "text", payload.get("text"), payload.get("by"))


def asked(question: str, data: Any) -> str:
    """Return by what a question is known again when it is asked another time: its text and its JSON-ready data."""
    return question if data is None else f"{question}\n{json.dumps(data, sort_keys=True)}"


class Child(Protocol):
    """A child execution, as the run that started it holds it (`fsm.engine.handle.Handle`)."""

    async def attended(self) -> Any:
        """Return the result; a caller that is cancelled during it cancels the execution."""

    async def give_up(self, reason: str) -> None:
        """Cancel the execution and wait until it is over."""


class Run:
    """One attempt of one execution, in the hands of its agent. It belongs to one event loop.

    Attributes:
        connection: The execution as its driver sees it; for the engine and its integrations.
        inflight: What of this run is in flight.
        thread: In which its agent runs, if that is a plain function.
    """

    def __init__(
        self,
        connection: Connection,
        seat: Seat,
        start_child: Callable[..., Awaitable[Child]],
        answers: deque[tuple[str, Answer]],
    ) -> None:
        """Prepare with the answers that earlier attempts got, in order; the engine does."""
        self.connection = connection
        self.inflight = InFlight(connection, seat)
        self.thread: threading.Thread | None = None
        self._start_child = start_child
        self._answers = answers
        self._given: list[tuple[str, Answer]] = []
        self._children: set[Child] = set()
        self._recorder: Recorder | None = None

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.connection.id

    @property
    def agent_name(self) -> str:
        """The agent's name."""
        return self.connection.snapshot.identity.agent

    @property
    def user_id(self) -> str:
        """The user whose execution it is."""
        return self.connection.snapshot.identity.user_id

    @property
    def thread_id(self) -> str:
        """The conversation that it belongs to."""
        return self.connection.snapshot.identity.thread_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What was noted with the execution when it was created: a copy."""
        metadata_json = self.connection.snapshot.identity.metadata_json
        return json.loads(metadata_json) if metadata_json else {}

    @property
    def resumed(self) -> bool:
        """Whether the execution was begun before: a later attempt, or one that went on after a question."""
        return self.connection.snapshot.fence > 1

    @property
    def attempt(self) -> int:
        """Which try this is; the first is 1."""
        return self.connection.snapshot.attempt

    @property
    def state(self) -> str:
        """The state of the last commit."""
        return self.connection.snapshot.state

    @property
    def over(self) -> bool:
        """Whether this run is over: the execution ended, was cancelled, or belongs to another worker.

        A thread cannot be cancelled: a plain function looks at this in long loops.
        """
        return self.inflight.over

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which it lives."""
        return self.connection.runtime.loop

    def end(self) -> None:
        """Let it be over: the agent has come to its end, and what it left running has no say any more.

        Children that it left running had its slot, and no other caller waits for them: they are cancelled
        (`tests/engine/test_engine_run.py::test_a_child_that_its_agent_forgot_is_called_off`).
        """
        self.inflight.ended = True
        while self._children:
            child = self._children.pop()
            self.connection.runtime.see_to(child.give_up(_FORGOTTEN), "fsm-forgotten-child")

    def again(self) -> Run:
        """Return the run of the next attempt, or of what takes the agent's place; this one is over."""
        self.end()
        answers = deque([*self._given, *self._answers])
        return Run(self.connection, self.inflight.seat, self._start_child, answers)

    @property
    def recorder(self) -> Recorder:
        """The same for frameworks that call back at the start and at the end instead of around."""
        if self._recorder is None:
            self._recorder = Recorder(self.inflight)
        return self._recorder

    # --- what it does -------------------------------------------------------------------------------------------

    def model(self, name: str, *, breaker: str | Literal[False] | None = None) -> ModelPhase:
        """Return a model call, for ``async with``: calling_model inside, thinking afterwards.

        An exception is given to the breaker, noted in the journal, and goes on. Several at once are one phase.

        Args:
            name: The model's name.
            breaker: The breaker's key, the model's name by default; ``False`` for no breaker.

        Raises:
            BreakerOpen: On entering: there is no permit. The execution is circuit_open; go on with something else.
        """
        return ModelPhase(self.inflight, name, (name if breaker is None else breaker) or None)

    async def call_model(
        self,
        name: str,
        function: Callable[[], Awaitable[T]],
        *,
        breaker: str | None = None,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Call a model, and again if it may help: backing_off in between, without a slot.

        Args:
            name: The model's name.
            function: Makes one try.
            breaker: The breaker's key, the model's name by default.
            backoff: How often and how long.
            timeout_s: A limit for each try, in seconds.

        Raises:
            BreakerOpen: There is no permit, and `backoff.open_wait_s` does not reach as far.
        """
        inflight = self.inflight
        await inflight.ready()
        inflight.models += 1
        try:
            asked = self.connection.runtime.tracker.breakers.get(breaker or name)
            tries = ModelTries(asked, inflight.say, name=name, backoff=backoff)
            return await tries.run_async(function, self._sleep, timeout_s)
        finally:
            inflight.models -= 1
            await inflight.leave_model({})

    async def _sleep(self, seconds: float) -> None:
        """Wait without a slot; the execution is backing_off or circuit_open."""
        self.inflight.seat.give()
        await asyncio.sleep(seconds)
        await self.inflight.ready()

    def tool(self, name: str, *, call_id: str | None = None, arguments: Any = None) -> ToolPhase:
        """Return a tool call, for ``async with``: running_tools while any is open; several at once are told apart.

        An exception closes the tool with that error, and goes on. Set ``call.result`` to what it returned, if the
        journal shall have it.

        Args:
            name: The tool's name.
            call_id: The call's id where the framework has one; otherwise one is made.
            arguments: What it is called with, for the journal.
        """
        return ToolPhase(self.inflight, name, call_id, arguments)

    async def ask(self, question: str, *, expires_s: float | None = None, data: Any = None) -> Answer:
        """Ask a person, and wait for the answer without a slot: awaiting_input.

        The question outlives this process. If the agent is run again, a question that was answered before is not
        asked again: its answer is returned at once, and those to questions before it count as used. A question is
        known again by its text and its data.

        Args:
            question: What is asked.
            expires_s: After how many seconds the execution ends timed_out; its timeouts' ``input_s`` by default.
            data: More for those who show the question, as JSON; an id in it tells apart questions of one text.
        """
        inflight, connection = self.inflight, self.connection
        inflight.check()
        data = jsonable(data)
        key = asked(question, data)
        if (known := self._remembered(key)) is not None:
            return known
        payload: dict[str, Any] = {"question": question}
        if expires_s is not None:
            payload["expires_s"] = expires_s
        if data is not None:
            payload["data"] = data
        await inflight.ready()
        inflight.heard.clear()
        try:
            receipt = await connection.fire("await_input", payload)
            inflight.seat.give()
            answer = answer_of(await connection.answered(receipt))
        finally:
            inflight.heard.set()
        self._given.append((key, answer))
        await inflight.ready()
        return answer

    def _remembered(self, key: str) -> Answer | None:
        for at, (known, answer) in enumerate(self._answers):
            if known == key:
                # An agent that went on from a checkpoint of its own does not ask again what came before.
                self._given += (self._answers.popleft() for _ in range(at + 1))
                return answer
        return None

    async def progress(self, note: str | None = None, *, data: Any = None, ok: bool = True) -> None:
        """Say that it is alive, with a note or data for the journal; the idle limit begins again.

        Args:
            note: A line for people.
            data: JSON for programs.
            ok: False for something that went wrong without ending anything.
        """
        self.inflight.check()
        payload: dict[str, Any] = {} if note is None else {"note": clipped(note)}
        if data is not None:
            payload["data"] = jsonable(data)
        await self.connection.fire("progress", payload if ok else {**payload, "ok": False})

    async def alive(self) -> None:
        """Say that something came, if there is an idle limit and it has been silent for a quarter of it."""
        connection = self.connection
        snapshot, clock = connection.snapshot, connection.runtime.registry.clock
        idle_s = connection.machine.limits_for(snapshot.identity.timeouts_json).idle_s
        if idle_s is not None and clock.wall() - snapshot.updated_at > idle_s / 4:
            await self.progress()

    async def log(self, text: str) -> None:
        """Write a line into the journal."""
        await self.progress(clipped(text))

    async def annotate(self, /, **data: Any) -> None:
        """Write data into the journal: tokens, cost, or what else people will ask for."""
        await self.progress(data=data)

    async def phase(self, state: str) -> None:
        """Go to a phase by the name of its state: one of the machine's running states.

        Raises:
            Refused: No way over implicit rows leads there.
        """
        await self.inflight.ready()
        connection = self.connection
        known = connection.states.get(text("state", state))
        way = None
        if known is not None and known.category is Category.RUNNING:
            way = connection.ways.onto(connection.state, state)
        if way:
            await connection.fire_all([(event, {}) for event in way])
        elif connection.state != state:
            await connection.fire(state)  # let the table say why not

    async def child(
        self, /, agent: Callable[..., Any] | str, *args: Any, agent_name: str | None = None, **options: Any
    ) -> Any:
        """Run another agent as a child execution, in this one's slot; for the parent it is a tool that runs.

        A cancel of the parent reaches the child, and so does the end of the agent that started it, if it does not
        wait for the child; an error of the child is raised here. What shall go on without its parent is no child:
        submit it to the engine.

        Args:
            agent: The agent.
            *args: What it is called with.
            agent_name: Its name, the function's own by default.
            **options: As for `Engine.run`: ``timeouts``, ``retry``, ``metadata`` …
        """
        name = agent_name or (agent if isinstance(agent, str) else str(getattr(agent, "__name__", "agent")))
        async with self.tool(name) as call:
            child = await self._start_child(agent, *args, agent_name=name, **options)
            self._children.add(child)
            if self.inflight.ended:
                self.end()  # the agent ended while the child was being created
            try:
                call.result = result = await child.attended()
            finally:
                self._children.discard(child)
            return result
