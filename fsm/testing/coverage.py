"""Which rows of a machine the tests took: transition coverage, as a pytest plugin.

    pytest --fsm-cover                            # say for both shipped machines what was taken and what was not
    pytest --fsm-cover-machine shop.flow:ORDER    # for a machine of your own instead; may be given several times
    pytest --fsm-cover-fail                       # and fail if anything was not
    pytest --fsm-cover-draw out/                  # and draw it, what was not taken in red

What counts is an arrow: a row of the table for one of its source states. It is taken when the table's executor takes
it in this process or in a worker of pytest-xdist; what a test's own subprocesses do is not seen. A test that runs a
whole table by force, without an execution that gets there, says ``@pytest.mark.fsm_no_cover`` and does not count.

Nothing is watched unless an option asks for it, and the library's own code knows nothing of it: the watch is put
around the triggers of the executors, for the length of the run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from fsm.diagram import render_svg, to_dot
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.executor import Executor, Question
from fsm.machine.grammar import Arrow
from fsm.machine.machine import Machine
from fsm.machine.table import Table

Observer = Callable[[Machine, Arrow], None]
Trigger = Callable[[Question], bool]


# --- watching -------------------------------------------------------------------------------------------------

_observers: list[Observer] = []
_watched: list[tuple[dict[str, Trigger], dict[str, Trigger]]] = []
_build = Executor.__init__


def _build_watched(self: Executor, table: Table) -> None:
    _build(self, table)
    _watch(cast("Machine", table.declared), self.triggers)


def _watch(machine: Machine, triggers: dict[str, Trigger]) -> None:
    _watched.append((triggers, dict(triggers)))
    triggers.update({event: _observed(machine, trigger) for event, trigger in triggers.items()})


def _observed(machine: Machine, trigger: Trigger) -> Trigger:
    @wraps(trigger)
    def observed(question: Question) -> bool:
        done = trigger(question)
        if done and question.arrow is not None:
            for observer in _observers:
                observer(machine, question.arrow)
        return done

    return observed


@contextmanager
def observed(observer: Observer, machines: Iterable[Machine] = ()) -> Iterator[None]:
    """Call an observer for every arrow that any machine takes, for the length of a ``with`` block.

    Args:
        observer: Gets the machine and the arrow; it is called by whatever thread takes the arrow.
        machines: Machines that may have been run before; others are seen from their first run on.
    """
    if not _observers:
        Executor.__init__ = _build_watched  # type: ignore[method-assign]
    _observers.append(observer)
    for machine in machines:
        if not any(triggers is machine.executor.triggers for triggers, _ in _watched):
            _watch(machine, machine.executor.triggers)
    try:
        yield
    finally:
        _observers.remove(observer)
        if not _observers:
            Executor.__init__ = _build  # type: ignore[method-assign]
            for triggers, before in _watched:
                triggers.update(before)
            _watched.clear()


class Tally:
    """Which arrows were taken, by the content hash of their machine."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.taken: dict[str, set[int]] = {}
        self.paused = False
        self._numbers: dict[str, dict[Arrow, int]] = {}

    def note(self, machine: Machine, arrow: Arrow) -> None:
        """Note an arrow, unless a test runs that does not count."""
        if self.paused:
            return
        identity = machine.content_hash
        numbers = self._numbers.get(identity)
        if numbers is None:
            numbers = self._numbers[identity] = {one: index for index, one in enumerate(machine.arrows)}
        self.taken.setdefault(identity, set()).add(numbers[arrow])

    def merge(self, taken: dict[str, list[int]]) -> None:
        """Add what another process noted, as `dump` gave it there."""
        for identity, numbers in taken.items():
            self.taken.setdefault(identity, set()).update(numbers)

    def dump(self) -> dict[str, list[int]]:
        """Return what was noted, as plain data."""
        return {identity: sorted(numbers) for identity, numbers in self.taken.items()}

    def missing(self, machine: Machine) -> tuple[Arrow, ...]:
        """Return the arrows of a machine that were not taken, in the table's order."""
        taken = self.taken.get(machine.content_hash, set())
        return tuple(arrow for index, arrow in enumerate(machine.arrows) if index not in taken)


# --- saying it ------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    text: str
    bad: bool


