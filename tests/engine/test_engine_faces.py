"""The run of a plain function is the run of a coroutine function: neither face has what the other lacks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fsm.engine import Run, SyncRun

OF_THE_LOOP = {"again", "connection", "end", "inflight", "loop", "recorder"}
"""What a run has for the engine and its integrations, on its event loop."""
OF_THREADS = {"run", "sleep", "stop", "wait"}
"""What a thread needs besides: a sleep that the end of the run wakes, and the way to the loop."""


def members(face: type) -> dict[str, Any]:
    return {name: member for name, member in vars(face).items() if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [
        (one.name, one.kind, one.default)
        for one in list(inspect.signature(function, follow_wrapped=True).parameters.values())[1:]
    ]


def test_both_faces_have_the_same_names():
    """What a coroutine function can do with its run, a plain function can, and under the same name."""
    run, sync = members(Run), members(SyncRun)
    assert set(run) - OF_THE_LOOP == set(sync) - OF_THREADS


@pytest.mark.parametrize("name", sorted(set(members(Run)) - OF_THE_LOOP))
def test_both_faces_have_the_same_signature(name):
    """A step takes the same arguments on both faces, and says the same of itself; a property stays one."""
    run, sync = members(Run)[name], members(SyncRun)[name]
    if isinstance(run, property):
        assert not callable(sync)
        return
    assert parameters(run) == parameters(sync)
    assert not inspect.iscoroutinefunction(sync)
    if name != "call_model":  # each try of it runs in a thread
        assert sync.__doc__ == run.__doc__
        assert sync.__wrapped__ is run
