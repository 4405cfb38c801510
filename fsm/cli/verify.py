"""``fsm verify``: the proof of a machine of your own."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError
from rich.text import Text

from fsm.cli.common import FOUND, err, out, print_json, teaching
from fsm.cli.load import load_machine
from fsm.cli.options import JsonOption
from fsm.errors import InvalidMachine


@teaching
def verify_command(
    machine: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Your machine, or execution, or breaker.")
    ],
    json: JsonOption = False,
) -> None:
    """Prove a machine: every unknown name, shadowed row, trap and endless wait is listed.

    With --json one object: machine, ok, hash, states, transitions, findings (each with code, row, message, fix).
    Exit code 1 if there is a finding.
    """
    try:
        proved = load_machine(machine)
    except InvalidMachine as error:
        if json:
            findings = [finding._asdict() for finding in error.findings]
            print_json(
                {"machine": error.machine, "ok": False, "hash": None, "states": None, "transitions": None,
                 "findings": findings}
            )  # fmt: skip
        else:
            err.print(Text(f"machine {error.machine!r}: {len(error.findings)} finding(s)", style="bold red"))
            for finding in error.findings:
                err.print(Text.assemble("  ", (finding.code, "bold"), f"  {finding.row}"))
                err.print(Text(f"      {finding.message}. {finding.fix}."))
        raise typer.Exit(FOUND) from None
    except ValidationError as error:
        err.print(Text(f"{machine}: not of the grammar: {error}"))
        raise typer.Exit(FOUND) from None
    if json:
        print_json(
            {
                "machine": proved.name,
                "ok": True,
                "hash": proved.content_hash,
                "states": len(proved.states),
                "transitions": len(proved.arrows),
                "findings": [],
            }
        )
        return
    out.print(
        f"[green]machine {proved.name!r} holds together[/]: {len(proved.states)} states, "
        f"{len(proved.transitions)} rows, {len(proved.arrows)} transitions, {len(proved.events)} events, "
        f"hash {proved.content_hash}",
        markup=True,
    )
