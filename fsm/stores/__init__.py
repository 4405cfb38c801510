"""Where executions and their journals are kept: one small protocol, and a store for each place."""

from fsm.stores.base import Conflict, Due, MachineRecord, Query, Store, WorkerRow, open_store

__all__ = ["Conflict", "Due", "MachineRecord", "Query", "Store", "WorkerRow", "open_store"]
