"""Where executions and their journals are kept: one small protocol, and a store for each place."""

from fsm.stores.base import Conflict, MachineRecord, Query, Store, open_store

__all__ = ["Conflict", "MachineRecord", "Query", "Store", "open_store"]
