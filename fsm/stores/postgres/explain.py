"""What PostgreSQL's errors mean, by their SQLSTATE, and what to do."""

from __future__ import annotations

from typing import Literal

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests

from fsm.errors import BadPayload, FsmError, NotAStore, StoreUnavailable

LAW, LEASE, PARENT = "FS001", "FS002", "FS003"
"""The SQLSTATEs of the store's own law; see ``0002_law.sql``."""

Kind = Literal["gone", "again", "law", "question", "other"]

_AGAIN = {"40001", "40P01", "55P03", "25006", "55006"}
"""Nothing was written, and a repetition may succeed: a race, a deadlock, a lock, a server that became a standby."""
_ANYTHING = {"22", "23", "FS"}
"""Classes: a value that cannot be kept, a constraint, the store's own law."""
_QUESTION = {"42883", "42804", "42846", "22P02", "22P05", "22003", "22021", "22023"}
_SAID = {
    "25006": "takes no writes (a standby, or an instance that was demoted): name all hosts, and "
    "target_session_attrs=read-write",
    "28": "refused the role or its password",
    "3D": "has no such database: create it first",
    "3F": "has no such schema any more",
    "42501": "does not let this role do that: grant it what it needs (fsm.grant_worker, fsm.grant_reader)",
    "42P01": "has lost a table of the registry: restore it from a backup",
    "53100": "is out of disk space; nothing was written",
    "53200": "is out of memory; nothing was written",
    "53300": "takes no more connections: raise max_connections, or lower pool_max",
    "55P03": "kept the call waiting for another transaction's lock for too long; nothing was written",
    "57014": "took too long for a statement, which was cancelled; nothing was written",
}


def kind_of(error: Exception) -> Kind:
    """Return what became of a call that ended with an error.

    Returns:
        ``gone``: the connection is lost, and a write may have been committed. ``again``: nothing was written, and a
        repetition may succeed. ``law``: a value or a step was refused. ``question``: the caller's question makes no
        sense. ``other``: nothing was written.
    """
    state = getattr(error, "sqlstate", None)
    if isinstance(error, (UnicodeError, OverflowError)):
        return "law"
    if state is None:
        return "gone" if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else "law"
    if state[:2] == "08" or state in {"57P01", "57P02", "57P03", "57P05"}:
        return "gone"
    if state in _AGAIN:
        return "again"
    if state in _QUESTION:
        return "question"
    return "law" if state[:2] in _ANYTHING else "other"


def explain(error: Exception, where: str, *, committed: bool | None = False) -> FsmError:
    """Return the error of this library that says what one of PostgreSQL's means.

    Args:
        error: The error.
        where: The store, without secrets.
        committed: What is known of the write.
    """
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, (PoolTimeout, TooManyRequests)):
        said = "gave no connection in time: it is down, cannot be reached, or pool_max is too small"
    elif kind_of(error) in {"law", "question"}:
        return BadPayload(f"the store cannot take a value, or be asked for it: {one_line(error)}")
    elif state == "42704" or (state[:2] == "0A" and state):
        return NotAStore(f"{where} is no store of this library: {one_line(error)}")
    else:
        said = _SAID.get(state) or _SAID.get(state[:2]) or f"failed: {one_line(error)}"
    return StoreUnavailable(f"{where} {said}", committed=committed)


def one_line(error: Exception) -> str:
    """Return the first line of what the server says: what follows may quote values."""
    diagnosis = getattr(error, "diag", None)
    said = (diagnosis.message_primary if diagnosis is not None else None) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]
