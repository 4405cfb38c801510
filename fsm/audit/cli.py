"""The command line of the audit: the only module of this package that writes for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(name="audit")
def audit_command(  # noqa: PLR0913, PLR0917 # an option is a parameter
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders; the current folder if none.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", "-f", help="One of text, json, sarif, github.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report to this file.")
    ] = None,
    select: Annotated[list[str] | None, typer.Option("--select", help="Report only these codes.")] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="Do not report these codes.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The TOML file to read.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="A file of known findings.")] = None,
    update_baseline: Annotated[  # noqa: FBT002 # a flag is a boolean
        bool,
        typer.Option("--update-baseline", help="Write the findings to the baseline; it may only shrink."),
    ] = False,
    allow_growth: Annotated[  # noqa: FBT002 # a flag is a boolean
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
    plan: Annotated[  # noqa: FBT002 # a flag is a boolean
        bool, typer.Option("--plan", help="Write the order in which to consolidate, and stop.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="The folder that remembers files between two runs.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Remember nothing.")] = False,  # noqa: FBT002
    explained: Annotated[str | None, typer.Option("--explain", help="Explain a rule, and stop.")] = None,
) -> None:
    """Find where a Python code base keeps execution state outside the one registry.

    Nothing of the audited code is imported or run. The exit code is 0 without findings, 1 with findings, and
    2 when the audit could not run.
    """
    # The audit itself is loaded by its command only: everything else of the command line starts without it.
    from fsm.audit.command import Wishes, run  # noqa: PLC0415

    wishes = Wishes(
        paths=paths or [Path()],
        output_format=output_format,
        output=output,
        select=select or [],
        ignore=ignore or [],
        config=config,
        baseline=baseline,
        update_baseline=update_baseline,
        allow_growth=allow_growth,
        include_tests=include_tests,
        drawing=drawing,
        plan=plan,
        cache=cache,
        no_cache=no_cache,
        explained=explained,
    )
    raise typer.Exit(run(wishes))
