"""Opening files: older and newer ones, damaged ones, full disks, and the URLs that name them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fsm import NotAStore, StoreTooNew, StoreUnavailable
from fsm.lifecycles import EXECUTION
from fsm.stores import open_store
from fsm.stores.sqlite import connect as connecting
from fsm.stores.sqlite.connect import parse_url
from fsm.stores.sqlite.store import SqliteStore
from fsm.testing import fresh_tracker
from fsm.testing.conformance.steps import birth, committed
from tests.support.sqlite_tools import BORN, ROW, SQL, STEP, contents, rogue, sound


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


# --- opening --------------------------------------------------------------------------------------------------------


def scripts(number: int) -> str:
    return "".join(path.read_text() for path in sorted(SQL.glob("*.sql"))[:number])


def test_a_file_of_an_older_schema_is_brought_forward(file, url):
    """A file at version 1 is migrated on opening, keeps its data, and is under the law from then on."""
    with closing(open_store("memory://")) as memory, closing(rogue(file)) as connection:
        connection.executescript(scripts(1))
        step = birth()
        [receipt] = committed(memory, step)
        connection.execute(
            "INSERT INTO machines (content_hash, name, document, sealed) VALUES (?, 'execution', ?, 1)",
            (EXECUTION.content_hash, EXECUTION.to_json()),
        )
        connection.executemany(
            "INSERT INTO states VALUES (1, ?, ?)",
            [(state.name, state.name in EXECUTION.terminal) for state in EXECUTION.states],
        )
        rows = {("", "create", "created")} | {(one.source, one.event, one.target) for one in EXECUTION.arrows}
        connection.executemany("INSERT INTO law VALUES (1, ?, ?, ?)", sorted(rows))
        connection.execute(
            f"INSERT INTO executions {BORN} "
            "VALUES (?, 1, 'agent', 'ada', 'thread', 1000, 1, 5, 'created', 0, 1000, 1000, 0, 0, 0, 1, 'create')",
            (receipt.execution_id,),
        )
        connection.execute(
            f"INSERT INTO journal {ROW} VALUES (1, ?, 0, 1, 'create', NULL, 'created', 1000, 0, 0)",
            (receipt.execution_id,),
        )
        connection.execute(f"PRAGMA application_id = {connecting.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    with fresh_tracker(url) as tracker:
        assert tracker.history(receipt.execution_id) == [receipt]
        assert tracker.fire(receipt.execution_id, "start").position == 2
    with closing(rogue(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(list(SQL.glob("*.sql")))
        assert connection.execute("SELECT name FROM states WHERE stopping").fetchall() == [("cancelling",)]
        with pytest.raises(sqlite3.IntegrityError, match="no row of the table"):
            connection.execute(f"{STEP}, state = 'completed', event = 'complete'")
    sound(file)


def test_what_was_born_under_an_older_schema_is_paged_first(file, url):
    """Executions of a file from before births were counted come first, by their ids, and no page misses one."""
    olds = ["exec_b", "exec_a", "exec_c"]
    with fresh_tracker(url) as tracker:
        committed(tracker._registry.store, *(birth(id=one) for one in olds))
    with closing(rogue(file)) as connection:
        connection.execute("DROP TRIGGER execution_born_there")
        connection.execute("DROP TRIGGER execution_moves")
        connection.execute("DROP TRIGGER execution_moved")
        connection.execute("UPDATE executions SET born = 0")
    with fresh_tracker(url) as tracker:
        committed(tracker._registry.store, birth(id="exec_0"), birth(id="exec_d"))
        for filters in ({}, {"user_id": "ada"}, {"state": "created"}, {"state": ["created", "queued"]}):
            seen = []
            while page := tracker.find(limit=1, after=seen[-1] if seen else None, **filters):
                seen += [one.id for one in page]
            assert seen == [*sorted(olds), "exec_0", "exec_d"]


def test_a_migration_that_fails_leaves_the_file_as_it_was(file, url, monkeypatch):
    """A migration is all or nothing: when its last statement fails the file is at its old version."""
    real = connecting._scripts()
    with closing(rogue(file)) as connection:
        connection.executescript(scripts(1))
        connection.execute(f"PRAGMA application_id = {connecting.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    before = contents(file)
    monkeypatch.setattr(connecting, "_scripts", lambda: [*real, "CREATE TABLE machines (id);"])
    with pytest.raises(StoreUnavailable, match="already exists"):
        SqliteStore(url)
    assert contents(file) == before
    with closing(rogue(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    monkeypatch.undo()
    SqliteStore(url).close()


def test_a_newer_schema_is_refused_and_untouched(file, url):
    """A file of a newer library is refused with what to do, and not a byte of it is changed."""
    SqliteStore(url).close()
    with closing(rogue(file)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    before = file.read_bytes()
    with pytest.raises(StoreTooNew, match="upgrade agent-fsm") as caught:
        SqliteStore(url)
    assert (caught.value.found, caught.value.known) == (1000, len(list(SQL.glob("*.sql"))))
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", [b"x", b"hello, world\n" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_untouched(text, file, url):
    """A file of anything else is refused with what to do, and not a byte of it is changed."""
    file.write_bytes(text)
    with pytest.raises(NotAStore, match="another file"):
        SqliteStore(url)
    assert file.read_bytes() == text


def test_another_programs_database_is_refused_and_untouched(file, url):
    """Another program's database is refused, and nothing is written into it."""
    with closing(rogue(file)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = file.read_bytes()
    with pytest.raises(NotAStore, match="another program's database"):
        SqliteStore(url)
    assert file.read_bytes() == before
    with closing(rogue(file)) as connection:
        connection.execute("DROP TABLE bookmarks")
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(NotAStore, match="another program's database"):
        SqliteStore(url)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(keep, written):
    """A file that lost its end is refused when it is opened or read, with a typed error."""
    whole = written.read_bytes()
    written.write_bytes(whole[: int(len(whole) * keep)])

    def use() -> None:
        with fresh_tracker(f"sqlite:///{written}") as tracker:
            for one in tracker.find():
                tracker.history(one.id)
            tracker.create("a", user_id="u", thread_id="t")

    with pytest.raises(NotAStore, match="damaged"):
        use()


def test_a_damaged_file_is_refused(written):
    """A file with garbage in its pages is refused when it is opened or read, with a typed error."""
    whole = bytearray(written.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    written.write_bytes(whole)
    with pytest.raises(NotAStore, match="damaged"), fresh_tracker(f"sqlite:///{written}") as tracker:
        tracker.find()


def test_a_folder_is_no_store(tmp_path):
    """A folder in the place of the file is refused with what to write instead."""
    with pytest.raises(NotAStore, match="is a folder"):
        SqliteStore(f"sqlite:///{tmp_path}")


def test_a_missing_folder_is_named(tmp_path):
    """A file in a folder that does not exist is refused, and neither is made."""
    with pytest.raises(StoreUnavailable, match="does not exist; create it first"):
        SqliteStore(f"sqlite:///{tmp_path}/none/fsm.db")
    assert list(tmp_path.iterdir()) == []


def readonly(monkeypatch) -> None:
    """Let every connection be one that may only read, as for a file without write permission (root has all)."""
    real = sqlite3.connect

    def connect(where: str, **options: object) -> sqlite3.Connection:
        return real(where.partition("?")[0] + "?mode=ro", **options)

    monkeypatch.setattr(connecting.sqlite3, "connect", connect)


def test_a_file_that_may_only_be_read_says_so(written, monkeypatch):
    """On a file that may only be read, reading works and writing is a typed error that names the permissions."""
    with fresh_tracker(f"sqlite:///{written}?synchronous=NORMAL"):
        pass  # this machine, this boot: nothing is left to be written by opening
    with closing(rogue(written)) as held:
        held.execute("SELECT count(*) FROM executions").fetchone()
        readonly(monkeypatch)
        before = contents_of(held)
        with fresh_tracker(f"sqlite:///{written}") as tracker:
            assert tracker.get("open").state == "starting"
            with pytest.raises(StoreUnavailable, match="permissions") as caught:
                tracker.fire("open", "think", fence=1)
            assert caught.value.committed is False
        assert contents_of(held) == before


def contents_of(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM executions ORDER BY id").fetchall()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_without_permission_is_refused(file, url):
    """A file that may not be written is refused with what to check."""
    SqliteStore(url).close()
    file.chmod(0o400)
    with pytest.raises(StoreUnavailable, match="permissions"), fresh_tracker(url) as tracker:
        tracker.create("a", user_id="u", thread_id="t")


def test_a_full_disk_is_a_typed_error_and_nothing_is_half_written(file, url):
    """When the disk is full the batch is refused as a whole; when there is room again the same call succeeds."""
    with fresh_tracker(url) as tracker:
        made = tracker.create("a", user_id="u", thread_id="t")
        store = tracker._registry.store
        writer = store.database.pool._writer
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreUnavailable, match="disk is full") as caught:
            tracker.fire(made.id, "start", note="x" * 10_000, data=["y" * 100_000], key="k")
        assert caught.value.committed is False
        assert tracker.get(made.id).version == 0
        assert len(tracker.history(made.id)) == 1
        writer.execute(f"PRAGMA max_page_count = {pages + 1000}")
        assert tracker.fire(made.id, "start", note="x" * 10_000, data=["y" * 100_000], key="k").version == 1
    sound(file)


class Failing:
    """A connection whose COMMIT fails, after it was carried out or before."""

    def __init__(self, real: sqlite3.Connection, *, after: bool) -> None:
        self.real, self.after, self.armed = real, after, True

    def execute(self, sql: str, *rest: object) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.armed:
            self.armed = False
            if self.after:
                self.real.execute(sql)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self.real.execute(sql, *rest)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


@pytest.mark.parametrize(("after", "committed_"), [(False, False), (True, None)])
def test_a_failed_commit_says_what_is_known_of_it(after, committed_, url):
    """After a failed COMMIT the error says whether anything was written: no, or nobody can tell."""
    with fresh_tracker(url) as tracker:
        made = tracker.create("a", user_id="u", thread_id="t")
        pool = tracker._registry.store.database.pool
        pool._writer = Failing(pool._writer, after=after)
        with pytest.raises(StoreUnavailable, match="disk I/O") as caught:
            tracker.fire(made.id, "start", key="k")
        assert caught.value.committed is committed_
        receipt = tracker.fire(made.id, "start", key="k")
        assert receipt.version == 1
        assert [one.version for one in tracker.history(made.id)] == [0, 1]


@pytest.mark.parametrize(
    ("url", "path", "level"),
    [
        ("sqlite:///fsm.db", "fsm.db", "FULL"),
        ("sqlite:////var/x.db", "/var/x.db", "FULL"),
        ("sqlite:///a%20b%3f.db", "a b?.db", "FULL"),
        ("sqlite:///x.db?synchronous=normal", "x.db", "NORMAL"),
        ("sqlite:///x.db?synchronous=EXTRA", "x.db", "EXTRA"),
        ("sqlite:///ü/日.db", "ü/日.db", "FULL"),
        ("sqlite:///a#b.db", "a#b.db", "FULL"),
    ],
)
def test_a_url_names_a_file_and_a_level(url, path, level):
    """A URL is read as RFC 3986 would: three slashes beside you, four from the root, percent signs decoded."""
    assert parse_url(url) == (Path(path), level)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:", "sqlite:/x", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///x?mode=ro",
        "sqlite:///x?synchronous=OFF", "sqlite:///x?synchronous=", "sqlite:///a%00b",
    ],
)  # fmt: skip
def test_a_malformed_url_is_refused(url):
    """A URL that names no file, or an option that there is not, is refused with the right form."""
    with pytest.raises(NotAStore, match=r"sqlite:///|synchronous"):
        parse_url(url)


