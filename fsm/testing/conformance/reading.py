"""The part of the stores' conformance suite about what is read: finding, counting, machines, odd values, the end."""

# ruff: noqa: S101, PLR2004 - these are tests, made of asserts and expected values

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from fsm import ids
from fsm.core.journal import record_of
from fsm.core.records import Receipt, Snapshot
from fsm.core.timeline import Era, Mark
from fsm.errors import StoreUnavailable
from fsm.lifecycles.execution import EXECUTION
from fsm.machine.machine import Machine
from fsm.stores import Barred, Order, Query, Store
from fsm.testing.conformance.steps import OTHER, birth, committed, move, walk


class Reading:
    """What a store gives back; see `fsm.testing.conformance.suite`."""

    # --- find and count -----------------------------------------------------------------------------------------

    @pytest.fixture
    def fleet(self, store: Store) -> list[Snapshot]:
        """A parent, and every combination of two agents, users, threads, parents (or none) and three states."""
        parent = birth(agent="parent", user_id="parent", thread_id="parent")
        parents = (None, parent.after.identity.id)
        lives = [
            walk(
                birth(agent=agent, user_id=user_id, thread_id=thread_id, parent_id=parent_id),
                *events,
            )
            for agent, user_id, thread_id, parent_id, events in itertools.product(
                ("a1", "a2"), ("u1", "u2"), ("t1", "t2"), parents, ((), ("start",), ("cancel",))
            )
        ]
        committed(store, parent, *itertools.chain.from_iterable(lives))
        return [parent.after, *(life[-1].after for life in lives)]

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

    def test_an_id_from_the_past_is_found_where_it_was_committed(self, store: Store) -> None:
        """An execution whose id sorts before others comes after them if it was committed later."""
        steps = [birth() for _ in range(5)]
        committed(store, *reversed(steps))
        ordered = [begin.after for begin in reversed(steps)]
        assert store.find(Query()) == ordered
        assert store.find(Query(user_id="ada", agent="agent")) == ordered
        assert store.find(Query(frozenset({"created"}))) == ordered

    def test_what_is_committed_later_comes_on_a_later_page(self, store: Store) -> None:
        """Whatever its id, an execution that is committed after a page was read is on a page after it."""
        late = [birth() for _ in range(4)]  # their ids are made first
        early = [birth() for _ in range(4)]
        committed(store, *early[:2])
        everything: list[Snapshot] = []
        for query in (
            Query(), Query(user_id="ada"), Query(agent="agent"), Query(thread_id="thread"),
            Query(frozenset({"created"})), Query(frozenset({"created", "dead"}), user_id="ada"),
        ):  # fmt: skip
            page = store.find(query)
            committed(store, late.pop() if late else birth(), early[2] if len(early) > 2 else birth())
            del early[2:3]
            more = store.find(query._replace(after=page[-1].identity.id))
            assert len(more) == 2
            everything = [*page, *more]
            assert everything == store.find(query)
        assert len(everything) == 14

    def test_a_page_goes_on_after_what_was_deleted(self, store: Store) -> None:
        """A page that begins after a deleted execution begins where that one stood."""
        late, *steps = [birth() for _ in range(6)]
        ended = move(steps[2].after, "cancel")
        committed(store, *steps, late, ended)
        cursor = steps[2].after.identity.id
        expected = [steps[3].after, steps[4].after, late.after]
        assert store.find(Query(after=cursor)) == expected
        assert store.forget([cursor]) == 1
        assert store.find(Query(after=cursor)) == expected
        assert store.find(Query(frozenset({"created"}), after=cursor, limit=2)) == expected[:2]
        assert store.find(Query(user_id="ada", after=cursor)) == expected
        assert store.find(Query(after="exec_")) == [one.after for one in (*steps[:2], *steps[3:], late)]

    def test_a_key_creates_one_execution_of_a_user(self, store: Store) -> None:
        """Of several births of one user with one key the first is kept, in a batch too; another user has its own."""
        first, second, other = birth(key="k"), birth(key="k", agent="other"), birth(key="k", user_id="bob")
        one, two, three = store.append([first, second, other])
        first_id = first.after.identity.id
        assert isinstance(one, Receipt)
        assert two == Barred(second.after.identity.id, "key", first_id)
        assert isinstance(three, Receipt)
        assert one.key is None, "the keys of an execution's events are its own"
        assert store.append([birth(key="k", parent_id=ids.execution_id())])[0][1:] == ("key", first_id)
        assert store.born("ada", "k") == first_id
        assert store.born("bob", "k") == other.after.identity.id
        assert store.born("eve", "k") is store.born("ada", "x") is None
        assert store.load(first_id) == first.after
        committed(store, move(first.after, "cancel"))
        assert store.forget([first_id]) == 1
        assert store.born("ada", "k") is None
        committed(store, birth(key="k"))

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
        assert len(fleet) == 49
        assert store.counts() == {"created": 17, "starting": 16, "cancelled": 16}
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
        assert store.machine_count() == len(documents)

    def test_registering_again_changes_nothing(self, store: Store) -> None:
        """A machine may be registered as often as one likes."""
        before = store.machines()
        store.register(record_of(EXECUTION))
        store.register(record_of(OTHER))
        assert store.machines() == before
        assert store.machine_count() == len(before)

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
        assert kept is not None
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
        assert kept is not None
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
            lambda: store.born("ada", "k"),
            lambda: store.timeline("boot"),
            lambda: store.timeline_set("boot", None, Era(1.0)),
            lambda: store.timeline_mark(Mark(1.0, 1.0)),
            lambda: store.worker_renew("worker_1", float),
            lambda: store.lose(1.0),
            lambda: store.forget([execution_id]),
            lambda: store.orders("", 1),
            lambda: store.carried(Order(execution_id, 0, "fail")),
            lambda: store.register(record_of(OTHER)),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(StoreUnavailable, match="closed") as caught:
                call()
            assert caught.value.committed is False, number
