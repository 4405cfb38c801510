"""The verdict on a call, and the classifier that gives it.

The ready `Classifier` knows HTTP statuses and the exceptions of httpx, openai, anthropic, pydantic-ai, aiohttp and
the standard library, all by their shape, so none of them is needed. The statuses and error codes are those
that the providers document:

========================================================  ===========  =========
outcome                                                   verdict      retried
========================================================  ===========  =========
a value, a status below 400                               SUCCESS      no
429, 503, 529 with Retry-After                            THROTTLED    then
an exception with no status that names a time to wait     THROTTLED    then
429, 529 without it; 408; 5xx; timeouts; lost connections FAILURE      yes
any other exception (it may be the provider's)            FAILURE      yes
400, 401, 403, 404, 413, 422 and every other 4xx          IGNORED      never
insufficient_quota, context_length_exceeded, content      IGNORED      never
filters, billing: whatever the status is
a wrong URL, a wrong use of a client, this library's own  IGNORED      never
CancelledError, KeyboardInterrupt, SystemExit, aclose()   CANCELLED    never
========================================================  ===========  =========

Retry-After is read on 429, 503 and 529 only, as seconds or as an HTTP date (RFC 9110, 10.2.3). Where no header says
it, an exception's own `retry_after` in seconds counts: pydantic-ai reads it from bodies and gRPC as well.

An attribute that raises when it is read counts as absent, so an exception that cannot be looked at is a FAILURE like
every exception that nothing is known of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

from fsm.breakers.foreign import DROPPED, read, text_of
from fsm.errors import BadPayload, FsmError

THROTTLING = frozenset({429, 503, 529})
"""The statuses on which Retry-After is read."""
MAX_CAUSES = 8
"""Maximum number of causes of an exception that are searched for a status; a chain may be a ring."""
MAX_PARTS = 1_000
"""Maximum number of exceptions of a group, nested ones included, that are read."""
MAX_HEADERS = 1_000
"""Maximum number of headers that are searched for one that is written in another case."""
MAX_SAID = 10_000
"""Maximum number of characters of an error message that are searched."""
MAX_HEADER = 200
"""A header that is longer, in characters, is no number and no date."""

_OK = range(200, 400)
_STATUSES = range(100, 600)
_SERVER_ERRORS = range(500, 600)
_TIMED_OUT = 408
_THROTTLED_WITHOUT_A_TIME = frozenset({429, 529})

_HOPELESS_CODES = frozenset(
    "insufficient_quota billing_hard_limit_reached billing_not_active billing_error context_length_exceeded "
    "string_above_max_length content_filter content_policy_violation invalid_api_key invalid_request_error "
    "authentication_error permission_error not_found_error request_too_large model_not_found".split()
)
_HOPELESS_CLASSES = frozenset(
    # httpx and httpcore: the request could not even be written; a cookie or a stream was used wrongly
    "InvalidURL UnsupportedProtocol LocalProtocolError CookieConflict StreamError StreamConsumed StreamClosed "
    # openai and anthropic
    "LengthFinishReasonError ContentFilterFinishReasonError "
    # pydantic-ai, whose categories also stand for errors that came without a status
    "UserError UsageLimitExceeded ModelRetry UnexpectedModelBehavior IncompleteToolCall ContentFilterError "
    "ModelQuotaExceededError ModelRequestRejectedError ConcurrencyLimitExceeded SuspendedResponseExpired".split()
)
_CLIENTS = frozenset("httpx httpcore openai anthropic pydantic_ai".split())
_CONTEXT_LENGTH = re.compile(
    r"context.?(length|window)|maximum context|prompt is too long|too many (input )?tokens", re.IGNORECASE
)


class Kind(StrEnum):
    """The five verdicts."""

    SUCCESS = "success"
    FAILURE = "failure"
    THROTTLED = "throttled"
    IGNORED = "ignored"
    CANCELLED = "cancelled"


class Verdict(NamedTuple):
    """The outcome of a call, for the breaker.

    Attributes:
        kind: One of the five.
        retry_after_s: For THROTTLED: in how many seconds the server will listen again, if it said so.
    """

    kind: Kind
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same call may go better another time."""
        return self.kind in {Kind.FAILURE, Kind.THROTTLED}


SUCCESS = Verdict(Kind.SUCCESS)
FAILURE = Verdict(Kind.FAILURE)
IGNORED = Verdict(Kind.IGNORED)
CANCELLED = Verdict(Kind.CANCELLED)


def throttled(retry_after_s: float | None = None) -> Verdict:
    """Return the verdict THROTTLED, for the seconds that the server asked for or, with ``None``, the cooldown."""
    found = None if retry_after_s is None else seconds_of(retry_after_s)
    if found is None and retry_after_s is not None:
        raise BadPayload(
            "retry_after_s is a finite number of seconds, 0 or more, or None for the policy's cooldown, "
            f"not {text_of(retry_after_s) or 'an object that cannot be shown'}"
        )
    return Verdict(Kind.THROTTLED, found)


