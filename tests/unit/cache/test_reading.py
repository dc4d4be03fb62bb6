"""Ranges that are read from the cache, or from S3 instead."""

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from mountpoint._fastpath import Part
from mountpoint.cache import cached_object
from mountpoint.cache.cached_object import INLINE_BYTES, CachedObject, Disk
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.health import Health, Speeds
from mountpoint.cache.reading import CacheRead, Readers
from mountpoint.errors import Interrupted
from mountpoint.s3.client import BodySink, ObjectInfo
from tests.mount.mounting import eventually
from tests.soak import rounds
from tests.unit.cache.objects import SAFE_S, Cached, content
from tests.unit.cache.processes import filler

MIB = 1 << 20
SIZE = 2 * MIB + 777


class Transfer:
    """A request to S3 that a test answers."""

    def __init__(self, cached: Cached, part: Part) -> None:
        self.sink: BodySink = part
        self.info = ObjectInfo(b"key", len(cached.data), 0, part.etag)
        self.start, self.data = part.start, cached.data[part.start : part.stop]
        self.sent_bytes = 0
        self.cancelled = False

    def answer(self, size: int | None = None) -> None:
        """Deliver some bytes, or all that are left and the end."""
        if self.sent_bytes == 0:
            self.sink.on_headers(self.info)
        rest = self.data[self.sent_bytes :][:size]
        self.sink.on_body(rest, self.start + self.sent_bytes)
        self.sent_bytes += len(rest)
        if size is None:
            self.sink.finish(None)

    def cancel(self) -> None:
        self.cancelled = True


class SlowVersion:
    """A version whose reads wait for the test, before or after they look at the disk."""

    def __init__(self, cached: Cached) -> None:
        self._version = cached.version
        self.begun, self.go_on = threading.Event(), threading.Event()

    def read(self, start: int, stop: int, part: Part) -> int:
        self.begun.set()
        assert self.go_on.wait(SAFE_S)
        return self._version.read(start, stop, part)


class World:
    """One object in the cache, and requests to S3."""

    def __init__(self, directory: CacheDirectory, *, remote: bool = False) -> None:
        self.now_s = 0.0
        self.cached = Cached.of(directory, content(SIZE))
        self.cached.write()
        self.health = Health(directory.path, "reading", lambda: self.now_s)
        self.readers = Readers()
        self.asked: list[Transfer] = []
        self.disk = disk = Disk(
            self.health,
            Speeds(),
            self.readers,
            filler(directory, None),
            Readers() if remote else None,
        )
        info = ObjectInfo(b"key", SIZE, 0, '"1"')
        self.object = CachedObject(disk, self.cached.version, info)

    def part(self, start: int = 0, stop: int = SIZE) -> Part:
        return Part(start, stop, '"1"')

    def instead(self, part: Part) -> Any:
        def ask() -> Transfer:
            self.asked.append(Transfer(self.cached, part))
            return self.asked[-1]

        return ask

    def slow_read(self) -> tuple[SlowVersion, Part, CacheRead]:
        """Begin a read of the whole object that waits for the test."""
        slow, part = SlowVersion(self.cached), self.part()
        read = CacheRead(self.health, slow, part, self.instead(part))  # type: ignore[arg-type]
        part.attach(read)
        self.readers.add(read)
        assert slow.begun.wait(SAFE_S)
        return slow, part, read

    def read(self, start: int = 0, stop: int = SIZE) -> Part:
        part = self.part(start, stop)
        self.object.read(part, self.instead(part))
        return part


@pytest.fixture
def world(directory: CacheDirectory) -> World:
    return World(directory)


def data_of(part: Part) -> bytes:
    assert part.wait(SAFE_S)
    assert part.ready
    assert part.data is not None
    return bytes(part.data)


@pytest.mark.parametrize("size", [100, INLINE_BYTES, INLINE_BYTES + 1, SIZE])
def test_from_the_cache(world: World, size: int) -> None:
    """What is there comes from the disk, and stays so."""
    part = world.read(0, size)
    assert data_of(part) == world.cached.data[:size]
    assert part.cached
    assert world.asked == []
    assert part.error is None


@pytest.mark.parametrize("size", [100, SIZE])
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_instead(world: World, how: str, size: int) -> None:
    """A block that is gone or damaged comes from S3, into the same part."""
    path = Path(world.cached.path())
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    part = world.read(0, size)
    until_s = time.monotonic() + SAFE_S
    while not world.asked:
        assert time.monotonic() < until_s
        time.sleep(0.001)
    assert not part.cached
    world.asked[0].answer()
    assert data_of(part) == world.cached.data[:size]
    assert len(world.asked) == 1
    assert world.health.usable


def test_errors_of_the_disk(world: World) -> None:
    """After another error the cache is left alone, with one warning."""
    folder = Path(world.cached.path()).parent
    if os.geteuid() == 0:  # nothing is forbidden to root
        folder.rename(folder.with_name("old"))
        folder.write_bytes(b"")
        expected = "Not a directory"
    else:
        folder.chmod(0)
        expected = "Permission denied"
    with structlog.testing.capture_logs() as logs:
        parts = [world.read(0, 100) for _ in range(3)]
    folder.chmod(0o700)
    assert [line["reason"] for line in logs] == [expected]
    assert not world.health.usable
    assert len(world.asked) == len(parts)
    assert world.object.split(0, SIZE) == [(0, SIZE, False)]


