"""Every call of a file that may construct a class, by the symbol of what it calls."""

from __future__ import annotations

import ast
import sys
from typing import Any, Final

from fsm.audit.containers import FACTORY_KEYWORDS
from fsm.audit.context import FileContext
from fsm.audit.modules import UNKNOWN
from fsm.audit.names import imported_name
from fsm.audit.scopes import FunctionNode, Scope, last_name
from fsm.audit.values import Values

# Calls that will call the class they are given.
_CALLERS: Final = frozenset(
    "partial partialmethod map starmap to_thread submit run_in_executor Depends defaultdict lru_cache cache "
    "Singleton Factory".split()
)
_ERRORS: Final = ("Error", "Exception", "Warning")
"""What is raised keeps nothing."""
_FOREIGN: Final = frozenset(sys.stdlib_module_names) - {"types"}
Calls = dict[str, list[list[Any]]]


def calls_of(context: FileContext, values: Values) -> Calls:
    """List what a file may construct: under each symbol, rows of line, column, last line, scope and how."""
    return _Calls(context, values).run()


class _Calls:
    def __init__(self, context: FileContext, values: Values) -> None:
        self.context = context
        self.values = values
        self.found: Calls = {}
        self.aliases = _aliases(context.scopes)

    def run(self) -> Calls:
        telling = self.aliases | _CALLERS | {"", "__new__", "__call__"}
        for scope in self.context.scopes:
            for call in scope.of(ast.Call):
                name = last_name(call.func)
                # Most calls are of functions, and construct nothing.
                if name in telling or name.lstrip("_")[:1].isupper() or call.keywords:
                    self._call(call, name, scope)
            if isinstance(scope.node, FunctionNode) and scope.parent is not None:
                self._defaults(scope.node.args, scope)
            for function in scope.of(ast.Lambda):
                self._defaults(function.args, scope)
        return self.found

    def _call(self, node: ast.Call, name: str, scope: Scope) -> None:
        func = node.func
        if name.endswith(_ERRORS):
            return
        if not name or name in self.aliases or name.lstrip("_")[:1].isupper():
            self._note(func, node, scope, "is constructed")
        if name in {"__new__", "__call__"} and isinstance(func, ast.Attribute):
            for option in (func.value, *node.args[:1]):
                self._note(option, node, scope, f"is constructed with {name}")
        elif name in _CALLERS and (isinstance(func, ast.Attribute) or self._is_caller(name, scope)):
            for argument in node.args[:2]:
                self._note(argument, node, scope, f"is handed to {name}, which constructs it")
        for keyword in node.keywords:
            if keyword.arg in FACTORY_KEYWORDS:
                self._note(keyword.value, node, scope, f"is handed over as {keyword.arg}")

    def _is_caller(self, name: str, scope: Scope) -> bool:
        # A function of this file that happens to be called cache does not construct anything.
        return imported_name(name, scope, self.context.source) != name or name == "map"

    def _defaults(self, args: ast.arguments, scope: Scope) -> None:
        for default in (*args.defaults, *args.kw_defaults):
            if default is not None and not isinstance(default, (ast.Call, ast.Constant)):
                how = "is a default argument, which is constructed later"
                self._note(default, default, scope.parent or scope, how)

    def _note(self, expression: ast.AST, where: ast.expr, scope: Scope, how: str) -> None:
        for symbol in self.values.of(expression, scope):
            if symbol.partition(".")[0] in _FOREIGN or symbol.endswith(
                (f"{UNKNOWN}.super", f"{UNKNOWN}.type")
            ):
                continue
            rows = self.found.setdefault(symbol, [])
            rows.append(
                [where.lineno, where.col_offset + 1, where.end_lineno or where.lineno, scope.qualname, how]
            )


def _aliases(scopes: list[Scope]) -> set[str]:
    """List the names of a file that may stand for a class although they are not written like one."""
    found: set[str] = set()
    for scope in scopes:
        for node in scope.of(ast.Assign, ast.AnnAssign, ast.NamedExpr):
            if node.value is None or isinstance(node.value, (ast.Constant, ast.JoinedStr)):
                continue
            # A call hands out a class only where it is one of the builtins that do.
            if isinstance(node.value, ast.Call) and last_name(node.value.func) not in {
                "getattr",
                "type",
                "cast",
                "get",
            }:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                    found.add(last_name(part))
        for loop in scope.of(ast.For, ast.comprehension):
            found.add(last_name(loop.target))
        for imported in scope.of(ast.ImportFrom):
            # What is imported under a name like a function's may be an alias; a builder of objects mostly is none.
            found.update(alias.asname for alias in imported.names if alias.asname)
    return found
