"""The guarantees hold while workers are killed and stopped and the server is restarted."""

from __future__ import annotations

import pytest

from tests.postgres.chaos import play

pytest.importorskip("psycopg")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_are_killed_and_the_server_is_restarted():
    """Every execution ends or is requeued, nothing acknowledged is lost, and no stale write is accepted."""
    done = play(executions=40, restarts=1)
    assert done["told"] >= 40
    assert done["restart"] == 1
