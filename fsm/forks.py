"""What a forked child has to begin anew, where there are forks."""

from __future__ import annotations

import os
from collections.abc import Callable


def nothing() -> None:
    """Do nothing."""


def at_fork(
    in_child: Callable[[], None],
    *,
    before: Callable[[], None] = nothing,
    in_parent: Callable[[], None] = nothing,
) -> None:
    """Call functions around every fork of this process; nothing happens on a system without forks.

    Args:
        in_child: Called in the child, by the only thread that it has.
        before: Called before the fork.
        in_parent: Called in the parent, after the fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
