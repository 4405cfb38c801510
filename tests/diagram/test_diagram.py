"""The drawings: no row is lost, equal machines give equal bytes, and what is pointed out is true."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings

from fsm.diagram import (
    NotInMachine,
    RenderError,
    Visit,
    path_of,
    render,
    render_png,
    render_svg,
    to_dot,
    to_mermaid,
)
from fsm.diagram.committed import check, committed, write
from fsm.diagram.path import duration
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.grammar import row
from fsm.machine.machine import Machine
from tests.support.drawn import arrows_of, from_dot, from_mermaid, machines, made
from tests.support.places import ROOT

SHIPPED = pytest.mark.parametrize("machine", [EXECUTION, BREAKER], ids=lambda machine: machine.name)
STEPS = [
    (None, "create", "created", 10.0),
    ("created", "start", "starting", 10.5),
    ("starting", "call_model", "calling_model", 11.0),
    ("calling_model", "open_tool", "calling_model", 11.5),
    ("calling_model", "run_tools", "running_tools", 13.0),
    ("running_tools", "call_model", "calling_model", 13.25),
    ("calling_model", "fail", "failed", 14.0),
]


def line_of(text, start):
    """Return the one line of a text that starts so, blanks aside."""
    (found,) = [line.strip() for line in text.splitlines() if line.strip().startswith(start)]
    return found


# --- nothing is lost ---------------------------------------------------------------------------------------------


@SHIPPED
def test_shipped_drawings_say_the_whole_table(machine):
    """Read back from its drawings, a machine has the arrows of its table: none is lost, none is made up."""
    assert from_dot(machine, to_dot(machine)) == arrows_of(machine)
    assert from_mermaid(machine, to_mermaid(machine)) == arrows_of(machine)


@given(machine=machines())
@settings(max_examples=150, deadline=None)
def test_any_machine_is_drawn_whole(machine):
    """Any machine's drawings have the arrows of its table, whatever its rows look like."""
    assert from_dot(machine, to_dot(machine)) == arrows_of(machine)
    assert from_mermaid(machine, to_mermaid(machine)) == arrows_of(machine)


