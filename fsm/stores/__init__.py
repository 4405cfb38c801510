"""Where executions and their journals are kept: one small protocol, and a store for each place."""

from fsm.core.records import MachineRecord
from fsm.stores.base import Barred, Conflict, Damage, Due, Order, Query, Store, WorkerRow
from fsm.stores.opening import open_store

__all__ = [
    "Barred",
    "Conflict",
    "Damage",
    "Due",
    "MachineRecord",
    "Order",
    "Query",
    "Store",
    "WorkerRow",
    "open_store",
]
