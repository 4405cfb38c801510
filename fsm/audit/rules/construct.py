"""FSM001: a protected class constructed outside its factory."""

from __future__ import annotations

import ast
from typing import Final

from fsm.audit.model import Construction
from fsm.audit.modules import ClassInfo, Module
from fsm.audit.names import imported_name
from fsm.audit.protection import Protection
from fsm.audit.rules.context import FileContext
from fsm.audit.scopes import FunctionNode, Scope, last_name
from fsm.audit.values import Values

CODE: Final = "FSM001"
# Calls that will call the class they are given.
_CALLERS: Final = {
    "partial",
    "partialmethod",
    "map",
    "starmap",
    "to_thread",
    "submit",
    "run_in_executor",
    "Depends",
    "defaultdict",
    "lru_cache",
    "cache",
    "Singleton",
    "Factory",
}
_FACTORY_KEYWORDS: Final = {"default_factory", "factory"}


def check(context: FileContext, module: Module, protection: Protection) -> list[Construction]:
    """Report every construction of a protected class that its factory does not make.

    Args:
        context: The file.
        module: Its summary.
        protection: Knows the protected classes of the tree.

    Returns:
        Every construction, the allowed ones included, for the map.
    """
    return _Constructions(context, module, protection).run()


class _Constructions:
    def __init__(self, context: FileContext, module: Module, protection: Protection) -> None:
        self.context = context
        self.module = module
        self.protection = protection
        self.values = Values(context.source, context.scopes[0], context.work)
        self.made: list[Construction] = []

    def run(self) -> list[Construction]:
        for scope in self.context.scopes:
            for call in scope.of(ast.Call):
                self._call(call, scope)
            if isinstance(scope.node, FunctionNode) and scope.parent is not None:
                self._defaults(scope.node.args, scope)
            for function in scope.of(ast.Lambda):
                self._defaults(function.args, scope)
        return self.made

    def _call(self, node: ast.Call, scope: Scope) -> None:
        if self._judge(node.func, node, scope, "is constructed"):
            return
        func = node.func
        name = last_name(func)
        if name in {"__new__", "__call__"} and isinstance(func, ast.Attribute):
            for option in (func.value, *node.args[:1]):
                if self._judge(option, node, scope, f"is constructed with {name}"):
                    return
        elif name in _CALLERS and (isinstance(func, ast.Attribute) or self._is_caller(name, scope)):
            for argument in node.args[:2]:
                if self._judge(argument, node, scope, f"is handed to {name}, which constructs it"):
                    return
        for keyword in node.keywords:
            if keyword.arg in _FACTORY_KEYWORDS:
                self._judge(keyword.value, node, scope, f"is handed over as {keyword.arg}")

    def _is_caller(self, name: str, scope: Scope) -> bool:
        # A function of this file that happens to be called cache does not construct anything.
        return imported_name(name, scope, self.context.source) != name or name == "map"

    def _defaults(self, args: ast.arguments, scope: Scope) -> None:
        around = scope.parent or scope
        for default in (*args.defaults, *args.kw_defaults):
            if default is not None and not isinstance(default, ast.Call):
                self._judge(default, default, around, "is a default argument, which is constructed later")

    def _judge(self, expression: ast.AST, where: ast.AST, scope: Scope, how: str) -> bool:
        for symbol in self.values.of(expression, scope):
            owner = self.protection.protected(symbol, self.module)
            if owner is not None:
                self._record(owner, where, scope, how)
                return True
            watched = self.protection.watches(symbol, self.module)
            if watched is not None and isinstance(where, ast.Call) and expression is where.func:
                place, line = self._place(scope), where.lineno
                shown = self.context.source.shown
                self.made.append(Construction(watched, place, shown, line, allowed=True, guarded=False))
        return False

    def _place(self, scope: Scope) -> str:
        return f"{self.module.name}.{scope.qualname}" if scope.qualname else self.module.name

    def _record(self, owner: ClassInfo | str, where: ast.AST, scope: Scope, how: str) -> None:
        allowed = self.protection.may_construct(scope, self.module, owner)
        name = self.protection.owner_name(owner)
        line: int = getattr(where, "lineno", 1)
        self.made.append(Construction(name, self._place(scope), self.context.source.shown, line, allowed))
        if not allowed:
            short = name.rpartition(".")[2]
            message = f"{short} {how} outside its factory; ask the factory for the one instance"
            self.context.report(CODE, where, message, scope)
