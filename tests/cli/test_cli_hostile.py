"""The command line against what is broken, empty, closed or interrupted: one line, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from fsm import FsmError
from fsm.cli.app import app
from fsm.cli.common import teaching
from fsm.cli.upkeep import MIN_AGE_S
from fsm.ids import execution_id
from fsm.testing import fresh_tracker
from tests.support.places import SAMPLE

ZYGOTE = """
import json, os, sys
import fsm.cli.app, fsm.cli.show, fsm.tracker.process
from fsm.cli import main

for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        for number, name in enumerate(("/dev/null", job["out"], job["err"])):
            os.dup2(os.open(name or "/dev/null", os.O_RDWR | os.O_CREAT, 0o644), number)
        os.closerange(3, 30)
        if not job["out"]:
            os.close(1)
        encoding = job["env"].get("PYTHONIOENCODING", "utf-8")
        sys.stdin = open(0)
        sys.stdout = open(1, "w", encoding=encoding, closefd=False) if job["out"] else None
        sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
        sys.argv = ["fsm", *job["args"]]
        code = 99
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
            fsm.tracker.process._close_all()
        finally:
            sys.stderr.flush()
            os._exit(code or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has loaded the command line, and forks for each command: 20 ms in place of half a second."""


@pytest.fixture(scope="module")
def zygote():
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def fsm(zygote, tmp_path):
    """Run a command in an empty folder; returns exit code, output, errors."""

    def run(*args: str, out: str | None = "out", **env: str) -> tuple[int, str, str]:
        files = {name: str(tmp_path / f".{name}") for name in ("out", "err")}
        for name in files.values():
            Path(name).unlink(missing_ok=True)
        if out != "out":
            files["out"] = out or ""
        job = {"args": args, "cwd": str(tmp_path), "env": {"COLUMNS": "80", **env}, **files}
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        code = int(zygote.stdout.readline())
        said = Path(files["out"]).read_bytes().decode() if out == "out" else ""
        return code, said, Path(files["err"]).read_text()

    return run


@pytest.fixture
def started(tmp_path):
    """Start a command in an empty folder; it is over when the test is."""
    with ExitStack() as stack:

        def start(*args: str, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", "from fsm.cli import main; main()", *args],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={"PATH": "/usr/bin:/bin", "COLUMNS": "80", "HOME": str(tmp_path)}, **options,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def until(true) -> None:
    """Wait for what another process does."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within a minute")


# --- stores that are none ---------------------------------------------------------------------------------------------

ONE = execution_id()
OVER_A_STORE: dict[str, tuple[str, ...]] = {
    "list": ("list", "--json"),
    "show": ("show", ONE),
    "watch": ("watch", "--once"),
    "answer": ("answer",),
    "sweep": ("sweep", "--once"),
    "prune": ("prune", "--keep", "1"),
    "breakers": ("breakers",),
    "breaker": ("breaker", "key"),
    "diagram": ("diagram", "--execution", ONE, "--format", "dot"),
    "replay": ("replay", str(SAMPLE)),
    "demo": ("demo", "--seconds", "0.1"),
}
NO_STORE = {"verify", "audit"}
ELSEWHERE = {"doctor", "copy", "diff"}
"""Commands with tests of their own."""
CREATES = {"replay", "demo"}


def missing(path: Path) -> None:
    """Leave it missing."""


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def text(path: Path) -> None:
    path.write_text("dear diary\n" * 1000)


def folder(path: Path) -> None:
    path.mkdir()


def newer(path: Path) -> None:
    with fresh_tracker(f"sqlite:///{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9999")
        connection.commit()


