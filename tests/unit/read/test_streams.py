"""All streams of a mount: memory of idle ones, and predictions for the next file."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mountpoint.config import ReadConfig
from mountpoint.errors import BadHandle
from mountpoint.read.history import INITIAL_BYTES, LAST_FILES
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import IDLE_SWEEPS, PRESSED_SWEEPS, Streams
from mountpoint.s3.retry import RetryPolicy
from tests.unit.fake_client import SAFE_S, FakeClient

KIB = 1024
MIB = 1 << 20
SIZE = 16 * MIB
KEYS = [b"d/%d" % index for index in range(8)]
DATA = random.Random(1).randbytes(SIZE)


class Mount:
    """A client of several objects with the same content, and their streams."""

    def __init__(self, *, memory_bytes: int = 256 * MIB, **client: Any) -> None:
        self.client = FakeClient(dict.fromkeys(KEYS, DATA), **client)
        self.stopping = threading.Event()
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=self.stopping)
        self.streams = Streams(self.client, ReadConfig(memory_bytes=memory_bytes), retry_policy)
        self.budget = self.streams.budget

    def __enter__(self) -> "Mount":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.client.close()

    def stream(self, index: int = 0) -> ReadStream:
        """Return a new stream of one of the objects."""
        return self.streams.stream(self.client.info(KEYS[index]))

    def sweep(self, times: int) -> None:
        """Sweep all streams this many times."""
        for _ in range(times):
            self.streams.sweep()


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Streams with enough memory."""
    with Mount() as it:
        yield it


def check(stream: ReadStream, offset: int, size: int) -> None:
    """Read, and compare."""
    assert bytes(stream.read(offset, size)) == DATA[offset : offset + size]


def read_on(stream: ReadStream, begin: int, stop: int) -> None:
    """Read a piece in order."""
    for offset in range(begin, stop, 256 * KIB):
        check(stream, offset, 256 * KIB)


# --- Idle ones ---


def test_idle_streams_give_everything_back(mount: Mount) -> None:
    """After some sweeps without a read nothing is held, and reading continues."""
    streams = [mount.stream(index) for index in range(4)]
    for stream in streams:
        read_on(stream, 0, 2 * MIB)
    mount.client.quiet()
    mount.sweep(IDLE_SWEEPS)
    assert mount.budget.held_bytes > 0
    mount.sweep(1)  # the first sweep saw the reads
    assert mount.budget.held_bytes == 0
    for stream in streams:
        read_on(stream, 2 * MIB, SIZE)
        stream.close()


def test_a_file_that_is_only_open_gives_its_initial_range_back(mount: Mount) -> None:
    """An initial range that is not read is dropped although the file stays open."""
    stream = mount.stream()
    stream.open()
    assert mount.budget.held_bytes == INITIAL_BYTES
    mount.sweep(IDLE_SWEEPS + 1)
    assert mount.budget.held_bytes == 0
    check(stream, 0, INITIAL_BYTES)
    stream.close()


def test_a_reading_stream_keeps_its_read_ahead(mount: Mount) -> None:
    """A stream that reads between two sweeps loses nothing."""
    reader, idle = mount.stream(0), mount.stream(1)
    for stream in (reader, idle):
        read_on(stream, 0, 2 * MIB)
    for index in range(3 * IDLE_SWEEPS):
        check(reader, 2 * MIB + index * 4 * KIB, 4 * KIB)
        mount.sweep(1)
    assert idle.held_bytes == 0
    assert reader.held_bytes == mount.budget.held_bytes > 0


def test_a_waiting_stream_is_not_idle() -> None:
    """A stream whose reader has waited for long is not idle."""
    with Mount(stepped=True) as mount:
        stream = mount.stream()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                check(stream, 8 * MIB, 4 * KIB)
            except BaseException as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        until_s = time.monotonic() + SAFE_S
        while not mount.client.under_way():
            assert time.monotonic() < until_s
        mount.sweep(3 * IDLE_SWEEPS)
        assert mount.client.cancelled == 0
        mount.client.step()
        reader.join(SAFE_S)
        assert errors == []


def press(mount: Mount) -> None:
    """Make the budget refuse memory because of its limit."""
    lease = mount.budget.lease()
    assert not lease.try_take(mount.budget.limit_bytes + 1)


def test_under_pressure_the_idle_give_back_at_once(mount: Mount) -> None:
    """If others are refused memory, a stream without a read since the last sweep is idle."""
    idle, reader = mount.stream(0), mount.stream(1)
    for stream in (idle, reader):
        read_on(stream, 0, 4 * MIB)
    mount.sweep(1)
    assert idle.held_bytes > 0
    read_on(reader, 4 * MIB, 5 * MIB)
    press(mount)
    mount.sweep(PRESSED_SWEEPS)
    assert idle.held_bytes == 0
    assert reader.held_bytes > 0
    read_on(idle, 4 * MIB, 8 * MIB)


