"""Planted bugs: the checker that finds nothing in a sound library must find each of these within a few seeds."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from fsm.core import decide as decide_module
from fsm.core.records import Step, receipt_of
from fsm.errors import Refusal
from fsm.registry import committer as committer_module
from fsm.registry.registry import Registry
from fsm.registry.steady import SteadyClock
from fsm.simulation.faults import STORM
from fsm.simulation.observed import Broken
from fsm.simulation.scenarios import fleet
from fsm.simulation.simulation import Simulation, SimulationFailed
from fsm.stores.base import Conflict
from fsm.stores.memory import MemoryStore
from fsm.tracker import sweeper as sweeper_module
from fsm.tracker.retention import Retention

SEEDS = 40
"""Within so many seeds each planted bug must show."""
ROUGH = dataclasses.replace(STORM, fail_after=0.1, unknown=0.1, pause_every_s=20.0, crash_every_s=40.0)


@pytest.fixture(autouse=True)
def quiet():
    """A planted bug makes the library complain, which is not what is looked at here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def caught(store=MemoryStore):
    """Return the first guarantee that the simulation finds broken, and after how many seeds."""
    for seed in range(SEEDS):
        retention = Retention(max_age_s=30.0) if seed % 2 else None
        simulation = Simulation(
            seed=seed, chaos=ROUGH, clock_skew_s=100.0, store=store, max_steps=200_000, retention=retention
        )
        try:
            simulation.run(fleet(12, children=0.2))
        except SimulationFailed as failure:
            if isinstance(failure.__cause__, Broken):
                return failure.__cause__.guarantee, seed + 1
            raise
    return None, SEEDS


def test_nothing_is_caught_where_nothing_is_planted():
    """The sound library passes the very seeds that the planted bugs are caught with."""
    assert caught() == (None, SEEDS)


# --- in the store -----------------------------------------------------------------------------------------------


class Loses(MemoryStore):
    """Now and then it says that a step is committed and keeps nothing of it."""

    def _one(self, step):
        if step.after.version and self._journal.last % 37 == 36:
            return receipt_of(step, self._journal.last + 1)
        return super()._one(step)


class LosesLater(MemoryStore):
    """It keeps everything, until it forgets the last row of one journal and sets the record back."""

    def _one(self, step):
        outcome = super()._one(step)
        if self._journal.last == 50 and not isinstance(outcome, Conflict):
            rows = self._rows[step.after.identity.id]
            rows[0] = step.after._replace(version=step.after.version - 1)
            del rows[-1]
            self._journal.forget([outcome])
            self._journal.last -= 1
        return outcome


class Duplicates(MemoryStore):
    """Now and then it writes a row of the journal twice."""

    def _one(self, step):
        outcome = super()._one(step)
        if self._journal.last == 40 and not isinstance(outcome, Conflict):
            self._journal.append(outcome._replace(position=41))
        return outcome


class TakesStale(MemoryStore):
    """It does not compare before it sets."""

    def _one(self, step):
        rows = self._rows.get(step.after.identity.id)
        if rows is not None and rows[0].version >= step.after.version:
            step = step._replace(after=step.after._replace(version=rows[0].version + 1))
        return super()._one(step)


class Reanimates(MemoryStore):
    """Something writes into ended records behind the journal's back."""

    def _one(self, step):
        outcome = super()._one(step)
        if step.after.state == "completed":
            rows = self._rows[step.after.identity.id]
            rows[0] = rows[0]._replace(state="thinking")
        return outcome


class ForgetsKeys(MemoryStore):
    """It keeps no idempotency keys."""

    def _one(self, step):
        outcome = super()._one(step)
        self._keys.clear()
        return outcome


class RenewsNothing(MemoryStore):
    """It says that a lease is renewed and leaves it as it was."""

    def worker_renew(self, worker_id, now):
        return any(one.id == worker_id and not one.lost for one in self.workers())


class LosesEarly(MemoryStore):
    """It holds workers for lost that have half of their lease left."""

    def lose(self, now, *, spare=False):
        return super().lose(now + 7.5, spare=spare)


class NeverDue(MemoryStore):
    """It finds no passed deadline."""

    def due(self, now, limit, after=None):
        return []


