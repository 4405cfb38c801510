"""The server of these tests, and a place of each one's own."""

from __future__ import annotations

from tests.support.postgres import pg_url, schema, server

__all__ = ["pg_url", "schema", "server"]
