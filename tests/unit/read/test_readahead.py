"""Read-ahead for every kind of reader: the fetched ranges, and the wasted bytes."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.objects import KIB, MIB
from bench.patterns import Piece, backwards, pieces
from mountpoint.read.patterns import JITTER_READS, MAX_PIECES, PAGE_BYTES, Range
from mountpoint.read.readahead import (
    FIRST_AHEAD_BYTES,
    LARGE_READ_BYTES,
    MAX_RUNS,
    MIN_AHEAD_BYTES,
    RETIRE_PLANS,
    Window,
)
from tests.soak import examples
from tests.unit.patterns import COST, GIB, PATTERNS, by_threads, cases, columns, parquet, strided

PART_BYTES = 8 * MIB
AHEAD_BYTES = 64 * MIB
HUGE_BYTES = 1 << 40
#: Read-ahead is a quarter of the bytes read: after this many it reaches the limit.
RAMP_BYTES = 6 * AHEAD_BYTES


def overlaps(one: Range, others: list[Range]) -> bool:
    """Whether a range has bytes in common with one of the others."""
    return any(start < one[1] and one[0] < stop for start, stop in others)


class Reader:
    """A stream without bytes: the parts around a window, and their cost.

    As in `read.stream`, a read within one part that a reader has reached needs no plan. Any other
    read is planned, and parts that the window does not keep are dropped.
    """

    def __init__(
        self, size_bytes: int, *, part_bytes: int = PART_BYTES, ahead_bytes: int = AHEAD_BYTES
    ) -> None:
        self.size = size_bytes
        self.ahead_bytes = ahead_bytes
        self.window = Window(size_bytes, part_bytes=part_bytes)
        self.requests: list[Range] = []
        self.reads = 0
        self.read_bytes = 0
        self.fetched_bytes = 0
        self.late = 0  # reads with bytes that were not yet requested
        self._part_bytes = part_bytes
        self._parts: list[Range] = []  # in order, disjoint
        self._known: set[Range] = set()  # parts that a reader has reached
        self._hit_stop = 0

    @property
    def cost(self) -> float:
        """The fetched bytes per byte read."""
        return self.fetched_bytes / self.read_bytes

    def read_all(self, reads: Iterator[Piece]) -> "Reader":
        """Perform reads one after another."""
        for offset, size in reads:
            self.read(offset, size)
        return self

    def read(self, offset: int, size: int) -> None:
        """Read from known parts or with a plan."""
        stop = offset + size
        self.reads += 1
        self.read_bytes += size
        for part in self._parts:
            if part in self._known and part[0] <= offset and stop <= part[1]:
                self._hit_stop = stop
                return
        ranges = self.plan(offset, size)
        kept = [*self.window.kept(), (offset, stop)]
        self._parts = [part for part in self._parts if overlaps(part, kept)]
        self.late += bool(self._gaps(offset, stop))
        exact = []
        for gap in [gap for planned in ranges for gap in self._gaps(*planned)]:
            self.requests.append(gap)
            self.fetched_bytes += gap[1] - gap[0]
            self._parts = sorted([*self._parts, gap])
            if offset - PAGE_BYTES < gap[0] and gap[1] <= stop:
                exact.append(gap)  # no other read needs it: drop it after the answer
        assert not self._gaps(offset, stop)
        self._parts = [part for part in self._parts if part not in exact]
        here = {part for part in self._parts if part[0] < stop and offset < part[1]}
        self._known = (self._known & set(self._parts)) | here

    def plan(self, offset: int, size: int) -> list[Range]:
        """Ask the window for a plan, and check the invariants of plans."""
        ranges = self.window.plan(
            offset, size, ahead_bytes=self.ahead_bytes, hit_stop=self._hit_stop
        )
        self.window.check()
        position = offset
        for start, stop in sorted(ranges):
            assert 0 <= start < stop <= self.size
            assert stop - start <= max(self._part_bytes, size + 2 * PAGE_BYTES)
            if stop <= offset or offset + size <= start:
                assert self.keeps(start, stop), "unread bytes are kept"
            if start <= position:
                position = max(position, stop)
        assert position >= offset + size, "the read is covered"
        for (_, stop), (start, _) in itertools.pairwise(sorted(ranges)):
            assert stop <= start, "no byte is in two requests"
        return ranges

    def keeps(self, start: int, stop: int) -> bool:
        """Whether the window still needs bytes of [start, stop)."""
        return overlaps((start, stop), self.window.kept())

    def _gaps(self, start: int, stop: int) -> list[Range]:
        gaps = []
        for have_start, have_stop in self._parts:
            if have_stop > start and have_start < stop:
                if have_start > start:
                    gaps.append((start, have_start))
                start = have_stop
        return [*gaps, (start, stop)] if start < stop else gaps


def pages(offset: int, size: int, object_size: int) -> Range:
    """Return a read's range in whole pages of the object."""
    stop = -(-(offset + size) // PAGE_BYTES) * PAGE_BYTES
    return offset // PAGE_BYTES * PAGE_BYTES, min(stop, object_size)


def reach(ranges: list[Range]) -> int:
    """Return the end of the furthest range."""
    return max(stop for _, stop in ranges)


# --- Any reads ---

READ_SIZES = st.integers(1, MIB) | st.sampled_from([4 * KIB, 128 * KIB, MIB])


@st.composite
def any_reads(draw: st.DrawFn) -> tuple[int, list[Piece]]:
    """Draw an object's size and reads within it, many near or similar to the previous ones."""
    size_bytes = draw(st.integers(1, 1 << 28))
    position, distance, size = 0, 0, 1
    found: list[Piece] = []
    for _ in range(draw(st.integers(1, 40))):
        kind = draw(st.sampled_from(["on", "on", "near", "back", "stride", "stride", "jump"]))
        before = position
        if kind != "stride":
            size = draw(READ_SIZES)
        match kind:
            case "on":
                position = sum(found[-1]) if found else 0
            case "near":
                position += draw(st.sampled_from([-2 * MIB, -PAGE_BYTES, 1, MIB]))
            case "back":
                position -= size
            case "stride":
                position += distance
            case "jump":
                position = draw(st.integers(0, size_bytes - 1))
        position = min(max(position, 0), size_bytes - 1)
        distance = position - before
        found.append((position, min(size, size_bytes - position)))
    return size_bytes, found


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(80))
@given(
    any_reads(),
    st.sampled_from([64 * KIB, 100_000, MIB, 8 * MIB]),
    st.sampled_from([0, MIB, 64 * MIB]),
    st.none() | st.sampled_from([4 * KIB, 128 * KIB, MIB]),
    st.dictionaries(st.integers(0, 40), st.sampled_from(["slow", "fast", "forget"])),
)
@example((599_713, [(503_807, 94_210), (598_017, 1)]), 100_000, 0, None, {})
def test_any_reads(
    drawn: tuple[int, list[Piece]],
    part_bytes: int,
    ahead_bytes: int,
    initial_bytes: int | None,
    events: dict[int, str],
) -> None:
    """A plan covers its read, consists of parts, stays within the object, and is kept."""
    size_bytes, reads = drawn
    reader = Reader(size_bytes, part_bytes=part_bytes, ahead_bytes=ahead_bytes)
    if initial_bytes is not None:
        reader.window.fetched_initial(initial_bytes)
    for index, (offset, size) in enumerate(reads):
        match events.get(index):
            case "slow":
                reader.window.slow_down()
            case "fast":
                reader.window.speed_up()
            case "forget":
                reader.window.forget_ahead(0)
        reader.window.check()
        reader.read(offset, size)


