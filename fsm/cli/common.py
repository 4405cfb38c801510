"""What the commands share: the store option, opening it, printing, exit codes.

Exit codes: 0 all is well; 1 something was found (a refusal, a malformed line, a difference); 2 it could not be done;
70 an unexpected error, which is a bug; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fsm.cli import last_resort
from fsm.cli.options import JsonOption, StoreOption
from fsm.clock import Clock
from fsm.errors import FsmError, Refused
from fsm.machine.grammar import Category
from fsm.machine.machine import Machine
from fsm.tracker.process import DEFAULT_STORE, configure
from fsm.tracker.scope import Scope
from fsm.tracker.tracker import Tracker

if TYPE_CHECKING:
    from fsm.core.records import Execution

FOUND = 1
COULD_NOT = 2
STOPPED = 130
PAGE = 1_000
"""Number of executions that are read at a time."""
MAX_LINE = 1_000
"""The longest line of a table, in characters."""
SHOWN_OPEN = 20
"""Maximum number of open executions that are named when a command is stopped."""

__all__ = ["JsonOption", "StoreOption"]  # the commands take these from here, too

P = ParamSpec("P")
T = TypeVar("T")

COLOURS: dict[str, str] = {
    Category.PENDING: "bright_black",
    Category.RUNNING: "cyan",
    Category.WAITING: "yellow",
    Category.STOPPING: "magenta",
    Category.TERMINAL: "white",
}
ENDS: dict[str, str] = {
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "dead": "red",
    "cancelled": "magenta",
}

# Into a pipe or a file a line is as wide as it wants to be: nobody greps for half an id.


class _Plain(Console):
    """A console on which text is text: control characters in it do not reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as any console does, without the control characters that somebody may have put into a name."""
        narrow_terminal = not self.encoding.startswith("utf")
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else _CONTROL.sub("", segment.text)
            if narrow_terminal:
                text = text.translate(_ASCII)  # one character for one: columns stay where they are
            yield segment if text == segment.text else Segment(text, segment.style)

    def on_broken_pipe(self) -> None:
        """Let the command end as it does for every other reader that hung up."""
        raise BrokenPipeError


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ASCII = str.maketrans("→█…·—─│", ">#~.--|")
# Names, questions and errors come from agents and users: a bracket in them is a bracket, and no markup.
out = _Plain(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
err = _Plain(stderr=True, highlight=False, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """Print a table; on a terminal too narrow for it its lines run over, and no id is cut off."""
    least = Measurement.get(out, out.options.update(max_width=MAX_LINE), table).minimum
    out.print(table, width=max(out.width, least), crop=False)


def fail(message: str) -> NoReturn:
    """Say why it could not be done, and leave with the exit code 2."""
    err.print(Text.assemble(("fsm: ", "bold red"), message))
    raise typer.Exit(COULD_NOT)


def teaching(command: Callable[P, T]) -> Callable[P, T]:
    """Turn errors into one line and an exit code; a reader that hung up ends quietly, and Ctrl-C with the code 130."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            done = command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, _UsageError):
            raise
        except KeyboardInterrupt:
            err.print("fsm: stopped")
            raise typer.Exit(STOPPED) from None
        except Exception as error:  # noqa: BLE001 - a command ends in a line and never in a traceback
            _give_up(error)
        return done

    return wrapped


# typer brings click along, or leans on an installed one; this is the base of both's errors about usage.
_UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def _give_up(error: Exception) -> NoReturn:
    if isinstance(error, BaseExceptionGroup):  # of several tasks: the first that says what to do
        known: BaseException | None = error.subgroup((FsmError, OSError))
        while isinstance(known, BaseExceptionGroup):
            known = known.exceptions[0]
        error = known if isinstance(known, Exception) else error
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has seen enough. Python would complain once more at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if isinstance(error, OSError) and error.strerror:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, (FsmError, ValidationError, OSError)):
        fail(str(error))
    raise typer.Exit(last_resort(error)) from None


def store_url(store: str | None) -> str:
    """Return the URL of the store that the user means."""
    return store or os.environ.get("FSM_STORE") or DEFAULT_STORE


