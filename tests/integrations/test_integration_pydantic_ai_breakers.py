"""pydantic-ai and the breakers: what its exceptions come to, and what an open breaker comes to for its agents."""

from __future__ import annotations

import pickle

import pytest
from pydantic_ai import Agent
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)

from fsm import BreakerOpen, get_tracker
from fsm.breakers import FAILURE, IGNORED, Classifier, throttled
from fsm.integrations.pydantic_ai import ModelBreakerOpen, tracked
from tests.support.pydantic_ai_tools import an_agent, perform, said, scripted

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def fresh(tracker):
    """Every test has a tracker of its own in memory."""
    return tracker


def http(status, category=None, **options):
    made = {"status_code": status, "model_name": "m", **options}
    return ModelHTTPError.for_category(category, **made) if category else ModelHTTPError(**made)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (http(429, headers={"Retry-After": "20"}), throttled(20.0)),
        (http(429, ModelRateLimitError, headers={"retry-after-ms": "250"}), throttled(0.25)),
        (http(429, ModelRateLimitError, retry_after=12.0), throttled(12.0)),
        (http(529, in_stream=True), FAILURE),
        (http(500), FAILURE),
        (http(400), IGNORED),
        (http(429, ModelQuotaExceededError, retry_after=12.0), IGNORED),
        (ModelRateLimitError("m", "slow down", retry_after=3.0), throttled(3.0)),
        (ModelUnavailableError("m", "away"), FAILURE),
        (ModelQuotaExceededError("m", "no money"), IGNORED),
        (ModelRequestRejectedError("m", "no"), IGNORED),
        (UnexpectedModelBehavior("what?"), IGNORED),
        (UsageLimitExceeded("too much"), IGNORED),
        (FallbackExceptionGroup("all", [http(400), http(429, retry_after=2.0)]), throttled(2.0)),
        (ModelBreakerOpen(BreakerOpen("k", 1.0, 2.0, "open")), IGNORED),
    ],
    ids=repr,
)
def test_the_breaker_understands_its_exceptions(error, verdict):
    """Statuses, categories and times to wait of pydantic-ai's own exceptions reach the breaker."""
    assert Classifier().error(error, NOW) == verdict


def test_a_throttled_model_opens_its_breaker():
    """Retry-After of a 429 opens the breaker of that model for just so long, and the next run does not call it."""
    error = http(429, headers={"Retry-After": "20"})
    agent = an_agent(error)
    assert perform(tracked(agent)) is error
    refused = perform(tracked(agent))
    assert isinstance(refused, BreakerOpen)
    assert isinstance(refused, ModelUnavailableError)
    assert refused.key == "function:scripted"
    assert 0 < refused.retry_after_s <= 20.0
    assert refused.retry_after == refused.retry_after_s


def test_an_open_breaker_makes_a_fallback_go_on():
    """A model whose breaker is open counts as unavailable: the next one is asked at once."""
    broken = scripted(http(429, headers={"Retry-After": "20"}), name="broken")
    perform(tracked(Agent(broken)))
    assert perform(tracked(Agent(broken, capabilities=[ModelFallback(broken, scripted(said()))]))) == "done"
    assert sorted(one.state for one in get_tracker().find()) == ["completed", "failed"]


def test_without_breaker_a_model_is_always_called():
    """`breaker=False` keeps the breaker out, and a key of one's own takes the name's place."""
    agent = an_agent(http(429, headers={"Retry-After": "20"}))
    for _ in range(2):
        assert isinstance(perform(tracked(agent, breaker=False)), ModelHTTPError)
    assert isinstance(perform(tracked(agent, breaker="shared")), ModelHTTPError)
    assert perform(tracked(agent, breaker="shared")).key == "shared"


def test_an_open_breaker_can_be_sent_to_another_process():
    """The error that stands for an open breaker survives pickling with all that it says."""
    error = ModelBreakerOpen(BreakerOpen("k", 1.0, 2.0, "open"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.key, again.retry_after, again.retry_at) == (str(error), "k", 1.0, 2.0)
