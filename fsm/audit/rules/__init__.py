"""The rules: each module finds one kind of second source of truth, and is all that there is to a rule."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from fsm.audit.config import MODULES
from fsm.audit.errors import AuditError
from fsm.audit.roles import Judge
from fsm.audit.rule import Rule

_ALL: Final[list[Rule]] = [import_module(f"{__name__}.{name}").RULE for name in MODULES]
RULES: Final = {rule.code: rule for rule in _ALL}
JUDGES: Final[dict[str, Judge]] = {rule.role: rule.judge for rule in _ALL if rule.judge is not None}


def explain(code: str) -> str:
    """Explain a rule with a bad and a good example."""
    rule = RULES.get(code.upper())
    if rule is None:
        raise AuditError(f"no rule is called {code!r}; the rules are {', '.join(RULES)}")
    return rule.explain()
