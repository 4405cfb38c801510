"""Ids: what is made is a TypeID of a UUIDv7, unique and ascending whatever the clock does; what is not is refused."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm import MalformedId, ids
from fsm.ids import KINDS, IdMaker, Kind
from tests.support.hostile_tools import held

kinds = st.sampled_from(KINDS)
# Newer Pythons warn of what is proved harmless here: a fork while other threads run.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PYTHON = "0123456789ABCDEFGHIJKLMNOPQRSTUV"


def decode(digits: str) -> uuid.UUID:
    """Decode the 26 characters of a TypeID in another way than the library: as a number of base 32 by `int`."""
    return uuid.UUID(int=int(digits.upper().translate(str.maketrans(CROCKFORD, PYTHON)), 32))


def encode(number: int) -> str:
    """Write 130 bits as the 26 characters of a TypeID, over their binary digits."""
    bits = f"{number:0130b}"
    return "".join(CROCKFORD[int(bits[at : at + 5], 2)].lower() for at in range(0, 130, 5))


# --- the format ----------------------------------------------------------------------------------------------


def test_the_other_way_of_decoding_knows_the_published_examples() -> None:
    """The decoder that judges the library agrees with published TypeIDs, the least and the largest included."""
    assert decode("01h455vb4pex5vsknk084sn02q") == uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert decode("00000000000000000000000000") == uuid.UUID(int=0)
    assert decode("7zzzzzzzzzzzzzzzzzzzzzzzzz") == uuid.UUID(int=2**128 - 1)
    assert encode(uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057").int) == "01h455vb4pex5vsknk084sn02q"


def test_a_published_typeid_is_read() -> None:
    """The digits of the TypeID specification's example for UUIDv7 give the UUID that stands beside it."""
    parsed = ids.parse("exec_01h455vb4pex5vsknk084sn02q")
    assert parsed.kind == "exec"
    assert parsed.uuid == uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert parsed.made_at == 0x01890A5DAC96 / 1000


def test_the_example_of_the_uuid_standard_is_read() -> None:
    """The UUIDv7 example of RFC 9562 comes back with its instant, 2022-02-22 19:22:22 UTC."""
    example = uuid.UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
    parsed = ids.parse(f"exec_{encode(example.int)}")
    assert parsed.uuid == example
    assert parsed.made_at == 1645557742.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_is_a_typeid_of_a_uuid_of_version_7(kind: Kind) -> None:
    """What is made has the version, the variant and the instant of a UUIDv7, decoded in another way."""
    now_ns = 1_700_000_000_123_456_789
    text = IdMaker(now_ns=lambda: now_ns).make(kind)
    prefix, _, digits = text.rpartition("_")
    number = decode(digits)
    assert prefix == kind
    assert len(digits) == 26
    assert number.version == 7
    assert number.variant == uuid.RFC_4122
    assert number.int >> 80 == 1_700_000_000_123
    assert number.int >> 64 & 0xFFF == 456_789 * 4096 // 1_000_000, "the fraction of the millisecond"
    assert ids.parse(text) == (kind, number, 1_700_000_000.123)


@given(kinds, st.integers(0, 2**47), st.binary(min_size=8, max_size=8))
def test_what_is_made_is_read_back(kind: Kind, millis: int, entropy: bytes) -> None:
    """For any time and any entropy the id reads back as what it was made of."""
    text = IdMaker(now_ns=lambda: millis * 1_000_000, entropy=lambda _: entropy).make(kind)
    parsed = ids.parse(text, kind)
    assert parsed.kind == kind
    assert parsed.made_at == max(millis, parsed.uuid.int >> 80) / 1000
    assert parsed.uuid == decode(text.rpartition("_")[2])
    assert parsed.uuid.int & (2**62 - 1) == int.from_bytes(entropy, "big") >> 2
    assert encode(parsed.uuid.int) == text.rpartition("_")[2]
    assert ids.is_id(text)


def test_ids_are_safe_in_urls_and_files() -> None:
    """An id holds nothing but lower-case letters, digits and one underscore."""
    for kind in KINDS:
        text = ids.make(kind)
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
        assert text.count("_") == 1


def test_kinds_have_their_own_makers() -> None:
    """An execution's and a worker's id say what they are of."""
    assert ids.parse(ids.execution_id(), "exec")
    assert ids.parse(ids.worker_id(), "worker")
    with pytest.raises(MalformedId, match="exec, worker, breaker, call only"):
        ids.make("agent")  # type: ignore[arg-type]


