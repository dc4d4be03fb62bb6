"""The memory budget: its limit, fair shares, release, and threads."""

import functools
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.transfer.memory_budget import MIN_SHARE_BYTES, STREAM_BYTES, Budget, Lease
from tests.unit.interleaving import Interleaving, explore

MIB = 1 << 20
LIMIT = 1000
STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),  # index of the lease
        st.sampled_from(["take", "try_take", "give"]),
        st.integers(1, 600),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_any_steps(steps: list[tuple[int, str, int]]) -> None:
    """The total is the sum of the leases, and try_take never exceeds the limit."""
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
    """Memory that a reader waits for may exceed the limit; read-ahead then gets nothing."""
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


def test_small_holders_take_no_share() -> None:
    """Heads and small files do not count: a stream may use all memory for read-ahead."""
    budget = Budget(1000 * MIB, 64 * MIB)
    for _ in range(100):
        assert budget.lease().try_take(STREAM_BYTES - 1)
    stream = budget.lease()
    assert stream.share_bytes == 64 * MIB
    assert stream.try_take(64 * MIB)


@pytest.mark.parametrize(
    ("streams", "share", "parts"), [(1, 64, 4), (2, 32, 4), (4, 16, 4), (16, 4, 2), (64, 4, 2)]
)
def test_fair_share(streams: int, share: int, parts: int) -> None:
    """Memory for read-ahead is divided by the streams, with a minimum for each."""
    budget = Budget(1000 * MIB, 64 * MIB)
    leases = [budget.lease() for _ in range(streams)]
    for lease in leases:
        lease.take(STREAM_BYTES)
    greedy = leases[0]
    assert (greedy.share_bytes, greedy.parts) == (share * MIB, parts)
    while greedy.try_take(MIB):
        pass
    # The part being read is held in addition.
    assert greedy.held_bytes == (share + share // parts) * MIB


@pytest.mark.parametrize(
    ("memory_mib", "streams", "share", "parts"),
    [
        (1024, 4, 16, 4),
        (1024, 5, 16, 3),
        (1024, 16, 16, 2),
        (1024, 64, 4, 2),
        (128, 16, 4, 2),
        (4096, 16, 16, 2),
        (4096, 64, 16, 2),
    ],
)
def test_many_streams_keep_full_parts(
    memory_mib: int, streams: int, share: int, parts: int
) -> None:
    """Each has two parts of full size, if a quarter of the limit is enough for all."""
    budget = Budget(memory_mib * MIB, 64 * MIB, part_bytes=8 * MIB)
    leases = [budget.lease() for _ in range(streams)]
    for lease in leases:
        lease.take(STREAM_BYTES)
    assert (leases[0].share_bytes, leases[0].parts) == (share * MIB, parts)


@pytest.mark.parametrize(
    ("streams", "share"), [(1, 64), (4, 64), (8, 64), (16, 32), (32, 16), (64, 16)]
)
def test_event_loops(streams: int, share: int) -> None:
    """With more event loops, as many streams have a full share each."""
    budget = Budget(4096 * MIB, 64 * MIB, part_bytes=8 * MIB, loops=8, max_ahead_bytes=1280 * MIB)
    leases = [budget.lease() for _ in range(streams)]
    for lease in leases:
        lease.take(STREAM_BYTES)
    assert leases[0].share_bytes == share * MIB
    budget.aim(320 * MIB)
    assert leases[0].share_bytes == min(320, 1280 // streams) * MIB


def test_a_newcomer_gets_a_share() -> None:
    """A lease above its fair share gets no more until it has released some."""
    budget = Budget(1000 * MIB, 64 * MIB)
    first, second = budget.lease(), budget.lease()
    assert first.try_take(64 * MIB)
    assert second.try_take(32 * MIB)
    assert not first.try_take(1)
    first.give(40 * MIB)
    assert first.try_take(8 * MIB)


def test_aim() -> None:
    """The target of all read-ahead may change at any time; the limit stays."""
    budget = Budget(100 * MIB, 64 * MIB)
    lease = budget.lease()
    assert lease.share_bytes == 64 * MIB
    budget.aim(1000 * MIB)
    assert lease.share_bytes == 100 * MIB
    budget.aim(MIB)
    assert lease.share_bytes == MIN_SHARE_BYTES


def test_refusals_are_of_the_limit() -> None:
    """It counts refusals because of the limit, which idle streams can relieve, not of shares."""
    budget = Budget(100 * MIB, 8 * MIB)
    lease = budget.lease()
    assert not lease.try_take(50 * MIB)
    assert budget.refusals == 0
    lease.take(100 * MIB)
    assert not budget.lease().try_take(1)
    assert budget.refusals == 1


def test_giving_back_too_much_changes_nothing() -> None:
    """Releasing more than was taken is refused, and the counts stay right."""
    budget = Budget(LIMIT)
    lease = budget.lease()
    lease.take(10)
    with pytest.raises(ValueError, match="5 bytes given back"):
        lease.give(15)
    assert (lease.held_bytes, budget.held_bytes) == (10, 10)
    lease.give(10)
    assert budget.held_bytes == 0


def test_threads() -> None:
    """Many threads on the same leases lose no byte and never exceed the limit."""
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


def test_interleavings() -> None:
    """In any order of threads the counts are right after each step, and within the limit."""

    def run(it: Interleaving) -> None:
        budget = Budget(8 * MIB)
        leases = [budget.lease(), budget.lease(of_all=True)]
        plan = [
            [(it.random.choice(leases), it.random.choice([1, 2 * MIB, 5 * MIB])) for _ in range(4)]
            for _ in range(3)
        ]

        def work(steps: list[tuple[Lease, int]]) -> None:
            for lease, size in steps:
                if lease.try_take(size):
                    assert 0 < budget.held_bytes <= budget.limit_bytes
                    lease.give(size)

        it.run(*(functools.partial(work, steps) for steps in plan))
        assert [each.held_bytes for each in leases] == [0, 0]
        assert (budget.held_bytes, budget._streams, it.waited_s) == (0, 0, 0.0)

    explore(run)


def test_an_uploads_share_is_one_of_the_limit() -> None:
    """Read-ahead does not affect writers; they share the limit fairly."""
    budget = Budget(64 * MIB, ahead_bytes=16 * MIB)
    upload, reader = budget.lease(of_all=True), budget.lease()
    assert upload.try_take(64 * MIB)
    upload.give(64 * MIB)
    assert not reader.try_take(32 * MIB)
    assert reader.try_take(16 * MIB)
    assert upload.share_bytes == 32 * MIB
    assert not upload.try_take(48 * MIB)
