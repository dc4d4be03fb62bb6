"""Predict how much of a file will be read: as much as of the last files in its directory.

A closed file adds to the history. If none has been closed yet, open files of the same opener count,
once it has begun to read them: programs open many files, and then read a little of each.

`open` fetches the initial range of a file before anybody has read from it. Training sets are read
whole, file after file; indexers read the first kilobytes of each; the files before show the
pattern. A range that is too small costs one more round trip; one that is too large wastes bytes.
"""

import operator
import threading
from collections import OrderedDict, deque
from typing import NamedTuple, Protocol

from mountpoint.config import MIB
from mountpoint.read.patterns import PAGE_BYTES, Range

#: Without history, a file up to this size is fetched whole when it is opened.
WHOLE_BYTES = MIB
#: The initial range of a larger file: the kernel's version of a first read of 8 KiB. For larger
#: reads even 128 KiB would not suffice, and programs that only look get no more than they ask for.
INITIAL_BYTES = 32 * 1024
#: If the last files were read whole, a file up to this size is fetched whole. Beyond it, read-ahead
#: has time to take effect.
LARGEST_WHOLE_BYTES = 8 * MIB
#: If that was a single file, the next may be at most this many times as large.
LIKE = 2

#: A larger initial range is fetched in parallel parts of this size. With 90 MB/s per connection
#: they arrive 9 ms after the first byte; parts of 1 MiB take 12.
INITIAL_PART_BYTES = 768 * 1024

#: Programs that read no more than this of each file only look at it.
LOOK_BYTES = MIB

#: If a similar amount was read of each file, and no more than this, `open` fetches that amount.
ALIKE_BYTES = 128 * 1024

#: The number of files in a directory's history.
LAST_FILES = 4
#: The number of open files of one opener and directory that are remembered: the last that were
#: opened, or read for the first time.
OPEN_FILES = 2 * LAST_FILES
#: The number of directories with a history.
MAX_DIRECTORIES = 1000
#: The share that counts as whole: programs sometimes skip a trailer.
WHOLE_SHARE = 0.9


class _File(NamedTuple):
    """The bytes read of a file: from its start, and in total.

    `exact`: programs read that much. Otherwise the kernel may have enlarged the reads, up to four
    times for a page.
    """

    read_bytes: int
    total_bytes: int
    whole: bool
    exact: bool


_is_whole = operator.attrgetter("whole")


class OpenFile(Protocol):
    """The reads of an open file."""

    @property
    def key(self) -> bytes: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_bytes(self) -> int: ...

    @property
    def initial_read(self) -> bool: ...


