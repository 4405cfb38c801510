"""The command line. Only this package prints, and nothing else of the library imports it."""

from __future__ import annotations


def main() -> None:
    """Run the `fsm` command."""
    from fsm.cli.app import app  # noqa: PLC0415 - typer and rich are loaded by the command alone

    app()
