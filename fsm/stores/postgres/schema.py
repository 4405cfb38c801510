"""Bringing a schema up to date: the migrations, under a lock that processes take one after the other."""

from __future__ import annotations

import logging
import re
from importlib import resources

import psycopg

from fsm.errors import NotAStore, StoreTooNew, StoreUnavailable
from fsm.stores.postgres.connections import Connection, prepare
from fsm.stores.postgres.explain import explain, kind_of
from fsm.stores.postgres.place import Place

logger = logging.getLogger(__name__)

OLDEST = 150_000
"""The oldest server that the store works with, as libpq counts versions."""
_VERSION = 'SELECT version FROM "{schema}".layout'
_TABLES = "SELECT count(*) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace WHERE nspname = %s"
_THERE = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_NAME = re.compile(r"\bfsm\.(?=[a-z_%])")


def scripts() -> list[str]:
    """Return the migrations in order; script n brings version n-1 to n."""
    folder = resources.files("fsm.stores.postgres")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in names]


def named(sql: str, schema: str) -> str:
    """Return SQL with the schema's name in the place of ``fsm``."""
    return _NAME.sub(f'"{schema}".', sql)


def bring_up(place: Place) -> None:
    """Create the schema or bring it up to date, unless it is; any number of processes may do so at once.

    Raises:
        NotAStore: The schema is another program's, or the server is too old or keeps no UTF-8.
        StoreTooNew: A newer version of the library wrote it.
        StoreUnavailable: The database cannot be reached, or the role may not create the schema.
    """
    try:
        with Connection.connect(place.conninfo, autocommit=True) as connection:
            prepare(connection)
            _check_server(connection, place)
            if _check(connection, place) < len(scripts()):
                _migrate(connection, place)
    except (psycopg.Error, UnicodeError) as error:
        if kind_of(error) == "gone":
            raise StoreUnavailable(f"{place.shown} cannot be reached: {_first_line(error)}") from error
        raise explain(error, place.shown) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_server(connection: Connection, place: Place) -> None:
    if connection.info.server_version < OLDEST:
        raise NotAStore(
            f"{place.shown}: the server is too old, PostgreSQL {OLDEST // 10_000} or newer is needed"
        )
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise NotAStore(f"{place.shown}: the database keeps no UTF-8; create one with ENCODING 'UTF8'")


def _check(connection: Connection, place: Place) -> int:
    """Return the version of a schema that is ours or empty."""
    try:
        [(version,)] = connection.execute(_VERSION.format(schema=place.schema).encode()).fetchall()
    except psycopg.errors.UndefinedTable:
        [(tables,)] = connection.execute(_TABLES, (place.schema,)).fetchall()
        if tables:
            raise NotAStore(
                f"{place.shown}: the schema {place.schema} holds {tables} relations of another program; nothing was "
                "changed in it: name another one with ?schema="
            ) from None
        return 0
    if version > len(scripts()):
        raise StoreTooNew(place.shown, version, len(scripts()))
    return int(version)


def _migrate(connection: Connection, place: Place) -> None:
    with connection.transaction():
        connection.execute(_LOCK, (f"fsm schema {place.schema}",))
        # Another process may have been faster. An error would end the transaction, so that the catalogue is asked.
        [(there,)] = connection.execute(_THERE, (place.schema,)).fetchall()
        [(begun,)] = connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", (f'"{place.schema}".layout',)
        ).fetchall()
        version = _check(connection, place) if begun else 0
        if not there:
            connection.execute(f'CREATE SCHEMA "{place.schema}"'.encode())
        for script in scripts()[version:]:
            connection.execute(named(script, place.schema).encode())
        connection.execute(f'UPDATE "{place.schema}".layout SET version = %s'.encode(), (len(scripts()),))
    logger.info("%s: schema brought from version %d to %d", place.shown, version, len(scripts()))
