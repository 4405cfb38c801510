"""Finding and reading the files of a tree, whatever is in it."""

from __future__ import annotations

import ast
import codecs
import fnmatch
import os
import re
import stat
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from fsm.audit.errors import PathError
from fsm.audit.model import Skipped

Unwanted = Callable[[str], re.Match[str] | None]
Unreadable = Callable[[OSError], None]
# These decode text, but for the names of hosts: they refuse what is long, or need the square of its length.
_NOT_FOR_FILES: Final = {"idna", "punycode", "undefined"}
_TEST_FILE = re.compile(r"(^|/)(tests?|testing|conftest\.py|test_[^/]*\.py|[^/]*_test\.py)(/|$)")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the tree and the name its module goes by.

    Attributes:
        path: Where the file is.
        shown: How it is reported, relative to the project.
        module: The dotted module name, worked out from the folders.
        is_package: Whether it is an ``__init__.py``.
        is_test: Whether it belongs to tests, by its place in the project.
    """

    path: str
    shown: str
    module: str
    is_package: bool
    is_test: bool


def find_sources(
    paths: list[Path], project: Path, exclude: list[str], skip: Callable[[Skipped], None]
) -> Iterator[Source]:
    """Give every Python file at or below some paths, each once, in a stable order.

    Symbolic links to folders are not followed, so a loop of links ends the search nowhere.

    Raises:
        PathError: A path does not exist.
    """
    unwanted = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude) or r"(?!)").match
    seen: set[str] = set()
    for path in paths:
        try:
            path.stat()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise PathError(
                f"{printable(str(path))} does not exist or cannot be reached ({why}); "
                "name a Python file or a folder that holds some"
            ) from None

        def unreadable(error: OSError) -> None:
            where = _shown(error.filename or str(path), project)  # noqa: B023 # called while it walks
            skip(Skipped(where, 1, f"is a folder that cannot be listed: {error.strerror}"))

        found = _walk(path, project, unwanted, unreadable) if path.is_dir() else [str(path)]
        base = _import_root(path)
        for file in found:
            absolute = os.path.abspath(file)  # noqa: PTH100 # resolving links would change reported names
            if absolute not in seen:
                seen.add(absolute)
                yield _source(file, absolute, base, project)


def _walk(top: Path, project: Path, unwanted: Unwanted, unreadable: Unreadable) -> Iterator[str]:
    for folder, folders, files in os.walk(top, onerror=unreadable):
        where = _shown(folder, project)
        folders[:] = sorted(name for name in folders if not (unwanted(name) or unwanted(f"{where}/{name}")))
        for name in sorted(files):
            if name.endswith((".py", ".pyi")) and not (unwanted(name) or unwanted(f"{where}/{name}")):
                yield os.path.join(folder, name)  # noqa: PTH118 # a Path per file costs a tenth of the run


def _shown(path: str, project: Path) -> str:
    relative = os.path.relpath(path, project)
    return printable((path if relative.startswith("..") else relative).replace(os.sep, "/"))


def printable(text: str) -> str:
    r"""Write a text so that every format and every terminal can hold it."""
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _import_root(path: Path) -> str:
    """Find the folder that absolute imports start from: above the outermost package."""
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if path.is_dir() and not (folder / "__init__.py").exists():
        return str(folder)
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return str(folder)


def _source(file: str, absolute: str, base: str, project: Path) -> Source:
    inside = os.path.relpath(absolute, base)
    shown = _shown(absolute, project)
    # A folder called tests above the project says nothing about the project.
    is_test = _TEST_FILE.search(inside if os.path.isabs(shown) else shown) is not None  # noqa: PTH117 # a str
    parts = list(Path(inside).parts)
    stem = parts.pop().rsplit(".", 1)[0]
    is_package = stem == "__init__"
    if not is_package:
        parts.append(stem)
    return Source(file, shown, printable(".".join(parts)), is_package, is_test)


def read_bytes(source: Source, max_bytes: int) -> bytes | Skipped:
    """Read a file, or say why it is left alone."""
    try:
        raw = read_regular(source.path, max_bytes + 1)
    except OSError as error:
        return Skipped(source.shown, 1, f"cannot be read: {error.strerror or error}")
    if raw is None:
        return Skipped(source.shown, 1, "is missing, or is not a regular file")
    if len(raw) > max_bytes:
        return Skipped(source.shown, 1, f"is larger than {max_bytes} bytes (max_file_bytes)")
    return raw


def decoded(source: Source, raw: bytes) -> str | Skipped:
    """Decode a file as Python would."""
    if b"\0" in raw:
        return Skipped(source.shown, 1, "holds NUL bytes, so it is not Python source")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _decode_declared(raw)


def read_regular(path: str, most: int) -> bytes | None:
    """Read the first bytes of a regular file.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    # Opened without waiting and judged afterwards: a look before could be of another file of that name.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as file:  # noqa: PTH123 # a descriptor
        return file.read(most) if stat.S_ISREG(os.fstat(handle).st_mode) else None


def _decode_declared(raw: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(raw).readline)
        info = codecs.lookup(encoding)
        if info._is_text_encoding and info.name not in _NOT_FOR_FILES:  # noqa: SLF001 # the only mark of a codec of texts
            return raw.decode(encoding, errors="replace")
    except (SyntaxError, LookupError, ValueError):
        # The coding line names no codec of texts; what is Python in the file is ASCII all the same.
        pass
    return raw.decode("utf-8", errors="replace")


def parse_source(source: Source, text: str) -> ast.Module | Skipped:
    """Parse a file without running any of it."""
    try:
        return ast.parse(text, source.shown)
    except SyntaxError as error:
        return Skipped(source.shown, error.lineno or 1, f"does not parse: {error.msg}")
    except (RecursionError, MemoryError):
        return Skipped(source.shown, 1, "is nested too deeply to be parsed")
    except ValueError as error:
        return Skipped(source.shown, 1, f"does not parse: {error}")
