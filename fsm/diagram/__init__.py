"""The drawings of a machine, all made from its one table.

The drawings are text first: `to_dot` for pictures, `to_mermaid` for a README. Both show the same plan
(`fsm.diagram.plan`), so neither can lose a row that the other has.
"""

from fsm.diagram.dot import to_dot
from fsm.diagram.marks import Mark, NotInMachine
from fsm.diagram.mermaid import to_mermaid
from fsm.diagram.path import Path, Step, Triple, Visit, path_of
from fsm.diagram.render import RenderError, render_png, render_svg

__all__ = [
    "Mark",
    "NotInMachine",
    "Path",
    "RenderError",
    "Step",
    "Triple",
    "Visit",
    "path_of",
    "render_png",
    "render_svg",
    "to_dot",
    "to_mermaid",
]
