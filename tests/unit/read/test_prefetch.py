"""Files fetched ahead of their opens: when, how much, which version, and how much is wasted."""

import os
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.cache.block_cache import BlockCache
from mountpoint.config import ReadConfig
from mountpoint.errors import NoSuchEntry, ServerFault, StaleInode
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.listing.cache import ListingCache
from mountpoint.metrics.counters import Counters
from mountpoint.read import prefetch
from mountpoint.read.history import ReadHistory
from mountpoint.read.prefetch import FEW_FILES, LATE_OPENS, MAX_FILES, FilePrefetcher
from mountpoint.read.streams import IDLE_SWEEPS
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault
from tests.unit.mounted import Mounted, mounted

KIB = 1 << 10
MIB = 1 << 20


def name(index: int) -> bytes:
    return b"f%04d" % index


def content(index: int, size: int = 10) -> bytes:
    return b"%04d" % index * (size // 4)


class Reader:
    """Opens files by their index, reads and compares them."""

    def __init__(self, world: Mounted, size: int) -> None:
        self.world = world
        self.size = size

    def read(self, index: int) -> None:
        """Look a file up, and read it as a program does."""
        number = self.world.fs.lookup(ROOT, name(index)).inode
        assert self.world.read_file(number) == content(index, self.size)

    def gets(self) -> list[int]:
        """Return the requested files in order, and reset the list."""
        keys = [each.key for each in self.world.client.requests if each.kind == "get"]
        self.world.client.requests.clear()
        return [int(key[1:]) for key in keys]

    @property
    def in_vain(self) -> int:
        """The number of wasted files."""
        return self.world.counters.snapshot()["bytes_prefetched_in_vain"] // self.size

    @property
    def held(self) -> int:
        return self.world.streams.prefetcher.held_files


@contextmanager
def directory(count: int, size: int = 100 * KIB, **options: Any) -> Iterator[Reader]:
    """Mount a directory of files with a ttl, and list it."""
    caching = {"ttl_s": 60.0, "negative_ttl_s": 60.0, "asks_on_open": False}
    objects = {name(index): content(index, size) for index in range(count)}
    with mounted(objects, **caching | options) as world:
        assert len(world.names()) == count
        reader = Reader(world, size)
        reader.gets()
        yield reader
        world.streams.prefetcher.check()
        for _ in range(IDLE_SWEEPS):
            world.streams.sweep()
        assert world.streams.prefetcher.held_files == 0
        assert world.budget.held_bytes == 0


def test_the_third_file_in_a_row_has_the_next_ones_fetched() -> None:
    """Each later open takes its prefetched file and fetches more; no file is requested twice."""
    with directory(100) as it:
        for index in (0, 1):
            it.read(index)
        assert it.gets() == [0, 1]
        it.read(2)
        assert sorted(it.gets()) == [2, 3, 4]
        it.read(3)
        assert it.gets() == [5]
        for index in range(4, 100):
            it.read(index)
            assert it.held <= min(max((index + 1) // 2, FEW_FILES), MAX_FILES)
        assert sorted(it.gets()) == list(range(6, 100))
        assert it.in_vain == it.held == 0


def test_the_next_files_are_looked_up_for_many_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A walk looks the next files up once for each window, and each file in the data cache once."""
    names, blocks = 0, 0
    find, expect = ListingCache._find, BlockCache.expect

    def count_names(*args: Any) -> Any:
        nonlocal names
        names += 1
        return find(*args)

    def count_blocks(*args: Any) -> bool:
        nonlocal blocks
        blocks += 1
        return expect(*args)

    with directory(200, cache=str(tmp_path)) as it:
        for index in range(200):
            it.read(index)
        assert it.world.cache is not None
        assert it.world.cache.wait(SAFE_S)
        monkeypatch.setattr(ListingCache, "_find", count_names)
        monkeypatch.setattr(BlockCache, "expect", count_blocks)
        it.gets()
        for index in range(200):
            it.read(index)
        assert it.gets() == []
    # Two for each file by lookup and open, and one for each file ahead; some at both ends.
    assert 600 <= names < 900
    assert blocks == 197  # the walk is trusted from its third open on


def test_the_listed_version_is_fetched() -> None:
    """Each request is for the whole file, in the listed version."""
    with directory(10) as it:
        for index in range(3):
            it.read(index)
        for request in it.world.client.requests[-2:]:
            assert (request.start, request.stop) == (0, 100 * KIB)
            assert request.if_match == it.world.client.info(request.key).etag


def test_nothing_without_a_ttl() -> None:
    """By default open asks S3, so no version is known before."""
    with directory(20, ttl_s=1.0, asks_on_open=True) as it:
        for index in range(20):
            it.read(index)
            assert it.held == 0


def test_o_direct_fetches_nothing_ahead() -> None:
    """O_DIRECT needs the newest version, so prefetched files are not used."""
    with directory(20) as it:
        for index in range(20):
            number = it.world.fs.lookup(ROOT, name(index)).inode
            it.world.fs.release(it.world.fs.open(number, os.O_DIRECT))
        assert it.gets() == list(range(20))


@pytest.mark.slow
@pytest.mark.parametrize("size", [MIB, 5 * MIB])
def test_larger_files(size: int) -> None:
    """Files ahead are bounded in bytes; files in several parts are fetched completely."""
    with directory(20, size) as it:
        for index in range(20):
            it.read(index)
            assert it.held * size <= prefetch.MAX_BYTES
        assert it.in_vain == 0
        assert sum(stop - start for start, stop in it.world.client.ranges()) == 20 * size
        assert it.world.counters.snapshot()["bytes_prefetched"] >= 10 * size


def test_files_that_open_would_not_fetch_whole() -> None:
    """Large files, and files of which little is read, are not prefetched."""
    with directory(12, 9 * MIB) as it:
        for index in range(12):
            number = it.world.fs.lookup(ROOT, name(index)).inode
            it.world.fs.release(it.world.fs.open(number, os.O_RDONLY))
        assert it.gets() == []
    with directory(40) as it:
        for index in range(40):
            number = it.world.fs.lookup(ROOT, name(index)).inode
            handle = it.world.fs.open(number, os.O_RDONLY)
            it.world.fs.read(handle, 0, 4096)
            it.world.fs.release(handle)
        fetched = it.world.counters.snapshot()["bytes_prefetched"]
        assert fetched <= 4 * 100 * KIB


def test_empty_and_archived_files_are_passed() -> None:
    """They are part of the walk, but nothing is fetched."""
    with directory(20) as it:
        for index in (5, 9):
            it.world.client.put(name(index), b"", storage_class="STANDARD")
        it.world.client.put(name(7), content(7, 100 * KIB), storage_class="GLACIER")
        it.world.names()
        for index in range(20):
            if index in (5, 9):
                number = it.world.fs.lookup(ROOT, name(index)).inode
                assert it.world.read_file(number) == b""
            elif index != 7:
                it.read(index)
        assert sorted(it.gets()) == [index for index in range(20) if index not in (5, 7, 9)]


def test_over_pages() -> None:
    """The next files are known across pages of the listing."""
    with directory(60, page_size=7) as it:
        for index in range(60):
            it.read(index)
        assert sorted(it.gets()) == list(range(60))
        assert it.world.counters.snapshot()["bytes_prefetched"] == 57 * it.size


def test_files_that_were_not_listed() -> None:
    """Without a listing the page of a batch lookup has the next files."""
    with mounted(
        {name(index): content(index, 8) for index in range(50)}, ttl_s=60.0, asks_on_open=False
    ) as world:
        reader = Reader(world, 8)
        for index in range(50):
            reader.read(index)
        assert world.client.count("get") == 50
        assert world.client.count("list") <= 5
        assert world.counters.snapshot()["bytes_prefetched"] >= 40 * 8


def test_two_readers_in_one_directory() -> None:
    """Each of several readers has its own next files."""
    with directory(200) as it:
        for index in range(50):
            it.read(index)
            it.read(100 + index)
        gets = it.gets()
        assert len(gets) == len(set(gets))
        assert it.held == 2 * MAX_FILES
        assert it.in_vain == 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_a_walk(threads: int) -> None:
    """Files opened slightly out of order are fetched once each."""
    with directory(400) as it:
        work: queue.Queue[int] = queue.Queue()
        for index in range(400):
            work.put(index)

        def run(_: int) -> None:
            while True:
                try:
                    index = work.get_nowait()
                except queue.Empty:
                    return
                it.read(index)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(threads)))
        assert sorted(set(it.gets())) == list(range(400))
        assert it.in_vain <= 400 // 10
        assert it.world.counters.snapshot()["bytes_prefetched"] >= 200 * it.size


# --- In vain ---


def shuffled(count: int) -> list[int]:
    order = list(range(count))
    random.Random(1).shuffle(order)
    return order


ORDERS: dict[str, Iterable[int]] = {
    "at random": shuffled(1000),
    "backward": range(999, -1, -1),
    "every second": range(0, 1000, 2),
    "every tenth": range(0, 1000, 10),
    "pairs": [index for start in shuffled(250) for index in (4 * start, 4 * start + 1)],
    "the first one": [0] * 500,
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_other_orders(order: str) -> None:
    """Readers in other orders waste next to nothing."""
    with directory(1000, 400) as it:
        for index in ORDERS[order]:
            it.read(index)
        for _ in range(IDLE_SWEEPS):
            it.world.streams.sweep()
        assert it.in_vain <= 10


def test_a_walk_that_ends() -> None:
    """After a while without an open all files are dropped: at most half as many as were opened."""
    with directory(1000) as it:
        for index in range(20):
            it.read(index)
        assert it.held == 10
        for _ in range(IDLE_SWEEPS - 1):
            it.world.streams.sweep()
        assert it.held == 10
        it.world.streams.sweep()
        assert it.held == 0
        assert it.in_vain == 10
        assert it.world.client.under_way() == 0


def test_a_pause_ends_no_walk() -> None:
    """After a pause the walk continues with a smaller window, and earns the rest again."""
    with directory(400) as it:
        for index in range(100):
            it.read(index)
        for _ in range(IDLE_SWEEPS):
            it.world.streams.sweep()
        assert it.in_vain == MAX_FILES
        for index in range(100, 200):
            it.read(index)
        assert it.held == MAX_FILES
        assert it.in_vain == MAX_FILES


def test_slow_readers_pay_a_quarter() -> None:
    """A reader whose pauses waste all files has ever fewer fetched."""
    with directory(200, 400) as it:
        for index in range(200):
            it.read(index)
            for _ in range(IDLE_SWEEPS):
                it.world.streams.sweep()
        assert it.in_vain <= 200 // 4 + MAX_FILES


def test_a_walk_that_skips_files() -> None:
    """Two skipped files halve the window."""
    with directory(600, 400) as it:
        for index in range(100):
            it.read(index)
        for index in range(100, 600, 3):
            it.read(index)
        assert it.in_vain <= (100 + 167) // 4 + FEW_FILES + LATE_OPENS


def test_other_readers_come_first() -> None:
    """If others were refused memory, files that were not opened for a second are dropped."""
    with directory(100) as it:
        for index in range(20):
            it.read(index)
        assert it.held == 10
        assert not it.world.budget.lease().try_take(1 << 40)
        it.world.streams.sweep()
        assert it.held == 0


def test_without_memory_nothing_is_fetched_ahead() -> None:
    """If memory is short each open fetches its own file."""
    with directory(30, memory_bytes=4 * MIB) as it:
        lease = it.world.budget.lease()
        lease.take(4 * MIB)
        for index in range(30):
            it.read(index)
        assert it.held == 0
        lease.give(4 * MIB)


# --- Objects that change ---


def walk_to(it: Reader, index: int) -> InodeNumber:
    """Read files up to one that is prefetched or requested; return its inode number."""
    number = it.world.fs.lookup(ROOT, name(index)).inode
    for each in range(index):
        it.read(each)
    return number


def test_replaced_before_it_was_fetched() -> None:
    """If the prefetch finds another version, open finds it as well, unnoticed."""
    with directory(30) as it:
        it.world.client.put(name(10), b"new")
        number = walk_to(it, 10)
        while it.world.client.under_way():
            pass
        with pytest.raises(StaleInode):
            it.world.fs.open(number, os.O_RDONLY)
        assert it.world.read_file(it.world.look(name(10)).inode) == b"new"
        for index in range(11, 30):
            it.read(index)


def test_deleted_before_it_was_fetched() -> None:
    """If the prefetch finds that the file is deleted, it does not exist."""
    with directory(30) as it:
        it.world.client.delete(name(10))
        number = walk_to(it, 10)
        while it.world.client.under_way():
            pass
        with pytest.raises(NoSuchEntry):
            it.world.fs.open(number, os.O_RDONLY)
        with pytest.raises(NoSuchEntry):
            it.world.look(name(10))


def test_replaced_after_it_was_fetched() -> None:
    """Within the ttl the listed version is read, complete and unmixed."""
    with directory(30) as it:
        walk_to(it, 10)
        while it.world.client.under_way():
            pass
        it.world.client.put(name(10), b"new")
        it.read(10)


def test_listed_anew_after_it_was_fetched() -> None:
    """A prefetched version that is no longer the newest is not used."""
    with directory(30) as it:
        walk_to(it, 10)
        it.world.client.put(name(10), b"new")
        it.world.names()
        assert it.world.read_file(it.world.look(name(10)).inode) == b"new"
        assert it.in_vain == 1


def test_a_fault_while_it_was_fetched() -> None:
    """If the prefetch fails, the file is fetched when it is read."""
    with directory(30) as it:
        it.world.client.inject("get", *[Fault()] * 3, *[Fault(error=ServerFault("500"))] * 2)
        for index in range(30):
            it.read(index)


@pytest.mark.slow
def test_silent_prefetches() -> None:
    """A silent request is given up as usual, and cancelled if the file is not opened."""
    with directory(30) as it:
        it.world.client.inject("get", *[Fault()] * 3, Fault(silent=True), Fault(silent=True))
        for index in range(3):
            it.read(index)
        assert it.held == FEW_FILES


# --- Any order ---


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.integers(0, 99), st.integers(1, 40)),
            st.tuples(st.just("open"), st.integers(0, 99), st.just(1)),
            st.tuples(st.just("sweep"), st.integers(1, 6), st.just(0)),
        ),
        max_size=30,
    )
)
@example([("run", 0, 14), ("run", 19, 15), ("open", 47, 1)])
def test_invariants(steps: list[tuple[str, int, int]]) -> None:
    """With opens in any order, the limits hold and nothing is kept forever."""
    with FakeClient({name(index): content(index, 8) for index in range(100)}) as client:
        infos = [client.info(name(index)) for index in range(100)]
        counters, budget = Counters(), Budget(MIB)
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
        it = FilePrefetcher(client, ReadConfig(), budget, counters, ReadHistory(), retry_policy)
        opens = 0

        def following(index: int) -> Callable[[int], list[ObjectInfo]]:
            return lambda count: infos[index + 1 : index + 1 + count]

        for step, first, count in steps:
            if step == "sweep":
                it.sweep(first)
            for index in range(first, min(first + count, 100)):
                it.opened(infos[index], following(index))
                opens += 1
                it.check()
        for _ in range(IDLE_SWEEPS):
            it.sweep(IDLE_SWEEPS)
        it.check()
        assert it.held_files == budget.held_bytes == 0
        found = counters.snapshot()
        assert found["bytes_prefetched_in_vain"] <= found["bytes_prefetched"] <= 8 * (2 * opens + 2)


def test_cached_files_are_looked_up_once() -> None:
    """A walk through files that the data cache has fetches none, and asks for each one once."""

    class Cache:
        def __init__(self) -> None:
            self.looked_up = 0

        def expect(self, _: object) -> bool:
            self.looked_up += 1
            return True

    cache = Cache()
    with directory(100) as reader:
        reader.world.streams.prefetcher._cache = cache  # type: ignore[assignment]
        for index in range(100):
            reader.read(index)
        assert reader.gets() == list(range(100))
    # Some twice: what is remembered of a walk is bounded.
    assert 80 <= cache.looked_up <= 150
