"""The classifier: statuses, headers, and exceptions by what they look like."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm import BreakerOpen
from fsm.breakers import (
    CANCELLED,
    FAILURE,
    IGNORED,
    SUCCESS,
    Classifier,
    Kind,
    has_content,
    http_result,
    throttled,
)
from fsm.breakers.verdicts import of_error, of_status, retry_after

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def client_error(
    module: str, name: str, bases: tuple[type, ...] = (Exception,), **attributes
) -> BaseException:
    """An exception as a client library would raise it, without the library."""
    kind = type(name, bases, {"__module__": module})
    error = kind(attributes.pop("message", "no"))
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def response(status: int, **headers: str) -> SimpleNamespace:
    return SimpleNamespace(
        status_code=status, headers={key.replace("_", "-"): v for key, v in headers.items()}
    )


@pytest.mark.parametrize(
    ("status", "headers", "verdict"),
    [
        (200, {}, SUCCESS),
        (204, {}, SUCCESS),
        (302, {}, SUCCESS),
        (200, {"Retry-After": "60"}, SUCCESS),
        (301, {"Retry-After": "60"}, SUCCESS),
        (429, {"Retry-After": "60"}, throttled(60.0)),
        (503, {"retry-after": "0"}, throttled(0.0)),
        (529, {"RETRY-AFTER": "1.5"}, throttled(1.5)),
        (429, {"retry-after-ms": "250", "retry-after": "1"}, throttled(0.25)),
        (429, {"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}, throttled(60.0)),
        (429, {"Retry-After": "Tue, 14 Nov 2023 22:12:20 GMT"}, throttled(0.0)),
        (429, {}, FAILURE),
        (529, {}, FAILURE),
        (503, {}, FAILURE),
        (429, {"Retry-After": "soon"}, FAILURE),
        (429, {"Retry-After": "-5"}, FAILURE),
        (429, {"Retry-After": "nan"}, FAILURE),
        (429, {"Retry-After": "inf"}, FAILURE),
        (500, {"Retry-After": "60"}, FAILURE),
        (502, {}, FAILURE),
        (408, {}, FAILURE),
        (400, {"Retry-After": "60"}, IGNORED),
        (401, {}, IGNORED),
        (403, {}, IGNORED),
        (404, {}, IGNORED),
        (413, {}, IGNORED),
        (422, {}, IGNORED),
    ],
)
def test_http_statuses(status, headers, verdict):
    """Each status has its verdict, and Retry-After is read on 429, 503 and 529 only."""
    assert of_status(status, headers, NOW) == verdict


def openai(name: str, **attributes) -> BaseException:
    return client_error("openai", name, **attributes)


def anthropic(name: str, **attributes) -> BaseException:
    return client_error("anthropic", name, **attributes)


def pydantic_ai(cause: BaseException | None = None, **attributes) -> BaseException:
    error = client_error("pydantic_ai.exceptions", "ModelHTTPError", **attributes)
    error.__cause__ = cause
    return error


ERRORS = [
    # httpx
    ("httpx 503 with a time", client_error("httpx", "HTTPStatusError", response=response(503, retry_after="7")),
     throttled(7.0)),
    ("httpx 500", client_error("httpx", "HTTPStatusError", response=response(500)), FAILURE),
    ("httpx 404", client_error("httpx", "HTTPStatusError", response=response(404)), IGNORED),
    ("httpx read timeout", client_error("httpx", "ReadTimeout"), FAILURE),
    ("httpx connect error", client_error("httpx", "ConnectError"), FAILURE),
    ("httpx wrong scheme", client_error("httpx", "UnsupportedProtocol"), IGNORED),
    ("httpx wrong URL", client_error("httpx", "InvalidURL"), IGNORED),
    # openai
    ("openai rate limit", openai("RateLimitError", status_code=429, code="rate_limit_exceeded",
                                 response=response(429, retry_after="20")), throttled(20.0)),
    ("openai rate limit, no time", openai("RateLimitError", status_code=429, response=response(429)), FAILURE),
    ("openai quota", openai("RateLimitError", status_code=429, code="insufficient_quota",
                            response=response(429, retry_after="20")), IGNORED),
    ("openai quota in the body", openai("RateLimitError", status_code=429, response=response(429),
                                        body={"error": {"code": "insufficient_quota"}}), IGNORED),
    ("openai context length", openai("BadRequestError", status_code=400, code="context_length_exceeded"), IGNORED),
    ("openai context length in a stream", openai("APIError", code="context_length_exceeded"), IGNORED),
    ("openai server error in a stream", openai("APIError", code="server_error"), FAILURE),
    ("openai 500", openai("InternalServerError", status_code=500), FAILURE),
    ("openai timeout", openai("APITimeoutError"), FAILURE),
    ("openai connection", openai("APIConnectionError"), FAILURE),
    ("openai length finish", openai("LengthFinishReasonError"), IGNORED),
    ("openai key", openai("AuthenticationError", status_code=401, code="invalid_api_key"), IGNORED),
    # anthropic
    ("anthropic overloaded", anthropic("APIStatusError", status_code=529, response=response(529)), FAILURE),
    ("anthropic overloaded with a time", anthropic("APIStatusError", status_code=529,
                                                   response=response(529, retry_after="3")), throttled(3.0)),
    ("anthropic overloaded within a 200", anthropic(
        "APIStatusError", status_code=200, response=response(200, retry_after="60"),
        body={"type": "error", "error": {"type": "overloaded_error"}}), FAILURE),
    ("anthropic prompt too long", anthropic("BadRequestError", status_code=400,
                                            message="prompt is too long: 210000 tokens > 200000"), IGNORED),
    ("anthropic prompt too long within a 429", anthropic("RateLimitError", status_code=429,
                                                         message="this exceeds the context window"), IGNORED),
    ("anthropic timeout", anthropic("APITimeoutError"), FAILURE),
    # pydantic-ai
    ("pydantic-ai 503", pydantic_ai(status_code=503), FAILURE),
    ("pydantic-ai 400", pydantic_ai(status_code=400), IGNORED),
    ("pydantic-ai 429, the time in its cause", pydantic_ai(
        openai("RateLimitError", status_code=429, response=response(429, retry_after="9")), status_code=429),
     throttled(9.0)),
    ("pydantic-ai quota in its cause", pydantic_ai(
        openai("RateLimitError", status_code=429, code="insufficient_quota"), status_code=429), IGNORED),
    ("pydantic-ai 429, the time in its body", pydantic_ai(status_code=429, retry_after=12.0), throttled(12.0)),
    ("pydantic-ai 500 with a time", pydantic_ai(status_code=500, retry_after=12.0), FAILURE),
    ("pydantic-ai 400 with a time", pydantic_ai(status_code=400, retry_after=12.0), IGNORED),
    ("pydantic-ai, no status but a time", pydantic_ai(retry_after=12.0), throttled(12.0)),
    ("pydantic-ai, a time that is none", pydantic_ai(status_code=429, retry_after=float("nan")), FAILURE),
    ("pydantic-ai quota without a status", client_error("pydantic_ai.exceptions", "ModelQuotaExceededError",
                                                        retry_after=5.0), IGNORED),
    ("pydantic-ai quota by its code", pydantic_ai(status_code=429, provider_error_code="insufficient_quota"),
     IGNORED),
    ("pydantic-ai refused without a status", client_error("pydantic_ai.exceptions", "ModelRequestRejectedError"),
     IGNORED),
    ("pydantic-ai usage limit", client_error("pydantic_ai.exceptions", "UsageLimitExceeded"), IGNORED),
    ("pydantic-ai wrong use", client_error("pydantic_ai.exceptions", "UserError"), IGNORED),
    # others
    ("a class of one's own by an ignored name", client_error("shop", "UserError"), FAILURE),
    ("aiohttp 429", client_error("aiohttp", "ClientResponseError", status=429, headers={"Retry-After": "4"}),
     throttled(4.0)),
    ("urllib 503", client_error("urllib.error", "HTTPError", code=503, headers={"Retry-After": "4"}), throttled(4.0)),
    ("botocore's dict", client_error("botocore.exceptions", "ClientError", response={"Error": {}}), FAILURE),
    ("a timeout", TimeoutError(), FAILURE),
    ("a lost connection", ConnectionResetError(), FAILURE),
    ("a mistake", ValueError("x"), FAILURE),
    ("another breaker", BreakerOpen("k", 1.0, 2.0, "open"), IGNORED),
    ("a cancel", asyncio.CancelledError(), CANCELLED),
    ("Ctrl-C", KeyboardInterrupt(), CANCELLED),
    ("the end of the process", SystemExit(), CANCELLED),
    ("a closed generator", GeneratorExit(), CANCELLED),
    ("a group of cancels", BaseExceptionGroup("g", [asyncio.CancelledError()]), CANCELLED),
    ("a group with a failure", BaseExceptionGroup("g", [asyncio.CancelledError(), TimeoutError()]), FAILURE),
    ("a group with a bad request", ExceptionGroup("g", [pydantic_ai(status_code=400)]), IGNORED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "verdict"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_exceptions(error, verdict):
    """Each client's exception has its verdict, by what it looks like alone."""
    assert Classifier().error(error, NOW) == verdict
    assert verdict.retryable == (verdict.kind in {Kind.FAILURE, Kind.THROTTLED})


