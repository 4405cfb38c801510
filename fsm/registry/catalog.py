"""A machine together with what this process needs to run it, and as the data that a store keeps its law by."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from fsm.concurrency.supervised import one_line
from fsm.core.decide import CHANGES, DERIVED
from fsm.core.journal import record_of
from fsm.core.payloads import Codec
from fsm.core.records import EFFECTS
from fsm.errors import ConfigurationError, UnknownMachine
from fsm.machine.machine import Machine
from fsm.machine.timeouts import MAX_SECONDS
from fsm.stores.base import Store

logger = logging.getLogger(__name__)


class Law(NamedTuple):
    """A machine and the codec of its events' payloads."""

    machine: Machine
    codec: Codec


def law_for(machine: Machine, *, foreign: bool = False) -> Law:
    """Return a machine's law. A foreign one can be read even if its events cannot be checked in this process."""
    strange = {name for row in machine.transitions for name in row.assign} - CHANGES.keys()
    unknown = {name for row in machine.transitions for name in row.effects} - EFFECTS
    if unknown and foreign:
        logger.warning(
            "machine %r orders %s, which this process cannot carry out",
            machine.name,
            ", ".join(sorted(unknown)),
        )
    if unknown and not foreign:
        raise ConfigurationError(
            f"machine {machine.name!r} orders the effect {', '.join(sorted(unknown))}, which nothing carries "
            f"out; effects are: {', '.join(sorted(EFFECTS))}"
        )
    try:
        if strange:
            raise ConfigurationError(  # noqa: TRY301 - one place decides what a foreign machine comes to
                f"machine {machine.name!r} assigns {', '.join(sorted(strange))}, which executions do not have; "
                f"they have: {', '.join(CHANGES)}"
            )
        return Law(machine, Codec(machine, frozenset(DERIVED)))
    except Exception as error:  # whatever a foreign machine's payloads come to here
        if not foreign:
            raise
        return Law(machine, _Unchecked(error))


class _Unchecked(Codec):
    """The codec of a machine whose events this process cannot check: whoever fires one learns what is missing."""

    def __init__(self, error: Exception) -> None:
        self.empty = {}
        self._error = one_line(error)

    def encode(self, event: str, payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
        del payload
        raise ConfigurationError(f"{event!r} cannot be fired from this process: {self._error}")

    def decode(self, event: str, text: str | None) -> Mapping[str, Any]:
        del text
        raise ConfigurationError(f"{event!r} cannot be read in this process: {self._error}")


class LawBook:
    """The machines that a process knows: those that it was given, and those that it reads from the store."""

    def __init__(self, store: Store) -> None:
        """Begin with none.

        Args:
            store: Where machines are registered.
        """
        self.store = store
        self._by_name: dict[str, Machine] = {}
        self._laws: dict[str, Law] = {}
        self._claims: set[str] = set()  # the events that make somebody the owner
        self._strange: set[str] = set()
        self._learnt = -1  # how many machines the store had when they were last read

    def add(self, machine: Machine) -> Machine:
        """Make a machine known here and to the store.

        Raises:
            ConfigurationError: Another machine has its name, or it is not made for executions: perpetual, or with
                changes that executions do not have.
        """
        known = self._by_name.get(machine.name)
        if known is not None and known != machine:
            raise ConfigurationError(
                f"two different machines are called {machine.name!r}: give one of them another name"
            )
        if machine.perpetual:
            raise ConfigurationError(f"machine {machine.name!r} is perpetual, and an execution has to end")
        if too_long := machine.timeouts.too_long:
            raise ConfigurationError(
                f"machine {machine.name!r} gives {too_long[0]} more than {MAX_SECONDS:.0f} seconds (about 31 years): "
                "write None for no limit"
            )
        self._claims |= {row.event for row in machine.transitions if "claim" in row.assign}
        if machine.content_hash not in self._laws:
            self._laws[machine.content_hash] = law_for(machine)
            self.store.register(record_of(machine))
        self._by_name[machine.name] = machine
        return machine

    def machine_for(self, wanted: Machine | str | None) -> Machine:
        """Return a machine by name or by itself; the first one that was configured if nothing is said."""
        if wanted is None:
            return next(iter(self._by_name.values()))
        if isinstance(wanted, Machine):
            return (
                self._by_name[wanted.name] if self._by_name.get(wanted.name) is wanted else self.add(wanted)
            )
        if wanted not in self._by_name:
            raise UnknownMachine(str(wanted), tuple(self._by_name))
        return self._by_name[wanted]

    def law_of(self, content_hash: str) -> Law:
        """Return a machine and its codec by hash; one that another process registered is read from the store."""
        law = self._laws.get(content_hash)
        if law is None:
            self.learn()
            law = self._laws.get(content_hash)
            if law is None:
                raise UnknownMachine(content_hash, tuple(self._laws))
        return law

    def learn(self) -> None:
        """Read the machines that other processes registered."""
        for content_hash, document in self.store.machines().items():
            if content_hash in self._laws or content_hash in self._strange:
                continue
            try:
                machine = Machine.from_json(document)
            except Exception as error:  # noqa: BLE001 - one document ends nothing else, whatever is in it
                self._strange.add(content_hash)
                logger.warning(
                    "the store's machine %s cannot be read and is left out: %s", content_hash, one_line(error)
                )
                continue
            if machine.perpetual:
                self._strange.add(content_hash)  # the breakers' machine, say: an execution ends
                continue
            self._laws[content_hash] = law_for(machine, foreign=True)

    def machines(self) -> tuple[Machine, ...]:
        """Return every machine that is known, the store's included; its documents are read when there are new ones."""
        count = (
            self.store.machine_count()
        )  # before they are read: one that is added in between is read next time
        if count != self._learnt:
            self.learn()
            self._learnt = count
        return tuple(law.machine for law in self._laws.values())
