"""``fsm diff``: what a new machine changes, whether it still allows what was allowed, and what a store would lose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from fsm.cli.common import FOUND, err, open_tracker, out, print_json
from fsm.cli.load import find_machine, vocabulary_of
from fsm.cli.options import JsonOption, file_path, located
from fsm.diagram.render import render_svg
from fsm.machine.machine import Machine
from fsm.proof.diff import changes, drawing
from fsm.proof.recorded import SHOWN, Judge, Loss
from fsm.proof.simulates import Simulation, simulates
from fsm.stores.base import Query, Store

PAGE = 500
"""Number of executions that are read at a time."""
_KINDS = {
    "illegal": "journals are illegal under the new machine",
    "stranded": "open executions are in a state that the new machine lacks",
    "moves": "open executions lose a move",
    "deadline": "open executions get another deadline",
}
_COLOURS = {"added": "green", "removed": "red", "changed": "yellow"}


def diff_command(
    old: Annotated[str, typer.Argument(help="A machine: its name, hash, MODULE:NAME or a JSON file.")],
    new: Annotated[str, typer.Argument(help="The machine that takes its place.")],
    store: Annotated[
        str | None, typer.Option(callback=located, help="Judge what this store has recorded of OLD as well.")
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=file_path, metavar="SVG", help="Draw both, with added, removed and changed rows in colour."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare two machines: states, events, rows, guards and limits.

    Says whether NEW allows all that OLD does, proved on the tables (needs the extra `prove` where rows differ), else
    the shortest journal that breaks. With --store: which recorded journals of OLD are illegal under NEW, which open
    executions are in a state that NEW lacks, lose a move or get another deadline.
    Exit code 1 if something is lost, so that a deployment can be gated by it.
    """
    tracker = None if store is None else open_tracker(store, must_exist=True)
    kept = None if tracker is None else tracker._registry.store
    documents = None if kept is None else kept.machines()
    before, after = find_machine(old, documents), find_machine(new, documents)
    found = changes(before, after)
    proof = simulates(before, after, vocabulary_of(before))
    counts, shown, looked_at = (Counter[str](), [], 0) if kept is None else judged(kept, before, after)
    lost = not proof.holds or any(counts[kind] for kind in ("illegal", "stranded", "moves"))
    if draw is not None:
        text = drawing(before, after)
        draw.write_bytes(text.encode() if draw.suffix in {".dot", ".gv"} else render_svg(text))
    if json:
        data: dict[str, Any] = {
            "old": before.content_hash,
            "new": after.content_hash,
            "changes": [change._asdict() for change in found],
            "simulates": proof.holds,
            "breaks_at": proof.row or None,
            "journal": _journal(proof),
            "lost": lost,
        }
        if kept is not None:
            data |= {
                "executions": looked_at,
                "losses": dict(counts),
                "shown": [loss._asdict() for loss in shown],
            }
        print_json(data)
    else:
        for change in found:
            out.print(Text(f"{change.how:8}{change.what} {change.name}", style=_COLOURS[change.how]))
            for sign, said in (("-", change.old), ("+", change.new)):
                for line in said.split("; ") if said else ():
                    out.print(Text(f"          {sign} {line}"))
        _say(before, after, proof)
        if kept is not None:
            _say_losses(counts, shown, looked_at)
    if lost:
        raise typer.Exit(FOUND)


def judged(store: Store, old: Machine, new: Machine) -> tuple[Counter[str], list[Loss], int]:
    """Return how many executions of the old machine lose what, the first of each kind, and how many there are."""
    judge = Judge(old, new)
    counts: Counter[str] = Counter()
    shown: list[Loss] = []
    looked_at = 0
    after: str | None = None
    while page := store.find(Query(limit=PAGE, after=after)):
        for record in page:
            if record.identity.machine == old.content_hash:
                looked_at += 1
                for loss in judge.losses(record, store):
                    counts[loss.kind] += 1
                    if counts[loss.kind] <= SHOWN:
                        shown.append(loss)
        after = page[-1].identity.id
    return counts, shown, looked_at


def _journal(proof: Simulation) -> list[dict[str, str]] | None:
    if proof.breaks is None:
        return None
    return [{"source": leg.source, "event": leg.event, "target": leg.target} for leg in proof.breaks.legs]


def _say(old: Machine, new: Machine, proof: Simulation) -> None:
    names = f"{old.name} {old.content_hash[:8]} -> {new.name} {new.content_hash[:8]}"
    if proof.holds:
        out.print(
            Text(f"{names}: every journal of the old machine is legal under the new one", style="green")
        )
        return
    err.print(
        Text(f"{names}: not every journal of the old machine is legal under the new one", style="bold red")
    )
    err.print(Text(f"  not followed: {proof.row}"))
    if proof.breaks is None:
        err.print(Text("  no short way leads there; nor is it proved that none does"))
    for number, leg in enumerate(proof.breaks.legs if proof.breaks else (), 1):
        err.print(Text(f"  {number}. {leg.source} --{leg.event}--> {leg.target}"))


def _say_losses(counts: Counter[str], shown: list[Loss], looked_at: int) -> None:
    out.print(f"{looked_at} executions of the old machine are recorded")
    for kind, said in _KINDS.items():
        out.print(Text(f"{counts[kind]:8} {said}", style="" if not counts[kind] else "red"))
        for loss in shown:
            if loss.kind == kind:
                out.print(Text(f"           {loss.execution_id} ({loss.state}): {loss.why}"))
