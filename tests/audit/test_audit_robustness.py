"""Whatever lies in a tree, the audit reports on the rest of it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from fsm.audit import AuditConfig, PathError, audit

VIOLATION = "import uuid\nrun_id = uuid.uuid4()\n"


def run(folder: Path, **settings):
    (folder / "violation.py").write_text(VIOLATION, encoding="utf-8")
    return audit([folder], AuditConfig(**settings), project=folder)


def test_a_syntax_error_is_reported_and_skipped(tmp_path: Path):
    """A file that does not parse is named with its line and reason; the others are audited."""
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n", encoding="utf-8")
    result = run(tmp_path)
    assert [(skipped.path, skipped.line) for skipped in result.skipped] == [("broken.py", 2)]
    assert "does not parse" in result.skipped[0].reason
    assert [finding.path for finding in result.findings] == ["violation.py"]


def test_a_file_with_nul_bytes_is_skipped(tmp_path: Path):
    """NUL bytes end no audit."""
    (tmp_path / "binary.py").write_bytes(b"run_id = 1\0\0")
    result = run(tmp_path)
    assert [skipped.path for skipped in result.skipped] == ["binary.py"]
    assert len(result.findings) == 1


def test_a_file_that_is_too_large_is_skipped(tmp_path: Path):
    """A file above max_file_bytes is skipped, and one byte less is read."""
    text = VIOLATION + "#" * 1000
    (tmp_path / "large.py").write_text(text, encoding="utf-8")
    skipped = run(tmp_path, max_file_bytes=len(text) - 1)
    read = run(tmp_path, max_file_bytes=len(text))
    assert [one.path for one in skipped.skipped] == ["large.py"]
    assert "max_file_bytes" in skipped.skipped[0].reason
    assert read.skipped == []
    assert len(read.findings) == 2


def test_other_encodings_are_read(tmp_path: Path):
    """A declared Latin-1 file, a byte-order mark and undeclared stray bytes are all audited."""
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n" + VIOLATION.encode())
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbf" + VIOLATION.encode())
    (tmp_path / "stray.py").write_bytes(b"# caf\xe9\n" + VIOLATION.encode())
    (tmp_path / "unknown.py").write_bytes(b"# coding: no-such-code\n# \xff\n" + VIOLATION.encode())
    result = run(tmp_path)
    assert {finding.path for finding in result.findings} >= {
        "latin.py",
        "mark.py",
        "stray.py",
        "violation.py",
    }
    assert {skipped.path for skipped in result.skipped} <= {"unknown.py"}


def test_line_endings_do_not_move_the_lines(tmp_path: Path):
    """Windows line ends and form feeds give the same line numbers and snippets."""
    (tmp_path / "windows.py").write_bytes(b"import uuid\r\n\x0c\r\nrun_id = uuid.uuid4()\r\n")
    result = run(tmp_path)
    found = next(finding for finding in result.findings if finding.path == "windows.py")
    assert found.line == 3
    assert found.snippet == "run_id = uuid.uuid4()"


def test_deep_nesting_is_survived(tmp_path: Path):
    """Expressions nested thousands deep end neither the process nor the audit of the other files."""
    (tmp_path / "parens.py").write_text("x = " + "(" * 5000 + "1" + ")" * 5000, encoding="utf-8")
    (tmp_path / "sum.py").write_text("run_id = " + " + ".join(["'a'"] * 20000) + "\n", encoding="utf-8")
    (tmp_path / "calls.py").write_text("run_id = " + "str(" * 90 + "x" + ")" * 90, encoding="utf-8")
    (tmp_path / "chain.py").write_text("run_id = x" + ".y()" * 3000 + "\n", encoding="utf-8")
    blocks = "".join(f"{' ' * depth}if x:\n" for depth in range(90)) + " " * 90 + "run_id = 1\n"
    (tmp_path / "blocks.py").write_text(blocks, encoding="utf-8")
    result = run(tmp_path)
    assert [finding.path for finding in result.findings] == ["violation.py"]
    assert {skipped.path for skipped in result.skipped} <= {"parens.py", "sum.py", "chain.py"}
    assert "parens.py" in {skipped.path for skipped in result.skipped}


def test_a_loop_of_links_ends(tmp_path: Path):
    """A link to a parent folder is not followed, and a file reached twice is audited once."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "violation.py").write_text(VIOLATION, encoding="utf-8")
    result = audit([tmp_path, inner, tmp_path / "violation.py"], AuditConfig(), project=tmp_path)
    assert result.files == 2
    assert len(result.findings) == 1
    assert [skipped.path for skipped in result.skipped] == ["dangling.py"]


