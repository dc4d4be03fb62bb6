"""The data cache of a mount: what the rest of the program uses.

A stream has a `CachedObject` for its object version. If a block has gone when it is read, is
damaged, or cannot be read, its range is requested from S3 into the same part: the reader notices
nothing. So it is if the disk is late.
"""

import threading
from collections.abc import Callable

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._files import CachedVersion, hold_first
from mountpoint.cache.blocks._lanes import lane_source
from mountpoint.cache.cached_object import CachedObject, Disk, Range
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.eviction import Evictor
from mountpoint.cache.filling import Block, Filler, Pieces, blocks_of
from mountpoint.cache.health import Health, Speeds
from mountpoint.cache.identity import Names
from mountpoint.cache.reading import Readers
from mountpoint.metrics.counters import Counters
from mountpoint.native._lane import LaneSource
from mountpoint.s3.client import ObjectInfo

#: How long the mount's end waits for blocks to be written.
CLOSE_S = 2.0


class BlockCache:
    """The cache of a mount of `bucket` at `endpoint`. Thread-safe. `sweep`: once a second.

    `queue_bytes` is the most memory that blocks use while they wait to be written. `on_failure` is
    called when the directory is not read for a while.
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
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        # dependencies
        self.directory = directory
        self._counters = counters
        self._evictor = Evictor(directory, max_bytes)
        self._filler = Filler(
            directory,
            self._evictor,
            Health(directory.path, "writing"),
            counters,
            queue_bytes=queue_bytes,
        )
        self._health = Health(directory.path, "reading", on_failure=on_failure)
        lookups = Readers() if directory.is_remote else None
        self._disk = Disk(self._health, Speeds(), Readers(), self._filler, lookups)
        # constants
        self._names = Names(endpoint, bucket)
        self.queue_bytes = queue_bytes
        # mutable, guarded by _counting
        self._counting = threading.Lock()
        self._counted = (0, 0, 0, 0, 0, 0)
        counters.catch_up.append(self._count)

    def object(self, info: ObjectInfo) -> CachedObject | None:
        """Return what the cache has of this version; None if it cannot be cached."""
        version = self._version(info)
        return None if version is None else CachedObject(self._disk, version, info)

    def expect(self, info: ObjectInfo) -> bool:
        """Prepare to be read if all of this version is here, and return that. It may go away."""
        cached = self.object(info)
        return cached is not None and cached.expect()

    def whole_sources(self, infos: list[ObjectInfo]) -> list[LaneSource | None]:
        """Return a source of all bytes for each version that is small and on a local disk."""
        versions = [
            self._version(each) if self._disk.serves_lanes(each.size_bytes) else None
            for each in infos
        ]
        held = iter(hold_first([each for each in versions if each is not None]))
        return [
            lane_source(each, None) if each is not None and next(held) else None
            for each in versions
        ]

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
            cached.flush()

    def keep_written(self, info: ObjectInfo, pieces: Pieces) -> None:
        """Offer the bytes of a version that was written here. Never waits."""
        version = self._version(info)
        if version is None:
            return
        for number, data in enumerate(blocks_of(pieces)):
            if not self._filler.offer(Block(version, number, data)):
                return

    def take_room(self, size_bytes: int) -> bool:
        """Take memory for bytes that are being written, from that of queued blocks. Never waits."""
        return self._filler.take_room(size_bytes)

    def give_room(self, size_bytes: int) -> None:
        """Give memory back that was taken."""
        self._filler.give_room(size_bytes)

    def sweep(self) -> None:
        """Queue the small blocks that reads in lanes have fetched."""
        for version, number, data in self.directory.store.take():
            self._filler.offer(Block(version, number, data))

    @property
    def usable(self) -> bool:
        """Whether the directory is read at the moment; if not, all ranges count as missing."""
        return self._health.usable

    @property
    def queued_bytes(self) -> int:
        """The bytes of blocks that are not written yet."""
        return self._filler.held_bytes

    def close(self) -> None:
        """Write what is queued, if that is quick, and end the threads."""
        self.sweep()
        self._filler.wait(CLOSE_S)
        self._filler.close()
        self._disk.readers.close()
        if self._disk.lookups is not None:
            self._disk.lookups.close()
        self.directory.store.forget()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all queued blocks are written; return whether they are."""
        return self._filler.wait(timeout_s)

    def _version(self, info: ObjectInfo) -> CachedVersion | None:
        names = self._names.of(info)
        return (
            None if names is None else CachedVersion(self.directory.store, *names, info.size_bytes)
        )

    def _count(self) -> None:
        """Add what was counted without the interpreter."""
        with self._counting:
            now = (*self.directory.store.counts(), self._evictor.evicted)
            hits, misses, read_bytes, bad, dropped, evicted = (
                new - old for new, old in zip(now, self._counted, strict=True)
            )
            self._counted = now
        self._counters.add("cache_hits", hits)
        self._counters.add("cache_misses", misses)
        self._counters.add("cache_bytes_read", read_bytes)
        self._counters.add("cache_bad_blocks", bad)
        self._counters.add("cache_dropped", dropped)
        self._counters.add("cache_evictions", evicted)
