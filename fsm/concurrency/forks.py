"""What a forked child has to begin anew, where there are forks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Anew(Protocol):
    """What begins anew in a forked child: locks may be held by threads that it has not."""

    def after_fork(self) -> None:
        """Begin anew."""
        ...


_all: weakref.WeakSet[Anew] = weakref.WeakSet()
_first: list[Callable[[], None]] = []


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


def first_in_child(function: Callable[[], None]) -> None:
    """Call a function in every forked child before any object starts over.

    An object may start a thread when it starts over, and that thread has to find every lock usable.
    """
    _first.append(function)


def anew_after_fork(one: Anew) -> None:
    """Call an object's `after_fork` in every forked child, for as long as the object lives."""
    _all.add(one)


def _after_fork() -> None:
    for function in _first:
        function()
    for one in list(_all):
        one.after_fork()


at_fork(_after_fork)
