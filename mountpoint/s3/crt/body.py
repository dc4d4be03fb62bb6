"""The body of a request, as a stream that the CRT reads.

The CRT copies the whole body into its own memory before it sends the first byte, in one call
(awscrt 0.38, DEFAULT requests). That copy takes 0.1 CPU seconds per GB. So the pieces are passed as
they are: joining them first would add a second copy, and a second part in memory.
"""

import os

from mountpoint.s3.client import Body
from mountpoint.system.spill import FileRange


class BodyStream:
    """The pieces of `body`, one after another. Serves one request."""

    def __init__(self, body: Body) -> None:
        # constants
        self._pieces = body.pieces
        # mutable
        self._next = 0  # index of the current piece
        self._offset = 0  # in the current piece, in bytes

    def read(self, _size: int = -1) -> bytes:
        """Never called, but awscrt requires it."""
        raise NotImplementedError

    def readinto1(self, buffer: memoryview) -> int:
        """Fill the buffer with the next bytes; return the number of bytes written to it."""
        filled = 0
        while self._next < len(self._pieces) and filled < len(buffer):
            piece = self._pieces[self._next]
            size = min(len(piece) - self._offset, len(buffer) - filled)
            room = memoryview(buffer)[filled : filled + size]
            if isinstance(piece, FileRange):
                piece.read_into(room, self._offset)
            else:
                room[:] = memoryview(piece)[self._offset : self._offset + size]
            filled += size
            self._offset += size
            if self._offset == len(piece):
                self._next, self._offset = self._next + 1, 0
        return filled

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Rewind to the start, the only position the CRT asks for. Raises ValueError."""
        if (offset, whence) != (0, os.SEEK_SET):
            raise ValueError(f"seek to {offset} ({whence})")
        self._next = self._offset = 0
        return 0
