"""Send a staged file to S3, and recognise the object that came of it.

A process may die after it has sent a file, and before it knows that S3 has the object. The next one
finds an object that it does not know under the file's key. It is the file's if it has what was sent
(`Sent`).
"""

from typing import NamedTuple, Protocol

from mountpoint.config import MIB
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.wire.checksum import crc64nvme
from mountpoint.staging.content import Content, Fetch
from mountpoint.staging.upload_plan import segments

#: The local file is read in pieces of this size.
PIECE_BYTES = MIB


class Sink(Protocol):
    """The upload of one object (`upload.upload.Upload`).

    `equal_bytes` is the size of all parts but the last, where parts must have one size.
    """

    equal_bytes: int | None

    def write(self, offset: int, data: bytes) -> int:
        """Append bytes; `offset` is the number of bytes so far."""

    def copy(self, source: ObjectInfo, start: int, stop: int, *, last: bool = False) -> None:
        """Append a range of an object's version; `last`: nothing follows it."""

    def finish(self) -> ObjectInfo:
        """Complete the upload; return the object."""

    def abort(self, until_s: float | None = None) -> None:
        """Give the upload up."""


class Sent(NamedTuple):
    """What an upload has sent: the object's size, and start, stop and CRC64NVME of each segment.

    S3 copies what is between the segments from the base.
    """

    size_bytes: int
    segments: list[tuple[int, int, int]]

    def is_in(self, info: ObjectInfo, fetch: Fetch) -> bool:
        """Whether an object has all of it. Raises what `fetch` raises."""
        return info.size_bytes == self.size_bytes and all(
            _checksum(info, start, stop, fetch) == checksum
            for start, stop, checksum in self.segments
        )


def send(content: Content, base: ObjectInfo | None, sink: Sink, part_bytes: int) -> Sent:
    """Send a file, of which S3 copies what it can from `base`; return what was sent.

    `part_bytes` is the size of the first parts. Raises what reading and sending raise.
    """
    size_bytes = content.extents.size_bytes
    sent = Sent(size_bytes, [])
    for segment in segments(content.extents, part_bytes, sink.equal_bytes):
        if segment.copied:
            assert base is not None
            last = segment.stop == size_bytes
            sink.copy(base, segment.start, segment.stop, last=last)
            continue
        start, checksum = segment.start, 0
        while start < segment.stop:  # in pieces that begin where blocks begin
            stop = min(start - start % PIECE_BYTES + PIECE_BYTES, segment.stop)
            data = content.read(start, stop - start)
            sink.write(start, data)
            checksum = crc64nvme(data, checksum)
            start = stop
        sent.segments.append((segment.start, segment.stop, checksum))
    return sent


def _checksum(info: ObjectInfo, start: int, stop: int, fetch: Fetch) -> int:
    checksum = 0
    for first in range(start, stop, PIECE_BYTES):
        data = fetch(info, first, min(first + PIECE_BYTES, stop))
        checksum = crc64nvme(data, checksum)
    return checksum
