"""What the data cache has of one object version, for one stream.

`split` says which parts of a range are on disk. `read` delivers these: small ones at once, in the
thread that asks, others in the background. `keep` takes what arrived from S3.

Most bytes are kept in blocks of 1 MiB. Parts of sequential readers have whole ones; the pieces at
both ends of a part wait for others of the same block. If these do not come, or the reader jumps,
pieces are kept in small blocks. So a reader at random places fetches whole small blocks
(`widened`): 64 KiB take hardly longer than 4 KiB.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._files import CachedVersion
from mountpoint.cache.blocks._format import BLOCK_BYTES, SMALL, SMALL_BYTES
from mountpoint.cache.blocks._lanes import lane_source
from mountpoint.cache.filling import Block, Filler
from mountpoint.cache.health import STUCK_S, Health, Speeds
from mountpoint.cache.reading import CacheRead, Lookup, Readers
from mountpoint.native._lane import LaneSource
from mountpoint.s3.client import ObjectInfo, Transfer

#: Ranges up to this size are read in the thread that needs them. It takes as long as waking
#: another one.
INLINE_BYTES = 256 << 10
#: Incomplete blocks of one object: the start, and where a few readers are.
MAX_INCOMPLETE = 4
#: `widened` returns multiples of this.
WIDENED_BYTES = SMALL_BYTES
#: A shorter piece, not at the start of the object, comes from a reader that jumps.
WAITING_BYTES = 256 << 10

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Disk:
    """The cache directory, for reading and writing in the background."""

    health: Health  #: of reading
    speeds: Speeds
    readers: Readers
    filler: Filler
    #: For lookups and small reads on a remote disk, which may hang: no reader's own thread touches
    #: it. None on a local one.
    lookups: Readers | None = None

    def serves_lanes(self, size_bytes: int) -> bool:
        """Whether lanes read objects of this size here: small ones, on a local disk."""
        return size_bytes <= INLINE_BYTES and self.lookups is None and self.health.usable


class CachedObject:
    """The blocks of one object version. Thread-safe."""

    def __init__(self, disk: Disk, version: CachedVersion, info: ObjectInfo) -> None:
        # dependencies
        self._disk = disk
        self._version = version
        # constants
        self._info = info
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._incomplete: OrderedDict[int, Incomplete] = OrderedDict()

    def split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Cut [start, stop) where blocks that are here begin or end: (start, stop, here) each."""
        health = self._disk.health
        if not health.usable:
            return [(start, stop, False)]
        if self._disk.lookups is None:
            return self._split(start, stop)
        lookup = Lookup(partial(self._split, start, stop))
        self._disk.lookups.add(lookup)
        found = lookup.answer(STUCK_S)
        if found is None:
            health.failed(0, why="a lookup is taking too long")
        return found or [(start, stop, False)]

    def _split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        operation = object()
        self._disk.health.begin(operation)
        try:
            ranges = []
            while start < stop:
                held, until = self._version.held_until(start, stop)
                ranges.append((start, until, held))
                start = until
            return ranges
        finally:
            self._disk.health.end(operation)

    def expect(self) -> bool:
        """Whether all bytes are here. Then a local disk begins to read the first block.

        That is all of a small object, for which a program would wait as long as for the rest of its
        open, read and close.
        """
        there = all(held for _, _, held in self.split(0, self._info.size_bytes))
        if there and self._disk.lookups is None:
            self._version.expect(0)
        return there

    def widened(self, start: int, stop: int) -> Range:
        """Return the range of the small blocks that have [start, stop)."""
        stop += -stop % SMALL_BYTES
        return start - start % SMALL_BYTES, min(stop, self._info.size_bytes)

    def read(self, part: Part, instead: Callable[[], Transfer]) -> CacheRead:
        """Deliver a part's range from disk, or by `instead`, which requests it from S3."""
        part.cached = True
        read = CacheRead(self._disk.health, self._version, part, instead)
        part.attach(read)
        if part.stop - part.start > INLINE_BYTES:
            self._disk.readers.add(read)
        elif self._disk.lookups is not None:
            self._disk.lookups.add(read)
        else:
            read.run()
        return read

    def keep(self, part: Part) -> None:
        """Offer the bytes of a ready part that came from S3. Never waits."""
        data = memoryview(part.data)
        begin = part.start - part.start % BLOCK_BYTES
        while begin < part.stop:
            end = min(begin + BLOCK_BYTES, self._info.size_bytes)
            low, high = max(begin, part.start), min(end, part.stop)
            piece = data[low - part.start : high - part.start]
            if (low, high) == (begin, end):
                self._write(begin // BLOCK_BYTES, piece)
            else:
                self._add(begin // BLOCK_BYTES, low, piece, end - begin)
            begin += BLOCK_BYTES

    def drop(self) -> None:
        """Remove all blocks of the version: its bytes are not S3's."""
        self._version.drop()
        if self._disk.lookups is None:
            self._remove()
        else:
            self._disk.lookups.add(Lookup(self._remove))

    def _remove(self) -> None:
        size = self._info.size_bytes
        for index in range(-(-size // BLOCK_BYTES)):
            self._version.remove(index)
        for index in range(-(-size // SMALL_BYTES)):
            self._version.remove(SMALL | index)

    def whole_source(self) -> LaneSource | None:
        """Return a source for all reads of a small object in the lane, if the disk is a local one.

        It may turn out to lack the object.
        """
        serves = self._disk.serves_lanes(self._info.size_bytes)
        return lane_source(self._version, None) if serves else None

    def lane_source(self, other: LaneSource | None) -> LaneSource | None:
        """Return a source for reads in the lane that looks here before it asks `other`.

        None on a remote disk: then the reads come here, through the stream.
        """
        if not self._disk.health.usable:
            return other
        return None if self._disk.lookups is not None else lane_source(self._version, other)

    def late(self, part: Part) -> None:
        """Request a part from S3 that the disk has not delivered in time."""
        self._disk.health.failed(0, why="a read is taking too long")
        if isinstance(part.transfer, CacheRead):
            part.transfer.give_up()

    def arrived(self, part: Part) -> None:
        """Learn that a reader has reached a ready part: keep what came from S3, compare speeds."""
        speeds, size, duration_s = self._disk.speeds, part.stop - part.start, part.duration_s()
        if not part.cached:
            speeds.fetched(size, duration_s)
            self.keep(part)
            return
        speeds.read(size, duration_s)
        if speeds.disk_is_slower():
            self._disk.health.failed(0, why="the disk is slower than S3")

    def flush(self) -> None:
        """Keep what there is of incomplete blocks, and give their memory back."""
        with self._lock:
            left, self._incomplete = self._incomplete, OrderedDict()
        for index, block in left.items():
            self._write_pieces(index, block)

    def _add(self, index: int, start: int, piece: memoryview, size_bytes: int) -> None:
        """Add a piece of a block, at `start` of the object."""
        left = None
        with self._lock:
            block = self._incomplete.get(index)
            if block is None and start > 0 and len(piece) < WAITING_BYTES:
                left = None
            else:
                if block is None:
                    if len(self._incomplete) == MAX_INCOMPLETE:
                        left = self._incomplete.popitem(last=False)
                    block = self._incomplete[index] = Incomplete(size_bytes)
                block.add(start - index * BLOCK_BYTES, piece)
                if block.is_complete:
                    del self._incomplete[index]
        if block is None:
            self._write_small(start, piece)
        elif block.is_complete:
            self._write(index, block.data)
        if left is not None:
            self._write_pieces(*left)

    def _write_pieces(self, index: int, block: "Incomplete") -> None:
        """Write the small blocks within an incomplete block."""
        for low, high in block.ranges:
            self._write_small(index * BLOCK_BYTES + low, memoryview(block.data)[low:high])

    def _write_small(self, start: int, data: memoryview) -> None:
        """Write the small blocks within `data`, which begins at `start` of the object."""
        for index, low, high in self._small_within(start, start + len(data)):
            self._write(SMALL | index, data[low - start : high - start])

    def _small_within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        low = start + -start % SMALL_BYTES
        while low < stop:
            high = min(low + SMALL_BYTES, self._info.size_bytes)
            if high > stop:
                return
            yield low // SMALL_BYTES, low, high
            low = high

    def _write(self, number: int, data: memoryview | bytearray) -> None:
        self._disk.filler.offer(Block(self._version, number, data))


class Incomplete:
    """The pieces of one block, of `size_bytes`."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self.ranges: list[Range] = []  # in order; they neither overlap nor touch

    def add(self, offset: int, piece: memoryview) -> None:
        """Add the bytes at `offset`."""
        start, stop = offset, offset + len(piece)
        self.data[start:stop] = piece
        apart = [each for each in self.ranges if each[1] < start or stop < each[0]]
        near = [each for each in self.ranges if each not in apart]
        start = min([start, *(low for low, _ in near)])
        stop = max([stop, *(high for _, high in near)])
        self.ranges = sorted([*apart, (start, stop)])

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here."""
        return self.ranges == [(0, len(self.data))]