def seconds_of(value: Any) -> float | None:
    """Return a time to wait as a float, ``None`` if it is no finite number from 0 on."""
    if type(value) is bool or not issubclass(type(value), (int, float)):
        return None
    try:
        seconds = float(value)
    except DROPPED:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def sound(verdict: Any) -> Verdict:
    """Return a verdict of foreign code, if it is one; raises `BadPayload` for anything else."""
    if type(verdict) is not Verdict or type(verdict.kind) is not Kind:
        raise BadPayload(
            "a verdict is SUCCESS, FAILURE, IGNORED, CANCELLED or throttled(seconds) of fsm.breakers, "
            f"not a {type(verdict).__name__}"
        )
    return verdict if verdict.retry_after_s is None else throttled(verdict.retry_after_s)


def retry_after(headers: Any, now: float) -> float | None:
    """Return the seconds of a Retry-After header, not negative; ``None`` if there is none that can be read.

    Args:
        headers: A mapping of header names to values, in any case; anything else has none.
        now: The instant from which an HTTP date counts, in seconds since the epoch.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = _header(headers, name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit_s
        except ValueError:
            try:
                seconds = max(0.0, parsedate_to_datetime(value).timestamp() - now)
            except Exception:  # noqa: BLE001 - the parser raises many kinds
                seconds = -1.0  # neither a number nor a date
        if isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _header(headers: Any, name: str) -> str | None:
    try:
        value = _found(headers, name)
        if isinstance(value, (bytes, bytearray)):
            value = value.decode("latin-1")
    except DROPPED:
        return None
    said = None if value is None else text_of(value)
    return None if said is None or len(said) > MAX_HEADER else said.strip()


def _found(headers: Any, name: str) -> Any:
    get = getattr(headers, "get", None)
    if get is None:
        return None
    value = get(name)
    if value is None:
        value = get(name.title())
    if value is None and isinstance(headers, Mapping):
        value = next((headers[key] for key in islice(headers, MAX_HEADERS) if str(key).lower() == name), None)
    return value


def of_status(status: int, headers: Any = None, now: float = 0.0) -> Verdict:
    """Return the verdict of an HTTP status, with the response's headers for Retry-After."""
    if status in _OK:
        return SUCCESS
    if status in THROTTLING:
        seconds = retry_after(headers, now)
        if seconds is not None:
            return throttled(seconds)
        if status in _THROTTLED_WITHOUT_A_TIME:
            return FAILURE
    return FAILURE if status in _SERVER_ERRORS or status == _TIMED_OUT else IGNORED


def http_result(result: Any, now: float) -> Verdict:
    """Return the verdict of a response object (httpx, requests, aiohttp) by its status; anything else is a success."""
    status = _status(result)
    if status is None:
        return SUCCESS
    if status not in _OK and _codes(result) & _HOPELESS_CODES:
        return IGNORED
    return of_status(status, read(result, "headers"), now)


class Classifier:
    """Gives the verdict of an exception or a result. Derive from it, or hand functions in.

    Attributes:
        judges_results: Whether results are judged. If not, a call that returns is a success at no cost.
    """

    def __init__(
        self,
        *,
        errors: Callable[[BaseException], Verdict | None] | None = None,
        results: Callable[[Any, float], Verdict] | None = None,
        ignored: tuple[type[BaseException], ...] = (),
    ) -> None:
        """Take what differs from the ready one.

        Args:
            errors: Asked first about every exception; ``None`` as its answer leaves it to the ready classifier.
                It is never asked about a cancellation.
            results: The verdict of what a call returned, given the instant now in seconds since the epoch; such as
                `http_result`.
            ignored: Exceptions that say nothing about the provider (what pybreaker calls exclude).
        """
        self._errors = errors
        self._results = results
        self._ignored = ignored
        self.judges_results = results is not None

    def error(self, error: BaseException, now: float) -> Verdict:
        """Return the verdict of an exception; `now` in seconds since the epoch."""
        if is_cancellation(error):
            return CANCELLED
        if issubclass(type(error), self._ignored):
            return IGNORED
        if self._errors is not None and (verdict := self._errors(error)) is not None:
            return verdict
        return of_error(error, now)

    def result(self, result: Any, now: float) -> Verdict:
        """Return the verdict of what a call returned; `now` in seconds since the epoch."""
        return SUCCESS if self._results is None else self._results(result, now)


