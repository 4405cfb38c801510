"""Whether an expression makes an id by hand, and how."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from fsm.audit.files import Source
from fsm.audit.limits import Work
from fsm.audit.names import imported_name, lookup
from fsm.audit.scopes import Scope, dotted, last_name, string_of

_RANDOM: Final = frozenset(
    "random.random random.randint random.randrange random.getrandbits random.choices random.randbytes "
    "secrets.token_hex secrets.token_urlsafe secrets.token_bytes secrets.randbelow secrets.randbits "
    "os.urandom os.getpid nanoid.generate shortuuid.uuid shortuuid.ShortUUID ulid.new ulid.ulid ulid.ULID "
    "ksuid.ksuid cuid.cuid xid.XID bson.ObjectId bson.objectid.ObjectId zlib.crc32".split()
)
_TIME: Final = frozenset(
    "time.time time.time_ns time.monotonic time.monotonic_ns time.perf_counter time.perf_counter_ns "
    "time.strftime time.ctime".split()
)
_UUID: Final = re.compile(
    r"(^|\.)(uuid[1-8]|uuid[1-8]str|uuid7_str|ulid|nanoid|ObjectId|token_hex|token_urlsafe)$"
)
_NOW: Final = re.compile(r"(datetime|date|timezone|pendulum|arrow|dt|_datetime)\.(now|utcnow|today)$")
_HASHED: Final = re.compile(r"^hashlib\.")
# These give their argument back in another shape, so what counts is the argument.
_SHAPES: Final = {"str", "int", "hex", "repr", "abs", "round", "bytes", "format", "list", "tuple", "sorted"}
# These give the object they are called on back in another shape.
_RESHAPES: Final = frozenset(
    "replace upper lower strip lstrip rstrip zfill ljust rjust center encode decode hexdigest digest "
    "isoformat strftime timestamp split rsplit removeprefix removesuffix hex total_seconds astimezone format "
    "title capitalize partition rpartition __str__".split()
)
_ID_TYPE: Final = re.compile(r"^[A-Z]\w*(ID|Id|Uuid|UUID)$")
_COUNTER: Final = re.compile(r"count|seq|serial", re.IGNORECASE)
_DEFAULTS: Final = {"default", "default_factory", "insert_default", "factory", "server_default"}
_PLACEHOLDER: Final = re.compile(r"%[^%]")
_DEPTH: Final = 24


# Names, not bound methods: those would tie each Maker, and with it a syntax tree, into a reference cycle.
_JUDGES: Final = {
    ast.JoinedStr: "_joined",
    ast.BinOp: "_operation",
    ast.Call: "_call",
    ast.Attribute: "_attribute",
    ast.Subscript: "_part",
    ast.BoolOp: "_either",
    ast.IfExp: "_branch",
    ast.NamedExpr: "_walrus",
    ast.Name: "_variable",
    ast.Lambda: "_lambda",
}


class Maker:
    """Judges expressions of one file."""

    __slots__ = ("_id_makers", "_means_id", "_source", "_variables", "_work")

    def __init__(
        self, source: Source, id_makers: tuple[str, ...], means_id: Callable[[str], bool], work: Work
    ) -> None:
        self._work = work
        self._variables: dict[tuple[int, str, int], str] = {}
        self._source = source
        self._id_makers = id_makers
        self._means_id = means_id

    def made(self, node: ast.AST | None, scope: Scope, depth: int = 0) -> str:
        """Say how an expression makes an id."""
        judge = _JUDGES.get(node.__class__)
        if judge is None or depth >= _DEPTH or not self._work.step():
            return ""
        how: str = getattr(self, judge)(node, scope, depth + 1)
        return how

    def made_by_reference(self, node: ast.AST, scope: Scope) -> str:
        """Judge a function that is handed over uncalled, such as ``default_factory=uuid4``."""
        return self._source_of(node, scope) or self.made(node, scope)

    def _joined(self, node: ast.JoinedStr, scope: Scope, depth: int) -> str:
        holes = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        if not holes or all(isinstance(hole.value, ast.Constant) for hole in holes):
            return ""
        if len(holes) == len(node.values) == 1:
            # f"{x}" alone is a conversion.
            return self.made(holes[0].value, scope, depth)
        return "an f-string"

    def _operation(self, node: ast.BinOp, scope: Scope, depth: int) -> str:
        text = string_of(node.left)
        if isinstance(node.op, ast.Mod) and text is not None:
            return self._percent(text, node.right, scope, depth)
        if isinstance(node.op, ast.Add):
            parts = _operands(node)
            if all(isinstance(part, ast.Constant) for part in parts):
                return ""
            if any(string_of(part) is not None or isinstance(part, ast.JoinedStr) for part in parts):
                return "string concatenation"
        return self.made(node.left, scope, depth) or self.made(node.right, scope, depth)

    def _percent(self, text: str, right: ast.expr, scope: Scope, depth: int) -> str:
        if not _PLACEHOLDER.search(text) or isinstance(right, ast.Constant):
            return ""
        return self.made(right, scope, depth) if text == "%s" else "%-formatting"

    def _call(self, node: ast.Call, scope: Scope, depth: int) -> str:
        func = node.func
        name = last_name(func)
        if self._may_make(func, scope):
            return ""
        if source := self._source_of(func, scope):
            return source
        if isinstance(func, ast.Name):
            return self._plain_call(node, name, scope, depth)
        if isinstance(func, ast.Attribute):
            return self._method(node, func, scope, depth)
        return ""

    def _plain_call(self, node: ast.Call, name: str, scope: Scope, depth: int) -> str:
        if name == "next" and node.args and _COUNTER.search(last_name(node.args[0])):
            return "a counter"
        if name in {"id", "hash"} and node.args:
            return f"{name}()"
        if node.args and (name in _SHAPES or _ID_TYPE.match(name) or name == "cast"):
            return self.made(node.args[-1 if name == "cast" else 0], scope, depth)
        return self._default_of(node, scope)

    def _method(self, node: ast.Call, func: ast.Attribute, scope: Scope, depth: int) -> str:
        text = string_of(func.value)
        if func.attr == "join" and node.args:
            return self._join(node.args[0], scope, depth)
        if func.attr == "format" and text is not None:
            variable = any(not isinstance(value, ast.Constant) for value in _arguments(node))
            return "str.format" if variable and text != "{}" else self._first(node.args, scope, depth)
        if func.attr in _RESHAPES:
            return self.made(func.value, scope, depth)
        if func.attr in {"get", "pop", "setdefault", "getenv"} and len(node.args) > 1:
            return self.made(node.args[1], scope, depth)
        if _ID_TYPE.match(func.attr) and node.args:
            return self.made(node.args[0], scope, depth)
        return self._default_of(node, scope)

    def _default_of(self, node: ast.Call, scope: Scope) -> str:
        """Judge ``field(default_factory=…)`` and its relatives."""
        for keyword in node.keywords:
            if keyword.arg in _DEFAULTS and (how := self.made_by_reference(keyword.value, scope)):
                return how
        return ""

    def _join(self, parts: ast.expr, scope: Scope, depth: int) -> str:
        if isinstance(parts, (ast.GeneratorExp, ast.ListComp)):
            chosen = (
                last_name(parts.elt.func) in {"choice", "randint"}
                if isinstance(parts.elt, ast.Call)
                else False
            )
            return "random" if chosen else self.made(parts.elt, scope, depth)
        if isinstance(parts, (ast.List, ast.Tuple)):
            texts = [string_of(part) is not None for part in parts.elts]
            if any(texts) and not all(texts):
                return "str.join"
            return self._first(parts.elts, scope, depth)
        return self.made(parts, scope, depth)

    def _attribute(self, node: ast.Attribute, scope: Scope, depth: int) -> str:
        if isinstance(node.value, ast.Name) and node.attr not in {"hex", "int", "bytes", "urn"}:
            return ""
        return self.made(node.value, scope, depth)

    def _part(self, node: ast.Subscript, scope: Scope, depth: int) -> str:
        if isinstance(node.value, ast.Name) and not isinstance(node.slice, ast.Slice):
            return ""
        return self.made(node.value, scope, depth)

    def _either(self, node: ast.BoolOp, scope: Scope, depth: int) -> str:
        return self._first(node.values, scope, depth)

    def _branch(self, node: ast.IfExp, scope: Scope, depth: int) -> str:
        return self.made(node.body, scope, depth) or self.made(node.orelse, scope, depth)

    def _walrus(self, node: ast.NamedExpr, scope: Scope, depth: int) -> str:
        return "" if self._means_id(node.target.id) else self.made(node.value, scope, depth)

    def _lambda(self, node: ast.Lambda, scope: Scope, depth: int) -> str:
        return self.made(node.body, scope, depth)

    def _variable(self, node: ast.Name, scope: Scope, depth: int) -> str:
        # A variable that means an id itself is judged where it is bound, and only there.
        if self._means_id(node.id):
            return ""
        key = (id(scope), node.id, depth)
        if key not in self._variables:
            self._variables[key] = self._bound(node, scope, depth)
        return self._variables[key]

    def _bound(self, node: ast.Name, scope: Scope, depth: int) -> str:
        for binding in lookup(node.id, scope, self._source):
            # The step through one variable is the last one, or loops of variables would never end.
            near = binding.scope is scope or (binding.scope is not None and binding.scope.kind == "function")
            if (
                binding.kind == "value"
                and near
                and (how := self.made(binding.value, scope, depth + _DEPTH // 2))
            ):
                return f"{how} in {node.id!r}"
        return ""

    def _first(self, nodes: list[ast.expr], scope: Scope, depth: int) -> str:
        return next((how for node in nodes if (how := self.made(node, scope, depth))), "")

    def _source_of(self, func: ast.AST, scope: Scope) -> str:
        """Name the source of uniqueness that a function is: uuid, time, random."""
        text = dotted(func)
        if not text:
            return ""
        full = imported_name(text, scope, self._source)
        if full in _TIME or _NOW.search(full) or _NOW.search(text):
            return f"the time ({text})"
        if full in _RANDOM or _UUID.search(full) or _HASHED.match(full):
            return f"{text}()"
        return ""

    def _may_make(self, func: ast.AST, scope: Scope) -> bool:
        text = dotted(func)
        return bool(text) and is_id_maker(imported_name(text, scope, self._source), self._id_makers)


@lru_cache(maxsize=16_384)
def is_id_maker(name: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a dotted name is, or belongs to, something that may make ids."""
    parts = name.split(".")
    starts = [".".join(parts[: end + 1]) for end in range(len(parts))]
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(start, pattern) for start in starts):
            return True
        if "." not in pattern and any(fnmatch.fnmatchcase(part, pattern) for part in parts):
            return True
    return False


def _operands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_operands(node.left), *_operands(node.right)]
    return [node]


def _arguments(node: ast.Call) -> list[ast.expr]:
    return [*node.args, *(keyword.value for keyword in node.keywords)]
