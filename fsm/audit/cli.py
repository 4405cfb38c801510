"""The command line of the audit: the only module of this package that writes for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fsm.audit.baseline import apply_baseline, read_baseline, write_baseline
from fsm.audit.catalog import explain
from fsm.audit.config import AuditConfig, config_from, load_config, read_config
from fsm.audit.drawing import as_mermaid
from fsm.audit.errors import AuditError
from fsm.audit.model import AuditResult
from fsm.audit.report import FORMATS, summary
from fsm.audit.runner import Progress as Advance
from fsm.audit.runner import audit

app = typer.Typer(add_completion=False)
FOUND = 1
COULD_NOT_RUN = 2


@app.command(name="audit")
def audit_command(  # noqa: PLR0913, PLR0917 # an option is a parameter
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders; the current folder if none.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")
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
        typer.Option("--map", help="Draw the trackers of the code base as Mermaid into this file."),
    ] = None,
    explained: Annotated[str | None, typer.Option("--explain", help="Explain a rule, and stop.")] = None,
) -> None:
    """Find where a Python code base keeps execution state outside the one registry.

    Nothing of the audited code is imported or run. The exit code is 0 without findings, 1 with findings, and
    2 when the audit could not run.
    """
    try:
        if explained is not None:
            typer.echo(explain(explained), nl=False)
            return
        write = _writer(output_format)
        targets = paths or [Path()]
        settings, project = _settings(targets, config, select, ignore, include_tests)
        with _progress() as advance:
            result = audit(targets, settings, project=project, progress=advance, with_map=drawing is not None)
        known = _baseline_path(baseline, settings, project)
        if update_baseline:
            _update(known or project / ".fsm-audit.json", result, allow_growth=allow_growth)
            return
        if known is not None:
            apply_baseline(result, read_baseline(known))
        _deliver(result, write(result), output, drawing)
    except AuditError as error:
        _say(f"fsm audit: {error}", err=True)
        raise typer.Exit(COULD_NOT_RUN) from None
    raise typer.Exit(FOUND if result.findings else 0)


def _writer(name: str) -> Callable[[AuditResult], str]:
    if name not in FORMATS:
        raise AuditError(f"no format is called {name!r}; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def _settings(
    targets: list[Path],
    config: Path | None,
    select: list[str] | None,
    ignore: list[str] | None,
    include_tests: bool | None,  # noqa: FBT001 # handed through from the command line
) -> tuple[AuditConfig, Path]:
    if config is None:
        settings, project = load_config(targets[0])
    else:
        settings, project = read_config(config), config.resolve().parent
    values = settings.model_dump()
    if select:
        values["select"] = _codes(select)
    if ignore:
        values["ignore"] = _codes(ignore)
    if include_tests is not None:
        values["include_tests"] = include_tests
    return config_from(values, origin="the command line"), project


def _codes(values: list[str]) -> list[str]:
    return [code.strip().upper() for value in values for code in value.split(",") if code.strip()]


def _baseline_path(baseline: Path | None, settings: AuditConfig, project: Path) -> Path | None:
    if baseline is not None:
        return baseline
    return project / settings.baseline if settings.baseline is not None else None


def _update(path: Path, result: AuditResult, *, allow_growth: bool) -> None:
    count = write_baseline(path, result.findings, allow_growth=allow_growth)
    typer.echo(f"{path} now holds {count} known findings", err=True)


def _deliver(result: AuditResult, text: str, output: Path | None, drawing: Path | None) -> None:
    for skipped in result.skipped:
        _say(f"{skipped.path}:{skipped.line}: skipped, it {skipped.reason}", err=True)
    try:
        if output is not None:
            output.write_text(text + "\n", encoding="utf-8")
            typer.echo(summary(result), err=True)
        else:
            _say(text)
        if drawing is not None:
            drawing.write_text(as_mermaid(result), encoding="utf-8")
    except OSError as error:
        raise AuditError(f"{error.filename} cannot be written: {error.strerror}") from None


def _say(text: str, *, err: bool = False) -> None:
    """Write to a stream that may not know every character, such as a pipe in the C locale."""
    stream = sys.stderr if err else sys.stdout
    coding = stream.encoding or "utf-8"
    typer.echo(text.encode(coding, "backslashreplace").decode(coding), err=err)


@contextmanager
def _progress() -> Iterator[Advance | None]:
    """Draw a bar on the error stream, and only where somebody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
