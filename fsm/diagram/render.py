"""DOT text into pictures, by the Graphviz program that is installed with the library.

`graphviz-pure` needs no system package and brings its own fonts, so the same text gives the same bytes everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from fsm.errors import FsmError

PROGRAM = "graphviz-pure"
TIMEOUT_S = 60.0
_PASSED_ON = frozenset({"PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR"})


class RenderError(FsmError):
    """No picture was made: the layout program is missing, took too long, or did not understand the text."""


def render_svg(dot: str) -> bytes:
    """Draw DOT text as SVG.

    Args:
        dot: What `to_dot` wrote, or any other DOT text.

    Returns:
        The picture, the same bytes for the same text.

    Raises:
        RenderError: The layout program is missing or failed; the text says what to do.
    """
    return _render(dot, "svg")


def render_png(dot: str, *, dpi: int = 144) -> bytes:
    """Draw DOT text as PNG.

    Args:
        dot: What `to_dot` wrote, or any other DOT text.
        dpi: The resolution in dots an inch; 144 suits a screen of double density.

    Returns:
        The picture, the same bytes for the same text.

    Raises:
        RenderError: The layout program is missing or failed; the text says what to do.
    """
    return _render(dot, "png", f"-Gdpi={dpi}")


def _render(dot: str, form: str, *options: str) -> bytes:
    program = _program()
    # Graphviz reads plugins and fonts from variables of its own: they must not change the bytes.
    environment = {name: value for name, value in os.environ.items() if name.upper() in _PASSED_ON}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program of ours; the text goes in through the pipe
            [program, "-Kdot", f"-T{form}", *options],
            input=dot.encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as late:
        raise RenderError(
            f"the layout took longer than {TIMEOUT_S:g} s: write the text with --format dot or mermaid instead"
        ) from late
    except OSError as error:
        raise RenderError(
            f"{program} does not start ({error}): install it anew, pip install {PROGRAM}"
        ) from error
    if done.returncode != 0 or not done.stdout:
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise RenderError(f"{PROGRAM} ended with {done.returncode}: {why[-1]}")
    return done.stdout


def _program() -> str:
    """Find the program of this environment before any other of the same name."""
    beside = Path(sysconfig.get_path("scripts"))
    found = shutil.which(PROGRAM, path=str(beside)) or shutil.which(PROGRAM)
    if found is None:
        raise RenderError(
            f"{PROGRAM} is neither in {beside} nor on the PATH: pip install {PROGRAM}, "
            "or write the text with --format dot or mermaid"
        )
    return found
