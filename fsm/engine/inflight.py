"""What of one run is in flight: model calls, tools, a question, the slot; and how a phase is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from fsm.core.records import Receipt
from fsm.engine.admission import Seat
from fsm.engine.connection import Connection
from fsm.engine.errors import RunOver
from fsm.errors import Refused

logger = logging.getLogger(__name__)

UNHEARD = {"note": "nobody waits for the answer any more"}
"""What comes with a question that is withdrawn."""


class InFlight:
    """One run's part in its execution: one attempt, or the fallback that takes its place.

    Attributes:
        ended: Whether the agent has come to its end, so that what it left running has no say any more.
        models: Number of model calls that are open.
        tools: Number of tools that are open.
        calling: Where the last ``call_model`` led to.
        using: Where the last ``run_tools`` led to.
        heard: Set while no person is being asked.
    """

    def __init__(self, connection: Connection, seat: Seat) -> None:
        self.connection = connection
        self.seat = seat
        self.ended = False
        self.models = 0
        self.tools = 0
        self.calling: str | None = None
        self.using: str | None = None
        self.heard = asyncio.Event()
        self.heard.set()

    @property
    def over(self) -> bool:
        """Whether this run is over: the execution ended, was cancelled, or belongs to another worker."""
        return self.ended or self.connection.stop.done()

    def check(self) -> None:
        """Raise `RunOver` if the run is over."""
        self.connection.check()
        if self.ended:
            raise RunOver(f"the agent of {self.connection.id} has come to its end: this run of it is over")

    async def ready(self) -> None:
        """Wait until the run may go on: no person is being asked, it has a slot, and no question is left open.

        Nothing is awaited between the last look and the return, so that of two branches only one asks.

        Raises:
            RunOver: It is over.
        """
        while True:
            self.check()
            if not self.heard.is_set():
                await self.heard.wait()
            elif not self.seat.held:
                await self.seat.take(resumes=True)
            elif "withdraw" in self.connection.table[self.connection.state]:
                await self._withdraw()
            else:
                return

    async def _withdraw(self) -> None:
        """Take back a question that no branch waits for any more: its asker was cancelled, or left behind."""
        try:
            await self.connection.fire("withdraw", UNHEARD)
        except Refused as refused:
            logger.debug("%s: the question was answered after all: %s", self.connection.id, refused)
            await self.connection.refresh()

    async def fire(self, event: str, payload: Mapping[str, Any]) -> Receipt:
        """Hand in an event of a model call."""
        self.check()
        receipt = await self.connection.fire(event, payload)
        if event == "call_model":
            self.calling = receipt.target
        return receipt

    async def say(self, event: str, /, **payload: Any) -> Receipt:
        """Hand in an event as a breaker says it (`fsm.engine.model_calls`)."""
        return await self.fire(event, payload)

    async def leave_model(self, payload: Mapping[str, Any]) -> None:
        """Go on from a model call, if it was the last one in flight: to the open tools, or to thinking.

        What there is to say of the call is not lost if the execution is elsewhere.
        """
        connection = self.connection
        if self.over:
            return
        if self.models or connection.state != self.calling or connection.waits():
            if payload:
                await connection.fire("progress", {**payload, "ok": "note" not in payload})
        elif self.tools:
            self.using = connection.ways.end_of(connection.state, ("run_tools",))
            await connection.fire("run_tools", payload)
        else:
            await connection.fire("think", payload)
