"""What every store must do, as tests to inherit.

Whoever writes a store subclasses `StoreConformance` in a test module and says where the store is:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store_url(self, tmp_path):
            return f"sqlite:///{tmp_path}/conformance.db"

A store that `fsm.stores.open_store` does not know overrides the fixture `open_store` instead: it returns a function
that opens the place, each time anew. The suite knows the protocol (`fsm.stores.Store`) and nothing of the inside.
"""

# ruff: noqa: S101, PLR2004 - these are tests, made of asserts and expected values

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fsm import ids
from fsm.decide import DERIVED, Facts, create, decide
from fsm.errors import Refusal, StoreUnavailable
from fsm.laws import record_of
from fsm.lifecycles.execution import EXECUTION
from fsm.machine import Machine, row, state
from fsm.payloads import Codec
from fsm.records import Identity, Receipt, Snapshot, Step, fold, receipt_of
from fsm.stores import Conflict, Query, Store, open_store

OTHER = Machine(
    name="errand",
    initial="open",
    states=(state("open", "running"), state("shut", "terminal")),
    transitions=(row("open", "shut", "shut"), row("open", "cancel", "shut")),
)
"""A second machine, as a user would declare one."""

_CODECS = {machine.content_hash: Codec(machine, frozenset(DERIVED)) for machine in (EXECUTION, OTHER)}
_MACHINES = {machine.content_hash: machine for machine in (EXECUTION, OTHER)}


def birth(
    *,
    agent: str = "agent",
    user_id: str = "ada",
    thread_id: str = "thread",
    machine: Machine = EXECUTION,
    at: float = 1000.0,
    **more: Any,
) -> Step:
    """Return the step that creates an execution; `more` are further fields of its `Identity`."""
    fields: dict[str, Any] = {
        "id": ids.execution_id(),
        "parent_id": None,
        "retry_of": None,
        "attempts_max": 1,
        "model_attempts_max": 5,
        "metadata_json": None,
        "timeouts_json": None,
    }
    fields |= {
        "machine": machine.content_hash,
        "agent": agent,
        "user_id": user_id,
        "thread_id": thread_id,
        "created_at": at,
    }
    return create(machine, Identity(**(fields | more)))


def move(before: Snapshot, event: str, *, key: str | None = None, at: float = 1001.0, **payload: Any) -> Step:
    """Return the step that an event comes to; the event must be legal."""
    content_hash = before.identity.machine
    checked, text = _CODECS[content_hash].encode(event, payload)
    facts = Facts(at, checked, text, None, key, "worker_1")
    decided = decide(_MACHINES[content_hash], before, event, facts)
    assert not isinstance(decided, Refusal), decided
    return decided


def walk(begin: Step, *events: str) -> list[Step]:
    """Return `begin` and the steps of the events after it."""
    steps = [begin]
    for event in events:
        steps.append(move(steps[-1].after, event))
    return steps


def committed(store: Store, *steps: Step) -> list[Receipt]:
    """Append a batch of which every step must be committed."""
    out = store.append(steps)
    receipts = [one for one in out if isinstance(one, Receipt)]
    assert len(receipts) == len(steps), out
    return receipts


