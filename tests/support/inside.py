"""The one way in which tests look behind a tracker: at what is committed where no public method shows it."""

from __future__ import annotations

from typing import Any


def registry_of(tracker: Any) -> Any:
    """Return the registry behind a tracker, an engine or a worker."""
    return tracker._registry


def store_of(tracker: Any) -> Any:
    """Return the store behind a tracker."""
    return tracker._registry.store