class ReadHistory:
    """How much was read of the last files of each directory. Thread-safe.

    An `opener` is the thread that opened a file; 0: that is not known.
    """

    def __init__(self) -> None:
        # mutable, guarded by _lock, and copied in single steps of the interpreter without it; the
        # most recently used last
        self._lock = threading.Lock()
        self._read: OrderedDict[bytes, deque[_File]] = OrderedDict()
        self._open: dict[tuple[int, bytes], deque[OpenFile]] = {}

    def initial_bytes(self, key: bytes, size_bytes: int, opener: int = 0) -> int:
        """Return how much of an object to fetch when it is opened."""
        last = self._last(key, opener)
        if last and all(map(_is_whole, last)):
            like_bytes = LIKE * last[0].read_bytes if len(last) == 1 else LARGEST_WHOLE_BYTES
            if size_bytes <= min(like_bytes, LARGEST_WHOLE_BYTES):
                return size_bytes
        usual = size_bytes if size_bytes <= WHOLE_BYTES else INITIAL_BYTES
        if size_bytes > ALIKE_BYTES and self._opens_many(key, opener):
            usual = INITIAL_BYTES
        if not last or (len(last) < LAST_FILES and any(each.whole for each in last)):
            return usual
        largest_bytes = _largest_bytes(last)
        alike = len(last) > 1 and min(each.read_bytes for each in last) >= largest_bytes // 2
        if alike and largest_bytes <= ALIKE_BYTES:
            return min(largest_bytes, size_bytes)
        return min(usual, largest_bytes)

    def reads_whole(self, key: bytes, size_bytes: int) -> bool:
        """Whether to fetch all of an object of up to WHOLE_BYTES, before a program opens it."""
        last = self._read.get(_directory(key))
        if last and all(map(_is_whole, list(last))):  # the usual case
            return True
        return not self.is_looked_at(key) and self.initial_bytes(key, size_bytes) == size_bytes

    def reach_bytes(self, key: bytes, opener: int = 0) -> int | None:
        """Return how far programs read into the files of a directory; None if to the end."""
        last = self._last(key, opener)
        if not last or any(each.whole for each in last):
            return None
        return _largest_bytes(last)

    def is_looked_at(self, key: bytes) -> bool:
        """Whether programs only look at the files of a directory.

        Open files do not say that: they may be read on.
        """
        last = self._read.get(_directory(key))
        if not last or last[-1].whole:  # the usual cases, without a loop
            return False
        return not any(each.whole or each.total_bytes > LOOK_BYTES for each in list(last))

    def used(self, file: OpenFile, opener: int) -> None:
        """Note that a file has been opened, or that its first read has come."""
        if opener == 0:
            return
        with self._lock:
            known = opener, _directory(file.key)
            files = self._open.get(known)
            if files is None:
                files = self._open[known] = deque(maxlen=OPEN_FILES)
            elif file in files:
                files.remove(file)
            files.append(file)

    def left(self, file: OpenFile, opener: int) -> None:
        """Note that a file is not open any more."""
        with self._lock:
            known = opener, _directory(file.key)
            files = self._open.get(known)
            if files is not None and file in files:
                files.remove(file)
                if not files:
                    del self._open[known]

    def closed(
        self,
        key: bytes,
        size_bytes: int,
        read_bytes: int,
        *,
        elsewhere: bool = False,
        exact: bool = False,
    ) -> None:
        """Record how many bytes of an object were read while it was open.

        `elsewhere`: none of them were in its initial range. `exact`: programs read about as much.
        """
        directory = _directory(key)
        with self._lock:
            last = self._read.get(directory)
            if last is None:
                last = self._read[directory] = deque(maxlen=LAST_FILES)
            last.append(_file(size_bytes, read_bytes, elsewhere=elsewhere, exact=exact))
            self._read.move_to_end(directory)
            if len(self._read) > MAX_DIRECTORIES:
                self._read.popitem(last=False)

    def _last(self, key: bytes, opener: int) -> list[_File]:
        closed = self._read.get(_directory(key))
        if closed:
            return list(closed)
        return [
            _file(each.size_bytes, each.read_bytes, elsewhere=not each.initial_read, exact=False)
            for each in self._opened(key, opener)
            if each.read_bytes
        ]

    def _opens_many(self, key: bytes, opener: int) -> bool:
        """Whether the opener has files open of which it has read nothing yet."""
        unread = [each for each in self._opened(key, opener) if not each.read_bytes]
        return len(unread) >= LAST_FILES

    def _opened(self, key: bytes, opener: int) -> list[OpenFile]:
        with self._lock:
            return list(self._open.get((opener, _directory(key)), ()))


def _file(size_bytes: int, read_bytes: int, *, elsewhere: bool, exact: bool) -> _File:
    from_start = 0 if elsewhere else min(read_bytes, size_bytes)
    return _File(from_start, read_bytes, from_start >= WHOLE_SHARE * size_bytes, exact)


def _largest_bytes(files: list[_File]) -> int:
    """Return the most bytes read of any file; in whole pages, counting only exact files if any."""
    exact = [each for each in files if each.exact] or files
    size_bytes = max(each.read_bytes for each in exact)
    return max(size_bytes + -size_bytes % PAGE_BYTES, PAGE_BYTES)


def parts_of(initial_bytes: int, max_bytes: int) -> list[Range]:
    """Return the parts of an initial range, fetched in parallel: each at most `max_bytes`."""
    step = min(initial_bytes if initial_bytes <= WHOLE_BYTES else INITIAL_PART_BYTES, max_bytes)
    if initial_bytes <= step:
        return [(0, initial_bytes)]
    return [(start, min(start + step, initial_bytes)) for start in range(0, initial_bytes, step)]


def _directory(key: bytes) -> bytes:
    return key[: key.rfind(b"/") + 1]
