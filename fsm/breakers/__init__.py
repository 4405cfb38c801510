"""Circuit breakers: one per key, shared by everything that uses the registry, honest about probes.

    from fsm import BreakerOpen, get_tracker
    from fsm.breakers import Consecutive, Policy

    breakers = get_tracker().breakers
    breakers.declare("openai:*", Policy(trip=Consecutive(failures=5), cooldown_s=30.0))

    with breakers.permit("openai:gpt-5"):              # or: async with
        answer = client.responses.create(...)

    @breakers("search")                                # functions, coroutines, generators, async generators
    async def search(query): ...

    async for chunk in breakers.stream_async("openai:gpt-5", open_stream): ...

    answer = breakers.call("openai:gpt-5", ask, backoff=Backoff(attempts=3))      # or: await breakers.call_async(…)

A permit that is not given raises `BreakerOpen`, with the seconds until it is worth asking again. Changes of state go
through the table (`BREAKER`) and, over a store on disk, are one compare-and-set row with a journal; every process of
the store learns of them within a second. A call while the breaker is closed touches no store and holds no lock.
What a rule counts (failures in a row, a window) is counted in each process; what follows from it is shared.
`fsm.engine.model_calls` makes the model calls of executions behind a breaker.

An open breaker cannot call back the calls that were let through before it opened: a hundred calls that are under way
when the provider dies are a hundred calls, but none of them is tried again.

For users of pybreaker, purgatory, circuitbreaker and aiobreaker:

- ``fail_max``, ``threshold``, ``failure_threshold``: `Consecutive`. ``reset_timeout``, ``ttl``, ``recovery_timeout``,
  ``timeout_duration``: `Policy.cooldown_s`, in seconds, which grows up to a cap. ``success_threshold``:
  `Policy.successes_needed`. Calls at half-open are limited by `Policy.probes_at_once`, over all processes.
- ``exclude``, ``expected_exception``: ``Classifier(ignored=…, errors=…)``. An excluded error counts as nothing, not as
  a success: a 400 does not show that a provider is well.
- ``state``, ``fail_counter``, a monitor: `Breakers.status_of`, `Breakers.status`, ``fsm breakers``. ``open()`` and
  ``close()``: `force_open`, `reset`, `disable`, with who and why. ``time_remaining``: ``BreakerOpen.retry_after_s``.
- Redis storage: the registry's own store. A lost store stops no call.
- Left out: listeners (every change is a row of `Breakers.history` that other processes see, and a line in the log);
  ``fallback_function`` (``except BreakerOpen``); ``half_open()`` (no row of the table); `BreakerOpen` on the call that
  trips (it reached the provider: its own error is raised); names from functions (a key names the provider).
"""

from fsm.breakers.core import BreakerFacts, BreakerRefusal, BreakerStep, decide_breaker
from fsm.breakers.permit import Permit
from fsm.breakers.policy import Consecutive, CountWindow, Policy, Rule, SlowCalls, TimeWindow
from fsm.breakers.registry import Breakers
from fsm.breakers.retry import Backoff
from fsm.breakers.status import BreakersStatus, BreakerStatus
from fsm.breakers.verdicts import (
    CANCELLED,
    FAILURE,
    IGNORED,
    SUCCESS,
    Classifier,
    Kind,
    Verdict,
    has_content,
    http_result,
    throttled,
)
from fsm.errors import BreakerOpen

__all__ = [
    "CANCELLED",
    "FAILURE",
    "IGNORED",
    "SUCCESS",
    "Backoff",
    "BreakerFacts",
    "BreakerOpen",
    "BreakerRefusal",
    "BreakerStatus",
    "BreakerStep",
    "Breakers",
    "BreakersStatus",
    "Classifier",
    "Consecutive",
    "CountWindow",
    "Kind",
    "Permit",
    "Policy",
    "Rule",
    "SlowCalls",
    "TimeWindow",
    "Verdict",
    "decide_breaker",
    "has_content",
    "http_result",
    "throttled",
]
