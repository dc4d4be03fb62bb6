"""The tool that interleaves threads: it finds what it is for, and repeats it."""

import threading
from concurrent.futures import Future

import pytest

from tests.unit.interleaving import Interleaving, Stuck, explore


def test_a_deadlock() -> None:
    """Two locks, taken in two orders, are a deadlock for some seed, and it is repeated."""

    def run(it: Interleaving) -> None:
        first, second = threading.Lock(), threading.Lock()

        def take(one: threading.Lock, other: threading.Lock) -> None:
            with one, other:
                pass

        it.run(lambda: take(first, second), lambda: take(second, first))

    with pytest.raises(Stuck) as caught:
        explore(run)
    seed = int(caught.value.__notes__[0].split("(")[1].rstrip(")"))
    for _ in range(2):
        with Interleaving(seed) as it, pytest.raises(Stuck):
            run(it)


def test_a_lost_signal() -> None:
    """A thread that waits without looking first waits for its deadline, for some seed."""
    waits_s = set()

    def run(it: Interleaving) -> None:
        changed = threading.Condition()

        def wait() -> None:
            with changed:
                changed.wait(5.0)

        def signal() -> None:
            with changed:
                changed.notify()

        it.run(wait, signal)
        waits_s.add(round(it.waited_s))

    explore(run)
    assert waits_s == {0, 5}


def test_a_lost_update() -> None:
    """Two threads that count without a lock lose a step, and with one they do not."""
    counts = set()

    def run(it: Interleaving) -> None:
        lock, count = threading.Lock(), [0, 0]

        def add() -> None:
            with lock:
                before = count[0]
            with lock:
                count[0] = before + 1
                count[1] += 1

        it.run(add, add)
        counts.add(tuple(count))

    explore(run)
    assert counts == {(1, 2), (2, 2)}


def test_events_futures_and_servers() -> None:
    """What the standard library builds on locks works, and a server works until all have ended."""

    def run(it: Interleaving) -> None:
        answers: list[Future[int]] = [Future(), Future()]
        asked, over = list(answers), threading.Event()
        found: list[int] = []

        def ask() -> None:
            found.extend(each.result(60.0) for each in answers)
            over.set()

        it.run(ask, over.wait, servers=[(lambda: bool(asked), lambda: asked.pop().set_result(3))])
        assert (found, it.waited_s) == ([3, 3], 0.0)

    explore(run)


def test_a_seed_repeats_a_run() -> None:
    """The same threads run in the same order."""
    orders = []
    for seed in (1, 1, 2):
        with Interleaving(seed) as it:
            lock = threading.RLock()

            def work(lock: object = lock) -> None:
                for _ in range(20):
                    with lock:  # type: ignore[attr-defined]
                        pass

            it.run(work, work, work)
            orders.append(it.switches)
    assert orders[0] == orders[1] != orders[2]


def test_errors_come_out() -> None:
    """The error of a thread is raised in the test, when the others have ended."""
    ended = []

    def fail() -> None:
        raise ValueError("wrong")

    with Interleaving(1) as it, pytest.raises(ValueError, match="wrong"):
        it.run(fail, lambda: ended.append(1))
    assert ended == [1]
