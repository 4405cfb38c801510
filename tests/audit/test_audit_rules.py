"""The rules on the corpus, on their own examples, and on fsm itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_corpus import RULES, Snippet, score, snippets

import fsm
from fsm.audit import AuditConfig, audit
from fsm.audit.config import CODES
from fsm.audit.rules import RULES as CATALOG

ENOUGH = 12


@pytest.mark.parametrize("code", RULES)
def test_the_corpus_is_large_enough_and_marked(code: str):
    """Every rule has twelve marked violations and twelve unmarked look-alikes, each with a title."""
    found = snippets(code)
    bad = [snippet for snippet in found if snippet.kind == "bad"]
    good = [snippet for snippet in found if snippet.kind == "good"]
    assert len(bad) >= ENOUGH
    assert len(good) >= ENOUGH
    assert len(bad) + len(good) == len(found)
    assert all(snippet.expected() for snippet in bad)
    assert not any(snippet.expected() for snippet in good)
    assert len({snippet.title for snippet in found}) == len(found)


@pytest.mark.parametrize("code", RULES)
def test_every_rule_finds_all_of_its_corpus_and_nothing_else(code: str):
    """Recall and precision on the corpus are 100 %, and the failing snippet is named otherwise."""
    measured = score(code)
    assert measured.hits > ENOUGH
    assert not measured.misses
    assert not measured.extras


def test_the_score_notices_a_miss_and_an_extra():
    """The measure itself can fail: a wrong mark counts as a miss, and an unmarked finding as an extra."""
    wrong = Snippet("FSM002", "bad", "wrong", {"a.py": "import uuid\nx = 1  # >>\nrun_id = uuid.uuid4()\n"})
    assert wrong.expected() == {("a.py", 2)}
    assert wrong.reported() == {("a.py", 3)}


@pytest.mark.parametrize("code", CODES)
def test_every_rule_explains_itself_with_examples_that_hold(code: str, tmp_path: Path):
    """The bad example of a rule is reported under its code; the good one under no code at all."""
    rule = CATALOG[code]
    for name, text in (("bad", rule.bad), ("good", rule.good)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "example.py").write_text(text, encoding="utf-8")
    bad = audit([tmp_path / "bad"], AuditConfig(), project=tmp_path)
    good = audit([tmp_path / "good"], AuditConfig(), project=tmp_path)
    assert code in bad.by_rule()
    assert good.findings == []
    assert rule.hint
    assert rule.why


def test_fsm_itself_is_clean():
    """The library keeps to its own rules: an audit of its package finds nothing and skips nothing."""
    package = Path(fsm.__file__).parent
    result = audit([package], AuditConfig(), project=package.parent)
    assert result.files > 10
    assert result.findings == []
    assert result.skipped == []


def test_a_protected_class_and_its_factory_can_be_named(tmp_path: Path):
    """A team's own class is protected by name, and its own factory may construct it."""
    (tmp_path / "app.py").write_text(
        "from core import RunLedger\n"
        "def open_ledger():\n    return RunLedger()\n"
        "def handle():\n    return RunLedger()\n",
        encoding="utf-8",
    )
    nothing = audit([tmp_path], AuditConfig(), project=tmp_path)
    mine = AuditConfig(protected=["RunLedger"], factories=["app.open_ledger"])
    found = audit([tmp_path], mine, project=tmp_path)
    assert nothing.findings == []
    assert [(finding.code, finding.line) for finding in found.findings] == [("FSM001", 5)]


def test_a_dotted_name_protects_one_class_only(tmp_path: Path):
    """A dotted protected name stands for the class of that package, not for namesakes elsewhere."""
    (tmp_path / "app.py").write_text(
        "from ours.books import Ledger\nfrom theirs import Ledger as Other\na = Ledger()\nb = Other()\n",
        encoding="utf-8",
    )
    found = audit([tmp_path], AuditConfig(protected=["ours.Ledger"]), project=tmp_path)
    assert [finding.line for finding in found.findings] == [3]


def test_id_names_and_id_makers_can_be_named(tmp_path: Path):
    """A team's own id name is judged, and the function it names as maker may make ids."""
    (tmp_path / "app.py").write_text(
        "import uuid\n"
        "def mint():\n    job_id = uuid.uuid4().hex\n    return job_id\n"
        "def handle():\n    job_id = uuid.uuid4().hex\n    return job_id\n",
        encoding="utf-8",
    )
    nothing = audit([tmp_path], AuditConfig(), project=tmp_path)
    found = audit([tmp_path], AuditConfig(id_names=["job_id"], id_makers=["app.mint"]), project=tmp_path)
    assert nothing.findings == []
    assert [(finding.code, finding.line) for finding in found.findings] == [("FSM002", 6)]


def test_one_tracker_can_be_named_the_registry(tmp_path: Path):
    """A class named in tracker_patterns is the registry and no second tracker."""
    (tmp_path / "app.py").write_text(CATALOG["FSM003"].bad, encoding="utf-8")
    config = AuditConfig(tracker_patterns=["app.RunBook"])
    assert audit([tmp_path], AuditConfig(), project=tmp_path).by_rule() == {"FSM003": 1}
    assert audit([tmp_path], config, project=tmp_path).findings == []


def test_tests_can_be_left_out(tmp_path: Path):
    """With include_tests off, files of tests are not even read."""
    for name in ("tests/test_a.py", "app/a.py", "app/conftest.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text("import uuid\nrun_id = uuid.uuid4()\n", encoding="utf-8")
    everything = audit([tmp_path], AuditConfig(), project=tmp_path)
    without = audit([tmp_path], AuditConfig(include_tests=False), project=tmp_path)
    assert everything.files == 3
    assert len(everything.findings) == 3
    assert [finding.path for finding in without.findings] == ["app/a.py"]


def test_the_same_tree_gives_the_same_findings_in_the_same_order(tmp_path: Path):
    """Findings come sorted by path and line, and two runs agree exactly."""
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.py").write_text(
            "import uuid\nrun_id = uuid.uuid4()\nexec_id = f'{run_id}-x'\n", encoding="utf-8"
        )
    first = audit([tmp_path], AuditConfig(), project=tmp_path).findings
    second = audit([tmp_path], AuditConfig(), project=tmp_path).findings
    assert first == second
    assert [(finding.path, finding.line) for finding in first] == [
        (f"{name}.py", line) for name in "abc" for line in (2, 3)
    ]


def test_nothing_of_the_audited_code_is_run(tmp_path: Path):
    """Auditing a module with a side effect at import leaves no trace of the effect."""
    trace = tmp_path / "trace"
    (tmp_path / "app.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nfrom fsm import Tracker\nTracker()\n", encoding="utf-8"
    )
    result = audit([tmp_path], AuditConfig(), project=tmp_path)
    assert result.by_rule() == {"FSM001": 1}
    assert not trace.exists()
