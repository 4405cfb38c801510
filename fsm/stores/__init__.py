"""Where executions and their journals are kept: one small protocol, and a store for each place."""

from fsm.stores.base import (
    Barred,
    Conflict,
    Damage,
    Due,
    MachineRecord,
    Order,
    Query,
    Store,
    WorkerRow,
    open_store,
)

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
