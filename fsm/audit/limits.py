"""How much work one file may cause. What exceeds a limit is given up, and the report says so."""

from __future__ import annotations

from typing import Final

STEPS_PER_FILE: Final = 400_000
"""Steps from a name to what it is bound to, over all names of one file (code of people stays below 5,000)."""
SYMBOLS_PER_EXPRESSION: Final = 64
"""Classes that one expression may stand for; the others of a name that is bound again and again are left out."""
STEPS_PER_SYMBOL: Final = 256
"""Modules, aliases and star imports that are visited to find what one dotted name stands for."""
LONGEST_NAME: Final = 200
"""Characters of a name or an annotation that are judged; a longer one is cut."""
ROUNDS: Final = 30
"""How often the class graph is judged again; a chain of more classes that wrap one another keeps its last ones."""


class Work:
    """Counts the steps that one file causes."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> bool:
        """Count one step."""
        self.steps += 1
        return self.steps <= STEPS_PER_FILE

    @property
    def exhausted(self) -> bool:
        """Say whether something was given up."""
        return self.steps > STEPS_PER_FILE
