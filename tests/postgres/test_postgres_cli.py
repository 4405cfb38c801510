"""Every command works on PostgreSQL, and a registry is copied whole."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

from fsm.cli.app import app
from fsm.cli.copy import Copy
from fsm.core.journal import record_of
from fsm.lifecycles.breaker import BREAKER
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import open_store
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.testing import fresh_tracker
from fsm.testing.conformance.steps import OTHER, birth, committed, move, walk
from fsm.tracker import process

RUNNER = CliRunner()


def run(*arguments: str, code: int = 0) -> str:
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Each command sets up a tracker of its own, as in a process of its own."""
    monkeypatch.delenv("FSM_STORE", raising=False)
    yield
    process._close_all()


def test_the_commands_work_on_postgres(pg_url):
    """Demo, list, show, sweep, doctor and prune work on PostgreSQL as they do on a file."""

    def each(*arguments: str, code: int = 0) -> str:
        output = run(*arguments, "--store", pg_url, code=code)
        process._close_all()
        return output

    each("demo")
    listed = json.loads(each("list", "--json"))
    assert listed
    rows = listed["executions"] if isinstance(listed, dict) else listed
    assert rows[0]["id"] in each("show", rows[0]["id"])
    assert json.loads(each("sweep", "--once", "--json"))["workers"] == 0
    assert "schema" in each("doctor", "--verify", code=0)
    assert json.loads(each("prune", "--older-than", "0s", "--yes", "--json"))


@pytest.fixture
def filled(tmp_path):
    """A registry in a file with all that there is: families, orders, tools, keys, a pruned parent, two breakers."""
    url = f"sqlite:///{tmp_path}/from.db"
    store = open_store(url)
    for machine in (EXECUTION, OTHER, BREAKER):
        store.register(record_of(machine))
    parent, gone = birth(), birth()
    child, orphan = (
        birth(parent_id=parent.after.identity.id),
        birth(parent_id=gone.after.identity.id, key="k"),
    )
    committed(
        store, parent, gone, child, orphan, move(gone.after, "cancel"), move(parent.after, "fail", error="x")
    )
    store.carried(store.orders("", 10)[0] if store.orders("", 10)[0].execution_id == gone.after.identity.id
                  else store.orders("", 10)[1])  # fmt: skip
    store.forget([gone.after.identity.id])
    rng = random.Random(5)
    for number in range(40):
        events = ("start", "call_model", "back_off", "call_model", "process_results", "finish", "complete")
        life = walk(birth(agent=f"a{number % 3}", metadata_json='{"n":1}'), *events[: rng.randrange(8)])
        committed(store, *life)
        if number % 4 == 0:
            committed(store, *walk(birth(machine=OTHER), "shut"))
    tools = walk(birth(), "start", "call_model")
    tools += [move(tools[-1].after, "open_tool", name="s", call_id="1", key="once")]
    committed(store, *tools)
    for version, (event, source, target) in enumerate(
        (("force_open", "closed", "forced_open"), ("reset", "forced_open", "closed"),
         ("force_open", "closed", "forced_open")), 1
    ):  # fmt: skip
        row = BreakerRow("b", target, version, version + 1, float(version))
        entry = BreakerEntry(
            0, "b", version, event, source, target, version + 1, float(version), "ada", "why"
        )
        assert store.breaker_swap(BREAKER.content_hash, version - 1, row, entry)
    yield url, store
    store.close()


def test_a_registry_is_copied_whole(filled, pg_url):
    """A copy holds every record, journal, order and breaker of the original, and a second one finds nothing to do."""
    url, store = filled
    said = json.loads(run("copy", "--from", url, "--to", pg_url, "--json"))
    assert said["differences"] == []
    assert (said["rows"], said["breakers"]) == (len(store.journal(0, 10_000)), 1)
    assert said["executions"] == sum(store.counts().values())
    again = json.loads(run("copy", "--from", url, "--to", pg_url, "--json"))
    assert (again["rows"], again["breakers"], again["differences"]) == (0, 0, [])
    there = open_store(pg_url)
    assert there.orders("", 10) == store.orders("", 10)
    assert there.inspect() == []
    assert there.breaker_load("b")._replace(version=3) == store.breaker_load("b")
    there.close()


def test_an_interrupted_copy_goes_on(filled, pg_url, monkeypatch):
    """A copy that was interrupted at any batch is completed by the next one."""
    _, store = filled
    there = open_store(pg_url)
    monkeypatch.setattr("fsm.cli.copy.PAGE", 17)
    for batches in range(1, 4):
        left = [batches]
        inner = there.append

        def append(steps, inner=inner, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return inner(steps)

        there.append = append
        with pytest.raises(KeyboardInterrupt):
            Copy(store, there).run()
        there.append = inner
    copied = Copy(store, there)
    copied.run()
    assert copied.rows > 0
    assert list(copied.differences()) == []
    there.close()


def test_a_copy_goes_back_to_a_file(filled, pg_url, tmp_path):
    """What was copied to PostgreSQL is copied back to a file, and is the same."""
    url, store = filled
    run("copy", "--from", url, "--to", pg_url)
    back = f"sqlite:///{tmp_path}/back.db"
    run("copy", "--from", pg_url, "--to", back)
    there = open_store(back)
    assert list(Copy(store, there).differences()) == []
    there.close()


def test_a_target_of_somebody_else_is_refused(filled, pg_url):
    """A target that holds other versions is named, and a copy that differs ends with 1."""
    url, _ = filled
    with fresh_tracker(pg_url) as tracker:
        tracker.create("a", user_id="u", thread_id="t")
    assert "executions, the target" in run("copy", "--from", url, "--to", pg_url, code=1)
    run("copy", "--from", url, "--to", url, code=2)
