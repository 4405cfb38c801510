"""The calls of Python functions inside the library, which no machine's load moves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tests.support.places import PACKAGE


@contextmanager
def calls_inside() -> Iterator[list[str]]:
    """Note, as ``file:function``, each function of the package that is called in the block.

    What watches the table for ``--fsm-cover`` is no part of what is counted.
    """
    calls: list[str] = []
    inside, watches = f"{PACKAGE}/", f"{PACKAGE}/testing/"

    def note(frame: FrameType, what: str, _arg: Any) -> None:
        code = frame.f_code
        if (
            what == "call"
            and code.co_filename.startswith(inside)
            and not code.co_filename.startswith(watches)
        ):
            calls.append(f"{code.co_filename[len(inside) :]}:{code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
