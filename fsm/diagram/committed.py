"""The drawings that stand in the repository, and the check that they still say what the table says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fsm.diagram.dot import to_dot
from fsm.diagram.mermaid import to_mermaid
from fsm.diagram.render import render_svg
from fsm.machine.machine import Machine


def committed(machine: Machine) -> dict[str, bytes]:
    """Make the files that show a machine.

    Args:
        machine: Any machine.

    Returns:
        The content of ``NAME.dot``, ``NAME.mmd`` and ``NAME.svg``, by file name.

    Raises:
        RenderError: The layout program is missing or failed.
    """
    dot = to_dot(machine)
    return {
        f"{machine.name}.dot": dot.encode(),
        f"{machine.name}.mmd": to_mermaid(machine).encode(),
        f"{machine.name}.svg": render_svg(dot),
    }


def write(directory: Path, machine: Machine) -> list[str]:
    """Write the files that show a machine.

    Args:
        directory: Where to; made if it is missing.
        machine: Any machine.

    Returns:
        The names of the files.

    Raises:
        RenderError: The layout program is missing or failed; nothing was written.
        OSError: A file cannot be written.
    """
    files = committed(machine)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return list(files)


def check(directory: Path, machines: Iterable[Machine]) -> list[str]:
    """Compare the files in a directory with what the tables say now, byte for byte.

    Args:
        directory: Where the files are.
        machines: The machines that they show.

    Returns:
        The names of the files that differ or are missing; empty when all is well.

    Raises:
        RenderError: The layout program is missing or failed.
    """
    out: list[str] = []
    for machine in machines:
        for name, content in committed(machine).items():
            file = directory / name
            if not file.is_file() or file.read_bytes() != content:
                out.append(name)
    return out
