"""The store in one SQLite file: the embedded default, shared by the processes of one machine."""

from fsm.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
