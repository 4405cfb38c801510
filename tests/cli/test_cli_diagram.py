"""The command that draws: every format, its refusals, its check, and the machines that it finds."""

import io
import json
import sys
import types
import xml.etree.ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from fsm.cli import diagram as command
from fsm.cli.load import CannotLoad, load_machine
from fsm.diagram import render_png, render_svg, to_dot, to_mermaid
from fsm.diagram.committed import committed
from fsm.errors import InvalidMachine, UnknownExecution
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.export import to_scxml, to_xstate
from fsm.machine.machine import Machine

app = typer.Typer()
app.command("diagram")(command.diagram)

GOOD = """
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
class Shop:
    ORDER = Machine(name="order", initial="new", states=(state("new", "pending"), state("paid", "terminal")),
                    transitions=(row("new", "pay", "paid"), row("new", "cancel", "paid")))
OTHER = Shop.ORDER
NUMBER = 7
"""
BAD = """
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
ORDER = Machine(name="order", initial="new", states=(state("new", "pending"), state("paid", "terminal")),
                transitions=(row("new", "pay", "payed"),))
"""


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty directory, with modules of its own."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("shop_"):
            del sys.modules[name]


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("dot", to_dot(BREAKER).encode()),
        ("mermaid", to_mermaid(BREAKER).encode()),
        ("scxml", to_scxml(BREAKER).encode()),
        ("xstate", to_xstate(BREAKER).encode()),
        ("svg", render_svg(to_dot(BREAKER))),
        ("png", render_png(to_dot(BREAKER))),
    ],
)
def test_each_format_goes_to_standard_output_unchanged(run, form, content):
    """What the command writes is byte for byte what the library makes."""
    result = run("breaker", "--format", form)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == content


def test_json_is_the_declaration(run):
    """The JSON format is the declaration, from which an equal machine is made."""
    result = run("execution", "--format", "json")
    assert result.exit_code == 0
    assert Machine.from_json(result.stdout) == EXECUTION


def test_the_execution_machine_is_drawn_when_none_is_named(run):
    """Without any argument the command writes the execution machine as DOT."""
    assert run().stdout == to_dot(EXECUTION)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.dot", to_dot(BREAKER).encode()),
        ("b.mmd", to_mermaid(BREAKER).encode()),
        ("b.svg", render_svg(to_dot(BREAKER))),
        ("b.png", render_png(to_dot(BREAKER))),
        ("b.scxml", to_scxml(BREAKER).encode()),
    ],
)
def test_a_file_name_says_the_format(run, here, name, content):
    """The ending of the file's name chooses the format when none is given."""
    result = run("breaker", "-o", name)
    assert result.exit_code == 0, result.output
    assert (here / name).read_bytes() == content
    assert result.stdout == ""


def test_an_ending_that_says_nothing_is_refused(run, here):
    """A file whose ending names no format is refused with the endings that do, and is not written."""
    result = run("breaker", "-o", "b.pdf")
    assert result.exit_code == 2
    assert "--format" in result.stderr
    assert ".svg" in result.stderr
    assert list(here.iterdir()) == []


def test_png_is_not_sent_to_a_terminal(run, monkeypatch):
    """PNG to a terminal is refused with what to do instead; text to a terminal is not."""
    monkeypatch.setattr(command, "_is_terminal", lambda: True)
    result = run("breaker", "--format", "png")
    assert result.exit_code == 2
    assert "-o FILE.png" in result.stderr
    assert result.stdout_bytes == b""
    assert run("breaker", "--format", "dot").exit_code == 0


def test_a_file_that_cannot_be_written_is_said(run, here):
    """A directory that does not exist is a message and exit code 2, not a traceback."""
    result = run("breaker", "-o", here / "nowhere" / "b.svg")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


# --- what is pointed out -----------------------------------------------------------------------------------------


def test_a_highlighted_state_is_drawn(run):
    """--highlight draws the state as the current one."""
    assert run("breaker", "--highlight", "open").stdout == to_dot(BREAKER, highlight="open")


def test_an_unknown_highlight_is_refused(run):
    """--highlight of an unknown state lists the known ones and exits 2."""
    result = run("breaker", "--highlight", "opne")
    assert result.exit_code == 2
    assert "half_open" in result.stderr


@pytest.mark.parametrize("form", ["scxml", "xstate", "json"])
def test_a_table_has_nothing_to_highlight(run, form):
    """The formats that are the table refuse --highlight instead of leaving it out."""
    result = run("breaker", "--format", form, "--highlight", "open")
    assert result.exit_code == 2
    assert "dot, svg, png or mermaid" in result.stderr
    assert result.stdout == ""


@pytest.fixture
def journal(monkeypatch):
    """Stand in for the store that --execution reads."""
    asked = []

    def history_of(store, execution_id):
        asked.append((store, execution_id))
        if execution_id != "exec_1":
            raise UnknownExecution(execution_id)
        return EXECUTION, [(None, "create", "created", 1.0), ("created", "enqueue", "queued", 3.0)], 7.5

    module = types.ModuleType("fsm.cli.common")
    module.history_of = history_of
    monkeypatch.setitem(sys.modules, "fsm.cli.common", module)
    return asked


