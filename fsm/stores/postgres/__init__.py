"""The store in PostgreSQL, for many machines: see README.md in `fsm/stores`."""

from fsm.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
