"""The `fsm` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from fsm.audit.cli import audit_command
from fsm.cli.answer import answer_command
from fsm.cli.breakers import breaker_command, breakers_command
from fsm.cli.common import teaching
from fsm.cli.copy import copy_command
from fsm.cli.demo import demo_command
from fsm.cli.diagram import diagram
from fsm.cli.diff import diff_command
from fsm.cli.doctor import doctor_command
from fsm.cli.inspect import list_command, show_command
from fsm.cli.replay import replay_command
from fsm.cli.upkeep import prune_command, sweep_command
from fsm.cli.verify import verify_command
from fsm.cli.watch import watch_command

app = typer.Typer(
    name="fsm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="One declared state machine and one registry for the executions of AI agents.",
    epilog="Exit codes: 0 all is well, 1 something was found, 2 it could not be done, 70 a bug, 130 Ctrl-C.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and seldom asked for

        typer.echo(f"fsm {version('agent-fsm')}")
        raise typer.Exit


@app.callback()
def _main(
    _version_: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


app.command("demo")(teaching(demo_command))
app.command("replay")(teaching(replay_command))
app.command("sweep")(teaching(sweep_command))
app.command("prune")(teaching(prune_command))
app.command("copy")(teaching(copy_command))
app.command("doctor")(teaching(doctor_command))
app.command("list")(teaching(list_command))
app.command("show")(teaching(show_command))
app.command("answer")(teaching(answer_command))
app.command("watch")(teaching(watch_command))
app.command("diagram")(teaching(diagram))
app.command("verify")(teaching(verify_command))
app.command("diff")(teaching(diff_command))
app.command("audit")(teaching(audit_command))
app.command("breakers")(teaching(breakers_command))
app.command("breaker")(teaching(breaker_command))
