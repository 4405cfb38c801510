"""The conformance suite covers the protocols: for each method a store that gets it wrong fails a test of the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fsm.core.records import Receipt
from fsm.core.timeline import Known
from fsm.stores.base import MAX_BEATS, Damage, Query, Store
from fsm.stores.breakers import BreakerStore
from fsm.stores.memory import MemoryStore

pytest_plugins = ["pytester"]

PROTOCOL = {name for kind in (Store, BreakerStore) for name in vars(kind) if not name.startswith("_")}


def answers(change: Callable[[Any], Any]) -> Callable[[str], dict[str, Any]]:
    """A method whose answer is another one."""

    def of(name: str) -> dict[str, Any]:
        real = getattr(MemoryStore, name)
        return {name: lambda self, *args, **more: change(real(self, *args, **more))}

    return of


def asked(change: Callable[..., tuple[Any, ...]]) -> Callable[[str], dict[str, Any]]:
    """A method that does its work for other arguments."""

    def of(name: str) -> dict[str, Any]:
        real = getattr(MemoryStore, name)
        return {name: lambda self, *args, **more: real(self, *change(*args, **more))}

    return of


def does(method: Any) -> Callable[[str], dict[str, Any]]:
    """A method, or an attribute, that is replaced."""
    return lambda name: {name: method}


def nothing(self: Any, *args: Any, **more: Any) -> None:
    """Does nothing."""


def unfiltered(field: str) -> Callable[[str], dict[str, Any]]:
    return asked(lambda query: (query._replace(**{field: None}),))


def commits_later(self: MemoryStore, steps: Any) -> list[Any]:
    """It commits what stands behind a lost step of the same execution."""
    return [MemoryStore.append(self, [step])[0] for step in steps]


def half_a_batch(self: MemoryStore, steps: Any) -> list[Any]:
    outcomes = MemoryStore.append(self, steps[:2])
    return [*outcomes, *outcomes[-1:] * (len(steps) - 2)]


def takes_the_version_at_its_word(self: MemoryStore, steps: Any) -> list[Any]:
    rows = [self._rows.get(step.after.identity.id) for step in steps]
    now = [
        step._replace(after=step.after._replace(version=row[0].version + 1)) if row else step
        for step, row in zip(steps, rows, strict=True)
    ]
    return MemoryStore.append(self, now)


def swaps_always(self: MemoryStore, machine: str, expected: int, row: Any, entry: Any) -> bool:
    held = self._breakers.rows.get(row.key)
    return MemoryStore.breaker_swap(self, machine, held.version if held else 0, row, entry)


def keeps_every_mark(self: MemoryStore, mark: Any) -> None:
    self._mark = mark


def takes_any_era(self: MemoryStore, era: str, before: Any, after: Any) -> Any:
    return MemoryStore.timeline_set(self, era, self._eras.get(era), after)


def renews_at_zero(self: MemoryStore, worker_id: str, now: Any) -> bool:
    return MemoryStore.worker_renew(self, worker_id, lambda: 0.0)


def keeps_every_beat(self: MemoryStore, beats: Any) -> None:
    self._workers._beats |= {(one.process, one.loop): one for one in beats}


def closes_ajar(self: MemoryStore) -> None:
    MemoryStore.close(self)
    self._closed = False


DAMAGE = [Damage("executions", "exec_1", "", "x")]
MUTANTS: dict[str, dict[str, Callable[[str], dict[str, Any]]]] = {
    "url": {"names nothing": does("")},
    "instant": {"says nothing": does(None)},
    "register": {"keeps nothing": does(nothing)},
    "machines": {
        "are none": answers(lambda _: {}),
        "lose their documents": answers(lambda out: dict.fromkeys(out, "{}")),
    },
    "machine_count": {"is off by one": answers(lambda out: out + 1)},
    "load": {
        "finds nothing": answers(lambda _: None),
        "is one version late": answers(lambda out: out and out._replace(version=out.version - 1)),
        "loses a field": answers(lambda out: out and out._replace(tools=())),
    },
    "append": {
        "takes any version": does(takes_the_version_at_its_word),
        "commits half of a batch": does(half_a_batch),
        "commits what follows a lost step": does(commits_later),
        "tells a wrong position": answers(
            lambda out: [one._replace(position=1) if isinstance(one, Receipt) else one for one in out]
        ),
    },
    "keyed": {
        "knows no key": answers(lambda _: None),
        "knows every key": does(lambda self, execution_id, key: next(iter(self._keys.values()), None)),
    },
    "history": {
        "forgets the last": answers(lambda out: out[:-1]),
        "forgets the first": answers(lambda out: out[1:]),
    },
    "journal": {
        "begins too late": asked(lambda after, *more: (after + 1, *more)),
        "has no end": asked(lambda after, limit, *more: (after, 10_000, *more)),
        "knows no users": asked(
            lambda after, limit, execution_id=None, user_id=None: (after, limit, execution_id)
        ),
        "knows no executions": asked(
            lambda after, limit, execution_id=None, user_id=None: (after, limit, None, user_id)
        ),
    },
    "position": {"is off by one": answers(lambda out: out + 1)},
    "find": {
        **{f"ignores {field}": unfiltered(field) for field in Query._fields if field != "limit"},
        "ignores the limit": asked(lambda query: (query._replace(limit=10_000),)),
        "is in another order": answers(lambda out: out[::-1]),
    },
    "born": {
        "knows no key": answers(lambda _: None),
        "knows no user": does(
            lambda self, user_id, key: next(
                (one for (_, named), one in self._born_keys.items() if named == key), None
            )
        ),
    },
    "counts": {
        "are off by one": answers(lambda out: {state: number + 1 for state, number in out.items()}),
        "know no users": does(lambda self, user_id=None: MemoryStore.counts(self)),
        "leave a state out": answers(lambda out: dict(list(out.items())[1:])),
    },
    "schema_version": {"is none": answers(lambda _: -1)},
    "orders": {
        "are forgotten": answers(lambda _: []),
        "start over": asked(lambda after, limit: ("", limit)),
        "have no end": asked(lambda after, limit: (after, 100)),
    },
    "carried": {
        "keeps the order": does(nothing),
        "takes any order": does(lambda self, order: self._orders.pop(order.execution_id, None)),
    },
    "timeline": {
        "forgets eras": answers(lambda out: out._replace(era=None)),
        "forgets the mark": answers(lambda out: Known(out.era, None, out.floor_at)),
    },
    "timeline_set": {
        "keeps nothing": does(lambda self, era, before, after: after),
        "takes any decision": does(takes_any_era),
    },
    "timeline_mark": {"keeps nothing": does(nothing), "keeps a lower one": does(keeps_every_mark)},
    "due": {
        "finds nothing": answers(lambda _: []),
        "is early": asked(lambda now, *more: (now + 0.6, *more)),
        "has no pages": asked(lambda now, limit, after=None: (now, limit)),
        "has no end": asked(lambda now, limit, after=None: (now, 1000, after)),
        "mixes up the kinds": answers(lambda out: [one._replace(kind="idle") for one in out]),
        "tells a wrong version": answers(lambda out: [one._replace(version=9) for one in out]),
    },
    "next_due": {"finds nothing": answers(lambda _: None), "forgets after what": asked(lambda after=0.0: ())},
    "worker_add": {"keeps nothing": does(nothing)},
    "worker_renew": {
        "renews nothing": does(lambda self, worker_id, now: True),
        "renews at another time": does(renews_at_zero),
        "refuses": answers(lambda _: False),
    },
    "worker_remove": {
        "keeps the worker": does(nothing),
        "forgets that it left": does(lambda self, worker_id: self._workers._rows.pop(worker_id, None)),
    },
    "workers": {
        "are none": answers(lambda _: []),
        "are never lost": answers(lambda out: [one._replace(lost=False) for one in out]),
    },
    "lose": {
        "loses no worker": answers(lambda _: []),
        "loses early": does(lambda self, now, spare=False: MemoryStore.lose(self, now + 5.0, spare=spare)),
        "spares no worker": does(lambda self, now, spare=False: MemoryStore.lose(self, now)),
        "spares for ever": does(
            lambda self, now, spare=False: MemoryStore.lose(self, now) if not spare else []
        ),
    },
    "owned": {
        "is nothing": answers(lambda _: []),
        "has no pages": asked(lambda worker_id, limit, after="": (worker_id, limit)),
        "has no end": asked(lambda worker_id, limit, after="": (worker_id, 100, after)),
    },
    "beat": {"keeps nothing": does(nothing), "keeps everything": does(keeps_every_beat)},
    "beats": {
        "are none": answers(lambda _: []),
        "are few": answers(lambda out: out[: MAX_BEATS // 2]),
        "are in another order": answers(lambda out: out[::-1]),
    },
    "ended": {
        "finds nothing": answers(lambda _: []),
        "is in another order": answers(lambda out: out[::-1]),
        "is early": asked(lambda before_at, limit: (before_at + 5.0, limit)),
        "has no end": asked(lambda before_at, limit: (before_at, 100)),
    },
    "ended_count": {"is off by one": answers(lambda out: out + 1), "is nought": answers(lambda _: 0)},
    "forget": {
        "forgets nothing": answers(lambda _: 0),
        "says so and keeps it": does(lambda self, execution_ids, keep=0: len(execution_ids)),
        "keeps nothing back": asked(lambda execution_ids, keep=0: (execution_ids,)),
    },
    "damaged": {"cries wolf": answers(lambda _: DAMAGE)},
    "inspect": {"cries wolf": answers(lambda _: DAMAGE)},
    "close": {"closes nothing": does(nothing), "opens again": does(closes_ajar)},
    "breaker_load": {
        "loses the row": answers(lambda _: None),
        "loses the probes": answers(lambda out: out and out._replace(probes=())),
    },
    "breaker_swap": {
        "keeps nothing": does(lambda self, *args: True),
        "compares nothing": does(swaps_always),
        "writes no line": does(
            lambda self, machine, expected, row, entry: MemoryStore.breaker_swap(
                self, machine, expected, row, None
            )
        ),
    },
    "breaker_list": {"is empty": answers(lambda _: [])},
    "breaker_changes": {
        "are none": answers(lambda _: []),
        "are in another order": answers(lambda out: out[::-1]),
        "know no keys": asked(lambda after, limit, key=None, before=None: (after, limit, None, before)),
        "go on for ever": asked(lambda after, limit, key=None, before=None: (after, limit, key)),
    },
    "breaker_position": {"is off by one": answers(lambda out: out + 1)},
}
"""For each method of the protocols: what is wrong with it, and the method as it is then."""


def mutated(method: str, wrong: str) -> type[MemoryStore]:
    """Return a store in memory with one method that is wrong."""
    return type("Mutated", (MemoryStore,), MUTANTS[method][wrong](method))


def each() -> Iterator[Any]:
    for method, kinds in MUTANTS.items():
        for wrong in kinds:
            yield pytest.param(method, wrong, id=f"{method} {wrong}")


def test_every_method_has_a_mutant():
    """No method of the protocols is without a store that gets it wrong."""
    assert MUTANTS.keys() == PROTOCOL
    assert all(MUTANTS.values())


SUITE = """
    import pytest
    from fsm.testing import StoreConformance
    from tests.stores.test_conformance import mutated

    class TestMutated(StoreConformance):
        @pytest.fixture
        def open_store(self):
            return mutated({method!r}, {wrong!r})
"""


@pytest.mark.slow
@pytest.mark.fsm_no_cover
@pytest.mark.parametrize(("method", "wrong"), list(each()))
def test_a_store_that_is_wrong_in_one_method_fails(method, wrong, pytester):
    """A store with one wrong method fails a test of the suite."""
    pytester.makepyfile(SUITE.format(method=method, wrong=wrong))
    done = pytester.inline_run("-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:terminal")
    _, _, failed = done.countoutcomes()
    assert failed == 1
