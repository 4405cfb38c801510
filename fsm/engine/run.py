"""What an agent gets: its execution, as the things that it does: call a model, use a tool, ask a person.

None of these knows the rules of the phases. Each hands in the event that it means, with the way that the table says
leads there; what the table does not allow is refused, and what comes after the end is `RunOver`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fsm.core.results import clipped, jsonable
from fsm.engine.answers import Answer, answer_of, asked
from fsm.engine.calls import Fires, ModelPhase, ToolPhase
from fsm.engine.connection import RunOver
from fsm.engine.model_calls import ModelTries
from fsm.errors import BreakerOpen, Refused

if TYPE_CHECKING:
    from fsm.breakers import Backoff
    from fsm.engine.connection import Link
    from fsm.engine.outcome import Handle
    from fsm.engine.recorder import Recorder
    from fsm.engine.runtime import Seat

logger = logging.getLogger(__name__)

T = TypeVar("T")
_current: ContextVar[Run | None] = ContextVar("fsm_run", default=None)


_FORGOTTEN = "the agent that started it has come to its end"
UNHEARD = {"note": "nobody waits for the answer any more"}
"""What comes with a question that is taken back."""


def current_run() -> Run | None:
    """Return the run of the agent that calls this, however deep inside; ``None`` outside of any."""
    return _current.get()


ChildStarter = Callable[..., Awaitable["Handle"]]
"""Takes an agent with its arguments and options; begins a child execution."""


class Run:
    """One attempt of one execution, in the hands of its agent. It belongs to one event loop.

    Attributes:
        link: The wire to the execution; for the engine and its integrations.
    """

    def __init__(
        self, link: Link, seat: Seat, start_child: ChildStarter, answers: deque[tuple[str, Answer]]
    ) -> None:
        """Prepare; the engine does.

        Args:
            link: The wire.
            seat: The slot.
            start_child: Begins a child execution.
            answers: Questions that were answered in earlier attempts, with their answers, in order.
        """
        self.link = link
        self._seat = seat
        self._start_child = start_child
        self._answers = answers
        self._given: list[tuple[str, Answer]] = []
        self._ended = False
        self._children: set[Handle] = set()
        self._asking = asyncio.Lock()
        self._heard = asyncio.Event()
        self._heard.set()
        self._recorder: Recorder | None = None
        self.thread: threading.Thread | None = None  # in which its agent runs, if it is a plain function
        self.abandoned = False  # the execution has ended, and the agent goes on as if nothing had happened
        self.models = 0
        self.tools = 0
        self.calling: str | None = None  # where the last call_model led to
        self.using: str | None = None  # where the last run_tools led to

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.link.id

    @property
    def agent_name(self) -> str:
        """The agent's name."""
        return self.link.snapshot.identity.agent

    @property
    def user_id(self) -> str:
        """Whose execution it is."""
        return self.link.snapshot.identity.user_id

    @property
    def thread_id(self) -> str:
        """The conversation that it belongs to."""
        return self.link.snapshot.identity.thread_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What was noted with the execution when it was created: a copy."""
        text = self.link.snapshot.identity.metadata_json
        return json.loads(text) if text else {}

    @property
    def resumed(self) -> bool:
        """Whether the execution was begun before: a later attempt, or one that went on after a question."""
        return self.link.snapshot.fence > 1

    @property
    def attempt(self) -> int:
        """Which try this is; the first is 1."""
        return self.link.snapshot.attempt

    @property
    def state(self) -> str:
        """The state of the last commit."""
        return self.link.snapshot.state

    @property
    def over(self) -> bool:
        """Whether this run is over: the execution ended, was called off, or belongs to another worker."""
        return self._ended or self.link.stop.done()

    def check(self) -> None:
        """Raise `RunOver` if the run is over."""
        self.link.check()
        if self._ended:
            raise RunOver(f"the agent of {self.id} has come to its end: this run of it is over")

    def end(self) -> None:
        """Let it be over: the agent has come to its end, and what it left running has no say any more.

        Children that it left running had its slot and nobody else who waits for them: they are called off
        (`tests/test_engine_run.py::test_a_child_that_its_agent_forgot_is_called_off`).
        """
        self._ended = True
        children, self._children = self._children, set()
        for child in children:
            self.link.home.see_to(child.give_up(_FORGOTTEN), "fsm-forgotten-child")

    def anew(self) -> Run:
        """Return the run of the next attempt, or of what takes the agent's place; this one is over."""
        self.end()
        return Run(self.link, self._seat, self._start_child, deque([*self._given, *self._answers]))

    @property
    def recorder(self) -> Recorder:
        """The same for frameworks that call back at the start and at the end instead of around."""
        if self._recorder is None:
            from fsm.engine.recorder import Recorder  # noqa: PLC0415 - for those who need it

            self._recorder = Recorder(self)
        return self._recorder

    # --- what it does -------------------------------------------------------------------------------------------

    def model(self, name: str, *, breaker: str | Literal[False] | None = None) -> ModelPhase:
        """Return a model call, for ``async with``: calling_model inside, thinking afterwards.

        An exception is given to the breaker, noted in the journal, and goes on. Several at once are one phase.

        Args:
            name: The model's name.
            breaker: The breaker's key; the model's name if nothing is said, ``False`` for none.

        Raises:
            BreakerOpen: On entering: there is no permit. The execution is circuit_open; go on with something else.
        """
        return ModelPhase(self, name, (name if breaker is None else breaker) or None)

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
            breaker: The breaker's key; the model's name if nothing is said.
            backoff: How often and how long.
            timeout_s: A limit for each try, in seconds.

        Returns:
            What the function returned.

        Raises:
            BreakerOpen: There is no permit, and `backoff.open_wait_s` does not reach as far.
        """
        await self.ready()
        self.models += 1
        try:
            asked = self.link.home.tracker.breakers.get(breaker or name)
            tries = ModelTries(asked, Fires(self), name=name, backoff=backoff)
            return await tries.run_async(function, self._sleep, timeout_s)
        finally:
            self.models -= 1
            await self.leave_model()

    async def _sleep(self, seconds: float) -> None:
        """Wait without a slot; the execution is backing_off or circuit_open."""
        self._seat.give()
        await asyncio.sleep(seconds)
        await self.ready()

    def tool(self, name: str, *, call_id: str | None = None, arguments: Any = None) -> ToolPhase:
        """Return a tool call, for ``async with``: running_tools while any is open; several at once are told apart.

        An exception closes the tool with that error, and goes on. Set ``call.result`` to what it returned, if the
        journal shall have it.

        Args:
            name: The tool's name.
            call_id: The call's id where the framework has one; otherwise one is made.
            arguments: What it is called with, for the journal.
        """
        return ToolPhase(self, name, call_id, arguments)

    async def ask(self, question: str, *, expires_s: float | None = None, data: Any = None) -> Answer:
        """Ask a person, and wait for the answer without a slot: awaiting_input.

        The question outlives this process. If the agent is run again, a question that was answered before is not
        asked again: its answer is returned at once, and those to questions before it count as used. A question is
        known again by its text and its data.

        Args:
            question: What is asked.
            expires_s: The execution ends timed_out after so many seconds; its timeouts' ``input_s`` if not said.
            data: More for whoever shows the question, as JSON; an id in it tells apart questions of one text.

        Returns:
            The answer: approved, refused or a text, and by whom.
        """
        self.check()
        data = jsonable(data)
        if (known := self._remembered(asked(question, data))) is not None:
            return known
        async with self._asking:
            payload: dict[str, Any] = {"question": question}
            if expires_s is not None:
                payload["expires_s"] = expires_s
            if data is not None:
                payload["data"] = data
            await self.ready()
            self._heard.clear()
            try:
                receipt = await self.link.fire("await_input", payload)
                self._seat.give()
                answer = answer_of(await self.link.answered(receipt))
            finally:
                self._heard.set()
            self._given.append((asked(question, data), answer))
            await self.ready()
            return answer

    def _remembered(self, key: str) -> Answer | None:
        for at, (known, answer) in enumerate(self._answers):
            if known == key:
                # An agent that went on from a checkpoint of its own does not ask again what came before.
                for _ in range(at + 1):
                    self._given.append(self._answers.popleft())
                return answer
        return None

    async def progress(self, note: str | None = None, *, data: Any = None, ok: bool = True) -> None:
        """Say that it is alive, with a note or data for the journal; the idle limit begins anew.

        Args:
            note: A line for people.
            data: JSON for programs.
            ok: False for something that went wrong without ending anything.
        """
        self.check()
        payload: dict[str, Any] = {} if note is None else {"note": clipped(note)}
        if data is not None:
            payload["data"] = jsonable(data)
        await self.link.fire("progress", payload if ok else {**payload, "ok": False})

    async def alive(self) -> None:
        """Say that something came, if there is an idle limit and it has been silent for a quarter of it."""
        link = self.link
        idle_s = link.machine.limits_for(link.snapshot.identity.timeouts_json).idle_s
        if (
            idle_s is not None
            and self.link.home.registry.clock.wall() - link.snapshot.updated_at > idle_s / 4
        ):
            await self.progress()

    async def log(self, text: str) -> None:
        """Write a line into the journal."""
        await self.progress(clipped(text))

    async def annotate(self, **data: Any) -> None:
        """Write data into the journal: tokens, cost, whatever people will ask for."""
        await self.progress(data=data)

    async def phase(self, state: str) -> None:
        """Go to a phase by the name of its state: validating, preparing_tools, or one of your own machine.

        Args:
            state: The state.

        Raises:
            Refused: No way over events that only change the phase leads there.
        """
        await self.ready()
        table = self.link.machine.by_source
        way: Sequence[str] | None = self.link.ways.to_state(self.link.state, state)
        if (
            way is None
            and state in self.link.machine.by_name
            and self.link.machine.by_name[state].category == "running"
        ):
            # The last step may be an event that is taken by those who mean it only.
            lasts = {
                event
                for arrows in table.values()
                for event, (first, *_) in arrows.items()
                if first.target == state
            }
            found = [(self.link.ways.to_event(self.link.state, last), last) for last in sorted(lasts)]
            ways = [(*way, last) for way, last in found if way is not None]
            way = min(
                (way for way in ways if self.link.ways.end_of(self.link.state, way) == state),
                key=len,
                default=None,
            )
        if way:
            await self.link.fire_all([(event, {}) for event in way])
        elif self.link.state != state:
            await self.link.fire(state)  # let the table say why not

    async def child(
        self, agent: Callable[..., Any] | str, *args: Any, agent_name: str | None = None, **options: Any
    ) -> Any:
        """Run another agent as a child execution, in this one's slot; for the parent it is a tool that runs.

        Whoever calls the parent off calls off the child, and so does the end of the agent that started it, if it does
        not wait for the child; an error of the child is raised here. What shall go on without its parent is no child:
        submit it to the engine.

        Args:
            agent: The agent.
            *args: What it is called with.
            agent_name: Its name; the function's own if nothing is said.
            **options: As for `Engine.run`: ``timeouts``, ``retry``, ``metadata`` …
        """
        name = agent_name or (agent if isinstance(agent, str) else str(getattr(agent, "__name__", "agent")))
        async with self.tool(name) as call:
            child = await self._start_child(agent, *args, agent_name=name, **options)
            self._children.add(child)
            if self._ended:
                self.end()  # the agent came to its end while the child was being born
            try:
                call.result = result = await child.attended()
            finally:
                self._children.discard(child)
            return result

    # --- for the phases -----------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the run may go on: no person is being waited for, and there is a slot.

        Raises:
            RunOver: It is over.
        """
        self.check()
        while not self._heard.is_set():
            await self._heard.wait()
            self.check()
        if not self._seat.held:
            await self._seat.take(resumes=True)
            self.check()
        await self.take_back()

    async def take_back(self) -> None:
        """Take back a question for whose answer nobody waits any more: its asker was cancelled, or forgotten."""
        if "withdraw" not in self.link.machine.by_source[self.link.state]:
            return
        try:
            await self.link.fire("withdraw", UNHEARD)
        except Refused as refused:
            logger.debug("%s: the question was answered after all: %s", self.id, refused)

    async def leave_model(self, **payload: Any) -> None:
        """Go on from a model call, if it was the last one in flight: to its tools, or to thinking.

        Args:
            **payload: What there is to say of the call; it is not lost if the execution is elsewhere.
        """
        link = self.link
        if self.over:
            return
        if self.models or link.state != self.calling or link.waits(link.state):
            if payload:
                await link.fire("progress", {**payload, "ok": "note" not in payload})
        elif self.tools:
            self.using = link.ways.end_of(link.state, ("run_tools",))
            await link.fire("run_tools", payload)
        else:
            await link.fire("think", payload)

    def waits(self, error: BaseException | None) -> None:
        """Give the slot back if the call ended behind an open breaker: the execution waits."""
        if isinstance(error, BreakerOpen) and self.link.waits(self.link.state):
            self._seat.give()
