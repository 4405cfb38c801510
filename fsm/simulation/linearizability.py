"""Whether what callers saw of a store can be explained by one order of its operations, one after the other.

A `History` records who asked what, when, and what came back, over threads and over processes. `check` looks for an
order in which each operation takes effect at one instant between its call and its return, as an execution of the table
alone would answer it (linearizability, Herlihy and Wing 1990). The search is that of Wing and Gong, with the memo of
Lowe; it goes through each execution by itself, as operations on one say nothing about another.

An operation whose answer was not heard (its process was killed, the store did not answer) took effect at any instant
after its call, or never.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fsm.core.journal import legal_rows
from fsm.errors import ConfigurationError, FsmError, Refused
from fsm.machine.grammar import CREATE
from fsm.machine.machine import Machine

MAX_CONFIGURATIONS = 1_000_000
"""Maximum number of situations that the search looks at for one execution; past it the answer is unknown."""
FIRE, GET = "fire", "get"

T = TypeVar("T")


class Operation(NamedTuple):
    """One call and what came of it.

    Attributes:
        execution_id: The execution.
        name: ``fire`` or ``get``; a creation is a fire of ``create``.
        event: The event of a fire.
        called: When it was called, in seconds on a clock that all recorders share.
        returned: When its answer came; infinity if none came.
        source: Of a fire that was committed, the state before.
        state: The state that the answer tells: after a fire, at a read, at a refusal; ``None`` if it tells none.
        version: The version that goes with it.
        refused: Whether it was refused: then nothing was changed.
    """

    execution_id: str
    name: str
    event: str | None
    called: float
    returned: float
    source: str | None = None
    state: str | None = None
    version: int | None = None
    refused: bool = False

    @property
    def heard(self) -> bool:
        """Whether an answer came."""
        return self.returned < math.inf


class Violation(NamedTuple):
    """Operations on one execution that no order explains.

    Attributes:
        execution_id: The execution.
        operations: All operations on it, by the time of their call.
        stuck: Those of which none can come next, after the longest order that was found.
        explained: How many operations that order has.
    """

    execution_id: str
    operations: tuple[Operation, ...]
    stuck: tuple[Operation, ...]
    explained: int

    def __str__(self) -> str:
        lines = "\n".join(f"  {one}" for one in self.stuck)
        return (
            f"{self.execution_id}: after {self.explained} of {len(self.operations)} operations, none of these can be "
            f"next:\n{lines}"
        )


class History:
    """Records operations, of any thread; with a file of each process, of any process.

    The clock is the system's monotonic one, which all processes of a machine share. Instants that are equal are taken
    for overlapping, so that a coarse clock hides an order and never invents one.
    """

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none.

        Args:
            path: A file of this process: each call is written there before it is made, so that it is known after a
                kill. ``None`` keeps the history in memory.
            clock: Where instants come from.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._operations: list[Operation] = []
        self._file = None if path is None else path.open("a", encoding="utf-8")
        self._number = 0

    def operations(self) -> list[Operation]:
        """Return what was recorded so far in this process."""
        with self._lock:
            return list(self._operations)

    def create(self, tracker: Any, agent: str, **given: Any) -> Any:
        """Create an execution through a tracker, and record it; its id is known only with the answer."""
        called = self._clock()
        made = tracker.create(agent, **given)
        self._note(Operation(made.id, FIRE, CREATE, called, self._clock(), None, made.state, made.version))
        return made

    def fire(self, tracker: Any, execution_id: str, event: str, **given: Any) -> Any:
        """Fire an event through a tracker, and record it; what is raised is raised on."""
        begun = Operation(execution_id, FIRE, event, self._clock(), math.inf)
        return self._recorded(begun, lambda: tracker.fire(execution_id, event, **given), _fired)

    def get(self, tracker: Any, execution_id: str) -> Any:
        """Read an execution through a tracker, and record it."""
        begun = Operation(execution_id, GET, None, self._clock(), math.inf)
        return self._recorded(
            begun, lambda: tracker.get(execution_id), lambda got: {"state": got.state, "version": got.version}
        )

    def _recorded(self, begun: Operation, call: Callable[[], T], told: Callable[[T], dict[str, Any]]) -> T:
        number = self._write({"call": list(begun)})
        try:
            answer = call()
        except Refused as error:
            said = error.refusal
            # `stale` and `fenced` tell the version that they were refused at, as every refusal does.
            done = begun._replace(
                returned=self._clock(), state=said.state, version=said.version, refused=True
            )
            self._note(done, number)
            raise
        except FsmError as error:
            if getattr(error, "committed", None) is not False:
                self._note(begun, number)  # it is unknown whether it happened
            raise
        self._note(begun._replace(returned=self._clock(), **told(answer)), number)
        return answer

    def _write(self, data: dict[str, Any]) -> int:
        with self._lock:
            self._number += 1
            if self._file is not None:
                self._file.write(json.dumps(data | {"number": data.get("number", self._number)}) + "\n")
                self._file.flush()
            return self._number

    def _note(self, operation: Operation, number: int | None = None) -> None:
        data = {"done": list(operation)} | ({} if number is None else {"number": number})
        self._write(data)
        with self._lock:
            self._operations.append(operation)


def _fired(receipt: Any) -> dict[str, Any]:
    return {"source": receipt.source, "state": receipt.target, "version": receipt.version}


def read(paths: Iterable[Path]) -> list[Operation]:
    """Read the histories of several processes; a call without an answer took effect at some time, or never."""
    found: list[Operation] = []
    for path in paths:
        begun: dict[int, Operation] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                continue  # the process was killed while it wrote its last line
            if "call" in data:
                begun[data["number"]] = Operation(*data["call"])
            else:
                begun.pop(data["number"], None)
                found.append(Operation(*data["done"]))
        found += begun.values()
    return found


def check(operations: Iterable[Operation], machine: Machine) -> list[Violation]:
    """Return the executions whose operations no order explains; an empty list certifies the history.

    Args:
        operations: What was recorded; of each execution from its creation on.
        machine: The machine that all of them are instances of.

    Raises:
        ConfigurationError: The operations on one execution overlap so much that the search was given up.
    """
    by_execution: dict[str, list[Operation]] = {}
    for one in operations:
        by_execution.setdefault(one.execution_id, []).append(one)
    found = (_explain(execution_id, mine, machine) for execution_id, mine in by_execution.items())
    return [one for one in found if one is not None]


def _explain(execution_id: str, operations: list[Operation], machine: Machine) -> Violation | None:
    """Search an order, depth first; what was reached with the same operations done and the same record is not again."""
    mine = tuple(sorted(operations, key=lambda one: (one.called, one.returned)))
    rows = legal_rows(machine)
    targets: dict[tuple[str | None, str], list[str]] = {}
    for source, event, target in sorted(rows, key=str):
        targets.setdefault((source, event), []).append(target)
    needed = sum(1 << index for index, one in enumerate(mine) if one.heard)
    seen: set[tuple[int, str | None, int]] = set()
    best, stuck = 0, mine
    todo: list[tuple[int, str | None, int]] = [(0, None, -1)]
    while todo:
        done, state, version = todo.pop()
        if done & needed == needed:
            return None
        if (done, state, version) in seen:
            continue
        seen.add((done, state, version))
        if len(seen) > MAX_CONFIGURATIONS:
            raise ConfigurationError(
                f"{execution_id}: the search for an order was given up after {MAX_CONFIGURATIONS} situations: record "
                "fewer operations at once"
            )
        left = [index for index in range(len(mine)) if not done >> index & 1]
        # What was called after something else has returned cannot be before it.
        first_return = min((mine[index].returned for index in left), default=math.inf)
        open_ = [index for index in left if mine[index].called <= first_return]
        if done.bit_count() >= best:
            best, stuck = done.bit_count(), tuple(mine[index] for index in open_)
        for index in reversed(open_):
            todo.extend(
                (done | 1 << index, *after) for after in _effects(mine[index], state, version, targets)
            )
    return Violation(execution_id, mine, stuck, best)


def _effects(
    one: Operation, state: str | None, version: int, targets: dict[tuple[str | None, str], list[str]]
) -> Iterator[tuple[str | None, int]]:
    """Yield what the record may be after an operation, if it may come next; nothing if it may not."""
    if not one.heard:
        if one.name == FIRE and one.event is not None:  # a read without an answer says nothing
            yield from ((target, version + 1) for target in targets.get((state, one.event), ()))
        return
    if one.name == GET or one.refused:
        if (one.state, one.version) == (state, version):
            yield state, version
        return
    fits = one.source == state and one.version == version + 1
    if fits and one.state in targets.get((state, one.event or ""), ()):
        yield one.state, version + 1
