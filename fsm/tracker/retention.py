"""What has ended need not be kept for ever; what is open always is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field

from fsm.registry.registry import Registry

BATCH = 500
"""So many executions are deleted in one transaction."""


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
    then archived again.

    Args:
        registry: The registry.
        policy: Which ones.
        archive: Called with each execution and its history before it is deleted; if it raises, nothing of that
            batch is.

    Returns:
        How many were deleted.
    """
    done = 0
    if policy.max_age_s is not None:
        before_at = registry.now() - policy.max_age_s if policy.max_age_s > 0 else float("inf")
        while (gone := _batch(registry, before_at, BATCH, archive, 0)) > 0:
            done += gone
    if policy.max_count is not None:
        while (excess := registry.store.ended_count() - policy.max_count) > 0:
            gone = _batch(registry, float("inf"), min(excess, BATCH), archive, policy.max_count)
            if not gone:
                break
            done += gone
    return done


def would_prune(registry: Registry, policy: Retention) -> int:
    """Return how many executions `prune` would delete now; nothing is changed."""
    ended = registry.store.ended_count()
    excess = 0 if policy.max_count is None else max(0, ended - policy.max_count)
    if policy.max_age_s is None:
        return excess
    before_at = registry.clock.wall() - policy.max_age_s
    # Both limits take the oldest ends first, so that the larger number holds the smaller one's.
    return max(excess, len(registry.store.ended(before_at, ended)) if ended else 0)


def _batch(
    registry: Registry,
    before_at: float,
    limit: int,
    archive: Callable[[dict[str, Any]], None] | None,
    keep: int,
) -> int:
    ids = registry.store.ended(before_at, limit)
    if archive is not None:
        for execution_id in ids:
            snapshot = registry.store.load(execution_id)
            if snapshot is not None:
                history = [receipt.as_dict() for receipt in registry.store.history(execution_id)]
                archive({"execution": registry.show(snapshot).model_dump(mode="json"), "history": history})
    return registry.store.forget(ids, keep) if ids else 0


def archive_to(stream: TextIO) -> Callable[[dict[str, Any]], None]:
    """Return an archiver that writes one JSON object a line, flushed before anything is deleted.

    Args:
        stream: An open text file.
    """

    def write(record: dict[str, Any]) -> None:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()

    return write
