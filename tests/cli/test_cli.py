"""The command line, as a person or a script uses it: a process of its own for each command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fsm.core.journal import fold
from fsm.tracker.process import fresh_tracker
from tests.support.places import SAMPLE


@pytest.fixture
def fsm(tmp_path):
    """Run a command in an empty folder; returns exit code, output, errors."""

    def run(*args, stdin=None, timeout=60):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "from fsm.cli import main; main()", *args],
            cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=timeout,
            env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": str(tmp_path)},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def replayed(fsm):
    code, out, err = fsm("replay", str(SAMPLE), "--json")
    assert code == 0, err
    return json.loads(out)


def test_replay_says_what_became_of_everything(replayed):
    """Replaying the sample reports its sums under stable names."""
    assert replayed["executions"] == 12
    assert replayed["refused"] == 0
    assert replayed["malformed"] == 0
    assert replayed["by_state"] == {
        "cancelled": 1,
        "completed": 8,
        "failed": 1,
        "running_tools": 1,
        "timed_out": 1,
    }
    assert len(replayed["open"]) == 1
    assert replayed["transitions"] > 50
    assert replayed["seconds"] >= 0
    assert replayed["store"] == "sqlite:///fsm.db"


def test_replay_of_the_recorded_runs(fsm, traces, tmp_path):
    """The recorded runs of real agents go into a SQLite file: 931 executions, nothing refused, nothing malformed."""
    code, out, err = fsm(
        "replay", *map(str, traces), "--store", "sqlite:///t.db", "--json", "--jobs", "16", timeout=110
    )
    assert code == 0, err
    data = json.loads(out)
    assert (data["executions"], data["refused"], data["malformed"], data["open"]) == (931, 0, 0, [])
    with fresh_tracker(f"sqlite:///{tmp_path}/t.db") as tracker:
        executions = tracker.find(limit=1000)
        assert len(executions) == 931
        for execution in executions:
            assert fold(tracker.history(execution.id), tracker.machine_of(execution.id)) == execution.state


def test_a_malformed_line_is_named_and_skipped(fsm, tmp_path):
    """A malformed line is reported by file and line, the rest is replayed, and the exit code is 1."""
    (tmp_path / "x.jsonl").write_text(
        '{"id":"a","events":[{"kind":"start"}]}\nnonsense\n\n{"id":"b","events":[]}\n'
    )
    code, out, err = fsm("replay", "x.jsonl")
    assert code == 1
    assert "x.jsonl:2: not JSON" in err
    assert "2 executions" in out
    code, out, _ = fsm("replay", "x.jsonl", "--json")
    data = json.loads(out)
    assert data["malformed"] == 1
    assert (data["malformed_lines"][0]["file"], data["malformed_lines"][0]["line"]) == ("x.jsonl", 2)


@pytest.mark.parametrize("time", [("--virtual",), ("--speed", "5000")], ids=["virtual", "real"])
def test_recordings_are_played_by_agents(fsm, time):
    """As agents the recordings come to the ends that they tell, in virtual time and in real time, and are kept."""
    code, out, err = fsm("replay", str(SAMPLE), "--as-agents", *time, "--json", "--user", "ada")
    assert code == 0, err
    played = json.loads(out)
    assert (played["executions"], played["strays"], played["malformed"]) == (12, [], 0)
    listed = json.loads(fsm("list", "--json", "--user", "ada", "--limit", "100")[1])["executions"]
    assert len(listed) == 12 + played["children"]
    assert {one["category"] for one in listed} == {"terminal"}
    code, out, _ = fsm("replay", str(SAMPLE), "--as-agents", "--virtual", "--store", "memory://")
    assert code == 0
    assert "0 ended otherwise than recorded" in " ".join(out.split())
    assert fsm("replay", str(SAMPLE), "--jobs", "1000")[0] == 2, "so many threads are too many"


def test_replay_reads_standard_input(fsm):
    """A dash stands for standard input."""
    code, out, _ = fsm("replay", "-", "--json", stdin='{"id":"a","events":[{"kind":"start"}]}\n')
    assert code == 0
    assert json.loads(out)["executions"] == 1


def test_a_refused_event_is_found(fsm):
    """A recording with an event that the table refuses is driven on, and the exit code says that there was one."""
    line = '{"id":"a","events":[{"kind":"start"},{"kind":"tool_end"},{"kind":"end","outcome":"completed"}]}\n'
    code, out, _ = fsm("replay", "-", "--json", stdin=line)
    assert code == 1
    data = json.loads(out)
    assert (data["refused"], data["by_state"]) == (1, {"completed": 1})
    assert data["refusals"][0]["event"] == "close_tool"


def test_what_cannot_be_done_is_exit_code_2(fsm):
    """A missing file, a missing store, a bad id and a bad option end with the code 2 and one line that teaches."""
    for args, said in (
        (("replay", "nowhere.jsonl"), "no such file"),
        (("list",), "fsm demo"),
        (("show", "exec_x", "--store", "sqlite:///none.db"), "there is no store"),
        (("list", "--store", "mysql://x"), "sqlite:///file.db"),
        (("prune",), "--older-than 30d"),
    ):
        code, _, err = fsm(*args)
        assert (code, said in err) == (2, True), (args, err)
        assert "Traceback" not in err


def test_list_pages_and_filters(fsm, replayed):
    """The list filters by every index, and pages without missing or repeating anything."""
    seen, after = [], None
    while True:
        code, out, _ = fsm("list", "--json", "--limit", "5", *(["--after", after] if after else []))
        assert code == 0
        page = json.loads(out)
        seen += [one["id"] for one in page["executions"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 12
    _, out, _ = fsm("list", "--json", "--category", "terminal", "--agent", "coder")
    assert {one["state"] for one in json.loads(out)["executions"]} == {"completed", "cancelled"}
    _, out, _ = fsm("list", "--json", "--state", "failed", "--state", "timed_out")
    assert len(json.loads(out)["executions"]) == 2
    code, _, err = fsm("list", "--state", "compleeted")
    assert code == 2
    assert "Known:" in err
    code, out, _ = fsm("list")
    assert code == 0
    assert all(one in out for one in seen)


def test_show_tells_the_story(fsm, replayed):
    """Showing an execution prints its record, its timeline and its durations; the JSON has all of it."""
    _, out, _ = fsm("list", "--json", "--agent", "coder")
    # Recordings are driven side by side: which one is committed first is open.
    one = next(row["id"] for row in json.loads(out)["executions"] if row["state"] == "completed")
    code, out, _ = fsm("show", one)
    assert code == 0
    for word in (
        one,
        "timeline",
        "await_input",
        "interrupted by the user",
        "time by phase",
        "awaiting_input",
    ):
        assert word in out
    data = json.loads(fsm("show", one, "--json")[1])
    assert data["execution"]["state"] == "completed"
    assert [row["version"] for row in data["history"]] == list(range(len(data["history"])))
    assert data["history"][0]["event"] == "create"
    assert data["durations"]["awaiting_input"] == pytest.approx(18.0, abs=0.01)
    assert data["allowed"] == []
    code, _, err = fsm("show", "exec_01arz3ndektsv4rrffq69g5fav")
    assert code == 2
    assert "unknown execution" in err


def test_watch_looks_once_or_streams(fsm, replayed):
    """Watching once prints the picture; with --json the journal, a row a line."""
    code, out, _ = fsm("watch", "--once")
    assert code == 0
    assert "12 executions, 1 open, 11 ended" in out
    code, out, _ = fsm("watch", "--once", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row["version"] > 0 for row in rows) == replayed["transitions"]


def test_verify_lists_the_findings(fsm, tmp_path):
    """Verifying a machine of one's own says that it holds together, or lists every finding with exit code 1."""
    (tmp_path / "mine.py").write_text(
        "from fsm import Machine, State, Transition\n"
        "def bad():\n"
        "    return Machine(name='bad', initial='a', states=[State(name='a', category='waiting'),"
        " State(name='lost', category='running')], transitions=[Transition(source='a', event='go', target='b')])\n"
        "GOOD = Machine(name='good', initial='a', states=[State(name='a', category='running'),"
        " State(name='z', category='terminal')], transitions=[Transition(source='a', event='go', target='z')])\n"
    )
    (tmp_path / "broken.py").write_text("from mine import bad\nBAD = bad()\n")
    code, out, _ = fsm("verify", "mine:GOOD")
    assert code == 0
    assert "holds together" in out
    code, _, err = fsm("verify", "broken:BAD")
    assert code == 1
    for finding in (
        "unknown_state",
        "unreachable_state",
        "wait_without_deadline",
        "wait_without_cancel",
        "no_end",
    ):
        assert finding in err
    data = json.loads(fsm("verify", "broken:BAD", "--json")[1])
    assert data["ok"] is False
    assert {"code", "row", "message", "fix"} <= data["findings"][0].keys()
    assert json.loads(fsm("verify", "execution", "--json")[1])["ok"] is True
    assert fsm("verify", "nowhere:X")[0] == 2
    assert fsm("verify", "mine:NOTHING")[0] == 2


