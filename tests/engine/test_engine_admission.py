"""The bookkeeping of slots: who is next, against a naive model, and what is remembered of whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fsm.engine import admission as slots_module
from fsm.engine.admission import Admission, Slots, Ticket

USERS = "ada bob cid dan".split()
AGENTS = "w x y z".split()
LIMIT = st.sampled_from([None, 1, 1, 2, 3])


class Naive:
    """The same, as plainly as it can be said: every waiting ticket is looked at every time."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.running: Counter[tuple[str, str]] = Counter()
        self.waiting: dict[int, tuple[str, str, int]] = {}  # user, agent, and 0 for who resumes
        self.tags: dict[str, list[float]] = {}
        self.now = [0.0, 0.0]

    def of_user(self, user: str) -> int:
        return sum(count for (one, _), count in self.running.items() if one == user)

    def of_agent(self, agent: str) -> int:
        return sum(count for (_, one), count in self.running.items() if one == agent)

    def free(self, user: str, agent: str) -> bool:
        of_agent = self.slots.of_agent(agent)
        return (
            self.running.total() < self.slots.total
            and (self.slots.per_user is None or self.of_user(user) < self.slots.per_user)
            and (of_agent is None or self.of_agent(agent) < of_agent)
        )

    def wait(self, number: int, user: str, agent: str, rank: int) -> None:
        tags = self.tags.setdefault(user, [0.0, 0.0])
        if not any(one == (user, rank) for one in ((who, which) for who, _, which in self.waiting.values())):
            tags[rank] = max(tags[rank], self.now[rank])
        self.waiting[number] = (user, agent, rank)

    def next(self) -> int | None:
        able = [
            (rank, self.tags[user][rank], number)
            for number, (user, agent, rank) in self.waiting.items()
            if self.free(user, agent)
        ]
        return min(able)[2] if able else None

    def admit(self) -> Iterator[int]:
        while (number := self.next()) is not None:
            user, agent, rank = self.waiting[number]
            active = len({one for one, _, which in self.waiting.values() if which == rank})
            tag = self.tags[user][rank]
            self.now[rank] = max(self.now[rank], tag) + 1.0 / active
            self.tags[user][rank] = max(self.now[rank], tag + 1.0)
            del self.waiting[number]
            self.running[user, agent] += 1
            yield number
        self.forget()

    def forget(self) -> None:
        if not self.waiting:
            self.tags = {user: tags for user, tags in self.tags.items() if self.of_user(user)}


