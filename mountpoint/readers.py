"""Who has files open for reading: a writer must not disturb them.

The kernel keeps the size and the pages of a file by its inode, for every program that has it open.
So nothing is written through an inode that is open for reading. The inode is left to its readers,
which keep the version that they opened, and the writer gets Superseded (ESTALE). The kernel then
looks the name up again, finds another inode, and opens that one for the writer.

The kernel does so once. A reader that opens the new inode in between would make it fail, so it
waits until the writer is there.

A program that opens a file through a descriptor (/proc/self/fd/N) always opens the same inode: it
is told that the file is being read.
"""

import threading
import time
from collections import Counter
from typing import NoReturn

from mountpoint.errors import NO_OPTION, NotPermitted, Superseded
from mountpoint.inodes import Inode, InodeNumber, InodeTable

#: How long readers wait for a writer that looks a name up again. It takes two requests of the
#: kernel, and one of S3 at most.
RETURN_S = 1.0
#: How many threads wait here at most: the writer's own requests need one.
MOST_WAITING = 4

BEING_READ = "the file is being read"
BEING_READ_HINT = "mount with --staged-writes DIR to let it be read and written at the same time"
BY_DESCRIPTOR_HINT = f"{NO_OPTION}open it by its name, not by a descriptor (/proc/self/fd)"


class Readers:
    """The readers of all inodes of a mount. Thread-safe; waits end within RETURN_S."""

    def __init__(self, inodes: InodeTable) -> None:
        # dependencies
        self._inodes = inodes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._counts: Counter[InodeNumber] = Counter()
        #: By key: until when a writer is expected, the inode that it left, and its process.
        self._expected: dict[bytes, tuple[float, InodeNumber, int]] = {}
        self._waiting = 0

    def begin(self, inode: Inode) -> None:
        """Count a reader, after the writer that is expected."""
        with self._changed:
            expected = self._expected.get(inode.key)
            if expected is not None and self._waiting < MOST_WAITING:
                self._waiting += 1
                try:
                    left_s = expected[0] - time.monotonic()
                    self._changed.wait_for(lambda: inode.key not in self._expected, left_s)
                finally:
                    self._waiting -= 1
            self._counts[inode.number] += 1

    def end(self, inode: Inode) -> None:
        """Uncount a reader."""
        with self._changed:
            self._counts[inode.number] -= 1
            if not self._counts[inode.number]:
                del self._counts[inode.number]
            self._changed.notify_all()

    def are_there(self, inode: Inode) -> bool:
        """Whether anybody reads an inode."""
        return inode.number in self._counts

    def is_only(self, inode: Inode, within_s: float) -> bool:
        """Whether the caller is an inode's only reader, now or within so many seconds.

        The kernel tells of a close a moment after the program has gone on.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._counts[inode.number] <= 1, within_s)

    def leave(self, inode: Inode, process: int) -> NoReturn:
        """Leave an inode to those who have it open, and raise Superseded for a process that writes.

        Raises NotPermitted if the process has just been told so and came to the same inode.
        """
        now_s = time.monotonic()
        with self._changed:
            late = [key for key, each in self._expected.items() if each[0] <= now_s]
            for key in late:
                del self._expected[key]
            before = self._expected.pop(inode.key, None)
            if before is not None and before[1:] == (inode.number, process):
                self._changed.notify_all()
                raise NotPermitted(BEING_READ, BY_DESCRIPTOR_HINT)
            self._expected[inode.key] = (now_s + RETURN_S, inode.number, process)
        self._inodes.disown(inode, inode.info)
        raise Superseded("other programs have the file open: it gets another inode")

    def arrived(self, inode: Inode) -> None:
        """Note that a writer has opened an inode: from now on readers find the writer."""
        with self._changed:
            if self._expected.pop(inode.key, None) is not None:
                self._changed.notify_all()
