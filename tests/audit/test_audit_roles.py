"""Roles: what a class is follows from the facts of the whole tree, and every finding names two families of evidence."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from audit_corpus import NEWER, score, snippets

import fsm
import fsm.audit
import fsm.breakers
import fsm.engine
from fsm.audit import AuditConfig, audit
from fsm.audit.config import CODES
from fsm.audit.drawing import as_mermaid, as_page, as_plan
from fsm.audit.modules import Role
from fsm.audit.roles import Tree
from fsm.audit.rules import RULES

ENOUGH = 3
TEXTBOOK = """
import time
from enum import Enum

class JobStatus(Enum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"

class Job:
    def __init__(self, job_id, timeout):
        self.job_id = job_id
        self.status = JobStatus.PENDING
        self.started_at = time.time()
        self.timeout = timeout

    def is_timed_out(self):
        return time.time() - self.started_at > self.timeout

running_jobs = {}

def start(job):
    running_jobs[job.job_id] = job
    job.status = JobStatus.RUNNING
"""
PAIR = {
    "app/core.py": """
class RunRegistry:
    def __init__(self):
        self._runs = {}
    def start(self, run_id):
        self._runs[run_id] = {"status": "running"}
    def finish(self, run_id):
        self._runs.pop(run_id)
""",
    "app/face.py": """
from app.core import RunRegistry
class AgentTracker:
    def __init__(self):
        self.registry = RunRegistry()
    def start(self, run_id):
        self.registry.start(run_id)
    def finish(self, run_id):
        self.registry.finish(run_id)
""",
    "app/use.py": "from app.face import AgentTracker\ndef handle():\n    return AgentTracker().start('r')\n",
}


def audited(folder: Path, files: dict[str, str], **settings: Any):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return audit([folder], AuditConfig(**settings), project=folder)


@pytest.mark.parametrize("code", NEWER)
def test_the_newer_rules_find_all_of_their_corpus_and_nothing_else(code: str):
    """Recall and precision on the corpus are 100 %, with at least three examples of each kind."""
    measured = score(code)
    kinds = [snippet.kind for snippet in snippets(code)]
    assert min(kinds.count("bad"), kinds.count("good")) >= ENOUGH
    assert not measured.misses
    assert not measured.extras


def test_a_textbook_job_is_found(tmp_path: Path):
    """A job class with a status enum, a timeout check and a global dict of running jobs is found part by part."""
    found = {(f.code, f.symbol) for f in audited(tmp_path, {"jobs.py": TEXTBOOK}).findings}
    assert {
        ("FSM010", "JobStatus"),
        ("FSM011", "Job"),
        ("FSM013", "Job"),
        ("FSM008", "<module>"),
    } <= found


def test_what_a_role_guards_needs_no_configuration(tmp_path: Path):
    """A class with a role may be constructed by its factory only, although nobody has named it."""
    result = audited(tmp_path, PAIR)
    outside = {(f.path, f.line) for f in result.findings if f.code == "FSM001"}
    assert outside == {("app/face.py", 5), ("app/use.py", 3)}
    configured = audited(tmp_path, PAIR, tracker_patterns=["app.core.RunRegistry", "app.face.AgentTracker"])
    assert "FSM001" not in configured.by_rule()


def test_every_role_has_two_families_of_evidence_and_prints_them(monkeypatch: pytest.MonkeyPatch):
    """No role of any snippet of the corpus rests on one family, and the message holds each of them."""
    given: list[tuple[str, Role]] = []
    settle = Tree._settle

    def noted(tree: Tree, judges: Any) -> None:
        settle(tree, judges)
        given.extend((info.name, role) for info in tree.classes for role in info.roles.values())

    monkeypatch.setattr(Tree, "_settle", noted)
    for code in ("FSM003", "FSM005", "FSM007", "FSM010", "FSM011", "FSM012"):
        score(code)
    assert len(given) > 50
    assert [(name, role) for name, role in given if len(role.evidence) < 2] == []


def test_a_circle_of_classes_that_wrap_one_another_ends(tmp_path: Path):
    """Two trackers that construct each other, and a class that inherits itself through others, get a role or none."""
    files = {
        "a.py": "from b import BTracker\nclass ATracker(C):\n def __init__(self):\n  self.b = BTracker()\n"
        "class C(ATracker): pass\n",
        "b.py": "from a import ATracker\nclass BTracker:\n def __init__(self):\n  self.a = ATracker()\n",
    }
    assert audited(tmp_path, files).skipped == []


def test_the_page_ranks_who_keeps_what_and_names_what_is_kept_twice(tmp_path: Path):
    """The plain page lists the greatest risk first, with reasons, constructors and what two classes keep alike."""
    twin = PAIR["app/core.py"].replace("RunRegistry", "RunTracker")
    result = audited(tmp_path, {**PAIR, "app/twin.py": twin})
    page = as_page(result)
    risks = [int(number) for number in re.findall(r"^ *(\d+)  \w+ +app\.", page, re.MULTILINE)]
    assert risks == sorted(risks, reverse=True)
    assert "constructed by app.use.handle  (app/use.py:3)" in page
    assert "runs: app.core.RunRegistry, app.twin.RunTracker" in page
    assert "n0" in as_mermaid(result)


def test_the_plan_removes_first_what_nothing_rests_on(tmp_path: Path):
    """A wrapper comes before what it wraps, and each step names the files that it touches."""
    plan = as_plan(audited(tmp_path, PAIR))
    face, core = plan.index("app.face.AgentTracker"), plan.index("app.core.RunRegistry")
    assert face < core
    assert "app/use.py" in plan[face:core]


def readme_rows() -> list[str]:
    text = (Path(fsm.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = text.split("| what you had |")[1].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:] if line.startswith("|")]


def test_every_row_of_what_to_replace_has_a_code():
    """The README's table of what to replace and the rules name the same things."""
    rows = readme_rows()
    assert len(rows) >= 6
    assert {rule.replaces for rule in RULES.values()} - {""} == set(rows)


OBJECTS: dict[str, Any] = {
    "tracker": fsm.Tracker,
    "engine": fsm.engine.Engine,
    "run": fsm.engine.Run,
    "execution": fsm.Execution,
    "EXECUTION": fsm.Machine,
}
GIVES: dict[str, Any] = {"get_tracker": fsm.Tracker, "for_user": fsm.Tracker, "get": fsm.Execution}


def member(thing: Any, name: str) -> Any:
    """What hangs on a class of the library under a name; None where its own type says no more."""
    if thing is None:
        return None
    if thing is fsm.Tracker and name == "breakers":
        return fsm.breakers.Breakers
    assert hasattr(thing, name) or name in getattr(thing, "model_fields", {}), (thing, name)
    return None


def known(node: ast.expr) -> Any:
    """The class of what an expression of an example stands for, each name on the way checked."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if isinstance(node.func, ast.Attribute):
            owner = known(node.func.value)
            member(owner, name)
            if owner is None:
                return None
        return GIVES.get(name)
    if isinstance(node, ast.Attribute):
        return member(known(node.value), node.attr)
    return OBJECTS.get(node.id) if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_names_only_what_exists(code: str):
    """Every dotted name in a hint and every name and keyword of a good example is found in the library."""
    rule = RULES[code]
    for name in re.findall(
        r"\b(?:get_tracker\(\)|tracker|engine|run|execution|EXECUTION)(?:\.\w+)+", rule.hint
    ):
        known(ast.parse(name, mode="eval").body)
    for node in ast.walk(ast.parse(rule.good)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsm"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, (ast.Attribute, ast.Call)):
            known(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            _keywords_exist(node)
    assert rule.bad.splitlines()[0] in rule.explain()


def test_a_name_that_does_not_exist_would_be_noticed():
    """The check of explanations fails for a method that the library does not have."""
    with pytest.raises(AssertionError):
        known(ast.parse("get_tracker().breakers.for_key('x')", mode="eval").body)


def _keywords_exist(call: ast.Call) -> None:
    function = (
        getattr(fsm.Tracker, call.func.attr, None) if "get_tracker()" in ast.unparse(call.func) else None
    )
    if function is None or not callable(function):
        return
    known = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    assert open_ended or {keyword.arg for keyword in call.keywords} <= known.keys()


def test_a_rule_is_one_file():
    """Every module of rules holds the rule of its name, and nothing else knows it by name."""
    folder = Path(fsm.audit.__file__).parent / "rules"
    names = {path.name[:6].upper() for path in folder.glob("fsm*.py")}
    assert names == set(CODES) == set(RULES)
    assert all(rule.local or rule.find or rule.judge or code == "FSM100" for code, rule in RULES.items())


def test_no_module_of_the_audit_leads_back_to_itself():
    """The imports of the audit have no circle, those for the type checker and those inside functions included."""
    root = Path(fsm.audit.__file__).parent
    names = {
        f"fsm.audit.{'.'.join(p.relative_to(root).with_suffix('').parts)}": p for p in root.rglob("*.py")
    }
    leads: dict[str, set[str]] = {}
    for name, path in names.items():
        if path.name == "__init__.py" and path.parent == root:
            continue
        asked: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                asked |= {node.module, f"{node.module}.__init__"} & names.keys()
                asked |= {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
        leads[name] = asked
    while free := {name for name, asked in leads.items() if not asked & leads.keys()}:
        leads = {name: asked for name, asked in leads.items() if name not in free}
    assert leads == {}


def test_the_audit_stands_apart():
    """The audit runs without pydantic, typer and rich, and without any other module of fsm."""
    program = (
        "import sys, types, pathlib\n"
        f"root = types.ModuleType('fsm'); root.__path__ = [{str(Path(fsm.__file__).parent)!r}]\n"
        "sys.modules['fsm'] = root\n"
        "from fsm.audit import audit, AuditConfig\n"
        "from fsm.audit.command import run\n"
        "audit([pathlib.Path(sys.argv[1])], AuditConfig())\n"
        "others = [m for m in sys.modules if m.startswith('fsm.') and not m.startswith('fsm.audit')]\n"
        "print(sorted({'pydantic', 'typer', 'rich', 'transitions'} & sys.modules.keys()), others)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"


def test_the_command_line_starts_without_the_audit():
    """The audit is loaded by its command: its face knows nothing but the options."""
    program = "import sys, fsm.audit.cli\nprint(sorted(m for m in sys.modules if m.startswith('fsm.audit')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fsm.audit', 'fsm.audit.cli']"
