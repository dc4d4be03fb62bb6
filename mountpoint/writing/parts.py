"""Pure: how a file is cut into parts, and the bytes of the part that is being gathered.

S3 takes 10,000 parts of 5 MiB to 5 GiB; all but the last must reach the least size
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). How large a file becomes is
known at its end only, so parts grow with it.
"""

from collections.abc import Callable

from mountpoint.config import MIB, MOST_PART_BYTES
from mountpoint.s3.checksum import ALGORITHMS, Hash, encoded
from mountpoint.s3.client import Body, Checksum, ChecksumName

MOST_PARTS = 10_000

#: A part is at least this share of what is before it: so 10,000 parts reach 5 TiB from the least
#: part size that can be chosen, and those of 8 MiB begin to grow at 10 GB. A file of 100 GiB ends
#: with parts of 80 MiB, one of 1 TiB with parts of 820 MiB, each of which has to be in memory.
GROWTH = 1250

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