def test_things_that_are_no_files_are_skipped(tmp_path: Path):
    """A named pipe called like a module does not block the audit."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    result = run(tmp_path)
    assert [skipped.path for skipped in result.skipped] == ["pipe.py"]
    assert len(result.findings) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_skipped(tmp_path: Path):
    """A file without permission is reported and skipped."""
    secret = tmp_path / "secret.py"
    secret.write_text(VIOLATION, encoding="utf-8")
    secret.chmod(0)
    result = run(tmp_path)
    assert [skipped.path for skipped in result.skipped] == ["secret.py"]


def test_a_missing_path_is_an_error_that_names_it(tmp_path: Path):
    """A path that does not exist is refused before anything is read."""
    with pytest.raises(PathError, match=r"no-such-folder does not exist"):
        audit([tmp_path / "no-such-folder"], AuditConfig(), project=tmp_path)


def test_import_cycles_and_inheritance_cycles_end(tmp_path: Path):
    """Modules that import, star-import, alias or inherit each other in a circle are survived."""
    (tmp_path / "a.py").write_text("from b import *\nfrom b import X as Y\nclass A(B): ...\nZ = W\nW = Z\n")
    (tmp_path / "b.py").write_text(
        "from a import *\nfrom a import Y as X\nclass B(A): ...\nclass C(C): ...\n"
    )
    (tmp_path / "c.py").write_text(
        "from a import Y, Z\nimport b\nY()\nZ()\nb.X()\nb.Tracker()\nA = B = A\nA()\n"
    )
    result = run(tmp_path)
    assert "violation.py" in {finding.path for finding in result.findings}
    assert result.skipped == []


def test_very_many_files_are_survived(tmp_path: Path):
    """Ten thousand small files give one finding each, and no tree is kept."""
    for folder in range(100):
        target = tmp_path / f"p{folder}"
        target.mkdir()
        for number in range(100):
            (target / f"m{number}.py").write_text(VIOLATION, encoding="utf-8")
    result = audit([tmp_path], AuditConfig(), project=tmp_path)
    assert result.files == 10_000
    assert len(result.findings) == 10_000


def test_no_syntax_tree_outlives_its_file(tmp_path: Path):
    """Trees are freed without the collector, so memory does not grow with the code."""
    body = VIOLATION + "".join(
        f"class C{n}:\n    def m(self, execution_id):\n        self.x = {{execution_id: {n}}}\n"
        for n in range(200)
    )
    for number in range(5):
        (tmp_path / f"m{number}.py").write_text(
            f"from fsm import Tracker\nTracker()\n{body}", encoding="utf-8"
        )
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__module__ == "ast" for thing in gc.get_objects())
        result = audit([tmp_path], AuditConfig(), project=tmp_path)
        left = sum(type(thing).__module__ == "ast" for thing in gc.get_objects()) - before
    finally:
        gc.enable()
    assert len(result.findings) == 10
    assert left < 100


def test_the_collector_is_left_as_it_was(tmp_path: Path):
    """An audit leaves the garbage collector on if it was on, and off if it was off."""
    gc.disable()
    try:
        run(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()
    run(tmp_path)
    assert gc.isenabled()
