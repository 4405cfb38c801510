"""The exports, driven by the interpreters of others: the same drawn events lead to the same states."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from fsm.breakers.core import BREAKERS
from fsm.core.decide import EXECUTIONS
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.export import to_scxml, to_xstate
from fsm.machine.machine import Machine
from fsm.machine.tla import to_tla

SHIPPED = pytest.mark.parametrize("machine", [EXECUTION, BREAKER], ids=lambda machine: machine.name)
RUNS, LENGTH = 12, 25


def drawn(machine: Machine) -> list[list[tuple[str, dict[str, bool], str]]]:
    """Return runs of events with the answers to all facts, and the state that each leads to by the table."""
    draw = random.Random(machine.name)
    runs = []
    for _ in range(RUNS):
        state, run = machine.initial, []
        for _ in range(LENGTH):
            here = list(machine.by_source[state]) or list(machine.events)
            event = draw.choice(here if draw.random() < 0.8 else list(machine.events))
            facts = {fact: draw.random() < 0.5 for fact in machine.fact_defaults}
            for arrow in machine.by_source[state].get(event, ()):
                if all(facts[fact] is wanted for fact, wanted in arrow.literals):
                    state = arrow.target
                    break
            run.append((event, facts, state))
        runs.append(run)
    return runs


@SHIPPED
def test_a_foreign_interpreter_goes_the_same_way_on_scxml(machine):
    """python-statemachine reads the SCXML, and drawn events with drawn answers lead it to the states of the table."""
    processors = pytest.importorskip("statemachine.io.scxml.processor")
    for run in drawn(machine):
        processor = processors.SCXMLProcessor(trusted=True)
        processor.parse_scxml(machine.name, to_scxml(machine))
        other = processor.start()
        for event, facts, state in run:
            for fact, answer in facts.items():
                setattr(other.model, fact, answer)
            if state not in machine.terminal or not other.is_terminated:
                other.send(event)
            assert [one.id for one in other.configuration] == [state], event
            if state in machine.terminal:
                break


DRIVER = """
import { createMachine, createActor, assign } from 'xstate';
import { readFileSync } from 'fs';
const { text, runs, facts } = JSON.parse(readFileSync(0, 'utf8'));
const holds = (context, guard) => typeof guard === 'string' ? context[guard] : !context[guard.params.guard];
const guards = { and: ({ context }, params) => params.guards.every(one => holds(context, one)),
                 not: ({ context }, params) => !context[params.guard] };
for (const fact of facts) guards[fact] = ({ context }) => context[fact];
const config = JSON.parse(text);
config.on = { __facts: { actions: assign(({ event }) => event.facts) } };
const out = runs.map(run => {
  const actor = createActor(createMachine(config).provide({ guards }));
  actor.start();
  return run.map(([event, answers]) => {
    actor.send({ type: '__facts', facts: answers });
    actor.send({ type: event });
    return actor.getSnapshot().value;
  });
});
console.log(JSON.stringify(out));
"""


def node_modules() -> Path | None:
    """Return the directory in which node finds xstate, if there is one."""
    home = Path(os.environ.get("FSM_XSTATE", ".")).resolve() / "node_modules"
    return home if shutil.which("node") and (home / "xstate").is_dir() else None


@SHIPPED
def test_xstate_goes_the_same_way(machine, tmp_path):
    """Xstate reads the JSON, and drawn events with drawn answers lead it to the states of the table."""
    home = node_modules()
    if home is None:
        pytest.skip("needs node and xstate (npm install xstate; FSM_XSTATE names the directory)")
    (tmp_path / "node_modules").symlink_to(home)
    (tmp_path / "drive.mjs").write_text(DRIVER)
    runs = drawn(machine)
    given = {
        "text": to_xstate(machine),
        "runs": [[(event, facts) for event, facts, _ in run] for run in runs],
    }
    given["facts"] = list(machine.fact_defaults)
    done = subprocess.run(
        ["node", "drive.mjs"],
        cwd=tmp_path,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[state for _, _, state in run] for run in runs]


TLA = pytest.mark.parametrize(
    ("machine", "vocabulary"), [(EXECUTION, EXECUTIONS), (BREAKER, BREAKERS)], ids=["execution", "breaker"]
)
TLA_WORDS = frozenset(
    "MODULE EXTENDS Integers CONSTANTS VARIABLES ASSUME BOOLEAN Nat TRUE FALSE IF THEN ELSE E in".split()
)


@TLA
def test_the_tla_module_names_nothing_that_it_does_not_declare(machine, vocabulary):
    """Every word of the module is declared in it or bound by the action's own choice; every row is an action."""
    text = to_tla(machine, vocabulary)
    lines = [line for line in text.splitlines() if not line.startswith("\\*")]
    declared = {machine.name, *TLA_WORDS, *re.findall(r"^(\w+) ==", text, re.MULTILINE)}
    for line in lines:
        if line.startswith(("CONSTANTS", "VARIABLES")):
            declared |= set(re.findall(r"\w+", line))
    for block in "\n".join(lines).split("\n\n"):
        bound = set(re.findall(r"(\w+) \\in (?:BOOLEAN|Nat|\{[01, ]+\})", block))
        words = set(re.findall(r"[A-Za-z]\w*", re.sub(r'"[^"]*"', "", block)))
        assert words <= declared | bound, words - declared - bound
    rows = {int(number) for number in re.findall(r"^\w+?_(\d+)(?:_\d+)? ==", text, re.MULTILINE)}
    assert rows == set(range(1, len(machine.transitions) + 1))
    assert {one.name for one in machine.invariants} <= declared
    assert to_tla(Machine.from_json(machine.to_json()), vocabulary) == text


@TLA
def test_a_foreign_parser_reads_the_tla_module(machine, vocabulary):
    """tree-sitter's grammar of TLA+ reads the module without an error, where it is installed."""
    tree_sitter = pytest.importorskip("tree_sitter")
    language = pytest.importorskip("tree_sitter_tlaplus").language()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the binding, not of ours
        parser = tree_sitter.Parser(tree_sitter.Language(language))
    assert not parser.parse(to_tla(machine, vocabulary).encode()).root_node.has_error
