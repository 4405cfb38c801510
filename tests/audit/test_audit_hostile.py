"""No file ends an audit, and no file keeps it: whatever lies in a tree, there is a report on the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import hostile
import pytest
from typer.testing import CliRunner

from fsm.audit import AuditConfig, AuditError, audit, read_config
from fsm.audit import files as files_module
from fsm.audit.baseline import read_baseline
from fsm.audit.cli import app
from fsm.audit.limits import STEPS_PER_FILE, Work
from fsm.audit.report import FORMATS

ENOUGH_STEPS = 60_000


def write(folder: Path, files: dict) -> None:
    for name, text in files.items():
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), "wb") as file:  # noqa: PTH118, PTH123
            file.write(raw)


def audited(folder: Path, files: dict):
    write(folder, {**files, "violation.py": hostile.VIOLATION})
    result = audit([folder], AuditConfig(), project=folder)
    assert "violation.py" in {finding.path for finding in result.findings}
    assert not [skipped for skipped in result.skipped if "defect" in skipped.reason]
    return result


def test_odd_bytes_and_odd_names_are_reported_in_every_format(tmp_path: Path):
    """Unknown codecs, NUL bytes, byte-order marks and names that are not UTF-8 end in a report that can be encoded."""
    result = audited(tmp_path, hostile.odd_bytes())
    for write_report in FORMATS.values():
        text = write_report(result)
        text.encode("utf-8")
        assert "\x1b" not in text
    assert json.loads(FORMATS["sarif"](result))["version"] == "2.1.0"
    assert {r"a\xffb.py", r"line\nend.py", r"esc\x1b[31m.py"} <= {finding.path for finding in result.findings}
    assert {"nul.py", "only_nul.py", "utf16.py"} <= {skipped.path for skipped in result.skipped}


@pytest.mark.parametrize("depth", [50, 95, 900, 5_000])
def test_nesting_of_any_depth_is_survived(depth: int, tmp_path: Path):
    """Every kind of nesting, at every depth, is audited or skipped, and the other files are audited."""
    audited(tmp_path, {f"{name}.py": text for name, text in hostile.nested(depth).items()})


def test_huge_literals_names_and_comments_are_survived(tmp_path: Path):
    """Numbers of too many digits, names of half a million characters and endless comments end in a report."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audited(tmp_path, {f"{name}.py": text for name, text in hostile.literals().items()})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    made: list[Work] = []
    start = Work.__init__

    def noted(work: Work) -> None:
        start(work)
        made.append(work)

    monkeypatch.setattr(Work, "__init__", noted)
    return made


@pytest.mark.parametrize("name", hostile.multiplying(1))
def test_the_work_for_one_file_grows_with_its_length(name: str, tmp_path: Path, steps: list[Work]):
    """Names that stand for many names cost steps in proportion to the lines, never to the paths through them."""
    audited(tmp_path, {"a.py": hostile.multiplying(100)[name]})
    short = max(work.steps for work in steps)
    steps.clear()
    audited(tmp_path, {"a.py": hostile.multiplying(400)[name]})
    long = max(work.steps for work in steps)
    assert long <= max(6 * short, 2_000)
    assert long < ENOUGH_STEPS