class AdmissionMachine(RuleBasedStateMachine):
    """Takes, waits, leaves and gives back in any order; the naive model says what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.many = slots_module.MANY

    def teardown(self) -> None:
        slots_module.MANY = self.many

    @initialize(
        total=st.integers(1, 6),
        per_user=LIMIT,
        per_agent=LIMIT | st.dictionaries(st.sampled_from(AGENTS), st.integers(1, 2)),
        many=st.sampled_from([-100, 1, 5]),
    )
    def begin(self, total, per_user, per_agent, many):
        self.tidied_at = slots_module.MANY = many  # what is tidied up rarely is to be tidied up here
        self.slots = Slots(total=total, per_user=per_user, per_agent=per_agent)
        self.model = Naive(self.slots)
        self.admission = Admission(self.slots)
        self.granted: list[int] = []
        self.tickets: dict[int, Ticket] = {}
        self.number = 0

    @rule(user=st.sampled_from(USERS), agent=st.sampled_from(AGENTS))
    def take(self, user, agent):
        free = self.model.free(user, agent)
        assert self.admission.take(user, agent) is free
        if free:
            self.model.running[user, agent] += 1

    @rule(
        user=st.sampled_from(USERS),
        agent=st.sampled_from(AGENTS),
        resumes=st.booleans(),
        times=st.integers(1, 4),
    )
    def wait(self, user, agent, resumes, times):
        for _ in range(times):
            self.waits(user, agent, resumes=resumes)

    def waits(self, user, agent, *, resumes=False):
        self.number += 1
        self.model.wait(self.number, user, agent, 0 if resumes else 1)
        granted = partial(self.granted.append, self.number)
        self.tickets[self.number] = self.admission.wait(user, agent, granted, resumes=resumes)
        self.agree()
        return self.number

    @rule(rng=st.randoms(use_true_random=False))
    def leave(self, rng):
        if self.model.waiting:
            self.give_up(rng.choice(sorted(self.model.waiting)))

    def give_up(self, number):
        del self.model.waiting[number]
        self.admission.leave(self.tickets[number])
        self.admission.leave(self.tickets[number])  # once is enough
        self.model.forget()
        self.agree()
        known = len(self.admission._users) + len(self.admission._agents) + len(self.model.waiting)
        assert len(self.admission._empty) <= max(0, self.tidied_at + known)

    @rule(user=st.sampled_from(USERS), agents=st.sets(st.sampled_from(AGENTS), min_size=1))
    def all_leave(self, user, agents):
        for number, (one, agent, _) in tuple(self.model.waiting.items()):
            if one == user and agent in agents:
                del self.model.waiting[number]
                self.admission.leave(self.tickets[number])
        self.model.forget()
        self.agree()

    @rule(rng=st.randoms(use_true_random=False))
    def give_back(self, rng):
        if self.model.running.total():
            self.give(*rng.choice(sorted(+self.model.running)))

    def give(self, user, agent):
        self.model.running[user, agent] -= 1
        self.admission.give_back(user, agent)
        self.agree()

    @rule(seed=st.integers(0, 2**32), steps=st.integers(20, 60), most=st.integers(1, 3))
    def storm(self, seed, steps, most):
        """Do all that many times: queues come of it that single steps seldom reach."""
        rng = Random(seed)
        for _ in range(steps):
            user, agent = rng.choice(USERS), rng.choice(AGENTS)
            match rng.randrange(12):
                case 0:
                    self.take(user, agent)
                case 1 | 2 | 3:
                    self.wait(user, agent, rng.random() < 0.3, 1 + rng.randrange(most))
                case 4 | 5 | 6:
                    self.leave(rng)
                case 7:
                    self.all_leave(user, set(rng.sample(AGENTS, 1 + rng.randrange(3))))
                case _:
                    self.give_back(rng)
            self.counts()
            self.nothing_is_left_behind()

    def agree(self):
        """Exactly those are granted whom the model grants, in its order."""
        expected = list(self.model.admit())
        assert self.granted == expected
        self.granted.clear()

    @invariant()
    def counts(self):
        admission, model = self.admission, self.model
        assert (admission.running, admission.waiting) == (model.running.total(), len(model.waiting))
        assert admission.running <= self.slots.total
        assert all(
            self.slots.per_user is None or model.of_user(user) <= self.slots.per_user for user in USERS
        )
        for agent in AGENTS:
            limit = self.slots.of_agent(agent)
            assert limit is None or model.of_agent(agent) <= limit
        assert not any(model.free(user, agent) for user, agent, _ in model.waiting.values())

    @invariant()
    def nothing_is_left_behind(self):
        admission, model = self.admission, self.model
        waiting = {user for user, _, _ in model.waiting.values()}
        running = {user for (user, _), count in model.running.items() if count}
        assert set(admission._users) == waiting | running
        waited_for = {agent for _, agent, _ in model.waiting.values()}
        in_use = {agent for (_, agent), count in model.running.items() if count}
        assert set(admission._agents) == waited_for | in_use
        live = len(set(model.waiting.values()))
        parked = sum(len(party.parked) for party in (*admission._users.values(), *admission._agents.values()))
        # Every line stands in one place.
        assert live <= len(admission._ready) + parked == live + len(admission._empty)
        if not model.waiting:
            assert not (admission._ready)
            assert not parked
            assert not (admission._empty)
            assert not (admission._ahead)
            assert not (admission._parks)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=200, stateful_step_count=12, deadline=None)


def flood(admission: Admission, user: str, count: int, order: list[str], agent: str = "x") -> list[Ticket]:
    return [admission.wait(user, agent, partial(order.append, user)) for _ in range(count)]


def test_a_flood_delays_the_first_of_another_user_by_one_release_at_most():
    """A user with a thousand waiting is served once at most before another user's first, however often that comes."""
    admission = Admission(Slots(total=1))
    order: list[str] = []
    flood(admission, "ada", 1000, order)
    for _ in range(100):
        flood(admission, "bob", 1, order)
        before = len(order)
        admission.give_back(order[-1], "x")
        admission.give_back(order[-1], "x")
        assert "bob" in order[before:]
    assert order.count("bob") == 100


def test_each_of_many_users_goes_before_a_newcomer_once_at_most():
    """Among a hundred users with a queue each a newcomer's first waits for one of each at most."""
    admission = Admission(Slots(total=1))
    order: list[str] = []
    for number in range(100):
        flood(admission, f"user {number}", 20, order)
    for _ in range(250):
        admission.give_back(order[-1], "x")
    flood(admission, "bob", 1, order)
    before = len(order)
    while order[-1] != "bob":
        admission.give_back(order[-1], "x")
    assert max(Counter(order[before:]).values()) == 1


def test_newcomers_without_end_do_not_keep_anybody_waiting_for_ever():
    """A user's second one is served although a new user comes with every release."""
    admission = Admission(Slots(total=1))
    order: list[str] = []
    flood(admission, "ada", 5, order)
    for number in range(100):
        flood(admission, f"user {number}", 1, order)
        admission.give_back(order[-1], "x")
    assert order.count("ada") == 5


