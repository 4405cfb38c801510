"""The stepped loop: asyncio's own code in virtual time, in an order that a seed decides."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time

import pytest

from fsm.simulation.handles import PROCESS, Process
from fsm.simulation.loop import Deadlock, NotSimulated, StepLimit, SteppedLoop


@pytest.fixture(autouse=True)
def no_real_waiting(monkeypatch):
    """Nothing here may sleep for real or start a thread."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this would be real")

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


def run(main, seed=0, **options):
    """Run a coroutine function as asyncio.run does, on a stepped loop; return its result and the loop."""
    loops = []

    def factory():
        loops.append(SteppedLoop(seed, **options))
        return loops[0]

    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(main())
    return result, loops[0]


def test_sleepers_wake_in_the_order_of_their_times():
    """Virtual time goes straight from one timer to the next, to the very instant."""
    woken = []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        woken.append((asyncio.get_running_loop().time(), seconds))

    async def main():
        await asyncio.gather(*(sleeper(seconds) for seconds in (3600.0, 0.5, 86_400.0, 0.25, 2.0)))

    _, loop = run(main)
    assert woken == [(0.25, 0.25), (0.5, 0.5), (2.0, 2.0), (3600.0, 3600.0), (86_400.0, 86_400.0)]
    assert loop.time() == 86_400.0


def test_time_stands_still_while_anything_is_ready():
    """A callback that is ready runs before any timer, however many others it makes ready."""

    async def main():
        loop = asyncio.get_running_loop()
        timer = asyncio.create_task(asyncio.sleep(0.001))
        for _ in range(1000):
            await asyncio.sleep(0)
        early = (loop.time(), timer.done())
        await timer
        return early, loop.time()

    assert run(main)[0] == ((0.0, False), 0.001)


def test_a_timeout_comes_at_its_instant():
    """asyncio.timeout and wait_for end a wait at exactly their virtual time."""

    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.5):
                await asyncio.Event().wait()
        first = loop.time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 2.5)
        async with asyncio.timeout(5):
            await asyncio.sleep(4)
        return first, loop.time()

    assert run(main)[0] == (7.5, 14.0)


def test_cancellation_carries_out_finally():
    """A cancelled task runs its finally, may await in it, and is then cancelled."""
    seen = []

    async def victim():
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            seen.append(asyncio.get_running_loop().time())

    async def main():
        task = asyncio.create_task(victim())
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert run(main)[0]
    assert seen == [3.0]


def test_gather_and_groups_hand_on_results_and_exceptions():
    """Gather returns results in order; a task group cancels the others when one fails."""

    async def value(seconds, result):
        await asyncio.sleep(seconds)
        return result

    async def fail():
        await asyncio.sleep(1)
        raise ValueError("mine")

    cancelled = []

    async def other():
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    async def main():
        results = await asyncio.gather(value(2, "a"), value(1, "b"))
        with pytest.raises(ExceptionGroup) as group:  # noqa: PT012 - the block is what raises
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                tasks.create_task(other())
                tasks.create_task(other())
        return results, [str(one) for one in group.value.exceptions]

    assert run(main)[0] == (["a", "b"], ["mine"])
    assert cancelled == [3.0, 3.0]


@pytest.mark.parametrize("seed", range(20))
def test_locks_and_queues_hold(seed):
    """A lock lets one in at a time, a queue loses nothing, whatever the order."""

    async def main():
        lock, queue = asyncio.Lock(), asyncio.Queue(3)
        inside = most = 0
        taken = []

        async def producer(name):
            for number in range(5):
                await queue.put((name, number))

        async def consumer():
            nonlocal inside, most
            while True:
                item = await queue.get()
                async with lock:
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0.01)
                    inside -= 1
                taken.append(item)
                queue.task_done()

        consumers = [asyncio.create_task(consumer()) for _ in range(3)]
        await asyncio.gather(*(producer(name) for name in "abc"))
        await queue.join()
        for one in consumers:
            one.cancel()
        return most, sorted(taken)

    assert run(main, seed)[0] == (1, sorted(itertools.product("abc", range(5))))


def test_async_generators_are_closed_at_the_end():
    """An asynchronous generator that somebody left open is closed when the loop ends, its awaits included."""
    closed = []

    async def numbers(name):
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(1)
            closed.append(name)

    kept = []

    async def main():
        for name in "abc":
            generator = numbers(name)
            kept.append(generator)
            await anext(generator)

    run(main)
    assert sorted(closed) == ["a", "b", "c"]


