"""The command line of the audit: its options. The audit itself is loaded by its command only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(name="audit")
def audit_command(  # noqa: PLR0913 # an option is a parameter
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders; the current folder if none.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", "-f", help="One of text, json, sarif, github.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report to this file.")
    ] = None,
    select: Annotated[list[str] | None, typer.Option(help="Report only these codes.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Do not report these codes.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file to read.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A file of known findings.")] = None,
    *,
    update_baseline: Annotated[
        bool,
        typer.Option("--update-baseline", help="Write the findings to the baseline; it may only shrink."),
    ] = False,
    allow_growth: Annotated[
        bool, typer.Option("--allow-growth", help="Let --update-baseline add findings.")
    ] = False,
    include_tests: Annotated[
        bool | None, typer.Option("--tests/--no-tests", help="Whether test files are audited.")
    ] = None,
    drawing: Annotated[
        Path | None,
        typer.Option(
            "--map", help="Map who keeps what: Mermaid, or plain text into a file that ends in .txt."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Write the order in which to consolidate, and stop.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="The folder that remembers files between two runs.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Remember nothing.")] = False,
    explained: Annotated[str | None, typer.Option("--explain", help="Explain a rule, and stop.")] = None,
) -> None:
    """Find where a Python code base keeps execution state outside the one registry.

    Nothing of the audited code is imported or run. The exit code is 0 without findings, 1 with findings, and
    2 when the audit could not run.
    """
    options = dict(locals())
    from fsm.audit.command import Options, run  # noqa: PLC0415 # everything else starts without the audit

    raise typer.Exit(run(Options(**options)))