def test_s3_first(world: World) -> None:
    """If the disk is late, S3's answer counts, whatever the disk does then."""
    slow, part, _ = world.slow_read()
    world.object.late(part)
    world.object.late(part)
    assert len(world.asked) == 1
    world.asked[0].answer()
    slow.go_on.set()
    assert data_of(part) == world.cached.data
    assert len(world.asked) == 1


def test_the_disk_in_the_middle_of_an_answer(world: World) -> None:
    """The disk delivers while S3's answer is arriving: the reader has all bytes, once."""
    slow, part, _ = world.slow_read()
    world.object.late(part)
    world.asked[0].answer(1000)
    slow.go_on.set()
    assert data_of(part) == world.cached.data
    world.asked[0].answer()  # what is left of it changes nothing
    assert data_of(part) == world.cached.data


def test_a_stream_that_is_closed(world: World) -> None:
    """Once the part is cancelled, S3 is not asked for it any more."""
    slow, part, read = world.slow_read()
    part.cancel()
    for index in range(world.cached.blocks):
        os.unlink(world.cached.path(index))
    slow.go_on.set()
    read.give_up()
    world.object.late(part)
    assert part.failed
    assert world.asked == []


def test_a_request_that_cannot_be_sent(world: World) -> None:
    """The reader learns at once why, also if another thread has asked."""
    os.unlink(world.cached.path())

    def instead() -> Any:
        raise Interrupted("the mount is ending")

    for size in (100, SIZE):
        part = world.part(0, size)
        world.object.read(part, instead)
        assert part.wait(SAFE_S)
        assert isinstance(part.error, Interrupted)


def test_a_read_that_is_stuck(world: World) -> None:
    """While a read takes longer than a second, others do not begin one."""
    slow, part, _ = world.slow_read()
    assert world.object.split(0, SIZE) == [(0, SIZE, True)]
    world.now_s += 1.5
    assert world.object.split(0, SIZE) == [(0, SIZE, False)]
    assert world.object.lane_source(None) is None
    slow.go_on.set()
    assert data_of(part) == world.cached.data
    until_s = time.monotonic() + SAFE_S
    while not world.health.usable:
        assert time.monotonic() < until_s
        time.sleep(0.001)


def test_races(world: World) -> None:
    """The disk, a late reader, S3 and a cancel at once: the part ends once, with right bytes."""
    drawn = random.Random(7)
    for _ in rounds(200):
        world.asked.clear()
        start, stop = sorted(drawn.sample(range(SIZE + 1), 2))
        part = world.part(start, stop)
        missing = drawn.random() < 0.3
        if missing:
            world.cached.version.remove(start // MIB)
        read = CacheRead(world.health, world.cached.version, part, world.instead(part))
        part.attach(read)

        def late(read: CacheRead = read) -> None:
            read.give_up()
            for each in list(world.asked):
                each.answer(1)

        def cancel(part: Part = part) -> None:
            part.cancel()

        work = [read.run, late] + ([cancel] if drawn.random() < 0.3 else [])
        drawn.shuffle(work)
        threads = [threading.Thread(target=each) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(world.asked) <= 1
        for each in world.asked:  # `late` may have come before it was asked
            each.answer()
        assert part.ready or part.failed
        if part.ready:
            assert data_of(part) == world.cached.data[start:stop]
        else:
            assert len(work) == 3
        if missing:
            world.cached.write(start // MIB)


def test_the_end_of_the_threads(directory: CacheDirectory) -> None:
    """`close` ends all threads, after the reads that were added before."""
    before = threading.active_count()
    world = World(directory)
    parts = [world.read() for _ in range(20)]
    world.readers.close()
    assert all(data_of(part) == world.cached.data for part in parts)
    until_s = time.monotonic() + SAFE_S
    while threading.active_count() > before:
        assert time.monotonic() < until_s
        time.sleep(0.01)


class SlowLookups:
    """A version whose lookups wait for the test."""

    def __init__(self, cached: Cached) -> None:
        self._version = cached.version
        self.go_on = threading.Event()
        self.threads: set[int] = set()

    def held_until(self, start: int, stop: int) -> tuple[bool, int]:
        self.threads.add(threading.get_ident())
        assert self.go_on.wait(SAFE_S)
        return self._version.held_until(start, stop)


def test_a_remote_disk_that_hangs(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread of a reader touches it: a lookup that is late finds nothing, the next one asks
    nothing.
    """
    monkeypatch.setattr(cached_object, "STUCK_S", 0.05)
    world = World(directory, remote=True)
    slow = SlowLookups(world.cached)
    info = ObjectInfo(b"key", SIZE, 0, '"1"')
    hanging = CachedObject(world.disk, slow, info)  # type: ignore[arg-type]
    assert hanging.split(0, SIZE) == [(0, SIZE, False)]
    assert not world.health.usable
    assert hanging.split(0, SIZE) == [(0, SIZE, False)]
    assert len(slow.threads) == 1
    assert threading.get_ident() not in slow.threads
    slow.go_on.set()
    world.now_s += 60
    eventually(lambda: world.health.usable)
    assert all(held for _, _, held in hanging.split(0, SIZE))
    part = world.part(0, 100)
    world.object.read(part, world.instead(part))
    assert data_of(part) == world.cached.data[:100]
    assert world.object.lane_source(None) is None
    world.object.drop()
    eventually(lambda: not os.path.exists(world.cached.path()))
