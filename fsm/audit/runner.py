"""One audit from paths to findings, in two passes over the files.

Pass one parses every file once, runs the rules that need nothing but the file, and keeps a small summary.
Pass two knows how the modules hang together, and parses again only the few files that mention a protected
class. No syntax tree outlives its file, so memory grows with what the modules export, not with the code.
"""

from __future__ import annotations

import gc
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fsm.audit.catalog import RULES
from fsm.audit.config import AuditConfig
from fsm.audit.errors import PathError
from fsm.audit.files import Source, find_sources, parse_source, read_source
from fsm.audit.limits import STEPS_PER_FILE
from fsm.audit.model import AuditResult, Finding, Owner, Skipped
from fsm.audit.modules import Linker, Module, summarise
from fsm.audit.noqa import apply_noqa
from fsm.audit.protection import Protection
from fsm.audit.rules import LOCAL_RULES, construct, inherit
from fsm.audit.rules.context import FileContext, IdNames
from fsm.audit.scopes import Scope, build_scopes

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


def audit(
    paths: list[Path],
    config: AuditConfig | None = None,
    *,
    project: Path | None = None,
    progress: Progress | None = None,
    with_map: bool = False,
) -> AuditResult:
    """Find where a code base keeps execution state outside the one registry.

    Args:
        paths: Files and folders to read. Nothing of them is imported or run.
        config: What is protected, and which rules are on; the defaults if left out.
        project: The folder that reported paths are relative to; the current one if left out.
        progress: Called with the number of files done and the number of all files.
        with_map: Also find out who constructs the trackers and engines that are not protected.

    Returns:
        The findings that no ``noqa`` silences, the skipped files, and the map's material.

    Raises:
        PathError: A path does not exist.
    """
    started = time.perf_counter()
    try:
        folder = (project or Path.cwd()).resolve()
    except (OSError, RuntimeError) as error:
        raise PathError(f"the project folder cannot be reached: {error}") from None
    run = _Run(config or AuditConfig(), folder, progress)
    run.with_map = with_map
    with _undisturbed():
        run.read(list(find_sources(paths, run.project, run.config.exclude, run.skip)))
        run.link()
        run.finish()
    run.result.seconds = time.perf_counter() - started
    return run.result


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Parse without the collector, which costs a third of the run and finds nothing, and without warnings."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # Invalid escapes in the audited code are its own business.
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            gc.enable()


