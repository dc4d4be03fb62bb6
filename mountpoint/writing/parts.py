"""Pure: how a file is cut into parts, sent or copied, and the bytes of the one being gathered.

S3 takes 10,000 parts of 5 MiB to 5 GiB; all but the last must reach the least size
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). How large a file becomes is
known at its end only, so parts grow with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mountpoint.config import LEAST_PART_BYTES, MIB, MOST_PART_BYTES
from mountpoint.s3.checksum import ALGORITHMS, Hash, encoded
from mountpoint.s3.client import Body, Checksum, ChecksumName

MOST_PARTS = 10_000

#: A part is at least this share of what is before it: so 10,000 parts reach 5 TiB from the least
#: part size that can be chosen, and those of 8 MiB begin to grow at 10 GB. A file of 100 GiB ends
#: with parts of 80 MiB, one of 1 TiB with parts of 820 MiB, each of which has to be in memory.
GROWTH = 1250

#: So many parts may be as small as S3 takes them wherever they are, when ranges are copied: what
#: would be too small a part has to be read. Those after them, growing, reach 5 TiB still.
FREE_PARTS = 2_400

#: Smaller writes are put together: a `bytes` of its own costs 33 bytes more, and a file may be
#: written byte by byte.
SMALL_BYTES = 16 << 10
#: To pieces of this size, or adding to one would copy it again and again.
PIECE_BYTES = 128 << 10


def part_size(least_bytes: int, before_bytes: int) -> int:
    """Return the size of the part that begins after `before_bytes` of the file."""
    grown = -(-before_bytes // GROWTH)
    grown = -(-grown // MIB) * MIB
    return max(least_bytes, min(grown, MOST_PART_BYTES))


@dataclass(frozen=True, slots=True)
class Limits:
    """What parts may be. Other values than S3's are for tests.

    `copied_part_bytes` is how much the server copies in one request: several copy faster than
    one, and none should take longer than anyone waits for an answer.
    """

    least_part_bytes: int = LEAST_PART_BYTES
    copied_part_bytes: int = 128 * MIB


S3_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """How the next `size_bytes` of a range become part of a file: copied, or read and sent."""

    copied: bool
    size_bytes: int


def least_size(limits: Limits, number: int, before_bytes: int) -> int:
    """Return the least size of part `number`, after `before_bytes`, that is not the last.

    A file that is put together of many small ranges must not run out of numbers.
    """
    if number <= FREE_PARTS:
        return limits.least_part_bytes
    return part_size(limits.least_part_bytes, before_bytes)


def next_step(
    limits: Limits,
    number: int,
    before_bytes: int,
    gathered_bytes: int,
    source_bytes: int,
    left_bytes: int,
) -> Step:
    """Return what to do with the first of `left_bytes` of a source of `source_bytes`.

    `number` is the next part's, `gathered_bytes` wait to be sent as that, after `before_bytes`; a
    copied part goes after them, so they must be enough for one.
    """
    # Of a source of 5 MB nothing but the whole can be copied:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
    if source_bytes <= limits.least_part_bytes:
        return Step(copied=False, size_bytes=left_bytes)
    missing = 0
    if gathered_bytes:
        missing = max(least_size(limits, number, before_bytes) - gathered_bytes, 0)
        number += 1
    at = before_bytes + gathered_bytes + missing
    if left_bytes - missing < least_size(limits, number, at):
        return Step(copied=False, size_bytes=left_bytes)
    if missing:
        return Step(copied=False, size_bytes=missing)
    return Step(copied=True, size_bytes=copied_size(limits, number, at, left_bytes))


def copied_size(limits: Limits, number: int, before_bytes: int, left_bytes: int) -> int:
    """Return how much of `left_bytes` copied part `number` takes: no too small rest is left."""
    size = part_size(limits.copied_part_bytes, before_bytes)
    if left_bytes <= size:
        return left_bytes
    if left_bytes - size >= least_size(limits, number + 1, before_bytes + size):
        return size
    return left_bytes if left_bytes <= MOST_PART_BYTES else left_bytes // 2


class Gathering:
    """The bytes of one part, as they come. Large writes are kept as they are, not copied."""

    def __init__(self, checksum: ChecksumName | None) -> None:
        # constants
        self._checksum = checksum
        # mutable
        self.size_bytes = 0
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._open: bytearray | None = None  # the last piece, if small writes are put together
        new: Callable[[], Hash] | None = ALGORITHMS[checksum].new if checksum else None
        self._hash = new() if new else None

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes, which nobody may change."""
        self.size_bytes += len(data)
        if self._hash is not None:
            self._hash.update(data)
        if len(data) >= SMALL_BYTES:
            self._pieces.append(data)
            self._open = None
        elif self._open is not None and len(self._open) < PIECE_BYTES:
            self._open += data
        else:
            self._open = bytearray(data)
            self._pieces.append(self._open)

    @property
    def digest(self) -> bytes:
        """The checksum of all bytes so far; b"" without one."""
        return b"" if self._hash is None else self._hash.digest()

    def body(self) -> Body:
        """Return all bytes with their checksum. Nothing may be added afterwards."""
        checksum = None
        if self._checksum is not None:
            checksum = Checksum(self._checksum, encoded(self.digest))
        return Body(self._pieces, self.size_bytes, checksum)