@given(machine=machines())
@settings(max_examples=50, deadline=None)
def test_single_arrows_lose_nothing(machine):
    """Pulling any single arrow out of its row's bundle, to mark it, leaves the drawing whole."""
    for arrow in machine.arrows[:: max(1, len(machine.arrows) // 5)]:
        text = to_dot(machine, missing={(arrow.source, arrow.event, arrow.target)})
        assert from_dot(machine, text) == arrows_of(machine)


@SHIPPED
def test_every_row_is_readable_in_the_picture(machine):
    """Every row's event and guard stand in the texts of the picture itself, not only in its source."""
    picture = ET.fromstring(render_svg(to_dot(machine)))
    groups = [
        " ".join("".join(text.itertext()) for text in group.iter("{http://www.w3.org/2000/svg}text"))
        for group in picture.iter("{http://www.w3.org/2000/svg}g")
        if group.get("class") == "node"
    ]
    for one in machine.transitions:
        wanted = f"{one.event} [{one.guard}]" if one.guard else one.event
        assert any(re.search(rf"(^| ){re.escape(wanted)}( |$)", group) for group in groups), str(one)


def test_category_rows_are_drawn_once():
    """A row from a category is one arrow, not one for each of its states, so the drawing stays readable."""
    text = to_dot(EXECUTION)
    assert len(EXECUTION.arrows) == 192
    heads = re.findall(r'^  "[^"]+" -> "[^"]+"(?! \[arrow(?:head|tail)=none)', text, re.MULTILINE)
    assert len(heads) < 60
    assert text.count(">time_out (system)<") == 2  # the row from the categories, and the one from cancelling
    assert text.count(">progress [owned]<") == 1


# --- bytes -------------------------------------------------------------------------------------------------------


@SHIPPED
def test_equal_machines_give_equal_bytes(machine):
    """A machine that was written as JSON and read back is drawn the same, byte for byte."""
    again = Machine.from_json(machine.to_json())
    assert committed(again) == committed(machine)
    assert render_png(to_dot(again)) == render_png(to_dot(machine))


def test_bytes_do_not_hang_on_the_process():
    """Processes whose sets have different orders draw the same bytes: nothing is drawn in the order of a set."""
    script = (
        "import sys; from fsm.diagram import *; from fsm.lifecycles import *; "
        "path = path_of([(None, 'create', 'closed', 0.0), ('closed', 'trip', 'open', 1.0)]); "
        "sys.stdout.write(to_dot(EXECUTION, missing={1, 30, ('created', 'fail', 'failed')}) "
        "+ to_mermaid(EXECUTION, missing={1, 30}) + to_dot(BREAKER, path=path))"
    )
    made_by = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(made_by) == 1


def test_committed_drawings_are_the_tables():
    """The drawings in the repository are what the tables say now."""
    assert check(ROOT / "diagrams", [EXECUTION, BREAKER]) == []


def test_check_finds_a_changed_byte_and_a_missing_file(tmp_path):
    """A file with one byte changed and a file that is gone are both named, and no other."""
    assert write(tmp_path, BREAKER) == ["breaker.dot", "breaker.mmd", "breaker.svg"]
    assert check(tmp_path, [BREAKER]) == []
    content = bytearray((tmp_path / "breaker.svg").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "breaker.svg").write_bytes(content)
    (tmp_path / "breaker.mmd").unlink()
    assert check(tmp_path, [BREAKER]) == ["breaker.mmd", "breaker.svg"]


# --- texts and names ---------------------------------------------------------------------------------------------


def test_odd_texts_are_escaped():
    """A doc with markup, quotes, backslashes, entities and control characters reads in the picture as written."""
    doc = 'a <b> & "c" \\N &lt; ü\x07\n\ufffe'
    machine = made([("new", "pending")], doc=doc)
    picture = ET.fromstring(render_svg(to_dot(machine)))
    texts = "".join(picture.itertext())
    assert 'a <b> & "c" \\N &lt; ü' in texts
    assert "\x07" not in texts
    titles = [link.get("{http://www.w3.org/1999/xlink}title") for link in picture.iter()]
    assert any(title and 'a <b> & "c" \\N &lt; ü' in title for title in titles)


WORDS = (
    "end state note graph node edge digraph subgraph strict class default direction as fork choice".split()
)


def test_words_of_the_drawing_languages_are_names_like_any_other():
    """States called like words of DOT and Mermaid are drawn as states."""
    machine = made([("new", "pending"), *((word, "running") for word in WORDS)])
    dot, mermaid = to_dot(machine), to_mermaid(machine)
    assert from_dot(machine, dot) == arrows_of(machine)
    assert from_mermaid(machine, mermaid) == arrows_of(machine)
    picture = ET.fromstring(render_svg(dot))
    titles = {title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")}
    assert titles >= {"new", "done", *WORDS}
    for word in WORDS:
        assert not re.search(rf"(^| ){word}( -->|$)", mermaid, re.MULTILINE)


def test_long_chains_lie_on_their_side():
    """A machine that is one long line is drawn from left to right, a branching one from top to bottom."""
    assert "rankdir=LR" in to_dot(made([("s0", "pending"), *((f"s{i}", "running") for i in range(1, 12))]))
    assert "rankdir=TB" in to_dot(EXECUTION)


def test_ends_have_a_double_ring_and_share_the_last_line():
    """Ends are drawn with a double ring, on one line below everything else; nothing else has one."""
    text = to_dot(EXECUTION)
    ringed = {line.split('"')[1] for line in text.splitlines() if "peripheries=2" in line}
    assert ringed == EXECUTION.terminal
    last = [line for line in text.splitlines() if "rank=same" in line][-1]
    assert set(re.findall(r'"(\w+)"', last)) == EXECUTION.terminal
    assert "peripheries" not in to_dot(BREAKER)


# --- what is pointed out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [to_dot, to_mermaid])
def test_an_unknown_highlight_is_refused_with_the_known_names(draw):
    """Highlighting a state that the machine does not have is refused, and the text lists those that it has."""
    with pytest.raises(NotInMachine, match=r"'runing'.*closed, open, half_open, forced_open, disabled"):
        draw(BREAKER, highlight="runing")


@pytest.mark.parametrize("mark", [12, -1, ("closed", "trip", "closed"), ("nowhere", "trip", "open")])
def test_an_unknown_row_or_arrow_is_refused(mark):
    """A mark that is no row's index and no arrow of the machine is refused."""
    with pytest.raises(NotInMachine, match="no row or arrow"):
        to_dot(BREAKER, missing={mark})


def test_a_path_of_another_machine_is_refused():
    """A path with a state or an arrow that the machine does not have is refused instead of drawn in part."""
    with pytest.raises(NotInMachine, match="created"):
        to_dot(BREAKER, path=path_of(STEPS))
    with pytest.raises(NotInMachine, match="no row or arrow"):
        to_dot(BREAKER, path=path_of([(None, "create", "closed", 0.0), ("closed", "trip", "half_open", 1.0)]))


def test_the_highlighted_state_alone_is_filled():
    """The highlighted state, and no other, is drawn in the strong colour of its category."""
    text = to_dot(BREAKER, highlight="open")
    assert [line.split('"')[1] for line in text.splitlines() if 'fontcolor="#FFFFFF"' in line] == ["open"]
    assert "class s_open current" in to_mermaid(BREAKER, highlight="open")


def test_missing_rows_and_arrows_are_red():
    """What was never taken is red: a whole row where it stands, a single arrow on a line of its own."""
    red = "#C81E1E"
    assert red not in to_dot(BREAKER)
    text = to_dot(BREAKER, missing={0, ("closed", "reset", "closed")})
    lines = [line for line in text.splitlines() if "label=" in line and red in line]
    assert {re.search(rf"{red}\">(\w+)", line)[1] for line in lines} == {"trip", "reset"}
    assert "reset (missing)" in to_mermaid(BREAKER, missing={11})


def test_the_path_is_strong_and_the_rest_fades():
    """A path's states and arrows carry counts and times, and all that was not taken is faded."""
    path = path_of(STEPS, None, EXECUTION.terminal)
    text = to_dot(EXECUTION, path=path)
    assert from_dot(EXECUTION, to_dot(EXECUTION)) == arrows_of(EXECUTION)
    calling = line_of(text, '"calling_model" [')
    assert "<b>calling_model</b>" in calling
    assert "2x, 2.8 s" in calling
    assert re.search(r"open_tool \[owned and.*tools_left\] 1x", re.sub(r"<[^>]*>", " ", calling))
    assert "penwidth=1.8" in calling
    assert ">1x</font>" in line_of(text, '"failed" [')  # an end: visited, but no time is spent there
    assert "#A7B0B9" in line_of(text, '"thinking" [')
    assert "fail [else] 1x" in text
    assert "6 steps in 4.0 s" in text
    mermaid = to_mermaid(EXECUTION, path=path)
    assert (
        'state "calling_model<br/>2x, 2.8 s<br/>open_tool [owned and tools_left] 1x" as s_calling_model'
        in mermaid
    )
    assert "s_thinking" in line_of(mermaid, "class s_queued").split()[1]


def test_two_arrows_on_one_label_are_told_apart():
    """Of two rows on one label, only the one that was taken is strong."""
    steps = [(None, "create", "closed", 0.0), ("closed", "throttle", "open", 1.0)]
    text = to_dot(BREAKER, path=path_of(steps))
    (label,) = [line for line in text.splitlines() if "throttle 1x" in line]
    assert re.search(r'color="#A7B0B9">trip', label)
    assert re.search(r'color="#1F2933">throttle 1x', label)


# --- the path ----------------------------------------------------------------------------------------------------


def test_time_is_booked_to_the_state_in_which_it_was_spent():
    """Each stay counts for the state that was left, every visit adds up, and an end takes no time."""
    path = path_of(STEPS, 99.0, EXECUTION.terminal)
    assert path.visits == {
        "created": Visit(1, 0.5),
        "starting": Visit(1, 0.5),
        "calling_model": Visit(2, 2.75),
        "running_tools": Visit(1, 0.25),
        "failed": Visit(1, 0.0),
    }
    assert path.taken["calling_model", "open_tool", "calling_model"] == 1
    assert sum(path.taken.values()) == len(STEPS) - 1  # the creation is no arrow of the table
    assert path.current == "failed"
    assert path.seconds == 4.0


def test_an_open_stay_counts_until_now():
    """The stay that goes on is counted until now, or as nothing when nobody says what time it is."""
    assert path_of(STEPS[:3], 12.0, EXECUTION.terminal).visits["calling_model"] == Visit(1, 1.0)
    assert path_of(STEPS[:3], None, EXECUTION.terminal).visits["calling_model"] == Visit(1, 0.0)


def test_a_clock_that_was_set_back_takes_no_time_away():
    """A step that is older than the one before it counts as no time, not as a negative one."""
    steps = [(None, "create", "created", 10.0), ("created", "enqueue", "queued", 9.0)]
    assert path_of(steps, 8.0).visits == {"created": Visit(1, 0.0), "queued": Visit(1, 0.0)}


def test_an_empty_journal_is_an_empty_path():
    """No steps make an empty path, which is drawn as a machine in which nothing was visited."""
    path = path_of([])
    assert (path.visits, path.taken, path.current) == ({}, {}, None)
    assert "<b>created" not in to_dot(EXECUTION, path=path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0354, "35 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (200.0, "3 min 20 s"),
        (7_500.0, "2 h 5 min"),
        (90_000.0, "25 h 0 min"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    """A duration is rounded to what a person reads, and never to 1000 ms or 60 s."""
    assert duration(seconds) == text


# --- pictures ----------------------------------------------------------------------------------------------------


def test_pictures_are_pictures():
    """SVG comes out as SVG that parses, PNG with a PNG's signature."""
    dot = to_dot(BREAKER)
    assert ET.fromstring(render_svg(dot)).tag == "{http://www.w3.org/2000/svg}svg"
    assert render_png(dot).startswith(b"\x89PNG\r\n\x1a\n")


def test_a_missing_program_says_what_to_do(monkeypatch):
    """Without the layout program, the error says how to get it and what works without."""
    monkeypatch.setattr(render.shutil, "which", lambda *_, **__: None)
    with pytest.raises(RenderError, match=r"pip install graphviz-pure.*--format dot or mermaid"):
        render_svg(to_dot(BREAKER))


def test_text_that_is_no_dot_is_refused():
    """Text that the layout program does not understand is an error, not an empty picture."""
    with pytest.raises(RenderError, match="graphviz-pure ended with"):
        render_svg("digraph { a -> ")


def test_a_layout_that_takes_too_long_is_stopped(monkeypatch):
    """A layout is given up after its time, and the error says what to do instead."""
    monkeypatch.setattr(render, "TIMEOUT_S", 0.0001)
    with pytest.raises(RenderError, match=r"longer than 0\.0001 s"):
        render_svg(to_dot(EXECUTION))


def test_self_transitions_and_stays_are_told_apart():
    """A row back to its own state is an arrow, a row that stays is a line inside the state."""
    machine = made([("new", "pending")], [row("new", "again", "new"), row("new", "note")])
    text = to_dot(machine)
    assert "note" in line_of(text, '"new" [')
    assert "again" not in line_of(text, '"new" [')
    assert "again" in line_of(to_mermaid(machine), "s_new --> s_new")
