"""The options and arguments that commands share, each checked in one place.

An option with an empty value is a usage error and never the same as no option: ``--user "$USER_ID"`` with an unset
variable must not show everybody's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fsm.core.arguments import text
from fsm.errors import InvalidArgument

T = TypeVar("T")

MAX_PATH = 4_096
"""Maximum number of characters of a path or a URL."""


def usable(value: T) -> T:
    """Return the value of an option that names something; refuse one that names nothing."""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if one == "":
            raise typer.BadParameter("it is empty: give a value, or leave the option out")
        if one is not None:
            try:
                text("it", one)
            except InvalidArgument as error:
                raise typer.BadParameter(str(error)) from None
    return value


def said(value: str | None) -> str | None:
    """Return what a person says; refuse an empty text."""
    if value is not None and not value.strip():
        raise typer.BadParameter("it is empty: say something, or leave the option out")
    return value


def located(value: str | None) -> str | None:
    """Return a URL; refuse an empty one, which would silently mean another store."""
    if value == "":
        raise typer.BadParameter("it is empty: give a URL, or leave the option out")
    if value is not None and (len(value) > MAX_PATH or "\0" in value):
        raise typer.BadParameter(f"it has {MAX_PATH} characters at most, none of them NUL")
    return value


def file_path(value: str) -> Path:
    """Return a path; refuse an empty one, which would mean the current directory."""
    if not value or len(value) > MAX_PATH or "\0" in value:
        raise typer.BadParameter("it is empty, too long or holds a NUL: name a file")
    return Path(value)


def finite(value: float) -> float:
    """Return a number; refuse NaN, which no limit keeps out."""
    if not math.isfinite(value):
        raise typer.BadParameter("it is no number")
    return value


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        callback=located,
        help="Where executions are kept. (default: $FSM_STORE, else sqlite:///fsm.db)",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable fields instead of tables.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", callback=usable, help="The execution.")]
AgentOption = Annotated[str | None, typer.Option(callback=usable, help="Only of this agent.")]
UserOption = Annotated[str | None, typer.Option(callback=usable, help="Only of this user.")]
ThreadOption = Annotated[str | None, typer.Option(callback=usable, help="Only of this conversation.")]
AfterOption = Annotated[str | None, typer.Option(callback=usable, help="Go on after this id.")]