class DueEarly(MemoryStore):
    """It reports deadlines that are still to come."""

    def due(self, now, limit, after=None):
        return super().due(now + 20.0, limit, after)


class WrongKind(MemoryStore):
    """It mixes the kinds of deadlines up."""

    def due(self, now, limit, after=None):
        return [one._replace(kind="idle") for one in super().due(now, limit, after)]


class HalfAView(MemoryStore):
    """One of its two views of the journal leaves a row out."""

    def history(self, execution_id):
        return super().history(execution_id)[:-1]


class KeepsNoOrders(MemoryStore):
    """It does not keep what a dead process has left to be done."""

    def orders(self, after, limit):
        return []


class BearsOrphans(MemoryStore):
    """It takes children of parents that have ended."""

    def _goes_on(self, execution_id):
        return True


class PrunesWhatIsOpen(MemoryStore):
    """It finds open executions among the ended ones, and deletes them."""

    def ended(self, before_at, limit):
        return [*super().ended(before_at, limit), *(self._ids[-1:])]

    def forget(self, execution_ids, keep=0):
        terminal, self._terminal = self._terminal, {one: frozenset(self._by_state) for one in self._terminal}
        try:
            return super().forget(execution_ids, keep)
        finally:
            self._terminal = terminal


class PrunesTooMuch(MemoryStore):
    """With an execution that it prunes it deletes another ended one."""

    def forget(self, execution_ids, keep=0):
        others = [one for _, one in self._ended if one not in execution_ids][:1]
        return super().forget([*execution_ids, *others])


class PrunesHalf(MemoryStore):
    """It deletes the journal of what it prunes and leaves the record."""

    def forget(self, execution_ids, keep=0):
        kept = {one: self._rows[one][:2] for one in execution_ids if one in self._rows}
        gone = super().forget(execution_ids, keep)
        self._rows.update(kept)
        return gone


AGREE = "journal and state agree"
LOST = "no acknowledged transition is lost"
ONE = "exactly one claimer"
GAP = "versions have no gap"
FINAL = "a terminal state is final"
HEALTHY = "a healthy execution is never declared dead"
FOUND = "a lost execution is found within lease and sweep"
MET = "a deadline that passed is met by the next sweep"
CHILDREN = "children end with their parent"
STALE = "a stale timer is harmless"


