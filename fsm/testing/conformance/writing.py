"""The part of the stores' conformance suite about what is written: births, transitions, batches, keys, the journal."""

# ruff: noqa: S101, PLR2004 - these are tests, made of asserts and expected values

from __future__ import annotations

import random
import threading
from contextlib import suppress

from fsm import ids
from fsm.core.journal import fold
from fsm.core.records import Receipt, receipt_of
from fsm.core.timeline import Era, Known, Mark
from fsm.errors import Refused
from fsm.lifecycles.execution import EXECUTION
from fsm.simulation.linearizability import History, check
from fsm.stores import Barred, Conflict, Order, Query, Store, WorkerRow
from fsm.stores.base import SPARED_MAX
from fsm.testing.conformance.steps import OTHER, birth, committed, move, walk
from fsm.tracker.process import fresh_tracker


class Writing:
    """What a store does with batches, keys and the journal; see `fsm.testing.conformance.suite`."""

    # --- births -----------------------------------------------------------------------------------------------

    def test_a_birth_is_kept_and_read_back_equal(self, store: Store) -> None:
        """A birth is kept with every field, and its receipt is the journal's first row."""
        parent = birth()
        committed(store, parent)
        begin = birth(
            agent="rechercheur",
            parent_id=parent.after.identity.id,
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

    # --- what callers see ---------------------------------------------------------------------------------------

    def test_what_threads_see_is_explained_by_one_order(self, store: Store) -> None:
        """Reads and events of several threads on one execution are linearizable."""
        history = History()
        with fresh_tracker(store) as tracker:
            one = history.create(tracker, "a", user_id="u", thread_id="t").id

            def work(seed: int) -> None:
                draw = random.Random(seed)
                for _ in range(20):
                    with suppress(Refused):
                        if draw.random() < 0.5:
                            history.get(tracker, one)
                        else:
                            event = draw.choice(["start", "think", "call_model", "progress"])
                            history.fire(tracker, one, event, fence=tracker.get(one).fence)

            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert check(history.operations(), EXECUTION) == []

    # --- children -----------------------------------------------------------------------------------------------

    def test_a_child_is_born_under_an_open_parent_only(self, store: Store) -> None:
        """A child of a parent that has ended, is stopping or is not there is kept out, whatever the machine."""
        ended, stopping, other = walk(birth(), "fail"), walk(birth(), "start", "cancel"), birth(machine=OTHER)
        committed(store, *ended, *stopping, other)
        for parent_id in (ended[0].after.identity.id, stopping[0].after.identity.id, ids.execution_id()):
            child = birth(parent_id=parent_id)
            assert store.append([child]) == [Barred(child.after.identity.id, "parent", parent_id)]
            assert store.load(child.after.identity.id) is None
        committed(store, birth(parent_id=other.after.identity.id))

    def test_a_child_and_its_parents_end_in_one_batch(self, store: Store) -> None:
        """Within a batch the order decides: a child before its parent's end is born, one after it is kept out."""
        begin = birth()
        parent_id = begin.after.identity.id
        early, late = birth(parent_id=parent_id), birth(parent_id=parent_id)
        out = store.append([begin, early, move(begin.after, "fail"), late, birth()])
        assert out[3] == Barred(late.after.identity.id, "parent", parent_id)
        assert [one.position for one in out if isinstance(one, Receipt)] == [1, 2, 3, 4]
        assert store.position() == 4
        assert store.orders("", 10) == [Order(parent_id, 1, "fail")]

    def test_an_order_is_kept_until_it_is_carried_out(self, store: Store) -> None:
        """A step that orders its children's cancel leaves the order, with the step or not at all."""
        life = walk(birth(), "start")
        parent_id = life[0].after.identity.id
        committed(store, *life, birth(parent_id=parent_id))
        assert store.orders("", 10) == []
        stale = move(life[0].after, "fail")
        assert store.append([stale]) == [Conflict(parent_id, 1)]
        assert store.orders("", 10) == []
        cancelled = move(life[1].after, "cancel")
        committed(store, cancelled)
        order = Order(parent_id, 2, "cancel")
        assert store.orders("", 10) == [order]
        store.carried(order._replace(version=1))  # an older one of the same execution
        committed(store, move(cancelled.after, "stopped"))
        assert store.forget([parent_id]) == 1
        assert store.orders("", 10) == [order]
        store.carried(order)
        store.carried(order)
        assert store.orders("", 10) == []

    def test_a_parent_without_children_leaves_no_order(self, store: Store) -> None:
        """What has no children, and what ends without an order to cancel them, leaves nothing to carry out."""
        alone, done = walk(birth(), "fail"), walk(birth(), "start", "think", "process_results", "finish")
        committed(store, *alone, *done, birth(parent_id=done[0].after.identity.id))
        committed(store, move(done[-1].after, "complete"))
        assert store.orders("", 10) == []

    def test_orders_come_page_by_page(self, store: Store) -> None:
        """Orders are listed by id, after the one that is named."""
        lives = [walk(birth(), "fail") for _ in range(5)]
        for begin, ended in lives:
            committed(store, begin, birth(parent_id=begin.after.identity.id), ended)
        expected = [Order(begin.after.identity.id, 1, "fail") for begin, _ in lives]
        assert store.orders("", 2) == expected[:2]
        assert store.orders(expected[1].execution_id, 2) == expected[2:4]
        assert store.orders(expected[-1].execution_id, 2) == []

    # --- leases -------------------------------------------------------------------------------------------------

    def test_a_lost_worker_claims_nothing(self, store: Store) -> None:
        """A step that makes a lost or removed worker the owner is kept out; what was decided on it is lost."""
        begin, claim, think = walk(
            birth(), "start", "think"
        )  # claimed by worker_1, who is not registered yet
        committed(store, begin)
        execution_id = begin.after.identity.id
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 1000.0, 1000.0, lost=False))
        assert store.lose(1011.0) == ["worker_1"]
        other = birth()
        barred, conflict, receipt = store.append([claim, think, other])
        assert barred == Barred(execution_id, "lease", "worker_1")
        assert conflict == Conflict(execution_id, 0)
        assert isinstance(receipt, Receipt)
        store.worker_remove("worker_1")
        assert store.workers() == []
        assert store.append([claim]) == [barred]
        assert store.load(execution_id) == begin.after
        assert store.owned("worker_1", 10) == []
        by_another = claim._replace(after=claim.after._replace(owner="worker_2"))
        committed(store, by_another)
        assert store.owned("worker_2", 10) == [(execution_id, 1)]

    def test_a_lost_worker_may_still_end_what_it_owns(self, store: Store) -> None:
        """A worker that was lost keeps what it had until it is taken away: its other steps are not kept out."""
        begin, claim, think = walk(birth(), "start", "think")
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 1000.0, 1000.0, lost=False))
        committed(store, begin, claim)
        assert store.lose(1011.0) == ["worker_1"]
        committed(store, think, move(think.after, "open_tool", name="x"))

    def test_a_renewal_takes_its_time_when_it_is_made(self, store: Store) -> None:
        """A lease is renewed at the instant that the clock tells then; one that was lost is renewed never more."""
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 1000.0, 1000.0, lost=False))
        assert store.worker_renew("worker_1", lambda: 1007.0)
        assert store.workers() == [WorkerRow("worker_1", "one", 10.0, 1000.0, 1007.0, lost=False)]
        assert store.lose(1017.0) == []
        assert store.lose(1017.5) == ["worker_1"]
        assert store.workers() == [WorkerRow("worker_1", "one", 10.0, 1000.0, 1007.0, lost=True)]
        assert not store.worker_renew("worker_1", lambda: 1018.0)
        assert not store.worker_renew("nobody", lambda: 1018.0)

    def test_a_worker_is_spared_a_few_times_only(self, store: Store) -> None:
        """A lease that ran out may get another term, but not for ever; a renewal counts anew."""
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 0.0, 0.0, lost=False))
        now = 0.0
        for _ in range(2):
            for _ in range(SPARED_MAX):
                now += 20.0
                assert store.lose(now, spare=True) == []
                [row] = store.workers()
                assert now <= row.renewed_at < now + 10.0
            if now < 100.0:
                assert store.worker_renew("worker_1", lambda: now)  # noqa: B023 - asked at once
        assert store.lose(now + 20.0, spare=True) == ["worker_1"]

    def test_a_lease_from_the_future_is_a_lease_from_now(self, store: Store) -> None:
        """A timeline that was set back makes no lease longer than its term."""
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 0.0, 90_000.0, lost=False))
        assert store.lose(1000.0) == []
        assert store.lose(1009.0) == []
        assert store.lose(1015.0) == ["worker_1"]

    # --- the timeline -------------------------------------------------------------------------------------------

    def test_an_era_is_written_by_compare_and_set(self, store: Store) -> None:
        """The first row of an era counts, and later ones if they were decided on the row that is there."""
        first, second = Era(5.0, 1.0, 2.0, 3.0, 4.0, 6.0), Era(4.0)
        assert store.timeline("boot") == Known(None, None, None)
        assert store.timeline_set("boot", None, first) == first
        assert store.timeline_set("boot", None, second) == first
        assert store.timeline_set("boot", second, Era(7.0)) == first
        assert store.timeline_set("boot", first, second) == second
        assert store.timeline_set("boot", first, Era(7.0)) == second
        assert store.timeline("boot").era == second
        assert store.timeline("other").era is None

    def test_a_mark_is_only_ever_raised(self, store: Store) -> None:
        """The highest mark is kept."""
        for steady_at in (10.0, 30.0, 20.0):
            store.timeline_mark(Mark(steady_at, 7.0, steady_at / 2))
        assert store.timeline("boot").mark == Mark(30.0, 7.0, 15.0)
        assert store.timeline("").mark == Mark(30.0, 7.0, 15.0)

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

    # --- forgetting ---------------------------------------------------------------------------------------------

    def test_what_has_ended_can_be_forgotten(self, store: Store) -> None:
        """An ended execution is forgotten with its journal and its keys; the others keep theirs."""
        gone, kept = birth(user_id="ada"), birth(user_id="ada")
        ended = move(gone.after, "cancel", key="k")
        [_, stays, _] = committed(store, gone, kept, ended)
        execution_id = gone.after.identity.id
        assert store.forget([execution_id]) == 1
        assert store.load(execution_id) is None
        assert store.history(execution_id) == []
        assert store.keyed(execution_id, "k") is None
        assert store.find(Query(user_id="ada")) == [kept.after]
        assert store.journal(0, 10) == [stays]
        assert store.counts() == {"created": 1}
        assert store.forget([execution_id]) == 0
        assert store.append([gone]) == [Conflict(execution_id, None)]
        assert store.append([kept]) == [Conflict(kept.after.identity.id, 0)]

    def test_forgetting_leaves_what_is_to_be_kept(self, store: Store) -> None:
        """Only so many are forgotten that the wanted number of ended ones is left, the first ones that are named."""
        lives = [walk(birth(), "cancel") for _ in range(6)]
        committed(store, *(step for life in lives for step in life), birth())
        names = [life[0].after.identity.id for life in lives]
        assert store.forget(names[:4], keep=4) == 2
        assert [store.load(one) is None for one in names] == [True, True, False, False, False, False]
        assert store.forget(names[:4], keep=4) == 0
        assert store.forget([*names[2:], names[2]], keep=1) == 3
        assert store.ended_count() == 1

    def test_ends_age_on_the_steady_timeline(self, store: Store) -> None:
        """What ended is listed by the instant of its end on the timeline, whatever the wall clock said."""
        early, late = birth(born_at=10.0), birth(born_at=10.0)
        committed(store, early, late)
        ends = [
            move(late.after, "cancel", at=5.0, now=30.0),
            move(early.after, "cancel", at=9e9, now=20.0),
        ]
        committed(store, *ends)
        first, second = early.after.identity.id, late.after.identity.id
        assert store.ended(20.0, 10) == []
        assert store.ended(25.0, 10) == [first]
        assert store.ended(31.0, 10) == [first, second]
        assert store.ended(31.0, 1) == [first]

    def test_what_is_open_is_never_forgotten(self, store: Store) -> None:
        """An open execution, and an unknown one, are passed over by a call to forget them."""
        begin, started = walk(birth(), "start")
        committed(store, begin, started)
        assert store.forget([begin.after.identity.id, ids.execution_id()]) == 0
        assert store.load(begin.after.identity.id) == started.after
        assert len(store.history(begin.after.identity.id)) == 2

    def test_a_position_is_never_given_out_twice(self, store: Store) -> None:
        """After everything was forgotten the journal goes on where it was: no position comes again."""
        steps = walk(birth(), "cancel")
        committed(store, *steps)
        last = store.position()
        assert store.forget([steps[0].after.identity.id]) == 1
        assert store.position() == last
        assert store.journal(0, 10) == []
        [receipt] = committed(store, birth())
        assert receipt.position == last + 1
        assert store.journal(last, 10) == [receipt]
