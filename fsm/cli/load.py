"""From what a person types to a machine: ``execution``, ``breaker``, or ``MODULE:NAME`` of their own."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from fsm.breakers.core import BREAKERS
from fsm.core.decide import EXECUTIONS
from fsm.errors import FsmError, InvalidMachine
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.expressions import Vocabulary
from fsm.machine.machine import Machine

SHIPPED = {"execution": EXECUTION, "breaker": BREAKER}
"""The machines that have a name of their own on the command line."""


class CannotLoad(FsmError, ValueError):
    """A text that names no machine; the message says which part of it is wrong, and what to write."""


def load_machine(text: str) -> Machine:
    """Find the machine that a person named.

    Args:
        text: ``execution``, ``breaker``, or ``MODULE:NAME``, where NAME may have dots. Modules of the current
            directory are found too.

    Returns:
        The machine.

    Raises:
        CannotLoad: There is no such module or name, the module does not import, or it is no machine.
        InvalidMachine: The module declares a machine that does not hold together; its findings tell.
    """
    if text in SHIPPED:
        return SHIPPED[text]
    module_name, colon, name = text.partition(":")
    if not colon:
        near = get_close_matches(text, SHIPPED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CannotLoad(
            f"no machine is called {text!r}{hint} Write {' or '.join(SHIPPED)}, or MODULE:NAME for one of your own, "
            "such as shop.orders:ORDER"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise CannotLoad(
            f"{text!r} is not MODULE:NAME: write the module as in an import statement, without a path or .py, "
            "such as shop.orders:ORDER"
        )
    module = _import(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise CannotLoad(f"{module_name} has no {name!r}; its machines are: {_machines(module)}")
        found = getattr(found, part)
    if not isinstance(found, Machine):
        raise CannotLoad(
            f"{text} is of type {type(found).__name__}, not a fsm.Machine; "
            f"the machines of {module_name} are: {_machines(module)}"
        )
    return found


def find_machine(text: str, stored: Mapping[str, str] | None = None) -> Machine:
    """Find a machine by name, hash, ``MODULE:NAME`` or JSON file.

    Args:
        text: What the person wrote.
        stored: The machines of a store, their declarations by hash; a name means the newest of them if none shipped.

    Raises:
        CannotLoad: There is no such machine.
        InvalidMachine: It does not hold together.
    """
    if text.endswith(".json"):
        try:
            return Machine.from_json(Path(text).read_bytes())
        except (OSError, ValidationError) as error:
            raise CannotLoad(f"{text} holds no machine: {error}") from error
    documents = stored or {}
    if text in documents:
        return Machine.from_json(documents[text])
    named = [one for one in map(Machine.from_json, documents.values()) if one.name == text]
    if named and text not in SHIPPED:
        return named[-1]
    if re.fullmatch("[0-9a-f]{32}", text):
        raise CannotLoad(f"no machine of the store has the hash {text}; name the store with --store URL")
    return load_machine(text)


def _import(name: str) -> ModuleType:
    with _current_directory():
        try:
            return importlib.import_module(name)
        except InvalidMachine:
            raise
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise CannotLoad(
                    f"no module {error.name!r}: it is neither installed nor in {Path.cwd()}; "
                    "run the command where `import` would find it"
                ) from error
            raise CannotLoad(f"{name} does not import: it needs the module {error.name!r}") from error
        except ValidationError as error:
            raise CannotLoad(f"{name} declares something that is not of the grammar:\n{error}") from error
        except (Exception, SystemExit) as error:
            raise CannotLoad(f"{name} does not import: {type(error).__name__}: {error}") from error


@contextmanager
def _current_directory() -> Iterator[None]:
    """Let imports see the current directory, as `python -m` does and an installed command does not."""
    here = str(Path.cwd())
    if "" in sys.path or here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _machines(module: ModuleType) -> str:
    names = sorted(name for name, value in vars(module).items() if isinstance(value, Machine))
    return ", ".join(names) or "none"


def vocabulary_of(machine: Machine) -> Vocabulary:
    """Return what the words of a machine mean: a perpetual one is a breaker's, any other an execution's."""
    return BREAKERS if machine.perpetual else EXECUTIONS
