"""Ways through a table: which events lead from where an execution is to where somebody wants it.

Nobody who drives an execution has to know the rules of its phases: the shortest way is read off the table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from fsm.machine.machine import Machine


class Ways:
    """The shortest ways through one machine over its implicit rows. Pure, and remembered.

    The number of ways is bounded by the square of the number of states.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._known: dict[tuple[str, str, bool], tuple[str, ...] | None] = {}

    def to_state(self, source: str, goal: str) -> tuple[str, ...] | None:
        """Return the events that lead to a state, none if it is there already; ``None`` if no way leads there."""
        way = self._known.get((source, goal, True), ())
        if way == () and source != goal:
            way = self._known[source, goal, True] = self._search(source, lambda state: state == goal)
        return way

    def to_event(self, source: str, event: str) -> tuple[str, ...] | None:
        """Return the events that lead to where an event is in the table; ``None`` if no way leads there."""
        if event in self._machine.by_source[source]:
            return ()
        key = (source, event, False)
        if key not in self._known:
            table = self._machine.by_source
            self._known[key] = self._search(source, lambda state: event in table[state])
        return self._known[key]

    def onto(self, source: str, goal: str) -> tuple[str, ...] | None:
        """Return the events that lead to a state, the last of them any event that the caller means."""
        if source == goal:
            return ()
        table = self._machine.by_source
        into = {
            state: event
            for state, events in table.items()
            for event, arrows in reversed(list(events.items()))
            if arrows[0].target == goal
        }
        way = self._search(source, lambda state: state in into)
        return None if way is None else (*way, into[self.end_of(source, way)])

    def _search(self, source: str, found: Callable[[str], bool]) -> tuple[str, ...] | None:
        ways: dict[str, tuple[str, ...]] = {source: ()}
        todo = deque([source])
        while todo:
            state = todo.popleft()
            if found(state):
                return ways[state]
            for event, arrows in self._machine.by_source[state].items():
                # Only the first row: the others are for guards that fail, and a way does not know guards.
                target = arrows[0].target
                if arrows[0].implicit and target not in ways:
                    ways[target] = (*ways[state], event)
                    todo.append(target)
        return None

    def end_of(self, source: str, events: Iterable[str]) -> str:
        """Return the state that events lead to, if each takes its first row."""
        for event in events:
            source = self._machine.by_source[source][event][0].target
        return source
