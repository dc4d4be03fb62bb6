"""Gather the bytes of one part as they arrive: in memory, or in a temporary file.

Not decided here: the upload asks the budget for memory, and spills the bytes that get none.
"""

from collections.abc import Callable

from mountpoint.s3.client import Body, Checksum, ChecksumName, Piece
from mountpoint.s3.wire.checksum import ALGORITHMS, Hash, encoded
from mountpoint.system.spill import FileRange, Spill, TemporaryFile

#: Smaller writes are joined: each `bytes` object costs 33 bytes more, and a file may be written
#: byte by byte.
SMALL_BYTES = 16 << 10
#: Joined pieces grow to this size. In larger ones each addition would copy too much.
PIECE_BYTES = 128 << 10


class PartBuffer:
    """The bytes of one part. Large writes are kept as they are, without a copy."""

    def __init__(self, checksum: ChecksumName | None) -> None:
        # constants
        self._checksum = checksum
        # mutable
        self.size_bytes = 0
        self._pieces: list[Piece] = []
        self._open: bytearray | None = None  # the last piece, while small writes are joined to it
        self._file: TemporaryFile | None = None  # the spilled bytes
        new: Callable[[], Hash] | None = ALGORITHMS[checksum].new if checksum else None
        self._hash = new() if new else None

    def append(self, data: bytes | memoryview) -> None:
        """Add the next bytes, which the caller must not change."""
        self._count(data)
        if len(data) >= SMALL_BYTES:
            self._pieces.append(data)
            self._open = None
        elif self._open is not None and len(self._open) < PIECE_BYTES:
            self._open += data
        else:
            self._open = bytearray(data)
            self._pieces.append(self._open)

    def spill(self, data: bytes | memoryview, spill: Spill) -> bool:
        """Write the next bytes to this part's temporary file; False if that is impossible."""
        written = spill.store(data, self._file)
        if written is None:
            return False
        self._count(data)
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, FileRange):
            last.stop = written.stop  # it continues the same file
        else:
            self._pieces.append(written)
        self._file, self._open = written.file, None
        return True

    def _count(self, data: bytes | memoryview) -> None:
        self.size_bytes += len(data)
        if self._hash is not None:
            self._hash.update(data)

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