def test_old_pressure_is_forgotten(mount: Mount) -> None:
    """Without a refusal since the last sweep, streams may be idle for the usual time."""
    stream = mount.stream()
    press(mount)
    read_on(stream, 0, 4 * MIB)
    mount.sweep(IDLE_SWEEPS)
    assert stream.held_bytes > 0
    mount.sweep(1)
    assert stream.held_bytes == 0


def test_closed_streams_are_forgotten(mount: Mount) -> None:
    """A closed stream, even if closed twice, holds nothing and is not swept."""
    stream = mount.stream()
    read_on(stream, 0, 2 * MIB)
    stream.close()
    stream.close()
    assert mount.budget.held_bytes == 0
    assert mount.streams._open == set()
    mount.sweep(2 * IDLE_SWEEPS)
    with pytest.raises(BadHandle):
        stream.read(0, 100)


def test_memory_goes_back_to_the_system_once(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing was held for a while, memory is returned once until the next read."""
    given_back: list[int] = []
    monkeypatch.setattr("mountpoint.read.streams.give_back", lambda: given_back.append(1))
    stream = mount.stream()
    for times in (1, 2):
        read_on(stream, 0, 2 * MIB)
        mount.sweep(IDLE_SWEEPS)
        assert len(given_back) == times - 1
        mount.sweep(4 * IDLE_SWEEPS)
        assert len(given_back) == times


def test_memory_goes_back_when_many_files_were_closed(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of open files is returned once, when most of them have been closed."""
    monkeypatch.setattr("mountpoint.read.streams.MANY_OPEN", 10)
    given_back: list[int] = []
    mount.sweep(2 * IDLE_SWEEPS)
    monkeypatch.setattr("mountpoint.read.streams.give_back", lambda: given_back.append(1))
    streams = [mount.stream() for _ in range(10)]
    mount.sweep(1)
    for stream in streams[:4]:
        stream.close()
    mount.sweep(1)
    assert given_back == []
    for stream in streams[4:]:
        stream.close()
    mount.sweep(2)
    assert given_back == [1]


@pytest.mark.slow
def test_sweeping_while_streams_come_and_go(mount: Mount) -> None:
    """Sweeps, reads, opens and closes in parallel do no harm and leave nothing."""
    errors: list[BaseException] = []
    done = threading.Event()

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        try:
            for _ in range(20):
                stream = mount.stream(random_.randrange(len(KEYS)))
                if random_.random() < 0.5:
                    stream.open()
                for _ in range(10):
                    check(stream, random_.randrange(SIZE - MIB), random_.randrange(1, MIB))
                stream.close()
        except BaseException as error:
            errors.append(error)

    def look() -> None:
        try:
            while not done.is_set():
                mount.sweep(1)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    looker = threading.Thread(target=look)
    for thread in (looker, *workers):
        thread.start()
    for thread in workers:
        thread.join(SAFE_S)
    done.set()
    looker.join(SAFE_S)
    assert errors == []
    assert mount.budget.held_bytes == 0


# --- What files tell of the next one ---


def opened(mount: Mount, index: int) -> list[tuple[int, int]]:
    """Open a file and close it; return the requested ranges."""
    before = len(mount.client.ranges())
    stream = mount.stream(index)
    stream.open()
    stream.close()
    return mount.client.ranges()[before:]


def test_open_fetches_as_much_as_was_read_before(mount: Mount) -> None:
    """After files of which little was read, open fetches as much of the next one."""
    assert opened(mount, 7) == [(0, INITIAL_BYTES)]
    for index in range(LAST_FILES):
        stream = mount.stream(index)
        stream.open()
        check(stream, 0, 5000)
        stream.close()
    assert opened(mount, 7) == [(0, 8 * KIB)]


def test_reads_from_the_kernels_pages_are_no_history(mount: Mount) -> None:
    """If open has fetched nothing, programs may have read pages that the kernel had."""
    for index in range(LAST_FILES):
        mount.stream(index).close()
    assert opened(mount, 7) == [(0, INITIAL_BYTES)]


def test_a_stream_that_rested_tells_all_it_read(mount: Mount) -> None:
    """Bytes read before a rest count together with those after it."""
    for index in range(LAST_FILES):
        stream = mount.stream(index)
        stream.open()
        check(stream, 0, 4 * KIB)
        mount.sweep(IDLE_SWEEPS + 1)
        check(stream, 4 * KIB, 8 * KIB)
        stream.close()
    assert opened(mount, 7) == [(0, 12 * KIB)]


def test_all_streams_share_one_memory() -> None:
    """All streams together hold at most the permitted memory, and what readers wait for."""
    with Mount(memory_bytes=16 * MIB) as mount:
        streams = [mount.stream(index) for index in range(len(KEYS))]
        most = 0
        for offset in range(0, SIZE, 256 * KIB):
            for stream in streams:
                check(stream, offset, 256 * KIB)
                most = max(most, mount.budget.held_bytes)
        assert most <= 16 * MIB + 256 * KIB
        for stream in streams:
            stream.close()
        assert mount.budget.held_bytes == 0
