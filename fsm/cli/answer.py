"""``fsm answer``: a person's answer to a question that an execution waits for; and what waits for one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from fsm.cli.common import (
    ago_text,
    fail,
    login,
    narrow,
    open_tracker,
    out,
    print_json,
    print_table,
    state_text,
    teaching,
)
from fsm.cli.options import JsonOption, StoreOption, said, usable
from fsm.core.records import Execution
from fsm.errors import Refused
from fsm.machine.grammar import Category
from fsm.tracker.scope import Scope
from fsm.tracker.tracker import Tracker

SHOWN = 100
"""So many open questions are listed."""


@teaching
def answer_command(
    execution_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID", callback=usable, help="The execution; without it, the open questions are listed."
        ),
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Yes.")] = False,
    refuse: Annotated[bool, typer.Option("--refuse", help="No.")] = False,
    text: Annotated[
        str | None, typer.Option(callback=said, help="What to say; alone, or with a yes or no.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(callback=usable, help="Who answers. (default: your login name)")
    ] = None,
    user: Annotated[
        str | None, typer.Option(callback=usable, help="Only this user's executions exist.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Answer the question that an execution waits for, from any process: its agent goes on with it.

    Where no process drives the execution (it was released while it waited), it is queued until a process that serves
    its agent takes it; the answer is kept with it.

    With --json the receipt, or the open questions: id, agent, user_id, thread_id, question, since, due_at.
    """
    tracker = open_tracker(store, must_exist=True)
    narrowed = narrow(tracker, user)
    if execution_id is None:
        if approve or refuse or text is not None or by is not None:
            fail("an answer needs the ID of the execution that asks: 'fsm answer' lists the open questions")
        _questions(tracker, narrowed, json=json)
        return
    if approve and refuse:
        fail("--approve and --refuse: say one of them")
    if not approve and not refuse and text is None:
        fail("say --approve, --refuse or --text TEXT")
    verdict = "approved" if approve else "refused" if refuse else "text"
    payload: dict[str, Any] = {"verdict": verdict, "by": by or login()}
    if text is not None:
        payload["text"] = text
    question = _question_of(narrowed, execution_id)
    try:
        receipt = narrowed.fire(execution_id, "receive_input", **payload)
    except Refused as refused:
        fail(
            f"nobody is asked by {execution_id}: it is {refused.state}. 'fsm answer' lists the open questions."
        )
    if json:
        print_json(receipt.as_dict())
        return
    machine = narrowed.machine_of(execution_id)
    said_it = "answered" if verdict == "text" else verdict
    out.print(f"{question or 'Its question'}\n{said_it} by {payload['by']}; the execution is", end=" ")
    category = machine.by_name[receipt.target].category
    out.print(state_text(receipt.target, category), end="")
    out.print(_what_now(tracker, narrowed.get(execution_id)) if category == Category.PENDING else ".")


def _what_now(tracker: Tracker, one: Execution) -> str:
    """Return who goes on with an execution without an owner, as far as the registry knows."""
    if one.owner is not None:
        return f" and was taken by {one.owner}."
    living = sum(not worker.lost for worker in tracker._registry.store.workers())
    if not living:
        return f": no worker is registered on this store, and it waits until a process serves the agent {one.agent!r}."
    return (
        f": it waits until a process that serves the agent {one.agent!r} takes it "
        f"({living} worker{'s are' if living > 1 else ' is'} registered; whether one of them does is not known here)."
    )


def _question_of(tracker: Scope, execution_id: str) -> str | None:
    """Return the last question of an execution."""
    asked = [row for row in tracker.history(execution_id) if row.event == "await_input"]
    return asked[-1].payload.get("question") if asked else None


def _questions(tracker: Tracker, narrowed: Scope, *, json: bool) -> None:
    asking = {
        state.name for machine in tracker.machines() for state in machine.states if state.deadline == "input"
    }
    found = narrowed.find(state=asking, limit=SHOWN)
    questions = [(one, _question_of(narrowed, one.id)) for one in found]
    if json:
        print_json(
            [
                {
                    "id": one.id,
                    "agent": one.agent,
                    "user_id": one.user_id,
                    "thread_id": one.thread_id,
                    "question": question,
                    "since": one.entered_at,
                    "due_at": one.due_at,
                }
                for one, question in questions
            ]
        )
        return
    if not questions:
        out.print("Nobody is asked anything.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "agent", "user", "question", "asked"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for one, question in questions:
        asked = (one.id, one.agent, one.user_id, question or "", ago_text(one.entered_at))
        table.add_row(*asked)
    print_table(table)
    out.print(
        f"\nAnswer with: fsm answer {questions[0][0].id} --approve (or --refuse, --text …)", style="dim"
    )
