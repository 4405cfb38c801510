"""Executions under test: every move is made through a real tracker, and held against the oracle at once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from fsm.clock import ManualClock
from fsm.core.decide import UNDERCUT
from fsm.core.journal import fold
from fsm.core.records import Receipt, Retry
from fsm.errors import BadPayload, Refusal, Refused, UnknownExecution
from fsm.machine.grammar import Arrow, Category
from fsm.machine.timeouts import Timeouts
from fsm.stores.base import Store
from fsm.testing.machine.driver import Driver, Subject, broken
from fsm.testing.machine.oracle import Moment, Oracle, Twin
from fsm.tracker.process import fresh_tracker

Place = str | Callable[[], str | Store]
"""Where executions live: a URL, or a function that returns a URL or an open store."""
_user_numbers = itertools.count(1)
_FORBIDDEN = {
    "unknown_event": "what the table does not allow is refused",
    "not_allowed": "what the table does not allow is refused",
    "guard": "what the table does not allow is refused",
    "fenced": "a zombie cannot write",
    "forbidden": "what is the system's is not a user's",
    "terminal": "a terminal state is final",
    "duplicate": "a key is used once",
}
"""The guarantee that is broken if an event is taken that must be refused for this reason."""


class TrackerDriver(Driver):
    """Runs executions through a fresh tracker, on a clock of its own."""

    def __init__(self, oracle: Oracle, taken: Counter[Arrow], store: Place = "memory://") -> None:
        """Set up a tracker.

        Args:
            oracle: What the table says.
            taken: Counts the rows that were taken.
            store: Where executions are kept: a URL, or a function that returns one, or an open store.
        """
        super().__init__(oracle, taken)
        self.clock = ManualClock()
        self._exit = ExitStack()
        self._user = f"user-{next(_user_numbers)}"
        place = store if isinstance(store, str) else store()
        self.tracker = self._exit.enter_context(
            fresh_tracker(place, clock=self.clock, machines=(oracle.machine,))
        )
        self._seen = self.tracker.position()

    def close(self) -> None:
        """Close the tracker."""
        self._exit.close()

    def _moment(self) -> Moment:
        # Deadlines are laid on a timeline of the registry's own, which has no public name.
        return Moment(self.clock.wall(), self.tracker._registry.now(), self.tracker.worker_id)

    # --- moves ------------------------------------------------------------------------------------------------

    def open(
        self,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        parent: Subject | None = None,
    ) -> Subject:
        """Create an execution, a child if there is a parent."""
        subject = super().open(retry, timeouts, parent)
        moment = self._moment()
        execution = self.tracker.create(
            "agent",
            user_id=self._user,
            thread_id="thread",
            machine=self.machine,
            retry=retry,
            timeouts=timeouts,
            parent_id=parent.id if parent else None,
        )
        subject.id = execution.id
        subject.twin = subject.twin._replace(
            created_at=moment.wall,
            born_at=moment.now,
            entered_at=moment.wall,
            since_at=moment.now,
            updated_at=moment.wall,
            seen_at=moment.now,
        )
        news = self._news()
        if [receipt.version for receipt in news] != [0]:
            broken("a creation is one row of the journal", f"{subject} wrote {news}")
        self._book(subject, news[0], None, "create", None)
        self._look(subject)
        return subject

    def may_have_children(self, parent: Subject) -> bool:
        """Return whether an execution may start children: not once it has ended or is about to."""
        category = self.machine.by_name[parent.twin.state].category
        return category not in {Category.TERMINAL, Category.STOPPING}

    def orphan(self, parent: Subject) -> None:
        """Try to start a child of a parent that has ended or is about to; it must be refused."""
        try:
            child = self.tracker.create(
                "agent", user_id=self._user, thread_id="thread", machine=self.machine, parent_id=parent.id
            )
        except Refused as error:
            self._unmoved(parent, error.refusal, "terminal", ())
        else:
            broken("nothing starts under a parent that has ended", f"{child.id} under {parent}")

    def fire(
        self,
        subject: Subject,
        arrow: Arrow,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        fence: int | None = None,
    ) -> None:
        """Take a row that must be taken, as its owner where it needs one; see `Driver.fire`."""
        moment, source = self._moment(), subject.twin.state
        if fence is None and self.oracle.needs_fence(subject.twin, arrow):
            fence = subject.twin.fence
        try:
            receipt = self.tracker.fire(subject.id, arrow.event, fence=fence, key=key, **payload)
        except Refused as error:
            broken("what the table allows is done", f"{subject} must take {arrow}: {error}")
        subject.twin = self.oracle.take(subject.twin, arrow, payload, moment)
        self.taken[arrow] += 1
        self._book(subject, receipt, source, arrow.event, key)
        if {name: value for name, value in receipt.payload.items() if name != UNDERCUT} != dict(payload):
            broken("a journal keeps what came with an event", f"{subject}: {receipt.payload}, sent {payload}")
        if key is not None:
            subject.keyed[key] = receipt
        # In which order the children of several parents go is nobody's business; that they go next is.
        called_off = sorted(self._call_off_children(subject, arrow, moment), key=lambda one: one.position)
        expected = [receipt, *called_off]
        news = self._news()
        if news != expected:
            broken("journal and state agree", f"{subject}: the journal has {news}, expected {expected}")
        self._look(subject)

    def refuse(
        self,
        subject: Subject,
        event: str,
        payload: Mapping[str, Any],
        reason: str,
        *,
        key: str | None = None,
        fence: int | None = None,
        narrowed: bool = False,
    ) -> None:
        """Fire an event that must be refused for a reason, and see that nothing was changed."""
        tracker = self.tracker.for_user(self._user) if narrowed else self.tracker
        without = ["system"] * narrowed + ["owner"] * (reason == "fenced" and subject.twin.fence > 0)
        try:
            receipt = tracker.fire(subject.id, event, fence=fence, key=key, **payload)
        except Refused as error:
            self._unmoved(subject, error.refusal, reason, self.oracle.allowed(subject.twin, *without))
        else:
            broken(_FORBIDDEN[reason], f"{subject} took {receipt}")

    def repeat(
        self, subject: Subject, key: str, payload: Mapping[str, Any], fence: int | None = None
    ) -> None:
        """Repeat a call with its idempotency key; the first receipt must come back, and nothing be changed."""
        first = subject.keyed[key]
        again = self.tracker.fire(subject.id, first.event, key=key, fence=fence, **payload)
        if again != first:
            broken("an ambiguous commit is safe with a key", f"{subject}: {again} is not {first}")
        self._unmoved(subject)

    def misfit(self, subject: Subject, event: str) -> None:
        """Send a field that no payload has; it must be refused before anything is decided."""
        try:
            self.tracker.fire(subject.id, event, no_such_field=1)
        except BadPayload:
            self._unmoved(subject)
        else:
            broken("a payload that does not fit is refused", f"{subject} took {event!r}")

    def stranger(self, subject: Subject, event: str) -> None:
        """Fire as another user, to whom the execution must be unknown."""
        try:
            self.tracker.for_user("a-stranger").fire(subject.id, event)
        except UnknownExecution:
            self._unmoved(subject)
        else:
            broken("another user's execution is as unknown as none", f"{subject} took {event!r}")

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forth or back."""
        self.clock.jump(seconds)

    # --- checks -----------------------------------------------------------------------------------------------

    def _news(self) -> list[Receipt]:
        """Return what the registry's journal holds since the last look."""
        news = list(self.tracker.subscribe(after=self._seen, user_id=self._user, follow=False))
        self._seen = self.tracker.position()
        return news

    def _call_off_children(self, parent: Subject, arrow: Arrow, moment: Moment) -> list[Receipt]:
        """Expect what becomes of the children of an execution that was ended, and of theirs."""
        receipts: list[Receipt] = []
        if "cancel_children" not in arrow.effects:
            return receipts
        for child in self.subjects:
            row = self.oracle.resolve(child.twin, "cancel", {})
            if child.parent is not parent or row is None:
                continue
            source = child.twin.state
            child.twin = self.oracle.take(child.twin, row, {}, moment)
            self.taken[row] += 1
            history = self.tracker.history(child.id)
            if len(history) != len(child.receipts) + 1:
                broken(
                    "children end with their parent",
                    f"#{child.number} of {parent} was not called off",
                )
            self._book(child, history[-1], source, "cancel", None)
            receipts += [history[-1], *self._call_off_children(child, row, moment)]
            self._look(child)
        return receipts

    def _book(
        self, subject: Subject, receipt: Receipt, source: str | None, event: str, key: str | None
    ) -> None:
        """Hold a receipt against the twin, and keep it."""
        twin = subject.twin
        expected = {
            "execution_id": subject.id,
            "version": twin.version,
            "event": event,
            "source": source,
            "target": twin.state,
            "at": twin.updated_at,
            "attempt": twin.attempt,
            "fence": twin.fence,
            "owner": twin.owner,
            "key": key,
        }
        found = {name: getattr(receipt, name) for name in expected}
        if found != expected:
            broken("a receipt says what the table says", _difference(subject, expected, found))
        if subject.receipts and receipt.at < subject.receipts[-1].at:
            broken("a journal does not run backwards", f"{subject}: {receipt}")
        subject.receipts.append(receipt)

    def _unmoved(
        self,
        subject: Subject,
        refusal: Refusal | None = None,
        reason: str = "",
        allowed: tuple[str, ...] = (),
    ) -> None:
        twin = subject.twin
        if refusal is not None:
            expected = {"state": twin.state, "reason": reason, "allowed": allowed, "version": twin.version}
            found = {name: getattr(refusal, name) for name in expected}
            if found != expected:
                broken("a refusal says why, and what is allowed", _difference(subject, expected, found))
        if news := self._news():
            broken("a refusal changes nothing", f"{subject}: the journal grew by {news}")
        self._look(subject)

    def _look(self, subject: Subject) -> None:
        """Hold an execution, as everybody sees it, against its twin."""
        execution = self.tracker.get(subject.id)
        subject.twin = twin = _settled(subject, execution.not_before)
        due = self.oracle.due(twin, subject.limits)
        ended = self.ended(subject)
        expected: dict[str, Any] = {
            "state": twin.state,
            "category": self.machine.by_name[twin.state].category.value,
            "version": twin.version,
            "created_at": twin.created_at,
            "entered_at": twin.entered_at,
            "updated_at": twin.updated_at,
            "ended_at": twin.updated_at if ended else None,
            "attempt": twin.attempt,
            "owner": twin.owner,
            "fence": twin.fence,
            "open_tools": tuple(name for name, _ in twin.tools),
            "model_attempt": twin.model_attempt,
            "not_before": twin.not_before,
            "due_kind": due[1] if due else None,
        }
        found = {name: getattr(execution, name) for name in expected}
        if found != expected:
            broken("the record is what the table makes of it", _difference(subject, expected, found))
        if (execution.due_at is None) != (due is None) or (due and not _close(execution.due_at, due[0])):
            broken("a deadline is where the limits lay it", f"{subject}: {execution.due_at}, not {due}")
        if not ended and due is None and twin.owner is None and self.oracle.bounded():
            broken("every open execution has a deadline or a lease", str(subject))
        if self.tracker.allowed(subject.id) != self.oracle.allowed(twin):
            broken("what is listed as allowed can be done", f"{subject}: {self.tracker.allowed(subject.id)}")
        self._check_journal(subject)

    def _check_journal(self, subject: Subject) -> None:
        twin = subject.twin
        history = self.tracker.history(subject.id)
        if history != subject.receipts:
            broken("no acknowledged transition is lost", f"{subject}: {history} is not {subject.receipts}")
        if [receipt.version for receipt in history] != list(range(twin.version + 1)):
            broken("versions have no gap", f"{subject}: {history}")
        if fold(history, self.machine) != twin.state:
            broken("journal and state agree", f"{subject}: {history}")
        spent = self.tracker.durations(subject.id)
        now = twin.updated_at if self.ended(subject) else max(self.clock.wall(), twin.updated_at)
        if min(spent.values(), default=0.0) < 0 or not _close(sum(spent.values()), now - twin.created_at):
            broken("the durations sum up to the age", f"{subject}: {spent}, age {now - twin.created_at}")

    def check(self) -> None:
        """Look at every execution once more, and at the registry's lists and counts."""
        if news := self._news():
            broken("nothing happens by itself", f"the journal grew by {news}")
        for subject in self.subjects:
            self._look(subject)
        mine = self.tracker.for_user(self._user)
        states = Counter(subject.twin.state for subject in self.subjects)
        if mine.counts() != dict(states):
            broken("the counts are those of the records", f"{mine.counts()} is not {dict(states)}")
        listed = [execution.id for execution in mine.find(limit=len(self.subjects) + 1)]
        if sorted(listed) != sorted(subject.id for subject in self.subjects):
            broken("every execution is listed once", f"{listed}")


def _settled(subject: Subject, not_before: float | None) -> Twin:
    """Return the twin with the wait that was drawn at random taken over, if that is a possible one."""
    twin = subject.twin
    if not twin.drawn_wait:
        return twin
    if not_before is not None and not_before < twin.since_at:
        broken("a wait ends after it begins", f"{subject}: {not_before}")
    return twin._replace(not_before=not_before, drawn_wait=False)


def _close(one: float | None, other: float) -> bool:
    return one is not None and math.isclose(one, other, rel_tol=0.0, abs_tol=1e-3)


def _difference(subject: Subject, expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    wrong = [
        f"{name} is {found[name]!r}, not {value!r}"
        for name, value in expected.items()
        if found[name] != value
    ]
    return f"{subject}: {'; '.join(wrong)}"
