"""The rules: each module finds one kind of second source of truth in one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fsm.audit.rules import ids
from fsm.audit.rules.context import FileContext

Check = Callable[[FileContext], None]

# FSM001 is not here: it needs all modules, and runs in a second pass.
LOCAL_RULES: Final[tuple[tuple[tuple[str, ...], Check], ...]] = (((ids.CODE,), ids.check),)
