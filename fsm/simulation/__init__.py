"""A stepped loop, a virtual clock, simulated workers and failing stores: `fsm replay --virtual` and the tests use them.

`Simulation` runs agents on several workers in virtual time, with every fault that a seed can draw, and holds the
journal to the guarantees. `SteppedLoop` is the event loop below it, for asyncio code of any kind.
"""

from fsm.simulation.loop import SteppedLoop
from fsm.simulation.simulation import Simulation

__all__ = ["Simulation", "SteppedLoop"]
