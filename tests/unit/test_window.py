"""Read-ahead: what is fetched for sequential, interleaved, jittered and random readers."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.window import (
    FIRST_AHEAD_BYTES,
    JITTER_BYTES,
    MAX_RUNS,
    MIB,
    PAGE_BYTES,
    Plan,
    Window,
)

KIB = 1024
PART_BYTES = 8 * MIB
AHEAD_BYTES = 64 * MIB
HUGE_BYTES = 1 << 40


class Reader:
    """A window, asked for reads, with every answer checked and what it fetches counted."""

    def __init__(
        self, size_bytes: int, part_bytes: int = PART_BYTES, ahead_bytes: int = AHEAD_BYTES
    ) -> None:
        self.size = size_bytes
        self.window = Window(size_bytes, part_bytes=part_bytes, ahead_bytes=ahead_bytes)
        self.fetched: list[tuple[int, int]] = []  # disjoint
        self.fetched_bytes = 0

    def read(self, offset: int, size: int) -> Plan:
        plan = self.window.plan(offset, size)
        self.window.check()
        assert 0 <= plan.start <= offset
        assert offset + size <= plan.stop <= self.size
        assert plan.part_bytes > 0
        for start, stop in self.gaps(plan.start, plan.stop):
            self.fetched.append((start, stop))
            self.fetched_bytes += stop - start
        return plan

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what of [start, stop) has not been fetched."""
        gaps = []
        for have_start, have_stop in sorted(self.fetched):
            if have_stop > start and have_start < stop:
                if have_start > start:
                    gaps.append((start, have_start))
                start = have_stop
        return [*gaps, (start, stop)] if start < stop else gaps


def pages(offset: int, size: int, object_size: int) -> tuple[int, int]:
    """Return a read's range, rounded to pages within the object."""
    stop = -(-(offset + size) // PAGE_BYTES) * PAGE_BYTES
    return offset // PAGE_BYTES * PAGE_BYTES, min(stop, object_size)


READ_SIZES = st.integers(1, MIB) | st.sampled_from([4 * KIB, 128 * KIB, MIB])


@st.composite
def reads(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Draw an object's size and reads within it, many of them near the last one."""
    size_bytes = draw(st.integers(1, 1 << 28))
    position = 0
    found = []
    for _ in range(draw(st.integers(1, 30))):
        jump = draw(st.booleans())
        if jump:
            position = draw(st.integers(0, size_bytes - 1))
        else:
            position += draw(st.sampled_from([0, 0, 0, -4096, 4096, JITTER_BYTES, -JITTER_BYTES]))
        position = min(max(position, 0), size_bytes - 1)
        size = min(draw(READ_SIZES), size_bytes - position)
        found.append((position, size))
        position += size
    return size_bytes, found


@settings(deadline=None)
@given(reads(), st.sampled_from([64 * KIB, MIB, 8 * MIB]), st.integers(0, 40), st.booleans())
def test_any_reads(
    drawn: tuple[int, list[tuple[int, int]]], part_bytes: int, slow_at: int, head: bool
) -> None:
    """Whatever is read, a plan covers it, stays inside the object, and keeps what it plans."""
    size_bytes, sequence = drawn
    reader = Reader(size_bytes, part_bytes, 8 * part_bytes)
    if head:
        reader.window.fetched_head(min(size_bytes, 128 * KIB))
        reader.window.check()
    for index, (offset, size) in enumerate(sequence):
        if index == slow_at:
            reader.window.slow_down()
            reader.window.check()
        plan = reader.read(offset, size)
        assert reader.window.keeps(offset + size - 1, plan.stop)
        assert plan.part_bytes <= max(part_bytes, size + 2 * PAGE_BYTES)


@settings(deadline=None)
@given(st.integers(PAGE_BYTES, HUGE_BYTES), READ_SIZES)
def test_a_random_read_is_fetched_exactly(offset: int, size: int) -> None:
    """A read that follows no other fetches its pages, in one part, and nothing more."""
    for size_bytes in (HUGE_BYTES * 2, offset + size, offset + size + 1):
        plan = Reader(size_bytes).read(offset, size)
        assert (plan.start, plan.stop) == pages(offset, size, size_bytes)
        assert plan.part_bytes >= plan.stop - plan.start


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 4 * KIB, 128 * KIB, MIB]))
def test_random_reads_fetch_what_was_asked(seed: int, largest: int) -> None:
    """Random reads over a large object fetch at most a tenth more than their pages."""
    random_ = random.Random(seed)
    reader = Reader(100 << 30)
    asked_bytes = planned_bytes = 0
    for _ in range(500):
        offset = random_.randrange(reader.size - MIB)
        size = random_.randint(1, largest)
        plan = reader.window.plan(offset, size)
        reader.window.check()
        start, stop = pages(offset, size, reader.size)
        asked_bytes += stop - start
        planned_bytes += plan.stop - plan.start
    assert planned_bytes <= 1.1 * asked_bytes


