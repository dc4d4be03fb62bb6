"""Blocks are written behind the readers' backs, or dropped."""

import gc
import os
import subprocess
import threading
import time
import weakref
from pathlib import Path

import pytest
import structlog.testing

from mountpoint.cache import health
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.eviction import Evictor
from mountpoint.cache.filling import Block, Filler, blocks_of
from mountpoint.cache.health import Health
from mountpoint.metrics.counters import Counters
from tests.disks import disk_in_memory
from tests.unit.cache.objects import SAFE_S, Cached, content, files_of, sum_of

MIB = 1 << 20


class World:
    """A filler, with its counters and a clock of its own."""

    def __init__(
        self, directory: CacheDirectory, max_bytes: int | None = None, queue_bytes: int = 64 * MIB
    ) -> None:
        self.now_s = 0.0
        self.directory = directory
        self.counters = Counters()
        self.health = Health(directory.path, "writing", lambda: self.now_s)
        self.evictor = Evictor(directory, max_bytes)
        self.filler = Filler(
            directory, self.evictor, self.health, self.counters, queue_bytes=queue_bytes
        )

    def offer(self, cached: Cached) -> None:
        """Offer all blocks."""
        version = cached.version
        for number in range(cached.blocks):
            self.filler.offer(Block(version, number, cached.block(number)))

    def wait(self) -> None:
        assert self.filler.wait(SAFE_S)

    def count(self, name: str) -> int:
        return self.counters.snapshot()[name]


@pytest.fixture
def world(directory: CacheDirectory) -> World:
    return World(directory)


def test_blocks_are_written(world: World) -> None:
    """What is offered is in the cache once the queue is empty, and counted once."""
    cached = Cached.of(world.directory, content(3 * MIB + 5))
    world.offer(cached)
    world.offer(cached)
    world.wait()
    assert cached.read() == (0, cached.data)
    assert world.count("cache_bytes_written") == len(cached.data)
    assert world.count("cache_dropped") == 0
    assert world.directory.used_bytes == sum_of(world.directory)


def test_a_full_queue(directory: CacheDirectory) -> None:
    """Blocks for which the queue has no room are dropped at once."""
    world = World(directory, queue_bytes=3 * MIB)
    directory.recount()
    cached = Cached.of(directory, content(10 * MIB))
    with directory._locked_usage():  # writers wait for it
        world.offer(cached)
        assert world.count("cache_dropped") == 7
    world.wait()
    assert len(files_of(directory)) == 3
    world.filler.offer(Block(cached.version, 9, cached.block(9)))
    world.wait()
    assert len(files_of(directory)) == 4


def test_room_for_other_bytes(directory: CacheDirectory) -> None:
    """Half of the queue's room may be taken, if blocks leave it; blocks have the rest."""
    world = World(directory, queue_bytes=6 * MIB)
    directory.recount()
    filler, cached = world.filler, Cached.of(directory, content(6 * MIB))
    assert filler.take_room(2 * MIB)
    assert not filler.take_room(MIB + 1)
    assert filler.take_room(MIB)
    with directory._locked_usage():  # writers wait for it
        world.offer(cached)
        assert world.count("cache_dropped") == 3
        filler.give_room(2 * MIB)
        assert filler.take_room(2 * MIB)
        filler.give_room(3 * MIB)
        assert filler.take_room(3 * MIB)
        filler.give_room(MIB)
        filler.offer(Block(cached.version, 3, cached.block(3)))
        assert not filler.take_room(1)
    world.wait()
    assert len(files_of(directory)) == 4
    world.health.failed(0, why="a reason")
    assert not filler.take_room(1)


def test_memory(world: World) -> None:
    """A block that was written, or dropped at the end, holds no memory."""

    class Data(bytearray):
        pass

    cached = Cached.of(world.directory, content(MIB))
    written, dropped = Data(cached.data), Data(cached.data)
    references = [weakref.ref(written), weakref.ref(dropped)]
    world.filler.offer(Block(cached.version, 0, written))
    world.wait()
    world.filler.close()
    world.filler.offer(Block(cached.version, 0, dropped))
    del written, dropped
    gc.collect()
    assert [each() for each in references] == [None, None]


@pytest.mark.slow
def test_the_end(directory: CacheDirectory) -> None:
    """`close` drops what is queued; the threads end, and nothing half-written remains."""
    world = World(directory)
    before = threading.active_count()
    cached = Cached.of(directory, content(30 * MIB))
    world.offer(cached)
    world.filler.close()
    until_s = time.monotonic() + SAFE_S
    while threading.active_count() > before:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    assert os.listdir(Path(directory.path, "mount-s3-cache/v1/tmp")) == []
    assert all(directory.check(file) is None for file in files_of(directory))
    assert world.filler.wait(0)
    world.offer(cached)
    assert world.count("cache_dropped") >= 30


def test_a_version_that_is_wrong(world: World) -> None:
    """Blocks of a version that was dropped are not written."""
    cached = Cached.of(world.directory, content(3 * MIB))
    version = cached.version
    with world.directory._locked_usage():
        for number in range(3):
            world.filler.offer(Block(version, number, cached.block(number)))
        version.drop()
    world.wait()
    assert files_of(world.directory) == []


