"""``fsm diagram``: a machine, or one execution's way through it, as a picture or as text."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fsm.cli.load import SHIPPED, load_machine, vocabulary_of
from fsm.cli.options import file_path, located, usable
from fsm.diagram import committed
from fsm.diagram.dot import to_dot
from fsm.diagram.mermaid import to_mermaid
from fsm.diagram.path import Path as Way
from fsm.diagram.path import path_of
from fsm.diagram.render import render_png, render_svg
from fsm.errors import FsmError
from fsm.machine.export import to_scxml, to_xstate
from fsm.machine.machine import Machine
from fsm.machine.tla import to_tla

FINDING = 1
USAGE = 2


class Form(StrEnum):
    """What the command writes."""

    DOT = "dot"
    SVG = "svg"
    PNG = "png"
    MERMAID = "mermaid"
    SCXML = "scxml"
    XSTATE = "xstate"
    TLA = "tla"
    JSON = "json"


SUFFIXES = {".dot": Form.DOT, ".gv": Form.DOT, ".svg": Form.SVG, ".png": Form.PNG, ".mmd": Form.MERMAID} | {
    ".scxml": Form.SCXML,
    ".tla": Form.TLA,
    ".json": Form.JSON,
}
DRAWINGS = frozenset({Form.DOT, Form.SVG, Form.PNG, Form.MERMAID})


def diagram(
    machine: Annotated[
        str, typer.Argument(help="execution, breaker, or MODULE:NAME for a machine of your own.")
    ] = "execution",
    form: Annotated[
        Form | None,
        typer.Option("--format", help="What to write; else told by the name of the file, or dot."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=file_path,
            metavar="PATH",
            help="The file to write; a directory gets NAME.dot, .mmd and .svg. Else standard output.",
        ),
    ] = None,
    highlight: Annotated[
        str | None, typer.Option(callback=usable, help="The state to draw as the current one.")
    ] = None,
    execution: Annotated[
        str | None,
        typer.Option(callback=usable, help="Draw the way that this execution took, with counts and times."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare the shipped machines' files in diagrams/ (or -o) with the tables."
        ),
    ] = False,
    store: Annotated[
        str | None, typer.Option(callback=located, help="Where --execution looks. (default: $FSM_STORE)")
    ] = None,
) -> None:
    """Draw a machine: its table, or the way that one execution took through it.

    Exit codes: 0 done, 1 --check found a difference, 2 it could not be done.
    """
    try:
        if check:
            _check(output or Path("diagrams"))
            return
        if highlight is not None and execution is not None:
            _refuse(
                "--highlight and --execution exclude each other: an execution shows its own current state"
            )
        drawn, way = (load_machine(machine), None) if execution is None else _history(store, execution)
        if output is not None and form is None and (output.is_dir() or not output.suffix):
            if highlight is not None or execution is not None:
                _refuse("a directory gets the plain drawings: name a file, such as -o way.svg")
            for name in committed.write(output, drawn):
                typer.echo(f"wrote {output / name}", err=True)
            return
        _write(_made(drawn, _form(form, output), highlight, way), _form(form, output), output)
    except (FsmError, OSError) as error:
        _refuse(str(error))


def _made(machine: Machine, form: Form, highlight: str | None, way: Way | None) -> bytes:
    """Make the content of one file."""
    if form not in DRAWINGS and (highlight is not None or way is not None):
        _refuse(
            f"--format {form} is the table itself: --highlight and --execution need dot, svg, png or mermaid"
        )
    if form is Form.MERMAID:
        return to_mermaid(machine, highlight=highlight, path=way).encode()
    if form in DRAWINGS:
        dot = to_dot(machine, highlight=highlight, path=way)
        return (
            {Form.SVG: render_svg, Form.PNG: render_png}[form](dot) if form is not Form.DOT else dot.encode()
        )
    if form is Form.JSON:
        return f"{machine.to_json(indent=2)}\n".encode()
    if form is Form.TLA:
        return to_tla(machine, vocabulary_of(machine)).encode()
    return (to_scxml if form is Form.SCXML else to_xstate)(machine).encode()


def _form(form: Form | None, output: Path | None) -> Form:
    if form is not None:
        return form
    if output is None:
        return Form.DOT
    if output.suffix not in SUFFIXES:
        _refuse(f"{output.name} does not say what it is: add --format, or end it in {', '.join(SUFFIXES)}")
    return SUFFIXES[output.suffix]


def _write(content: bytes, form: Form, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(content)
    elif form is Form.PNG and _is_terminal():
        _refuse("a terminal cannot show PNG: add -o FILE.png, or send it on with > or |")
    else:
        typer.echo(content, nl=False)


def _check(directory: Path) -> None:
    """Compare the shipped machines' files, and name what differs."""
    differing = committed.check(directory, SHIPPED.values())
    if not differing:
        typer.echo(f"{directory}: all drawings say what the tables say", err=True)
        return
    for name in differing:
        typer.echo(str(directory / name))
    again = "; ".join(f"fsm diagram {name} -o {directory}" for name in SHIPPED)
    typer.echo(f"{len(differing)} differ or are missing. Make them again: {again}", err=True)
    raise typer.Exit(FINDING)


def _history(store: str | None, execution_id: str) -> tuple[Machine, Way]:
    """Read the journal of an execution."""
    from fsm.cli.common import history_of  # noqa: PLC0415 - a drawing of a table opens no store

    machine, steps, now = history_of(store, execution_id)
    return machine, path_of(steps, now, machine.terminal)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _refuse(why: str) -> NoReturn:
    """Say what is wrong, and end with the code for it."""
    typer.echo(f"fsm diagram: {why}", err=True)
    raise typer.Exit(USAGE)