def test_the_demo_needs_nothing(fsm):
    """The demo runs in an empty folder, ends everything that it began, and says what to type next."""
    code, out, err = fsm("demo", "--seconds", "1")
    assert code == 0, err
    assert "What to type next" in out
    data = json.loads(fsm("list", "--json", "--limit", "100")[1])
    assert len([one for one in data["executions"] if one["parent_id"] is None]) == 30
    assert {one["category"] for one in data["executions"]} == {"terminal"}
    by_agent = {one["agent"]: one for one in data["executions"]}
    assert by_agent["flight_finder"]["outcome"] == "fallback"
    assert by_agent["planner"]["state"] == "timed_out"
    assert by_agent["deep_research"]["state"] == "cancelled"
    assert by_agent["researcher (pydantic-ai)"]["result"] == "Oslo lies in Norway and has 717710 people."
    command = next(line.strip() for line in out.splitlines() if line.strip().startswith("fsm show"))
    assert fsm(*command.split()[1:])[0] == 0
    drawing = next(line.strip() for line in out.splitlines() if line.strip().startswith("fsm diagram"))
    assert fsm(*drawing.split()[1:])[0] == 0


def test_a_person_answers_from_another_process(fsm, tmp_path):
    """A person sees with fsm answer what is asked, and answers it, with who; what makes no sense is refused."""
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        run = tracker.create("refunds", user_id="ada", thread_id="t")
        tracker.fire(run.id, "start")
        tracker.fire(run.id, "think", fence=tracker.get(run.id).fence)
        tracker.fire(run.id, "await_input", fence=tracker.get(run.id).fence, question="Refund [/120] EUR?")
    (question,) = json.loads(fsm("answer", "--json")[1])
    assert (question["id"], question["question"], question["user_id"]) == (
        run.id,
        "Refund [/120] EUR?",
        "ada",
    )
    assert "Refund [/120] EUR?" in fsm("answer")[1]
    for args in ((), ("--approve", "--refuse"), ("--approve", "--user", "grace")):
        assert fsm("answer", run.id, *args)[0] == 2
    code, out, _ = fsm("answer", run.id, "--refuse", "--text", "too much", "--by", "margaret", "--json")
    assert code == 0
    receipt = json.loads(out)
    assert receipt["payload"] == {"verdict": "refused", "by": "margaret", "text": "too much"}
    code, _, err = fsm("answer", run.id, "--approve")
    assert (code, "nobody is asked" in err) == (2, True)
    assert json.loads(fsm("answer", "--json")[1]) == []


