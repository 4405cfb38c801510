"""What the commands share: the store option, opening it, printing, exit codes.

Exit codes: 0 all is well; 1 something was found (a refusal, a malformed line, a difference); 2 it could not be done.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fsm.clock import Clock
from fsm.errors import FsmError
from fsm.machine import Category, Machine
from fsm.process import DEFAULT_STORE, configure
from fsm.scope import Scope
from fsm.tracker import Tracker

if TYPE_CHECKING:
    from fsm.records import Execution

FOUND = 1
COULD_NOT = 2

P = ParamSpec("P")
T = TypeVar("T")

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Where executions are kept. (default: $FSM_STORE, else sqlite:///fsm.db)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable fields instead of tables.")]

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
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(_CONTROL.sub("", segment.text), segment.style)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Names, questions and errors come from agents and users: a bracket in them is a bracket, and no markup.
out = _Plain(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
err = _Plain(stderr=True, highlight=False, markup=False, emoji=False)


def fail(message: str) -> NoReturn:
    """Say why it could not be done, and leave with the exit code 2."""
    err.print(Text.assemble(("fsm: ", "bold red"), message))
    raise typer.Exit(COULD_NOT)


def teaching(command: Callable[P, T]) -> Callable[P, T]:
    """Turn the library's errors into one line and the exit code 2; a reader that hung up ends quietly."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            # The reader (head, less) has seen enough. Python would complain once more at exit: give it a sink.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (FsmError, ValidationError) as error:
            fail(str(error))

    return wrapped


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
        if not path.exists():
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
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def print_json_line(data: Any) -> None:
    """Print one JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def state_text(state: str, category: str) -> Text:
    """Return a state in the colour of what it means."""
    return Text(state, style=ENDS.get(state) or COLOURS.get(category, "white"))


def seconds_text(seconds: float) -> str:
    """Return a duration for people: four characters or so, with its unit."""
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
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} d"  # noqa: PLR2004 - two days


def ago_text(at: float, now: float | None = None) -> str:
    """Return how long ago an instant was."""
    return f"{seconds_text(max(0.0, (time.time() if now is None else now) - at))} ago"


def clock_text(at: float) -> str:
    """Return an instant as local date and time, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"


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
