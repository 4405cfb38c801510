"""A model call and a tool call of a run, each an ``async with``."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fsm.core.results import clipped, jsonable, why
from fsm.engine.model_calls import ModelCall
from fsm.errors import Refused

if TYPE_CHECKING:
    from fsm.breakers.permit import Permit
    from fsm.core.records import Receipt
    from fsm.engine.run import Run


logger = logging.getLogger(__name__)


class Fires:
    """What fires the events of a run's model calls."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def __call__(self, event: str, /, **payload: Any) -> Receipt:
        """Hand an event to the run's execution, with its own fence."""
        run = self._run
        run.check()
        receipt = await run.link.fire(event, payload)
        if event == "call_model":
            run.calling = receipt.target
        return receipt


class ModelPhase:
    """A model call; see `Run.model`."""

    def __init__(self, run: Run, name: str, breaker: str | None) -> None:
        self._run = run
        self._name = name
        self._breaker = breaker
        self._call: ModelCall | Permit | None = None
        self._usage: dict[str, Any] = {}

    def usage(self, **data: Any) -> None:
        """Note what the call used (tokens, cost); it goes into the journal when the call is over."""
        self._usage.update(data)

    async def __aenter__(self) -> Self:
        run = self._run
        await run.ready()
        first = run.models == 0
        run.models += 1
        permitted: ModelCall | Permit | None = None
        try:
            if self._breaker is not None:
                breakers = run.link.home.tracker.breakers
                call = (
                    ModelCall(breakers.get(self._breaker), Fires(run), name=self._name)
                    if first
                    else breakers.permit(self._breaker)
                )
                await call.__aenter__()
                permitted = call
            elif first:
                await Fires(run)("call_model", name=self._name)
            if not first:
                await self._tell({"data": {"model": clipped(self._name)}})
        except BaseException as error:
            run.models -= 1
            run.waits(error)
            if permitted is not None:  # a call that was not made says nothing about the model
                cancelled = asyncio.CancelledError()
                await permitted.__aexit__(type(cancelled), cancelled, None)
            raise
        self._call = permitted
        return self

    async def _tell(self, payload: dict[str, Any]) -> None:
        """Note a call beside another one; it makes no phase of its own."""
        self._run.check()
        await self._run.link.fire("progress", payload)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._run
        run.models -= 1
        if self._call is not None:
            await self._call.__aexit__(kind, error, trace)
        if run.over:
            return
        payload: dict[str, Any] = {}
        if error is not None:
            payload["note"] = f"the call of {clipped(self._name)} ended with {why(error)}"
        if self._usage:
            payload["data"] = jsonable(self._usage)
        await run.leave_model(**payload)


class ToolPhase:
    """A tool call; see `Run.tool`. Set `result` to what the tool returned, if the journal shall have it."""

    def __init__(self, run: Run, name: str, call_id: str | None, arguments: Any) -> None:
        self._run = run
        self._name = name
        self.call_id = call_id or run.link.home.registry.ids.make("call")
        self._arguments = arguments
        self.result: Any = None
        self.ok = True

    def failed(self, why: str) -> None:
        """Note that the tool went wrong although it raised nothing: it asks for another try, say."""
        self.ok = False
        self.result = why

    async def __aenter__(self) -> Self:
        run = self._run
        link = run.link
        await run.ready()
        payload: dict[str, Any] = {"name": self._name, "call_id": self.call_id}
        if self._arguments is not None:
            payload["arguments"] = jsonable(self._arguments)
        way: tuple[str, ...] = ()
        if not run.models and run.using != link.state:
            # During a model call the state stays: tools are counted, and the model's phase leads to them afterwards.
            found = link.ways.to_event(link.state, "run_tools")
            way = () if found is None else (*found, "run_tools")
        run.tools += 1
        if way:  # before anything is awaited: the next tool is to find it
            run.using = link.ways.end_of(link.state, way)
        try:
            await link.fire_all([*((event, {}) for event in way), ("open_tool", payload)])
        except BaseException:
            run.tools -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._run
        link = run.link
        run.tools -= 1
        if run.over:
            return
        payload: dict[str, Any] = {"call_id": self.call_id, "ok": error is None and self.ok}
        if error is not None:
            payload["error"] = why(error)
        elif not self.ok:
            payload["error"] = clipped(str(self.result))
        elif self.result is not None:
            payload["result"] = jsonable(self.result)
        orders: list[tuple[str, dict[str, Any]]] = [("close_tool", payload)]
        if not run.tools and not run.models and link.state == run.using:
            orders.append(("process_results", {}))
        try:
            await link.fire_all(orders)
        except Refused as refused:
            # A fallback has taken the place of whoever opened it, or the phase is another one by now.
            logger.debug("%s: at the end of the tool %s: %s", run.id, self._name, refused)
