"""What tests need, this library's own and yours.

`fsm.testing.simulation` runs real asyncio code in virtual time, with every fault that a seed can think of.
"""
