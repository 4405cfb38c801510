"""The machines of a file: their rows are its law, and executions name them by number."""

from __future__ import annotations

import sqlite3

from fsm.core.records import MachineRecord
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.database import Database


class Machines:
    """The machines that are written as law.

    Attributes:
        known: For each number of a machine its content hash and its states.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers: dict[str, int] = {}
        self.known: dict[int, tuple[str, frozenset[str]]] = {}

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        if self.number(record.content_hash) is not None:
            return

        def write(writer: sqlite3.Connection) -> None:
            known = "SELECT 1 FROM machines WHERE content_hash = ?"
            if writer.execute(known, (record.content_hash,)).fetchone():
                return  # another process was faster
            number = writer.execute(
                "INSERT INTO machines (content_hash, name, document) VALUES (?, ?, ?)",
                (record.content_hash, record.name, record.document),
            ).lastrowid
            writer.executemany(
                "INSERT INTO states (machine, name, terminal, stopping) VALUES (?, ?, ?, ?)",
                [(number, *state) for state in record.states],
            )
            writer.executemany(
                "INSERT INTO law (machine, source, event, target) VALUES (?, ?, ?, ?)",
                [(number, source or "", event, target) for source, event, target in record.rows],
            )
            writer.execute("UPDATE machines SET sealed = 1 WHERE id = ?", (number,))

        self._database.write(write)

    def number(self, content_hash: str) -> int | None:
        """Return a machine's number, if it is registered."""
        if content_hash not in self._numbers:
            self.learn()
        return self._numbers.get(content_hash)

    def learn(self) -> None:
        """Read the machines that other processes registered."""
        states: dict[int, set[str]] = {}
        pages = self._database.pages
        for number, name in pages.all("SELECT machine, name FROM states", (), shapes.STATES.check):
            states.setdefault(number, set()).add(name)
        for number, hash_ in pages.all("SELECT id, content_hash FROM machines", (), shapes.NUMBERS.check):
            self._numbers[hash_] = number
            self.known[number] = (hash_, frozenset(states.get(number, ())))

    def documents(self) -> dict[str, str]:
        """Return every registered machine: its declaration as JSON text, by content hash."""
        sql = "SELECT content_hash, document FROM machines"
        return dict(self._database.pages.all(sql, (), shapes.MACHINES.check))
