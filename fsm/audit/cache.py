"""What the audit remembers between two runs: the facts of every file, by the hash of its content.

The key of a file is a hash of its bytes, its place and everything that the facts depend on: the code of the audit, the
configuration and the version of Python. So a fact is never stale, and nothing is asked of clocks or of the file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from fsm.audit.config import AuditConfig
from fsm.audit.files import Source, read_regular

logger = logging.getLogger(__name__)
MOST_BYTES: Final = 1_000_000_000
"""The size above which a cache is neither read nor written."""
MOST_TREES: Final = 16
"""How many trees are remembered; the one that was audited longest ago is forgotten."""
_DIGEST: Final = 32


def default_folder() -> Path | None:
    """Give the user's folder for caches; None where there is no home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        return None
    return Path(base) / "fsm-audit"


class Cache:
    """The remembered facts of one tree, in one file that is replaced as a whole.

    Two runs at once each write a whole file, and the last one stays. A file that is damaged, or that cannot be read or
    written, is as good as none.
    """

    def __init__(self, folder: Path | None, paths: list[Path], config: AuditConfig) -> None:
        tree = "\0".join(os.path.abspath(path) for path in paths)  # noqa: PTH100 # links are names too
        self._file = folder / f"{_hash(os.fsencode(tree))[:24]}.json" if folder is not None else None
        self.active = folder is not None
        self._stamp = _stamp(config)
        self._old: dict[str, bytes] = self._read()
        self._new: dict[str, bytes] = {}
        self.hits = 0

    def key(self, source: Source, raw: bytes) -> str:
        """Give the key of a file."""
        place = f"{source.module}\0{source.shown}\0{source.is_package}{source.is_test}{source.path.endswith('.pyi')}"
        return hashlib.blake2b(raw, digest_size=16, key=self._stamp, salt=_short(place)).hexdigest()

    def get(self, key: str) -> Any:
        """Give what is remembered under a key, or None."""
        row = self._old.get(key)
        if row is not None:
            self.hits += 1
            self._new[key] = row
            return json.loads(row)
        return None

    def put(self, key: str, row: Any) -> None:
        """Remember something; it is written by `save`."""
        self._new[key] = json.dumps(row, separators=(",", ":")).encode("ascii")

    def _read(self) -> dict[str, bytes]:
        if self._file is None:
            return {}
        try:
            raw = read_regular(str(self._file), MOST_BYTES)
        except OSError:
            return {}
        if raw is None or len(raw) >= MOST_BYTES or raw[:_DIGEST] != self._digest(raw[_DIGEST:]):
            return {}
        # The process that wrote the right digest wrote the lines as well.
        lines = (line.split(b" ", 1) for line in raw[_DIGEST:].splitlines())
        return {key.decode("ascii"): row for key, row in lines}

    def _digest(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=_DIGEST // 2, key=self._stamp).hexdigest().encode("ascii")

    def save(self) -> None:
        """Write what this run has learned; nothing where nothing is new."""
        if self._file is None or self._new.keys() == self._old.keys():
            return
        body = b"".join(b"%s %s\n" % (key.encode("ascii"), row) for key, row in self._new.items())
        if len(body) > MOST_BYTES - _DIGEST:
            return
        draft = ""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self._file.parent, prefix=".draft-")
            with open(handle, "wb") as file:  # noqa: PTH123 # a descriptor
                file.write(
                    hashlib.blake2b(body, digest_size=_DIGEST // 2, key=self._stamp).hexdigest().encode()
                )
                file.write(body)
            os.replace(draft, self._file)  # noqa: PTH105 # a str
            draft = ""
            self._forget()
        except OSError as error:
            # A home that cannot be written costs time, not findings.
            logger.debug("the cache %s is not written: %s", self._file, error)
        finally:
            if draft:
                Path(draft).unlink(missing_ok=True)

    def _forget(self) -> None:
        if self._file is None:
            return
        files = sorted(self._file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST_TREES]:
            path.unlink(missing_ok=True)


def _hash(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=32).hexdigest()


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _stamp(config: AuditConfig) -> bytes:
    """Hash everything that facts depend on beside the files."""
    known = hashlib.blake2b(digest_size=32)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        known.update(path.name.encode() + path.read_bytes())
    known.update(repr((sys.version, config)).encode())
    return known.digest()
