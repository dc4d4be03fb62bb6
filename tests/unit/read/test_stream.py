"""Read streams on a fake client: bytes, requests, faults, deadlines, memory."""

import errno
import functools
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bench.patterns import backwards
from mountpoint._fastpath import Part
from mountpoint.config import ReadConfig
from mountpoint.errors import (
    AccessDenied,
    BadAnswer,
    BadHandle,
    ChecksumMismatch,
    Interrupted,
    NotFound,
    PreconditionFailed,
    S3Error,
    ServerFault,
    Stalled,
    Throttled,
    TransportFault,
    outcome,
)
from mountpoint.metrics.counters import Counters
from mountpoint.read import stream
from mountpoint.read.history import INITIAL_BYTES, WHOLE_BYTES, parts_of
from mountpoint.read.readahead import RETIRE_PLANS
from mountpoint.read.stream import SMALL_BYTES, ReadStream
from mountpoint.s3 import retry
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import Attempts, RetryPolicy
from mountpoint.transfer import hedging
from mountpoint.transfer.memory_budget import Budget, Lease
from mountpoint.transfer.stats import TransferStats
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request
from tests.unit.patterns import at_random

KIB = 1024
MIB = 1 << 20
PAGE = 4096
KEY = b"k"


@functools.cache
def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture(autouse=True, scope="module")
def _never_late(short_pauses: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between tries, and let no answer count as late."""
    short_pauses.setattr(hedging, "MIN_LATE_S", SAFE_S)


class WatchedBudget(Budget):
    """A budget that records its peak."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.max_bytes = 0

    def _change(self, lease: Lease, delta: int, *, limited: bool) -> bool:
        done = super()._change(lease, delta, limited=limited)
        self.max_bytes = max(self.max_bytes, self.held_bytes)
        return done


class Reading:
    """A fake client with one object, and a stream of it."""

    def __init__(
        self,
        size: int,
        *,
        part_bytes: int = 64 * KIB,
        memory_bytes: int = 256 * MIB,
        stall_s: float = SAFE_S,
        total_s: float = SAFE_S,
        initial_bytes: int | None = None,
        stream_class: type[ReadStream] = ReadStream,
        **client: Any,
    ) -> None:
        self.data = content(size)
        self.client = FakeClient({KEY: self.data}, **client)
        self.client.verifies = False  # test_whole_checksum covers these requests
        self.budget = WatchedBudget(memory_bytes)
        self.stopping = threading.Event()
        self.retry_policy = RetryPolicy(try_s=SAFE_S, total_s=total_s, stopping=self.stopping)
        self.config = ReadConfig(part_bytes, memory_bytes, stall_s, total_s)
        self.counters = Counters()
        self.stats = TransferStats(
            self.budget, self.counters, part_bytes=part_bytes, max_bytes=8 * part_bytes
        )
        self.closed: list[ReadStream] = []
        usual = size if size <= WHOLE_BYTES else INITIAL_BYTES
        self.initial_bytes = usual if initial_bytes is None else initial_bytes
        self.stream = self.another(stream_class)

    def another(self, stream_class: type[ReadStream] = ReadStream) -> ReadStream:
        """Return another stream of the object."""
        return stream_class(
            self.client,
            self.client.info(KEY),
            initial_bytes=self.initial_bytes,
            config=self.config,
            budget=self.budget,
            stats=self.stats,
            retry_policy=self.retry_policy,
            on_begin=lambda _: None,
            on_close=self.closed.append,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        etag = self.client.requests[0].if_match if self.client.requests else ""
        self.client.close()
        assert etag is not None
        for request in self.client.requests:
            assert request.kind == "get"
            assert request.if_match == etag, "every GET names the version"

    def check(self, offset: int, size: int) -> None:
        """Read, and compare."""
        assert bytes(self.stream.read(offset, size)) == self.data[offset : offset + size]

    def asked(self, count: int) -> None:
        """Wait until this many requests were sent."""
        until_s = time.monotonic() + SAFE_S
        while self.client.count() < count:
            assert time.monotonic() < until_s
            time.sleep(0.001)


class Background:
    """A call in its own thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def end(self) -> object:
        """Wait for it; return its result or its exception."""
        self._thread.join(SAFE_S)
        assert not self._thread.is_alive(), "it hangs"
        return self.result

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error


def once_per_range(seed: int) -> Callable[[Request], Fault | None]:
    """Return a script in which a third of the ranges fail once."""
    random_ = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    faults = [
        Fault(error=Throttled("SlowDown")),
        Fault(error=ServerFault("500")),
        Fault(error=TransportFault("reset"), cut=100),
        Fault(cut=1000),
        Fault(extra=b"x"),
        Fault(shift=1),
        Fault(no_headers=True),
    ]

    def script(request: Request) -> Fault | None:
        if (request.start, request.stop) in seen or random_.random() > 1 / 3:
            return None
        seen.add((request.start, request.stop))
        return random_.choice(faults)

    return script


# --- Bytes ---

SIZE = 3 * MIB + 12_345


@settings(deadline=None, max_examples=examples(30))
@given(
    st.lists(
        st.tuples(
            # -1: continue at the end of the last read; -2: end at its start
            st.integers(0, SIZE - 1) | st.sampled_from([-1, -2]),
            st.sampled_from([1, 100, 4096, 5000, 128 * KIB, 300_000, MIB]),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 5),
    st.sampled_from([16 * KIB, 64 * KIB, 100_000, 8 * MIB]),
    st.sampled_from([1, 200_000, MIB, 256 * MIB]),
    st.sampled_from([None, 1000, 30_000]),
    st.booleans(),
    st.none() | st.integers(0, 1000),
)
@example([(0, 300_000), (-1, MIB)], 1, 64 * KIB, 1, None, False, None)
def test_any_reads(
    reads: list[tuple[int, int]],
    threads: int,
    part_bytes: int,
    memory_bytes: int,
    chunk_bytes: int | None,
    opened: bool,
    fault_seed: int | None,
) -> None:
    """Any reads from any number of threads return the right bytes, within the memory budget."""
    with Reading(
        SIZE, part_bytes=part_bytes, memory_bytes=memory_bytes, chunk_bytes=chunk_bytes
    ) as reading:
        if fault_seed is not None:
            reading.client.script = once_per_range(fault_seed)
        if opened:
            reading.stream.open()

        def work(which: int) -> None:
            begin = stop = 0
            for offset, size in reads[which::threads]:
                begin = {-1: stop % SIZE, -2: max(begin - size, 0)}.get(offset, offset)
                reading.check(begin, size)
                stop = begin + size

        workers = [Background(functools.partial(work, which)) for which in range(threads)]
        for worker in workers:
            result = worker.end()
            if isinstance(result, Exception):
                raise result
        # One read per thread, in whole pages, the rest of its last page, and the initial range.
        allowed = memory_bytes + threads * (MIB + 4 * PAGE) + (INITIAL_BYTES if opened else 0)
        assert reading.budget.max_bytes <= allowed
        reading.stream.close()
        assert reading.budget.held_bytes == 0
        assert reading.client.under_way() == 0


@pytest.mark.parametrize("offset", [0, 1, 99, 100, 101, 10**15])
def test_the_end_of_the_object(offset: int) -> None:
    """Reads end at the end of the object, and are empty beyond it, without a request."""
    with Reading(100) as reading:
        reading.check(offset, 50)
        assert reading.client.count() == (1 if offset < 100 else 0)


# --- Requests ---


@pytest.mark.slow
@pytest.mark.parametrize("read_size", [4096, 5000, 128 * KIB, 1_000_000, MIB])
@pytest.mark.parametrize("part_bytes", [64 * KIB, 100_000, MIB, 8 * MIB])
@pytest.mark.parametrize("memory_bytes", [1, 300_000, 256 * MIB])
@pytest.mark.parametrize("opened", [False, True])
def test_a_sequential_read_fetches_each_byte_once(
    read_size: int, part_bytes: int, memory_bytes: int, opened: bool
) -> None:
    """A sequential read requests every byte exactly once, with any memory."""
    with Reading(SIZE, part_bytes=part_bytes, memory_bytes=memory_bytes) as reading:
        if opened:
            reading.stream.open()
        for offset in range(0, SIZE, read_size):
            reading.check(offset, read_size)
        assert tiled(reading.client.ranges()) == (0, SIZE)
        assert reading.client.delivered_bytes == SIZE


@pytest.mark.parametrize("read_size", [4096, 128 * KIB, MIB])
@pytest.mark.parametrize("part_bytes", [64 * KIB, MIB, 8 * MIB])
@pytest.mark.parametrize("size", [SIZE, 4 * MIB])
def test_a_backward_read_fetches_each_byte_once(read_size: int, part_bytes: int, size: int) -> None:
    """A backward read requests every byte exactly once as well."""
    with Reading(size, part_bytes=part_bytes) as reading:
        for offset, length in backwards(0, size, read_size):
            reading.check(offset, length)
        assert tiled(reading.client.ranges()) == (0, size)


def test_read_bytes_are_counted() -> None:
    """Every byte read is counted, with or without a wait."""
    with Reading(SIZE) as reading:
        reading.stream.open()
        for offset in range(0, SIZE, 50_000):
            reading.check(offset, 50_000)
        assert reading.stream.read_bytes == SIZE
        reading.check(0, 1000)
        assert reading.stream.read_bytes == SIZE + 1000
        reading.stream.read(SIZE, 1000)
        assert reading.stream.read_bytes == SIZE + 1000


def tiled(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the range that adjacent ranges cover together."""
    ranges = sorted(ranges)
    for (_, stop), (start, _) in itertools.pairwise(ranges):
        assert start == stop
    return ranges[0][0], ranges[-1][1]


def test_a_sequential_read_from_the_middle() -> None:
    """A run from the middle fetches each byte once, from its page on."""
    with Reading(SIZE) as reading:
        for offset in range(1_000_000, SIZE, 100_000):
            reading.check(offset, 100_000)
        assert tiled(reading.client.ranges()) == (1_000_000 // PAGE * PAGE, SIZE)


@settings(deadline=None, max_examples=examples(10))
@given(st.integers(0, 2**32), st.sampled_from([1, 4096, 10_000, 128 * KIB]))
def test_random_reads_fetch_their_pages(seed: int, size: int) -> None:
    """Each random read is one GET of exactly its pages."""
    total = 32 * MIB
    random_ = random.Random(seed)
    slots = random_.sample(range(1, total // MIB - 1), 25)
    offsets = [slot * MIB + random_.randrange(70) * PAGE + seed % 1000 for slot in slots]
    distances = [after - before for before, after in itertools.pairwise(offsets)]
    # Three at one distance are a stride; that happens in one of 200 orders.
    assume(all(after != before for before, after in itertools.pairwise(distances)))
    with Reading(total, part_bytes=8 * MIB) as reading:
        expected = []
        for offset in offsets:
            reading.check(offset, size)
            stop = -(-(offset + size) // PAGE) * PAGE
            expected.append((offset // PAGE * PAGE, stop))
        assert reading.client.ranges() == expected


@pytest.mark.parametrize("size", [1, 4096, 128 * KIB, WHOLE_BYTES])
def test_a_small_file_is_one_request(size: int) -> None:
    """Open and read of a small file take one GET together."""
    with Reading(size, part_bytes=8 * MIB) as reading:
        assert reading.stream.open() == reading.client.info(KEY)
        for offset in range(0, size, 50_000):
            reading.check(offset, 50_000)
        assert reading.client.ranges() == [(0, size)]


@pytest.mark.parametrize("size", [1, SMALL_BYTES, SMALL_BYTES + 1])
def test_open_of_a_small_file_brings_all_of_it(size: int) -> None:
    """Open waits for all of a small file, so the first read need not; otherwise for the headers."""
    with Reading(size, part_bytes=8 * MIB) as reading:
        reading.client.inject("get", Fault(hang=True))
        opening = Background(reading.stream.open)
        reading.asked(1)
        time.sleep(0.05)  # time for the headers to arrive
        assert opening.ended == (size > SMALL_BYTES)
        reading.stream.close()
        opening.end()
        again = reading.another()
        again.open()
        reading.client.quiet()
        assert bytes(again.read(0, size)) == reading.data
        assert reading.counters.snapshot()["reads_waited"] == 0
        assert again.initial_read
        again.close()


def test_open_of_a_large_file_fetches_its_initial_range() -> None:
    """Open fetches the initial range, enough for a first look; read-ahead starts after it."""
    with Reading(SIZE, part_bytes=8 * MIB) as reading:
        reading.stream.open()
        reading.check(0, 16 * KIB)
        assert reading.client.ranges() == [(0, INITIAL_BYTES)]
        reading.check(16 * KIB, 128 * KIB)
        assert len(reading.client.ranges()) > 1
        assert tiled(reading.client.ranges())[0] == 0


def test_a_large_initial_range_is_fetched_in_parts_at_once() -> None:
    """The first part of an initial range of 5 MiB can be read before the others have arrived."""
    with Reading(8 * MIB, part_bytes=8 * MIB, initial_bytes=5 * MIB, stepped=True) as reading:
        opening = Background(reading.stream.open)
        reading.asked(7)
        assert reading.client.ranges() == parts_of(5 * MIB, 8 * MIB)
        assert reading.budget.held_bytes == 5 * MIB
        reading.client.step()
        assert opening.end() == reading.client.info(KEY)
        reading.check(0, 16 * KIB)
        assert reading.client.under_way() == 6


def test_parts_of_a_large_initial_range_come_in_any_order() -> None:
    """If later parts of an initial range arrive first, each byte is still fetched once and read."""
    with Reading(5 * MIB, part_bytes=8 * MIB, initial_bytes=5 * MIB, stepped=True) as reading:
        opening = Background(reading.stream.open)
        reading.asked(7)
        assert reading.client.step(7, last_first=True) == 7
        assert opening.end() == reading.client.info(KEY)
        for offset in range(0, 5 * MIB, 300_000):
            reading.check(offset, 300_000)
        assert reading.client.count() == 7


def test_the_largest_read_uses_the_initial_range() -> None:
    """A first read of 1 MiB, as the kernel sends it, uses the initial range."""
    with Reading(SIZE, part_bytes=8 * MIB) as reading:
        reading.stream.open()
        reading.client.quiet()
        reading.check(0, MIB)
        assert tiled(reading.client.ranges())[0] == 0
        assert reading.client.cancelled == 0


def test_reading_again_is_from_memory() -> None:
    """Bytes near the reader that were just read need no second request."""
    with Reading(SIZE) as reading:
        for offset in range(0, 2 * MIB, 128 * KIB):
            reading.check(offset, 128 * KIB)
        reading.client.quiet()
        count = reading.client.count()
        reading.check(2 * MIB - 100 * KIB, 50 * KIB)
        reading.check(2 * MIB - 300 * KIB, 150 * KIB)
        assert reading.client.count() == count


def test_many_waiters_of_one_part_share_a_request() -> None:
    """Threads that need the same bytes share one GET."""
    with Reading(SIZE, stepped=True, part_bytes=8 * MIB) as reading:
        readers = [Background(lambda: reading.check(MIB, 4096)) for _ in range(6)]
        reading.asked(1)
        time.sleep(0.02)  # time for wrong requests to appear
        assert reading.client.step(10) == 1
        assert [reader.end() for reader in readers] == [None] * 6
        assert reading.client.count() == 1


def test_a_part_of_another_reader_in_the_way() -> None:
    """Without memory, the bytes behind another reader's pending part are fetched."""
    with Reading(SIZE, part_bytes=8 * MIB, memory_bytes=1, stepped=True) as reading:
        first = Background(lambda: reading.check(200 * KIB, 64 * KIB))
        reading.asked(1)
        reading.client.step()
        assert first.end() is None
        other = Background(lambda: reading.check(128 * KIB, 16 * KIB))
        reading.asked(2)
        # A backward reader whose read-ahead begins before that part, and whose read ends after it.
        second = Background(lambda: reading.check(136 * KIB, 64 * KIB))
        time.sleep(0.05)  # time for its request to appear
        while not (other.ended and second.ended):
            reading.client.step()
        assert (other.end(), second.end()) == (None, None)


def test_memory_is_bounded_by_the_window() -> None:
    """A long sequential read holds its read-ahead and a little behind it, not the object."""
    with Reading(32 * MIB, part_bytes=MIB) as reading:
        for offset in range(0, 32 * MIB, 128 * KIB):
            reading.check(offset, 128 * KIB)
        # Eight parts ahead, a quarter of that behind, and one that the reader waits for.
        assert reading.budget.max_bytes <= (8 + 2 + 1) * MIB


def test_without_memory_nothing_is_read_ahead() -> None:
    """Without memory a read fetches its own bytes, and holds nothing afterwards."""
    with Reading(SIZE, part_bytes=8 * MIB, memory_bytes=1) as reading:
        for offset in range(0, 40 * PAGE, PAGE):
            reading.check(offset, PAGE)
            assert reading.budget.held_bytes == 0
        assert reading.client.ranges() == [
            (offset, offset + PAGE) for offset in range(0, 40 * PAGE, PAGE)
        ]
        assert reading.budget.max_bytes == PAGE


@pytest.mark.slow
def test_without_memory_unaligned_reads_leave_nothing() -> None:
    """Without memory even reads that end within a page hold nothing afterwards."""
    random_ = random.Random(1)
    with Reading(64 * MIB, part_bytes=8 * MIB, memory_bytes=1) as reading:
        for _ in range(100):
            reading.check(random_.randrange(63 * MIB), MIB)
        assert reading.budget.max_bytes <= MIB + 2 * PAGE


def test_unread_open_files_stay_within_the_memory() -> None:
    """Without memory open fetches one page, and the bytes can still be read."""
    with Reading(WHOLE_BYTES, part_bytes=8 * MIB, memory_bytes=WHOLE_BYTES) as reading:
        other = reading.another()
        reading.stream.open()
        other.open()
        assert reading.client.ranges() == [(0, WHOLE_BYTES), (0, PAGE)]
        assert reading.budget.held_bytes == WHOLE_BYTES + PAGE
        assert bytes(other.read(0, 100_000)) == reading.data[:100_000]
        other.close()
        assert reading.budget.held_bytes == WHOLE_BYTES


# --- Faults ---

FAULTS = {
    "throttled": Fault(error=Throttled("SlowDown", status=503)),
    "server fault": Fault(error=ServerFault("InternalError", status=500)),
    "no connection": Fault(error=TransportFault("refused")),
    "cut, said so": Fault(error=TransportFault("reset"), cut=1000),
    "cut, not said": Fault(cut=1000),
    "cut to nothing": Fault(cut=0),
    "too long": Fault(extra=b"more"),
    "wrong place": Fault(shift=4096),
    "no headers": Fault(no_headers=True),
    "changed on the way": Fault(error=ChecksumMismatch("crc32"), cut=50_000),
    "another range": Fault(error=BadAnswer("asked for bytes 0-10, was sent 5-15")),
}
STALLS = {
    "silence": Fault(silent=True),
    "headers only": Fault(cut=0, hang=True),
    "half of it": Fault(cut=1000, hang=True),
    "all but the end": Fault(hang=True),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("times", [1, 4])
def test_a_failed_request_is_made_again(fault: Fault, opened: bool, times: int) -> None:
    """After any fault of a GET, a retry gets the right bytes."""
    with Reading(50_000) as reading:
        reading.client.inject("get", *[fault] * times)
        if opened:
            assert reading.stream.open() == reading.client.info(KEY)
        reading.check(0, 50_000)
        assert reading.client.ranges() == [(0, 50_000)] * (times + 1)
        reading.stream.close()
        assert reading.budget.held_bytes == 0


@pytest.mark.parametrize("fault", STALLS.values(), ids=STALLS)
@pytest.mark.parametrize("opened", [False, True])
def test_a_stalled_request_is_cancelled_and_made_again(fault: Fault, opened: bool) -> None:
    """A silent GET is cancelled after its time, and another one gets the bytes."""
    with Reading(50_000, stall_s=0.05) as reading:
        reading.client.inject("get", fault)
        if opened:
            assert reading.stream.open() == reading.client.info(KEY)
        reading.check(0, 50_000)
        assert reading.client.ranges() == [(0, 50_000)] * 2
        assert reading.client.cancelled == 1
        assert reading.client.under_way() == 0


def stalled(reading: Reading) -> int:
    """Read until one request has stalled, in parts of 1 MiB; return the position."""
    offset = 0
    for offset in range(0, 2 * MIB, 128 * KIB):
        reading.check(offset, 128 * KIB)
    reading.client.quiet()
    reading.client.inject("get", Fault(silent=True))
    while reading.client.cancelled == 0:
        offset += 128 * KIB
        reading.check(offset, 128 * KIB)
    reading.client.quiet()
    return offset + 128 * KIB


def sizes_from(reading: Reading, offset: int) -> list[int]:
    """Read to the end; return the sizes of the requests."""
    before = len(reading.client.ranges())
    for position in range(offset, reading.stream.size_bytes, 128 * KIB):
        reading.check(position, 128 * KIB)
    return [stop - start for start, stop in reading.client.ranges()[before:]]


def test_a_stall_slows_the_reader_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stall parts are half as large, while they are slow: less to wait for."""
    monkeypatch.setattr(stream, "TIMELY_SHARE", 0.0)
    with Reading(32 * MIB, part_bytes=MIB, stall_s=0.05) as reading:
        offset = stalled(reading)
        assert max(stop - start for start, stop in reading.client.ranges()) == MIB
        assert max(sizes_from(reading, offset)) == MIB // 2


def test_after_a_stall_parts_grow_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight parts in time, parts have their full size again."""
    monkeypatch.setattr(stream, "TIMELY_SHARE", SAFE_S)
    with Reading(32 * MIB, part_bytes=MIB, stall_s=0.05) as reading:
        sizes = sizes_from(reading, stalled(reading))
        assert max(sizes[:3]) == MIB // 2
        assert set(sizes[16:-1]) == {MIB}


@contextmanager
def forever(fault: Fault, stall_s: float = SAFE_S) -> Iterator[Reading]:
    """Yield a reader whose requests fail. Each takes 10 s of the clock that ends the retries."""
    with Reading(50_000, stall_s=stall_s) as reading, pytest.MonkeyPatch.context() as patch:
        reading.client.script = lambda request: fault
        clock = SimpleNamespace(monotonic=lambda: 10.0 * reading.client.count())
        patch.setattr(retry, "time", clock)
        yield reading


@pytest.mark.parametrize("fault", [*FAULTS.values(), STALLS["silence"]], ids=[*FAULTS, "silence"])
@pytest.mark.parametrize("opened", [False, True])
def test_failing_forever_is_eio(fault: Fault, opened: bool) -> None:
    """If no retry helps, the read ends with EIO after its total time."""
    with forever(fault, stall_s=0.03 if fault.silent else SAFE_S) as reading:
        call = reading.stream.open if opened else functools.partial(reading.stream.read, 0, 50_000)
        error = Background(call).end()
        assert isinstance(error, S3Error)
        assert outcome(error).errno == errno.EIO
        told = "--read-checksums" if isinstance(error, ChecksumMismatch) else "--read-timeout"
        assert told in error.hint
        assert reading.client.count() == SAFE_S // 10
        assert reading.client.under_way() == 0


def test_after_the_total_each_read_is_one_try() -> None:
    """After EIO each read gets one try, until bytes arrive again."""
    with forever(FAULTS["changed on the way"]) as reading:
        with pytest.raises(ChecksumMismatch):
            reading.stream.read(0, 50_000)
        for _ in range(3):
            before = reading.client.count()
            with pytest.raises(ChecksumMismatch):
                reading.stream.read(0, 50_000)
            assert reading.client.count() == before + 1
        reading.client.script = None
        reading.check(0, 4096)
        reading.client.inject("get", *[FAULTS["throttled"]] * 2)
        reading.stream.rest(1)
        reading.stream.rest(1)
        reading.check(0, 50_000)


def test_a_try_that_the_deadline_cuts_short_hides_no_answer() -> None:
    """If the last try has no time left, the error is the answer to the one before."""
    with Reading(50_000, total_s=0.5) as reading:
        answers = iter([FAULTS["throttled"]])
        reading.client.script = lambda request: next(answers, Fault(silent=True))
        with pytest.raises(Throttled):
            reading.stream.read(4096, 4096)
        assert reading.client.count() == 2


def test_silence_is_a_stall() -> None:
    """The error has the time, and the number of missing bytes."""
    with Reading(50_000, stall_s=0.01, total_s=0.2) as reading:
        reading.client.script = lambda request: Fault(silent=True)
        with pytest.raises(Stalled, match=r"4096 bytes did not arrive within \d+\.\d s"):
            reading.stream.read(4096, 4096)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda client: client.put(KEY, b"another version" * 100_000), PreconditionFailed),
        (lambda client: client.delete(KEY), NotFound),
        (lambda client: client.inject("get", Fault(error=AccessDenied("no"))), AccessDenied),
        (lambda client: client.inject("get", Fault(etag='"other"')), PreconditionFailed),
    ],
    ids=["replaced", "deleted", "forbidden", "If-Match ignored"],
)
@pytest.mark.parametrize("opened", [False, True])
def test_permanent_errors_are_not_retried(
    change: Callable[[FakeClient], object], kind: type[S3Error], opened: bool
) -> None:
    """A replaced, deleted or forbidden object is reported immediately, without a retry."""
    with Reading(50_000) as reading:
        change(reading.client)
        call = reading.stream.open if opened else functools.partial(reading.stream.read, 0, 100)
        with pytest.raises(kind):
            call()
        assert reading.client.count() == 1


@settings(deadline=None, max_examples=examples(10))
@given(st.integers(1, 30), st.sampled_from([4096, 100_000, MIB]))
def test_never_a_mixture(change_at: int, read_size: int) -> None:
    """An object that is replaced during reads gives old bytes or an error, never new ones."""
    with Reading(SIZE) as reading:
        made = 0

        def script(request: Request) -> None:
            nonlocal made
            made += 1
            if made == change_at:
                reading.client.put(KEY, bytes(SIZE))

        reading.client.script = script
        for offset in range(0, SIZE, read_size):
            try:
                reading.check(offset, read_size)
            except PreconditionFailed:
                break


def test_a_failed_read_ahead_costs_nothing_until_wanted() -> None:
    """A failed part ahead is requested again when a reader needs it."""
    with Reading(SIZE) as reading:
        failing = range(256 * KIB, 320 * KIB)
        failed: list[Request] = []

        def script(request: Request) -> Fault | None:
            if request.start in failing and not failed:
                failed.append(request)
                return Fault(error=ServerFault("500"))
            return None

        reading.client.script = script
        reading.check(0, 128 * KIB)
        reading.client.quiet()
        (request,) = failed
        starts = [start for start, _ in reading.client.ranges()]
        assert starts.count(request.start) == 1
        reading.check(request.start, 1000)
        starts = [start for start, _ in reading.client.ranges()]
        assert starts.count(request.start) == 2


def test_a_failed_read_ahead_is_no_answer_to_a_later_read() -> None:
    """A refusal of read-ahead (expired keys) does not affect later reads."""
    with Reading(SIZE) as reading:
        reading.client.script = lambda request: (
            Fault(error=AccessDenied("expired")) if request.start >= 128 * KIB else None
        )
        reading.check(0, 128 * KIB)
        assert reading.client.count() > 2
        reading.client.quiet()
        reading.client.script = None
        for offset in range(128 * KIB, 512 * KIB, 64 * KIB):
            reading.check(offset, 64 * KIB)


def test_a_part_that_arrives_as_it_is_given_up_is_used() -> None:
    """An initial range that arrives just as its time is up is used, and not requested again."""

    class Late(ReadStream):
        def _replace_failed(self, part: Any, attempts: Attempts) -> None:
            assert reading.client.step() == 1
            super()._replace_failed(part, attempts)

    with Reading(50_000, stepped=True, stall_s=0.01, stream_class=Late) as reading:
        assert reading.stream.open() == reading.client.info(KEY)
        reading.check(0, 50_000)
        assert reading.client.count() == 1


@pytest.mark.parametrize("size", [1, 50_000, WHOLE_BYTES, SIZE])
@pytest.mark.parametrize("step", [PAGE, 128 * KIB])
@pytest.mark.parametrize("memory_bytes", [2 * MIB, 256 * MIB])
def test_a_mismatched_range_is_fetched_again_as_it_was(
    size: int, step: int, memory_bytes: int
) -> None:
    """A range with a wrong checksum is fetched again in one piece:

    smaller ones have no checksum.
    """
    mismatched: Counter[tuple[int, int]] = Counter()

    def script(request: Request) -> Fault | None:
        place = (request.start, request.stop)
        mismatched[place] += 1
        if mismatched[place] > 2:
            return None
        return Fault(error=ChecksumMismatch("crc32"), cut=place[1] - place[0])

    with Reading(size, memory_bytes=memory_bytes) as reading:
        reading.client.script = script
        reading.stream.open()
        for offset in range(0, size, step):
            reading.check(offset, step)
        reading.client.quiet()
        assert set(mismatched.values()) == {3}
        places = sorted(mismatched)
        assert all(one[1] <= next_[0] for one, next_ in itertools.pairwise(places))
        reading.stream.close()
        assert reading.budget.held_bytes == 0


def test_a_mismatch_ahead_of_the_reader() -> None:
    """A read or a plan that touches a part of a mismatched range requests all of it."""
    with Reading(SIZE, memory_bytes=MIB) as reading:
        bad = (2 * MIB, 2 * MIB + 64 * KIB)
        reading.stream.open()
        reading.client.quiet()
        reading.client.inject("get", Fault(error=ChecksumMismatch("crc32")))
        with reading.stream._lock:
            reading.stream._lease.take(bad[1] - bad[0])
            reading.stream._issue(*bad, ahead=True)
        reading.client.quiet()
        reading.check(bad[0] + 5 * PAGE, PAGE)
        for offset in range(MIB, 3 * MIB, 128 * KIB):
            reading.check(offset, 128 * KIB)
        overlapping = [
            each for each in reading.client.ranges() if each[0] < bad[1] and bad[0] < each[1]
        ]
        assert overlapping[:2] == [bad, bad]


def test_changed_on_the_way_forever_is_eio() -> None:
    """If the bytes never match, the read is EIO, with the option that skips the comparison."""
    fault = Fault(error=ChecksumMismatch("the body does not match its crc32 checksum"))
    with Reading(SIZE, total_s=0.2, initial_bytes=PAGE) as reading:
        reading.stream.open()
        reading.client.script = lambda request: fault
        with pytest.raises(ChecksumMismatch, match="checksum") as caught:
            reading.stream.read(MIB, PAGE)
        assert outcome(caught.value).errno == errno.EIO
        assert "--read-checksums" in caught.value.hint
        assert len(set(reading.client.ranges())) == 2
        reading.client.script = None
        reading.check(MIB, PAGE)


def test_failed_parts_give_their_memory_back() -> None:
    """Parts that failed beside another failure release their memory before the close."""
    with Reading(64 * MIB) as reading:
        reading.check(0, 128 * KIB)
        reading.client.quiet()
        position = max(stop for _, stop in reading.client.ranges())
        reading.client.script = lambda request: Fault(
            error=AccessDenied("no") if request.start == position else ServerFault("500")
        )
        with pytest.raises(AccessDenied):
            reading.stream.read(position, 192 * KIB)
        reading.client.quiet()
        reading.client.script = None
        for offset, size in at_random(8 * MIB, 64 * MIB, RETIRE_PLANS + 1, PAGE, seed=1):
            reading.check(offset, size)
        assert reading.budget.held_bytes == 0


# --- Late answers ---

#: The tests of this section read this page, which no other request covers.
HERE = MIB


class Late(Reading):
    """A stream whose requests for a page took almost no time so far; the next one waits."""

    def __init__(
        self, requests: int = hedging.MIN_REQUESTS, size: int = PAGE, **options: Any
    ) -> None:
        super().__init__(SIZE, stepped=True, **options)
        for _ in range(requests):
            self.stats.arrived(size, 0.001, waited=True)

    def reads(self, count: int = 1) -> list[Background]:
        """Start this many reads of the page."""
        return [Background(lambda: self.check(HERE, PAGE)) for _ in range(count)]

    def hedges(self) -> tuple[int, int]:
        """Return the numbers of hedged requests, and of those that were faster."""
        numbers = self.counters.snapshot()
        return numbers["hedges"], numbers["hedges_won"]


@pytest.fixture
def _soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests count as late soon."""
    monkeypatch.setattr(hedging, "MIN_LATE_S", 0.01)


@pytest.mark.usefixtures("_soon_late")
@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("readers", [1, 4])
def test_a_late_request_is_made_twice(last_first: bool, readers: int) -> None:
    """Of two requests for the same bytes the first answer counts, and the other is cancelled."""
    with Late() as reading:
        reads = reading.reads(readers)
        reading.asked(2)
        assert reading.client.step(last_first=last_first) == 1
        assert [each.end() for each in reads] == [None] * readers
        assert reading.client.ranges() == [(HERE, HERE + PAGE)] * 2
        assert reading.client.cancelled == 1
        assert reading.client.under_way() == 0
        assert reading.hedges() == (1, int(last_first))
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
def test_several_readers_of_a_late_request_make_one_more() -> None:
    """Readers that wait for the same late request send one second request together."""
    readers = 4
    together = threading.Barrier(readers)

    class Together(ReadStream):
        def _hedged(self, part: Part, attempts: Attempts) -> None:
            together.wait(SAFE_S)
            super()._hedged(part, attempts)

    # There were enough requests to permit a hedge for each reader.
    with Late(requests=readers * round(1 / hedging.HEDGED_SHARE), stream_class=Together) as reading:
        reads = reading.reads(readers)
        reading.asked(2)
        reading.client.step()
        assert [each.end() for each in reads] == [None] * readers
        assert reading.client.ranges() == [(HERE, HERE + PAGE)] * 2
        assert reading.hedges() == (1, 0)
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
def test_a_second_request_that_is_not_allowed_keeps_no_memory() -> None:
    """If a hedge is not permitted, its memory is released."""
    refused = threading.Event()

    class Refused(ReadStream):
        def _hedged(self, part: Part, attempts: Attempts) -> None:
            refused.set()
            super()._hedged(part, attempts)

    with Late(stream_class=Refused) as reading:
        while reading.stats.hedge():  # use up the share
            pass
        (reader,) = reading.reads()
        assert refused.wait(SAFE_S)
        while not reader.ended:
            reading.client.step()
        assert reader.end() is None
        assert reading.client.count() == 1
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
@pytest.mark.parametrize("fault", STALLS.values(), ids=STALLS)
def test_a_request_that_hangs_is_overtaken(fault: Fault) -> None:
    """With any part of an answer before a hang, the second request gets the right bytes."""
    with Late() as reading:
        reading.client.inject("get", fault)
        (reader,) = reading.reads()
        reading.asked(1)
        reading.client.step()
        reading.asked(2)
        reading.client.step()
        assert reader.end() is None
        assert reading.hedges() == (1, 1)
        assert reading.client.under_way() == 0


@pytest.mark.usefixtures("_soon_late")
def test_a_small_file_whose_end_is_late() -> None:
    """Open does not wait longer for the end, and the first read sends a second request."""
    with Reading(SMALL_BYTES, part_bytes=8 * MIB) as reading:
        for _ in range(hedging.MIN_REQUESTS):
            reading.stats.arrived(SMALL_BYTES, 0.001, waited=True)
        reading.client.inject("get", Fault(hang=True))
        assert reading.stream.open() == reading.client.info(KEY)
        reading.check(0, SMALL_BYTES)
        assert reading.client.count() == 2
        assert reading.counters.snapshot()["hedges_won"] == 1


@pytest.mark.usefixtures("_soon_late")
def test_the_second_request_takes_memory() -> None:
    """Both requests count in the budget; without memory there is no second one."""
    with Late() as reading:
        (reader,) = reading.reads()
        reading.asked(2)
        assert reading.budget.held_bytes == 2 * PAGE
        reading.client.step()
        assert reader.end() is None
        assert reading.budget.held_bytes == 0
    with Late(memory_bytes=2 * PAGE - 1) as reading:
        (reader,) = reading.reads()
        assert_alone(reading)
        assert reader.end() is None


def assert_alone(reading: Late) -> None:
    """Check that there is no second request, and answer the first."""
    reading.asked(1)
    time.sleep(0.05)  # time for wrong requests to appear
    assert reading.client.step(10) == 1
    assert reading.hedges() == (0, 0)


@pytest.mark.usefixtures("_soon_late")
@pytest.mark.parametrize(
    ("requests", "size"), [(0, PAGE), (hedging.MIN_REQUESTS - 1, PAGE), (64, MIB)]
)
def test_nothing_is_late_without_history(requests: int, size: int) -> None:
    """With few requests of about this size before, none is hedged."""
    with Late(requests, size) as reading:
        (reader,) = reading.reads()
        assert_alone(reading)
        assert reader.end() is None


@pytest.mark.usefixtures("_soon_late")
def test_few_requests_are_made_twice() -> None:
    """If all requests are late, only the permitted share is hedged."""
    with Late() as reading:
        late = 20
        for index in range(late):
            offset = (index * index + 2 * index) * PAGE
            reader = Background(functools.partial(reading.check, offset, PAGE))
            reading.asked(index + 1 + reading.hedges()[0])
            time.sleep(0.02)  # time for the second request to appear
            while reading.client.step():
                pass
            assert reader.end() is None
        made = hedging.MIN_REQUESTS + late
        assert 1 <= reading.hedges()[0] <= 1 + hedging.HEDGED_SHARE * made


@pytest.mark.usefixtures("_soon_late")
@pytest.mark.parametrize(
    "fault",
    [
        Fault(error=ServerFault("500")),
        Fault(error=PreconditionFailed("replaced", status=412)),
        Fault(etag='"other"'),
        Fault(cut=100),
        Fault(extra=b"x"),
        Fault(no_headers=True),
    ],
    ids=["500", "412", "another version", "cut", "too long", "no headers"],
)
def test_a_second_request_that_fails_changes_nothing(fault: Fault) -> None:
    """A wrong answer to the second request is dropped, and the first one is still awaited."""
    with Late() as reading:
        (reader,) = reading.reads()
        reading.asked(2)
        reading.client.inject("get", fault)
        reading.client.step(last_first=True)
        reading.client.step()
        assert reader.end() is None
        assert reading.client.count() == 2
        assert reading.hedges() == (1, 0)
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
def test_a_first_request_that_fails_late_is_made_again() -> None:
    """If the first request fails while there is a second, another try gets the bytes."""
    with Late() as reading:
        (reader,) = reading.reads()
        reading.asked(2)
        reading.client.inject("get", Fault(error=ServerFault("500")))
        reading.client.step()
        reading.asked(3)
        while reading.client.step():
            pass
        assert reader.end() is None
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
def test_close_cancels_both() -> None:
    """Close with two requests cancels both, and releases the memory of both."""
    with Late() as reading:
        (reader,) = reading.reads()
        reading.asked(2)
        reading.stream.close()
        assert isinstance(reader.end(), Interrupted)
        assert reading.client.cancelled == 2
        assert reading.client.under_way() == 0
        assert reading.budget.held_bytes == 0


@pytest.mark.usefixtures("_soon_late")
def test_close_just_before_a_second_request() -> None:
    """A stream that is closed when its request becomes late takes no more memory."""

    class Closing(ReadStream):
        def _hedged(self, part: Part, attempts: Attempts) -> None:
            self.close()
            super()._hedged(part, attempts)

    with Late(stream_class=Closing) as reading:
        (reader,) = reading.reads()
        assert isinstance(reader.end(), Interrupted)
        assert reading.budget.held_bytes == 0
        assert reading.client.under_way() == 0


# --- Rest ---


def test_a_stream_that_is_not_read_gives_everything_back() -> None:
    """After some sweeps without a read nothing is held or in flight, and reading works again."""
    with Reading(SIZE) as reading:
        reading.check(0, 128 * KIB)
        reading.client.quiet()
        reading.stream.rest(3)  # there was a read since the last sweep
        for _ in range(2):
            reading.stream.rest(3)
            assert reading.stream.held_bytes > 0
        reading.stream.rest(3)
        assert reading.stream.held_bytes == reading.budget.held_bytes == 0
        for offset in range(128 * KIB, SIZE, 128 * KIB):
            reading.check(offset, 128 * KIB)


def test_rest_cancels_requests_under_way() -> None:
    """Requests ahead that have not been answered are cancelled."""
    with Reading(SIZE, stepped=True) as reading:
        reader = Background(lambda: reading.check(0, 128 * KIB))
        reading.asked(2 + 16)
        reading.client.step(2)
        assert reader.end() is None
        reading.stream.rest(1)
        reading.stream.rest(1)
        assert reading.client.cancelled == 16
        assert reading.client.under_way() == 0
        assert reading.budget.held_bytes == 0


def test_each_read_counts_anew() -> None:
    """A read between two sweeps, even from memory, restarts the count."""
    with Reading(SIZE) as reading:
        for index in range(20):
            reading.check(index * 4 * KIB, 4 * KIB)
            for _ in range(3):
                reading.stream.rest(3)
            assert reading.stream.held_bytes > 0 or index == 0


def test_waiting_streams_do_not_rest() -> None:
    """A stream with a waiting reader or open keeps what they wait for."""
    with Reading(SIZE, stepped=True) as reading:
        for call in (reading.stream.open, lambda: reading.check(2 * MIB, 4 * KIB)):
            before = reading.client.count()
            waiting = Background(call)
            reading.asked(before + 1)
            for _ in range(10):
                reading.stream.rest(1)
            assert reading.client.cancelled == 0
            reading.client.step(10)
            assert not isinstance(waiting.end(), Exception)


@pytest.mark.parametrize("paused_mib", range(24, 32))
def test_a_reader_that_goes_on_after_a_rest_is_still_a_sequential_one(paused_mib: int) -> None:
    """Wherever a reader paused in a part, its next read continues its run, with read-ahead."""
    with Reading(64 * MIB, part_bytes=8 * MIB) as reading:
        paused = paused_mib * MIB
        for offset in range(0, paused, MIB):
            reading.check(offset, MIB)
        reading.client.quiet()
        reading.stream.rest(1)
        reading.stream.rest(1)
        assert reading.budget.held_bytes == 0
        before = reading.client.count()
        reading.check(paused, MIB)
        asked = reading.client.ranges()[before:]
        assert tiled(asked)[0] == paused
        assert tiled(asked)[1] >= paused + MIB + MIB // 2


def test_a_closed_stream_does_not_rest() -> None:
    """A sweep after the close releases nothing twice."""
    with Reading(SIZE) as reading:
        reading.check(0, 128 * KIB)
        reading.stream.close()
        for _ in range(5):
            reading.stream.rest(1)
        assert reading.budget.held_bytes == 0


# --- The end ---


def test_interrupt_ends_all_waits() -> None:
    """At the end of the mount every reader gets Interrupted, whatever it waits for."""
    with Reading(64 * MIB, stepped=True) as reading:
        readers = [
            Background(functools.partial(reading.stream.read, index * 8 * MIB, 4096))
            for index in range(1, 5)
        ]
        readers.append(Background(reading.stream.open))
        reading.asked(5)
        reading.stopping.set()
        reading.client.interrupt()
        assert [type(reader.end()) for reader in readers] == [Interrupted] * 5
        with pytest.raises(Interrupted):
            reading.stream.read(40 * MIB, 4096)


def test_interrupt_ends_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that pauses before its next try is woken as well."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 2 * SAFE_S)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 2 * SAFE_S)
    with Reading(50_000, total_s=100 * SAFE_S) as reading:
        reading.client.script = lambda request: Fault(error=ServerFault("500"))
        reader = Background(lambda: reading.stream.read(0, 100))
        reading.asked(2)  # the second try comes immediately, the third after the pause
        reading.stopping.set()
        assert isinstance(reader.end(), Interrupted)


def test_close_cancels_and_gives_back() -> None:
    """Close cancels requests in flight, wakes its readers and releases all memory."""
    with Reading(SIZE, stepped=True) as reading:
        reader = Background(lambda: reading.stream.read(0, 128 * KIB))
        reading.asked(2 + 16)  # parts of 64 KiB: the read, and 1 MiB ahead
        assert reading.budget.held_bytes == 128 * KIB + MIB
        reading.stream.close()
        assert isinstance(reader.end(), Interrupted)
        assert reading.budget.held_bytes == 0
        assert reading.client.under_way() == 0
        assert reading.client.cancelled == 2 + 16
        with pytest.raises(BadHandle):
            reading.stream.read(0, 100)
        reading.stream.close()  # a second close does no harm
        assert reading.closed == [reading.stream]


@settings(deadline=None, max_examples=examples(15))
@given(st.integers(0, 40), st.integers(0, 1000))
def test_close_at_any_time(after: int, fault_seed: int) -> None:
    """A close during reads, answers and retries leaves nothing behind."""
    with Reading(SIZE, part_bytes=32 * KIB, memory_bytes=500_000) as reading:
        reading.client.script = once_per_range(fault_seed)

        def read_all() -> None:
            for offset in range(0, SIZE, 50_000):
                reading.check(offset, 50_000)

        readers = [Background(read_all) for _ in range(3)]
        reading.asked(after)
        reading.stream.close()
        for reader in readers:
            assert isinstance(reader.end(), Interrupted | BadHandle | None)
        assert reading.budget.held_bytes == 0
        assert reading.client.under_way() == 0


def test_an_info_is_that_of_the_answer() -> None:
    """Open returns S3's present description: a copy of equal content has its own time."""
    with Reading(100) as reading:
        newer = reading.client.put(KEY, reading.data, mtime_ns=5)
        assert reading.stream.open() == newer
        assert isinstance(newer, ObjectInfo)


def test_the_lane_may_fetch_after_sixteen_random_reads() -> None:
    """The stream asks for a source of random reads while they are random, and only then."""
    with Reading(8 * MIB, initial_bytes=KIB) as reading:
        asked: list[int] = []
        reads: list[int] = []

        def lane_source(version: ObjectInfo) -> None:
            assert version.etag == reading.client.info(KEY).etag
            asked.append(len(reads))

        reading.client.lane_source = lane_source  # type: ignore[method-assign]
        places = [page * 40 * KIB for page in (5, 90, 41, 130, 17, 66, 150, 3, 111, 80)]
        places += [place + 20 * KIB for place in reversed(places)]
        for place in places:
            reads.append(place)
            reading.check(place, 4 * KIB)
        assert asked == list(range(16, 21))
        reading.check(places[-1] + 4 * KIB, 4 * KIB)
        assert asked == list(range(16, 21)), "a run has begun"
