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

    answer = await breakers.call_model_async(tracker, execution.id, "openai:gpt-5", ask, timeout_s=60.0)

A permit that is not given raises `BreakerOpen`, with the seconds until it is worth asking again. Changes of state go
through the table (`BREAKER`) and, over a store on disk, are one compare-and-set row with a journal; every process of
the store learns of them within a second. A call while the breaker is closed touches no store and holds no lock.
What a rule counts (failures in a row, a window) is counted in each process; what follows from it is shared.

What an open breaker cannot do is call back the calls that were let through before it opened: a hundred calls that
are all under way when the provider dies are a hundred calls, but none of them is tried again.

What users of the Python breakers rely on
-----------------------------------------

=====================================  ==========================================================================
pybreaker 1.4
-------------------------------------  --------------------------------------------------------------------------
``fail_max``, ``reset_timeout``        `Consecutive.failures`, `Policy.cooldown_s` (which also grows, with a cap)
``success_threshold``                  `Policy.successes_needed`
``exclude`` (types, predicates)        ``Classifier(ignored=…, errors=…)``; an excluded error counts as a success
                                       there, and here as nothing: a 400 does not show that a provider is well
decorator, ``call``, ``calling()``     ``@breakers(key)``, ``breakers.call(key, function)``, ``permit``
generators                             there; the verdict falls at the first content, not at the end
``CircuitBreakerError`` on the call    left out (``throw_new_error_on_trip``): that call did reach the provider,
that trips                             so its own error is raised; `BreakerOpen` means that nothing was called
listeners                              left out: every change is a row of the journal (`Breakers.history`) that
                                       other processes see too, and a line in the log; a callback inside a
                                       transition can break it or hold it up
``open()``, ``close()``                `force_open`, `reset`, `disable`, with who and why
``half_open()``                        left out: no row of the table; `reset` closes, the next cooldown probes
``state``, ``fail_counter``            `status_of(key)`
Redis storage                          the registry's own store, by compare-and-set; losing it stops nobody
tornado ``call_async``                 asyncio throughout
thread safety                          there, and no lock is held during the call: eight threads take as long
                                       as one, not eight times as long
-------------------------------------  --------------------------------------------------------------------------
purgatory 3.0
-------------------------------------  --------------------------------------------------------------------------
one factory, breakers by name          `Breakers`, keys; patterns in `declare`
``threshold``, ``ttl``                 `Consecutive.failures`, `Policy.cooldown_s`
``exclude``, also with a function      ``Classifier(ignored=…, errors=…)``
sync and async, decorator and with     there; one breaker serves both at the same time
hooks (``add_listener``)               left out, as above
Redis unit of work                     the registry's own store
unlimited calls at half-open           left out: `Policy.probes_at_once`, over all processes
-------------------------------------  --------------------------------------------------------------------------
circuitbreaker 2.1
-------------------------------------  --------------------------------------------------------------------------
``failure_threshold``,                 `Consecutive.failures`, `Policy.cooldown_s`
``recovery_timeout``
``expected_exception`` (type, types,   ``Classifier(errors=…)``: return ``FAILURE`` or ``IGNORED``
predicate)
``fallback_function``                  left out: ``except BreakerOpen`` says it where it is read, and for an
                                       execution the fallback is a row of its table (``think``)
name from the function                 left out: a key names the provider, which several functions call
``CircuitBreakerMonitor``              `Breakers.status`, ``fsm breakers``
an exception that is not expected      left out: it neither closes nor erases anything
closes the circuit
-------------------------------------  --------------------------------------------------------------------------
aiobreaker 1.2
-------------------------------------  --------------------------------------------------------------------------
``fail_max``, ``timeout_duration``     `Consecutive.failures`, `Policy.cooldown_s`, in seconds as everywhere here
``exclude``, listeners, ``calling()``  as for pybreaker
``CircuitBreakerError`` on the call    left out, as for pybreaker
that trips
``time_remaining``,                    ``BreakerOpen.retry_after_s``, ``retry_at``; `Backoff.open_wait_s` waits
``sleep_until_open()``
a cancelled probe                      gives its permit back at once, and after `Policy.abandoned_limit` of them
                                       the breaker opens; there it leaves the breaker half-open for everybody
decorators nested on one breaker       each asks for itself; put one breaker around a call
(``ignore_on_call``)
=====================================  ==========================================================================
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