# --- What each kind of reader costs ---


#: Readers whose next read can be known: one late read in so many at the most.
FORESEEABLE = {
    "mapped, in order": 1000,
    "sequential": 1000,
    "sequential from the middle": 100,
    "out of order, 1M": 20,
    "out of order, 128K": 100,
    "out of order from the middle": 15,
    "backward": 500,
    "backward, odd size": 500,
    "backward from the middle": 500,
    "stride 64K of 1M": 300,
    "stride 4K of 64K": 300,
    "stride 1M of 4M": 300,
    "stride 256K of 512K": 300,
    "stride 256K of 1M, from the start": 200,
    "stride 64K of 1M, backward": 300,
    "two streams": 500,
    "two streams from anywhere": 100,
    "sixteen in turns": 30,
    "sixteen merged": 30,
    "sixteen merged, 1M": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "seed"), cases(PATTERNS))
def test_patterns(pattern: str, seed: int) -> None:
    """No kind of reader makes more than a tenth (random) or three tenths be fetched in vain.

    What is foreseeable has been asked for before it is read, but for the first few reads.
    """
    kind = PATTERNS[pattern]
    reader = Reader(kind.size_bytes).read_all(kind.reads(seed))
    assert reader.cost <= kind.most
    if pattern in FORESEEABLE:
        assert reader.late <= reader.reads // FORESEEABLE[pattern]


