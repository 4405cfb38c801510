"""What a simulated run came to, and what is said when it failed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from fsm.simulation.observed import Commit

_LAST_EVENTS = 25


class SimulationFailed(AssertionError):
    """A guarantee was broken, the scenario raised, or the loop could not go on; the cause says which.

    Attributes:
        simulation: The `Simulation(...)` that replays it, as Python text.
        report: What had happened by then.
    """

    def __init__(self, what: BaseException, simulation: str, report: Report) -> None:
        self.simulation = simulation
        self.report = report
        last = "".join(f"\n  {event}" for event in report.events[-_LAST_EVENTS:])
        super().__init__(
            f"{type(what).__name__}: {what}\n"
            f"after {report.steps} steps, {report.virtual_s:.6g} virtual seconds and {report.commits} commits; "
            f"trace {report.trace_hash}\nreplay it with: {simulation}.run(scenario)\nlast events:{last or ' none'}"
        )


class Event(NamedTuple):
    """Something that the trace tells, beside the commits.

    Attributes:
        at_s: When, in virtual seconds.
        step: At which step of the loop.
        who: The process.
        what: A fault's kind, or ``boot``, ``resume``, ``sweep``, ``lost``.
        detail: What else there is to say.
    """

    at_s: float
    step: int
    who: str
    what: str
    detail: object

    def __str__(self) -> str:
        return f"{self.at_s:12.6f} s  step {self.step:>8}  {self.who:<10} {self.what} {self.detail}".rstrip()


class Report(NamedTuple):
    """What a run came to.

    Attributes:
        seed: Its seed.
        steps: How many callbacks the loop ran.
        virtual_s: How long it took in virtual seconds.
        commits: How many transitions were committed.
        receipts: How many receipts callers got.
        checks: How often the guarantees were checked.
        faults: How often each kind of fault happened.
        events: Faults and what else the trace tells beside the commits.
        trace_hash: Of every choice, every event and every commit: equal for equal runs.
    """

    seed: int
    steps: int
    virtual_s: float
    commits: int
    receipts: int
    checks: int
    faults: dict[str, int]
    events: tuple[Event, ...]
    trace_hash: str


def fingerprint(schedule: str, events: Sequence[Event], commits: Sequence[Commit]) -> str:
    """Return one hash of a run: every choice, every event, every commit.

    Args:
        schedule: The loop's own hash.
        events: The trace.
        commits: Every commit, in order.
    """
    digest = blake2b(schedule.encode(), digest_size=16)
    for event in events:
        digest.update(str(event).encode())
    for commit in commits:
        row = commit.receipt
        digest.update(
            f"{commit.who} {row.execution_id} {row.version} {row.event} {row.target} {row.at!r} {row.key}".encode()
        )
    return digest.hexdigest()
