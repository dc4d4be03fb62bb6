"""Exact numbers of requests and bytes for every kind of reading program.

The file system reads objects of zeros from a client that counts. Nothing depends on durations.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from bench.objects import KIB, MIB
from bench.patterns import PAGE_BYTES, Piece, pieces
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT
from mountpoint.read.history import INITIAL_BYTES, WHOLE_BYTES
from mountpoint.s3.client import ObjectInfo
from mountpoint.transfer import concurrency, hedging
from tests.soak import seeds
from tests.unit.fake_client import MTIME_NS, SAFE_S, FakeClient
from tests.unit.mounted import Mounted, mounted
from tests.unit.patterns import COST, GIB, PATTERNS, RANDOM_COST, at_random, cases

pytestmark = pytest.mark.slow

PART_BYTES = 8 * MIB
#: Requests of a sequential reader in addition to one per part: the initial range, and smaller parts
#: at the start.
RAMP_REQUESTS = 16


@functools.lru_cache(maxsize=32)
def zeros(size_bytes: int) -> bytes:
    """Return that many zeros; most requests are for one of a few sizes."""
    return bytes(size_bytes)


class Zeros:
    """The bytes of an object of any size, without memory."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, range_: slice) -> bytes:
        return zeros(range_.stop - range_.start)


class ClientOfZeros(FakeClient):
    """A bucket whose objects have only sizes."""

    def put(self, key: bytes, data: Any, **_: Any) -> ObjectInfo:
        """Put an object."""
        info = ObjectInfo(key, len(data), MTIME_NS, f'"{len(data)}"')
        with self._lock:
            self._objects[key] = (info, data)
        return info


class Program:
    """The actions of a program on a mount, and their costs."""

    def __init__(self, world: Mounted) -> None:
        self.world = world
        self.read_bytes = 0
        self._before = 0
        self._heads_before = 0
        self._gets_before = 0

    def begin(self) -> None:
        """Start to count; names are known by now."""
        self._before = self.world.client.count()
        self._gets_before = self.world.client.count("get")
        self._heads_before = self.world.client.count("head")
        self.read_bytes = 0

    @property
    def requests(self) -> int:
        """The number of requests."""
        return self.world.client.count() - self._before

    @property
    def heads(self) -> int:
        """The number of HEADs."""
        return self.world.client.count("head") - self._heads_before

    @property
    def ranges(self) -> list[Piece]:
        """The requested ranges."""
        return self.world.client.ranges()[self._gets_before :]

    @property
    def asked_bytes(self) -> int:
        """The number of requested bytes."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def cost(self) -> float:
        """The requested bytes per byte read."""
        return self.asked_bytes / self.read_bytes

    def open(self, name: bytes, process: int = 0) -> HandleNumber:
        """Open a file."""
        return self.world.fs.open(self.world.fs.lookup(ROOT, name).inode, os.O_RDONLY, process)

    def read(self, handle: HandleNumber, offset: int, size: int) -> None:
        """Read, and count the bytes."""
        found = len(self.world.fs.read(handle, offset, size))
        assert found == size
        self.read_bytes += found

    def read_file(self, name: bytes, reads: Iterator[Piece]) -> None:
        """Open, read and close a file."""
        handle = self.open(name)
        for offset, size in reads:
            self.read(handle, offset, size)
        self.world.fs.release(handle)

    def read_files(self, reads: Mapping[bytes, Iterator[Piece]]) -> None:
        """Open several files, read them in turns, and close them."""
        handles = [self.open(name) for name in reads]
        for turn in zip(*reads.values(), strict=True):
            for handle, read in zip(handles, turn, strict=True):
                self.read(handle, *read)
        for handle in handles:
            self.world.fs.release(handle)


@pytest.fixture(autouse=True)
def _same_for_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all decisions independent of durations."""
    monkeypatch.setattr(hedging, "MIN_LATE_S", SAFE_S)
    monkeypatch.setattr(concurrency, "WAITED_SHARE", 2.0)


