"""The command line: exit codes, formats, options and the files it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsm.audit.cli import app
from fsm.audit.config import CODES
from tests.support.places import ROOT

BAD = "import uuid\nfrom fsm import Tracker\nrun_id = uuid.uuid4()\ntracker = Tracker()\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    (tmp_path / "app.py").write_text(BAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_findings_end_with_one(project: Path):
    """With findings the exit code is 1 and each is a line path:line:col: CODE message."""
    result = run(".")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"app\.py:3:1: FSM002 .+", lines[0])
    assert re.fullmatch(r"app\.py:4:11: FSM001 .+", lines[1])
    assert lines[-1] == "2 findings in 1 files"


def test_no_findings_end_with_zero(project: Path):
    """Without findings the exit code is 0."""
    (project / "app.py").write_text("x = 1\n", encoding="utf-8")
    result = run("app.py")
    assert (result.exit_code, result.stdout) == (0, "0 findings in 1 files\n")


@pytest.mark.parametrize(
    ("arguments", "lesson"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["--format", "xml", "."], "the formats are text, json, sarif, github"),
        (["--select", "E501", "."], "no rule is called 'E501'"),
        (["--explain", "FSM999"], "no rule is called 'FSM999'"),
        (["--config", "none.toml", "."], "cannot be read"),
        (["--baseline", "none.json", "."], "--update-baseline"),
        (["--output", "no/such/folder/x", "."], "cannot be written"),
        (["--map", "no/such/folder/x", "."], "cannot be written"),
    ],
)
def test_what_could_not_run_ends_with_two(project: Path, arguments: list[str], lesson: str):
    """A mistake of the caller is exit code 2, with its lesson on the error stream and no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert lesson in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_table_ends_with_two(project: Path):
    """A wrong configuration is exit code 2."""
    (project / "pyproject.toml").write_text("[tool.fsm.audit]\nprotectd = []\n", encoding="utf-8")
    result = run(".")
    assert result.exit_code == 2
    assert "did you mean 'protected'" in result.stderr


def test_select_and_ignore(project: Path):
    """Codes may be repeated or separated by commas; ignore wins over select."""
    assert "FSM001" not in run("--select", "FSM002,fsm003", ".").stdout
    assert "FSM002" not in run("--ignore", "FSM002", ".").stdout
    assert run("--select", "FSM002", "--ignore", "FSM002", ".").exit_code == 0


def test_severity_comes_from_the_configuration(project: Path):
    """A configured severity reaches the report."""
    (project / "pyproject.toml").write_text(
        '[tool.fsm.audit]\nseverity = { FSM002 = "note" }\n', encoding="utf-8"
    )
    found = json.loads(run("--format", "json", ".").stdout)["findings"]
    assert {finding["code"]: finding["severity"] for finding in found} == {
        "FSM001": "error",
        "FSM002": "note",
    }


def test_tests_can_be_left_out(project: Path):
    """--no-tests leaves out test files, whatever the configuration says."""
    (project / "app.py").rename(project / "test_app.py")
    assert run(".").exit_code == 1
    assert run("--no-tests", ".").exit_code == 0


def test_json_has_the_documented_form(project: Path):
    """The JSON report has exactly the documented keys."""
    (project / "broken.py").write_text("def", encoding="utf-8")
    report = json.loads(run("--format", "json", ".").stdout)
    assert set(report) == {"files", "seconds", "summary", "suppressed", "baselined"} | {
        "stale_baseline_entries",
        "findings",
        "skipped",
    }
    assert report["summary"] == {"FSM001": 1, "FSM002": 1}
    assert set(report["findings"][0]) == {"path", "line", "column", "code"} | {
        "severity",
        "symbol",
        "message",
        "snippet",
    }
    assert report["skipped"][0]["path"] == "broken.py"