# --- what is refused -----------------------------------------------------------------------------------------

GOOD = "exec_01h455vb4pex5vsknk084sn02q"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (None, "an id is text, not NoneType"),
        (5, "an id is text, not int"),
        (GOOD.encode(), "an id is text, not bytes"),
        ("", "there is no underscore"),
        ("01h455vb4pex5vsknk084sn02q", "there is no underscore"),
        ("agent_01h455vb4pex5vsknk084sn02q", "'agent' is no kind of id"),
        ("_01h455vb4pex5vsknk084sn02q", "'' is no kind of id"),
        ("EXEC_01h455vb4pex5vsknk084sn02q", "'EXEC' is no kind of id"),
        (" exec_01h455vb4pex5vsknk084sn02q", "' exec' is no kind of id"),
        ("exec__01h455vb4pex5vsknk084sn02q", "'exec_' is no kind of id"),
        ("exec_", "26 characters follow the underscore, not 0"),
        (GOOD[:-1], "26 characters follow the underscore, not 25"),
        (GOOD + "0", "26 characters follow the underscore, not 27"),
        (GOOD + "\n", "26 characters follow the underscore, not 27"),
        (GOOD[:-1] + "\n", "'\\n' is no digit of an id"),
        (GOOD[:-1] + "i", "'i' is no digit of an id"),
        (GOOD[:-1] + "l", "'l' is no digit of an id"),
        (GOOD[:-1] + "o", "'o' is no digit of an id"),
        (GOOD[:-1] + "u", "'u' is no digit of an id"),
        (GOOD[:-1] + "Q", "'Q' is no digit of an id"),
        (GOOD[:-1] + "٣", "'٣' is no digit of an id"),
        (GOOD[:-1] + "-", "'-' is no digit of an id"),
        ("exec_8zzzzzzzzzzzzzzzzzzzzzzzzz", "the first digit is 7 at most"),
        ("exec_00000000000000000000000000", "no UUID of version 7"),
        ("exec_7zzzzzzzzzzzzzzzzzzzzzzzzz", "no UUID of version 7"),
        (f"exec_{encode(uuid.UUID('919108f7-52d1-4320-9bac-f847db4148a8').int)}", "no UUID of version 7"),
        (f"exec_{encode(uuid.UUID('01890a5d-ac96-774b-ccce-b302099a8057').int)}", "no UUID of version 7"),
    ],
)
def test_a_malformed_id_is_refused_with_the_reason(bad: object, why: str) -> None:
    """What is no id is refused, and the error says what is wrong with it."""
    with pytest.raises(MalformedId) as caught:
        ids.parse(bad)
    assert why in caught.value.reason
    assert why in str(caught.value)
    assert caught.value.text == bad
    assert isinstance(caught.value, ValueError)
    assert not ids.is_id(bad)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_id_of_another_kind_is_refused() -> None:
    """A worker's id is no execution's."""
    text = ids.worker_id()
    assert ids.is_id(text)
    assert not ids.is_id(text, "exec")
    with pytest.raises(MalformedId, match="an id of kind 'worker', not of kind 'exec'"):
        ids.parse(text, "exec")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text at all brings the parser down with another error."""
    assert ids.is_id(text) is False


@given(st.text(alphabet="0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26))
def test_digits_are_read_exactly_if_they_are_a_uuid_of_version_7(digits: str) -> None:
    """Whether 26 digits are an id agrees with Python's own view of the same number."""
    number = int(digits.upper().translate(str.maketrans(CROCKFORD, PYTHON)), 32)
    real = number < 2**128 and uuid.UUID(int=number).version == 7
    assert ids.is_id(f"exec_{digits}") is bool(real)


# --- ascending -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param([5_000_000_000] * 10_000, id="stands still"),
        pytest.param([5_000_000_000 - n * 1_000_000_000 for n in range(5)] * 2_000, id="goes back"),
        pytest.param([5_000_000_000 + n for n in range(10_000)], id="crawls by nanoseconds"),
        pytest.param([5_000_000_000, 9_000_000_000, 1_000_000_000] * 3_000, id="jumps"),
    ],
)
def test_ids_of_one_process_ascend_whatever_the_clock_does(clock: list[int]) -> None:
    """Each id sorts after the one before it, although the clock stands still, crawls, jumps or goes back."""
    ticks = iter(clock)
    for entropy in (os.urandom, lambda count: b"\xff" * count, lambda count: b"\0" * count):
        ticks = iter(clock)
        maker = IdMaker(now_ns=lambda ticks=ticks: next(ticks), entropy=entropy)
        made = [maker.make("exec") for _ in clock]
        assert all(before < after for before, after in pairwise(made))
        assert all(ids.is_id(text) for text in (made[0], made[-1]))