@contextmanager
def program(sizes: Mapping[bytes, int]) -> Iterator[Program]:
    """Mount a bucket of objects of these sizes, and list it."""
    objects: Any = {name: Zeros(size) for name, size in sizes.items()}
    with mounted(objects, client_class=ClientOfZeros) as world:
        assert set(world.names()) == set(sizes)
        found = Program(world)
        found.begin()
        yield found
        assert world.budget.held_bytes == 0
        assert world.client.under_way() == 0


# --- Bulk ---


@pytest.mark.parametrize("read_size", [16 * KIB, 128 * KIB, 256 * KIB, MIB])
@pytest.mark.parametrize("size", [GIB, 100 * MIB + 777])
def test_sequential(read_size: int, size: int) -> None:
    """Each byte is requested once, and after the start in whole parts."""
    with program({b"a": size}) as it:
        it.read_file(b"a", pieces(0, size, read_size))
        assert it.asked_bytes == size
        assert it.requests <= size // PART_BYTES + RAMP_REQUESTS
        whole = [(start, stop) for start, stop in it.ranges if start >= 64 * MIB]
        assert all(start % PART_BYTES == 0 for start, _ in whole)
        assert all(stop - start == PART_BYTES or stop == size for start, stop in whole)


@pytest.mark.parametrize("read_size", [256 * KIB, MIB])
def test_four_files(read_size: int) -> None:
    """Four files at the same time cost no more bytes than one after another."""
    size = 256 * MIB
    with program({b"%d" % index: size for index in range(4)}) as it:
        it.read_files({b"%d" % index: pieces(0, size, read_size) for index in range(4)})
        assert it.asked_bytes == 4 * size
        assert it.requests <= 4 * (2 * size // PART_BYTES + RAMP_REQUESTS)


def test_64_handles_at_once() -> None:
    """Many sequential readers share the memory, and nothing is fetched twice for lack of it."""
    size = 16 * MIB
    with program({b"%d" % index: size for index in range(64)}) as it:
        it.read_files({b"%d" % index: pieces(0, size, 256 * KIB) for index in range(64)})
        assert it.cost <= 1.05
        assert it.requests <= 64 * (size // MIB + RAMP_REQUESTS)


def test_64_random_handles_at_once() -> None:
    """Many random readers cost what they read."""
    with program({b"%d" % index: GIB for index in range(64)}) as it:
        it.read_files(
            {b"%d" % index: at_random(0, GIB, 50, 128 * KIB, index) for index in range(64)}
        )
        assert it.cost <= RANDOM_COST


def test_one_file_opened_64_times() -> None:
    """Each program that reads the file at the same time fetches it once."""
    size = 16 * MIB
    with program({b"a": size}) as it:
        it.read_file(b"a", pieces(0, size, MIB))
        it.begin()
        handles = [it.open(b"a") for _ in range(64)]
        for read in pieces(0, size, 256 * KIB):
            for handle in handles:
                it.read(handle, *read)
        for handle in handles:
            it.world.fs.release(handle)
        assert it.cost <= 1.05
        assert it.heads == 2 * 64  # the version check, and the checksum


# --- Random ---


@pytest.mark.parametrize("seed", seeds().values(), ids=seeds())
@pytest.mark.parametrize("size", [4 * KIB, 128 * KIB, MIB])
def test_random(size: int, seed: int) -> None:
    """One request per random read, of its size, and the initial range at the open."""
    reads = 1000
    with program({b"a": 4 * GIB}) as it:
        it.read_file(b"a", at_random(0, 4 * GIB, reads, size, seed))
        assert it.cost <= RANDOM_COST
        assert it.requests <= 1.02 * reads


@pytest.mark.parametrize("seed", seeds().values(), ids=seeds())
def test_random_by_four_threads(seed: int) -> None:
    """Threads with random reads on one descriptor cost what they read."""
    with program({b"a": 4 * GIB}) as it:
        handle = it.open(b"a")

        def work(which: int) -> None:
            for read in at_random(0, 4 * GIB, 250, MIB, 4 * seed + which):
                it.world.fs.read(handle, *read)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        it.world.fs.release(handle)
        assert it.asked_bytes <= RANDOM_COST * 1000 * MIB


# --- Many files ---


def test_small_files() -> None:
    """A thousand small files, listed and read in order, cost a thousand requests."""
    sizes = {b"%04d" % index: 100 * KIB for index in range(1000)}
    with program(sizes) as it:
        listing = it.world.client.count()
        for name, size in sizes.items():
            it.read_file(name, pieces(0, size, 128 * KIB))
        assert it.asked_bytes == it.read_bytes
        assert it.requests == len(sizes)
        assert it.requests + listing <= 1.1 * len(sizes)


def test_small_files_by_16_threads() -> None:
    """Several readers of many files cost no more than one."""
    sizes = {b"%04d" % index: 100 * KIB for index in range(1000)}
    with program(sizes) as it:

        def work(name: bytes) -> None:
            it.read_file(name, pieces(0, sizes[name], 128 * KIB))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, sizes))
        assert it.requests == len(sizes)
        assert it.asked_bytes == sum(sizes.values())