def describe(machine: Machine, missing: Sequence[Arrow]) -> list[_Line]:
    """Return the lines of the report: how much was taken, then each row that was not, with the sources it lacks."""
    total = len(machine.arrows)
    lines = [_Line(f"{machine.name}: {total - len(missing)} of {total} arrows taken", bad=bool(missing))]
    lacking: dict[int, list[str]] = {}
    for arrow in missing:
        lacking.setdefault(arrow.row, []).append(arrow.source)
    for number, sources in lacking.items():
        one = machine.transitions[number]
        if len(sources) < len(machine.sources_of(one)):
            one = one.model_copy(update={"source": tuple(sources)})
        lines.append(_Line(f"  never taken: {one}", bad=True))
    return lines


def draw(machine: Machine, missing: Sequence[Arrow], directory: Path) -> None:
    """Write a drawing as DOT text and as SVG, the arrows that were not taken in red.

    Args:
        machine: The machine; the files bear its name.
        missing: The arrows that were not taken.
        directory: Where to write; it is made if need be.

    Raises:
        RenderError: The layout program is missing or failed.
    """
    dot = to_dot(machine, missing=[(arrow.source, arrow.event, arrow.target) for arrow in missing])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{machine.name}.dot").write_text(dot, encoding="utf-8")
    (directory / f"{machine.name}.svg").write_bytes(render_svg(dot))


# --- the plugin -----------------------------------------------------------------------------------------------


def configure(config: pytest.Config) -> None:
    """Set the watch up if an option asks for it; called from ``pytest_configure``.

    Raises:
        pytest.UsageError: A named machine cannot be imported, or is none.
    """
    names: list[str] = config.getoption("--fsm-cover-machine") or []
    directory: str | None = config.getoption("--fsm-cover-draw")
    fail = bool(config.getoption("--fsm-cover-fail"))
    if names or directory or fail or config.getoption("--fsm-cover"):
        base = config.invocation_params.dir
        machines = [_load(name, base) for name in names] or [EXECUTION, BREAKER]
        plugin = CoverPlugin(machines, fail=fail, directory=base / directory if directory else None)
        config.pluginmanager.register(plugin, "fsm-cover")


def _load(name: str, base: Path) -> Machine:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(base))  # as `python -m pytest` would
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(
            f"--fsm-cover-machine {name}: write MODULE:NAME of a machine: {error}"
        ) from None
    finally:
        sys.path.remove(str(base))
    if not isinstance(found, Machine):
        raise pytest.UsageError(f"--fsm-cover-machine {name}: {found!r} is no fsm.Machine")
    return found


class CoverPlugin:
    """Watches one run, in the main process or in a worker of pytest-xdist, and reports in the main one."""

    def __init__(self, machines: Sequence[Machine], *, fail: bool, directory: Path | None) -> None:
        """Begin to watch.

        Args:
            machines: What to report on.
            fail: Whether the run fails if an arrow was not taken.
            directory: Where to write drawings, or ``None``.
        """
        self.tally = Tally()
        self._machines = machines
        self._fail = fail
        self._directory = directory
        self._exit = ExitStack()
        self._exit.enter_context(observed(self.tally.note, machines))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look away while a test runs that does not count."""
        self.tally.paused = item.get_closest_marker("fsm_no_cover") is not None
        try:
            return (yield)
        finally:
            self.tally.paused = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker noted; one that crashed noted nothing that we can know."""
        self.tally.merge(getattr(node, "workeroutput", {}).get("fsm_cover", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand over in a worker; draw and judge in the main process."""
        output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["fsm_cover"] = self.tally.dump()
            return
        missing = {machine.name: self.tally.missing(machine) for machine in self._machines}
        if self._directory is not None:
            for machine in self._machines:
                draw(machine, missing[machine.name], self._directory)
        if self._fail and session.exitstatus == pytest.ExitCode.OK and any(missing.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was taken and what was not."""
        terminalreporter.section("fsm transition coverage")
        for machine in self._machines:
            for line in describe(machine, self.tally.missing(machine)):
                terminalreporter.write_line(line.text, red=line.bad and self._fail, green=not line.bad)
        if self._directory is not None:
            terminalreporter.write_line(f"drawings: {self._directory}")

    def pytest_unconfigure(self) -> None:
        """Stop watching."""
        self._exit.close()
