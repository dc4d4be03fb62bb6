"""The data cache of a mount: what it has of an object version, and what it is offered.

A stream asks for an object's `CachedObject`. For each range that it needs, `split` says which parts
of it are on disk. `read` delivers these: small ones at once, in the thread that asks, others in the
background, by threads of the cache. If a block has gone meanwhile, is damaged, or cannot be read,
the range is requested from S3 into the same part: the reader notices nothing. So it is if the disk
is late.

`keep` offers what arrived from S3. Whole blocks are queued as they are. Pieces of a block, like the
start of a file, are put together first, if they come within a short time.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

from mountpoint._fastpath import Part
from mountpoint.cache._files import BLOCK_BYTES, CachedVersion
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.eviction import Evictor
from mountpoint.cache.filling import Block, Filler
from mountpoint.cache.health import Health, Speeds
from mountpoint.cache.identity import Identity
from mountpoint.cache.reading import CacheRead, Readers
from mountpoint.metrics.counters import Counters
from mountpoint.native._lane import LaneSource
from mountpoint.s3.client import ObjectInfo, Transfer

#: Ranges up to this size are read in the thread that needs them. It takes as long as waking
#: another one.
INLINE_BYTES = 256 << 10
#: Incomplete blocks of one object: the start, and where a few readers are.
MAX_INCOMPLETE = 4

Range = tuple[int, int]


class BlockCache:
    """The cache of a mount of `bucket` at `endpoint`. Thread-safe.

    `queue_bytes` is the most memory that blocks use while they wait to be written.
    """

    def __init__(
        self,
        directory: CacheDirectory,
        endpoint: str,
        bucket: str,
        counters: Counters,
        *,
        max_bytes: int | None,
        queue_bytes: int,
    ) -> None:
        # dependencies
        self.directory = directory
        self._counters = counters
        self.reading = Health(directory.path, "reading")
        writing = Health(directory.path, "writing")
        self._evictor = Evictor(directory, max_bytes)
        self._filler = Filler(directory, self._evictor, writing, counters, queue_bytes=queue_bytes)
        self.speeds = Speeds()
        self.readers = Readers()
        # constants
        self._endpoint = endpoint
        self._bucket = bucket
        self.queue_bytes = queue_bytes
        # mutable
        self._counting = threading.Lock()
        self._counted = (0, 0, 0, 0, 0)
        counters.catch_up.append(self._count)

    def object(self, info: ObjectInfo) -> "CachedObject | None":
        """Return what the cache has of this version; None if it cannot be cached."""
        version = self._version(info)
        return None if version is None else CachedObject(self, version, info)

    def holds(self, info: ObjectInfo, start: int, stop: int) -> bool:
        """Whether all of [start, stop) of this version is here. It may go away."""
        version = self._version(info)
        if version is None or not self.reading.usable:
            return False
        held, until = version.held_until(start, stop)
        return held and until == stop

    def missing(self, info: ObjectInfo, start: int, stop: int) -> list[Range]:
        """Return the ranges of [start, stop), cut at blocks, that are not here."""
        cached = self.object(info)
        if cached is None:
            return [(start, stop)]
        return [(low, high) for low, high, held in cached.split(start, stop) if not held]

    def keep(self, info: ObjectInfo, parts: list[Part]) -> None:
        """Offer the bytes of ready parts of a version that no stream has."""
        cached = self.object(info)
        if cached is not None:
            for part in parts:
                cached.keep(part)

    def write(self, version: CachedVersion, index: int, data: memoryview | bytearray) -> None:
        """Queue a block to be written."""
        self._filler.offer(Block(version, index, data))

    def close(self) -> None:
        """End the threads."""
        self._filler.close()
        self.readers.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all queued blocks are written; return whether they are."""
        return self._filler.wait(timeout_s)

    def _version(self, info: ObjectInfo) -> CachedVersion | None:
        identity = Identity.of(self._endpoint, self._bucket, info)
        if identity is None:
            return None
        path, text = identity.path.encode(), identity.text
        return CachedVersion(self.directory.store, path, text, info.size_bytes)

    def _count(self) -> None:
        """Add what was counted without the interpreter."""
        with self._counting:
            now = (*self.directory.store.counts(), self._evictor.evicted)
            hits, misses, read_bytes, bad, evicted = (
                new - old for new, old in zip(now, self._counted, strict=True)
            )
            self._counted = now
        self._counters.add("cache_hits", hits)
        self._counters.add("cache_misses", misses)
        self._counters.add("cache_bytes_read", read_bytes)
        self._counters.add("cache_bad_blocks", bad)
        self._counters.add("cache_evictions", evicted)