def test_sweep_and_prune(fsm, tmp_path):
    """Sweeping once ends what is overdue; pruning deletes what has ended, into an archive if one is named."""
    url = f"sqlite:///{tmp_path}/fsm.db"
    with fresh_tracker(url) as tracker:
        tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1e-6})
        kept = tracker.create("a", user_id="u", thread_id="t")
    code, out, _ = fsm("sweep", "--once", "--json")
    assert code == 0
    assert json.loads(out) == {"timed_out": 1, "lapsed": 0, "workers": 0, "pruned": 0, "orphans": 0}
    assert fsm("prune", "--older-than", "0s")[0] == 2, "what has only just ended is not deleted by accident"
    code, out, _ = fsm("prune", "--older-than", "0s", "--archive", "old.jsonl", "--dry-run", "--json")
    assert json.loads(out) == {"pruned": 1, "dry_run": True}
    assert not (tmp_path / "old.jsonl").exists()
    code, out, _ = fsm("prune", "--older-than", "0s", "--yes", "--archive", "old.jsonl", "--json")
    assert json.loads(out) == {"pruned": 1, "dry_run": False}
    (archived,) = (tmp_path / "old.jsonl").read_text().splitlines()
    assert json.loads(archived)["execution"]["state"] == "timed_out"
    assert [one["id"] for one in json.loads(fsm("list", "--json")[1])["executions"]] == [kept.id]
    assert fsm("prune", "--older-than", "a while")[0] == 2


