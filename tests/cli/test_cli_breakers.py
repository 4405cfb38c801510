"""``fsm breakers`` and ``fsm breaker``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fsm import BreakerOpen, StoreUnavailable
from fsm.breakers import Consecutive, Policy
from fsm.cli.breakers import breaker_command, breakers_command
from fsm.stores.sqlite.store import SqliteStore
from fsm.tracker.process import fresh_tracker


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/fsm.db"
    with fresh_tracker(url) as tracker:
        tracker.breakers.declare("*", Policy(trip=Consecutive(failures=1), cooldown_s=600.0))
        with pytest.raises(ConnectionError), tracker.breakers.permit("openai:gpt-5"):
            raise ConnectionError("refused")
    return url


PROGRAM = """
import typer
from fsm.cli.breakers import breaker_command, breakers_command
app = typer.Typer()
app.command("breakers")(breakers_command)
app.command("breaker")(breaker_command)
app()
"""


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as people do: each process has one tracker."""
    environment = {**os.environ, "FSM_STORE": url, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def data(url: str, *arguments: str) -> dict:
    done = run(url, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list(url):
    """Every breaker that ever opened is listed, for people and as JSON with stable fields."""
    shown = run(url, "breakers")
    assert shown.returncode == 0
    assert "openai:gpt-5" in shown.stdout
    assert "open" in shown.stdout
    (one,) = data(url, "breakers")["breakers"]
    assert set(one) == {
        "key", "state", "generation", "changed_at", "retry_after_s", "retry_at", "openings", "probes",
    }  # fmt: skip
    assert (one["key"], one["state"], one["generation"]) == ("openai:gpt-5", "open", 2)
    assert 500 < one["retry_after_s"] <= 600
    assert data(url, "breakers")["error"] is None


@pytest.mark.parametrize(
    ("order", "state"), [("open", "forced_open"), ("disable", "disabled"), ("reset", "closed")]
)
def test_orders(url, order, state):
    """An order is carried out, journaled with who and why, and holds for every other process."""
    done = data(url, "breaker", "openai:gpt-5", order, "--by", "ada", "--why", "an outage")
    assert done["breaker"]["state"] == state
    last = done["history"][-1]
    assert (last["target"], last["by"], last["why"]) == (state, "ada", "an outage")
    with fresh_tracker(url) as tracker:
        assert tracker.breakers.status_of("openai:gpt-5").state == state


def test_an_order_to_a_key_that_was_never_used(url):
    """A breaker can be held open before its first call, and the answer says that the key is new."""
    assert data(url, "breaker", "new", "open")["new"] is True
    assert data(url, "breaker", "new", "disable")["new"] is False
    assert data(url, "breaker", "new", "open")["breaker"]["state"] == "forced_open"
    shown = run(url, "breaker", "openai:gpt5", "open")
    assert (shown.returncode, "new: " in shown.stdout, "'openai:gpt-5'" in shown.stdout) == (0, True, True)
    with fresh_tracker(url) as tracker, pytest.raises(BreakerOpen):
        tracker.breakers.acquire("new")


def test_the_one_who_gives_an_order_is_noted_anyway(url):
    """Without --by the login is noted."""
    assert data(url, "breaker", "openai:gpt-5", "reset")["history"][-1]["by"]


def test_looking_at_one(url):
    """Without an order a breaker is shown with its history, and nothing is changed."""
    shown = run(url, "breaker", "openai:gpt-5")
    assert shown.returncode == 0
    assert "ConnectionError: refused" in shown.stdout
    assert [one["event"] for one in data(url, "breaker", "openai:gpt-5")["history"]] == ["trip"]


@pytest.mark.parametrize("order", [(), ("reset",)])
def test_a_key_that_nothing_is_known_of(url, order):
    """To look at an unknown key, or to reset it, is a mistake with exit code 2 that names keys written alike."""
    for form in ((), ("--json",)):
        done = run(url, "breaker", "openai:gpt5", *order, *form)
        assert (done.returncode, done.stdout) == (2, "")
        assert "unknown breaker 'openai:gpt5'" in done.stderr
        assert "did you mean 'openai:gpt-5'?" in done.stderr
    assert [one["key"] for one in data(url, "breakers")["breakers"]] == ["openai:gpt-5"], (
        "nothing was written"
    )


def test_the_last_changes_are_shown(url):
    """The history that is shown ends with the last change, however many there were before."""
    with fresh_tracker(f"{url}?synchronous=NORMAL") as tracker:
        for number in range(600):
            tracker.breakers.force_open("k", why=f"open {number}")
            tracker.breakers.reset("k", why=f"reset {number}")
    shown = data(url, "breaker", "k")["history"]
    assert (len(shown), shown[-1]["why"], shown[0]["why"]) == (20, "reset 599", "open 590")


def test_a_store_that_cannot_be_read(url, monkeypatch, capsys):
    """A store that does not answer is said with exit code 2, and is no store without breakers."""

    def down(*_args):
        raise StoreUnavailable("the disk is gone")

    for name in ("breaker_list", "breaker_position"):
        monkeypatch.setattr(SqliteStore, name, down)
    app = typer.Typer()
    app.command("breakers")(breakers_command)
    app.command("breaker")(breaker_command)
    for arguments in (["breakers"], ["breaker", "k"]):
        with fresh_tracker(url) as tracker:
            monkeypatch.setattr(
                "fsm.cli.breakers.open_tracker", lambda *_args, tracker=tracker, **_kw: tracker
            )
            done = CliRunner().invoke(app, [*arguments, "--store", url])
        assert done.exit_code == 2
        assert "the disk is gone" in capsys.readouterr().err + done.output


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m", "x" * 501, "\udce9"])
def test_odd_keys(url, key):
    """A key that is none is said in a line, with exit code 2."""
    done = run(url, "breaker", key, "open")
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)


def test_mistakes(url, tmp_path):
    """An unknown order, an empty key and a store that does not exist are said in a line, with exit code 2."""
    for arguments in (("breaker", "k", "explode"), ("breaker", "", "open")):
        done = run(url, *arguments)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
    for arguments in (("breakers",), ("breaker", "k", "open")):
        done = run(f"sqlite:///{tmp_path}/none.db", *arguments)
        assert done.returncode == 2
        assert "there is no store" in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_help_says_what_json_holds():
    """The help of both commands names the fields of their JSON."""
    app = typer.Typer()
    app.command("breakers")(breakers_command)
    app.command("breaker")(breaker_command)
    for command in ("breakers", "breaker"):
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "With --json one object" in shown.output