def others(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE executions (id TEXT)")
        connection.commit()


def damaged(path: Path) -> None:
    with fresh_tracker(f"sqlite:///{path}") as tracker:
        for _ in range(50):
            tracker.create("a", user_id="u", thread_id="t")
    with path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff" * 3000)


BROKEN = [missing, garbage, text, folder, newer, others, damaged]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_a_store_that_is_none_is_one_line_and_exit_code_2(broken, fsm, tmp_path):
    """Every command says in a line what is wrong with a store, prints nothing else, and leaves the file alone."""
    path = tmp_path / "s.db"
    broken(path)
    before = path.read_bytes() if path.is_file() else None
    for command, args in OVER_A_STORE.items():
        if broken is missing and command in CREATES:
            continue
        code, out, err = fsm(*args, "--store", f"sqlite:///{path}")
        assert (code, out, "Traceback" in err) == (2, "", False), (command, err)
        assert err.startswith("fsm"), (command, err)
        assert err.count("\n") <= 6, (command, err)
        assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    "store",
    ["mysql://x", "sqlite:", "sqlite:///", "nonsense", "sqlite:///" + "x" * 300, "sqlite:///no/folder/s.db"],
)
def test_a_url_that_names_no_store_is_one_line_and_exit_code_2(store, fsm):
    """Every command says in a line what is wrong with a URL, given as an option or by the environment."""
    asked = [(*args, "--store", store) for args in OVER_A_STORE.values()]
    for code, out, err in [fsm("list", FSM_STORE=store), *(fsm(*args) for args in asked)]:
        assert (code, out, "Traceback" in err) == (2, "", False), err
        assert "bug" not in err


def test_an_empty_variable_names_the_default_store(fsm, tmp_path):
    """An FSM_STORE that is empty is one that is not set; an empty option is refused (see below)."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db"):
        pass
    assert fsm("list", FSM_STORE="")[0] == 0


# --- options that name nothing ----------------------------------------------------------------------------------------

COMMANDS = get_command(app).commands
NUMBERS = {"limit", "interval", "rows", "every", "keep", "jobs", "seed", "speed", "seconds"}
OTHERS_OPTIONS = {"audit", "breakers", "breaker", "doctor", "copy", "diff"}
"""Commands whose own options are tested elsewhere."""
NEEDED = {
    "show": [ONE],
    "verify": ["execution"],
    "replay": [str(SAMPLE)],
    "prune": ["--keep", "1"],
    "answer": [ONE],
}


def test_every_command_is_in_the_matrix():
    """No command is left out of the tests here."""
    assert COMMANDS.keys() - OVER_A_STORE.keys() - NO_STORE - ELSEWHERE == set()


def options() -> list[tuple[str, Any]]:
    return [
        (name, one)
        for name, command in COMMANDS.items()
        if name not in OTHERS_OPTIONS
        for one in command.params
        if one.name != "help" and not getattr(one, "is_flag", False)
    ]


@pytest.mark.parametrize("nothing", ["", "\0", "nan", "1e999"])
def test_an_option_that_names_nothing_is_a_usage_error(nothing, fsm, tmp_path):
    """An empty option is never the same as none, and numbers that are none are refused: exit code 2, nothing shown."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        tracker.create("secret-agent", user_id="ada", thread_id="t")
    for command, one in options():
        if nothing in {"nan", "1e999"} and one.name not in NUMBERS:
            continue
        given = [nothing] if one.param_type_name == "argument" else [one.opts[-1], nothing]
        rest = [] if one.param_type_name == "argument" else NEEDED.get(command, [])
        code, out, err = fsm(command, *rest, *given)
        assert (code, out, "Traceback" in err) == (2, "", False), (command, one.name, err)
        assert "bug" not in err
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in {".svg", ".dot"}) == []