def test_another_process_sees_it_while_it_happens(tmp_path, fsm):
    """While one process writes, list, show and watch in another see what is committed so far."""
    url = f"sqlite:///{tmp_path}/fsm.db"
    with fresh_tracker(url) as tracker:
        execution = tracker.create("a", user_id="u", thread_id="t")
        tracker.fire(execution.id, "start")
        assert json.loads(fsm("show", execution.id, "--json")[1])["execution"]["state"] == "starting"
        tracker.fire(execution.id, "think", fence=tracker.get(execution.id).fence)
        assert json.loads(fsm("list", "--json")[1])["counts"] == {"thinking": 1}
        assert "thinking" in fsm("watch", "--once")[1]


def test_every_command_explains_itself(fsm):
    """Every command has a help text, and the library's parts are loaded only by the commands that need them."""
    code, out, _ = fsm("--help")
    assert code == 0
    for command in "demo replay list show watch diagram verify sweep prune audit".split():
        assert command in out
        assert fsm(command, "--help")[0] == 0
    assert fsm("--version")[1].startswith("fsm ")


def test_the_demo_says_what_it_lacks(fsm, tmp_path):
    """Without pydantic-ai the demo shows the simulated agents alone, and says which extra adds a real one."""
    (tmp_path / "pydantic_ai.py").write_text("raise ImportError('not here')\n")  # found before the real one
    code, out, err = fsm("demo", "--seconds", "0.5")
    assert code == 0, err
    assert "pip install 'agent-fsm[pydantic-ai]' adds a real one" in out


def test_brackets_are_no_markup(fsm, tmp_path):
    """Names, questions and errors with brackets in them are shown as they are, and move no terminal's cursor."""
    odd = "[/x] [bold]:smile:"
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        asks, fails = (tracker.create(odd, user_id=odd, thread_id=odd, metadata={odd: odd}) for _ in range(2))
        tracker.fire(asks.id, "start")
        tracker.fire(asks.id, "open_tool", fence=tracker.get(asks.id).fence, name=odd, arguments={odd: odd})
        tracker.fire(asks.id, "think", fence=tracker.get(asks.id).fence, note=odd)
        tracker.fire(asks.id, "await_input", fence=tracker.get(asks.id).fence, question=odd)
        tracker.fire(fails.id, "start")
        tracker.fire(
            fails.id,
            "fail",
            fence=tracker.get(fails.id).fence,
            error=f"{odd}\x1b[2J\x07",
            error_type=odd,
            traceback=odd,
        )
    for command in (("list",), ("answer",), ("show", asks.id), ("show", fails.id), ("breakers",)):
        code, out, err = fsm(*command)
        assert code == 0, err
        assert command == ("breakers",) or odd in out
        assert "\x1b" not in out
    code, out, err = fsm("answer", asks.id, "--text", odd, "--by", odd)
    assert code == 0, err
    assert out.count(odd) == 2
