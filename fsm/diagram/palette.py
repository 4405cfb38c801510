"""The colours of the drawings: calm, of middle strength, readable on a light card in a dark page too."""

from __future__ import annotations

from typing import NamedTuple

from fsm.machine.grammar import Category


class Paint(NamedTuple):
    """How states of one category are drawn.

    Attributes:
        fill: The colour inside.
        line: The colour of the border, and of the inside where a state is pointed out.
    """

    fill: str
    line: str


PAINTS = {
    Category.PENDING: Paint("#EEF1F5", "#71808F"),
    Category.RUNNING: Paint("#E1EEFF", "#2F6FC4"),
    Category.WAITING: Paint("#FFF2CC", "#B98A0B"),
    Category.STOPPING: Paint("#FFE3D6", "#CC5F30"),
    Category.TERMINAL: Paint("#ECE9F6", "#665C94"),
}
FADED = Paint("#FAFBFC", "#D3D9DF")

INK = "#1F2933"
SOFT_INK = "#48535E"
FADED_INK = "#A7B0B9"
ON_DARK = "#FFFFFF"
LINE = "#7B8895"
FADED_LINE = "#DDE2E7"
CAPSULE = "#D3D9DF"
MISSING = "#C81E1E"