class StoreConformance:
    """The suite; subclass it, and give it a `store_url` or an `open_store` fixture."""

    @pytest.fixture
    def store_url(self) -> str:
        """Where the store is; a fresh place for every test."""
        raise NotImplementedError("override the fixture store_url (or open_store) of StoreConformance")

    @pytest.fixture
    def open_store(self, store_url: str) -> Callable[[], Store]:
        """A function that opens the place."""
        return lambda: open_store(store_url)

    @pytest.fixture
    def store(self, open_store: Callable[[], Store]) -> Iterator[Store]:
        """The open store, with both machines registered."""
        store = open_store()
        store.register(record_of(EXECUTION))
        store.register(record_of(OTHER))
        yield store
        store.close()

    # --- births -----------------------------------------------------------------------------------------------

    def test_a_birth_is_kept_and_read_back_equal(self, store: Store) -> None:
        """A birth is kept with every field, and its receipt is the journal's first row."""
        begin = birth(
            agent="rechercheur",
            parent_id=ids.execution_id(),
            retry_of=ids.execution_id(),
            attempts_max=3,
            model_attempts_max=7,
            metadata_json='{"a":[1,null]}',
            timeouts_json='{"total_s":0.5}',
        )
        [receipt] = committed(store, begin)
        assert store.load(begin.after.identity.id) == begin.after
        assert receipt == receipt_of(begin, receipt.position)
        assert (receipt.version, receipt.source, receipt.target) == (0, None, "created")
        assert store.history(begin.after.identity.id) == [receipt]

    def test_a_second_birth_of_one_id_is_a_conflict(self, store: Store) -> None:
        """A second birth under an id that exists is a conflict that names the version there."""
        begin, moved = walk(birth(), "enqueue")
        committed(store, begin, moved)
        again = birth(id=begin.after.identity.id, user_id="mallory")
        assert store.append([again]) == [Conflict(begin.after.identity.id, 1)]
        assert store.load(begin.after.identity.id) == moved.after

    def test_a_birth_twice_in_one_batch_happens_once(self, store: Store) -> None:
        """Of two births of one id in a batch the first is committed and the second is a conflict."""
        begin = birth()
        first, second = store.append([begin, begin])
        assert isinstance(first, Receipt)
        assert second == Conflict(begin.after.identity.id, 0)

    # --- the compare-and-set ------------------------------------------------------------------------------------

    def test_a_transition_moves_the_record_and_the_journal_together(self, store: Store) -> None:
        """A transition is seen in the record and in the journal, or in neither."""
        begin, moved = walk(birth(), "start")
        [born] = committed(store, begin)
        [receipt] = committed(store, moved)
        assert store.load(begin.after.identity.id) == moved.after
        assert store.history(begin.after.identity.id) == [born, receipt]
        assert (receipt.source, receipt.event, receipt.target) == ("created", "start", "starting")
        assert (receipt.version, receipt.attempt, receipt.fence, receipt.owner) == (1, 1, 1, "worker_1")

    def test_a_stale_version_is_a_conflict_and_changes_nothing(self, store: Store) -> None:
        """A step that was decided on a version that is gone is a conflict, and nothing of it is kept."""
        begin, first = walk(birth(), "start")
        late = move(begin.after, "enqueue", key="late")
        committed(store, begin, first)
        assert store.append([late]) == [Conflict(begin.after.identity.id, 1)]
        assert store.load(begin.after.identity.id) == first.after
        assert len(store.history(begin.after.identity.id)) == 2
        assert store.keyed(begin.after.identity.id, "late") is None

    def test_a_version_ahead_is_a_conflict(self, store: Store) -> None:
        """A step that leaves out a version is a conflict: versions have no gap."""
        begin, _, third = walk(birth(), "start", "think")
        committed(store, begin)
        assert store.append([third]) == [Conflict(begin.after.identity.id, 0)]

    def test_a_step_of_an_unknown_execution_is_a_conflict_with_nothing(self, store: Store) -> None:
        """A transition of an execution that does not exist is a conflict without a version."""
        _, moved = walk(birth(), "start")
        assert store.append([moved]) == [Conflict(moved.after.identity.id, None)]
        assert store.load(moved.after.identity.id) is None

    def test_an_end_is_final(self, store: Store) -> None:
        """Of two contradictory ends that were decided on one version the first is kept."""
        begin, started = walk(birth(), "start")
        committed(store, begin, started)
        failed, cancelled = move(started.after, "fail", error="x"), move(started.after, "time_out")
        first, second = store.append([failed, cancelled])
        assert isinstance(first, Receipt)
        assert second == Conflict(begin.after.identity.id, 2)
        kept = store.load(begin.after.identity.id)
        assert kept is not None
        assert kept.state == "failed"

    # --- batches ------------------------------------------------------------------------------------------------

    def test_an_empty_batch_is_nothing(self, store: Store) -> None:
        """An empty batch is no error and leaves no trace."""
        assert store.append([]) == []
        assert store.position() == 0

    def test_a_batch_may_hold_a_whole_life(self, store: Store) -> None:
        """Several steps of one execution in a batch are committed in their order."""
        steps = walk(birth(), "start", "think", "call_model", "process_results", "finish", "complete")
        receipts = committed(store, *steps)
        assert [receipt.version for receipt in receipts] == list(range(7))
        assert store.history(steps[0].after.identity.id) == receipts
        assert fold(receipts, EXECUTION) == "completed"

    def test_a_conflict_spares_the_others_of_its_batch(self, store: Store) -> None:
        """A conflict keeps out its own step alone: the others of the batch are committed."""
        lives = [walk(birth(), "start") for _ in range(3)]
        committed(store, *(life[0] for life in lives))
        committed(store, lives[1][1])
        out = store.append([life[1] for life in lives])
        assert [type(one) for one in out] == [Receipt, Conflict, Receipt]
        positions = [one.position for one in out if isinstance(one, Receipt)]
        assert [receipt.position for receipt in store.journal(4, 10)] == positions

    def test_what_follows_a_lost_step_is_lost_too(self, store: Store) -> None:
        """A step that was decided on a lost step is a conflict, even if its version happens to fit.

        Another process moved the execution on by one. The first step of the batch is lost to it; the second one
        would find just the version that it expects, made by somebody else, and with a different record behind it.
        """
        begin, started, thinking = walk(birth(), "start", "think")
        committed(store, begin, started, thinking)
        mine = move(thinking.after, "progress")
        after_mine = move(mine.after, "open_tool", name="search")
        theirs = move(thinking.after, "open_tool", name="theirs")
        committed(store, theirs)
        execution_id = begin.after.identity.id
        assert store.append([mine, after_mine]) == [Conflict(execution_id, 3), Conflict(execution_id, 3)]
        assert store.load(execution_id) == theirs.after

    # --- keys ---------------------------------------------------------------------------------------------------

    def test_a_key_finds_its_receipt(self, store: Store) -> None:
        """The receipt of a key is found as long as the execution is there, after its end too."""
        begin = birth()
        started = move(begin.after, "start", key="k-1")
        failed = move(started.after, "fail", key="k-2")
        receipts = committed(store, begin, started, failed)
        execution_id = begin.after.identity.id
        assert store.keyed(execution_id, "k-1") == receipts[1]
        assert store.keyed(execution_id, "k-2") == receipts[2]
        assert store.keyed(execution_id, "k-3") is None
        assert store.keyed(ids.execution_id(), "k-1") is None

    def test_a_key_is_used_once(self, store: Store) -> None:
        """A second step of one execution with the same key is a conflict, and changes nothing."""
        begin = birth()
        started = move(begin.after, "start", key="k")
        committed(store, begin, started)
        again = move(started.after, "think", key="k")
        assert store.append([again]) == [Conflict(begin.after.identity.id, 1)]
        assert store.load(begin.after.identity.id) == started.after
        assert len(store.history(begin.after.identity.id)) == 2

    def test_keys_belong_to_their_execution(self, store: Store) -> None:
        """Two executions may use the same key."""
        first, second = birth(), birth()
        steps = [move(begin.after, "start", key="same") for begin in (first, second)]
        receipts = committed(store, first, second, *steps)
        assert store.keyed(first.after.identity.id, "same") == receipts[2]
        assert store.keyed(second.after.identity.id, "same") == receipts[3]

    # --- the journal --------------------------------------------------------------------------------------------

    def test_positions_ascend_over_everything(self, store: Store) -> None:
        """Positions ascend in the order of the commits, and a conflict takes none away from anybody."""
        seen: list[int] = []
        for number in range(5):
            begin, moved = walk(birth(), "start")
            seen += [receipt.position for receipt in committed(store, begin, moved)]
            assert isinstance(store.append([moved])[0], Conflict), number
            assert store.position() == seen[-1]
        assert seen == sorted(set(seen))
        assert [receipt.position for receipt in store.journal(0, 100)] == seen

    def test_the_journal_is_read_in_pages(self, store: Store) -> None:
        """Pages of the journal, each read after the last position of the one before, are the whole journal."""
        for _ in range(4):
            committed(store, *walk(birth(), "start", "think"))
        whole = store.journal(0, 1000)
        assert len(whole) == 12
        for size in (1, 5, 12, 13):
            paged: list[Receipt] = []
            while page := store.journal(paged[-1].position if paged else 0, size):
                assert len(page) <= size
                paged += page
            assert paged == whole

    def test_the_journal_filters_by_execution_and_user(self, store: Store) -> None:
        """The journal can be narrowed to an execution, to a user, and to both."""
        mine, yours = walk(birth(user_id="ada"), "start"), walk(birth(user_id="bob"), "start")
        committed(store, mine[0], yours[0], mine[1], yours[1])
        my_id, your_id = mine[0].after.identity.id, yours[0].after.identity.id
        by = store.journal(0, 10, my_id)
        assert [receipt.version for receipt in by] == [0, 1]
        assert store.journal(0, 10, None, "ada") == by
        assert store.journal(0, 10, my_id, "ada") == by
        assert store.journal(0, 10, my_id, "bob") == []
        assert store.journal(0, 10, your_id, "bob") == store.history(your_id)
        assert store.journal(by[0].position, 10, my_id) == by[1:]
        assert store.journal(0, 1, None, "bob") == store.history(your_id)[:1]
        assert store.journal(0, 10, None, "nobody") == []

    def test_the_journal_after_its_end_is_empty(self, store: Store) -> None:
        """Asking after the last position, or far behind it, gives nothing; from below the first, everything."""
        assert store.position() == 0
        assert store.journal(0, 10) == []
        committed(store, *walk(birth(), "start"))
        assert store.journal(store.position(), 10) == []
        assert store.journal(10**12, 10) == []
        assert len(store.journal(-1, 10)) == 2

    def test_history_of_the_unknown_is_empty(self, store: Store) -> None:
        """An execution that does not exist has no record and no history."""
        assert store.history(ids.execution_id()) == []
        assert store.load(ids.execution_id()) is None

    # --- find and count -----------------------------------------------------------------------------------------

    @pytest.fixture
    def fleet(self, store: Store) -> list[Snapshot]:
        """Thirty-six executions: every combination of two agents, users, threads, parents and three states."""
        parents = (None, ids.execution_id())
        lives = [
            walk(
                birth(agent=agent, user_id=user_id, thread_id=thread_id, parent_id=parent_id),
                *events,
            )
            for agent, user_id, thread_id, parent_id, events in itertools.product(
                ("a1", "a2"), ("u1", "u2"), ("t1", "t2"), parents, ((), ("start",), ("cancel",))
            )
        ]
        committed(store, *itertools.chain.from_iterable(lives))
        return [life[-1].after for life in lives]

    def test_find_without_filters_gives_everything_in_order(
        self, store: Store, fleet: list[Snapshot]
    ) -> None:
        """Without filters every execution is found, in the order of the ids."""
        assert store.find(Query()) == sorted(fleet, key=lambda one: one.identity.id)

    def test_find_answers_every_combination_of_filters(self, store: Store, fleet: list[Snapshot]) -> None:
        """Every combination of filters finds exactly what fits all of them."""
        parent = next(one.identity.parent_id for one in fleet if one.identity.parent_id)
        middle = sorted(one.identity.id for one in fleet)[20]
        for states, agent, user, thread, parent_id, after, limit in itertools.product(
            (None, frozenset({"starting"}), frozenset({"created", "cancelled"}), frozenset({"dead"})),
            (None, "a1", "nobody"),
            (None, "u2"),
            (None, "t1"),
            (None, parent),
            (None, middle),
            (3, 100),
        ):
            query = Query(states, agent, user, thread, parent_id, limit, after)
            expected = [
                one
                for one in sorted(fleet, key=lambda one: one.identity.id)
                if (states is None or one.state in states)
                and agent in {None, one.identity.agent}
                and user in {None, one.identity.user_id}
                and thread in {None, one.identity.thread_id}
                and parent_id in {None, one.identity.parent_id}
                and (after is None or one.identity.id > after)
            ][:limit]
            assert store.find(query) == expected, query

    def test_no_states_find_nothing(self, store: Store, fleet: list[Snapshot]) -> None:
        """An empty set of states fits no execution."""
        assert fleet
        assert store.find(Query(frozenset())) == []
        assert store.find(Query(frozenset(), agent="a1")) == []

    def test_pages_are_stable_while_others_write(self, store: Store) -> None:
        """Paging sees each execution that was there exactly once, whatever is created and moved meanwhile."""
        old = [birth(agent="old") for _ in range(20)]
        committed(store, *old)
        seen: list[str] = []
        after = None
        while page := store.find(Query(limit=3, after=after)):
            seen += [one.identity.id for one in page]
            after = seen[-1]
            if len(seen) < 20:
                committed(store, move(old[len(seen) - 1].after, "start"), birth(agent="new"))
        assert seen[:20] == [begin.after.identity.id for begin in old]
        assert seen == sorted(set(seen))
        assert len(seen) == len(store.find(Query()))

    def test_an_id_from_the_past_is_found_in_its_place(self, store: Store) -> None:
        """An execution whose id sorts before others is found in the order of the ids all the same."""
        steps = [birth() for _ in range(5)]
        committed(store, *reversed(steps))
        ordered = [begin.after for begin in steps]
        assert store.find(Query()) == ordered
        assert store.find(Query(user_id="ada", agent="agent")) == ordered
        assert store.find(Query(frozenset({"created"}))) == ordered

    def test_an_execution_is_found_by_its_state_of_now(self, store: Store) -> None:
        """After a transition an execution is found under its new state and no longer under the old one."""
        begin, started = walk(birth(), "start")
        committed(store, begin)
        assert store.find(Query(frozenset({"created"}))) == [begin.after]
        committed(store, started)
        assert store.find(Query(frozenset({"created"}))) == []
        assert store.find(Query(frozenset({"starting"}))) == [started.after]

    def test_counts_are_by_state(self, store: Store, fleet: list[Snapshot]) -> None:
        """Counts add up, for all and for one user; states without any are left out."""
        assert len(fleet) == 48
        assert store.counts() == {"created": 16, "starting": 16, "cancelled": 16}
        assert store.counts("u1") == {"created": 8, "starting": 8, "cancelled": 8}
        assert store.counts("nobody") == {}

    def test_counts_of_nothing_are_empty(self, store: Store) -> None:
        """A store without executions counts nothing."""
        assert store.counts() == {}
        assert store.find(Query()) == []

    # --- machines -------------------------------------------------------------------------------------------------

    def test_machines_are_kept_as_documents(self, store: Store) -> None:
        """Every registered machine comes back as a document from which an equal machine is made."""
        documents = store.machines()
        assert set(documents) == {EXECUTION.content_hash, OTHER.content_hash}
        assert Machine.from_json(documents[OTHER.content_hash]) == OTHER

    def test_registering_again_changes_nothing(self, store: Store) -> None:
        """A machine may be registered as often as one likes."""
        before = store.machines()
        store.register(record_of(EXECUTION))
        store.register(record_of(OTHER))
        assert store.machines() == before

    def test_executions_of_two_machines_live_side_by_side(self, store: Store) -> None:
        """Executions keep the machine that they are instances of."""
        mine, theirs = walk(birth(machine=OTHER), "shut"), walk(birth(), "start")
        committed(store, *mine, *theirs)
        assert store.load(mine[0].after.identity.id) == mine[1].after
        assert store.counts() == {"shut": 1, "starting": 1}

    # --- odd values -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "name",
        ["ü", "日本語", "🦜", "a'b\"c;--", "%_*", "\n\t", " ", "x" * 500, "e\u0301", "NULL", "0"],
    )
    def test_every_text_is_kept_as_it_is(self, store: Store, name: str) -> None:
        """Texts of any script, quotes, wildcards and blanks are kept and found exactly as they were given."""
        decoy = birth(agent="x", user_id="X", thread_id="é")
        begin = birth(agent=name, user_id=name, thread_id=name, metadata_json=json.dumps({name: name}))
        moved = move(begin.after, "start", key=name, note=name)
        receipts = committed(store, decoy, begin, moved)
        assert store.load(begin.after.identity.id) == moved.after
        for query in (Query(agent=name), Query(user_id=name), Query(thread_id=name)):
            assert store.find(query) == [moved.after]
        assert store.keyed(begin.after.identity.id, name) == receipts[2]
        assert receipts[2].payload == {"note": name}

    @pytest.mark.parametrize(
        "odd", ["", "x", "exec_", "exec_0", "' OR 1=1 --", "%", "\0", "\ud800", "é", "EXEC_" + "0" * 26]
    )
    def test_an_odd_id_is_unknown(self, store: Store, odd: str) -> None:
        """An id that is none is unknown to every question and breaks nothing."""
        committed(store, birth())
        assert store.load(odd) is None
        assert store.history(odd) == []
        assert store.journal(0, 10, odd) == []
        assert store.keyed(odd, "k") is None
        assert len(store.find(Query())) == 1

    @pytest.mark.parametrize("value", [0, False, "", [], {}, None, 0.0, -1, 2**60, 1e300, "x" * 100_000])
    def test_a_falsy_or_large_result_stays_itself(self, store: Store, value: Any) -> None:
        """Results such as 0, False, "", [] and {} come back as themselves, and large ones whole."""
        life = walk(birth(), "start", "think", "process_results", "finish")
        done = move(life[-1].after, "complete", result=value)
        receipts = committed(store, *life, done)
        kept = store.load(done.after.identity.id)
        assert kept == done.after
        assert json.loads(kept.end_json or "") == {"result": value}
        assert store.history(done.after.identity.id)[-1].payload == {"result": value}
        assert type(receipts[-1].payload["result"]) is type(value)

    def test_open_tools_and_waits_are_kept(self, store: Store) -> None:
        """Open tools in their order, waits, breakers and deadlines are part of the record."""
        life = walk(birth(), "start", "call_model")
        for number in range(3):
            life.append(move(life[-1].after, "open_tool", name=f"tool {number}", call_id=None))
        life.append(move(life[-1].after, "open_tool", name="last", call_id="c-ü"))
        life.append(move(life[-1].after, "back_off", retry_in_s=0.5))
        committed(store, *life)
        kept = store.load(life[0].after.identity.id)
        assert kept == life[-1].after
        assert kept.tools[-1] == ("last", "c-ü")
        assert kept.not_before is not None

    def test_what_is_returned_is_nobodys_to_change(self, store: Store) -> None:
        """Lists and dicts that were returned may be changed without changing the store."""
        begin, moved = walk(birth(), "start")
        committed(store, begin, moved)
        execution_id = begin.after.identity.id
        store.history(execution_id).clear()
        store.journal(0, 10).clear()
        store.find(Query()).clear()
        store.find(Query(user_id="ada")).clear()
        store.counts().clear()
        store.machines().clear()
        assert len(store.history(execution_id)) == len(store.journal(0, 10)) == 2
        assert store.find(Query()) == store.find(Query(user_id="ada")) == [moved.after]
        assert store.counts() == {"starting": 1}
        assert len(store.machines()) == 2

    # --- the end ------------------------------------------------------------------------------------------------------

    def test_a_closed_store_says_so(self, store: Store) -> None:
        """Whatever is asked of a closed store is answered with `StoreUnavailable`; closing again is no error."""
        begin = birth()
        committed(store, begin)
        execution_id = begin.after.identity.id
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.append([birth()]),
            lambda: store.load(execution_id),
            lambda: store.load(ids.execution_id()),
            lambda: store.keyed(execution_id, "k"),
            lambda: store.history(execution_id),
            lambda: store.journal(0, 1),
            store.position,
            lambda: store.find(Query()),
            store.counts,
            lambda: store.counts("ada"),
            store.machines,
            lambda: store.register(record_of(OTHER)),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(StoreUnavailable, match="closed") as caught:
                call()
            assert caught.value.committed is False, number
