"""What surrounds the workers of one simulated run: the loop, the store, the checker, the trace, and what has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, cast

from fsm.core.records import Receipt, Step
from fsm.machine.machine import Machine
from fsm.registry.catalog import Law
from fsm.registry.command import Command
from fsm.simulation.checker import Checker
from fsm.simulation.faults import Chaos
from fsm.simulation.handles import PROCESS, Process
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.observed import Broken
from fsm.simulation.report import Event
from fsm.stores.base import Store
from fsm.tracker import process as process_module
from fsm.tracker.retention import Retention
from fsm.tracker.tracker import Tracker


class World:
    """The surroundings of one run, which all of its workers share.

    Attributes:
        seed: The seed of the run.
        chaos: How often things go wrong by themselves.
        lease_s: How long a worker's lease is.
        sweep_every_s: The pause between two sweeps of each worker.
        retention: What the sweeps prune.
        machines: Machines beside the execution machine.
        loop: The loop.
        store: The store that all workers share, without any faults in between.
        checker: What watches it.
        laws: The machines made ready, once for all workers: they run the same program.
        delays: For each process what draws the delay of its blocking calls.
        network: The context of what is under way; it outlives every process.
        events: The trace.
        failure: What ends the run.
        over: Whether the run has ended.
    """

    def __init__(
        self,
        *,
        seed: int,
        chaos: Chaos,
        lease_s: float | None,
        sweep_every_s: float | None,
        retention: Retention | None,
        machines: Sequence[Machine],
        loop: SteppedLoop,
        store: Store,
    ) -> None:
        self.seed = seed
        self.chaos = chaos
        self.lease_s = lease_s
        self.sweep_every_s = sweep_every_s
        self.retention = retention
        self.machines = machines
        self.loop = loop
        self.store = store
        self.checker = Checker(store, loop)
        self.laws: dict[str, Law] = {}
        self.delays: dict[Process, Callable[[], float]] = {}
        self.events: list[Event] = []
        self.failure: BaseException | None = None
        self.over = False
        self.network = copy_context()
        self.network.run(PROCESS.set, None)
        loop.io_delay = self._io_delay
        loop.set_exception_handler(self._complain)

    def note(self, who: str, what: str, detail: object = "") -> None:
        """Put something into the trace.

        Args:
            who: The process that it is about.
            what: One word.
            detail: What else there is to say; its text must be the same in every run.
        """
        self.events.append(Event(self.loop.time(), self.loop.steps, who, what, detail))

    def later(self, after_s: float, action: Callable[[], None]) -> None:
        """Do something from outside after some virtual seconds; no process has to live for it."""
        self.loop.call_later(after_s, action, context=self.network)

    def context(self, process: Process, tracker: Tracker) -> Context:
        """Return a context in which `get_tracker` gives `tracker`, and whose tasks belong to `process`."""
        context = copy_context()
        context.run(PROCESS.set, process)
        context.run(process_module._mine.set, process_module._Fresh(tracker, None))
        return context

    # --- what the ways to the store report --------------------------------------------------------------------

    def committed(self, process: Process, command: Command, step: Step, receipt: Receipt) -> None:
        """Take note of a commit."""
        self.checker.committed(process, command, step, receipt)

    def renewed(self, worker_id: str) -> None:
        """Take note of a renewed lease."""
        self.checker.renewed(worker_id)

    def pruned(self, execution_ids: Sequence[str]) -> None:
        """Take note of executions that are about to be deleted."""
        try:
            self.checker.pruned(execution_ids)
        except Broken as error:
            self.fail(error)  # the sweeper would take it for a store that failed
            raise

    # --- failures ---------------------------------------------------------------------------------------------

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Take note of a worker's task that ended; an exception ends the run."""
        if not task.cancelled() and task.exception() is not None:
            self.fail(cast("BaseException", task.exception()))

    def fail(self, error: BaseException) -> None:
        """End the run; the first failure is the one that is told."""
        if self.failure is None:
            self.failure = error
        self.loop.stop()

    def _io_delay(self) -> float:
        process = PROCESS.get()
        delay = self.delays.get(process) if process is not None else None
        return delay() if delay is not None else 0.0

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        process = getattr(context.get("future"), "process", None)
        if self.over or (process is not None and process.state == "dead"):
            return  # no worker is left that could have looked at it
        if "handle" in context and error is not None:
            self.fail(error)
        else:
            loop.default_exception_handler(context)
