"""Where a registry is in PostgreSQL: what a URL says, and what of it may be shown."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from fsm.errors import NotAStore

SCHEMES = ("postgresql", "postgres")
SCHEMA = "fsm"
SYNCHRONOUS = ("on", "remote_apply", "remote_write", "local", "off")
"""What a commit waits for before it is acknowledged, the server's words; ``off`` can lose the last ones in a crash."""
WAIT_S = 10.0
"""How long a call waits for a connection, for the server to come back and for other transactions, in seconds."""
POOL_MAX = 10
"""Maximum number of connections of one process, unless the URL says ``pool_max``."""
MAX_POOL = 1_000
MAX_WAIT_S = 3_600.0
CONNECT_S = 5
"""How long one attempt to connect may take, in seconds, unless the URL says ``connect_timeout``."""
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}\Z")
_SECRET = frozenset({"password", "sslpassword"})


class Place(NamedTuple):
    """A registry's place, and how to use it.

    Attributes:
        conninfo: What libpq connects with. It may hold a password and is shown nowhere.
        schema: The schema.
        shown: The URL without its secrets.
        wait_s: See `WAIT_S`.
        pool_max: See `POOL_MAX`.
    """

    conninfo: str
    schema: str
    shown: str
    wait_s: float
    pool_max: int

    def __repr__(self) -> str:
        return f"Place({self.shown!r})"


def parse_url(url: str) -> Place:
    """Return the place that a URL names.

    Beside libpq's own parameters it may hold ``schema``, ``synchronous_commit``, ``wait_s``, ``pool_max`` and
    ``user_id`` (the user whose rows alone are seen, where the role is bound by row-level security).

    Raises:
        NotAStore: The URL is none, or an option is not known.
    """
    try:
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _bad("an address in brackets has no end, or an option is not written name=value") from None
    shown = _shown(parts.scheme, parts.netloc, parts.path, given)
    schema = given.pop("schema", SCHEMA)
    if not _NAME.match(schema) or schema.startswith("pg_"):
        raise _bad(
            "schema is a name of at most 48 small letters, digits and _, which does not begin with pg_"
        )
    commit = given.pop("synchronous_commit", "on")
    if commit not in SYNCHRONOUS:
        raise _bad(f"synchronous_commit is one of {', '.join(SYNCHRONOUS)}")
    wait_s = _number(given, "wait_s", WAIT_S, MAX_WAIT_S)
    pool_max = int(_number(given, "pool_max", POOL_MAX, MAX_POOL))
    settings = {
        "synchronous_commit": commit,
        "statement_timeout": str(int(wait_s * 1000)),
        "lock_timeout": str(int(wait_s * 1000)),
        # The plans of a session are made once, and hold when an empty table has grown: the tables are read by index.
        "enable_seqscan": "off",
    }
    user_id = given.pop("user_id", None)
    if user_id is not None:
        settings["agent_fsm.user_id"] = user_id
    known = {one.keyword.decode() for one in Conninfo.get_defaults()}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise _bad(f"there is no option {unknown[0]!r}")
    options = " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    more = {"options": f"{given.pop('options', '')} {options}".strip()}
    if "connect_timeout" not in given:
        more["connect_timeout"] = str(CONNECT_S)
    if "application_name" not in given:
        more["application_name"] = "fsm"
    try:
        base = conninfo_to_dict(_joined(SCHEMES[0], parts.netloc, parts.path, given))
        return Place(make_conninfo("", **(base | more)), schema, shown, wait_s, pool_max)
    except (Error, UnicodeError, ValueError):
        # What libpq says repeats parts of the URL, perhaps of the password.
        raise _bad(
            "libpq cannot read it (a part with special characters is written with percent signs)"
        ) from None


def _shown(scheme: str, netloc: str, path: str, given: dict[str, str]) -> str:
    user, at, where = netloc.rpartition("@")
    safe = {name: value for name, value in given.items() if name not in _SECRET}
    return _joined(scheme, f"{user.partition(':')[0]}{at}{where}", path or "/", safe)


def _joined(scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    # libpq takes percent signs, and no plus sign for a blank.
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options, quote_via=quote)}" if options else "")


def _number(given: dict[str, str], name: str, default: float, largest: float) -> float:
    try:
        number = float(given.pop(name, default))
    except ValueError:
        number = 0.0
    if not 0 < number <= largest or (name == "pool_max" and number < 2):  # noqa: PLR2004 - one to read, one to write
        raise _bad(f"{name} is a number from {'2' if name == 'pool_max' else 'above 0'} to {largest:g}")
    return number


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _bad(why: str) -> NotAStore:
    return NotAStore(
        f"the URL names no place in PostgreSQL: {why}. Write postgresql://user@host/database?schema=fsm; passwords "
        "belong into a password file (PGPASSFILE) or the environment"
    )
