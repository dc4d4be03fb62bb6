"""The shared cache: what comes from its bucket, what falls back, and what is sent there."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._format import is_block, trailer_bytes, trailer_of
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.identity import Identity
from mountpoint.cache.shared import cache, known
from mountpoint.cache.shared.cache import MAX_OBJECT_BYTES, SharedCache
from mountpoint.cache.shared.filling import SharedBlock
from mountpoint.errors import AccessDenied, ChecksumMismatch, NotOffered, ServerFault
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from tests.unit.cache.objects import BUCKET, ENDPOINT, SAFE_S, Cached, content
from tests.unit.fake_client import FakeClient, Fault

SIZE = 100_000
DATA = content(SIZE)


class World:
    """A mounted bucket with one object, and a bucket for the cache."""

    def __init__(self, source: FakeClient, bucket: FakeClient) -> None:
        self.source = source
        self.bucket = bucket
        self.counters = Counters()
        self.info = source.put(b"key", DATA)
        self.cache = self.mount()

    def mount(self, *, queue_bytes: int = 1 << 20) -> SharedCache:
        """Return the cache of another mount."""
        return SharedCache(
            self.bucket,
            "cache-bucket",
            ENDPOINT,
            BUCKET,
            self.counters,
            RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event()),
            queue_bytes=queue_bytes,
        )

    def ask(self, cache: SharedCache | None = None, info: ObjectInfo | None = None) -> Part:
        """Request a whole object, and do not wait."""
        info = info or self.info
        part = Part(0, info.size_bytes, info.etag)
        source = self.source
        (cache or self.cache).get(info, part, lambda: source.get(info, 0, info.size_bytes, part))
        return part

    def read(self, cache: SharedCache | None = None, info: ObjectInfo | None = None) -> bytes:
        """Read a whole object as a stream does."""
        part = self.ask(cache, info)
        assert part.wait(SAFE_S), part.error
        (cache or self.cache).arrived(info or self.info, part)
        return bytes(part.data)

    def fill(self) -> None:
        """Read the object, and wait until it has been sent."""
        assert self.read() == DATA
        assert self.cache.wait(SAFE_S)

    @property
    def block(self) -> SharedBlock:
        """The object's block."""
        identity = Identity.of(ENDPOINT, BUCKET, self.info)
        assert identity is not None
        return SharedBlock.of(identity)

    def counted(self) -> dict[str, int]:
        """Return the counters that are not zero."""
        prefix = "cache_shared_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.counters.snapshot().items()
            if value and name.startswith(prefix)
        }


@pytest.fixture
def world() -> Iterator[World]:
    """Two buckets, and a mount."""
    with FakeClient() as source, FakeClient() as bucket:
        world = World(source, bucket)
        yield world
        world.cache.close()


def test_two_mounts(world: World) -> None:
    """What one mount has read, another one reads from the shared cache, without the source."""
    world.fill()
    assert world.source.count("get") == 1
    other = world.mount()
    assert world.read(other) == DATA
    assert world.source.count("get") == 1
    assert world.counted() == {
        "misses": 1, "hits": 1, "bytes_read": SIZE, "bytes_written": SIZE
    }  # fmt: skip
    assert world.bucket.keys() == [world.block.key]


def test_a_body_is_a_block_file(world: World, directory: CacheDirectory) -> None:
    """A body is what a cache directory has for the same block, under the same path."""
    world.fill()
    cached = Cached.of(directory, DATA, etag=world.info.etag)
    cached.write()
    with open(cached.path(), "rb") as file:
        assert world.bucket.content(world.block.key) == file.read()
    assert cached.path().endswith(world.block.key.decode())


def flipped(body: bytes) -> bytes:
    """Return a body with one bit changed."""
    return body[:500] + bytes([body[500] ^ 1]) + body[501:]


def of_another_version(body: bytes) -> bytes:
    """Return the body of a version with as many bytes and another ETag."""
    identity = Identity(ENDPOINT, BUCKET, '"another"', SIZE, b"key")
    data = content(SIZE, 2)
    wrong = data + trailer_of(identity.text, 0, data)
    return wrong + bytes(max(len(body) - len(wrong), 0))


@pytest.mark.parametrize(
    "damage",
    [flipped, of_another_version, lambda body: body[:-1],
     lambda body: b"", lambda body: bytes(len(body))],
)  # fmt: skip
def test_a_bad_block(world: World, damage: Callable[[bytes], bytes]) -> None:
    """A bad block is not used. Its bytes come from the source, and replace it."""
    world.fill()
    right = world.bucket.content(world.block.key)
    world.bucket.put(world.block.key, damage(right))
    other = world.mount()
    assert world.read(other) == DATA
    assert other.wait(SAFE_S)
    assert world.counted()["bad_blocks"] == 1
    assert world.bucket.content(world.block.key) == right
    assert world.source.count("get") == 2