def test_the_report_names_the_limit_that_a_file_exceeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file whose names need too many steps is judged in part, and the report says so and why."""
    monkeypatch.setattr("fsm.audit.limits.STEPS_PER_FILE", 20)
    write(tmp_path, {"a.py": "def f(x):\n" + " y = x\n run_id = y or x or f\n" * 40})
    result = audit([tmp_path], AuditConfig(), project=tmp_path)
    assert [skipped.path for skipped in result.skipped] == ["a.py"]
    assert "STEPS_PER_FILE" in result.skipped[0].reason
    assert STEPS_PER_FILE > ENOUGH_STEPS


def test_modules_that_lead_to_one_another_are_followed_in_bounded_work(tmp_path: Path):
    """Chains of stars, aliases and bases over two thousand modules, and circles of them, end."""
    audited(tmp_path, hostile.modules(700))


def test_things_that_are_no_files_do_not_keep_the_audit(tmp_path: Path):
    """Pipes, sockets, devices, loops of links and folders called like modules are skipped, each with its reason."""
    close = hostile.specials(tmp_path)
    try:
        result = audited(tmp_path, {})
    finally:
        close()
    skipped = {one.path for one in result.skipped}
    assert {"pipe.py", "device.py", "dangling.py", "self.py", "socket.py"} <= skipped


def test_a_file_that_vanishes_during_the_audit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file, and a folder, that are removed between the search and the reading end nothing."""
    (tmp_path / "sub").mkdir()
    write(tmp_path, {"a.py": hostile.VIOLATION, "sub/b.py": hostile.VIOLATION})
    real = files_module.read_regular

    def gone(path: str, most: int) -> bytes | None:
        if path.endswith("b.py"):
            Path(path).unlink(missing_ok=True)
        return real(path, most)

    monkeypatch.setattr(files_module, "read_regular", gone)
    result = audit([tmp_path], AuditConfig(), project=tmp_path)
    assert [finding.path for finding in result.findings] == ["a.py"]
    assert [skipped.path for skipped in result.skipped] == ["sub/b.py"]


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without permission is named in the report; silence would look like a clean folder."""
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = audit([tmp_path], AuditConfig(), project=tmp_path)
    assert [(skipped.path, "listed" in skipped.reason) for skipped in result.skipped] == [("closed", True)]


DEEP_TOML = b"x=" + b"[" * 5000 + b"]" * 5000
TOMLS = {
    "deep": DEEP_TOML,
    "deep table": b"[tool.fsm.audit]\nprotected=" + b"[" * 300 + b"]" * 300,
    "digits": b"[tool.fsm.audit]\nmax_file_bytes=" + b"9" * 5000,
    "bytes": b"\xff\xfe",
    "nul": b"\0",
    "bom": b"\xef\xbb\xbf[tool.fsm.audit]\nprotectd=[]",
    "ini": b"[tool:fsm]\nkey: value\n",
    "keys": b"[tool.fsm.audit." + b".".join([b"a"] * 2000) + b"]\n",
    "string": b"tool = 'x'",
    "long": b"[tool.fsm.audit]\nbaseline = ['" + b"x" * 100_000 + b"']",
}


@pytest.mark.parametrize("name", TOMLS)
def test_no_configuration_ends_in_anything_but_a_typed_error(name: str, tmp_path: Path):
    """A configuration of any bytes is read, or refused with a short text that names the file."""
    path = tmp_path / "pyproject.toml"
    path.write_bytes(TOMLS[name])
    with pytest.raises(AuditError) as refused:
        read_config(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 4_000


BASELINES = {
    "deep": b"[" * 100_000,
    "deep value": b'{"version": 1, "findings": ' + b"[" * 900 + b"]" * 900 + b"}",
    "infinite": b'{"version": 1, "findings": [{"rule":"a","path":"b","symbol":"c","snippet":"d","count":1e999}]}',
    "negative": b'{"version": 1, "findings": [{"rule":"a","path":"b","symbol":"c","snippet":"d","count":-1}]}',
    "digits": b'{"version": ' + b"9" * 5000 + b"}",
    "bytes": b"\xff",
    "nul": b"\0",
    "version": b'{"version": ' + b"[" * 500 + b"]" * 500 + b"}",
    "list": b"[]",
    "text": b'"x"',
    "null": b'{"version": 1, "findings": null}',
}


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_ends_in_anything_but_a_typed_error(name: str, tmp_path: Path):
    """A baseline of any bytes is read, or refused with a short text that names the file."""
    path = tmp_path / "b.json"
    path.write_bytes(BASELINES[name])
    with pytest.raises(AuditError) as refused:
        read_baseline(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 4_000


def test_inputs_that_are_no_files_are_refused(tmp_path: Path):
    """A pipe as configuration or baseline is refused instead of read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for read in (read_config, read_baseline):
        with pytest.raises(AuditError):
            read(tmp_path / "pipe")


def test_paths_that_cannot_be_reached_are_refused(tmp_path: Path):
    """A loop of links, an endless name and a name that is not UTF-8 are refused with a text that can be written."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (
        tmp_path / "loop",
        tmp_path / ("x" * 5000),
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")),
    ):
        with pytest.raises(AuditError) as refused:
            audit([path], AuditConfig(), project=tmp_path)
        str(refused.value).encode("utf-8")
        done = CliRunner().invoke(app, [str(path)])
        assert done.exit_code == 2
        assert "Traceback" not in done.output


def test_the_report_can_be_written_to_a_pipe_of_any_encoding(tmp_path: Path):
    """Findings under names in any script, written to a pipe of ASCII only, end in exit code 1."""
    write(tmp_path, {"übung.py": hostile.VIOLATION, b"a\xff.py": hostile.VIOLATION})
    for form in FORMATS:
        done = subprocess.run(
            [sys.executable, "-m", "fsm.audit", "-f", form, str(tmp_path)],
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert b"Traceback" not in done.stderr
