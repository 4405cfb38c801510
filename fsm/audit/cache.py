"""What the audit remembers of a tree between two runs: the facts of every file, and the result of the whole.

The key of a file is a hash of its bytes, its place and everything that its facts depend on: the code of the audit, the
configuration and the version of Python. The result is remembered under all keys together. So nothing is ever stale, and
nothing is asked of clocks or of the file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Final

from fsm.audit.config import AuditConfig
from fsm.audit.facts import FileFacts, as_row, from_row
from fsm.audit.files import Source, read_regular
from fsm.audit.model import AuditResult, Construction, Finding, Owner, Skipped

logger = logging.getLogger(__name__)
MOST_BYTES: Final = 1_000_000_000
"""The size above which a cache is neither read nor written."""
MOST_TREES: Final = 16
"""How many trees are remembered; the one that was audited longest ago is forgotten."""
_KEY: Final = 16
_SIZES: Final = 3
_HEAD: Final = _KEY + _SIZES * 8


def default_folder() -> Path | None:
    """Give the user's folder for caches; None where there is no home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        return None
    return Path(base) / "fsm-audit"


class Cache:
    """The memory of one tree, in one file that is replaced as a whole.

    A head with a checksum and three sizes, the result, the keys, and the rows of facts, a line each, with a checksum of
    their own: an unchanged tree needs none of the rows. Two runs at once each write a whole file, and the last one
    stays. A file that is damaged, or that cannot be read or written, is as good as none.
    """

    def __init__(self, folder: Path | None, paths: list[Path], config: AuditConfig) -> None:
        self._stamp = _stamp(config)
        tree = "\0".join(os.path.abspath(path) for path in paths)  # noqa: PTH100 # links are names too
        name = hashlib.blake2b(os.fsencode(tree), digest_size=12).hexdigest()
        self._file = folder / f"{name}.json" if folder is not None else None
        self._raw = b""
        self._result = b""
        self._known: dict[bytes, int] = {}
        self._rows: list[bytes] | None = None
        self._new: dict[bytes, bytes | None] = {}
        try:
            if self._file is not None:
                self._read(read_regular(str(self._file), MOST_BYTES) or b"")
        except OSError:
            pass

    def _read(self, raw: bytes) -> None:
        sizes = [int.from_bytes(raw[at : at + 8], "big") for at in range(_KEY, _HEAD, 8)]
        first, last = _HEAD + sizes[0], _HEAD + sizes[0] + sizes[1]
        if len(raw) != sum(sizes) + _HEAD or raw[:_KEY] != self._hash(raw[_KEY:last]):
            return
        self._raw, self._result, keys = raw[last:], raw[_HEAD:first], raw[first:last]
        self._known = {keys[at : at + _KEY]: at // _KEY for at in range(0, len(keys), _KEY)}

    def _hash(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=_KEY, key=self._stamp).digest()

    def key(self, source: Source, raw: bytes) -> bytes:
        """Give the key of a file."""
        place = f"{source.module}\0{source.shown}\0{source.is_package}{source.is_test}{source.path.endswith('.pyi')}"
        salt = hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        return hashlib.blake2b(raw, digest_size=_KEY, key=self._stamp, salt=salt).digest()

    def knows(self, key: bytes) -> bool:
        """Say whether facts are remembered under a key."""
        known = key in self._known
        if known:
            self._new[key] = None
        return known

    def get(self, key: bytes) -> FileFacts | None:
        """Give the facts under a known key; None if what is remembered is damaged."""
        if self._rows is None:
            whole = self._raw[:_KEY] == self._hash(self._raw[_KEY:])
            self._rows = self._raw[_KEY:].split(b"\n") if whole else []
            self._raw = b""
        row = self._rows[self._known[key]] if self._rows else None
        self._new[key] = row
        return from_row(json.loads(row)) if row is not None else None

    def put(self, key: bytes, facts: FileFacts) -> None:
        """Remember the facts of a file; they are written by `save`."""
        if self._file is not None:
            self._new[key] = json.dumps(as_row(facts), separators=(",", ":")).encode("ascii")

    def _state(self, skipped: list[Skipped]) -> str:
        return self._hash(b"".join(self._new) + repr(skipped).encode("utf-8", "backslashreplace")).hex()

    def recall(self, skipped: list[Skipped]) -> AuditResult | None:
        """Give the result of the very same files, of which some could not be read for the very same reasons."""
        if not self._result or self._new.keys() != self._known.keys():
            return None
        state, findings, skips, owners, constructions, suppressed = json.loads(self._result)
        if state != self._state(skipped):
            return None
        return AuditResult(
            findings=[Finding(*row) for row in findings],
            skipped=[Skipped(*row) for row in skips],
            owners=[Owner(*row[:4], *map(tuple, row[4:])) for row in owners],
            constructions=[Construction(*row) for row in constructions],
            suppressed=suppressed,
        )

    def save(self, skipped: list[Skipped], result: AuditResult) -> None:
        """Write what this run has learned: facts, and the result that follows where these files were not read."""
        if self._file is None:
            return
        parts = (result.findings, result.skipped, result.owners, result.constructions)
        rows = [[astuple(record) for record in part] for part in parts]
        text = json.dumps([self._state(skipped), *rows, result.suppressed]).encode("ascii")
        keys = b"".join(self._new)
        facts = b"\n".join(row or b"" for row in self._new.values())
        sizes = b"".join(size.to_bytes(8, "big") for size in (len(text), len(keys), len(facts) + _KEY))
        head = self._hash(sizes + text + keys)
        if len(facts) + len(text) + len(keys) < MOST_BYTES - 2 * _HEAD:
            self._write(self._file, [head, sizes, text, keys, self._hash(facts), facts])

    def _write(self, target: Path, parts: list[bytes]) -> None:
        draft = ""
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=target.parent, prefix=".draft-")
            with open(handle, "wb") as file:  # noqa: PTH123 # a descriptor
                file.writelines(parts)
            os.replace(draft, target)  # noqa: PTH105 # a str
            draft = ""
            files = sorted(target.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in files[:-MOST_TREES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            # A home that cannot be written costs time, not findings.
            logger.debug("the cache %s is not written: %s", target, error)
        finally:
            if draft:
                Path(draft).unlink(missing_ok=True)


def _stamp(config: AuditConfig) -> bytes:
    """Hash everything that facts depend on beside the files."""
    known = hashlib.blake2b(digest_size=32)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        known.update(path.name.encode() + path.read_bytes())
    known.update(repr((sys.version, config)).encode())
    return known.digest()