def test_a_body_that_was_changed_on_the_way(world: World) -> None:
    """A body that does not match the checksum of its answer is a bad block, and no outage."""
    world.fill()
    world.bucket.inject("get", Fault(error=ChecksumMismatch("wrong")))
    assert world.read() == DATA
    assert world.read() == DATA
    assert world.counted()["bad_blocks"] == 1
    assert "errors" not in world.counted()


@pytest.mark.parametrize("error", [AccessDenied("no"), ServerFault("out of order")])
def test_a_bucket_that_fails(world: World, error: Exception) -> None:
    """After a failure the bucket is left alone for a while."""
    world.fill()
    world.bucket.inject("get", Fault(error=error))
    asked = world.bucket.count("get")
    for _ in range(5):
        assert world.read() == DATA
    assert world.bucket.count("get") == asked + 1
    assert world.counted()["errors"] == 1


def test_a_late_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is late comes from the source, and the next reads do not wait for the bucket."""
    world.fill()
    world.bucket.inject("get", Fault(silent=True))
    part = world.ask()
    world.cache.sweep()
    assert not part.ready
    monkeypatch.setattr(cache, "LATE_S", -1.0)
    world.cache.sweep()
    assert part.wait(SAFE_S)
    assert bytes(part.data) == DATA
    assert world.bucket.cancelled == 1
    asked = world.bucket.count("get")
    assert world.read() == DATA
    assert world.bucket.count("get") == asked


def test_the_end_of_a_mount(world: World) -> None:
    """A request that is interrupted is no failure of the bucket."""
    world.fill()
    world.bucket.inject("get", Fault(silent=True))
    part = world.ask()
    world.bucket.interrupt()
    assert part.wait(SAFE_S)
    assert "errors" not in world.counted()
    assert world.cache.reading.usable


def test_a_cancelled_read(world: World) -> None:
    """A part that is given up cancels the request, and asks nobody else."""
    world.fill()
    world.bucket.inject("get", Fault(silent=True))
    gets = world.source.count("get")
    part = world.ask()
    part.cancel()
    world.bucket.quiet()
    assert world.bucket.cancelled == 1
    assert world.source.count("get") == gets
    assert not world.cache.reads
    assert world.counted()["misses"] == 1  # of `fill`


def test_what_is_not_kept(world: World) -> None:
    """Large objects, parts of objects, and versions without an ETag."""
    large = world.source.put(b"large", content(MAX_OBJECT_BYTES + 1))
    assert world.read(info=large) == content(MAX_OBJECT_BYTES + 1)
    piece = Part(0, 4096, world.info.etag)
    world.cache.get(world.info, piece, lambda: world.source.get(world.info, 0, 4096, piece))
    assert piece.wait(SAFE_S)
    world.cache.arrived(world.info, piece)
    unnamed = ObjectInfo(b"key", SIZE, 0, "")
    part = Part(0, SIZE, world.info.etag)
    world.cache.get(unnamed, part, lambda: world.source.get(world.info, 0, SIZE, part))
    assert part.wait(SAFE_S)
    assert world.bucket.requests == []


def test_the_largest_object(world: World) -> None:
    """An object of exactly the largest size is one block."""
    data = content(MAX_OBJECT_BYTES)
    info = world.source.put(b"large", data)
    assert world.read(info=info) == data
    assert world.cache.wait(SAFE_S)
    assert world.read(world.mount(), info) == data
    assert world.source.count("get") == 1


def test_missing_blocks_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was missing is not requested again at once, if it was not read."""
    assert world.ask().wait(SAFE_S)
    assert world.ask().wait(SAFE_S)
    assert (world.bucket.count("get"), world.source.count("get")) == (1, 2)
    monkeypatch.setattr(known, "KNOWN_S", -1.0)
    assert world.ask().wait(SAFE_S)
    assert world.bucket.count("get") == 2


