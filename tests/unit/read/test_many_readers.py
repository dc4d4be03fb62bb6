"""Many readers at once: sizes of their requests, and what all of them hold."""

import threading
from collections.abc import Iterator

import pytest

from mountpoint.config import ReadConfig
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.concurrency import ConcurrencyController
from tests.unit.fake_client import SAFE_S, FakeClient

pytestmark = pytest.mark.slow

MIB = 1 << 20
PART = 8 * MIB
SIZE = 8 * PART
KEY = b"large"


class Readers:
    """Readers of one object, which take turns, as on a machine with `loops` event loops."""

    def __init__(self, memory_mib: int, loops: int) -> None:
        self._client = FakeClient({KEY: bytes(SIZE)})
        self._client.verifies = False
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
        config = ReadConfig(
            PART, memory_mib * MIB, event_loops=loops, max_ahead_bytes=loops * 160 * MIB
        )
        self._streams = Streams(self._client, config, retry_policy)
        self.max_held_bytes = 0

    def close(self) -> None:
        """End the client."""
        self._client.close()

    def open(self, count: int) -> list[ReadStream]:
        """Open this many streams."""
        return [self._streams.stream(self._client.info(KEY)) for _ in range(count)]

    def read(self, streams: list[ReadStream], begin: int, stop: int) -> list[int]:
        """Read 1 MiB of each in turn; return the sizes of the requests."""
        before = len(self._client.requests)
        for offset in range(begin, stop, MIB):
            for stream in streams:
                assert len(memoryview(stream.read(offset, MIB))) == MIB
                self.max_held_bytes = max(self.max_held_bytes, self._streams.budget.held_bytes)
        return [each.stop - each.start for each in self._client.requests[before:]]


@pytest.fixture
def readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    """Readers on the machine that the test names; nothing is learned from durations."""
    monkeypatch.setattr(ConcurrencyController, "arrived", lambda *args, **keywords: None)
    made = Readers(*request.param)
    yield made
    made.close()


#: MiB of memory, and event loops: the defaults on two cores and on sixteen.
TWO_CORES, SIXTEEN_CORES = (1024, 1), (4096, 8)


@pytest.mark.parametrize("readers", [TWO_CORES, (4096, 1), SIXTEEN_CORES], indirect=True)
def test_sixteen_readers_use_parts_of_full_size(readers: Readers) -> None:
    """Beyond the first steps, each request is for a whole part."""
    streams = readers.open(16)
    readers.read(streams, 0, 2 * PART)
    sizes = readers.read(streams, 2 * PART, SIZE)
    assert set(sizes) == {PART}
    assert len(sizes) <= 16 * 6


@pytest.mark.parametrize(
    ("readers", "parts"), [(TWO_CORES, 3), (SIXTEEN_CORES, 5)], indirect=["readers"]
)
def test_many_readers_hold_what_they_need(readers: Readers, parts: int) -> None:
    """Each holds its share, and a part before it: not the limit."""
    readers.read(readers.open(16), 0, SIZE)
    assert readers.max_held_bytes <= 16 * parts * PART


@pytest.mark.parametrize(
    ("readers", "parts"), [(TWO_CORES, 10), (SIXTEEN_CORES, 10)], indirect=["readers"]
)
def test_one_reader_holds_the_same_on_any_machine(readers: Readers, parts: int) -> None:
    """Memory follows the readers, not the machine."""
    readers.read(readers.open(1), 0, SIZE)
    assert readers.max_held_bytes <= parts * PART


@pytest.mark.parametrize("readers", [TWO_CORES, SIXTEEN_CORES], indirect=True)
def test_a_latecomer_gets_its_share(readers: Readers) -> None:
    """A reader that comes when others have all that they may have gets parts of full size, too."""
    early = readers.open(15)
    readers.read(early, 0, 3 * PART)
    (late,) = readers.open(1)
    readers.read([late], 0, 2 * PART)
    assert set(readers.read([late], 2 * PART, SIZE)) == {PART}
    assert late.held_bytes >= 2 * PART
    assert set(readers.read(early, 3 * PART, SIZE)) == {PART}


@pytest.mark.parametrize("readers", [TWO_CORES], indirect=True)
def test_four_readers_on_two_cores(readers: Readers) -> None:
    """Four readers have four requests each in flight, so their parts are smaller."""
    streams = readers.open(4)
    readers.read(streams, 0, 3 * PART)
    assert set(readers.read(streams, 3 * PART, 6 * PART)) == {PART // 2}


@pytest.mark.parametrize("readers", [SIXTEEN_CORES], indirect=True)
def test_four_readers_on_sixteen_cores(readers: Readers) -> None:
    """Each has as much as a single reader."""
    streams = readers.open(4)
    readers.read(streams, 0, 2 * PART)
    sizes = readers.read(streams, 2 * PART, SIZE)
    assert set(sizes) <= {PART}