def test_from_the_start_it_ramps_up() -> None:
    """A reader from the start gets 1 MiB of read-ahead, doubled with each plan to the limit."""
    reader = Reader(1 << 30)
    for index, window in enumerate([1, 2, 4, 8, 16, 32, 64, 64, 64, 64]):
        plan = reader.read(index * 128 * KIB, 128 * KIB)
        assert window * MIB // 2 <= plan.stop - (index + 1) * 128 * KIB <= window * MIB


def test_fetched_by_whole_parts() -> None:
    """At the limit each plan adds whole parts or nothing, wherever in a part the reader is."""
    reader = Reader(8 << 30)
    plan = Plan(0, 0, 0)
    for index in range(2000):
        before, plan = plan.stop, reader.read(index * 128 * KIB, 128 * KIB)
        if index > 10:
            assert (plan.stop - before) % PART_BYTES == 0


def test_parts_grow_with_the_window() -> None:
    """A quarter of the window per part: several requests in flight, none larger than a part."""
    reader = Reader(1 << 30)
    parts = [reader.read(index * 128 * KIB, 128 * KIB).part_bytes // MIB for index in range(9)]
    assert parts == [1, 1, 1, 2, 4, 8, 8, 8, 8]


def test_the_head_belongs_to_the_reader_from_the_start() -> None:
    """After the head came with open, the first read is sequential already."""
    reader = Reader(1 << 30)
    reader.window.fetched_head(128 * KIB)
    assert reader.read(0, 128 * KIB).stop == 128 * KIB + MIB
    assert reader.read(128 * KIB, 128 * KIB).stop == 128 * KIB + 2 * MIB


@settings(deadline=None)
@given(st.integers(PAGE_BYTES, HUGE_BYTES // 2), st.lists(READ_SIZES, min_size=2, max_size=40))
def test_a_run_reads_no_more_ahead_than_it_has_read(begin: int, sizes: list[int]) -> None:
    """In the middle of an object read-ahead is bounded by what was read, and does begin."""
    reader = Reader(HUGE_BYTES)
    position = begin
    first_start, first_stop = pages(begin, sizes[0], HUGE_BYTES)
    for index, size in enumerate(sizes):
        plan = reader.read(position, size)
        position += size
        ahead = plan.stop - position
        read = position - first_start
        assert ahead < PAGE_BYTES or (index > 0 and ahead <= min(read, AHEAD_BYTES))
        if position > first_stop:
            assert ahead >= min(read, FIRST_AHEAD_BYTES) // 2 - PAGE_BYTES


def test_a_long_run_in_the_middle_reaches_the_limit() -> None:
    """A sequential reader that began anywhere gets the whole window in the end."""
    reader = Reader(HUGE_BYTES)
    begin = 5 << 30
    for position in range(begin, begin + 200 * MIB, MIB):
        plan = reader.read(position, MIB)
    assert AHEAD_BYTES - PART_BYTES < plan.stop - (position + MIB) <= AHEAD_BYTES


@settings(deadline=None)
@given(st.sampled_from([4 * KIB, 128 * KIB, MIB]), st.integers(1, 64 * MIB))
def test_a_sequential_read_fetches_every_byte_once(read_size: int, size_bytes: int) -> None:
    """Reading an object from start to end plans each byte, and none twice."""
    reader = Reader(size_bytes)
    furthest = 0
    for position in range(0, size_bytes, max(read_size, size_bytes // 500)):
        plan = reader.read(position, min(read_size, size_bytes - position))
        assert plan.stop >= furthest
        furthest = plan.stop
    assert reader.fetched_bytes == furthest


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, MAX_RUNS),
    st.integers(0, 2**32),
    st.sampled_from([4 * KIB, 60_000, 128 * KIB, MIB]),
)
def test_interleaved_readers_all_stay_sequential(readers: int, seed: int, read_size: int) -> None:
    """Up to sixteen sequential readers of one handle ramp up, and no byte is fetched twice."""
    random_ = random.Random(seed)
    distance = 1 << 32
    reader = Reader(readers * distance)
    done = [0] * readers
    for which in random_.choices(range(readers), k=40 * readers):
        base = which * distance
        plan = reader.read(base + done[which], read_size)
        done[which] += read_size
        if done[which] > read_size:  # from its second read on
            ahead = plan.stop - (base + done[which])
            assert ahead >= min(done[which], FIRST_AHEAD_BYTES) // 2 - PAGE_BYTES
    covered = [stop - start for start, stop in reader.fetched]
    assert sum(covered) == reader.fetched_bytes
    allowed = sum(2 * read + PAGE_BYTES for read in done[1:])
    assert reader.fetched_bytes <= allowed + done[0] + AHEAD_BYTES


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 3 << 30]))
def test_jitter_does_not_reset(seed: int, begin: int) -> None:
    """Kernel reads that come up to 512 KiB early or late stay in their run."""
    random_ = random.Random(seed)
    reader = Reader(8 << 30)
    read_size = 128 * KIB
    for index in range(2):  # the second read makes the run sequential
        reader.read(begin + index * read_size, read_size)
    # Sorting by position plus noise moves a read at most three places: 384 KiB.
    order = sorted(range(2, 100), key=lambda index: index + random_.random() * 3)
    furthest = begin + 2 * read_size
    for index in order:
        plan = reader.read(begin + index * read_size, read_size)
        furthest = max(furthest, begin + (index + 1) * read_size)
        window = min(furthest - begin, FIRST_AHEAD_BYTES)
        assert plan.stop - furthest >= window // 2 - PAGE_BYTES
        assert reader.window.keeps(furthest - JITTER_BYTES, furthest)
    assert not reader.gaps(begin, furthest)
    fetched = sorted(reader.fetched)
    assert reader.fetched_bytes == fetched[-1][1] - begin


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 10), st.sampled_from([64 * KIB, MIB, 8 * MIB]))
def test_slow_down(reads_before: int, times: int, part_bytes: int) -> None:
    """Each slowing halves the parts and the read-ahead, down to 128 KiB and never up."""
    reader = Reader(1 << 40, part_bytes, 8 * part_bytes)
    position = 0
    for _ in range(reads_before):
        reader.read(position, 128 * KIB)
        position += 128 * KIB
    least = min(part_bytes, 128 * KIB)
    for _ in range(times):
        reader.window.slow_down()
        reader.window.check()
    allowed_part = max(part_bytes >> times, least)
    allowed_ahead = max((8 * part_bytes) >> times, allowed_part)
    for index in range(20):
        plan = reader.read(position, 64 * KIB)
        position += 64 * KIB
        assert plan.stop - position <= max(allowed_ahead, PAGE_BYTES)
        if index > 0 or reads_before > 0:
            assert plan.part_bytes <= allowed_part
    assert plan.stop - position >= allowed_ahead // 2 - PAGE_BYTES


