"""``fsm verify``: the proof of a machine of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.text import Text

from fsm.cli.common import FOUND, err, out, print_json, teaching
from fsm.cli.load import load_machine
from fsm.cli.options import JsonOption, file_path
from fsm.cli.prove import Report
from fsm.errors import ConfigurationError, InvalidMachine


@teaching
def verify_command(
    machine: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Your machine, or execution, or breaker.")
    ],
    prove: Annotated[
        bool,
        typer.Option(
            "--prove", help="Prove the machine's invariants, and that every instance reaches its end."
        ),
    ] = False,
    draw: Annotated[
        Path | None,
        typer.Option(parser=file_path, metavar="SVG", help="Draw the path that refutes an invariant there."),
    ] = None,
    write_test: Annotated[
        Path | None,
        typer.Option(
            parser=file_path, metavar="FILE", help="Write the refuting path there, as a test that fails."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check a machine: every unknown name, shadowed row, trap and endless wait is listed.

    With --prove its invariants are proved for every record that it can lead to, whatever the counters and payloads
    (needs the extra `prove`); what is refuted is shown as a shortest path. With --json one object: machine, ok, hash,
    states, transitions, findings (each with code, row, message, fix) and, with --prove, invariants.
    Exit code 1 if there is a finding.
    """
    if not prove and (draw or write_test):
        raise ConfigurationError("--draw and --write-test show what --prove refutes: add --prove")
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
    report = Report(machine, proved) if prove else None
    ok = report is None or report.ok
    if json:
        print_json(
            {
                "machine": proved.name,
                "ok": ok,
                "hash": proved.content_hash,
                "states": len(proved.states),
                "transitions": len(proved.arrows),
                "findings": [finding._asdict() for finding in report.findings] if report else [],
            }
            | ({"invariants": report.as_list()} if report else {})
        )
    else:
        out.print(
            f"[green]machine {proved.name!r} holds together[/]: {len(proved.states)} states, "
            f"{len(proved.transitions)} rows, {len(proved.arrows)} transitions, {len(proved.events)} events, "
            f"hash {proved.content_hash}",
            markup=True,
        )
    if report:
        if not json:
            report.show()
        report.write(draw, write_test)
    if not ok:
        raise typer.Exit(FOUND)
