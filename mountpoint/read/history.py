"""How much of a file will be read: as much as was read of the last ones in its directory.

`open` fetches the head of a file before anybody has read from it. Training sets are read whole,
file after file; indexers read the first kilobytes of each; what it will be shows in the
files before. Too small a head costs the reader one more round trip, too large a one bytes.
"""

import threading
from collections import OrderedDict, deque
from typing import NamedTuple

from mountpoint.read.readahead import MIB, PAGE_BYTES, Range

#: Without experience: a file up to this size is fetched whole when it is opened, ...
WHOLE_BYTES = MIB
#: ... of a larger one the head: what the kernel makes of a first read of 8 KiB. Of a larger read
#: 128 KiB were not all either, and programs that only look get no more than they ask for.
HEAD_BYTES = 32 * 1024
#: Where the last files were read whole, so is one up to this size. Beyond it read-ahead has
#: time to come into its own.
LARGEST_WHOLE_BYTES = 8 * MIB
#: Where that was one file only, its like: one up to so many times as large.
LIKE = 2

#: A larger head is fetched in parts of this size at the same time: with 90 MB/s for each connection
#: 9 ms after the first byte, and 1 MiB 12.
HEAD_PART_BYTES = 768 * 1024

#: Who reads no more of each file only looks at them.
LOOK_BYTES = MIB

#: Where about as much was read of each, and no more than this, `open` fetches all of it at once.
ALIKE_BYTES = 128 * 1024

#: So many files of a directory are the experience with it.
LAST_FILES = 4
#: Directories with experience.
MAX_DIRECTORIES = 1000
#: What counts as whole: programs leave out a trailer now and then.
WHOLE_SHARE = 0.9


class _File(NamedTuple):
    """How much was read of a file: from its start on, and in all.

    `exact`: that is what programs read; else the kernel may have made more of it, four times as
    much of a page.
    """

    read_bytes: int
    total_bytes: int
    whole: bool
    exact: bool


class Expectation:
    """What was read of the last files of each directory. Thread-safe."""

    def __init__(self) -> None:
        # mutable, guarded by _lock; the most recently used last
        self._lock = threading.Lock()
        self._read: OrderedDict[bytes, deque[_File]] = OrderedDict()

    def head_bytes(self, key: bytes, size_bytes: int) -> int:
        """Return how much of an object to fetch when it is opened."""
        last = self._last(key)
        if last and all(each.whole for each in last):
            like_bytes = LIKE * last[0].read_bytes if len(last) == 1 else LARGEST_WHOLE_BYTES
            if size_bytes <= min(like_bytes, LARGEST_WHOLE_BYTES):
                return size_bytes
        usual = size_bytes if size_bytes <= WHOLE_BYTES else HEAD_BYTES
        if not last or (len(last) < LAST_FILES and any(each.whole for each in last)):
            return usual
        most = _most(last)
        alike = len(last) > 1 and min(each.read_bytes for each in last) >= most // 2
        if alike and most <= ALIKE_BYTES:
            return min(most, size_bytes)
        return min(usual, most)

    def reach_bytes(self, key: bytes) -> int | None:
        """Return how far programs read into the files of a directory; None if to the end."""
        last = self._last(key)
        if not last or any(each.whole for each in last):
            return None
        return _most(last)

    def is_looked_at(self, key: bytes) -> bool:
        """Whether programs only look at the files of a directory."""
        last = self._last(key)
        return bool(last) and not any(each.whole or each.total_bytes > LOOK_BYTES for each in last)

    def closed(
        self,
        key: bytes,
        size_bytes: int,
        read_bytes: int,
        *,
        elsewhere: bool = False,
        exact: bool = False,
    ) -> None:
        """Note that so much was read of an object while it was open.

        `elsewhere`: nothing from its head. `exact`: little more than programs read.
        """
        from_start = 0 if elsewhere else min(read_bytes, size_bytes)
        directory = _directory(key)
        whole = from_start >= WHOLE_SHARE * size_bytes
        with self._lock:
            last = self._read.setdefault(directory, deque(maxlen=LAST_FILES))
            last.append(_File(from_start, read_bytes, whole, exact))
            self._read.move_to_end(directory)
            if len(self._read) > MAX_DIRECTORIES:
                self._read.popitem(last=False)

    def _last(self, key: bytes) -> list[_File]:
        with self._lock:
            return list(self._read.get(_directory(key), ()))


def _most(files: list[_File]) -> int:
    """Return the most that was read of any file, in whole pages; of those that are exact."""
    exact = [each for each in files if each.exact] or files
    most = max(each.read_bytes for each in exact)
    return max(most + -most % PAGE_BYTES, PAGE_BYTES)


def parts_of(head_bytes: int, most_bytes: int) -> list[Range]:
    """Return the ranges in which to fetch a head, all at once: none larger than `most_bytes`."""
    step = min(head_bytes if head_bytes <= WHOLE_BYTES else HEAD_PART_BYTES, most_bytes)
    return [(start, min(start + step, head_bytes)) for start in range(0, head_bytes, step)]


def _directory(key: bytes) -> bytes:
    return key[: key.rfind(b"/") + 1]
