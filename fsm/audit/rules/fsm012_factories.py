"""FSM012: a factory or accessor of a second tracker, engine or breaker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.config import matches_name
from fsm.audit.facts import ClassFact, Method
from fsm.audit.model import Finding
from fsm.audit.modules import ClassInfo, Module
from fsm.audit.roles import KEEPERS, Tree, says
from fsm.audit.rule import Rule

CODE: Final = "FSM012"
_NAME: Final = re.compile(
    r"^_*(get|create|make|build|new|init|initialize|provide|configure|default|setup|ensure|obtain|spawn|for|from|load|open)(_|$)|_factory$|_provider$"
)
_MAKES: Final = re.compile(r"^_*(get|create|make|build|new|provide|obtain|spawn|for|default|load|open)(_|$)")
_CLASS: Final = re.compile(r"(factory|provider|builder|container|locator|loader)$")
_WORD: Final = re.compile(r"\w+")
_SMALL: Final = 40
"""Calls of a function that still is a factory, and not the program around one."""


def find(tree: Tree) -> Iterator[Finding]:
    """Report functions and classes that hand out a second tracker, engine or breaker."""
    for module in tree.modules:
        if module.source.is_test or matches_name(f"{module.name}.x", tree.config.engine_patterns):
            continue
        for function in module.facts.functions:
            for given in _handed(tree, function, module, ""):
                yield _found(module, function, function.name, given)
                break
        for owner in module.facts.classes:
            handed = [(m, given) for m in owner.methods for given in _handed(tree, m, module, owner.qualname)]
            if handed and says(_CLASS, owner.name):
                yield _found(module, owner, owner.qualname, handed[0][1])
                continue
            methods = {m.line: (m, given) for m, given in reversed(handed) if says(_MAKES, m.name)}
            for method, given in methods.values():
                yield _found(module, method, f"{owner.qualname}.{method.name}", given)


def _found(
    module: Module, place: Method | ClassFact, symbol: str, given: tuple[ClassInfo, str, str]
) -> Finding:
    info, kind, reason = given
    text = f"{symbol} hands out {info.name}, a second {kind}: it {reason}"
    return Finding(module.source.shown, place.line, 1, CODE, text, symbol, end_line=place.end)


def _handed(tree: Tree, method: Method, module: Module, owner: str) -> Iterator[tuple[ClassInfo, str, str]]:
    for symbol in method.makes:
        info = tree.resolve(symbol, module)
        if info is None or info.fact.qualname == owner:
            continue
        kind = next((kind for kind in KEEPERS if kind in info.roles), "")
        noted = set(_WORD.findall(method.note))
        typed = info.name in noted or any(base.name in noted for base in tree.bases(info))
        given = f"{info.name}()" in method.gives or bool(method.gives and method.calls <= _SMALL)
        if kind and says(_NAME, method.name) and (typed or given):
            yield info, kind, f"constructs and returns {info.name}"
        elif kind and typed and given:
            yield info, kind, f"constructs {info.name} and is declared to return it"


RULE: Final = Rule(
    code=CODE,
    title="a factory or accessor of a second tracker, engine or breaker",
    severity="warning",
    why="A factory hides which of several instances its callers get, so each part of the code asks another one.",
    hint="Ask get_tracker() for the one tracker, and hand one Engine to who needs it.",
    bad="""
        class RunTracker:
            def __init__(self):
                self._runs = {}

            def start(self, run_id):
                self._runs[run_id] = {"status": "running"}

            def finish(self, run_id):
                self._runs.pop(run_id)

        def create_run_tracker():
            return RunTracker()
    """,
    good="""
        from fsm import get_tracker

        def tracker_of(user):
            return get_tracker().for_user(user)
    """,
    find=find,
)