def test_who_gives_up_waiting_has_used_nothing():
    """A user whose thousand waiting ones were called off is served as if they had never been."""
    admission = Admission(Slots(total=1))
    order: list[str] = []
    flood(admission, "eve", 1, order)
    flood(admission, "bob", 50, order)
    for ticket in flood(admission, "ada", 1000, order):
        admission.leave(ticket)
    flood(admission, "ada", 2, order)
    for _ in range(4):
        admission.give_back(order[-1], "x")
    assert order.count("ada") == 2


def test_who_resumes_goes_first_and_among_those_it_is_fair():
    """Resumed ones go before all that have not begun; a user with many of them does not hold up another's."""
    admission = Admission(Slots(total=1))
    order: list[str] = []
    flood(admission, "eve", 5, order)
    for user, count in (("ada", 10), ("bob", 2)):
        for _ in range(count):
            admission.wait(user, "x", partial(order.append, f"{user} resumed"), resumes=True)
    for _ in range(16):
        admission.give_back(order[-1].split()[0], "x")
    begun, resumed = order[13:], order[1:13]
    assert set(begun) == {"eve"}
    assert [who.split()[0] for who in resumed[:4]].count("bob") == 2


def test_a_user_at_the_limit_is_no_hindrance():
    """While a slot is free a user at their own limit delays nobody, whoever waits before."""
    admission = Admission(Slots(total=3, per_user=2))
    order: list[str] = []
    flood(admission, "ada", 1000, order)
    assert order == ["ada", "ada"]
    flood(admission, "bob", 1, order)
    assert order[-1] == "bob"


@pytest.mark.parametrize("per_user", [1, 2])
@pytest.mark.parametrize("per_agent", [None, 1, {"x": 1}])
@pytest.mark.parametrize("many", [-100, 1])
@pytest.mark.parametrize("leaving", [(), (0,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_nobody_is_stuck_behind_those_who_left(per_user, per_agent, many, leaving):
    """Who waited behind a ticket that was given up is served all the same, and a place that was left can be taken."""
    script = AdmissionMachine()
    script.begin(total=per_user + 1, per_user=per_user, per_agent=per_agent, many=many)
    try:
        for agent in ("x", "y")[:per_user]:
            script.take("ada", agent)
        waiting = [("ada", "x"), ("ada", "y"), ("cid", "x")]
        numbers = [script.waits(*one) for one in waiting]  # parked: ada is full, and so is x
        script.take("eve", "z")
        script.waits("dan", "w")
        for agent in ("x", "y")[:per_user]:
            script.waits("bob" if agent == "x" else "eve", "w", resumes=True)
            script.give("ada", agent)  # somebody else goes first: who was parked stands in the queue now
        for index in leaving:
            if numbers[index] in script.model.waiting:
                script.give_up(numbers[index])
        for one in waiting:
            script.waits(*one)
        while +script.model.running:
            script.give(*next(iter(+script.model.running)))
            script.nothing_is_left_behind()
        assert not script.model.waiting
    finally:
        script.teardown()


@pytest.mark.parametrize("slots", [{"total": 1}, {"total": 50, "per_user": 1}, {"total": 50, "per_agent": 1}])
def test_nothing_grows_with_those_who_come_and_go(slots):
    """Users who queue up and leave, or are served once, leave nothing behind while others wait on."""
    admission = Admission(Slots(**slots))
    order: list[str] = []
    flood(admission, "eve", 3, order)
    sizes = []
    for number in range(20_000):
        user = f"user {number}"
        tickets = flood(admission, user, 2, order, agent=f"agent {number % 7}")
        if number % 3 == 0 and order[-1] == user:
            admission.give_back(user, f"agent {number % 7}")
        for ticket in tickets:
            admission.leave(ticket)
        while order.count(user) > (number % 3 == 0):
            admission.give_back(user, f"agent {number % 7}")
            order.remove(user)
        sizes.append(
            sum(
                map(
                    len,
                    (
                        admission._ready,
                        admission._users,
                        admission._agents,
                        admission._empty,
                        admission._ahead,
                    ),
                )
            )
        )
    assert max(sizes[10_000:]) <= max(sizes[:10_000]) * 1.1 + 10
    assert max(sizes) < 10 * slots_module.MANY


def test_the_limits_of_a_queue_are_said():
    """Only what would have to wait counts against the queue's limits: its size, and the share of one user."""
    admission = Admission(Slots(total=2, per_user=1, queued_max=3, queued_per_user=2))
    order: list[str] = []
    flood(admission, "ada", 3, order)
    assert (admission.full("ada"), admission.full("bob"), admission.free("bob", "x")) == (True, False, True)
    flood(admission, "bob", 2, order)
    assert (admission.full("bob"), admission.full("cid")) == (True, True)
