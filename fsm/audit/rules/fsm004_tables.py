"""FSM004: a second table of transitions."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.context import FileContext
from fsm.audit.lifecycle import ENDED_WORDS, OPEN_WORDS, WORDS, is_state_member, state_word
from fsm.audit.names import snake
from fsm.audit.rule import Rule
from fsm.audit.scopes import FunctionNode, Scope, dotted, last_name, string_of

CODE: Final = "FSM004"
_ENUM_BASES: Final = {"Enum", "StrEnum", "IntEnum", "TextChoices", "auto_enum", "Flag"}
_CHECKS: Final = re.compile(
    r"(can|may|is|valid|validate|check|allowed|ensure|assert)_.*(transition|move|change)|^_*transition(_to)?$|next_states"
    r"|allowed_(next|states|transitions)|valid_(next|transitions)|is_valid_transition"
)
_FEW: Final = 2


def check(context: FileContext) -> None:
    """Report tables of states and their successors, and enums with transition checks of their own."""
    for scope in context.scopes:
        for node in scope.of(ast.Dict):
            if _is_table(node):
                _report(context, node, scope, "a dict of states and the states that may follow")
        for sequence in scope.of(ast.Set, ast.List, ast.Tuple):
            if _is_pair_list(sequence):
                _report(context, sequence, scope, "a list of transitions between states")
        if scope.kind == "class" and _is_lifecycle_enum(scope):
            _enum(context, scope)


def _report(context: FileContext, node: ast.AST, scope: Scope, what: str) -> None:
    context.report(CODE, node, f"{what} is a second table of transitions", scope)


def _is_state(node: ast.AST | None) -> bool:
    return bool(state_word(node)) or is_state_member(node)


def _is_table(node: ast.Dict) -> bool:
    keys = [key for key in node.keys if _is_state(key)]
    if len(keys) < _FEW or len(keys) < len(node.keys):
        return False
    if not any(state_word(key) or is_state_member(key) for key in keys):
        return False
    targets = [_successors(value) for value in node.values]
    if any(found is None for found in targets):
        return False
    named = [state for found in targets for state in found or []]
    return len(named) >= _FEW and all(_is_state(state) for state in named)


def _successors(value: ast.expr) -> list[ast.expr] | None:
    """List the states a row leads to; None when the value is no collection of states."""
    if isinstance(value, ast.Call) and last_name(value.func) in {"set", "frozenset", "list", "tuple"}:
        return _successors(value.args[0]) if value.args else []
    if isinstance(value, (ast.Set, ast.List, ast.Tuple)):
        return value.elts
    if isinstance(value, ast.Dict):
        # event -> target
        return list(value.values)
    return None


def _is_pair_list(node: ast.Set | ast.List | ast.Tuple) -> bool:
    rows = [_row(element) for element in node.elts]
    return len(rows) >= _FEW and all(rows)


def _row(node: ast.expr) -> bool:
    """Recognise (source, target), (event, source, target) and {"source": …, "dest": …}."""
    if isinstance(node, ast.Tuple) and 2 <= len(node.elts) <= 4:  # noqa: PLR2004 # pairs up to guarded rows
        return sum(_is_state(element) for element in node.elts) >= _FEW
    if isinstance(node, ast.Dict):
        keys = {string_of(key) for key in node.keys}
        return bool(keys & {"source", "from", "from_state"}) and bool(
            keys & {"dest", "target", "to", "to_state"}
        )
    if isinstance(node, ast.Call) and last_name(node.func).lower().endswith("transition"):
        named = sum(_is_state(argument) for argument in node.args)
        return named + sum(_is_state(keyword.value) for keyword in node.keywords) >= _FEW
    return False


def _is_lifecycle_enum(scope: Scope) -> bool:
    node = scope.node
    if not isinstance(node, ast.ClassDef) or not any(last_name(base) in _ENUM_BASES for base in node.bases):
        return False
    words = {
        snake(target.id)
        for item in scope.of(ast.Assign)
        for target in item.targets
        if isinstance(target, ast.Name)
    }
    known = words & WORDS
    return len(known) > _FEW and bool(known & OPEN_WORDS) and bool(known & ENDED_WORDS)


def _enum(context: FileContext, scope: Scope) -> None:
    """An enum alone names states; with a check of what may follow what it is a table."""
    for child in scope.children:
        if _CHECKS.search(child.name):
            message = f"{scope.name} lists lifecycle states and checks transitions in {child.name}()"
            context.report(
                CODE, scope.node, f"{message}: a second table of transitions", scope, span=child.node
            )
            return
    for other in context.scopes:
        if (
            isinstance(other.node, FunctionNode)
            and context.work.step()
            and _compares_members(other, scope.name)
        ):
            message = f"{scope.name} lists lifecycle states and {other.qualname}() checks their transitions"
            context.report(
                CODE, scope.node, f"{message}: a second table of transitions", scope, span=other.node
            )
            return


def _compares_members(function: Scope, enum: str) -> bool:
    """Find a function named like a transition check that compares two states with members of the enum."""
    if not _CHECKS.search(function.name):
        return False
    members = 0
    for comparison in function.of(ast.Compare):
        for side in (comparison.left, *comparison.comparators):
            options = side.elts if isinstance(side, (ast.Tuple, ast.Set, ast.List)) else [side]
            members += sum(dotted(option).startswith(f"{enum}.") for option in options)
    return members >= _FEW


RULE: Final = Rule(
    code=CODE,
    title="a second table of transitions",
    severity="error",
    why="Two tables disagree after the next change, and what one allows the other refuses.",
    hint="Declare the machine once, or derive one with EXECUTION.extend(…), and ask it with tracker.allowed(…).",
    bad="""
        ALLOWED = {
            "pending": {"running", "cancelled"},
            "running": {"completed", "failed", "cancelled"},
            "completed": set(),
        }
    """,
    good="""
        from fsm import get_tracker

        def may(execution_id, event):
            return event in get_tracker().allowed(execution_id)
    """,
    local=check,
)