def test_an_id_after_a_jump_back_keeps_its_place_until_time_catches_up() -> None:
    """When the clock has caught up after a jump back, ids say the true time again."""
    now = [10_000_000_000]
    maker = IdMaker(now_ns=lambda: now[0])
    maker.make("exec")
    now[0] = 5_000_000_000
    assert ids.parse(maker.make("exec")).made_at == 10.0
    now[0] = 11_000_000_000
    assert ids.parse(maker.make("exec")).made_at == 11.0


def test_ids_sort_by_the_time_at_which_they_were_made() -> None:
    """Ids of different makers sort as their instants do."""
    instants = [1, 1_000_000, 250_000_000, 1_700_000_000_000_000_000, 1_800_000_000_000_000_000]
    made = [IdMaker(now_ns=lambda at=at: at).make("exec") for at in instants]
    assert made == sorted(made)


# --- unique --------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[], list[str]]) -> list[list[str]]:
    """Run `work` in threads that begin together."""
    barrier = threading.Barrier(count)
    out: list[list[str]] = []

    def run() -> None:
        barrier.wait()
        out.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_ids_of_many_threads_are_unique_and_ascend_in_each() -> None:
    """Eight threads that make ids at once never get the same one twice, and each sees its own ascend."""
    maker = IdMaker(entropy=lambda count: b"\0" * count)  # only the order tells them apart
    batches = in_threads(8, lambda: [maker.make("exec") for _ in range(2_000)])
    made = [text for batch in batches for text in batch]
    assert len(made) == len(set(made)) == 16_000
    for batch in batches:
        assert batch == sorted(batch)


def test_ids_of_several_processes_are_unique() -> None:
    """Processes that start together make different ids."""
    code = "from fsm import ids\nfor _ in range(2000): print(ids.execution_id())"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    made = [text for process in running for text in process.communicate()[0].split()]
    assert all(process.returncode == 0 for process in running)
    assert len(made) == len(set(made)) == 6_000


def forked(make: Callable[[], str], count: int) -> tuple[int, int]:
    """Fork a child that writes ids to a pipe; return its process id and the reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child must never come back into the test, nor hang behind it
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                pipe.write("\n".join(make() for _ in range(count)))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return pid, reading


def collect(children: list[tuple[int, int]]) -> list[str]:
    made: list[str] = []
    for pid, reading in children:
        with os.fdopen(reading) as pipe:
            made += pipe.read().split()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return made


def test_ids_of_forks_are_unique_while_threads_of_the_parent_make_ids() -> None:
    """Children that are forked while parent threads hold the maker neither hang nor repeat an id of anybody."""
    stop = threading.Event()
    batches: list[list[str]] = []

    def work() -> None:
        batch: list[str] = []
        batches.append(batch)
        while not stop.is_set() and len(batch) < 200_000:
            batch.append(ids.execution_id())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        children = [forked(ids.execution_id, 500) for _ in range(8)]
        of_children = collect(children)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    made = [text for batch in batches for text in batch] + of_children
    assert len(of_children) == 4_000
    assert len(made) == len(set(made))
    assert all(ids.is_id(text, "exec") for text in of_children[::97])


def test_a_fork_does_not_inherit_a_held_lock() -> None:
    """A child that is forked while another thread is in the middle of making an id can still make its own."""
    maker = IdMaker()
    with held(maker._lock):
        child = forked(lambda: maker.make("exec"), 1)
        (made,) = collect([child])
    assert ids.is_id(made)


def test_a_fork_differs_from_its_parent_even_if_time_stands_still() -> None:
    """Parent and children that make ids at the very same instant are told apart by fresh entropy."""
    maker = IdMaker(now_ns=lambda: 1_700_000_000_000_000_000)
    children = [forked(lambda: maker.make("exec"), 200) for _ in range(4)]
    made = collect(children) + [maker.make("exec") for _ in range(200)]
    assert len(made) == len(set(made)) == 1_000
    assert len({ids.parse(text).uuid.int >> 64 for text in made}) == 200, "the instants alone do not differ"
