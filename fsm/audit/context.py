"""What a rule gets to see of a file, and how it reports."""

from __future__ import annotations

import ast

from fsm.audit.config import AuditConfig
from fsm.audit.files import Source
from fsm.audit.limits import Work
from fsm.audit.made import Maker
from fsm.audit.model import Finding
from fsm.audit.names import IdNames
from fsm.audit.scopes import Scope, release


class FileContext:
    """One file on its way through the rules."""

    __slots__ = ("config", "findings", "id_names", "keeper", "maker", "scopes", "source", "text", "work")

    def __init__(
        self, source: Source, text: str, scopes: list[Scope], config: AuditConfig, id_names: IdNames
    ) -> None:
        self.source = source
        self.text = text
        self.scopes = scopes
        self.config = config
        self.id_names = id_names
        self.work = Work()
        self.maker = Maker(source, tuple(config.id_makers), id_names, self.work)
        self.findings: list[Finding] = []
        self.keeper = ""

    def close(self) -> None:
        """Let go of the syntax tree, without waiting for the collector to find the cycles."""
        release(self.scopes)
        self.scopes = []

    def report(
        self, code: str, node: ast.AST, message: str, scope: Scope, *, span: ast.AST | None = None
    ) -> None:
        """Record a finding."""
        line: int = getattr(node, "lineno", 1)
        end: int = getattr(span if span is not None else node, "end_lineno", None) or line
        col: int = getattr(node, "col_offset", 0) + 1
        shown, symbol = self.source.shown, scope.symbol()
        self.findings.append(
            Finding(shown, line, col, code, message, symbol, end_line=end, keeper=self.keeper)
        )