def test_a_thread_is_a_moment_of_virtual_time():
    """to_thread runs the function on this thread, with its context, and hands on results and exceptions."""
    name = contextvars.ContextVar("name")

    async def main():
        name.set("mine")
        loop = asyncio.get_running_loop()
        loop.io_delay = lambda: 2.0
        result = await asyncio.to_thread(lambda: (threading.get_ident(), name.get()))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return result, loop.time()

    assert run(main)[0] == ((threading.get_ident(), "mine"), 4.0)


def test_callbacks_keep_their_context():
    """A callback runs in the context in which it was scheduled, and changes nothing outside."""
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    async def child(mine):
        name.set(mine)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(lambda: seen.append((mine, name.get())))
        await asyncio.sleep(1)

    async def main():
        await asyncio.gather(*(child(mine) for mine in "ab"))
        return name.get()

    assert run(main)[0] == "nobody"
    assert sorted(seen) == [("a", "a"), ("b", "b")]


# --- order ------------------------------------------------------------------------------------------------------


async def three():
    order = []

    async def one(name):
        await asyncio.sleep(0)
        order.append(name)

    await asyncio.gather(*(one(name) for name in "abc"))
    return "".join(order)


def test_a_seed_is_an_order():
    """The same seed gives the same order and the same trace; other seeds reach every order there is."""
    first, loop = run(three, 7)
    again, twin = run(three, 7)
    assert (first, loop.trace_hash()) == (again, twin.trace_hash())
    outcomes = {run(three, seed)[0] for seed in range(100)}
    assert outcomes == {"".join(one) for one in itertools.permutations("abc")}
    assert len({run(three, seed)[1].trace_hash() for seed in range(20)}) > 10


def test_without_shuffling_the_order_is_asyncios_own():
    """With shuffle=False what is ready first comes first, exactly as on asyncio's loop."""

    async def main():
        order = []

        async def one(name):
            for _ in range(3):
                order.append(name)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one(name)) for name in "abcd"]
        tasks[1].add_done_callback(lambda _: order.append("B"))
        await asyncio.gather(*tasks)
        return order

    assert run(main, shuffle=False)[0] == asyncio.run(main())


def test_a_set_of_tasks_has_one_order():
    """A set of tasks is walked in the same order in every run: a task's hash is its number."""

    async def main():
        tasks = {asyncio.create_task(asyncio.sleep(1)) for _ in range(50)}
        order = [task.get_name() for task in tasks]
        await asyncio.wait(tasks)
        return order

    runs = {tuple(run(main)[0]) for _ in range(5)}
    assert len(runs) == 1


def test_actions_at_a_step_run_between_callbacks():
    """at_step calls before exactly that step, in the order of the steps; one in the past at once."""

    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        loop.at_step(30, lambda: seen.append(("b", loop.steps)))
        loop.at_step(20, lambda: seen.append(("a", loop.steps)))
        for _ in range(40):
            await asyncio.sleep(0)
        now = loop.steps
        loop.at_step(1, lambda: seen.append(("c", loop.steps)))
        await asyncio.sleep(0)
        return seen, now

    seen, now = run(main)[0]
    assert seen == [("a", 19), ("b", 29), ("c", now)]


# --- what cannot go on ------------------------------------------------------------------------------------------


def test_a_deadlock_is_told_with_every_stack():
    """If nothing is ready and no timer is set, the error names each task and where it waits, callers included."""

    async def inner(lock):
        await lock.acquire()

    async def outer(lock):
        await inner(lock)

    async def main():
        lock = asyncio.Lock()
        await lock.acquire()
        task = asyncio.create_task(outer(lock), name="the one that waits")
        await task

    loop = SteppedLoop()
    with pytest.raises(Deadlock, match="nothing is ready") as told:
        loop.run_until_complete(main())
    loop.drop()
    text = str(told.value)
    assert "the one that waits" in text
    assert text.index("outer") < text.index("inner") < text.index("Lock.acquire")


def test_what_spins_meets_the_step_limit():
    """A loop that never waits ends at its step limit; one that waits for ever at its limit of time."""

    async def spin():
        while True:
            await asyncio.sleep(0)

    async def tick():
        while True:
            await asyncio.sleep(10)

    for main, options, steps in ((spin, {"max_steps": 500}, 500), (tick, {"max_time_s": 95.0}, None)):
        loop = SteppedLoop(**options)
        with pytest.raises(StepLimit, match=main.__name__):
            loop.run_until_complete(main())
        assert steps is None or loop.steps == steps
        assert loop.time() <= 95.0
        loop.drop()