# --- Random reads ---


@settings(deadline=None)
@given(st.integers(PAGE_BYTES, HUGE_BYTES), READ_SIZES)
def test_a_random_read_is_fetched_exactly(offset: int, size: int) -> None:
    """A single read fetches its pages in one request, and nothing more."""
    for size_bytes in (HUGE_BYTES * 2, offset + size, offset + size + 1):
        assert Reader(size_bytes).plan(offset, size) == [pages(offset, size, size_bytes)]


def test_reads_at_random_places_are_known_as_such() -> None:
    """After sixteen reads that belong to no pattern the next is random; a run ends that."""
    window = Window(64 * MIB, part_bytes=8 * MIB)
    source = random.Random(5)
    places = [source.randrange(16_000) * 4096 for _ in range(40)]
    for number, offset in enumerate(places):
        assert window.random == (number >= 16)
        window.plan(offset, 4096, ahead_bytes=32 * MIB)
    assert window.recent()[-3:] == [(offset, offset + 4096) for offset in places[-3:]]
    window.plan(places[-1] + 4096, 4096, ahead_bytes=32 * MIB)
    assert not window.random


@settings(deadline=None, max_examples=examples(30))
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 64), st.booleans())
def test_random_reads_of_the_lane(seed: int, before: int, count: int, gaps: bool) -> None:
    """Reads that the lane has fetched count as if each had been planned."""
    random_ = random.Random(seed)
    windows = [Window(GIB, part_bytes=PART_BYTES) for _ in range(2)]
    # Far apart, and no two in a row at the same distance.
    places = [(place * MIB) + random_.randrange(500_000) for place in range(1000)]
    random_.shuffle(places)
    reads = [(offset, offset + random_.randint(1, 8 * KIB)) for offset in places]
    for window in windows:
        if gaps:
            window.expect_gaps()
        for start, stop in reads[:before]:
            window.plan(start, stop - start, ahead_bytes=AHEAD_BYTES)
    taken = reads[before : before + count]
    windows[0].take_random(taken)
    for start, stop in taken:
        windows[1].plan(start, stop - start, ahead_bytes=0)
    one, other = windows
    one.check()
    assert one.recent() == other.recent()
    assert one.random == other.random
    last = taken[-1]
    later = [last[1], last[1] + 4 * KIB, *places[-5:]]
    for offset in later:
        plans = [each.plan(offset, 4 * KIB, ahead_bytes=AHEAD_BYTES) for each in windows]
        assert plans[0] == plans[1]


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(5))
@given(st.integers(0, 2**32), st.sampled_from([1, 4 * KIB, 128 * KIB, MIB]))
def test_random_reads_of_any_size(seed: int, largest: int) -> None:
    """Random reads at any byte fetch at most a tenth more than their pages."""
    random_ = random.Random(seed)
    reader = Reader(100 << 30)
    asked_bytes = 0
    for _ in range(500):
        offset, size = random_.randrange(reader.size - MIB), random_.randint(1, largest)
        start, stop = pages(offset, size, reader.size)
        asked_bytes += stop - start
        reader.read(offset, size)
    assert reader.fetched_bytes <= 1.1 * asked_bytes


@pytest.mark.parametrize("size", [1, 4 * KIB, 16 * KIB, LARGE_READ_BYTES - PAGE_BYTES])
@pytest.mark.parametrize("initial", [False, True])
def test_peeking(size: int, initial: bool) -> None:
    """After a first small read, like that of `file`, nothing more is fetched."""
    reader = Reader(GIB)
    if initial:
        reader.window.fetched_initial(128 * KIB)
    assert reach(reader.plan(0, size)) <= (128 * KIB if initial else pages(0, size, GIB)[1])


# --- From the start ---


