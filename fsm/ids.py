"""Every id is made, parsed and checked here: TypeID text of a UUIDv7, such as ``exec_01k…``.

Such an id says what it is of, sorts by the time at which it was made, is safe in a URL, and is unique without
asking anybody. The text is the TypeID format (jetify's specification: a prefix, an underscore, 26 characters of
Crockford's base 32); the number is RFC 9562's UUID version 7 with the sub-millisecond fraction in ``rand_a`` (its
method 3), so that ids of one process are strictly ordered and ids of several processes order to 250 ns.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Literal, NamedTuple, NewType

from fsm.concurrency.locks import Lock
from fsm.errors import MalformedId
from fsm.errors.shown import kind_of

ExecutionId = NewType("ExecutionId", str)
WorkerId = NewType("WorkerId", str)
Kind = Literal["exec", "worker", "breaker", "call"]
KINDS: tuple[Kind, ...] = ("exec", "worker", "breaker", "call")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_LENGTH = 26
_TICKS_PER_MS = 4096
_VERSION_7 = 7
_VARIANT = 0b10


class ParsedId(NamedTuple):
    """What an id says.

    Attributes:
        kind: What it is the id of.
        uuid: The UUIDv7 behind the text.
        made_at: When it was made, in seconds since the epoch, to the millisecond.
    """

    kind: str
    uuid: uuid.UUID
    made_at: float


class IdMaker:
    """Makes ids that are unique, and strictly ascending within one process.

    Two processes, or a process and its fork, share no state but time: 62 bits of each id come from the operating
    system's entropy, freshly for every id, so a fork cannot repeat its parent's (`tests/test_ids.py` forks).
    """

    def __init__(
        self, now_ns: Callable[[], int] = time.time_ns, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        """Take time and entropy from outside.

        Args:
            now_ns: Nanoseconds since the epoch.
            entropy: Returns that many random bytes.
        """
        self._now_ns = now_ns
        self._entropy = entropy
        self._lock = Lock("the next id")
        self._last = 0

    def make(self, kind: Kind) -> str:
        """Return a new id.

        Args:
            kind: What it is for; one of `KINDS`.

        Raises:
            MalformedId: `kind` is none of `KINDS`.
        """
        if kind not in KINDS:
            raise MalformedId(kind, f"ids are made for {', '.join(KINDS)} only")
        ticks = self._now_ns() * _TICKS_PER_MS // 1_000_000
        ticks = self._lock.run(self._next, ticks)
        millis, fraction = divmod(ticks, _TICKS_PER_MS)
        tail = int.from_bytes(self._entropy(8), "big") >> 2
        number = millis << 80 | _VERSION_7 << 76 | fraction << 64 | _VARIANT << 62 | tail
        pairs = _PAIRS
        return f"{kind}_" + "".join(
            [
                pairs[number >> shift & 0x3FF]
                for shift in (120, 110, 100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
            ]
        )

    def _next(self, ticks: int) -> int:
        # A clock that stands still or goes back must not give an id that sorts before an earlier one.
        ticks = self._last = max(ticks, self._last + 1)
        return ticks


MAKER = IdMaker()
"""The one that everybody uses, unless a simulation gives out ids that a seed decides."""
make = MAKER.make


def execution_id() -> ExecutionId:
    """Return a new id for an execution."""
    return ExecutionId(make("exec"))


def worker_id() -> WorkerId:
    """Return a new id for a worker."""
    return WorkerId(make("worker"))


def parse(text: object, kind: Kind | None = None) -> ParsedId:
    """Read an id.

    Args:
        text: What should be an id.
        kind: What it should be the id of; ``None`` for any kind.

    Returns:
        What the id says.

    Raises:
        MalformedId: It is none; the reason says what is wrong with it.
    """
    if not isinstance(text, str):
        raise MalformedId(text, f"an id is text, not {kind_of(text)}")
    prefix, underscore, digits = text.rpartition("_")
    if not underscore:
        raise MalformedId(text, "an id reads kind_26characters, as exec_01k…; there is no underscore")
    if prefix not in KINDS:
        raise MalformedId(text, f"{prefix!r} is no kind of id; they are {', '.join(KINDS)}")
    if kind is not None and prefix != kind:
        raise MalformedId(text, f"this is an id of kind {prefix!r}, not of kind {kind!r}")
    if len(digits) != _LENGTH:
        raise MalformedId(text, f"{_LENGTH} characters follow the underscore, not {len(digits)}")
    number = 0
    for char in digits:
        value = _VALUES.get(char)
        if value is None:
            raise MalformedId(text, f"{char!r} is no digit of an id (lower case, without i, l, o and u)")
        number = number << 5 | value
    if number >> 128:
        raise MalformedId(text, "the number is too large: the first digit is 7 at most")
    if number >> 76 & 0xF != _VERSION_7 or number >> 62 & 0b11 != _VARIANT:
        raise MalformedId(text, "the number is no UUID of version 7")
    return ParsedId(prefix, uuid.UUID(int=number), (number >> 80) / 1000)


def is_id(text: object, kind: Kind | None = None) -> bool:
    """Return whether `text` is a well-formed id, of that `kind` if one is given."""
    try:
        parse(text, kind)
    except MalformedId:
        return False
    return True
