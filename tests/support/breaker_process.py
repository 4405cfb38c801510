"""What the other process does in tests/breakers/test_breakers_shared.py: it takes orders line by line and answers."""

from __future__ import annotations

import sys
import time

from fsm import BreakerOpen, configure
from fsm.breakers import Breakers, Consecutive, Policy
from fsm.breakers.verdicts import FAILURE, SUCCESS

KEY = "openai:gpt-5"


def policy(cooldown_s: str, probes: str) -> Policy:
    return Policy(
        trip=Consecutive(failures=2), cooldown_s=float(cooldown_s), cooldown_max_s=600.0, jitter=0.0,
        probes_at_once=int(probes), successes_needed=int(probes),
    )  # fmt: skip


def take(breakers: Breakers) -> str:
    try:
        calls.append(breakers.acquire(KEY))
    except BreakerOpen as refused:
        return f"refused {refused.state}"
    return "probe" if calls[-1].token else "permit"


def wait_for_open(breakers: Breakers) -> str:
    """Return how long it took until this process knew, in seconds; it makes calls all the while."""
    begun = time.monotonic()
    while time.monotonic() - begun < 20:
        with_permit = breakers.permit(KEY)
        try:
            with with_permit:
                time.sleep(0.005)
        except BreakerOpen:
            return f"{time.monotonic() - begun:.3f}"
    return "never"


calls: list = []


def main() -> None:
    url, cooldown_s, probes = sys.argv[1:]
    breakers = configure(url).breakers
    breakers.declare("*", policy(cooldown_s, probes))
    orders = {
        "take": lambda: take(breakers),
        "wait": lambda: wait_for_open(breakers),
        "fail": lambda: breakers.release(KEY, calls.pop(), FAILURE),
        "succeed": lambda: breakers.release(KEY, calls.pop(), SUCCESS),
        "poll": breakers.poll,
        "state": lambda: breakers.status_of(KEY).state,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(orders[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
