"""The breakers of a registry: one `Breakers` for all its faces, made at the first use, closed with it."""

from __future__ import annotations

from fsm.breakers.registry import Breakers
from fsm.concurrency.locks import Lock
from fsm.registry.registry import Registry

_founding = Lock("the breakers of a registry")


def breakers_of(registry: Registry) -> Breakers:
    """Return a registry's breakers."""
    breakers = registry.parts.get(Breakers)
    return breakers if isinstance(breakers, Breakers) else _founding.run_nested(_found, registry)


def _found(registry: Registry) -> Breakers:
    breakers = registry.parts.get(Breakers)
    if not isinstance(breakers, Breakers):
        breakers = Breakers(
            registry.store, registry.clock, worker=lambda: registry.worker_id, health=registry.health
        )
        registry.closing.append(breakers.close)
        registry.parts[Breakers] = breakers
    return breakers
