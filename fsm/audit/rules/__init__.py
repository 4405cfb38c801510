"""The rules: each module finds one kind of second source of truth, and is all that there is to a rule."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from fsm.audit.errors import AuditError
from fsm.audit.rule import Rule

RULES: Final[dict[str, Rule]] = {
    rule.code: rule
    for rule in sorted(
        (
            import_module(f"{__name__}.{m.name}").RULE
            for m in iter_modules(__path__)
            if m.name.startswith("fsm")
        ),
        key=lambda rule: str(rule.code),
    )
}


def explain(code: str) -> str:
    """Explain a rule with a bad and a good example.

    Raises:
        AuditError: No rule has that code.
    """
    rule = RULES.get(code.upper())
    if rule is None:
        raise AuditError(f"no rule is called {code!r}; the rules are {', '.join(RULES)}")
    return rule.explain()
