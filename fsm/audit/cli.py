"""The command line of the audit: the only module of this package that writes for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsm.audit.config import load_config, read_config
from fsm.audit.errors import AuditError
from fsm.audit.report import as_text
from fsm.audit.runner import audit

app = typer.Typer(add_completion=False)


@app.command()
def audit_command(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config")] = None,
) -> None:
    """Find where a Python code base keeps execution state outside the one registry."""
    try:
        targets = paths or [Path()]
        config, project = load_config(targets[0]) if config_file is None else (read_config(config_file), Path.cwd())
        result = audit(targets, config, project=project)
    except AuditError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    typer.echo(as_text(result))
    raise typer.Exit(1 if result.findings else 0)