def test_a_ring_of_causes_ends():
    """Causes that point at each other do not hang the classifier."""
    first, second = openai("APIError", status_code=429), openai("APIError")
    first.__cause__, second.__cause__ = second, first
    assert of_error(first, NOW) == FAILURE


@given(st.text(max_size=40))
def test_no_header_breaks_it(value):
    """Whatever a server sends as Retry-After, the answer is a number of seconds or nothing."""
    seconds = retry_after({"Retry-After": value}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_ones_own_word_goes_first():
    """A function of one's own decides before the ready classifier, but never about a cancellation."""
    own = Classifier(
        errors=lambda error: FAILURE if isinstance(error, asyncio.CancelledError) else IGNORED,
        ignored=(KeyError,),
    )
    assert own.error(TimeoutError(), NOW) == IGNORED
    assert own.error(asyncio.CancelledError(), NOW) == CANCELLED
    assert Classifier(errors=lambda _: None).error(TimeoutError(), NOW) == FAILURE
    assert Classifier(ignored=(KeyError,)).error(KeyError(), NOW) == IGNORED


def test_results():
    """A response that was not raised has the verdict of its status, any other value is a success."""
    assert http_result(response(503, retry_after="2"), NOW) == throttled(2.0)
    assert http_result(response(200, retry_after="2"), NOW) == SUCCESS
    assert http_result(response(400), NOW) == IGNORED
    quota = SimpleNamespace(
        status_code=429, headers={"Retry-After": "9"}, body={"error": {"code": "insufficient_quota"}}
    )
    assert http_result(quota, NOW) == IGNORED
    for value in (None, 0, "", [], {"status": 500}):
        assert http_result(value, NOW) == SUCCESS
    assert Classifier().judges_results is False


def chunk(**delta) -> SimpleNamespace:
    names = dict.fromkeys(("content", "tool_calls", "refusal"))
    return SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(**{**names, **delta}))])


@pytest.mark.parametrize(
    ("item", "content"),
    [
        ("", False), (b"", False), ("a", True), (0, True), (None, True), ({}, True),
        (SimpleNamespace(type="message_start"), False), (SimpleNamespace(type="ping"), False),
        (SimpleNamespace(type="content_block_delta"), True), (SimpleNamespace(type="response.created"), False),
        (SimpleNamespace(type="response.output_text.delta"), True),
        (chunk(role="assistant", content=""), False), (chunk(content="a"), True), (chunk(tool_calls=[1]), True),
        (SimpleNamespace(choices=[]), True),
    ],
)  # fmt: skip
def test_what_counts_as_content(item, content):
    """Empty text and the opening events of the providers are no content, everything else is."""
    assert has_content(item) is content
