"""The baseline knows findings by what they are, and only ever shrinks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm.audit import AuditConfig, BaselineError, audit
from fsm.audit.baseline import apply_baseline, read_baseline, write_baseline

ONE = "import uuid\ndef f():\n    run_id = uuid.uuid4()\n    return run_id\n"


def run(folder: Path, text: str):
    (folder / "app.py").write_text(text, encoding="utf-8")
    return audit([folder], AuditConfig(), project=folder)


def test_known_findings_are_not_reported(tmp_path: Path):
    """What the baseline holds is counted, not reported."""
    path = tmp_path / "baseline.json"
    assert write_baseline(path, run(tmp_path, ONE).findings) == 1
    result = run(tmp_path, ONE)
    apply_baseline(result, read_baseline(path))
    assert (result.findings, result.baselined, result.stale) == ([], 1, 0)


def test_moving_and_reformatting_lines_wakes_nothing(tmp_path: Path):
    """Line numbers and blanks are not part of the key."""
    path = tmp_path / "baseline.json"
    write_baseline(path, run(tmp_path, ONE).findings)
    result = run(tmp_path, "# new\n\n" + ONE.replace("run_id = uuid", "run_id  =  uuid"))
    apply_baseline(result, read_baseline(path))
    assert result.findings == []


def test_growth_is_reported(tmp_path: Path):
    """A second equal finding in the same function is new, since the key is counted."""
    path = tmp_path / "baseline.json"
    write_baseline(path, run(tmp_path, ONE).findings)
    again = ONE.replace("    return", "    run_id = uuid.uuid4()\n    return")
    result = run(tmp_path, again)
    apply_baseline(result, read_baseline(path))
    assert len(result.findings) == 1
    assert result.baselined == 1


def test_another_function_rule_or_line_is_new(tmp_path: Path):
    """The enclosing symbol and the text of the line are part of the key."""
    path = tmp_path / "baseline.json"
    write_baseline(path, run(tmp_path, ONE).findings)
    for other in (ONE.replace("def f", "def g"), ONE.replace("uuid4()", "uuid1()")):
        result = run(tmp_path, other)
        apply_baseline(result, read_baseline(path))
        assert (len(result.findings), result.stale) == (1, 1)


def test_an_update_may_only_shrink(tmp_path: Path):
    """An update that would add findings is refused and changes nothing, unless growth is allowed."""
    path = tmp_path / "baseline.json"
    write_baseline(path, run(tmp_path, ONE).findings)
    before = path.read_bytes()
    two = run(tmp_path, ONE + ONE.replace("def f", "def g")).findings
    with pytest.raises(
        BaselineError, match=r"would grow by 1 findings, the first is FSM002 in app\.py \(g\)"
    ):
        write_baseline(path, two)
    assert path.read_bytes() == before
    assert write_baseline(path, two, allow_growth=True) == 2
    assert write_baseline(path, []) == 0
    assert read_baseline(path).total() == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "findings": [{}]}', "\0"])
def test_a_broken_baseline_is_refused(text: str, tmp_path: Path):
    """What is not a baseline is a BaselineError that names the file."""
    path = tmp_path / "baseline.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BaselineError, match=r"baseline\.json"):
        read_baseline(path)


def test_a_missing_or_newer_baseline_is_refused(tmp_path: Path):
    """A missing file says how to write it; a newer version says what this one reads."""
    path = tmp_path / "baseline.json"
    with pytest.raises(BaselineError, match="--update-baseline"):
        read_baseline(path)
    path.write_text('{"version": 2, "findings": []}', encoding="utf-8")
    with pytest.raises(BaselineError, match="version 2"):
        read_baseline(path)


def test_the_file_is_stable(tmp_path: Path):
    """Two writes of the same findings give the same bytes, and no draft is left behind."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    found = run(tmp_path, ONE).findings
    write_baseline(one, found)
    write_baseline(two, list(reversed(found)))
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["one.json", "two.json"]
