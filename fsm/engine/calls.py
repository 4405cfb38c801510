"""A model call and a tool call of a run, each an ``async with``."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

from fsm.breakers.permit import Permit
from fsm.core.results import clipped, jsonable, why
from fsm.engine.inflight import InFlight
from fsm.engine.model_calls import ModelCall
from fsm.errors import BreakerOpen, Refused

logger = logging.getLogger(__name__)


class ModelPhase:
    """A model call; see `Run.model`."""

    def __init__(self, inflight: InFlight, name: str, breaker: str | None) -> None:
        self._inflight = inflight
        self._name = name
        self._breaker = breaker
        self._call: ModelCall | Permit | None = None
        self._usage: dict[str, Any] = {}

    def usage(self, **data: Any) -> None:
        """Note what the call used (tokens, cost); it goes into the journal when the call is over."""
        self._usage.update(data)

    async def __aenter__(self) -> Self:
        inflight, connection = self._inflight, self._inflight.connection
        await inflight.ready()
        first = inflight.models == 0
        inflight.models += 1
        permitted: ModelCall | Permit | None = None
        try:
            if self._breaker is not None:
                breakers = connection.runtime.tracker.breakers
                call = (
                    ModelCall(breakers.get(self._breaker), inflight.say, name=self._name)
                    if first
                    else breakers.permit(self._breaker)
                )
                await call.__aenter__()
                permitted = call
            elif first:
                await inflight.fire("call_model", {"name": self._name})
            if not first:  # a call beside another one makes no phase of its own
                await inflight.fire("progress", {"data": {"model": clipped(self._name)}})
        except BaseException as error:
            inflight.models -= 1
            if isinstance(error, BreakerOpen) and connection.waits():
                inflight.seat.give()  # the execution waits behind the breaker
            if permitted is not None:  # a call that was not made says nothing about the model
                cancelled = asyncio.CancelledError()
                await permitted.__aexit__(type(cancelled), cancelled, None)
            raise
        self._call = permitted
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inflight = self._inflight
        inflight.models -= 1
        if self._call is not None:
            await self._call.__aexit__(kind, error, trace)
        payload: dict[str, Any] = {}
        if error is not None:
            payload["note"] = f"the call of {clipped(self._name)} ended with {why(error)}"
        if self._usage:
            payload["data"] = jsonable(self._usage)
        await inflight.leave_model(payload)


class ToolPhase:
    """A tool call; see `Run.tool`. Set `result` to what the tool returned, if the journal shall have it."""

    def __init__(self, inflight: InFlight, name: str, call_id: str | None, arguments: Any) -> None:
        self._inflight = inflight
        self._name = name
        self.call_id = call_id or inflight.connection.runtime.registry.ids.make("call")
        self._arguments = arguments
        self.result: Any = None
        self.ok = True

    def failed(self, why: str) -> None:
        """Note that the tool went wrong although it raised nothing: it asks for another try, say."""
        self.ok = False
        self.result = why

    async def __aenter__(self) -> Self:
        inflight, connection = self._inflight, self._inflight.connection
        await inflight.ready()
        payload: dict[str, Any] = {"name": self._name, "call_id": self.call_id}
        if self._arguments is not None:
            payload["arguments"] = jsonable(self._arguments)
        way: tuple[str, ...] = ()
        if not inflight.models and inflight.using != connection.state:
            # During a model call the state stays: tools are counted, and the model's phase leads to them afterwards.
            found = connection.ways.to_event(connection.state, "run_tools")
            way = () if found is None else (*found, "run_tools")
        inflight.tools += 1
        if way:  # before anything is awaited: the next tool is to find it
            inflight.using = connection.ways.end_of(connection.state, way)
        try:
            await connection.fire_all([*((event, {}) for event in way), ("open_tool", payload)])
        except BaseException:
            inflight.tools -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inflight, connection = self._inflight, self._inflight.connection
        inflight.tools -= 1
        if inflight.over:
            return
        payload: dict[str, Any] = {"call_id": self.call_id, "ok": error is None and self.ok}
        if error is not None:
            payload["error"] = why(error)
        elif not self.ok:
            payload["error"] = clipped(str(self.result))
        elif self.result is not None:
            payload["result"] = jsonable(self.result)
        orders: list[tuple[str, dict[str, Any]]] = [("close_tool", payload)]
        if not inflight.tools and not inflight.models and connection.state == inflight.using:
            orders.append(("process_results", {}))
        try:
            await connection.fire_all(orders)
        except Refused as refused:
            # A fallback has taken the place of the agent that opened it, or the phase is another one by now.
            logger.debug("%s: at the end of the tool %s: %s", connection.id, self._name, refused)