def test_sarif_has_the_required_structure(project: Path):
    """The SARIF log has what 2.1.0 requires, and every result points at a declared rule."""
    (project / "broken.py").write_text("def", encoding="utf-8")
    log = json.loads(run("--format", "sarif", ".").stdout)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (one,) = log["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CODES)
    assert len(one["results"]) == 2
    for result in one["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "app.py"
        assert place["region"]["startLine"] >= 1
        assert result["partialFingerprints"]
    (notice,) = one["invocations"][0]["toolExecutionNotifications"]
    assert notice["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "broken.py"


def test_sarif_fingerprints_survive_moved_lines(project: Path):
    """A line above a finding does not change its fingerprint."""

    def prints() -> list[str]:
        log = json.loads(run("--format", "sarif", ".").stdout)
        return [result["partialFingerprints"]["fsmAudit/v1"] for result in log["runs"][0]["results"]]

    before = prints()
    (project / "app.py").write_text("# above\n" + BAD, encoding="utf-8")
    assert prints() == before
    assert len(set(before)) == 2


def test_github_commands_are_escaped(project: Path):
    """Workflow commands keep to one line each, and percent signs and commas in paths are escaped."""
    (project / "app.py").rename(project / "a,b%.py")
    lines = run("--format", "github", ".").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("::error file=a%2Cb%25.py,line=3,col=1,title=FSM002 ")
    assert lines[-1].startswith("::notice title=fsm audit::2 findings")


def test_the_baseline_is_a_ratchet(project: Path):
    """Known findings pass, new ones fail, and the update refuses to grow."""
    assert run("--baseline", "b.json", "--update-baseline", ".").exit_code == 0
    assert run("--baseline", "b.json", ".").exit_code == 0
    (project / "more.py").write_text("import uuid\nexec_id = uuid.uuid4()\n", encoding="utf-8")
    grown = run("--baseline", "b.json", ".")
    assert grown.exit_code == 1
    assert "more.py" in grown.stdout
    assert "app.py" not in grown.stdout
    refused = run("--baseline", "b.json", "--update-baseline", ".")
    assert refused.exit_code == 2
    assert "--allow-growth" in refused.stderr
    assert run("--baseline", "b.json", "--update-baseline", "--allow-growth", ".").exit_code == 0
    assert run("--baseline", "b.json", ".").exit_code == 0


def test_the_baseline_of_the_configuration_is_used(project: Path):
    """A configured baseline lies beside pyproject.toml and is used without an option."""
    (project / "pyproject.toml").write_text('[tool.fsm.audit]\nbaseline = "known.json"\n', encoding="utf-8")
    assert run("--update-baseline", ".").exit_code == 0
    assert (project / "known.json").exists()
    assert run(".").exit_code == 0


@pytest.mark.parametrize("code", CODES)
def test_every_rule_can_be_explained(project: Path, code: str):
    """--explain shows a bad and a good example and what to do, and audits nothing."""
    result = run("--explain", code.lower())
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{code}: ")
    for word in ("Bad:", "Good:", "What to do:", f"# noqa: {code}"):
        assert word in result.stdout


def test_the_map_names_trackers_and_who_constructs_them(project: Path):
    """The drawing holds the trackers with what they keep, and an arrow from each constructor."""
    (project / "book.py").write_text(
        "class ExecutionTracker:\n"
        "    def __init__(self):\n        self._executions = {}\n"
        "    def set_state(self, execution_id, state):\n"
        "        self._executions[execution_id].state = state\n"
        "def get_execution_tracker():\n    return ExecutionTracker()\n"
        "def handle():\n    return ExecutionTracker()\n",
        encoding="utf-8",
    )
    run("--map", "map.mmd", ".")
    drawing = (project / "map.mmd").read_text(encoding="utf-8")
    assert drawing.startswith("flowchart LR\n")
    node = re.search(r'(n\d+)\[\("book\.ExecutionTracker<br/>_executions<br/>book\.py:1"\)\]', drawing)
    assert node
    name = node[1]
    assert re.search(rf'\["book\.get_execution_tracker"\] -\. factory \.-> {name}\n', drawing)
    assert re.search(rf'\["book\.handle"\] == constructs ==> {name}\n', drawing)
    assert "fsm.Tracker" in drawing


def test_the_map_shows_who_constructs_an_unprotected_tracker(project: Path):
    """A second tracker of any name has a thin arrow from the place in another module that constructs it."""
    (project / "book.py").write_text(
        "class Ledger:\n"
        "    def __init__(self):\n        self._executions = {}\n"
        "    def set_state(self, execution_id, state):\n"
        "        self._executions[execution_id].state = state\n",
        encoding="utf-8",
    )
    (project / "use.py").write_text("import book as b\ndef go():\n    return b.Ledger()\n", encoding="utf-8")
    run("--map", "map.mmd", ".")
    drawing = (project / "map.mmd").read_text(encoding="utf-8")
    node = re.search(r'(n\d+)\[\("book\.Ledger<br/>', drawing)
    assert node
    assert f'["use.go"] == constructs ==> {node[1]}\n' in drawing


def test_the_report_can_go_to_a_file(project: Path):
    """With --output the report is in the file and the summary on the error stream."""
    result = run("--format", "json", "--output", "report.json", ".")
    assert result.stdout == ""
    assert "2 findings" in result.stderr
    assert json.loads((project / "report.json").read_text(encoding="utf-8"))["files"] == 1


def test_skipped_files_are_named_on_the_error_stream(project: Path):
    """A file that does not parse is named, and does not change the exit code by itself."""
    (project / "app.py").write_text("def\n", encoding="utf-8")
    result = run(".")
    assert result.exit_code == 0
    assert "app.py:1: skipped, it does not parse" in result.stderr
    assert "1 files skipped" in result.stdout


def test_python_dash_m_runs_without_a_bar(project: Path):
    """`python -m fsm.audit` does the same, and writes nothing but text when no terminal looks on."""
    done = subprocess.run(
        [sys.executable, "-m", "fsm.audit", "."], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout == run(".").stdout


def test_the_pre_commit_hook_runs_the_command():
    """The hook definition names the command and hands over no single files."""
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    assert re.search(r"^- id: fsm-audit$", text, re.MULTILINE)
    assert re.search(r"^  entry: fsm audit$", text, re.MULTILINE)
    assert re.search(r"^  pass_filenames: false$", text, re.MULTILINE)
    assert re.search(r"^  language: python$", text, re.MULTILINE)