class _Run:
    def __init__(self, config: AuditConfig, project: Path, progress: Progress | None) -> None:
        self.config = config
        self.project = project
        self.progress = progress
        self.with_map = False
        self.result = AuditResult()
        self.id_names = IdNames(config.id_names)
        self.modules: list[Module] = []
        self.found: dict[str, list[Finding]] = {}
        self.noted: dict[str, Source] = {}
        self.owners: list[Owner] = []
        self.words = {name.rpartition(".")[2] for name in config.protected}
        self.mentions: set[str] = set()
        self.rules = [(code, check) for code, check in LOCAL_RULES if any(map(config.enabled, code))]

    def read(self, sources: list[Source]) -> None:
        """Pass one."""
        if not self.config.include_tests:
            sources = [source for source in sources if not source.is_test]
        total = len(sources)
        for done, source in enumerate(sources, start=1):
            self._read_one(source)
            if self.progress is not None:
                self.progress(done, total)
        self.result.files = total

    def _read_one(self, source: Source) -> None:
        text = read_source(source, self.config.max_file_bytes)
        tree = parse_source(source, text) if isinstance(text, str) else text
        if isinstance(tree, Skipped) or isinstance(text, Skipped):
            self.skip(tree if isinstance(tree, Skipped) else Skipped(source.shown, 1, "cannot be read"))
            return
        scopes = build_scopes(tree)
        context = FileContext(source, text, scopes, self.config, self.id_names)
        try:
            self.modules.append(summarise(source, scopes))
            for _, check in self.rules:
                check(context)
        except RecursionError:
            self.skip(Skipped(source.shown, 1, "is nested too deeply to be audited"))
        except Exception as error:  # noqa: BLE001 # one file of thousands may not end the audit of the others
            self._failed(source, error)
        finally:
            context.close()
        self._note_work(context)
        self.owners.extend(context.owners)
        if any(word in text for word in self.words):
            self.mentions.add(source.shown)
        if context.findings or "noqa" in text:
            self.noted[source.shown] = source
        if context.findings:
            self.found[source.shown] = context.findings

    def skip(self, skipped: Skipped) -> None:
        logger.warning("%s:%s was skipped: it %s", skipped.path, skipped.line, skipped.reason)
        self.result.skipped.append(skipped)

    def link(self) -> None:
        """Pass two."""
        linker = Linker(self.modules)
        inherited, self.owners = inherit.find(linker, self.owners, self.config.max_file_bytes)
        for source, finding in inherited:
            self.found.setdefault(source.shown, []).append(finding)
            self.noted[source.shown] = source
        if self.config.enabled(construct.CODE):
            self._link_constructions(linker)

    def _link_constructions(self, linker: Linker) -> None:
        drawn = {owner.symbol for owner in self.owners if owner.role in {"tracker", "engine"}}
        protection = Protection(linker, self.config, drawn if self.with_map else None)
        # Subclasses and aliases may go by names that pass one did not know yet.
        new = [word for word in protection.tokens() if not any(known in word for known in self.words)]
        more = re.compile(rf"\b({'|'.join(map(re.escape, sorted(new)))})\b") if new else None
        for module in self.modules:
            source = module.source
            known = source.shown in self.mentions
            if not known and more is None:
                continue
            text = read_source(source, self.config.max_file_bytes)
            if not isinstance(text, str) or not (known or (more is not None and more.search(text))):
                continue
            tree = parse_source(source, text)
            if isinstance(tree, Skipped):
                continue
            self._construct(source, text, build_scopes(tree), module, protection)

    def _construct(
        self, source: Source, text: str, scopes: list[Scope], module: Module, protection: Protection
    ) -> None:
        context = FileContext(source, text, scopes, self.config, self.id_names)
        try:
            self.result.constructions.extend(construct.check(context, module, protection))
        except RecursionError:
            self.skip(Skipped(source.shown, 1, "is nested too deeply to be audited"))
        except Exception as error:  # noqa: BLE001 # as in pass one
            self._failed(source, error)
        finally:
            context.close()
        self._note_work(context)
        if context.findings:
            self.found.setdefault(source.shown, []).extend(context.findings)
            self.noted[source.shown] = source

    def _failed(self, source: Source, error: Exception) -> None:
        logger.error("%s could not be audited", source.shown, exc_info=error)
        self.skip(
            Skipped(
                source.shown, 1, f"could not be audited ({type(error).__name__}); this is a defect of fsm"
            )
        )

    def _note_work(self, context: FileContext) -> None:
        if context.work.exhausted:
            shown = context.source.shown
            reason = f"was judged in part: its names need more than {STEPS_PER_FILE} steps (STEPS_PER_FILE)"
            self.skip(Skipped(shown, 1, reason))

    def finish(self) -> None:
        """Apply comments, severities and the order of the report."""
        findings: list[Finding] = []
        for shown, source in self.noted.items():
            found = [finding for finding in self.found.get(shown, []) if self.config.enabled(finding.code)]
            text = read_source(source, self.config.max_file_bytes)
            if isinstance(text, str):
                found, silenced = apply_noqa(text, found, self.config, shown)
                self.result.suppressed += silenced
            findings.extend(found)
        severity = {code: self.config.severity.get(code, rule.severity) for code, rule in RULES.items()}
        self.result.findings = sorted(replace(found, severity=severity[found.code]) for found in findings)
        self.result.owners = self.owners
