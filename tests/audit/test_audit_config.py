"""The table in pyproject.toml: read from the right place, and refused with a lesson."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm.audit import AuditConfig, ConfigError, load_config, read_config
from fsm.audit.config import config_from


def test_the_nearest_pyproject_counts(tmp_path: Path):
    """The table of the nearest pyproject.toml above the first path is read, and its folder is the project."""
    (tmp_path / "pyproject.toml").write_text('[tool.fsm.audit]\nignore = ["FSM006"]\n', encoding="utf-8")
    inner = tmp_path / "src" / "app"
    inner.mkdir(parents=True)
    config, project = load_config(inner)
    assert config.ignore == ["FSM006"]
    assert project == tmp_path


def test_a_pyproject_without_the_table_gives_the_defaults(tmp_path: Path):
    """Another tool's pyproject.toml changes nothing."""
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.other]\nx = 1\n", encoding="utf-8")
    assert read_config(path) == AuditConfig()


def test_our_tracker_and_the_common_names_are_protected_by_default():
    """The documented default protects fsm's Tracker and what such classes are usually called."""
    assert {"Tracker", "ExecutionTracker", "AgentExecutionTracker"} <= set(AuditConfig().protected)
    assert {"execution_id", "exec_id", "run_id"} <= set(AuditConfig().id_names)


def test_dashes_are_read_as_underscores():
    """TOML habits are forgiven: id-names is id_names."""
    assert config_from({"id-names": ["job_id"]}).id_names == ["job_id"]


@pytest.mark.parametrize(
    ("table", "lesson"),
    [
        ({"protectd": ["A"]}, "did you mean 'protected'"),
        ({"zzz": 1}, "the keys are protected"),
        ({"protected": "Tracker"}, 'write it as protected = ["name"'),
        ({"protected": [1]}, "protected.0"),
        ({"include_tests": "yes"}, "include_tests = true"),
        ({"max_file_bytes": 0}, "max_file_bytes"),
        ({"select": ["FSM009"]}, "no rule is called 'FSM009'"),
        ({"ignore": [""]}, "no rule is called ''"),
        ({"severity": {"FSM002": "fatal"}}, "must be one of error, warning, note"),
        ({"severity": {"E501": "note"}}, "no rule is called 'E501'"),
        ({"severity": 3}, 'severity = { FSM002 = "warning" }'),
        ({"baseline": 3}, 'baseline = ".fsm-audit.json"'),
    ],
)
def test_a_wrong_table_is_refused_with_a_lesson(table: dict, lesson: str):
    """Each mistake is a ConfigError that says what to write instead."""
    with pytest.raises(ConfigError) as caught:
        config_from(table)
    assert lesson in str(caught.value)


def test_every_mistake_is_named_at_once():
    """Two mistakes give one error with two lines."""
    with pytest.raises(ConfigError) as caught:
        config_from({"protectd": [], "include_tests": 3})
    assert "protectd" in str(caught.value)
    assert "include_tests" in str(caught.value)


@pytest.mark.parametrize("text", ["[tool", "tool = 3", "[tool]\nfsm = 3", "[tool.fsm]\naudit = []"])
def test_a_broken_file_is_refused(text: str, tmp_path: Path):
    """What is not TOML, or not a table, is a ConfigError that names the file."""
    path = tmp_path / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pyproject\.toml"):
        read_config(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    """A configuration file that was asked for and is not there is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_prefixes_select_and_ignore_wins():
    """FSM selects every rule, and a code that is both selected and ignored is off."""
    config = AuditConfig(select=["FSM"], ignore=["FSM00"])
    assert config.enabled("FSM100")
    assert not config.enabled("FSM001")