def is_cancellation(error: BaseException) -> bool:
    """Return whether an exception cancels the caller and says nothing about the call."""
    # By its type and not by isinstance, which asks the object's own `__class__`.
    return all(
        issubclass(type(one), asyncio.CancelledError) or not issubclass(type(one), Exception)
        for one in _parts(error)
    )


def _parts(error: BaseException) -> list[BaseException]:
    """The exceptions that a group is made of, without the groups; of any other exception itself."""
    found: list[BaseException] = []
    left = [error]
    for _ in range(MAX_PARTS):
        if not left:
            break
        one = left.pop()
        inner = read(one, "exceptions") if issubclass(type(one), BaseExceptionGroup) else None
        if type(inner) is tuple:
            left.extend(inner[:MAX_PARTS])
        else:
            found.append(one)
    return found or [error]


_WORST_FIRST = (Kind.THROTTLED, Kind.FAILURE, Kind.IGNORED, Kind.CANCELLED)


def of_error(error: BaseException, now: float) -> Verdict:
    """Return the verdict of an exception by its shape; see the module's table."""
    if is_cancellation(error):
        return CANCELLED
    if issubclass(type(error), BaseExceptionGroup):
        verdicts = [_of_one(one, now) for one in _parts(error)]
        return min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.kind))
    return _of_one(error, now)


def _of_one(error: BaseException, now: float) -> Verdict:
    if is_cancellation(error):
        return CANCELLED
    if issubclass(type(error), FsmError) or _is_hopeless(error):
        return IGNORED
    status = _status(error)
    asked_s = next(
        (found for one in _chain(error) if (found := seconds_of(read(one, "retry_after"))) is not None), None
    )
    if status is None or status in _OK:
        # Errors inside a stream come with the status 200 of its beginning, or with none: the stream had failed.
        return FAILURE if asked_s is None else throttled(asked_s)
    headers = next((found for one in _chain(error) if (found := _headers(one)) is not None), None)
    verdict = of_status(status, headers, now)
    if asked_s is not None and status in THROTTLING and verdict is FAILURE:
        return throttled(asked_s)
    return verdict


def _is_hopeless(error: BaseException) -> bool:
    for kind in type(error).__mro__:
        if kind.__name__ in _HOPELESS_CLASSES and kind.__module__.partition(".")[0] in _CLIENTS:
            return True
    if any(_codes(one) & _HOPELESS_CODES for one in _chain(error)):
        return True
    # Not every provider gives the case a code: a 4xx that speaks of the context's length will not get shorter.
    status = _status(error)
    if status is None or status in _SERVER_ERRORS:
        return False
    return bool(_CONTEXT_LENGTH.search((text_of(error) or "")[:MAX_SAID]))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: pydantic-ai keeps the provider's own exception there, with the headers."""
    one: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if one is None:
            return
        yield one
        cause = read(one, "__cause__")
        one = cause if issubclass(type(cause), BaseException) else None


def _status(thing: Any) -> int | None:
    for holder in (thing, read(thing, "response")):
        for name in ("status_code", "status", "code"):
            value = read(holder, name)
            if type(value) is int and value in _STATUSES:
                return value
    return None


def _headers(error: BaseException) -> Any:
    for holder in (read(error, "response"), error):
        headers = read(holder, "headers")
        if headers is not None:
            return headers
    return None


def _codes(thing: Any) -> set[str]:
    """Every error code and type that an exception carries, from its attributes and its body."""
    names = ("code", "type", "provider_error_code", "provider_error_type")
    found = [read(thing, name) for name in names]
    try:
        body = getattr(thing, "body", None)
        if isinstance(body, Mapping):
            inner = body.get("error")
            for part in (body, inner if isinstance(inner, Mapping) else {}):
                found += [part.get("code"), part.get("type")]
    except DROPPED:
        pass  # what was found before counts
    return {str.__str__(value) for value in found if issubclass(type(value), str)}


# --- streams --------------------------------------------------------------------------------------------------

_PREAMBLES = frozenset(
    "message_start content_block_start ping response.created response.queued response.in_progress "
    "response.output_item.added response.content_part.added".split()
)


def has_content(item: Any) -> bool:
    """Return whether an item of a stream is content: the first such item shows that the provider answers.

    Empty text, the opening events of anthropic and of openai's responses, and openai's first chunk with nothing but
    a role are none; every other item is.
    """
    if isinstance(item, (str, bytes)):
        return bool(item)
    kind = read(item, "type")
    if isinstance(kind, str):
        return kind not in _PREAMBLES
    choices = read(item, "choices")
    if isinstance(choices, (list, tuple)) and choices:
        deltas = [read(choice, "delta") for choice in choices]
        names = ("content", "tool_calls", "refusal", "reasoning", "reasoning_content", "function_call")
        if all(delta is not None for delta in deltas):
            return any(read(delta, name) for delta in deltas for name in names)
    return True
