"""The tracker for asyncio: the same names, over the same committer; nothing here blocks the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from fsm import stream
from fsm.checks import flag, text
from fsm.command import make_up, own
from fsm.health import HealthReport
from fsm.machine import Machine
from fsm.records import Execution, Receipt, Retry
from fsm.registry import Registry
from fsm.scope import Scope
from fsm.sweeper import Swept
from fsm.timeouts import Timeouts
from fsm.tracker import Tracker, UserTracker

P = ParamSpec("P")
T = TypeVar("T")


class AsyncScope:
    """A scope's face for asyncio. Each method is that of `Scope`, awaited."""

    _scope: Scope
    _registry: Registry

    async def _read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call at once what never waits; let a thread wait for a disk."""
        return await self._registry.reader.call(function, *args, **kwargs)

    async def _create(  # noqa: PLR0913 - as Scope._create
        self,
        agent: str,
        *,
        user_id: str,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None,
        retry: Retry | Mapping[str, Any] | None,
        parent_id: str | None,
        retry_of: str | None,
        metadata: Mapping[str, Any] | None,
        machine: Machine | str | None,
        key: str | None,
    ) -> Execution:
        command = await self._read(
            self._registry.birth,
            agent,
            user_id=user_id,
            thread_id=thread_id,
            timeouts=own(timeouts),  # they are read on another thread
            retry=own(retry),
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=own(metadata),
            machine=machine,
            key=key,
        )
        await self._registry.committer.commit_async(command)
        return self._registry.created(command)

    async def fire(
        self,
        execution_id: str,
        event: str,
        /,
        *,
        fence: int | None = None,
        key: str | None = None,
        **payload: Any,
    ) -> Receipt:
        """Hand an event to an execution; see `Scope.fire`.

        A caller that is cancelled while it waits does not undo the transition; it may be committed all the same.
        """
        registry = self._registry
        command = registry.event(
            execution_id, event, payload, fence=fence, key=key, user_id=self._scope._user_id
        )
        await registry.committer.commit_async(command)
        receipt = registry.receipt(command)
        if command.effects:
            try:
                await self._read(registry.carry_out, command)
            except BaseException:  # a cancel keeps the call from being made while all threads are busy
                make_up([command])
                raise
        return receipt

    async def get(self, execution_id: str) -> Execution:
        """Return an execution as it is now; see `Scope.get`."""
        return await self._read(self._scope.get, execution_id)

    async def history(self, execution_id: str) -> list[Receipt]:
        """Return the journal of an execution; see `Scope.history`."""
        return await self._read(self._scope.history, execution_id)

    async def durations(self, execution_id: str) -> dict[str, float]:
        """Return the seconds spent in each state; see `Scope.durations`."""
        return await self._read(self._scope.durations, execution_id)

    async def allowed(self, execution_id: str) -> tuple[str, ...]:
        """Return the events that are accepted now; see `Scope.allowed`."""
        return await self._read(self._scope.allowed, execution_id)

    async def machine_of(self, execution_id: str) -> Machine:
        """Return an execution's machine; see `Scope.machine_of`."""
        return await self._read(self._scope.machine_of, execution_id)

    async def find(
        self,
        *,
        state: str | Iterable[str] | None = None,
        category: str | None = None,
        agent: str | None = None,
        user_id: str | None = None,
        thread_id: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Execution]:
        """Return a page of executions; see `Scope.find`."""
        return await self._read(
            self._scope.find,
            state=state,
            category=category,
            agent=agent,
            user_id=user_id,
            thread_id=thread_id,
            parent_id=parent_id,
            limit=limit,
            after=after,
        )

    async def counts(self) -> dict[str, int]:
        """Return how many executions there are by state; see `Scope.counts`."""
        return await self._read(self._scope.counts)

    def subscribe(
        self,
        *,
        after: int | None = None,
        execution_id: str | None = None,
        user_id: str | None = None,
        follow: bool = True,
    ) -> AsyncIterator[Receipt]:
        """Yield receipts as they are committed; see `Scope.subscribe`."""
        flag("follow", follow)
        wanted = stream.wanted(after, execution_id, user_id)
        if not self._scope._sees(wanted.user_id):
            return _nothing()
        wanted = wanted._replace(user_id=self._scope._filter(wanted.user_id))
        if wanted.after is None:
            # "From now on" begins with this call and not with the first wait. One look at the journal's end: no
            # reader waits for a writer.
            wanted = wanted._replace(after=self._registry.store.position())
        return stream.follow_async(self._registry, wanted, wait=follow)


class AsyncTracker(AsyncScope):
    """The tracker's face for asyncio; get it from ``tracker.aio``. Each method is that of `Tracker`, awaited."""

    def __init__(self, tracker: Tracker) -> None:
        """Wrap the process's tracker."""
        self._scope = self._tracker = tracker
        self._registry = tracker._registry

    async def create(  # noqa: PLR0913 - as Tracker.create
        self,
        agent: str,
        /,
        *,
        user_id: str | None = None,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        key: str | None = None,
    ) -> Execution:
        """Register an execution; see `Tracker.create`."""
        return await self._create(
            agent,
            user_id=text("user_id", user_id),
            thread_id=thread_id,
            timeouts=timeouts,
            retry=retry,
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=metadata,
            machine=machine,
            key=key,
        )

    async def sweep(self) -> Swept:
        """Sweep once; see `Tracker.sweep`."""
        return await self._read(self._tracker.sweep)

    async def prune(
        self,
        *,
        older_than_s: float | None = None,
        keep: int | None = None,
        archive: Callable[[dict[str, Any]], None] | None = None,
    ) -> int:
        """Delete ended executions; see `Tracker.prune`."""
        return await self._read(self._tracker.prune, older_than_s=older_than_s, keep=keep, archive=archive)

    async def health(self) -> HealthReport:
        """Say how the registry is; see `Tracker.health`."""
        return await self._read(self._tracker.health)

    async def position(self) -> int:
        """Return the position of the journal's last row; see `Tracker.position`."""
        return await self._read(self._tracker.position)

    async def machines(self) -> tuple[Machine, ...]:
        """Return every machine of this registry; see `Tracker.machines`."""
        return await self._read(self._tracker.machines)

    def for_user(self, user_id: str) -> AsyncUserTracker:
        """Return the same narrowed to one user; see `Tracker.for_user`."""
        return AsyncUserTracker(self._tracker.for_user(user_id))


class AsyncUserTracker(AsyncScope):
    """The face for asyncio of one user's tracker; get it from ``tracker.aio.for_user(user_id)``."""

    def __init__(self, tracker: UserTracker) -> None:
        """Wrap a user's tracker."""
        self._scope = self._tracker = tracker
        self._registry = tracker._registry

    async def create(  # noqa: PLR0913 - as UserTracker.create
        self,
        agent: str,
        /,
        *,
        user_id: str | None = None,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        key: str | None = None,
    ) -> Execution:
        """Register an execution; see `UserTracker.create`."""
        return await self._create(
            agent,
            user_id=self._tracker._own(user_id),
            thread_id=thread_id,
            timeouts=timeouts,
            retry=retry,
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=metadata,
            machine=machine,
            key=key,
        )

    def for_user(self, user_id: str) -> AsyncUserTracker:
        """Return the same; see `UserTracker.for_user`."""
        self._tracker.for_user(user_id)
        return self


async def _nothing() -> AsyncIterator[Receipt]:
    return
    yield  # an async generator that yields nothing
