"""What a step of the lean executor costs against a stock `transitions` trigger, both in one run.

Run `python tests/bench/executor.py [--json]`. Both sides hold the same rows (the execution machine) and go the same
way round; the stock machine has one model and its guards are callables. The sides take turns, and the best of
several rounds counts, so that a busy machine disturbs both alike. The goal is a ratio of at most 0.2.
"""

from __future__ import annotations

import argparse
import json
import time
import types
from collections.abc import Callable

import transitions

from fsm import EXECUTION
from fsm.core.decide import DERIVED, create, decide
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Step
from fsm.core.request import Request
from fsm.machine.grammar import Arrow

GOAL = 0.2
LOOP = ("think", "call_model", "run_tools", "process_results")
"""A way round from `processing_results` back to it; one of its rows has a guard."""
ROUNDS = 15
STEPS = 2_000


class Question:
    """The least that can stand in for a record."""

    __slots__ = ("arrow", "state")

    def __init__(self, state: str) -> None:
        self.state = state
        self.arrow: Arrow | None = None

    def ask(self, fact: str) -> bool:
        return fact == "permit"


def stock() -> Callable[[], None]:
    """Return a loop of stock triggers over one model."""
    model = types.SimpleNamespace()
    machine = transitions.Machine(
        model,
        states=[state.name for state in EXECUTION.states],
        initial="processing_results",
        auto_transitions=False,
    )

    def fact(name: str) -> Callable[[], bool]:
        return lambda: name == "permit"

    for arrow in EXECUTION.arrows:
        machine.add_transition(
            arrow.event,
            arrow.source,
            None if arrow.internal else arrow.target,
            conditions=[fact(name) for name, wanted in arrow.literals if wanted],
            unless=[fact(name) for name, wanted in arrow.literals if not wanted],
        )
    think, call_model, run_tools, process_results = (getattr(model, event) for event in LOOP)

    def loop() -> None:
        for _ in range(STEPS // len(LOOP)):
            think()
            call_model()
            run_tools()
            process_results()

    return loop


def lean() -> Callable[[], None]:
    """Return a loop of lean steps, each on a question of its own."""
    triggers = [EXECUTION.executor.triggers[event] for event in LOOP]

    def loop() -> None:
        state = "processing_results"
        for _ in range(STEPS // len(LOOP)):
            for trigger in triggers:
                question = Question(state)
                trigger(question)
                state = question.arrow.target  # type: ignore[union-attr]

    return loop


def decided() -> Callable[[], None]:
    """Return a loop of whole decisions: payload checked, row taken, record and deadline computed."""
    codec = Codec(EXECUTION, frozenset(DERIVED))
    identity = Identity("exec_1", EXECUTION.content_hash, "a", "u", "t", None, None, 0.0, 1, 5, None, None)
    start = create(EXECUTION, identity).after._replace(state="processing_results", version=1)

    def loop() -> None:
        snapshot = start
        for _ in range(STEPS // len(LOOP)):
            for event in LOOP:
                payload, text = codec.encode(event, {})
                step = decide(EXECUTION, snapshot, Request(event, 1.0, payload, text))
                assert isinstance(step, Step)
                snapshot = step.after

    return loop


def measure() -> dict[str, float]:
    """Return the best time of a step in microseconds for each side, and the ratios to the stock trigger."""
    sides = {"stock": stock(), "lean": lean(), "decide": decided()}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(ROUNDS):
        for name, loop in sides.items():
            begun = time.perf_counter()
            loop()
            best[name] = min(best[name], (time.perf_counter() - begun) / STEPS * 1e6)
    result = {f"{name}_us": round(figure, 3) for name, figure in best.items()}
    result["lean_ratio"] = round(best["lean"] / best["stock"], 4)
    result["decide_ratio"] = round(best["decide"] / best["stock"], 4)
    return result


def main() -> int:
    """Measure, print, and return 1 if the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    result = measure() | {"goal": GOAL}
    met = result["lean_ratio"] <= GOAL
    if as_json:
        print(json.dumps(result | {"met": met}))
        return 0 if met else 1
    print(f"{'stock transitions trigger':<34}{result['stock_us']:>8.2f} µs   1.00")
    print(f"{'lean step':<34}{result['lean_us']:>8.2f} µs   {result['lean_ratio']:.2f}   goal {GOAL}")
    print(f"{'payload + decide':<34}{result['decide_us']:>8.2f} µs   {result['decide_ratio']:.2f}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
