"""What a caller may pass."""

from __future__ import annotations

import pytest

from fsm.errors import InvalidArgument
from fsm.tracker.process import fresh_tracker


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": float("nan")}, {"a": [float("inf")]}, {"a": 10**5000}, {"a": object()}, {1: 2}, {"a": "\ud800"}, "text",
        {"a": "x" * 2_000_000},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_read_back_is_refused(metadata):
    """Metadata that JSON cannot say, or that would not come back as it was, is refused and nothing is created."""
    with fresh_tracker() as tracker:
        with pytest.raises(InvalidArgument, match="metadata"):
            tracker.create("a", user_id="u", thread_id="t", metadata=metadata)
        assert tracker.counts() == {}


def test_metadata_is_copied():
    """Metadata is copied on the way in and on the way out, and shared by no two executions."""
    given = {"tags": ["a"], "note": "NaN is a word here", "none": None, "zero": 0, "empty": {}}
    with fresh_tracker() as tracker:
        one = tracker.create("a", user_id="u", thread_id="t", metadata=given)
        two = tracker.create("a", user_id="u", thread_id="t", metadata=given)
        given["tags"].append("b")
        one.metadata["tags"].append("c")
        expected = {"tags": ["a"], "note": "NaN is a word here", "none": None, "zero": 0, "empty": {}}
        assert tracker.get(one.id).metadata == tracker.get(two.id).metadata == two.metadata == expected


@pytest.mark.parametrize("name", ["agent", "user_id", "thread_id"])
@pytest.mark.parametrize("value", ["", None, 7, "x" * 501, "a\0b", "\ud800", b"x"])
def test_a_name_is_a_usable_text(name, value):
    """Agents, users and threads have names: text that is not empty, not endless, and can be written."""
    arguments = {"agent": "a", "user_id": "u", "thread_id": "t"} | {name: value}
    agent = arguments.pop("agent")
    with fresh_tracker() as tracker:
        with pytest.raises(InvalidArgument, match=name):
            tracker.create(agent, **arguments)
        assert tracker.counts() == {}