def test_an_execution_is_drawn_as_its_way(run, journal):
    """--execution draws the way with counts and times, read from the store that was named."""
    result = run("--execution", "exec_1", "--store", "sqlite:///x.db")
    assert result.exit_code == 0, result.output
    assert "1x, 4.5 s" in result.stdout
    assert "enqueue 1x" in result.stdout
    assert journal == [("sqlite:///x.db", "exec_1")]


def test_an_unknown_execution_is_said(run, journal):
    """An execution that the store does not know is a message and exit code 2."""
    result = run("--execution", "exec_2")
    assert result.exit_code == 2
    assert "exec_2" in result.stderr


def test_highlight_and_execution_exclude_each_other(run, journal):
    """--highlight beside --execution is refused, and the store is not asked."""
    result = run("--execution", "exec_1", "--highlight", "queued")
    assert result.exit_code == 2
    assert "exclude" in result.stderr
    assert journal == []


# --- the directory and its check ---------------------------------------------------------------------------------


def test_check_finds_what_differs(run, here):
    """--check is quiet about files that say what the tables say, and names the others with exit code 1."""
    assert run("execution", "-o", "diagrams").exit_code == 0
    assert run("breaker", "-o", "diagrams").exit_code == 0
    names = {path.name for path in (here / "diagrams").iterdir()}
    assert names == set(committed(EXECUTION)) | set(committed(BREAKER))
    result = run("--check")
    assert (result.exit_code, result.stdout) == (0, "")
    file = here / "diagrams" / "execution.mmd"
    file.write_bytes(file.read_bytes().replace(b"think", b"thimk", 1))
    (here / "diagrams" / "breaker.dot").unlink()
    result = run("--check", "-o", "diagrams")
    assert result.exit_code == 1
    assert result.stdout.split() == ["diagrams/execution.mmd", "diagrams/breaker.dot"]
    assert "fsm diagram execution -o diagrams" in result.stderr


def test_check_of_an_empty_directory_lists_every_file(run, here):
    """--check where nothing was ever written lists all six files."""
    result = run("--check")
    assert result.exit_code == 1
    assert len(result.stdout.split()) == 6


# --- the machines that it finds ----------------------------------------------------------------------------------


def test_a_machine_of_the_current_directory_is_drawn(run, here):
    """MODULE:NAME finds a module of the current directory, and a name with dots in it."""
    (here / "shop_good.py").write_text(GOOD)
    assert str(here) not in sys.path
    result = run("shop_good:Shop.ORDER", "--format", "svg")
    assert result.exit_code == 0, result.output
    assert ET.fromstring(result.stdout_bytes).tag.endswith("svg")
    assert load_machine("shop_good:OTHER") is sys.modules["shop_good"].Shop.ORDER
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("braker", r"did you mean 'breaker'.*MODULE:NAME"),
        ("shop_good.py:OTHER", "no module"),
        ("./shop_good.py:OTHER", "without a path"),
        ("shop_good:", "MODULE:NAME"),
        (":OTHER", "MODULE:NAME"),
        ("shop_absent:ORDER", "no module 'shop_absent'"),
        ("shop_good:ORDER", "its machines are: OTHER"),
        ("shop_good:Shop.ORDERS", "no 'Shop.ORDERS'"),
        ("shop_good:NUMBER", "of type int.*OTHER"),
        ("shop_needs:ORDER", "needs the module 'shop_of_someone_else'"),
        ("shop_fails:ORDER", "ZeroDivisionError"),
        ("shop_leaves:ORDER", "SystemExit"),
        ("shop_grammar:ORDER", "not of the grammar"),
    ],
)
def test_what_is_no_machine_is_refused_with_a_way_on(run, here, text, says):
    """Each way to name no machine is refused with what is wrong with that one, and the command exits 2."""
    (here / "shop_good.py").write_text(GOOD)
    (here / "shop_needs.py").write_text("import shop_of_someone_else")
    (here / "shop_fails.py").write_text("1 / 0")
    (here / "shop_leaves.py").write_text("raise SystemExit(0)")
    (here / "shop_grammar.py").write_text(GOOD.replace('"paid"', '"Paid"'))
    with pytest.raises(CannotLoad, match=f"(?s){says}"):
        load_machine(text)
    assert run(text).exit_code == 2


def test_findings_come_through(run, here):
    """A declaration that does not hold together is reported with its findings, as it is."""
    (here / "shop_bad.py").write_text(BAD)
    with pytest.raises(InvalidMachine, match="payed"):
        load_machine("shop_bad:ORDER")
    result = run("shop_bad:ORDER")
    assert result.exit_code == 2
    assert "payed" in result.stderr


def test_a_terminal_is_told_from_a_pipe(monkeypatch):
    """Whether standard output is a terminal is asked when it matters, not when the module is loaded."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert command._is_terminal() is False
    stream.isatty = lambda: True
    assert command._is_terminal() is True


def test_xstate_text_parses(run):
    """What the command writes for xstate is one JSON document."""
    assert json.loads(run("execution", "--format", "xstate").stdout)["id"] == "execution"
