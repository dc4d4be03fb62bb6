"""Streams and files fetched ahead, with a shared cache: which requests go to which bucket."""

import threading
from collections.abc import Iterator

import pytest

from mountpoint.cache.shared.cache import SharedCache
from mountpoint.config import ReadConfig
from mountpoint.errors import ServerFault
from mountpoint.metrics.counters import Counters
from mountpoint.read.prefetch import FIRST_OPENS
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from tests.unit.cache.objects import content
from tests.unit.fake_client import SAFE_S, FakeClient, Fault

SIZE = 50_000
FILES = 10
MIB = 1 << 20


class Mount:
    """A mount of small objects and a large one, with a cache bucket that others may share."""

    def __init__(self, bucket: FakeClient) -> None:
        self.bucket = bucket
        self.source = FakeClient({self.key(index): content(SIZE, index) for index in range(FILES)})
        self.source.put(b"large", content(3 * MIB))
        self.stopping = threading.Event()
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=self.stopping)
        counters = Counters()
        self.shared = SharedCache(
            bucket, "cache", "store", "bucket", counters, retry_policy, queue_bytes=MIB
        )
        self.streams = Streams(
            self.source, ReadConfig(), retry_policy, counters, shared=self.shared
        )

    @staticmethod
    def key(index: int) -> bytes:
        """Return a key; they are in order."""
        return b"d/%02d" % index

    def infos(self) -> list[ObjectInfo]:
        """Return the small objects."""
        return [self.source.info(self.key(index)) for index in range(FILES)]

    def open(self, info: ObjectInfo) -> ReadStream:
        """Open a version without asking whether it is the newest."""
        following = [each for each in self.infos() if each.key > info.key]
        stream = self.streams.unasked(info, lambda count: following[:count], paged=False)
        assert stream is not None
        return stream

    def read(self, info: ObjectInfo) -> bytes:
        """Open and read a file."""
        stream = self.open(info)
        data = bytes(stream.read(0, info.size_bytes))
        stream.close()
        return data

    def read_all(self) -> None:
        """Read all small files in order, and wait until they were sent."""
        for index, info in enumerate(self.infos()):
            assert self.read(info) == content(SIZE, index)
        assert self.shared.wait(SAFE_S)

    def close(self) -> None:
        """End everything but the cache bucket."""
        self.stopping.set()
        self.shared.close()
        self.source.close()


@pytest.fixture
def mounts() -> Iterator[list[Mount]]:
    """Two mounts that share a bucket."""
    with FakeClient() as bucket:
        both = [Mount(bucket), Mount(bucket)]
        yield both
        for each in both:
            each.close()


def test_a_walk(mounts: list[Mount]) -> None:
    """One mount reads and sends; the other reads all from the cache, also what it fetches ahead."""
    first, second = mounts
    first.read_all()
    assert first.source.count("get") == FILES
    assert len(first.bucket.keys()) == FILES > FIRST_OPENS
    second.read_all()
    assert second.source.count("get") == 0
    assert first.bucket.count("put_object") == FILES


def test_a_fresh_open(mounts: list[Mount]) -> None:
    """The request that shows whether a version is the newest goes to the mounted bucket, also when
    it is sent again.
    """
    first, second = mounts
    first.read_all()
    info = second.infos()[0]
    asked = second.bucket.count("get")
    second.source.inject("get", Fault(error=ServerFault("gone")))
    stream = second.streams.stream(info)
    assert stream.open() == info
    assert bytes(stream.read(0, SIZE)) == content(SIZE)
    stream.close()
    assert second.bucket.count("get") == asked


def test_a_large_object(mounts: list[Mount]) -> None:
    """No part of a large object is requested from the cache, or sent to it."""
    mount = mounts[0]
    info = mount.source.info(b"large")
    stream = mount.open(info)
    data = content(3 * MIB)
    for offset in range(0, len(data), 256 << 10):
        assert bytes(stream.read(offset, 256 << 10)) == data[offset:][: 256 << 10]
    stream.close()
    assert mount.bucket.requests == []


def test_a_bad_answer_ends_no_read(mounts: list[Mount]) -> None:
    """All answers of the cache bucket are wrong: all bytes are right."""
    first, second = mounts
    first.read_all()
    for key, body in first.bucket.contents().items():
        first.bucket.put(key, body[::-1])
    second.read_all()
    assert second.source.count("get") == FILES
