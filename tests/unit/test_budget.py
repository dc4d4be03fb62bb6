"""The memory budget: its limit, fair shares, giving back, and threads."""

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.budget import Budget

LIMIT = 1000
STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),  # which lease
        st.sampled_from(["take", "try_take", "give"]),
        st.integers(1, 600),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_any_steps(steps: list[tuple[int, str, int]]) -> None:
    """The total is the sum of the leases, and try_take never takes it beyond the limit."""
    budget = Budget(LIMIT)
    leases = [budget.lease() for _ in range(5)]
    for which, step, size in steps:
        lease, before = leases[which], budget.held_bytes
        held = lease.held_bytes
        if step == "take":
            lease.take(size)
            assert lease.held_bytes == held + size
        elif step == "give":
            lease.give(min(size, held))
            assert lease.held_bytes == held - min(size, held)
        elif lease.try_take(size):
            assert lease.held_bytes == held + size
            assert budget.held_bytes <= LIMIT
        else:
            assert (budget.held_bytes, lease.held_bytes) == (before, held)
        assert budget.held_bytes == sum(each.held_bytes for each in leases)
    for lease in leases:
        lease.give(lease.held_bytes)
    assert budget.held_bytes == 0
    assert leases[0].try_take(LIMIT), "all is there for one again"


def test_take_always_works() -> None:
    """What a reader waits for is taken beyond the limit; read-ahead then gets nothing."""
    budget = Budget(LIMIT)
    one, other = budget.lease(), budget.lease()
    one.take(5 * LIMIT)
    other.take(1)
    assert budget.held_bytes == 5 * LIMIT + 1
    assert not one.try_take(1)
    assert not other.try_take(1)


def test_one_may_have_everything() -> None:
    """A single stream may use the whole limit, to the byte."""
    budget = Budget(LIMIT)
    lease = budget.lease()
    assert lease.try_take(LIMIT)
    assert not lease.try_take(1)


def test_idle_streams_take_no_share() -> None:
    """Only leases that hold something count: open files that nobody reads do not."""
    budget = Budget(LIMIT)
    idle = [budget.lease() for _ in range(100)]
    assert budget.lease().try_take(LIMIT)
    assert all(lease.held_bytes == 0 for lease in idle)


def test_fair_share() -> None:
    """Under pressure nobody exceeds the limit divided by those who hold something."""
    budget = Budget(LIMIT)
    leases = [budget.lease() for _ in range(4)]
    for lease in leases:
        assert lease.try_take(10)
    greedy = leases[0]
    while greedy.try_take(10):
        pass
    assert LIMIT // 4 <= greedy.held_bytes <= LIMIT // 2
    for lease in leases[1:]:
        while lease.held_bytes < 160:
            assert lease.try_take(10), "the others still get theirs"


def test_a_newcomer_gets_a_share_back() -> None:
    """Who holds more than a fair share gets no more until it has given back."""
    budget = Budget(LIMIT)
    first, second = budget.lease(), budget.lease()
    assert first.try_take(800)
    assert second.try_take(200)
    assert not second.try_take(1), "there is nothing left"
    first.give(200)
    assert not first.try_take(1), "600 of 1000 are more than its half"
    assert second.try_take(200)


def test_giving_back_too_much_changes_nothing() -> None:
    """Giving back what was not taken is refused, and the counts stay right."""
    budget = Budget(LIMIT)
    lease = budget.lease()
    lease.take(10)
    with pytest.raises(ValueError, match="5 bytes given back"):
        lease.give(15)
    assert (lease.held_bytes, budget.held_bytes) == (10, 10)
    lease.give(10)
    assert budget.held_bytes == 0


def test_threads() -> None:
    """Many threads on the same leases lose no byte and never see the limit exceeded."""
    budget = Budget(LIMIT)
    leases = [budget.lease() for _ in range(3)]
    start = threading.Barrier(8)
    exceeded: list[int] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        start.wait()
        for _ in range(3000):
            lease, size = random_.choice(leases), random_.randint(1, 400)
            if lease.try_take(size):
                held = budget.held_bytes
                if held > LIMIT:
                    exceeded.append(held)
                lease.give(size)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not exceeded
    assert [lease.held_bytes for lease in leases] == [0, 0, 0]
    assert budget.held_bytes == 0
    assert leases[0].try_take(LIMIT)