@pytest.mark.parametrize(
    "args",
    [
        ("list", "--limit", "0"), ("list", "--limit", "-1"), ("list", "--limit", "1000000000000"),
        ("list", "--state", "nonsense"), ("list", "--category", "nonsense"), ("list", "--user", "x" * 501),
        ("list", "--user", "\udcff"), ("watch", "--once", "--user", "\udcff"), ("watch", "--rows", "0"),
        ("watch", "--interval", "0"), ("prune", "--keep", "-1"), ("prune", "--older-than", "1e3s"),
        ("prune", "--older-than", "9" * 400 + "d"), ("sweep", "--every", "0"), ("show", "nonsense"), ("show",),
        ("demo", "--seconds", "-1"), ("replay",), ("replay", "nowhere.jsonl"), ("replay", str(SAMPLE), "--jobs", "0"),
        ("nonsense",), ("list", "--nonsense"), ("verify", "nonsense"), ("verify", ""), ("diagram", "nonsense"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_exit_code_2(args, fsm, tmp_path):
    """A value that is out of range, unknown or unreadable is refused with the exit code 2 and no traceback."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db"):
        pass
    code, out, err = fsm(*args)
    assert (code, out, "Traceback" in err, "bug" in err) == (2, "", False, False), err


# --- what is said is true ---------------------------------------------------------------------------------------------


def asking(tracker, *, owner: bool) -> str:
    """Return an execution that asks, driven by somebody or released while it waits."""
    one = tracker.create("refunds", user_id="ada", thread_id="t").id
    if owner:
        tracker.worker()
    for event in ("start", "think", "await_input"):
        tracker.fire(one, event, fence=tracker.get(one).fence)
    if not owner:
        tracker.fire(one, "lapse")
    return one


def test_an_answer_says_who_goes_on_with_it(fsm, tmp_path):
    """An answer to an execution that nobody drives says that it waits for a process, and what is known of workers."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        alone, beside = (asking(tracker, owner=False) for _ in range(2))
        code, out, _ = fsm("answer", alone, "--approve")
        assert code == 0
        said = " ".join(out.split())
        assert "queued: no worker is registered" in said
        assert "until a process serves the agent 'refunds'" in said
        with tracker.worker():
            said = " ".join(fsm("answer", beside, "--text", "later")[1].split())
            assert "answered by" in said
            assert "1 worker is registered" in said
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        driven = asking(tracker, owner=True)
        said = " ".join(fsm("answer", driven, "--approve")[1].split())
        tracker._registry.worker.close()
        assert "serves" not in said


@pytest.mark.parametrize("verdict", [("--approve",), ("--refuse",), ("--text", "x"), ("--by", "me")])
def test_a_verdict_needs_an_id(verdict, fsm, tmp_path):
    """A verdict without an ID, or with an empty one, is refused and not dropped."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        one = asking(tracker, owner=False)
        for args in (verdict, ("", *verdict)):
            code, out, err = fsm("answer", *args)
            assert (code, out) == (2, ""), err
        assert tracker.get(one).state == "awaiting_input"


def test_what_has_only_just_ended_is_not_pruned_by_accident(fsm, tmp_path):
    """Pruning what ended moments ago needs --yes, and a dry run deletes nothing and says how many it would be."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        for _ in range(3):
            tracker.fire(tracker.create("a", user_id="u", thread_id="t").id, "cancel")
        tracker.create("a", user_id="u", thread_id="t")
        for args in (
            ("--older-than", "0s"),
            ("--older-than", f"{MIN_AGE_S - 1:.0f}s"),
            ("--keep", "0"),
            ("--older-than", "30d", "--keep", "0"),
        ):
            code, out, err = fsm("prune", *args)
            assert (code, out, "--yes" in err) == (2, "", True)
        for args, would in (
            (("--older-than", "0s"), 3),
            (("--keep", "0"), 3),
            (("--keep", "1"), 2),
            (("--older-than", "1h"), 0),
            (("--older-than", "1h", "--keep", "2"), 1),
        ):
            assert json.loads(fsm("prune", *args, "--dry-run", "--json")[1]) == {
                "pruned": would,
                "dry_run": True,
            }
        code, _, err = fsm("prune", "--older-than", "1h", "--archive", "no/such/folder/a.jsonl")
        assert (code, "no/such/folder/a.jsonl: No such file" in err) == (2, True)
        assert len(tracker.find()) == 4
        assert fsm("prune", "--keep", "1", "--json")[0] == 0
        assert fsm("prune", "--older-than", "0s", "--yes")[0] == 0
        assert len(tracker.find()) == 1


def test_the_demo_counts_the_children(fsm, tmp_path):
    """The demo's numbers are the registry's: agents, sub-agents, states and transitions."""
    code, out, err = fsm("demo", "--seconds", "0.5")
    assert code == 0, err
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        found = tracker.find(limit=1000)
        children = sum(one.parent_id is not None for one in found)
        moves = sum(1 for row in tracker.subscribe(after=0, follow=False) if row.version)
        said = " ".join(out.split())
        assert children > 0
        assert f"{len(found) - children} agents and {children} sub-agents made {moves} transitions" in said
        for state, count in tracker.counts().items():
            assert f"{count} {state}" in said


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def check_stopped(err: str, tmp_path: Path) -> None:
    """Compare what was said at the end with the registry."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        found = tracker.find(limit=10_000)
    still = {one.id for one in found if not one.ended}
    said = " ".join(err.split())
    assert f"Ended: {len(found) - len(still)}" in said
    assert f"Still open: {len(still)}." in said
    assert set(re.findall(r"exec_\w+", said)) == still


def test_a_demo_that_is_stopped_says_what_became_of_it(started, tmp_path):
    """Ctrl-C in the middle of a demo ends it with the code 130 and the registry's own numbers."""
    process = started("demo", "--seconds", "8")
    path = tmp_path / "fsm.db"
    until(path.exists)
    with fresh_tracker(f"sqlite:///{path}") as tracker:
        until(lambda: tracker.position() > 60)
    code, _, err = interrupted(process)
    assert code == 130
    check_stopped(err, tmp_path)


@pytest.mark.parametrize("way", [(), ("--as-agents",)], ids=["events", "agents"])
def test_a_replay_that_is_stopped_says_what_became_of_it(way, started, tmp_path):
    """Ctrl-C in a replay that waits for more ends it with the code 130 and the registry's own numbers."""
    process = started("replay", "-", "--jobs", "2", *way, stdin=subprocess.PIPE)
    for number in range(20):
        process.stdin.write(
            f'{{"id":"{number}","events":[{{"kind":"start"}},{{"kind":"model","name":"m"}}]}}\n'
        )
    process.stdin.flush()
    path = tmp_path / "fsm.db"
    until(path.exists)
    if not way:
        with fresh_tracker(f"sqlite:///{path}") as tracker:
            until(lambda: tracker.position() > 6)
    else:
        time.sleep(0.5)
    code, _, err = interrupted(process)
    assert code == 130, err
    check_stopped(err, tmp_path)


def test_a_demo_that_is_terminated_leaves_nothing_running(started, tmp_path):
    """SIGTERM in the middle of a demo ends or releases its executions; then it ends the process as it always does."""
    process = started("demo", "--seconds", "8")
    path = tmp_path / "fsm.db"
    until(path.exists)
    with fresh_tracker(f"sqlite:///{path}") as tracker:
        until(lambda: tracker.position() > 60)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode == -signal.SIGTERM
        left = [one for one in tracker.find(limit=1000) if not one.ended]
        assert [one for one in left if one.owner is not None] == []


def test_watch_and_sweep_leave_with_ctrl_c(started, tmp_path):
    """Ctrl-C is how a person leaves fsm watch and fsm sweep: exit code 0, nothing in the way."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        watch = started("watch", "--json", "--user", "ada")
        sweep = started("sweep", "--every", "0.05", "--json")
        tracker.create("a", user_id="ada", thread_id="t", timeouts={"queue_s": 1e-6})
        assert json.loads(sweep.stdout.readline())["timed_out"] == 1
        over = threading.Event()  # it watches from when it has started on: until then nothing is for it

        def feed() -> None:
            while not over.wait(0.05):
                tracker.create("a", user_id="ada", thread_id="t")

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            assert json.loads(watch.stdout.readline())["event"] in {
                "create",
                "time_out",
            }  # whichever it saw first
        finally:
            over.set()
            feeder.join(60)
        for process in (watch, sweep):
            code, _, err = interrupted(process)
            assert (code, err) == (0, "")


# --- streams that are closed, full or of another encoding -------------------------------------------------------------


@pytest.fixture
def filled(tmp_path):
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        for number in range(40):
            one = tracker.create(f"agent → {number}", user_id="ädä", thread_id="t", metadata={"snow": "☃"})
            tracker.fire(one.id, "start")
    return one.id


READS = {
    "list": (),
    "show": (None,),
    "watch": ("--once",),
    "answer": (),
    "breakers": (),
    "diagram": ("--format", "dot"),
}


def test_a_reader_that_hangs_up_ends_a_command_quietly(filled, started):
    """A command whose reader has gone (head, less) ends with the code 0 and says nothing."""
    for args in (("list", "--json", "--limit", "40"), ("watch", "--once", "--json"), ("show", filled)):
        process = started(*args)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
        process.stderr.close()


@pytest.mark.parametrize("command", READS)
def test_output_that_goes_nowhere(command, filled, fsm, tmp_path):
    """A closed output is no error, and the store is not written to in its place; a full one is exit code 2."""
    args = [filled if one is None else one for one in READS[command]]
    code, _, err = fsm(command, *args, out=None)
    assert (code, err) == (0, "")
    code, _, err = fsm(command, *args, out="/dev/full")
    assert code == 2
    assert "Traceback" not in err
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        assert len(tracker.find(user_id="ädä")) == 40


@pytest.mark.parametrize("command", READS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_of_other_encodings(command, encoding, filled, zygote, tmp_path, fsm):
    """On a terminal that cannot show a character something stands in its place; JSON stays JSON."""
    args = [filled if one is None else one for one in READS[command]]
    path = tmp_path / "shown"
    code, _, err = fsm(command, *args, out=str(path), PYTHONIOENCODING=encoding)
    assert (code, err) == (0, "")
    assert path.read_bytes()
    if command in {"list", "show"}:
        path.unlink()
        assert fsm(command, *args, "--json", out=str(path), PYTHONIOENCODING=encoding)[0] == 0
        data = json.loads(path.read_bytes().decode(encoding))
        one = data["execution"] if command == "show" else data["executions"][0]
        assert (one["user_id"], one["metadata"]) == ("ädä", {"snow": "☃"})


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of a given width")
@pytest.mark.parametrize("columns", [20, 80])
def test_narrow_terminals(columns, filled, tmp_path):
    """On a terminal of any width ids are whole, and nothing is coloured if the user wants no colours."""
    import pty  # noqa: PLC0415 - where there are terminals

    for args in (("list", "--limit", "2"), ("show", filled))[: 2 if columns == 20 else 1]:
        parent, child = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", "from fsm.cli import main; main()", *args],
            cwd=tmp_path, stdin=child, stdout=child, stderr=child,
            env={"PATH": "/usr/bin:/bin", "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm",
                 "PYTHONUTF8": "1"},
        )  # fmt: skip
        os.close(child)
        said = b""
        try:
            while piece := os.read(parent, 65536):
                said += piece
        except OSError:  # the terminal is gone with the process
            pass
        finally:
            os.close(parent)
        assert process.wait(60) == 0
        shown = said.decode()
        assert "Traceback" not in shown
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown)
        if args[0] == "list":
            assert len(re.findall(r"exec_[0-9a-z]{26}\b", shown)) >= 2


# --- bugs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("the moon"), 70, "RuntimeError: the moon. This is a bug; FSM_DEBUG=1"),
        (RecursionError(), 70, "This is a bug"),
        (MemoryError(), 70, "This is a bug"),
        (FsmError("so it is"), 2, "fsm: so it is"),
        (ExceptionGroup("several", [ValueError(), FsmError("so it is")]), 2, "fsm: so it is"),
        (ExceptionGroup("several", [ValueError()]), 70, "This is a bug"),
        (PermissionError(13, "Permission denied", "x.db"), 2, "fsm: x.db: Permission denied"),
        (KeyboardInterrupt(), 130, "fsm: stopped"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_no_command_prints_a_traceback(error, code, said, capsys, monkeypatch):
    """Whatever a command raises is one line and an exit code; FSM_DEBUG shows the traceback of a bug."""
    monkeypatch.setenv("COLUMNS", "200")

    @teaching
    def command() -> None:
        raise error

    monkeypatch.delenv("FSM_DEBUG", raising=False)
    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    monkeypatch.setenv("FSM_DEBUG", "1")
    with pytest.raises(typer.Exit):
        command()
    assert ("Traceback" in capsys.readouterr().err) is (code == 70)
