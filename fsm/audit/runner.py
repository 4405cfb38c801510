"""One audit from paths to findings.

Every file is read once: its facts are taken, its tree is thrown away, and a cache may know them already. Roles and
findings follow from the facts of all files, so memory grows with what the files keep, not with their code.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fsm.audit.cache import Cache
from fsm.audit.config import AuditConfig, matches_name
from fsm.audit.context import FileContext
from fsm.audit.errors import PathError
from fsm.audit.extract import extract
from fsm.audit.facts import FileFacts
from fsm.audit.files import Source, decoded, find_sources, parse_source, read_bytes
from fsm.audit.limits import STEPS_PER_FILE
from fsm.audit.model import AuditResult, Finding, Owner, Skipped
from fsm.audit.modules import Module
from fsm.audit.names import IdNames
from fsm.audit.noqa import apply_noqa
from fsm.audit.roles import Tree
from fsm.audit.rules import JUDGES, RULES
from fsm.audit.scopes import build_scopes

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


def audit(
    paths: list[Path],
    config: AuditConfig | None = None,
    *,
    project: Path | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> AuditResult:
    """Find where a code base keeps execution state outside the one registry.

    Raises:
        PathError: A path does not exist.
    """
    started = time.perf_counter()
    try:
        folder = (project or Path.cwd()).resolve()
    except (OSError, RuntimeError) as error:
        raise PathError(f"the project folder cannot be reached: {error}") from None
    settings = config or AuditConfig()
    run = _Run(settings, folder, progress, Cache(cache, paths, settings))
    with _undisturbed():
        sources = list(find_sources(paths, folder, run.config.exclude, run.skip))
        run.audit(sources)
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
    def __init__(self, config: AuditConfig, project: Path, progress: Progress | None, cache: Cache) -> None:
        self.config = config
        self.project = project
        self.cache = cache
        self.progress = progress
        self.result = AuditResult()
        self.id_names = IdNames(config.id_names)
        self.modules: list[Module] = []
        self.sources: dict[str, tuple[Source, bytes]] = {}
        self.moving = False
        """Whether a file was written while it was audited: what is said of it is not to be remembered."""

    def audit(self, sources: list[Source]) -> None:
        """Take the facts of every file, and judge the whole tree unless it is the one that is remembered."""
        if not self.config.include_tests:
            sources = [source for source in sources if not source.is_test]
        cache = self.cache
        taken: list[tuple[Source, FileFacts | bytes]] = []
        for done, source in enumerate(sources, start=1):
            raw = read_bytes(source, self.config.max_file_bytes)
            if isinstance(raw, Skipped):
                self.skip(raw)
            else:
                key = cache.key(source, raw)
                self.sources[source.shown] = (source, key)
                if cache.knows(key):
                    taken.append((source, key))
                else:
                    facts = self._facts(source, raw)
                    taken.append((source, facts))
                    cache.put(key, facts)
            if self.progress is not None:
                self.progress(done, len(sources))
        unread = list(self.result.skipped)
        known = cache.recall(unread)
        if known is None:
            self._judge(taken)
            if not self.moving:
                cache.save(unread, self.result)
        else:
            for skipped in known.skipped[len(unread) :]:
                self.skip(skipped)
            self.result = replace(known, skipped=self.result.skipped)
        self.result.files = len(sources)
        self.result.cached = sum(isinstance(held, bytes) for _, held in taken)

    def _judge(self, taken: list[tuple[Source, FileFacts | bytes]]) -> None:
        for source, held in taken:
            facts = self.cache.get(held) if isinstance(held, bytes) else held
            if facts is None:
                # The head of the cache is whole, and its rows are not.
                raw = self._again(source.shown)
                if isinstance(raw, Skipped):
                    self.skip(raw)
                    continue
                facts = self._facts(source, raw)
                self.cache.put(self.cache.key(source, raw), facts)
            for line, reason in facts.skipped:
                self.skip(Skipped(source.shown, line, reason))
            self.modules.append(Module.of(source, facts))
        self.finish()

    def _facts(self, source: Source, raw: bytes) -> FileFacts:
        text = decoded(source, raw)
        tree = parse_source(source, text) if isinstance(text, str) else text
        if isinstance(tree, Skipped) or isinstance(text, Skipped):
            skipped = tree if isinstance(tree, Skipped) else text
            return FileFacts(skipped=[[skipped.line, skipped.reason]])  # type: ignore[union-attr] # one of them is
        context = FileContext(source, text, build_scopes(tree), self.config, self.id_names)
        try:
            facts = extract(context)
            for rule in RULES.values():
                if rule.local is not None:
                    rule.local(context)
        except RecursionError:
            return FileFacts(skipped=[[1, "is nested too deeply to be audited"]])
        except Exception as error:  # one file of thousands may not end the audit of the others
            logger.exception("%s could not be audited", source.shown, exc_info=error)
            reason = f"could not be audited ({type(error).__name__}); this is a defect of fsm"
            return FileFacts(skipped=[[1, reason]])
        finally:
            context.close()
        facts.local = context.findings
        facts.noqa = "noqa" in text and "FSM" in text
        if context.work.exhausted:
            reason = f"was judged in part: its names need more than {STEPS_PER_FILE} steps (STEPS_PER_FILE)"
            facts.skipped.append([1, reason])
        return facts

    def skip(self, skipped: Skipped) -> None:
        logger.warning("%s:%s was skipped: it %s", skipped.path, skipped.line, skipped.reason)
        self.result.skipped.append(skipped)

    def finish(self) -> None:
        """Judge the whole tree; apply comments, severities and the order of the report."""
        tree = Tree(self.modules, self.config, JUDGES)
        found: dict[str, list[Finding]] = {m.source.shown: [] for m in self.modules if m.facts.noqa}
        for finding in _findings(tree, self.config):
            found.setdefault(finding.path, []).append(finding)
        findings: list[Finding] = []
        for shown, inside in found.items():
            findings.extend(self._commented(shown, inside))
        severity = {code: self.config.severity.get(code, rule.severity) for code, rule in RULES.items()}
        self.result.findings = sorted({replace(f, severity=severity[f.code]) for f in findings})
        self.result.owners = list(_owners(tree))
        self.result.constructions = tree.constructions

    def _again(self, shown: str) -> bytes | Skipped:
        """Read a file once more."""
        source, key = self.sources[shown]
        raw = read_bytes(source, self.config.max_file_bytes)
        self.moving |= not isinstance(raw, bytes) or self.cache.key(source, raw) != key
        return raw

    def _commented(self, shown: str, findings: list[Finding]) -> list[Finding]:
        raw = self._again(shown)
        text = decoded(self.sources[shown][0], raw) if isinstance(raw, bytes) else raw
        if not isinstance(text, str):
            return findings
        # str.splitlines also splits at form feeds and the like, which Python does not count as lines.
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        quoted = [
            replace(f, snippet=lines[f.line - 1].strip()[:200] if f.line <= len(lines) else "")
            for f in findings
        ]
        remaining, silenced = apply_noqa(text, quoted, self.config, shown)
        self.result.suppressed += silenced
        return remaining


def _findings(tree: Tree, config: AuditConfig) -> Iterator[Finding]:
    keepers = {info.symbol for info, _ in tree.of("tracker", "engine", "breaker")}
    for module in tree.modules:
        for finding in module.facts.local:
            keeper = f"{module.name}.{finding.keeper}" if finding.keeper else ""
            # What a keeper does inside itself is reported once, as the keeper.
            if config.enabled(finding.code) and not (
                keeper and (keeper in keepers or matches_name(keeper, config.tracker_patterns))
            ):
                yield finding
    for rule in RULES.values():
        if config.enabled(rule.code):
            yield from rule.findings(tree)


def _owners(tree: Tree) -> Iterator[Owner]:
    named = {info.symbol for info, _ in tree.of("tracker", "engine", "breaker", "record", "enum")}
    for info, role in tree.of("tracker", "engine", "breaker", "record", "enum"):
        held = [
            tree.resolve(symbol, info.module) for symbols in info.fact.parts.values() for symbol in symbols
        ]
        held += [tree.typed(box.note, info.module) for box in info.fact.boxes if box.note]
        held += [
            *tree.bases(info),
            *(tree.typed(note, info.module) for note in info.fact.fields.values() if note),
        ]
        uses = sorted({h.symbol for h in held if h is not None and h.symbol in named and h is not info})
        yield Owner(
            *(info.symbol, info.module.source.shown, info.fact.line, role.kind, role.keeps),
            *(tuple(role.evidence.values()), tuple(uses)),
        )
    for finding in RULES["FSM008"].findings(tree):
        module = next((m for m in tree.modules if m.source.shown == finding.path), None)
        symbol = f"{module.name if module else ''}.{finding.symbol}".removesuffix(".<module>")
        yield Owner(symbol, finding.path, finding.line, "shared", (finding.message.split(" ")[0].strip("'"),))
