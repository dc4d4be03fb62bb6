"""How much of a file will be read: as much as was read of the last ones in its directory.

`open` fetches the head of a file before anybody has read from it. Training sets are read whole,
file after file; indexers read the first kilobytes of each; what it will be shows in the
files before. Too small a head costs the reader one more round trip, too large a one bytes.
"""

import threading
from collections import OrderedDict, deque

from mountpoint.window import MIB, PAGE_BYTES, Range

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

#: So many files of a directory are the experience with it.
LAST_FILES = 4
#: Directories with experience.
MAX_DIRECTORIES = 1000
#: What counts as whole: programs leave out a trailer now and then.
WHOLE_SHARE = 0.9


class Expectation:
    """What was read of the last files of each directory. Thread-safe."""

    def __init__(self) -> None:
        # mutable, guarded by _lock; the most recently used last
        self._lock = threading.Lock()
        self._read: OrderedDict[bytes, deque[tuple[int, bool]]] = OrderedDict()

    def head_bytes(self, key: bytes, size_bytes: int) -> int:
        """Return how much of an object to fetch when it is opened."""
        with self._lock:
            last = list(self._read.get(_directory(key), ()))
        if last and all(whole for _, whole in last):
            like_bytes = LIKE * last[0][0] if len(last) == 1 else LARGEST_WHOLE_BYTES
            if size_bytes <= min(like_bytes, LARGEST_WHOLE_BYTES):
                return size_bytes
        usual = size_bytes if size_bytes <= WHOLE_BYTES else HEAD_BYTES
        if len(last) < LAST_FILES:
            return usual
        most = max(read for read, _ in last)
        return min(usual, max(most + -most % PAGE_BYTES, PAGE_BYTES))

    def closed(self, key: bytes, size_bytes: int, read_bytes: int) -> None:
        """Note that so much was read of an object while it was open; 0 if not from its head."""
        directory = _directory(key)
        whole = read_bytes >= WHOLE_SHARE * size_bytes
        with self._lock:
            last = self._read.setdefault(directory, deque(maxlen=LAST_FILES))
            last.append((min(read_bytes, size_bytes), whole))
            self._read.move_to_end(directory)
            if len(self._read) > MAX_DIRECTORIES:
                self._read.popitem(last=False)


def parts_of(head_bytes: int, most_bytes: int) -> list[Range]:
    """Return the ranges in which to fetch a head, all at once: none larger than `most_bytes`."""
    step = min(head_bytes if head_bytes <= WHOLE_BYTES else HEAD_PART_BYTES, most_bytes)
    return [(start, min(start + step, head_bytes)) for start in range(0, head_bytes, step)]


def _directory(key: bytes) -> bytes:
    return key[: key.rfind(b"/") + 1]
