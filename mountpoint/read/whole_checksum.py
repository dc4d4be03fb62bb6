"""Compare a file that is read completely with S3's checksum of the whole object.

S3 has no checksum of most ranges of a large object, but often one of the whole (type FULL_OBJECT).
The CRC of the whole can be combined from those of its parts. So each part's CRC is computed once,
and the result is compared when the parts that readers have reached cover the object.

One HEAD asks for the expected CRC while reading goes on. For parts that arrive after its answer,
the client's thread computes the CRC, while their bytes are in the processor's cache. For earlier
ones their first reader does, with every CRC that S3 may answer.

Of bytes that are fetched twice, those of the larger range count. A file that is read here and there
is given up after a few parts.
"""

import threading
from concurrent.futures import Future
from typing import NamedTuple

import structlog

from mountpoint._fastpath import Part
from mountpoint.config import MIB
from mountpoint.errors import OperationError
from mountpoint.s3.client import ByteSource, ObjectInfo, Stored
from mountpoint.s3.wire.checksum import CRCS, Expected, crc_matches, expected_of_whole

log = structlog.get_logger(__name__)

#: A file read in more separate ranges than this is not being read completely. Merges of sixteen
#: sorted runs are the most readers in order at the same time.
MAX_RANGES = 16

#: Several CRCs at once take 0.5 CPU-seconds per GB. So at most MAX_UNASKED_BYTES are summed before
#: the HEAD is sent (no reader comes from the start), and MAX_UNANSWERED_BYTES before its answer.
MAX_UNASKED_BYTES = 32 * MIB
MAX_UNANSWERED_BYTES = 256 * MIB

#: CRCs by name.
Sums = dict[str, int]


class _SummedRange(NamedTuple):
    """A range that readers have reached, and its CRCs."""

    start: int
    stop: int
    sums: Sums


class WholeChecksum:
    """The comparison of one open object. Thread-safe; only `check` waits.

    Invariant: ranges are sorted, and neither overlap nor touch each other.
    """

    def __init__(self, source: ByteSource, info: ObjectInfo, wait_s: float) -> None:
        # dependencies
        self._source = source
        # constants
        self._info = info
        self._wait_s = wait_s
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._answer: Future[Stored] | None = None
        self._expected: Expected | None = None
        self._ranges: list[_SummedRange] = []
        self._names: tuple[str, ...] = tuple(CRCS)  # empty: there is nothing to compare

    @property
    def asked(self) -> bool:
        """Whether the HEAD was sent, or is not needed."""
        return self._answer is not None or not self._names

    @property
    def comparing(self) -> bool:
        """Whether the whole object may still be compared."""
        return bool(self._names)

    @property
    def front(self) -> int:
        """The bytes from the object's start that readers have reached, without a gap."""
        ranges = self._ranges
        return ranges[0].stop if ranges and ranges[0].start == 0 else 0

    def ask(self) -> None:
        """Ask S3 for the object's checksum."""
        with self._lock:
            if not self.asked:
                self._answer = self._source.head_with_checksums(self._info.key)

    def sums(self, data: bytes) -> Sums | None:
        """Return the CRCs of an arrived part; None while the expected one is unknown."""
        names = self._wanted()
        return _sums(names, data) if len(names) == 1 else None

    def add(self, part: Part) -> None:
        """Record that a reader has reached a part, which is ready."""
        names = self._wanted()
        if (part.start, part.stop) == (0, self._info.size_bytes):
            self.give_up()  # the part's own checksum is that of the whole object
        elif names:
            summed = _SummedRange(part.start, part.stop, part.sums or _sums(names, part.data))
            with self._lock:
                self._insert(summed)

    def check(self) -> str | None:
        """Return the name of the checksum that does not match, after the whole file was read.

        Waits for S3's answer; without one the file is not compared.
        """
        with self._lock:
            ranges, answer = self._ranges, self._answer
            if len(ranges) != 1 or ranges[0][:2] != (0, self._info.size_bytes):
                return None
            if answer is None:
                return None
            self._ranges = []
        try:
            answer.result(self._wait_s)
        except (OperationError, TimeoutError) as error:
            log.debug("a whole file could not be compared", key=self._info.key, reason=str(error))
        self._wanted()
        expected = self._expected
        self.give_up()
        if expected is None or crc_matches(expected, ranges[0].sums[expected.name]):
            return None
        return expected.name

    def give_up(self) -> None:
        """Stop comparing."""
        with self._lock:
            self._names, self._ranges = (), []
            answer = self._answer
        if answer is not None:
            answer.cancel()

    def _wanted(self) -> tuple[str, ...]:
        """Return the CRCs to compute, by S3's answer so far."""
        with self._lock:
            answer = self._answer
            if self._expected is None and self._names and answer is not None and answer.done():
                failed = answer.cancelled() or answer.exception() is not None
                stored = None if failed else answer.result()
                if stored is not None and stored.info.etag == self._info.etag:
                    self._expected = expected_of_whole(stored)
                self._names = () if self._expected is None else (self._expected.name,)
            return self._names

    def _insert(self, summed: _SummedRange) -> None:
        """Merge a range with those that it touches; it replaces those within it (lock held).

        One that overlaps others is dropped: the bytes that it adds remain a gap.
        """
        start, stop = summed.start, summed.stop
        others = [each for each in self._ranges if not start <= each.start < each.stop <= stop]
        if any(each.start < stop and start < each.stop for each in others):
            return
        for each in [each for each in others if stop == each.start or each.stop == start]:
            others.remove(each)
            summed = _joined(each, summed) if each.start < start else _joined(summed, each)
        ranges = self._ranges = sorted([*others, summed], key=lambda each: each.start)
        max_bytes = MAX_UNASKED_BYTES if self._answer is None else MAX_UNANSWERED_BYTES
        reached_bytes = sum(each.stop - each.start for each in ranges)
        too_much = self._expected is None and reached_bytes > max_bytes
        if too_much or len(ranges) > MAX_RANGES:
            self._names, self._ranges = (), []


def _sums(names: tuple[str, ...], data: bytes) -> Sums:
    return {name: CRCS[name].of(data, 0) for name in names}


def _joined(first: _SummedRange, second: _SummedRange) -> _SummedRange:
    size = second.stop - second.start
    sums = {
        name: CRCS[name].combine(value, second.sums[name], size)
        for name, value in first.sums.items()
        if name in second.sums
    }
    return _SummedRange(first.start, second.stop, sums)