def test_from_the_start_it_ramps_up() -> None:
    """A reader from the start gets 1 MiB of read-ahead, doubled with each plan to the limit."""
    reader = Reader(GIB)
    ranges: list[Range] = []
    for index, window in enumerate([1, 2, 4, 8, 16, 32, 64, 64, 64, 64]):
        ranges += reader.plan(index * 128 * KIB, 128 * KIB)
        assert window * MIB // 2 <= reach(ranges) - (index + 1) * 128 * KIB <= window * MIB


def test_parts_grow_with_the_window() -> None:
    """A part is a quarter of the window: several requests in flight, none larger than a part."""
    reader = Reader(GIB)
    largest = []
    for index in range(9):
        ranges = reader.plan(index * 128 * KIB, 128 * KIB)
        largest.append(-(-max(stop - start for start, stop in ranges) // MIB))
    assert largest == [1, 1, 1, 2, 4, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("share_mib", "part_mib", "most"),
    [(16, 4, 4), (24, 4, 6), (32, 8, 4), (38, 4, 7), (47, 4, 7), (48, 8, 6), (152, 8, 19)],
)
def test_parts_of_a_share(share_mib: int, part_mib: int, most: int) -> None:
    """With shared memory there are as many requests; those of full size fill the share."""
    reader = Reader(GIB, ahead_bytes=share_mib * MIB)
    ahead = 0
    for offset in range(0, GIB, MIB):
        reader.read(offset, MIB)
        if offset >= GIB // 4 and offset < GIB // 2:
            ahead = max(ahead, reader.requests[-1][1] - offset - MIB)
            assert reader.requests[-1][1] - reader.requests[-1][0] == part_mib * MIB
    assert (most - 1) * part_mib * MIB < ahead <= most * part_mib * MIB


@pytest.mark.parametrize("begin", [0, 5 * GIB + 123 * PAGE_BYTES])
@pytest.mark.parametrize("read_size", [128 * KIB, MIB])
def test_whole_parts(begin: int, read_size: int) -> None:
    """At full size all requests are whole parts at multiples of the part size."""
    reader = Reader(16 * GIB).read_all(pieces(begin, begin + GIB, read_size))
    for start, stop in reader.requests:
        if start >= begin + RAMP_BYTES:
            assert (start % PART_BYTES, stop - start) == (0, PART_BYTES)


@pytest.mark.parametrize("initial_bytes", [128 * KIB, MIB])
def test_the_head_belongs_to_the_reader_from_the_start(initial_bytes: int) -> None:
    """After the initial range, the first large read already counts as sequential."""
    reader = Reader(GIB)
    reader.window.fetched_initial(initial_bytes)
    assert reach(reader.plan(0, 128 * KIB)) >= 128 * KIB + FIRST_AHEAD_BYTES // 2
    assert reach(reader.plan(128 * KIB, 128 * KIB)) >= 256 * KIB + FIRST_AHEAD_BYTES


def test_a_small_second_read_makes_it_sequential() -> None:
    """After a small first read, a second one that follows starts the read-ahead."""
    reader = Reader(GIB)
    reader.plan(0, 4 * KIB)
    ahead = reach(reader.plan(4 * KIB, 4 * KIB)) - 8 * KIB
    assert FIRST_AHEAD_BYTES // 2 <= ahead <= FIRST_AHEAD_BYTES


# --- From the middle ---


@settings(deadline=None)
@given(st.integers(PAGE_BYTES, HUGE_BYTES // 2), st.lists(READ_SIZES, min_size=2, max_size=60))
def test_from_the_middle_read_ahead_is_earned(begin: int, sizes: list[int]) -> None:
    """Elsewhere a run gets a quarter of its bytes as read-ahead."""
    reader = Reader(HUGE_BYTES)
    position = begin
    first_start = pages(begin, sizes[0], HUGE_BYTES)[0]
    ranges: list[Range] = []
    for index, size in enumerate(sizes):
        ranges += reader.plan(position, size)
        position += size
        ahead, read = reach(ranges) - position, position - first_start
        earned = min(max(read // 4, min(read, MIN_AHEAD_BYTES)), AHEAD_BYTES)
        assert ahead < PAGE_BYTES or (index > 0 and ahead <= earned)
        if read >= 4 * FIRST_AHEAD_BYTES + MIB:
            assert ahead >= FIRST_AHEAD_BYTES // 2


def test_a_long_run_in_the_middle_reaches_the_limit() -> None:
    """A sequential reader with any start finally gets the whole window."""
    reader = Reader(HUGE_BYTES)
    begin = 5 << 30
    ranges: list[Range] = []
    for position in range(begin, begin + RAMP_BYTES, MIB):
        ranges += reader.plan(position, MIB)
    assert AHEAD_BYTES - PART_BYTES < reach(ranges) - (position + MIB) <= AHEAD_BYTES


@settings(deadline=None)
@given(st.sampled_from([4 * KIB, 128 * KIB, MIB]), st.integers(1, 64 * MIB), st.booleans())
def test_from_end_to_end_every_byte_is_fetched_once(
    read_size: int, size_bytes: int, from_end: bool
) -> None:
    """A whole object, read in either direction, fetches each byte exactly once."""
    direction = backwards if from_end else pieces
    step = max(read_size, size_bytes // 500 // PAGE_BYTES * PAGE_BYTES)
    reader = Reader(size_bytes).read_all(direction(0, size_bytes, step))
    assert reader.cost == 1.0


# --- Several readers ---


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(2))
@given(
    st.integers(2, MAX_RUNS),
    st.integers(0, 2**32),
    st.sampled_from([128 * KIB, MIB]),
)
@example(MAX_RUNS, 3, 128 * KIB)
def test_interleaved_readers_all_stay_sequential(readers: int, seed: int, read_size: int) -> None:
    """As many sequential readers as there are runs are tracked, in any order of turns."""
    random_ = random.Random(seed)
    begins = [which * which << 30 for which in range(readers)]
    reader = Reader(HUGE_BYTES)

    def read_on(begin: int, stop: int) -> None:
        for position in range(begin, stop, read_size):
            for base in random_.sample(begins, readers):
                reader.read(base + position, read_size)

    turns = 8 * MIB // read_size
    read_on(0, turns * read_size)
    late = reader.late
    read_on(turns * read_size, 4 * turns * read_size)
    assert reader.late - late <= readers  # of 24 or more reads each
    assert reader.cost <= COST


def test_readers_share_the_read_ahead() -> None:
    """Each of eight readers gets an eighth of the read-ahead."""
    reader = Reader(HUGE_BYTES)
    begins = [which * which << 30 for which in range(8)]
    reached = [0] * 8
    for turn in range(200):
        for which, begin in enumerate(begins):
            ranges = reader.plan(begin + turn * MIB, MIB)
            reached[which] = max(reached[which], reach(ranges) - begin)
    assert all(
        200 * MIB + AHEAD_BYTES // 16 <= each <= 200 * MIB + AHEAD_BYTES // 8 for each in reached
    )


def test_stopped_readers_take_no_share() -> None:
    """A reader gets all of it again when the others have stopped."""
    reader = Reader(HUGE_BYTES)
    for turn in range(20):
        for which in range(8):
            reader.plan((which * which << 30) + turn * MIB, MIB)
    ranges = [each for turn in range(20, 200) for each in reader.plan(turn * MIB, MIB)]
    assert reach(ranges) - 200 * MIB > AHEAD_BYTES - PART_BYTES


@pytest.mark.slow
def test_a_run_in_use_is_not_forgotten() -> None:
    """A sequential reader among random reads stays sequential."""
    random_ = random.Random(1)
    reader = Reader(HUGE_BYTES)
    reached = 0
    for index in range(200):
        reached = max(reached, reach(reader.plan(index * 128 * KIB, 128 * KIB)))
        assert reached - (index + 1) * 128 * KIB >= MIB
        for _ in range(MAX_RUNS - 2):
            reader.plan(random_.randrange(1 << 32, 1 << 40) & ~4095, 4 * KIB)


# --- Backward ---


def test_backward_the_nearest_comes_first() -> None:
    """The first request of a backward reader is the range that it needs first."""
    reader = Reader(4 * GIB)
    for offset, size in itertools.islice(backwards(GIB, 2 * GIB, MIB), 200):
        ranges = reader.plan(offset, size)
        assert ranges == sorted(ranges, reverse=True)


@pytest.mark.parametrize("size_bytes", [GIB, GIB + 777, GIB + 3 * MIB + PAGE_BYTES])
@pytest.mark.parametrize("read_size", [128 * KIB, MIB])
def test_backward_by_whole_parts(size_bytes: int, read_size: int) -> None:
    """At full size a backward reader's requests are whole parts as well, for any object size."""
    reader = Reader(size_bytes).read_all(backwards(0, size_bytes, read_size))
    for start, stop in reader.requests:
        if start > 0 and stop <= size_bytes - RAMP_BYTES:
            assert (start % PART_BYTES, stop - start) == (0, PART_BYTES)


# --- Strides ---


def test_a_stride_is_fetched_ahead_piece_by_piece() -> None:
    """From the third read at one distance, the next pieces are fetched, each exactly."""
    reader = Reader(HUGE_BYTES)
    begin, size, distance = GIB, 8 * KIB, MIB
    for index in range(10):
        ranges = reader.plan(begin + index * distance, size)
        count = 1 if index < 2 else min(2 ** (index - 1), MAX_PIECES) + 1
        assert ranges == [
            (start, start + size)
            for start in (begin + (index + piece) * distance for piece in range(count))
        ]


def test_a_stride_ends_with_the_object() -> None:
    """No piece is beyond the end or before the start of the object."""
    reader = Reader(100 * MIB).read_all(strided(10 * MIB, 90, 8 * KIB, MIB))
    assert reader.fetched_bytes == reader.read_bytes
    reader = Reader(100 * MIB).read_all(strided(90 * MIB, 91, 8 * KIB, -MIB))
    assert reader.fetched_bytes == reader.read_bytes


def test_a_stride_that_ends_is_left_at_once() -> None:
    """A read elsewhere after a stride is random, so it is exact."""
    reader = Reader(HUGE_BYTES).read_all(strided(GIB, 50, 8 * KIB, MIB))
    assert reader.plan(5 * GIB, 8 * KIB) == [(5 * GIB, 5 * GIB + 8 * KIB)]
    assert not reader.keeps(GIB + 10 * MIB, 4 * GIB)


def test_strides_that_ended_soon() -> None:
    """Once pieces were not read, at most a quarter of the bytes read is fetched ahead."""
    reader = Reader(HUGE_BYTES)
    for turn in range(100):
        reader.read_all(strided(turn * 64 * MIB + turn * turn * 4 * KIB, 6, 8 * KIB, MIB))
    assert reader.cost <= 1.3
    before = reader.late
    reader.read_all(strided(9 * GIB, 1000, 8 * KIB, MIB))
    assert reader.late - before <= 20


# --- Jumps ---


def test_runs_of_one_length_are_fetched_as_one() -> None:
    """Jumps between chunks of one length fetch each chunk with its first read, and no more."""
    reader = Reader(HUGE_BYTES)
    for chunk in range(50):
        begin = chunk * chunk * 100 * MIB + PAGE_BYTES  # not a stride
        before = reader.fetched_bytes
        reader.read_all(pieces(begin, begin + 2 * MIB, 256 * KIB))
        if chunk >= 20:
            assert reader.fetched_bytes - before == 2 * MIB
    assert reader.late <= 50 + 20 * 3


@pytest.mark.parametrize(("threads", "cost", "requests"), [(1, 1.05, 40), (8, 1.12, 90)])
def test_column_chunks_of_a_small_file(threads: int, cost: float, requests: int) -> None:
    """A footer does not show the length of column chunks, nor do unfinished chunks."""
    chunks = columns(50 * MIB, (3, 7), 10, 1_000_537, beyond_bytes=172 * KIB)
    reader = Reader(50 * MIB).read_all(by_threads(chunks, threads))
    assert reader.cost <= cost
    assert len(reader.requests) <= requests


def test_a_footer_is_no_jump() -> None:
    """A reader of the footer, the header and then everything is sequential."""
    reader = Reader(GIB)
    reader.read(GIB - 64 * KIB, 64 * KIB)
    reader.read_all(pieces(0, GIB - 64 * KIB, 128 * KIB))
    assert reader.late <= 3
    assert reader.cost <= 1.01


@pytest.mark.slow
def test_a_long_run_after_short_ones_reaches_the_limit() -> None:
    """Even after many jumps a long run finally gets the whole window."""
    reader = Reader(HUGE_BYTES).read_all(parquet(GIB, 1))
    begin = HUGE_BYTES // 2
    ranges = [
        each
        for position in range(begin, begin + 400 * MIB, MIB)
        for each in reader.plan(position, MIB)
    ]
    assert reach(ranges) - (begin + 400 * MIB) > AHEAD_BYTES - PART_BYTES


# --- Kept parts ---


def test_keeps_parts_near_a_reader() -> None:
    """Parts are kept from four reads behind the reader to the end of its read-ahead."""
    reader = Reader(GIB)
    ranges: list[Range] = []
    for index in range(100):
        ranges += reader.plan(index * 128 * KIB, 128 * KIB)
    cursor, end = 100 * 128 * KIB, reach(ranges)
    keeps = reader.keeps
    behind = cursor - JITTER_READS * 128 * KIB
    assert keeps(0, behind + 1)
    assert not keeps(0, behind)
    assert keeps(end - 1, GIB)
    assert not keeps(end, GIB)


def test_keeps_for_every_run() -> None:
    """A reader elsewhere does not drop parts of another run, until that is forgotten."""
    reader = Reader(2 * HUGE_BYTES)
    first = reader.plan(0, 128 * KIB)
    for index in range(1, MAX_RUNS):
        reader.plan(index * index << 30, 4 * KIB)
        assert all(reader.keeps(*each) for each in first)
    reader.plan(MAX_RUNS * MAX_RUNS << 30, 4 * KIB)
    assert not any(reader.keeps(*each) for each in first)


def test_a_run_that_is_not_used_is_forgotten() -> None:
    """Parts of a run are dropped after 64 plans for others."""
    reader = Reader(HUGE_BYTES)
    first = reader.plan(0, 128 * KIB)
    for index in range(RETIRE_PLANS + 1):
        assert all(reader.keeps(*each) for each in first)
        reader.plan(GIB + index * 128 * KIB, 128 * KIB)
    assert not any(reader.keeps(*each) for each in first)


# --- From outside ---


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3, 10])
@pytest.mark.parametrize("part_bytes", [64 * KIB, 100_000, MIB, 8 * MIB])
def test_slow_down(times: int, part_bytes: int) -> None:
    """Each slow-down halves the parts, to 128 KiB at least, and never enlarges them."""
    reader = Reader(GIB, part_bytes=part_bytes)
    for index in range(20):
        reader.plan(index * 128 * KIB, 128 * KIB)
    for _ in range(times):
        reader.window.slow_down()
        reader.window.check()
    allowed = max(part_bytes >> times, min(part_bytes, 128 * KIB))
    ranges = [each for index in range(20, 60) for each in reader.plan(index * 128 * KIB, 128 * KIB)]
    assert max(stop - start for start, stop in ranges) == allowed
    assert reader.window.slowed == (allowed < part_bytes)


@pytest.mark.parametrize("part_bytes", [300_000, MIB, 8 * MIB])
def test_speed_up(part_bytes: int) -> None:
    """Each speed-up doubles the parts, to the full size at most."""
    reader = Reader(GIB, part_bytes=part_bytes)
    for _ in range(10):
        reader.window.slow_down()
    slowed = reader.window.slowed
    for _ in range(10):
        reader.window.speed_up()
    assert (slowed, reader.window.slowed) == (True, False)
    ranges = [each for index in range(40) for each in reader.plan(index * 128 * KIB, 128 * KIB)]
    assert max(stop - start for start, stop in ranges) == part_bytes


def test_forget_ahead() -> None:
    """Afterwards nothing ahead is kept, and read-ahead starts with 1 MiB again."""
    reader = Reader(GIB)
    for index in range(20):
        reader.plan(index * 128 * KIB, 128 * KIB)
    reader.window.forget_ahead(0)
    reader.window.check()
    cursor = 20 * 128 * KIB
    assert not reader.keeps(cursor + MIB, GIB)
    ranges = reader.plan(cursor, 128 * KIB)
    assert cursor + 128 * KIB + MIB // 2 <= reach(ranges) <= cursor + 128 * KIB + MIB


def test_without_room_nothing_is_read_ahead() -> None:
    """Without memory for read-ahead each read is fetched when it comes, once."""
    reader = Reader(GIB, ahead_bytes=0).read_all(pieces(0, 64 * MIB, 128 * KIB))
    assert reader.requests == [
        (start, start + size) for start, size in pieces(0, 64 * MIB, 128 * KIB)
    ]