@pytest.mark.parametrize(
    ("store", "guarantees"),
    [
        (Loses, {LOST}),
        (LosesLater, {LOST, AGREE, "journal positions have no gap"}),
        (Duplicates, {GAP}),
        (TakesStale, {LOST, AGREE, FINAL, ONE, "a zombie cannot write"}),
        (Reanimates, {AGREE}),
        (ForgetsKeys, {"a key is used once"}),
        (RenewsNothing, {HEALTHY}),
        (LosesEarly, {HEALTHY}),
        (NeverDue, {MET}),
        (DueEarly, {STALE}),
        (WrongKind, {STALE}),
        (KeepsNoOrders, {CHILDREN}),
        (BearsOrphans, {"nothing starts under a parent that has ended"}),
        (PrunesWhatIsOpen, {"what is open is never pruned"}),
        (PrunesTooMuch, {AGREE, "a journal never changes"}),
        (PrunesHalf, {"what was pruned is gone"}),
        (HalfAView, {"both views of a journal agree"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_store_is_caught(store, guarantees):
    """A store that loses, repeats, mixes up or invents is caught, and by the guarantee that it breaks."""
    guarantee, _ = caught(store)
    assert guarantee in guarantees


# --- in the library ---------------------------------------------------------------------------------------------

decide = decide_module.decide


def no_fence_check(monkeypatch):
    monkeypatch.setattr(
        committer_module, "decide", lambda m, s, request: decide(m, s, request.but(fence=s.fence))
    )


def terminal_moves(monkeypatch):
    def moves(machine, snapshot, request):
        decided = decide(machine, snapshot, request)
        if isinstance(decided, Refusal) and decided.reason == "terminal" and request.event == "cancel":
            after = snapshot._replace(state="cancelled", version=snapshot.version + 1)
            return Step(after, snapshot.state, request.event, request.key, request.payload_json, ())
        return decided

    monkeypatch.setattr(committer_module, "decide", moves)


def no_such_row(monkeypatch):
    def jumps(machine, snapshot, request):
        decided = decide(machine, snapshot, request)
        if isinstance(decided, Step) and request.event == "finish":
            return decided._replace(after=decided.after._replace(state="completed", due_at=None))
        return decided

    monkeypatch.setattr(committer_module, "decide", jumps)


def assigns(monkeypatch, name, **otherwise):
    decide_module.assigned.cache_clear()  # what is compiled already follows the table as it was
    monkeypatch.setitem(decide_module.CHANGES, name, decide_module.CHANGES[name] | otherwise)


def claim_keeps_the_fence(monkeypatch):
    assigns(monkeypatch, "claim", fence="fence")


def claim_counts_no_attempt(monkeypatch):
    assigns(monkeypatch, "claim", attempt="attempt")


def release_keeps_the_fence(monkeypatch):
    assigns(monkeypatch, "release", fence="fence")


def sweep_without_compare_and_set(monkeypatch):
    original = Registry.order

    def order(self, execution_id, event, payload, *, version=None, holder=None):
        return original(self, execution_id, event, payload)

    monkeypatch.setattr(Registry, "order", order)


def lapse_forgets(monkeypatch):
    monkeypatch.setattr(sweeper_module, "lapse", lambda registry, worker_id: 0)


def lapse_takes_half(monkeypatch):
    original = Registry.carry_all
    monkeypatch.setattr(
        Registry,
        "carry_all",
        lambda self, commands: original(self, [one for one in commands if one.request.event != "lapse"][:1]),
    )


def sweeps_carry_out_no_orders(monkeypatch):
    monkeypatch.setattr(sweeper_module.Sweeper, "_orphans", lambda self, counts: None)


def orders_are_done_before_they_are_carried_out(monkeypatch):
    original = Registry.call_off

    def call_off(self, order):
        self.store.carried(order)
        return original(self, order)

    monkeypatch.setattr(Registry, "call_off", call_off)


def nobody_is_called_off(monkeypatch):
    monkeypatch.setattr(Registry, "_cancel", lambda self, child, order: None)


def a_receipt_for_what_failed(monkeypatch):
    original = committer_module.Committer._doubt

    def hopes(self, this):
        original(self, this)
        if getattr(this.error, "committed", False) is None:
            this.error = None
            for command, step in zip(this.commands, this.steps, strict=True):
                command.outcome = receipt_of(step, self._store.position() or 1)
            this.outcomes = [command.outcome for command in this.commands]

    rounds = committer_module.Committer._rounds

    def believing(self, batch):
        for this in rounds(self, batch):
            yield this
            if this.error is not None:
                hopes(self, this)

    monkeypatch.setattr(committer_module.Committer, "_rounds", believing)


def deadlines_live_on_the_wall_clock(monkeypatch):
    monkeypatch.setattr(SteadyClock, "now", lambda self: self._clock.wall())


@pytest.mark.parametrize(
    ("plant", "guarantees"),
    [
        (no_fence_check, {"a zombie cannot write"}),
        (terminal_moves, {FINAL}),
        (no_such_row, {"the table is law"}),
        (claim_keeps_the_fence, {ONE}),
        (claim_counts_no_attempt, {ONE}),
        (release_keeps_the_fence, {ONE}),
        (sweep_without_compare_and_set, {STALE, HEALTHY}),
        (lapse_forgets, {FOUND}),
        (lapse_takes_half, {FOUND, MET}),
        (sweeps_carry_out_no_orders, {CHILDREN}),
        (orders_are_done_before_they_are_carried_out, {CHILDREN}),
        (nobody_is_called_off, {CHILDREN}),
        (a_receipt_for_what_failed, {LOST}),
        (
            deadlines_live_on_the_wall_clock,
            {STALE, HEALTHY, FOUND},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_library_is_caught(monkeypatch, plant, guarantees):
    """A check that is left out of the library is caught, and by the guarantee that it stood for."""
    plant(monkeypatch)
    try:
        guarantee, _ = caught()
    finally:
        decide_module.assigned.cache_clear()
    assert guarantee in guarantees
