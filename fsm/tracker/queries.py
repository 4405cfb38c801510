"""What the registry is asked: a caller's words checked and turned into a store's question, and its pages shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from fsm.core.arguments import exact, names, optional_text
from fsm.core.records import Execution, Snapshot
from fsm.errors import DamagedRecord, InvalidArgument, UnknownMachine
from fsm.errors.shown import shown
from fsm.machine.grammar import Category
from fsm.machine.machine import Machine
from fsm.registry.registry import Registry
from fsm.stores.base import Query

MAX_PAGE = 10_000
"""So many executions at most come in one page."""
MAX_NAMED = 10
"""Maximum number of unknown states that an error names."""


def query(  # noqa: PLR0913 - one argument for each index
    registry: Registry,
    *,
    limit: int,
    after: str | None,
    state: str | Iterable[str] | None = None,
    category: str | None = None,
    agent: str | None = None,
    user_id: str | None = None,
    thread_id: str | None = None,
    parent_id: str | None = None,
) -> Query:
    """Return the store's question; see `Tracker.find` for the arguments."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument(f"limit is a number from 1 to {MAX_PAGE}, not {shown(limit)}; page with after=")
    agent, user_id = optional_text("agent", agent), optional_text("user_id", user_id)
    thread_id, parent_id = optional_text("thread_id", thread_id), optional_text("parent_id", parent_id)
    after = optional_text("after", after)
    states = _states(registry, state, category)
    return Query(states, agent, user_id, thread_id, parent_id, limit, after)


def _states(
    registry: Registry, state: str | Iterable[str] | None, category: str | None
) -> frozenset[str] | None:
    if state is None and category is None:
        return None
    wanted = None if state is None else names(state)
    if category is None and wanted is not None and wanted <= _named(registry.known(), None):
        return wanted  # the store's machines are read for a name or a category that may be another process's
    machines = registry.machines()
    known = _named(machines, None)
    if wanted is not None and (strange := wanted - known):
        raise InvalidArgument(
            f"no such state: {', '.join(sorted(strange)[:MAX_NAMED])}. Known: {', '.join(sorted(known))}"
        )
    if category is None:
        return wanted
    if not isinstance(category, str) or exact(category) not in list(Category):
        raise InvalidArgument(f"no such category: {shown(category)}. Known: {', '.join(Category)}")
    of_it = _named(machines, category)
    return of_it if wanted is None else wanted & of_it


@lru_cache(maxsize=64)
def _named(machines: tuple[Machine, ...], category: str | None) -> frozenset[str]:
    """Return the names of the states of a category, or of all; asked for by every page, and always the same."""
    return frozenset(
        name
        for machine in machines
        for name in (machine.by_name if category is None else machine.of(category))
    )


def find(registry: Registry, question: Query, category: str | None) -> list[Execution]:
    """Return a page of executions.

    Two machines may put one state name into different categories; such executions are sorted out here, and
    the page is filled up again.
    """
    out: list[Execution] = []
    while True:
        page = registry.store.find(question)
        out += [one for one in _shown(registry, page) if category is None or one.category == category]
        if len(page) < question.limit or len(out) >= question.limit:
            return out[: question.limit]
        question = question._replace(after=page[-1].identity.id)


def _shown(registry: Registry, page: list[Snapshot]) -> Iterator[Execution]:
    """Yield what can be shown; what cannot (its machine's declaration is damaged) is set aside, and reported."""
    for snapshot in page:
        try:
            yield registry.show(snapshot)
        except (DamagedRecord, UnknownMachine) as error:
            registry.health.set_aside(snapshot.identity.id, snapshot.version, error, registry.now())
