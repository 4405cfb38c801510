"""The command line. Only this package prints, and nothing else of the library imports it."""

from __future__ import annotations

import io
import os
import signal
import sys

BUG = 70
"""Exit code of an unexpected error."""
STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the `fsm` command."""
    _streams()
    code: int | str | None = 0
    try:
        from fsm.cli.app import app  # noqa: PLC0415 - typer and rich are loaded by the command alone

        app()
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        code = STOPPED
    except Exception as error:  # noqa: BLE001 - a command ends in a line and never in a traceback
        code = last_resort(error)
    # What is left to do is to close the store: Ctrl-C ends that at once, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except (
        OSError,
        ValueError,
    ):  # the reader has gone, or the disk is full: Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = code or 2
    sys.exit(code)


def last_resort(error: BaseException) -> int:
    """Say on one line that an unexpected error is a bug; returns the exit code for it."""
    if os.environ.get("FSM_DEBUG"):
        import traceback  # noqa: PLC0415 - for those who asked for it

        traceback.print_exception(error)
    from fsm.concurrency.supervised import one_line  # noqa: PLC0415 - seldom needed

    sys.stderr.write(f"fsm: {one_line(error)}. This is a bug; FSM_DEBUG=1 shows the traceback\n")
    return BUG


def _streams() -> None:
    """Make the standard streams usable, whatever this process was started with."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened, a database say, would take its place
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as above
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is replaced; UTF-8 cannot show half a character, and shows it as an escape.
        utf = (stream.encoding or "").lower().startswith("utf")
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if utf else "replace")