def test_no_room(directory: CacheDirectory) -> None:
    """A block for which there is no room is dropped, and counted; the log says so, once."""
    world = World(directory, 1000)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            world.offer(Cached.of(directory, content(MIB)))
            world.wait()
            assert not world.health.usable
            world.now_s += health.PAUSE_S
    assert world.count("cache_dropped") == 3
    assert directory.used_bytes == 0
    (line,) = [each for each in lines if each["log_level"] == "warning"]
    assert line["reason"] == "there is no room, although no blocks are left to remove"


def test_the_limit(directory: CacheDirectory) -> None:
    """The cache stays below its limit, and has what came last."""
    world = World(directory, 5 * MIB)
    for number in range(30):
        cached = Cached.of(directory, content(700_000, number), key=b"%d" % number)
        world.offer(cached)
        assert sum_of(directory) <= 5 * MIB
        world.wait()
        os.utime(cached.path(), (number, number))
    assert cached.read() == (0, cached.data)
    assert directory.used_bytes == sum_of(directory)
    assert world.evictor.evicted >= 23


def test_threads_that_wait_for_a_count(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread counts, the others wait, and drop nothing."""
    world, recount = World(directory), directory.recount

    def slow_recount() -> int:
        time.sleep(0.2)
        return recount()

    monkeypatch.setattr(directory, "recount", slow_recount)
    cached = Cached.of(directory, content(4 * MIB))
    world.offer(cached)
    world.wait()
    assert cached.read() == (0, cached.data)
    assert world.count("cache_dropped") == 0


def test_counting_first(directory: CacheDirectory) -> None:
    """A cache whose total is not known is counted before the next block is written."""
    Cached.of(directory, content(2 * MIB)).write()
    world = World(directory)
    cached = Cached.of(directory, content(MIB), key=b"other")
    with CacheDirectory.open(directory.path).evicting():  # another process is counting
        world.offer(cached)
        world.wait()
    assert not directory.is_counted
    assert world.count("cache_dropped") == 1
    world.offer(cached)
    world.wait()
    assert directory.used_bytes == sum_of(directory) > 3 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    """One warning, no further attempt for a while, and then the cache is used again."""
    with disk_in_memory(tmp_path, "20m"):
        world = World(CacheDirectory.open(str(tmp_path)))
        caches = [
            Cached.of(world.directory, content(5000, number), key=b"%d" % number)
            for number in range(5)
        ]
        world.offer(caches[0])
        world.wait()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with structlog.testing.capture_logs() as logs:
            for cached in caches[1:4]:
                world.offer(cached)
                world.wait()
            subprocess.run(["mount", "-o", "remount,rw", tmp_path], check=True)
            world.offer(caches[4])
            world.wait()
            assert len(files_of(world.directory)) == 1
            world.now_s += health.PAUSE_S + 1
            world.offer(caches[4])
            world.wait()
        assert [(line["log_level"], line.get("reason")) for line in logs] == [
            ("warning", "Read-only file system"),
            ("info", None),
        ]
        assert len(files_of(world.directory)) == 2


@pytest.mark.parametrize("removed", ["", "mount-s3-cache", "mount-s3-cache/v1/tmp"])
def test_someone_removes_the_directory(directory: CacheDirectory, removed: str) -> None:
    """A directory that was removed is made again, and used after a while."""
    world = World(directory)
    cached = Cached.of(directory, content(2 * MIB))
    world.offer(cached)
    world.wait()
    subprocess.run(["rm", "-rf", Path(directory.path, removed)], check=True)
    other = Cached.of(directory, content(MIB), key=b"other")
    with structlog.testing.capture_logs() as logs:
        world.offer(other)
        world.wait()
        assert [line["reason"] for line in logs] == ["No such file or directory"]
        world.now_s += health.PAUSE_S + 1
        world.offer(other)
        world.wait()
    assert other.read() == (0, other.data)
    assert world.health.usable


def test_what_is_not_expected(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program costs one block, not the thread."""
    cached = Cached.of(world.directory, content(5000))
    with structlog.testing.capture_logs() as logs:
        world.filler.offer(Block(cached.version, 0, b"of another size"))
        world.wait()
    assert [line["event"] for line in logs] == ["a block could not be written to the cache"]
    world.offer(cached)
    world.wait()
    assert cached.read()[0] == 0


@pytest.mark.parametrize(
    "sizes", [[], [0], [5], [MIB], [MIB + 1], [3, MIB, 2 * MIB, 0, 7], [MIB // 2] * 5]
)
def test_pieces_become_blocks(sizes: list[int]) -> None:
    """Blocks have the bytes of the pieces in order, and hold none of them."""
    pieces = [os.urandom(size) for size in sizes]
    blocks = list(blocks_of(pieces))
    data = b"".join(pieces)
    assert blocks == [data[start : start + MIB] for start in range(0, len(data), MIB)]
    assert all(type(block) is bytes for block in blocks)
