"""One sparse file on the local disk, and the room that it takes.

This module counts the room itself, in written blocks of 4 KiB (the default on ext4, XFS and Btrfs),
because the file system counts blocks later than they are written.

Not known here: what the bytes mean.
"""

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from mountpoint.config import MIB
from mountpoint.errors import StagingFault, staging_error
from mountpoint.staging.area import StagingArea
from mountpoint.staging.range_set import Range, Ranges

log = structlog.get_logger(__name__)

BLOCK_BYTES = 4096
#: Where copy_file_range(2) does not work, files are copied in pieces of this size.
COPY_BYTES = MIB

#: linux/falloc.h
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


class LocalFile:
    """A new file of zeros at `path`, with room from `area`.

    `found`: the file is there, from another process of this mount, and has bytes in these ranges.
    Not thread-safe: its owner's lock guards it. All raise StagingFull or StagingFault.
    """

    def __init__(self, area: StagingArea, path: Path, found: Iterable[Range] | None = None) -> None:
        # dependencies
        self._area = area
        # constants
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if found is None:
            flags |= os.O_CREAT | os.O_EXCL
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise staging_error(error) from error
        # mutable
        self._blocks = Ranges()  # byte ranges of the blocks that take room
        for start, stop in found or ():
            self._blocks.add(start - start % BLOCK_BYTES, _up(stop))
        area.take(self.allocated_bytes)

    @property
    def allocated_bytes(self) -> int:
        """The room that the file takes."""
        return self._blocks.size_bytes()

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), which must be within the file."""
        try:
            data = os.pread(self._fd, stop - start, start)
            while len(data) < stop - start:
                more = os.pread(self._fd, stop - start - len(data), start + len(data))
                if not more:
                    raise StagingFault(f"another program has shortened '{self.path}'")
                data += more
        except OSError as error:
            raise staging_error(error) from error
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write; return 0, or how many bytes of room are missing in the area."""
        first = offset - offset % BLOCK_BYTES
        last = _up(offset + len(data))
        new_bytes = sum(stop - start for start, stop in self._blocks.gaps(first, last))
        if not self._area.try_take(new_bytes):
            return new_bytes
        self._blocks.add(first, last)  # even if the write fails: a part of it may have been written
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):  # the disk is full, or will be soon
                done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise staging_error(error) from error
        return 0

    def copy(self, source: "LocalFile", start: int, stop: int) -> int:
        """Copy the bytes [start, stop) of another file, sharing blocks where possible.

        Returns 0, or how many bytes of room are missing in the area.
        """
        for first, last in source._blocks.within(start, stop):
            begin, end = first - first % BLOCK_BYTES, _up(last)
            new_bytes = sum(after - before for before, after in self._blocks.gaps(begin, end))
            if not self._area.try_take(new_bytes):
                return new_bytes
            self._blocks.add(begin, end)
            try:
                while first < last:
                    first += self._copy_some(source, first, last)
            except OSError as error:
                raise staging_error(error) from error
        return 0

    def _copy_some(self, source: "LocalFile", start: int, stop: int) -> int:
        try:
            done = os.copy_file_range(source._fd, self._fd, stop - start, start, start)
        except OSError:  # unsupported here; another error will show again
            data = source.read(start, min(start + COPY_BYTES, stop))
            done = os.pwrite(self._fd, data, start)
        if not done:
            raise StagingFault(f"another program has shortened '{source.path}'")
        return done

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros, which take no room."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise staging_error(error) from error
        self._give(_up(size_bytes), 1 << 62)

    def punch(self, start: int, stop: int) -> int:
        """Punch a hole of whole blocks; return how much room that freed. -1: not supported."""
        assert start % BLOCK_BYTES == stop % BLOCK_BYTES == 0
        if not self._blocks.within(start, stop):
            return 0
        if not _punch(self._fd, start, stop - start):
            return -1
        return self._give(start, stop)

    def sync(self) -> None:
        """Write all bytes to the disk itself, so that they survive the end of the machine."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise staging_error(error) from error

    def close(self, *, keep: bool) -> None:
        """Close the file, give its room back, and remove it unless `keep`."""
        fd, self._fd = self._fd, -1
        os.close(fd)
        if not keep:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._give(0, 1 << 62)

    def _give(self, start: int, stop: int) -> int:
        size_bytes = sum(last - first for first, last in self._blocks.within(start, stop))
        self._blocks.remove(start, stop)
        self._area.give(size_bytes)
        return size_bytes


def _up(position: int) -> int:
    return -(-position // BLOCK_BYTES) * BLOCK_BYTES


def _punch(fd: int, offset: int, size_bytes: int) -> bool:
    """Punch a hole: see fallocate(2). False where the file system does not support it."""
    libc = ctypes.CDLL(None, use_errno=True)
    # On every glibc this name has an off_t of 64 bits. Some musl versions have only the other name.
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size_bytes) == 0:
        return True
    log.debug("punching a hole failed", reason=os.strerror(ctypes.get_errno()))
    return False
