"""What `import fsm` brings along: the core and nothing else; and what it needs of the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "typer",
    "rich",
    "click",
    "graphviz",
    "pytest",
    "hypothesis",
    "http.server",
    "wsgiref",
    "ssl",
    "sqlite3",
    "pydantic_ai",
)


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, check=True, text=True
        ).stdout.split()
    )


def roots(modules: set[str]) -> set[str]:
    return {name for module in modules for name in (module, module.split(".")[0])}


def test_importing_the_library_loads_no_face_of_it():
    """`import fsm` loads neither the command line nor the web nor what only they, or tests, need."""
    modules = loaded_by("import fsm")
    assert roots(modules) & set(HEAVY) == set()
    assert "asyncio" not in modules
    assert not [
        one for one in modules if one.startswith(("fsm.cli", "fsm.web", "fsm.testing", "fsm.diagram"))
    ]


def test_the_command_line_loads_what_only_some_commands_need_with_them():
    """No command pays for the solver or the database driver of another one."""
    modules = roots(loaded_by("import fsm.cli.app"))
    assert not modules & {"z3", "psycopg", "hypothesis", "pytest"}


def test_a_run_in_memory_loads_no_database():
    """A tracker in memory needs no SQLite."""
    code = (
        "import fsm; tracker = fsm.configure('memory://'); "
        "tracker.fire(tracker.create('a', user_id='u', thread_id='t').id, 'start')"
    )
    assert "sqlite3" not in loaded_by(code)


def test_the_testing_helpers_need_no_pytest():
    """`fsm.testing` can be used without pytest; only the plugin and the conformance suite import it."""
    assert "pytest" not in roots(loaded_by("from fsm.testing import fresh_tracker, ManualClock"))


@pytest.mark.parametrize("name", ["fsm.clock", "fsm.tracker.tracker"])
def test_the_plugin_loads_what_it_needs_when_it_is_used(name):
    """The pytest plugin itself imports nothing of the library; its fixtures do when they are asked for."""
    source = "import fsm.testing.plugin, inspect; print(inspect.getsource(fsm.testing.plugin))"
    text = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, text=True).stdout
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top if name in line]


def test_the_library_works_where_there_are_no_forks(tmp_path):
    """On a system without forks the library is imported, and runs agents on SQLite, like everywhere."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal, sys\n"
        "del os.register_at_fork, os.fork, signal.pthread_sigmask\n"
        "from fsm import Engine\n"
        "from fsm.tracker.process import configure\n"
        "engine = Engine(configure(sys.argv[1]))\n"
        "print(engine.run_sync(lambda: 7, user_id='ada', thread_id='t'))\n"
    )
    command = [sys.executable, str(script), f"sqlite:///{tmp_path}/fsm.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
