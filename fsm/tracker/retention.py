"""What has ended need not be kept for ever; what is open always is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field

from fsm.concurrency.supervised import UNREADABLE
from fsm.errors import StoreUnavailable
from fsm.registry.registry import Registry

logger = logging.getLogger(__name__)

BATCH = 500
"""So many executions are deleted in one transaction."""
ARCHIVE = "archive"
"""What could not be done with a record that is set aside here."""


class Retention(BaseModel):
    """Which ended executions to keep; both limits hold. Open executions are never touched.

    Attributes:
        max_age_s: Delete what ended longer ago, in seconds on the steady timeline: a wall clock that jumps deletes
            nothing. 0 deletes everything that has ended.
        max_count: Keep so many ended executions at most; the oldest ends go first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    max_age_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_count: int | None = Field(default=None, ge=0)


def prune(
    registry: Registry, policy: Retention, archive: Callable[[dict[str, Any]], None] | None = None
) -> int:
    """Delete ended executions with their journals.

    Any number of processes may prune at the same time: what the policy keeps is counted again where it is deleted.
    Nothing is deleted that was not archived. Where several prune, one that was archived may be kept for now, and is
    then archived again. One that cannot be shown is kept and set aside (`Registry.health`); the others go.

    Args:
        registry: The registry.
        policy: Which ones.
        archive: Called with each execution and its history before it is deleted; if it raises, nothing of that
            batch is.

    Returns:
        How many were deleted.
    """
    aside: set[str] = set()
    done = 0
    if policy.max_age_s is not None:
        done += _delete(registry, _before(registry, policy.max_age_s), archive, aside, 0)
    if policy.max_count is not None:
        done += _delete(registry, float("inf"), archive, aside, policy.max_count)
    if aside:
        logger.warning("%d ended executions cannot be shown: they are not archived, and kept", len(aside))
    return done


def _before(registry: Registry, max_age_s: float) -> float:
    """Return the instant on the steady timeline before which ended what is too old."""
    return registry.now() - max_age_s if max_age_s > 0 else float("inf")


def would_prune(registry: Registry, policy: Retention) -> int:
    """Return how many executions `prune` would delete now; nothing is changed."""
    ended = registry.store.ended_count()
    excess = 0 if policy.max_count is None else max(0, ended - policy.max_count)
    if policy.max_age_s is None:
        return excess
    before_at = _before(registry, policy.max_age_s)
    # Both limits take the oldest ends first, so that the larger number holds the smaller one's.
    return max(excess, len(registry.store.ended(before_at, ended)) if ended else 0)


def _delete(
    registry: Registry,
    before_at: float,
    archive: Callable[[dict[str, Any]], None] | None,
    aside: set[str],
    keep: int,
) -> int:
    """Delete batch after batch until nothing is left to delete, or another process is faster; return how many."""
    store = registry.store
    done = 0
    while (excess := store.ended_count() - max(keep, len(aside))) > 0:
        limit = min(excess, BATCH)
        ids = [one for one in store.ended(before_at, limit + len(aside)) if one not in aside][:limit]
        known = len(aside)
        if archive is not None:
            ids = [one for one in ids if _archived(registry, one, archive, aside)]
        gone = store.forget(ids, keep) if ids else 0
        if not gone and len(aside) == known:
            break
        done += gone
    return done


def _archived(
    registry: Registry, execution_id: str, archive: Callable[[dict[str, Any]], None], aside: set[str]
) -> bool:
    """Archive an execution, or set it aside; return whether it may be deleted."""
    try:
        snapshot = registry.store.load(execution_id)
        if snapshot is None:
            return False  # another process deleted it
        history = [receipt.as_dict() for receipt in registry.store.history(execution_id)]
        record = {"execution": registry.show(snapshot).model_dump(mode="json"), "history": history}
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one record keeps no other one
        aside.add(execution_id)
        registry.health.set_aside(execution_id, UNREADABLE, error, registry.now(), event=ARCHIVE)
        return False
    registry.health.take_back(execution_id, event=ARCHIVE)
    archive(record)
    return True


def archive_to(stream: TextIO) -> Callable[[dict[str, Any]], None]:
    """Return an archiver that writes one JSON object a line, flushed before anything is deleted.

    Args:
        stream: An open text file.
    """

    def write(record: dict[str, Any]) -> None:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()

    return write