@pytest.mark.parametrize("name", ["a b.db", "ü.db", "a?b.db", "a#b%41.db", "a'b.db"])
def test_odd_file_names_work(name, tmp_path):
    """A file name with blanks, quotes and signs of URLs is the file that is made."""
    quoted = name.replace("%", "%25").replace("?", "%3f")
    with fresh_tracker(f"sqlite:///{tmp_path}/{quoted}") as tracker:
        tracker.create("a", user_id="u", thread_id="t")
        assert (tmp_path / name).is_file()


def test_a_store_stays_where_it_is_when_the_process_goes_elsewhere(tmp_path, monkeypatch):
    """A relative file stays the same file when the process changes its folder, for new connections too."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with fresh_tracker("sqlite:///fsm.db") as tracker:
        made = tracker.create("a", user_id="u", thread_id="t")
        monkeypatch.chdir(tmp_path / "elsewhere")
        tracker._registry.store.database.pool.discard_writer()
        tracker.fire(made.id, "start")
        assert tracker.get(made.id).version == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_that_was_moved_away_is_an_error_and_not_a_new_file(file, url):
    """A new connection to a file that is gone is an error; no empty file takes its place."""
    with fresh_tracker(url) as tracker:
        made = tracker.create("a", user_id="u", thread_id="t")
        pool = tracker._registry.store.database.pool
        pool.before_fork(held := [])  # closes every connection
        for lock in held:
            lock.release()
        shutil.move(file, file.with_name("away.db"))
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            tracker.fire(made.id, "start")
        assert not file.exists()


@pytest.mark.parametrize(
    ("option", "level"), [("", 2), ("?synchronous=NORMAL", 1), ("?synchronous=EXTRA", 3)]
)
def test_durability_is_what_the_url_says(option, level, url):
    """Every connection that writes has the level of the URL, FULL without a word, over a write-ahead log."""
    with closing(SqliteStore(url + option)) as store, store.database.pool.writing:
        for _ in range(2):
            writer = store.database.pool.writer()
            assert writer.execute("PRAGMA synchronous").fetchone() == (level,)
            assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            store.database.pool.discard_writer()