@pytest.mark.parametrize("read_size", [128 * KIB, MIB])
def test_medium_files(read_size: int) -> None:
    """Files of a few MiB are fetched once, and after the first ones whole at the open."""
    sizes = {b"%02d" % index: 5 * MIB for index in range(40)}
    with program(sizes) as it:
        for name, size in sizes.items():
            it.read_file(name, pieces(0, size, read_size))
        assert it.asked_bytes == it.read_bytes
        assert it.requests <= 8 * len(sizes)
        it.begin()
        handle = it.open(b"00")
        it.world.fs.release(handle)
        assert (it.requests, it.heads) == (1, 1)


def test_reading_again_is_one_request() -> None:
    """Opening an unchanged file again is one HEAD: the kernel has its pages."""
    with program({b"a": 100 * MIB}) as it:
        it.read_file(b"a", pieces(0, 100 * MIB, MIB))
        it.begin()
        it.read_file(b"a", iter(()))
        assert it.requests == it.heads == 1
        assert it.asked_bytes == 0


@pytest.mark.parametrize("size", [1, 100 * KIB, GIB])
def test_the_first_byte(size: int) -> None:
    """Open and a first small read are one request, for no more than the initial range."""
    with program({b"a": size}) as it:
        it.read_file(b"a", iter([(0, min(size, 16 * KIB))]))
        assert it.requests == 1
        assert it.asked_bytes == (size if size <= WHOLE_BYTES else INITIAL_BYTES)


@pytest.mark.parametrize("size", [100 * KIB, MIB, 8 * MIB, GIB])
@pytest.mark.parametrize("read_size", [4 * KIB, 16 * KIB, 64 * KIB])
def test_open_read_a_little_close(size: int, read_size: int) -> None:
    """If a little of each file is read, open fetches that much, except for the first file."""
    sizes = {b"%04d" % index: size for index in range(500)}
    with program(sizes) as it:
        for count, name in enumerate(sizes):
            if count == 1:
                it.begin()
            it.read_file(name, iter([(0, read_size)]))
        assert it.cost == 1
        assert it.requests <= len(sizes) + 1


@pytest.mark.parametrize("read_size", [128 * KIB, 256 * KIB, MIB, 3 * MIB])
def test_the_beginning_of_larger_files(read_size: int) -> None:
    """If programs read a part of each file, nothing beyond is fetched ahead."""
    sizes = {b"%04d" % index: 5 * MIB for index in range(100)}
    with program(sizes) as it:
        for count, name in enumerate(sizes):
            if count == 1:
                it.begin()
            it.read_file(name, pieces(0, read_size, 128 * KIB))
        assert it.cost <= RANDOM_COST
        assert it.requests <= 5 * len(sizes)


