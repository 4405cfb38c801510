"""`noqa` comments silence what they name, and are reported when they silence nothing."""

from __future__ import annotations

from pathlib import Path

from fsm.audit import AuditConfig, audit


def findings(folder: Path, text: str, **settings):
    (folder / "app.py").write_text(text, encoding="utf-8")
    result = audit([folder], AuditConfig(**settings), project=folder)
    return [(finding.code, finding.line) for finding in result.findings], result.suppressed


def test_a_named_rule_is_silenced(tmp_path: Path):
    """A comment with the code silences the finding of its line and only that one."""
    text = "import uuid\nrun_id = uuid.uuid4()  # noqa: FSM002\nexec_id = uuid.uuid4()\n"
    assert findings(tmp_path, text) == ([("FSM002", 3)], 1)


def test_a_bare_noqa_silences_every_rule(tmp_path: Path):
    """A comment without codes silences the line and is never called unused."""
    text = "import uuid\nrun_id = uuid.uuid4()  # noqa\nx = 1  # noqa\n"
    assert findings(tmp_path, text) == ([], 1)


def test_another_code_silences_nothing(tmp_path: Path):
    """A comment for another rule leaves the finding, and is itself reported as unused."""
    text = "import uuid\nrun_id = uuid.uuid4()  # noqa: FSM001\n"
    assert findings(tmp_path, text) == ([("FSM002", 2), ("FSM100", 2)], 0)


def test_an_unused_noqa_is_reported(tmp_path: Path):
    """A code that silences nothing is a finding of its own; codes of other tools are none of our business."""
    text = "x = 1  # noqa: FSM002\ny = 2  # noqa: E501, S101\nz = 3  # noqa: E501, FSM001\n"
    assert findings(tmp_path, text) == ([("FSM100", 1), ("FSM100", 3)], 0)


def test_a_code_of_a_rule_that_is_off_is_not_unused(tmp_path: Path):
    """Turning a rule off does not make its comments wrong, and FSM100 can be turned off as well."""
    assert findings(tmp_path, "x = 1  # noqa: FSM002\n", ignore=["FSM002"]) == ([], 0)
    assert findings(tmp_path, "x = 1  # noqa: FSM002\n", ignore=["FSM100"]) == ([], 0)


def test_words_in_a_string_are_no_comment(tmp_path: Path):
    """The same words inside a string silence nothing and are not reported."""
    text = 'import uuid\nrun_id = f"{uuid.uuid4()} # noqa: FSM002"\nnote = "# noqa: FSM001"\n'
    assert findings(tmp_path, text) == ([("FSM002", 2)], 0)


def test_a_long_statement_may_carry_its_comment_on_any_line(tmp_path: Path):
    """The comment may stand on the first or on the last line of the statement."""
    text = "import uuid\nrun_id = str(\n    uuid.uuid4()\n)  # noqa: FSM002\n"
    assert findings(tmp_path, text) == ([], 1)


def test_a_comment_inside_a_class_does_not_silence_the_class(tmp_path: Path):
    """A finding about a class is silenced on its first line, not by any comment in its body."""
    body = (
        "    def __init__(self):\n        self._executions = {}\n"
        "    def begin(self, execution_id):\n"
        "        self._executions[execution_id] = {'status': 'running'}  # noqa: FSM003\n"
    )
    assert findings(tmp_path, f"class Book:\n{body}") == ([("FSM003", 1), ("FSM100", 5)], 0)
    silenced = f"class Book:  # noqa: FSM003\n{body.replace('  # noqa: FSM003', '')}"
    assert findings(tmp_path, silenced) == ([], 1)


def test_spelling_is_forgiven(tmp_path: Path):
    """Lower case, missing blanks and several codes are understood."""
    text = "import uuid\nrun_id = uuid.uuid4()  #NOQA:fsm002,fsm001 because\n"
    assert findings(tmp_path, text, ignore=["FSM001"]) == ([], 1)