def open_tracker(store: str | None, *, must_exist: bool = False, clock: Clock | None = None) -> Tracker:
    """Set the process's tracker up on the store that the user named.

    Args:
        store: The URL, or ``None`` for $FSM_STORE or the default.
        must_exist: Refuse to create a file: whoever only looks wants to hear that there is nothing.
        clock: Where time comes from.
    """
    url = store_url(store)
    if must_exist and url.startswith("sqlite:"):
        from fsm.stores.sqlite.connect import parse_url  # noqa: PLC0415 - only for this store

        path, _ = parse_url(url)
        if not os.path.exists(path):  # noqa: PTH110 - a name that the system refuses is the name of no file
            fail(
                f"there is no store at {path} yet. Type 'fsm demo' to fill one, or name another with --store URL "
                "or FSM_STORE."
            )
    return configure(url, clock=clock)


def narrow(tracker: Tracker, user: str | None) -> Scope:
    """Return what a command may see: one user's executions if one is named, else everybody's."""
    return tracker if user is None else tracker.for_user(user)


def print_json(data: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=_ascii_only()) + "\n")


def print_json_line(data: Any) -> None:
    """Print one JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(data, ensure_ascii=_ascii_only()) + "\n")
    sys.stdout.flush()


def _ascii_only() -> bool:
    return not (sys.stdout.encoding or "").lower().startswith("utf")


def login() -> str:
    """Return the name of the person at the keyboard, as far as the system knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "somebody at the command line"


def made_since(tracker: Tracker, after: str, user: str | None = None) -> Iterator[Execution]:
    """Yield the executions that were created after an id was made, in pages.

    Args:
        tracker: The tracker.
        after: The id.
        user: Only this user's.
    """
    while True:
        page = tracker.find(user_id=user, after=after, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def call_off(tracker: Tracker, made: Iterable[Execution]) -> None:
    """Cancel those executions that are still open: their driver was stopped."""
    for one in made:
        if not one.ended:
            with suppress(Refused):  # its driver ends it just now
                tracker.fire(one.id, "cancel", reason="stopped with Ctrl-C", by=login())


def say_stopped(made: Iterable[Execution]) -> NoReturn:
    """Say what became of executions when a person pressed Ctrl-C, as the registry has it now; exit code 130."""
    ended: Counter[str] = Counter()
    still_open: list[Execution] = []
    for one in made:
        if one.ended:
            ended[one.state] += 1
        else:
            still_open.append(one)
    said = ", ".join(f"{count} {state}" for state, count in ended.most_common())
    err.print(f"Stopped. Ended: {ended.total()}{f' ({said})' if said else ''}.")
    if still_open:
        err.print(f"Still open: {len(still_open)}. 'fsm sweep' ends what is open when its deadlines pass.")
        for one in still_open[:SHOWN_OPEN]:
            err.print(f"  {one.id}  {one.state}", soft_wrap=True)
        if len(still_open) > SHOWN_OPEN:
            err.print(f"  and {len(still_open) - SHOWN_OPEN} more: fsm list")
    else:
        err.print("Still open: 0.")
    raise typer.Exit(STOPPED)


def state_text(state: str, category: str) -> Text:
    """Return a state in the colour of what it means."""
    return Text(state, style=ENDS.get(state) or COLOURS.get(category, "white"))


def seconds_text(seconds: float) -> str:
    """Return a duration for people: four characters or so, with its unit."""
    if not seconds < 1e15:  # noqa: PLR2004 - no calendar reaches there; a damaged or foreign record may
        return "for ever"
    if seconds < 0.0005:  # noqa: PLR2004 - half a millisecond
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:  # noqa: PLR2004 - two hours
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{round(hours / 24, 1):.6g} d"  # noqa: PLR2004 - two days


def ago_text(at: float, now: float | None = None) -> str:
    """Return how long ago an instant was."""
    return f"{seconds_text(max(0.0, (time.time() if now is None else now) - at))} ago"


def clock_text(at: float) -> str:
    """Return an instant as local date and time, to the millisecond."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    except (OverflowError, ValueError, OSError):  # what the calendar of this system does not reach
        return f"{at:g} s after 1970"


def as_json(executions: Iterable[Execution]) -> list[dict[str, Any]]:
    """Return executions as JSON-ready data."""
    return [execution.model_dump(mode="json") for execution in executions]


def history_of(
    store: str | None, execution_id: str
) -> tuple[Machine, list[tuple[str | None, str, str, float]], float]:
    """Return what a drawing of one execution's path needs.

    Args:
        store: The URL, or ``None`` for the default.
        execution_id: The execution.

    Returns:
        Its machine, its journal as (source, event, target, at), and the instant now, in seconds since the epoch.
    """
    tracker = open_tracker(store, must_exist=True)
    steps = [(one.source, one.event, one.target, one.at) for one in tracker.history(execution_id)]
    return tracker.machine_of(execution_id), steps, tracker.clock.wall()
