"""What `fsm audit` does with what it is asked: reads, judges, compares with the baseline, and delivers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from fsm.audit.baseline import apply_baseline, read_baseline, write_baseline
from fsm.audit.cache import default_folder
from fsm.audit.config import AuditConfig, config_from, load_config, read_config
from fsm.audit.drawing import as_mermaid, as_page, as_plan
from fsm.audit.errors import AuditError
from fsm.audit.model import AuditResult
from fsm.audit.report import FORMATS, summary
from fsm.audit.rules import explain
from fsm.audit.runner import Progress as Advance
from fsm.audit.runner import audit

FOUND = 1
COULD_NOT_RUN = 2


class Options(SimpleNamespace):
    """The options of one call, by the names of the parameters of `fsm.audit.cli.audit_command`."""


def run(options: Options) -> int:
    """Run one audit and give the exit code."""
    try:
        if options.explained is not None:
            _say(explain(options.explained).removesuffix("\n"))
            return 0
        write = as_plan if options.plan else _writer(options.output_format)
        settings, project = _settings(options)
        folder = None if options.no_cache else options.cache or default_folder()
        with _progress() as advance:
            result = audit(
                options.paths or [Path()], settings, project=project, progress=advance, cache=folder
            )
        known = options.baseline or (project / settings.baseline if settings.baseline is not None else None)
        if options.update_baseline:
            path = known or project / ".fsm-audit.json"
            count = write_baseline(path, result.findings, allow_growth=options.allow_growth)
            _say(f"{path} now holds {count} known findings", err=True)
            return 0
        if known is not None:
            apply_baseline(result, read_baseline(known))
        _deliver(result, write(result), options)
    except AuditError as error:
        _say(f"fsm audit: {error}", err=True)
        return COULD_NOT_RUN
    return FOUND if result.findings else 0


def _writer(name: str) -> Callable[[AuditResult], str]:
    if name not in FORMATS:
        raise AuditError(f"no format is called {name!r}; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def _settings(options: Options) -> tuple[AuditConfig, Path]:
    if options.config is None:
        settings, project = load_config((options.paths or [Path()])[0])
    else:
        settings, project = read_config(options.config), options.config.resolve().parent
    values = asdict(settings)
    if options.select:
        values["select"] = _codes(options.select)
    if options.ignore:
        values["ignore"] = _codes(options.ignore)
    if options.include_tests is not None:
        values["include_tests"] = options.include_tests
    return config_from(values, origin="the command line"), project


def _codes(values: list[str]) -> list[str]:
    return [code.strip().upper() for value in values for code in value.split(",") if code.strip()]


def _deliver(result: AuditResult, text: str, options: Options) -> None:
    output, drawing = options.output, options.drawing
    for skipped in result.skipped:
        _say(f"{skipped.path}:{skipped.line}: skipped, it {skipped.reason}", err=True)
    try:
        if output is not None:
            output.write_text(text + "\n", encoding="utf-8")
            _say(summary(result), err=True)
        else:
            _say(text)
        if drawing is not None:
            page = as_page(result) if drawing.suffix in {".txt", ".text"} else as_mermaid(result)
            drawing.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AuditError(f"{error.filename} cannot be written: {error.strerror}") from None


def _say(text: str, *, err: bool = False) -> None:
    """Write to a stream that may not know every character, such as a pipe in the C locale."""
    stream = sys.stderr if err else sys.stdout
    coding = stream.encoding or "utf-8"
    stream.write(text.encode(coding, "backslashreplace").decode(coding) + "\n")
    stream.flush()


@contextmanager
def _progress() -> Iterator[Advance | None]:
    """Draw a bar on the error stream, and only where somebody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    # Drawn for people only, so its library is loaded where somebody looks.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