def test_keeps_what_a_reader_may_come_to() -> None:
    """Kept is from 512 KiB behind the reader to 512 KiB beyond its read-ahead."""
    reader = Reader(1 << 30)
    for index in range(100):
        plan = reader.read(index * 128 * KIB, 128 * KIB)
    cursor = 100 * 128 * KIB
    keeps = reader.window.keeps
    assert keeps(0, cursor - JITTER_BYTES + 1)
    assert not keeps(0, cursor - JITTER_BYTES)
    assert keeps(cursor, plan.stop)
    assert keeps(plan.stop + JITTER_BYTES - 1, 1 << 30)
    assert not keeps(plan.stop + JITTER_BYTES, 1 << 30)


def test_keeps_for_every_run() -> None:
    """A second reader elsewhere does not take away what the first one needs, until forgotten."""
    reader = Reader(1 << 40)
    first = reader.read(0, 128 * KIB)
    for index in range(1, MAX_RUNS):
        reader.read(index << 30, 4 * KIB)
        assert reader.window.keeps(first.start, first.stop)
    reader.read(MAX_RUNS << 30, 4 * KIB)
    assert not reader.window.keeps(first.start, first.stop)


def test_a_run_in_use_is_not_forgotten() -> None:
    """Among random reads, the sequential reader that goes on stays sequential."""
    random_ = random.Random(1)
    reader = Reader(1 << 40)
    for index in range(200):
        plan = reader.read(index * 128 * KIB, 128 * KIB)
        assert plan.stop - (index + 1) * 128 * KIB >= MIB
        for _ in range(MAX_RUNS - 2):
            reader.read(random_.randrange(1 << 32, 1 << 40) & ~4095, 4 * KIB)