def test_a_cancelled_timer_holds_nothing_up():
    """Timers that nobody waits for neither move time nor pile up."""

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(10_000):
            async with asyncio.timeout(1_000_000):
                await asyncio.sleep(0.001)
        return loop.time(), len(loop._timers)

    now, left = run(main)[0]
    assert now == pytest.approx(10.0)
    assert left < 200


def test_what_is_not_simulated_is_refused():
    """The network, subprocesses and foreign threads are refused by name, not tried."""

    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(NotSimulated, match="network"):
            await asyncio.open_connection("localhost", 1)
        with pytest.raises(NotSimulated, match="network"):
            await loop.getaddrinfo("localhost", 1)
        with pytest.raises(NotSimulated, match="subprocess"):
            await asyncio.create_subprocess_exec("true")
        loop._thread_id = -1  # as a call from another thread would find it
        try:
            with pytest.raises(NotSimulated, match="thread"):
                loop.call_soon_threadsafe(print)
        finally:
            loop._thread_id = threading.get_ident()

    run(main)


def test_a_callback_that_fails_is_told_to_the_handler():
    """An exception in a plain callback goes to the loop's exception handler and the loop goes on."""
    told = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)
        return "went on"

    assert run(main)[0] == "went on"
    assert told == ["division by zero"]


# --- processes --------------------------------------------------------------------------------------------------


def in_process(loop, process, coroutine):
    context = contextvars.copy_context()
    context.run(PROCESS.set, process)
    return loop.create_task(coroutine, context=context)


async def ticker(ticks, closed):
    try:
        while True:
            await asyncio.sleep(1)
            ticks.append(asyncio.get_running_loop().time())
    finally:
        closed.append(True)


def test_a_paused_process_misses_time():
    """Nothing of a paused process runs while time goes on; what became ready runs when it is resumed."""
    ticks, closed = [], []

    async def main():
        loop = asyncio.get_running_loop()
        process = Process("p")
        task = in_process(loop, process, ticker(ticks, closed))
        await asyncio.sleep(2.5)
        loop.pause(process)
        await asyncio.sleep(10)
        during = list(ticks)
        loop.resume(process)
        await asyncio.sleep(1.5)
        task.cancel()
        await asyncio.wait({task})
        return during

    assert run(main)[0] == [1.0, 2.0]
    assert ticks == [1.0, 2.0, 12.5, 13.5]
    assert closed == [True]


def test_what_was_parked_dies_quietly():
    """A task that a paused process was about to begin is held when the process is killed: nothing closes it."""
    unraisable = []

    async def unborn():
        raise AssertionError("it never begins")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unraisable.append(context))
        process = Process("p")
        loop.pause(process)
        in_process(loop, process, unborn())
        await asyncio.sleep(1.0)
        assert process.parked, "nothing but this holds the task"
        loop.kill(process)
        await asyncio.sleep(1.0)

    loop = SteppedLoop()
    loop.run_until_complete(main())
    loop.drop()
    assert unraisable == []


def test_a_killed_process_cleans_nothing_up():
    """A killed process never runs again, its children neither, and no finally is carried out while time lasts."""
    ticks, closed = [], []

    async def parent():
        await asyncio.gather(ticker(ticks, closed), ticker(ticks, closed))

    async def main():
        loop = asyncio.get_running_loop()
        process = Process("p")
        in_process(loop, process, parent())
        await asyncio.sleep(1.5)
        loop.kill(process)
        await asyncio.sleep(100)
        return list(ticks), list(closed)

    loop = SteppedLoop()
    assert loop.run_until_complete(main()) == ([1.0, 1.0], [])
    loop.drop()


def test_a_process_is_inherited_and_a_waiter_outside_is_not_part_of_it():
    """Tasks that a process starts belong to it; somebody outside who awaits one of them does not."""

    async def child():
        await asyncio.sleep(1)
        return PROCESS.get()

    async def parent():
        return await asyncio.create_task(child())

    async def main():
        loop = asyncio.get_running_loop()
        process = Process("p")
        found = await in_process(loop, process, parent())
        loop.kill(process)
        await asyncio.sleep(1)
        return found is process, PROCESS.get()

    assert run(main)[0] == (True, None)