class CachedObject:
    """The blocks of one object version, for one stream. Thread-safe."""

    def __init__(self, cache: BlockCache, version: CachedVersion, info: ObjectInfo) -> None:
        # dependencies
        self._cache = cache
        self._version = version
        # constants
        self._info = info
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._incomplete: OrderedDict[int, Incomplete] = OrderedDict()

    def split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Cut [start, stop) where blocks that are here begin or end: (start, stop, here) each."""
        health = self._cache.reading
        if not health.usable:
            return [(start, stop, False)]
        operation = object()
        health.begin(operation)
        try:
            ranges = []
            while start < stop:
                held, until = self._version.held_until(start, stop)
                ranges.append((start, until, held))
                start = until
            return ranges
        finally:
            health.end(operation)

    def read(self, part: Part, instead: Callable[[], Transfer]) -> CacheRead:
        """Deliver a part's range from disk, or by `instead`, which requests it from S3."""
        part.cached = True
        read = CacheRead(self._cache.reading, self._version, part, instead)
        part.attach(read)
        if part.stop - part.start <= INLINE_BYTES:
            read.run()
        else:
            self._cache.readers.add(read)
        return read

    def keep(self, part: Part) -> None:
        """Offer the bytes of a ready part that came from S3. Never waits."""
        data = memoryview(part.data)
        index = part.start // BLOCK_BYTES
        while index * BLOCK_BYTES < part.stop:
            begin = index * BLOCK_BYTES
            end = min(begin + BLOCK_BYTES, self._info.size_bytes)
            low, high = max(begin, part.start), min(end, part.stop)
            piece = data[low - part.start : high - part.start]
            if (low, high) == (begin, end):
                self._cache.write(self._version, index, piece)
            else:
                self._add(index, low - begin, piece, end - begin)
            index += 1

    def drop(self) -> None:
        """Remove all blocks of the version: its bytes are not S3's."""
        self._version.dropped = True
        for index in range(-(-self._info.size_bytes // BLOCK_BYTES)):
            self._version.remove(index)

    def lane_source(self, other: LaneSource | None) -> LaneSource | None:
        """Return a source for reads in the lane that looks here before it asks `other`."""
        return self._version.lane_source(other) if self._cache.reading.usable else other

    def late(self, part: Part) -> None:
        """Request a part from S3 that the disk has not delivered in time."""
        self._cache.reading.failed(0, why="a read is taking too long")
        if isinstance(part.transfer, CacheRead):
            part.transfer.give_up()

    def arrived(self, part: Part) -> None:
        """Learn that a reader has reached a ready part: keep what came from S3, compare speeds."""
        speeds, size_bytes, duration_s = (
            self._cache.speeds,
            part.stop - part.start,
            part.duration_s(),
        )
        if not part.cached:
            speeds.fetched(size_bytes, duration_s)
            self.keep(part)
            return
        speeds.read(size_bytes, duration_s)
        if speeds.disk_is_slower():
            self._cache.reading.failed(0, why="the disk is slower than S3")

    def _add(self, index: int, offset: int, piece: memoryview, size_bytes: int) -> None:
        """Add a piece of a block, which is written once it is complete."""
        with self._lock:
            block = self._incomplete.get(index)
            if block is None:
                if len(self._incomplete) == MAX_INCOMPLETE:
                    self._incomplete.popitem(last=False)
                block = self._incomplete[index] = Incomplete(size_bytes)
            block.add(offset, piece)
            if not block.is_complete:
                return
            del self._incomplete[index]
        self._cache.write(self._version, index, block.data)


class Incomplete:
    """The pieces of one block, of `size_bytes`."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self._ranges: list[Range] = []  # in order; they neither overlap nor touch

    def add(self, offset: int, piece: memoryview) -> None:
        """Add the bytes at `offset`."""
        start, stop = offset, offset + len(piece)
        self.data[start:stop] = piece
        apart = [each for each in self._ranges if each[1] < start or stop < each[0]]
        near = [each for each in self._ranges if each not in apart]
        start = min([start, *(low for low, _ in near)])
        stop = max([stop, *(high for _, high in near)])
        self._ranges = sorted([*apart, (start, stop)])

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here."""
        return self._ranges == [(0, len(self.data))]