def test_only_some_missing_blocks_are_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are forgotten."""
    monkeypatch.setattr(known, "MAX_KNOWN", 2)
    infos = [world.source.put(f"key {number}".encode(), DATA) for number in range(3)]
    for info in infos:
        assert world.ask(info=info).wait(SAFE_S)
    for info in (infos[1], infos[2], infos[0]):
        assert world.ask(info=info).wait(SAFE_S)
    assert world.bucket.count("get") == 4


def test_what_it_lacks(world: World) -> None:
    """One HEAD tells of each version; then it is known, also while a block is queued, and once it
    was sent.
    """
    other = world.source.put(b"other", content(5))
    large = world.source.put(b"large", content(MAX_OBJECT_BYTES + 1))
    infos = [world.info, large, other]
    assert world.cache.lacks(infos) == [True, False, True]
    assert (world.bucket.count("head"), world.cache.wants(world.info)) == (2, True)
    world.bucket.inject("put_object", Fault(delay_s=0.1))
    assert world.read() == DATA
    assert world.bucket.count("get") == 0
    assert not world.cache.wants(world.info)
    assert world.cache.lacks(infos) == [True, False, True]
    assert world.cache.wait(SAFE_S)
    assert world.cache.lacks(infos) == [False, False, True]
    assert world.bucket.count("head") == 2
    assert world.mount().lacks(infos) == [False, False, True]


def test_a_block_that_is_cut_is_missing(world: World) -> None:
    """Its size is wrong, so the next read sends it again."""
    world.bucket.put(world.block.key, b"cut")
    assert world.cache.lacks([world.info]) == [True]
    world.fill()
    assert len(world.bucket.content(world.block.key)) == world.block.body_bytes


def test_what_was_dropped_is_lacked(world: World) -> None:
    """A block for which the queue has no room is asked for again, and sent later."""
    small = world.mount(queue_bytes=SIZE - 1)
    assert small.lacks([world.info]) == [True]
    assert world.read(small) == DATA
    assert small.lacks([world.info]) == [True]
    assert world.bucket.count("head") == 2


def test_a_full_queue(world: World) -> None:
    """What does not fit into the queue is dropped, and offered again at the next read."""
    small = world.mount(queue_bytes=SIZE - 1)
    assert world.read(small) == DATA
    assert world.counted()["dropped"] == 1
    assert world.bucket.keys() == []
    assert world.read() == DATA
    assert world.cache.wait(SAFE_S)
    assert world.bucket.keys() == [world.block.key]


def test_a_bucket_that_cannot_be_written(world: World) -> None:
    """After a refused PUT no more blocks are sent for a while; reads go on."""
    world.bucket.inject("put_object", Fault(error=AccessDenied("no")))
    world.fill()
    assert world.read(world.cache) == DATA
    assert world.bucket.count("put_object") == 1
    assert world.counted()["errors"] == 1
    assert world.counted()["dropped"] == 1


def test_a_store_without_checksums(world: World) -> None:
    """A store that refuses the checksum of a body gets it without."""
    world.bucket.refuses_checksums = NotOffered("x-amz-checksum", status=501)
    world.bucket.capabilities.checksums = True
    world.fill()
    assert world.bucket.keys() == [world.block.key]


def test_memory(world: World) -> None:
    """Nothing refers to a read after its end: a body would stay in memory."""
    world.fill()
    world.bucket.inject("get", Fault(delay_s=0.05))
    part = world.ask()
    (read,) = [weakref.ref(each) for each in world.cache.reads]
    assert part.wait(SAFE_S)
    world.bucket.quiet()
    gc.collect()
    assert not world.cache.reads
    assert read() is None


def test_blocks_in_memory() -> None:
    """A block is verified completely: bytes, index, identity, size, and the trailer itself."""
    identity = Identity(ENDPOINT, BUCKET, '"1"', 3 << 20, b"key").text
    for size in (1, 16_384, 16_385, 1 << 20):
        data = content(size)
        block = bytearray(data + trailer_of(identity, 2, data))
        assert len(block) == size + trailer_bytes(identity, size)
        assert is_block(identity, 2, size, block)
        assert not is_block(identity, 1, size, block)
        assert not is_block(identity[:-1] + b"x", 2, size, block)
        assert not is_block(identity + b"x", 2, size, block)
        assert not is_block(identity, 2, size, block[:-1])
        for position in (0, size - 1, size, size + 4, len(block) - 20, len(block) - 1):
            block[position] ^= 1
            assert not is_block(identity, 2, size, block), position
            block[position] ^= 1


def test_what_is_no_block() -> None:
    """Sizes that no block has are errors of the caller."""
    with pytest.raises(ValueError, match="a block of 0 bytes"):
        trailer_of(b"identity", 0, b"")
    with pytest.raises(ValueError, match="a block of 1048577 bytes"):
        is_block(b"identity", 0, (1 << 20) + 1, b"")
    with pytest.raises(ValueError, match="an identity of 5000 bytes"):
        trailer_of(bytes(5000), 0, b"x")
