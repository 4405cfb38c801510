"""A birth that the store keeps out is refused at once, with what is true of the record that is in its way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fsm import BadPayload, Refused, UnknownExecution
from fsm.registry.registry import Registry

USER: dict[str, Any] = {"user_id": "ada", "thread_id": "t"}


def birth(registry: Registry, **more: Any) -> Any:
    """The command of a birth, checked and not yet committed."""
    options = (
        dict.fromkeys(("timeouts", "retry", "parent_id", "retry_of", "metadata", "machine")) | USER | more
    )
    return registry.birth("agent", **options)


@pytest.mark.parametrize("how", ["blocking", "asyncio"])
@pytest.mark.parametrize(("event", "state"), [("cancel", "cancelled"), ("start", "cancelling")])
def test_a_child_that_comes_too_late_is_told_how_its_parent_is(either, event, state, how):
    """A parent that stops between a child's check and its commit is named with its state and version."""
    parent = either.create("parent", **USER)
    registry = either._registry
    child = birth(registry, parent_id=parent.id)
    either.fire(parent.id, event)
    if event == "start":
        either.fire(parent.id, "cancel")
    if how == "blocking":
        registry.committer.commit(child)
    else:
        asyncio.run(registry.committer.commit_async(child))
    with pytest.raises(Refused) as caught:
        registry.created(child)
    now = either.get(parent.id)
    assert now.state == state
    refusal = caught.value.refusal
    assert (refusal.execution_id, refusal.state, refusal.version) == (parent.id, now.state, now.version)
    assert (refusal.event, refusal.reason) == ("create", "terminal")


def test_a_child_of_a_parent_that_is_gone_names_the_parent(either):
    """A parent that is deleted between a child's check and its commit is the unknown one, not the child."""
    parent = either.create("parent", **USER)
    registry = either._registry
    child = birth(registry, parent_id=parent.id)
    either.fire(parent.id, "cancel")
    assert either.prune(keep=0) == 1
    registry.committer.commit(child)
    with pytest.raises(UnknownExecution) as caught:
        registry.created(child)
    assert caught.value.execution_id == parent.id


@pytest.mark.parametrize("deleted", [True, False])
def test_an_id_that_was_given_out_is_refused_at_once(either, monkeypatch, deleted):
    """A birth under the id of an execution that is there, or was deleted, is refused after one look, saying which."""
    one = either.create("agent", **USER)
    if deleted:
        either.fire(one.id, "cancel")
        assert either.prune(keep=0) == 1
    registry = either._registry
    appended: list[int] = []
    real = registry.store.append

    def append(steps: Any) -> Any:
        appended.append(len(steps))
        return real(steps)

    monkeypatch.setattr(registry.store, "append", append)
    monkeypatch.setattr(registry.ids, "make", lambda _: one.id)
    with pytest.raises(BadPayload, match="was deleted" if deleted else "is there already") as caught:
        either.create("agent", **USER)
    assert one.id in str(caught.value)
    assert appended == [1]
    monkeypatch.undo()
    assert either.create("agent", **USER).version == 0
    assert [row.execution_id for row in either.subscribe(after=0, follow=False)].count(one.id) == (
        not deleted
    )
