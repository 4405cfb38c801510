"""The store in memory: a registry that lives and ends with its process."""

from fsm.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
