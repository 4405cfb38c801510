"""A store is one file under one name: what is committed elsewhere is never acknowledged, and never read."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fsm import ids
from fsm.concurrency.locks import Lock
from fsm.core.journal import record_of
from fsm.errors import BadPayload, ConfigurationError, NotAStore, StoreUnavailable
from fsm.stores import MachineRecord, Order, Query, WorkerRow, open_store
from fsm.stores.base import Store
from fsm.stores.breakers import BreakerEntry, BreakerRow, BreakerStore
from fsm.stores.sqlite import identity
from fsm.testing.conformance.steps import OTHER, birth, move
from fsm.tracker.process import fresh_tracker
from fsm.tracker.tracker import Tracker
from tests.support.sqlite_tools import rogue

MINE = {"user_id": "ada", "thread_id": "t"}


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def tracker(url: str):
    with fresh_tracker(url) as fresh:
        one = fresh.create("a", **MINE)
        fresh.fire(one.id, "start")
        fresh.one = one.id
        yield fresh


def backup(file: Path) -> Path:
    copy = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def aside(file: Path) -> Path:
    """Move a file with its -wal and -shm to another folder, as an administrator would."""
    away = file.parent / "away"
    away.mkdir()
    for name in file.parent.glob(f"{file.name}*"):
        name.rename(away / name.name)
    return away


def delete(file: Path) -> None:
    for name in file.parent.glob(f"{file.name}*"):
        name.unlink()


def replace_by_backup(file: Path) -> None:
    copy = backup(file)
    delete(file)
    copy.rename(file)


def replace_by_another(file: Path) -> None:
    other = file.with_name("other.db")
    with fresh_tracker(f"sqlite:///{other}") as fresh:
        fresh.create("b", **MINE)
    other.replace(file)


def rename_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name(f"{file.parent.name}_renamed"))


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": delete,
    "deleted alone": lambda file: file.unlink(),
    "replaced by a backup": replace_by_backup,
    "replaced by another store": replace_by_another,
    "moved aside": aside,
    "a renamed folder": rename_folder,
    "replaced by a folder": replace_by_folder,
    "given a second name": lambda file: os.link(file, file.with_name("second.db")),
}


def in_a_thread(call: Callable[[], object]) -> object:
    """Return what a call in another thread comes to, while this one holds the idle connection."""
    out: list[object] = []

    def run() -> None:
        try:
            out.append(call())
        except StoreUnavailable as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return out[0]


@pytest.mark.parametrize("what", DAMAGES)
def test_no_receipt_is_acknowledged_into_a_file_that_is_gone(what, tracker, file):
    """Once the file is gone, replaced or named twice, no write is acknowledged and no read answered."""
    DAMAGES[what](file)
    with pytest.raises(StoreUnavailable) as first:
        tracker.fire(tracker.one, "progress", fence=1)
    assert first.value.committed is not True
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"restart|rename|deleted|Delete|names") as later:
            tracker.fire(tracker.one, "progress", fence=1)
        assert later.value.committed is False
        with pytest.raises(StoreUnavailable):
            tracker.get(tracker.one)
        with pytest.raises(StoreUnavailable):
            tracker.find()


@pytest.mark.parametrize("what", DAMAGES)
def test_two_readers_of_one_process_do_not_disagree(what, tracker, file):
    """A read on a connection that was there before, and one on a new connection, are both refused at once."""
    pool = tracker._registry.store.database.pool

    def damaged(connection: sqlite3.Connection) -> object:
        DAMAGES[what](file)
        return in_a_thread(lambda: tracker.get(tracker.one))

    assert isinstance(pool.read(damaged), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        tracker.get(tracker.one)


CALLS: dict[str, Callable[[Store], object]] = {
    "register": lambda store: store.register(record_of(OTHER)._replace(content_hash="x")),
    "machines": lambda store: store.machines(),
    "load": lambda store: store.load("x"),
    "append": lambda store: store.append([birth()]),
    "keyed": lambda store: store.keyed("x", "k"),
    "history": lambda store: store.history("x"),
    "journal": lambda store: store.journal(0, 9),
    "position": lambda store: store.position(),
    "find": lambda store: store.find(Query()),
    "counts": lambda store: store.counts(),
    "orders": lambda store: store.orders("", 9),
    "carried": lambda store: store.carried(Order("x", 1, "fail")),
    "timeline": lambda store: store.timeline("another"),
    "due": lambda store: store.due(5.0, 9),
    "next_due": lambda store: store.next_due(),
    "worker_add": lambda store: store.worker_add(WorkerRow(ids.MAKER.make("worker"), "w", 1.0, 1.0, 1.0, False)),
    "worker_renew": lambda store: store.worker_renew("w", lambda: 5.0),
    "worker_remove": lambda store: store.worker_remove("w"),
    "workers": lambda store: store.workers(),
    "lose": lambda store: store.lose(5.0),
    "owned": lambda store: store.owned("w", 9),
    "ended": lambda store: store.ended(5.0, 9),
    "ended_count": lambda store: store.ended_count(),
    "forget": lambda store: store.forget(["x"]),
    "damaged": lambda store: store.damaged(),
    "inspect": lambda store: store.inspect(),
    "breaker_load": lambda store: store.breaker_load("x"),
    "breaker_swap": lambda store: store.breaker_swap(
        OTHER.content_hash, 0, BreakerRow("x", "shut", 1, 2),
        BreakerEntry(0, "x", 1, "shut", "open", "shut", 2, 1.0, None, None),
    ),
    "breaker_list": lambda store: store.breaker_list(),
    "breaker_changes": lambda store: store.breaker_changes(0, 9),
    "breaker_position": lambda store: store.breaker_position(),
}  # fmt: skip


def test_every_call_is_one_of_those_that_are_tested():
    """The list of calls below is the whole protocol, so that a new method cannot be forgotten."""
    # What another person's part adds has a test of its own there; what is listed here must exist.
    protocol = {name for kind in (Store, BreakerStore) for name in vars(kind) if not name.startswith("_")}
    assert CALLS.keys() <= protocol
    assert {"url", "instant", "close"} <= protocol


@pytest.mark.parametrize("what", CALLS)
def test_every_call_of_a_store_whose_file_is_gone_is_refused(what, tracker, file):
    """Whichever method of the store is called, it says that the file is gone, the first time and later."""
    store = tracker._registry.store
    store.register(record_of(OTHER))
    away = aside(file)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="is gone"):
            CALLS[what](store)
    for name in away.iterdir():
        name.rename(file.parent / name.name)
    assert tracker.get(tracker.one).version == 1
    CALLS[what](store)


def test_a_file_that_is_put_back_is_used_again(tracker, file):
    """When the file is back under its name everything goes on, and what was acknowledged is there."""
    folder = file.parent
    renamed = folder.with_name(f"{folder.name}_renamed")
    folder.rename(renamed)
    with pytest.raises(StoreUnavailable):
        tracker.fire(tracker.one, "progress", fence=1, key="k")
    with pytest.raises(StoreUnavailable, match="move the file back"):
        tracker.get(tracker.one)
    renamed.rename(folder)
    receipt = tracker.fire(
        tracker.one, "progress", fence=1, key="k"
    )  # written once, whether or not the first try was
    assert [one.version for one in tracker.history(tracker.one)] == list(range(receipt.version + 1))
    assert tracker.get(tracker.one).version == receipt.version == 2


def test_a_second_name_that_is_taken_away_again_is_forgiven(tracker, file):
    """While there is a hard link nothing is committed; without it everything goes on."""
    second = file.with_name("second.db")
    os.link(file, second)
    with pytest.raises(StoreUnavailable, match=r"2 names .*hard links"):
        tracker.get(tracker.one)
    for name in (file, second):
        with pytest.raises(StoreUnavailable, match="hard links"):
            open_store(f"sqlite:///{name}")
    second.unlink()
    assert tracker.fire(tracker.one, "progress", fence=1).version == 2


def test_a_backup_is_a_store_for_a_new_process(tracker, file, url):
    """A backup in the place of the file is refused by who had the old one open, and opened by who begins."""
    replace_by_backup(file)
    with pytest.raises(StoreUnavailable, match="another file"):
        tracker.get(tracker.one)
    with fresh_tracker(url) as later:
        assert later.fire(tracker.one, "progress", fence=1).version == 2
    with pytest.raises(StoreUnavailable, match="another file"):
        tracker.get(tracker.one)


def test_a_new_connection_knows_the_store_by_its_id(tracker, file):
    """When every connection was closed, the store id and the inode tell whether the file is still the same."""
    store = tracker._registry.store
    locks: list[Lock] = []
    store.database.pool.before_fork(locks)  # closes them all
    for lock in locks:
        lock.release()
    with closing(rogue(file)) as connection:
        connection.execute("DROP TRIGGER store_stays")
        connection.execute("UPDATE store SET token = 'another'")
    with pytest.raises(StoreUnavailable, match="another store"):
        tracker.get(tracker.one)
    with pytest.raises(StoreUnavailable, match="another store"):
        tracker.fire(tracker.one, "progress", fence=1)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_that_is_deleted_is_noticed(suffix, tracker, file, url, monkeypatch):
    """Without its -wal or -shm a process acknowledges nothing more; what it did acknowledge is there after its end."""
    monkeypatch.setattr(identity, "BESIDE_S", 0.0)
    tracker._registry.store.database.file._look_at = 0.0
    tracker.fire(tracker.one, "progress", fence=1)  # looks from now on each time
    file.with_name(file.name + suffix).unlink()
    with pytest.raises(StoreUnavailable, match=f"{suffix} was deleted") as caught:
        tracker.fire(tracker.one, "progress", fence=1)
    assert caught.value.committed is None
    with pytest.raises(StoreUnavailable, match=f"{suffix} was deleted") as caught:
        tracker.fire(tracker.one, "progress", fence=1)
    assert caught.value.committed is False
    with pytest.raises(StoreUnavailable, match=f"{suffix} was deleted"):
        tracker.get(tracker.one)
    tracker.close()
    with fresh_tracker(url) as later:
        assert later.get(tracker.one).version == 3


def test_a_log_is_looked_at_every_few_milliseconds(tracker, monkeypatch):
    """A commit looks at the -wal and -shm unless that was done less than `BESIDE_S` ago, and always at the file."""
    now = [5.0]
    monkeypatch.setattr(identity.time, "monotonic", lambda: now[0])
    looked = []
    look = identity.file_id
    monkeypatch.setattr(identity, "file_id", lambda name: looked.append(name) or look(name))
    store = tracker._registry.store
    store.database.file._look_at = 0.0
    for seconds, expected in ((0.0, 2), (0.0, 0), (identity.BESIDE_S / 2, 0), (identity.BESIDE_S, 2)):
        now[0] += seconds
        looked.clear()
        store.append([birth()])
        assert len(looked) == expected, seconds


def test_a_journal_that_is_shorter_than_it_was_is_refused(tracker):
    """A file whose journal has lost rows that this process has seen (bytes copied over it) is refused for good."""
    store = tracker._registry.store
    store.database.file._position += 10
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="backup was written over"):
            tracker.fire(tracker.one, "progress", fence=1)
        with pytest.raises(StoreUnavailable, match="backup was written over"):
            tracker.get(tracker.one)


def test_a_batch_that_failed_leaves_no_position_behind(tracker, monkeypatch):
    """A transaction that is rolled back does not count as seen: the next commit is at its positions."""
    store = tracker._registry.store
    outcome = store.append([move(birth().after, "start")._replace(event="x")._replace(
        after=store.load(tracker.one)._replace(version=2))])[0]  # fmt: skip
    assert (outcome.why, "no row of the table" in outcome.who) == ("law", True)
    assert store.position() == 2
    assert tracker.fire(tracker.one, "progress", fence=1).position == 3


def test_a_symbolic_link_is_the_file_that_it_leads_to(tracker, file, tmp_path):
    """A symbolic link is a fine name, since SQLite follows it; one that leads elsewhere afterwards is noticed."""
    link = tmp_path / "link.db"
    link.symlink_to(file)
    (tmp_path / "folder").symlink_to(file.parent, target_is_directory=True)
    for name in (link, tmp_path / "folder" / file.name):
        with fresh_tracker(f"sqlite:///{name}") as other:
            version = other.fire(tracker.one, "progress", fence=other.get(tracker.one).fence).version
            assert tracker.fire(tracker.one, "progress", fence=1).version == version + 1
    with fresh_tracker(f"sqlite:///{link}") as other:
        link.unlink()
        link.symlink_to(backup(file))
        with pytest.raises(StoreUnavailable, match="another file"):
            other.get(tracker.one)


def test_a_file_that_is_mounted_by_itself_is_refused(file, url, monkeypatch, tmp_path):
    """A single file that is a mount point has another name somewhere; its folder is to be mounted instead."""
    file = file.with_name("my fsm.db")
    mounts = tmp_path / "mountinfo"
    name = str(file).replace(" ", "\\040")
    line = "36 35 98:0 /mnt1 {} rw,noatime shared:1 - ext3 /dev/root rw\n"
    mounts.write_text(line.format("/") + line.format(name))
    monkeypatch.setattr(identity, "MOUNTS", str(mounts))
    file.touch()
    with pytest.raises(NotAStore, match="Mount the folder"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes() == b""
    mounts.write_text(line.format("/") + line.format(file.parent) + "odd\n")
    open_store(f"sqlite:///{file}").close()
    monkeypatch.setattr(identity, "MOUNTS", str(tmp_path / "none"))
    open_store(f"sqlite:///{file}").close()


@pytest.mark.skipif(os.geteuid() != 0 or not Path(identity.MOUNTS).exists(), reason="only root mounts")
def test_a_mounted_file_is_found_where_the_system_tells(tracker, file, tmp_path):
    """As docker does with one file: the second name is refused, and the first one goes on."""
    second = tmp_path / "container" / "fsm.db"
    second.parent.mkdir()
    second.touch()
    try:
        mounted = subprocess.run(
            ["mount", "--bind", str(file), str(second)], capture_output=True, check=False
        )
    except OSError:
        pytest.skip("no mount here")
    if mounted.returncode:
        pytest.skip("mounts are not allowed here")
    try:
        with pytest.raises(NotAStore, match="Mount the folder"):
            open_store(f"sqlite:///{second}")
        assert tracker.fire(tracker.one, "progress", fence=1).version == 2
    finally:
        subprocess.run(["umount", str(second)], check=True)


def forked(tracker: Tracker, call: Callable[[], object]) -> str:
    """Return what a forked child says."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(call())
        except BaseException as error:  # noqa: BLE001 - the parent shall hear of it
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode()[:1000])
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_forked_child_keeps_to_the_file_of_its_parent(tracker, file):
    """A child opens its own connections, and is refused what its parent would be refused."""
    assert forked(tracker, lambda: tracker.get(tracker.one).version) == "1"
    replace_by_backup(file)
    assert "another file" in forked(tracker, lambda: tracker.get(tracker.one).version)
    assert "another file" in forked(tracker, lambda: tracker.fire(tracker.one, "progress", fence=1))


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("sqlite:///" + "x" * 300, StoreUnavailable),
        ("sqlite:///" + "x/" * 3000 + "y", StoreUnavailable),
        ("sqlite:///a\0b", NotAStore),
        ("sqlite:///\ud800.db", NotAStore),
        ("sqlite:////dev/null", NotAStore),
        ("sqlite:////dev/null/x.db", StoreUnavailable),
        ("sqlite:////proc/self/mem", StoreUnavailable),
        ("\ud800", NotAStore),
        ("", NotAStore),
        (5, NotAStore),
        (["x"], NotAStore),
        (None, NotAStore),
        (b"sqlite:///x", NotAStore),
    ],
)
def test_a_name_that_is_none_is_refused(name, error, tmp_path, monkeypatch):
    """Whatever is given in the place of a URL is refused with a typed error, and no file is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        open_store(name)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_bytes_that_are_no_text_is_that_file(tmp_path):
    """A file whose name is no UTF-8 is named with percent signs, byte by byte."""
    open_store(f"sqlite:///{tmp_path}/%ff.db").close()
    assert os.fsencode(str(tmp_path)) + b"/\xff.db" in [os.fsencode(path) for path in tmp_path.iterdir()]


@pytest.mark.parametrize("store", [["x"], 5, object()])
def test_what_is_no_store_is_refused(store):
    """`configure` takes a URL or an open store, and says so to everything else."""
    with pytest.raises(ConfigurationError, match="URL"), fresh_tracker(store):
        pass


@pytest.mark.parametrize("value", [{}, [], 2**63, -(2**64), object()])
def test_a_question_of_a_wrong_type_is_the_callers_mistake(value, tracker):
    """A value that no column holds is refused as such, and not as a store that does not answer."""
    store = tracker._registry.store
    for call in (
        lambda: store.load(value),
        lambda: store.journal(0, 10, None, value),
        lambda: store.find(Query(user_id=value)),
        lambda: store.counts(value),
    ):
        with pytest.raises(BadPayload):
            call()
    with pytest.raises(BadPayload):
        store.journal(0, "ten")


def test_any_number_of_states_can_be_asked_for(tracker):
    """A query for more states than SQLite joins queries answers all the same."""
    many = frozenset(f"s{number}" for number in range(1000)) | {"starting"}
    store = tracker._registry.store
    assert [one.identity.id for one in store.find(Query(states=many))] == [tracker.one]
    assert [one.identity.id for one in store.find(Query(states=many, user_id="ada"))] == [tracker.one]
    assert store.find(Query(states=many - {"starting"})) == []


def test_a_machine_record_is_kept_as_it_is(tracker):
    """Documents and rows of a machine come back from the file as they were registered."""
    store = tracker._registry.store
    record = MachineRecord(
        "h", "n", "{}", (("a", False, False), ("b", True, False)), ((None, "create", "a"),)
    )
    store.register(record)
    assert store.machines()["h"] == "{}"
