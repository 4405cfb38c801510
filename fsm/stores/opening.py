"""Opens the store behind a URL; each store is imported only when it is asked for."""

from __future__ import annotations

from fsm.errors import NotAStore
from fsm.stores.base import Store


def open_store(url: str) -> Store:
    """Open the store behind a URL.

    Args:
        url: ``memory://`` or ``sqlite:///FILE`` (four slashes for an absolute path; ``?synchronous=NORMAL`` trades
            safety against power loss for speed), or ``postgresql://USER@HOST/DATABASE?schema=fsm`` (needs the extra
            ``postgres``; see `fsm.stores.postgres.place.parse_url`).

    Returns:
        The open store.

    Raises:
        NotAStore: The URL is of no known kind, or what it names is no store.
        StoreTooNew: A newer version of the library wrote it.
        StoreUnavailable: It cannot be opened.
    """
    from fsm.stores.memory import MemoryStore  # noqa: PLC0415 - each store only when it is asked for

    if not isinstance(url, str):
        raise NotAStore(f"a store's URL is a text such as sqlite:///file.db, not {type(url).__name__}")
    if url in {"memory://", "memory:"}:
        return MemoryStore()
    if url.startswith("sqlite:"):
        from fsm.stores.sqlite import SqliteStore  # noqa: PLC0415

        return SqliteStore(url)
    if url.startswith(("postgresql://", "postgres://")) and not url.endswith("://"):
        try:
            from fsm.stores.postgres import PostgresStore  # noqa: PLC0415
        except ImportError as error:
            raise NotAStore(
                "a store in PostgreSQL needs the extra: pip install 'agent-fsm[postgres]'"
            ) from error
        return PostgresStore(url)
    raise NotAStore(
        f"no store is known for {url!r}: use memory://, sqlite:///file.db, sqlite:////absolute/file.db or "
        "postgresql://user@host/database"
    )