@pytest.mark.parametrize("little", [1, 4])
def test_a_whole_file_after_some_that_were_looked_at(little: int) -> None:
    """A reader that continues beyond the usual point gets large requests, and each byte once."""
    with program({b"%d" % index: 64 * MIB for index in range(little + 1)}) as it:
        for index in range(little):
            it.read_file(b"%d" % index, iter([(0, 64 * KIB)]))
        it.begin()
        it.read_file(b"%d" % little, pieces(0, 64 * MIB, 128 * KIB))
        assert it.asked_bytes == 64 * MIB
        assert it.requests <= 64 * MIB // PART_BYTES + RAMP_REQUESTS


@pytest.mark.parametrize(
    ("size", "most"), [(MIB, 1.5), (5 * MIB, COST), (64 * MIB, COST), (GIB, COST)]
)
@pytest.mark.parametrize("read_size", [128 * KIB, 512 * KIB, MIB])
def test_a_little_of_64_open_files(read_size: int, size: int, most: float) -> None:
    """If one thread opens many files and reads a little of each, the open files count."""
    with program({b"%02d" % index: size for index in range(64)}) as it:
        handles = [it.open(b"%02d" % index, process=7) for index in range(64)]
        for handle in handles:
            for read in pieces(0, read_size, 256 * KIB):
                it.read(handle, *read)
        assert it.cost <= most
        assert it.requests <= (2 + read_size // (256 * KIB)) * len(handles)
        for handle in handles:
            it.world.fs.release(handle)


def test_64_files_that_one_thread_reads_in_turns() -> None:
    """Files that are read further after a little come in large requests, and once."""
    size = 16 * MIB
    with program({b"%02d" % index: size for index in range(64)}) as it:
        handles = [it.open(b"%02d" % index, process=7) for index in range(64)]
        for read in pieces(0, size, 256 * KIB):
            for handle in handles:
                it.read(handle, *read)
        for handle in handles:
            it.world.fs.release(handle)
        assert it.cost <= 1.05
        assert it.requests <= 64 * (size // MIB + RAMP_REQUESTS)


def test_the_end_of_many_files() -> None:
    """If the last bytes of each file are read, only a page of its start is wasted."""
    sizes = {b"%04d" % index: 10 * MIB + index * PAGE_BYTES for index in range(500)}
    with program(sizes) as it:
        for name, size in sizes.items():
            it.read_file(name, iter([(size - 64 * KIB, 64 * KIB)]))
        assert it.cost <= COST
        assert it.requests == 2 * len(sizes)


# --- The patterns of real programs ---


@pytest.mark.parametrize(("pattern", "seed"), cases(PATTERNS))
def test_patterns(pattern: str, seed: int) -> None:
    """At most three tenths are wasted, and a tenth with random reads."""
    kind = PATTERNS[pattern]
    with program({b"a": kind.size_bytes}) as it:
        it.read_file(b"a", kind.reads(seed))
        assert it.cost <= kind.most


#: The number of requests per part of 8 MiB read, for each pattern.
STEADY = {
    "mapped, in order": 1.2,
    "sequential": 1.2,
    "sequential from the middle": 2.0,
    "out of order, 1M": 2.0,
    "out of order, 128K": 2.5,
    "out of order from the middle": 2.0,
    "backward": 2.0,
    "backward, odd size": 2.0,
    "backward from the middle": 2.0,
    "two streams": 2.5,
    "two streams from anywhere": 2.5,
}


@pytest.mark.parametrize("pattern", STEADY)
def test_requests_of_steady_readers(pattern: str) -> None:
    """Readers of a whole range get it in large requests."""
    kind = PATTERNS[pattern]
    with program({b"a": kind.size_bytes}) as it:
        it.read_file(b"a", kind.reads(1))
        assert it.requests <= STEADY[pattern] * it.read_bytes / PART_BYTES + RAMP_REQUESTS


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("read_size", [128 * KIB, MIB])
def test_streams_on_one_descriptor_by_threads(threads: int, read_size: int) -> None:
    """Threads that each read a piece of one descriptor in order fetch it once."""
    piece = GIB // threads
    read = 512 * MIB // threads
    with program({b"a": GIB}) as it:
        handle = it.open(b"a")

        def work(which: int) -> None:
            begin = which * piece
            for offset, size in pieces(begin, begin + read, read_size):
                it.world.fs.read(handle, offset, size)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        it.world.fs.release(handle)
        assert it.asked_bytes <= COST * threads * read


def test_a_pause_costs_the_read_ahead() -> None:
    """After a long pause reading continues, and only the read-ahead is fetched again."""
    with program({b"a": 512 * MIB}) as it:
        handle = it.open(b"a")
        for index, read in enumerate(pieces(0, 512 * MIB, MIB)):
            if index == 300:
                for _ in range(10):
                    it.world.streams.sweep()
                assert it.world.budget.held_bytes == 0
            it.read(handle, *read)
        it.world.fs.release(handle)
        assert it.cost <= 1.2
        assert it.requests <= 512 * MIB // PART_BYTES + 3 * RAMP_REQUESTS


# --- What the page cache has lost ---


def gaps(size: int, lost: int, distance: int, read: int) -> Iterator[Piece]:
    """Yield the kernel's reads of a file whose pages were partly dropped."""
    for start in range(0, size, distance):
        yield from pieces(start, min(start + lost, size), read)


@pytest.mark.parametrize("from_start", [True, False])
@pytest.mark.parametrize("read_size", [128 * KIB, 512 * KIB, MIB])
@pytest.mark.parametrize(
    ("lost", "distance"),
    [(MIB, 2 * MIB), (2 * MIB, 4 * MIB), (3 * MIB, 4 * MIB), (MIB, 2 * MIB + 64 * KIB)],
)
@pytest.mark.parametrize("size", [64 * MIB, 256 * MIB])
def test_pages_that_were_lost(
    size: int, lost: int, distance: int, read_size: int, from_start: bool
) -> None:
    """Half a file with scattered lost pages costs as many requests as the whole file."""
    with program({b"a": size}) as it:
        it.read_file(b"a", pieces(0, size, MIB))
        requests = it.requests
        it.begin()
        reads = gaps(size, lost, distance, read_size)
        if not from_start:
            reads = (
                (offset + lost, read) for offset, read in reads if offset + lost + read <= size
            )
        it.read_file(b"a", reads)
        assert it.requests <= 1.2 * requests
        assert it.cost <= 2.1


def test_pages_that_were_lost_while_it_is_open() -> None:
    """The same for a file that was open all the time."""
    size = 64 * MIB
    with program({b"a": size}) as it:
        handle = it.open(b"a")
        for read in pieces(0, size, MIB):
            it.read(handle, *read)
        requests = it.requests
        it.begin()
        for read in gaps(size, MIB, 2 * MIB, 512 * KIB):
            it.read(handle, *read)
        it.world.fs.release(handle)
        assert it.requests <= 1.2 * requests
        assert it.cost <= 2.1


@pytest.mark.parametrize("pattern", ["parquet", "stride 256K of 512K", "zip", "random 128K"])
def test_patterns_in_a_file_of_which_some_was_read(pattern: str) -> None:
    """If the kernel cannot have the rest, a reader that skips bytes does not need them."""
    kind = PATTERNS[pattern]
    with program({b"a": kind.size_bytes}) as it:
        it.read_file(b"a", pieces(0, 8 * MIB, MIB))
        it.begin()
        it.read_file(b"a", kind.reads(1))
        assert it.cost <= kind.most
