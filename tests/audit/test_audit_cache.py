"""The cache: what is remembered is never stale, and a cache that is damaged or cannot be written costs time only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsm.audit import AuditConfig, audit
from fsm.audit.cache import MOST_TREES, default_folder
from fsm.audit.runner import _Run

BAD = "import uuid\nrun_id = uuid.uuid4()\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(5):
        (folder / f"m{number}.py").write_text(BAD + f"class C{number}: pass\n", encoding="utf-8")
    return folder


def run(tree: Path, cache: Path | None, **settings):
    return audit([tree], AuditConfig(**settings), project=tree, cache=cache)


def test_an_unchanged_tree_is_not_parsed_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second run gives the same findings and parses no file."""
    first = run(tree, tmp_path / "cache")
    monkeypatch.setattr("fsm.audit.runner.parse_source", lambda *_: pytest.fail("parsed"))
    second = run(tree, tmp_path / "cache")
    assert (first.cached, second.cached) == (0, 5)
    assert second.findings == first.findings
    assert second.owners == first.owners


def test_content_counts_and_nothing_else(tree: Path, tmp_path: Path):
    """A file that changes while its size and its time stay is read again; one that is touched only is not."""
    cache = tmp_path / "cache"
    run(tree, cache)
    changed = tree / "m1.py"
    before = changed.stat()
    changed.write_text(changed.read_text(encoding="utf-8").replace("run_id", "rum_id"), encoding="utf-8")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(tree / "m2.py", ns=(0, 0))
    second = run(tree, cache)
    assert second.cached == 4
    assert [f.path for f in second.findings] == ["m0.py", "m2.py", "m3.py", "m4.py"]


def test_a_file_that_moves_is_judged_where_it_is(tree: Path, tmp_path: Path):
    """The same bytes under another name have another module name, so they are read again."""
    cache = tmp_path / "cache"
    run(tree, cache)
    (tree / "tests").mkdir()
    (tree / "m0.py").rename(tree / "tests" / "test_m0.py")
    assert run(tree, cache).cached == 4


def test_another_configuration_is_another_question(tree: Path, tmp_path: Path):
    """Facts depend on the configuration, so they are not shared between two of them."""
    cache = tmp_path / "cache"
    run(tree, cache)
    other = run(tree, cache, id_names=["rum_id"])
    assert other.cached == 0
    assert other.findings == []


def test_an_unchanged_tree_is_answered_without_its_facts(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second run gives the whole result, map and skips included, and reads no facts; one new file reads them."""
    (tree / "broken.py").write_text("def", encoding="utf-8")
    first = run(tree, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("fsm.audit.cache.from_row", lambda *_: pytest.fail("facts"))
        second = run(tree, tmp_path / "cache")
    for name in ("findings", "skipped", "files", "suppressed", "owners", "constructions"):
        assert getattr(second, name) == getattr(first, name)
    (tree / "new.py").write_text(BAD, encoding="utf-8")
    assert len(run(tree, tmp_path / "cache").findings) == len(first.findings) + 1
    (tree / "new.py").unlink()
    assert run(tree, tmp_path / "cache").findings == first.findings


def test_rows_that_are_damaged_are_read_from_the_files(tree: Path, tmp_path: Path):
    """Where the head of a cache is whole and a row is not, a run that needs the rows parses the files again."""
    cache = tmp_path / "cache"
    wanted = run(tree, cache).findings
    (file,) = cache.iterdir()
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (tree / "new.py").write_text("x = 1\n", encoding="utf-8")
    assert run(tree, cache).findings == wanted
    assert run(tree, cache).findings == wanted


def test_a_file_that_is_written_during_the_audit_is_not_remembered(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is quoted of a file that changed since its facts were taken answers no later run."""
    cache, changed = tmp_path / "cache", tree / "m1.py"
    before = changed.read_text(encoding="utf-8")
    finish = _Run.finish

    def finish_late(one: _Run) -> None:
        changed.write_text("# moved\n" + before, encoding="utf-8")
        finish(one)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "finish", finish_late)
        run(tree, cache)
    changed.write_text(before, encoding="utf-8")
    assert {f.snippet for f in run(tree, cache).findings} == {"run_id = uuid.uuid4()"}


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 1000, b"[" * 100_000, "flip", "half"])
def test_a_damaged_cache_is_as_good_as_none(tree: Path, tmp_path: Path, damage: bytes | str):
    """Whatever bytes the cache holds, the findings are those of the tree, and the cache is whole afterwards."""
    cache = tmp_path / "cache"
    wanted = run(tree, cache).findings
    (file,) = cache.iterdir()
    raw = file.read_bytes()
    if damage == "flip":
        damage = raw[:200] + bytes([raw[200] ^ 1]) + raw[201:]
    file.write_bytes(raw[: len(raw) // 2] if damage == "half" else damage)
    assert (run(tree, cache).cached, run(tree, cache).cached) == (0, 5)
    assert run(tree, cache).findings == wanted


def test_a_cache_that_cannot_be_written_costs_no_finding(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder that is a file, a full disk and a home that does not exist change nothing and leave no draft."""
    wanted = run(tree, None).findings
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert run(tree, blocked).findings == wanted
    assert run(tree, blocked / "deeper").findings == wanted
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run(tree, cache).findings == wanted
    assert list(cache.iterdir()) == []


def test_nothing_is_written_into_the_tree(tree: Path, tmp_path: Path):
    """An audit leaves the audited tree as it was."""
    before = sorted(tree.rglob("*"))
    run(tree, tmp_path / "cache")
    assert sorted(tree.rglob("*")) == before


def test_a_pipe_in_place_of_the_cache_does_not_keep_the_audit(tree: Path, tmp_path: Path):
    """What is no regular file is not read as a cache, and is replaced by one."""
    cache = tmp_path / "cache"
    run(tree, cache)
    (file,) = cache.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert run(tree, cache).cached == 0
    assert run(tree, cache).cached == 5


def test_two_runs_at_once_each_leave_a_whole_cache(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that is overtaken while it writes neither breaks the other one nor its file."""
    cache = tmp_path / "cache"
    real, inside = os.replace, []

    def replace(source, target):
        if not inside:
            inside.append(True)
            run(tree, cache)
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    run(tree, cache)
    assert len(list(cache.iterdir())) == 1
    assert run(tree, cache).cached == 5


def test_old_trees_are_forgotten(tmp_path: Path):
    """The cache keeps a limited number of trees."""
    for number in range(MOST_TREES + 3):
        folder = tmp_path / f"t{number}"
        folder.mkdir()
        (folder / "a.py").write_text(BAD, encoding="utf-8")
        run(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == MOST_TREES


def test_the_cache_lies_with_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command line remembers in the user's folder for caches, never in the audited tree."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fsm-audit"
