"""Every store is held to the same suite, and all of them do the same with the same program."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm import NotAStore
from fsm.clock import ManualClock
from fsm.core.journal import fold
from fsm.core.records import Execution, Receipt
from fsm.errors import BadPayload, Refused, UnknownExecution
from fsm.lifecycles import EXECUTION
from fsm.stores import Store, open_store
from fsm.testing import fresh_tracker
from fsm.testing.conformance.suite import StoreConformance
from fsm.tracker.tracker import Tracker
from tests.support.inside import registry_of


class TestMemory(StoreConformance):
    store_url = pytest.fixture(lambda self: "memory://", name="store_url")


class TestSqlite(StoreConformance):
    store_url = pytest.fixture(
        lambda self, tmp_path: f"sqlite:///{tmp_path}/conformance.db", name="store_url"
    )


# --- both do the same ---------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ü"])
WHICH = st.integers(0, 5)
PAYLOADS: dict[str, list[dict[str, Any]]] = {
    "fail": [{"error": "x"}, {"error": "x", "retryable": True, "retry_in_s": 1.5}, {"error": 7}],
    "open_tool": [{"name": "s"}, {"name": "s", "call_id": "1"}],
    "close_tool": [{}, {"name": "s"}, {"name": "none"}],
    "call_model": [{}, {"permit": False, "breaker": "b"}],
    "complete": [{"result": 0}, {"result": {}, "outcome": "fine"}, {"nonsense": 1}],
    "await_input": [{"question": "?", "expires_s": 5.0}],
}
EVENTS = st.sampled_from([*EXECUTION.events, *EXECUTION.events, "nonsense", "create"])


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    """One call of the tracker, as data."""
    kind = draw(st.sampled_from(["create", "fire", "fire", "fire", "fire", "find", "tick"]))
    if kind == "create":
        return kind, draw(NAMES), draw(NAMES), draw(st.integers(1, 3)), draw(st.none() | WHICH)
    if kind == "find":
        state = draw(st.none() | st.sampled_from(["created", "thinking", "cancelled", "queued"]))
        category = draw(st.none() | st.sampled_from(["running", "terminal"]))
        return (
            kind,
            state,
            category,
            draw(st.none() | NAMES),
            draw(st.none() | NAMES),
            draw(st.integers(1, 4)),
        )
    if kind == "tick":
        return kind, draw(st.sampled_from([0.25, 1.0, 3600.0]))
    event = draw(EVENTS)
    payload = draw(st.sampled_from(PAYLOADS.get(event, [{}])))
    key = draw(st.none() | st.sampled_from(["k1", "k2"]))
    fence = draw(st.sampled_from([None, None, None, 0, 1, 2]))
    return "fire", draw(WHICH), event, payload, key, fence


class Player:
    """Plays a program on a tracker and notes what can be seen, with ids replaced by their order."""

    def __init__(self, tracker: Tracker, clock: ManualClock) -> None:
        self.tracker, self.clock = tracker, clock
        self.ids: list[str] = []
        self.seen: list[Any] = []
        registry_of(tracker).rng = random.Random(7)

    def name(self, execution_id: str | None) -> object:
        return self.ids.index(execution_id) if execution_id in self.ids else execution_id

    def show(self, one: Execution | Receipt) -> dict[str, Any]:
        data = one.as_dict() if isinstance(one, Receipt) else one.model_dump()
        data["owner"] = data["owner"] is not None
        for field in ("id", "execution_id", "parent_id"):
            if field in data:
                data[field] = self.name(data[field])
        payload = data.get("payload")
        if payload and "by" in payload:
            data["payload"] = payload | {"by": self.name(payload["by"])}
        return data

    def play(self, call: tuple[Any, ...]) -> None:
        try:
            self.seen.append(getattr(self, call[0])(*call[1:]))
        except Refused as error:
            self.seen.append((error.reason, error.state, error.event, error.allowed, error.version))
        except (BadPayload, UnknownExecution) as error:
            self.seen.append(type(error))

    def pick(self, which: int) -> str:
        return self.ids[which % len(self.ids)] if self.ids else "exec_none"

    def create(self, agent: str, user: str, attempts: int, parent: int | None) -> object:
        parent_id = None if parent is None or not self.ids else self.pick(parent)
        made = self.tracker.create(
            agent, user_id=user, thread_id="t", parent_id=parent_id, retry={"attempts_max": attempts}
        )
        self.ids.append(made.id)
        return self.show(made)

    def fire(
        self, which: int, event: str, payload: dict[str, Any], key: str | None, fence: int | None
    ) -> object:
        return self.show(self.tracker.fire(self.pick(which), event, key=key, fence=fence, **payload))

    def find(
        self, state: str | None, category: str | None, agent: str | None, user: str | None, limit: int
    ) -> object:
        page = self.tracker.find(state=state, category=category, agent=agent, user_id=user, limit=limit)
        rest = self.tracker.find(agent=agent, limit=limit, after=page[-1].id) if page else []
        return [self.show(one) for one in (*page, *rest)]

    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def everything(self) -> object:
        journal = [self.show(receipt) for receipt in self.tracker.subscribe(after=0, follow=False)]
        each = [
            (self.show(self.tracker.get(one)), self.tracker.allowed(one), self.tracker.durations(one))
            for one in self.ids
        ]
        for one in self.ids:
            assert fold(self.tracker.history(one), EXECUTION) == self.tracker.get(one).state
        return self.seen, journal, each, self.tracker.counts()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(calls(), min_size=1, max_size=40))
def test_a_program_has_the_same_history_on_every_store(program, tmp_path_factory):
    """Any program of calls, legal or not, has the same observable history in memory and in SQLite."""
    url = f"sqlite:///{tmp_path_factory.mktemp('same')}/fsm.db?synchronous=NORMAL"
    histories = []
    for store in ("memory://", url):
        clock = ManualClock()
        with fresh_tracker(store, clock=clock) as tracker:
            player = Player(tracker, clock)
            for call in program:
                player.play(call)
            histories.append(player.everything())
    assert histories[0] == histories[1]


# --- the way to a store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "x", "memory", "memory://x", "sqlite", "postgresql://", "http://a/b", "file:x.db", "SQLITE:///x"],
)
def test_a_url_of_no_store_is_refused_with_the_ones_there_are(url):
    """A URL that names no store is refused, and the error says which ones there are."""
    with pytest.raises(NotAStore, match="sqlite:///"):
        open_store(url)


def test_two_memory_stores_share_nothing():
    """Each memory store is a registry of its own."""
    one, other = open_store("memory://"), open_store("memory://")
    stores: tuple[Store, ...] = (one, other)
    assert len({id(store) for store in stores}) == 2
    with fresh_tracker(one) as tracker:
        tracker.create("a", user_id="u", thread_id="t")
        assert other.counts() == {}
    other.close()
