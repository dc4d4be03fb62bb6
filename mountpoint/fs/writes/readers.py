"""Count the readers of open files, so that a writer does not disturb them.

The kernel keeps size and pages of a file by its inode, for all programs that have it open. So
nothing is written through an inode that is open for reading. Its readers keep the inode and the
version that they opened, and the writer gets Superseded (ESTALE). The kernel then looks the name up
again, finds another inode, and opens that one for the writer.

The kernel does so only once. So that lookup must lead to an inode without readers (`make_way`): the
newest version may have readers, too, if the kernel has led the writer to an earlier one. And no
reader may open the new inode in between, so readers wait until the writer has arrived. The writer's
requests need threads, too: if most of the mount's threads wait already, a reader gets ESTALE, and
comes again after a lookup.

A program that opens a file by a reference (/proc/self/fd/N) always opens the same inode (`reopen`).
"""

import threading
import time
from collections.abc import Callable
from typing import NoReturn

from mountpoint.errors import Superseded
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable, PageState
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo

#: How long readers wait for a writer whose name is looked up again: two requests of the kernel, and
#: at most one to S3, which may be slow. If the writer does not come, it was killed just then.
RETURN_S = 5.0
#: How long a file that is opened by a reference waits until its other readers have closed it.
CLOSE_S = 1.0
BEING_READ = "the file is being read"
BEING_READ_HINT = "mount with --staged-writes DIR to read and write it at the same time"


class Readers:
    """The readers of all inodes of a mount. Thread-safe; waits end within RETURN_S.

    `drop_pages` makes the kernel forget the cached pages of an inode that is not open; it returns
    whether that is certain. `threads`: how many the mount has. `adopt` makes readers that opened an
    inode without the interpreter known here (`native._handles`).
    """

    def __init__(
        self, inodes: InodeTable, drop_pages: Callable[[InodeNumber], bool], threads: int
    ) -> None:
        # dependencies
        self._inodes = inodes
        self._drop_pages = drop_pages
        self.adopt: Callable[[Inode], None] = lambda inode: None
        # constants
        self._max_waiting = threads * 3 // 4
        # mutable, guarded by _lock, which is that of _changed; `expected` is also read without it
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._watchers = 0  # calls that wait for _counts or expected to change
        self._counts: dict[InodeNumber, int] = {}
        #: By key: until when a writer is expected (monotonic clock).
        self.expected: dict[bytes, float] = {}
        self._waiting = 0

    def begin(self, inode: Inode) -> None:
        """Count a reader. If a writer is expected, wait for it first.

        Raises Superseded if too many threads wait already.
        """
        with self._lock:
            expected_s = self.expected.get(inode.key) if self.expected else None
            if expected_s is not None:
                left_s = expected_s - time.monotonic()
                if left_s > 0 and not self._wait(lambda: inode.key not in self.expected, left_s):
                    raise Superseded("the file is about to be written")
            self._counts[inode.number] = self._counts.get(inode.number, 0) + 1

    def joined(self, inode: Inode) -> None:
        """Count a reader that has the inode open already."""
        with self._lock:
            self._counts[inode.number] = self._counts.get(inode.number, 0) + 1

    def end(self, inode: Inode) -> None:
        """Subtract a reader."""
        with self._lock:
            left = self._counts[inode.number] - 1
            if left:
                self._counts[inode.number] = left
            else:
                del self._counts[inode.number]
            if self._watchers:
                self._changed.notify_all()

    def are_there(self, inode: Inode) -> bool:
        """Whether an inode has readers."""
        self.adopt(inode)
        return inode.number in self._counts

    def is_only(self, inode: Inode, within_s: float) -> bool:
        """Whether the caller is the only reader of an inode, now or within `within_s` seconds.

        The kernel reports a close shortly after the program has gone on.
        """
        self.adopt(inode)
        with self._lock:
            self._watch(lambda: self._counts.get(inode.number, 0) <= 1, within_s)
        self.adopt(inode)  # some may have come meanwhile
        return self._counts.get(inode.number, 0) <= 1

    def leave(self, inode: Inode) -> NoReturn:
        """Leave an inode to its readers, and raise Superseded for the writer."""
        self.expect(inode)
        self._inodes.disown(inode, inode.info)
        raise Superseded("other programs have the file open: it gets a new inode")

    def expect(self, inode: Inode) -> None:
        """Note that a writer will look up the name of an inode again, because it gets ESTALE."""
        now_s = time.monotonic()
        with self._lock:
            late = [key for key, until_s in self.expected.items() if until_s <= now_s]
            for key in late:
                del self.expected[key]
            self.expected[inode.key] = now_s + RETURN_S
        self.adopt(inode)

    def make_way(self, directory: Inode, entry: Entry) -> None:
        """Leave the inode to which a name leads to its readers, if a writer is expected.

        So the lookup gets a new inode. Nothing is to do while `expected` is empty.
        """
        expected_s = self.expected.get(directory.key + entry.name)
        if expected_s is None or expected_s <= time.monotonic():
            return
        inode = self._inodes.find(directory, entry)
        # The kernel may have the last page of a file to which the writer appends.
        if inode is not None and (self.are_there(inode) or inode.paged):
            self._inodes.disown(inode, inode.info)

    def arrived(self, inode: Inode) -> None:
        """Note that the expected writer has opened an inode, or will not; wake those that wait."""
        self.came_to(inode.key)

    def came_to(self, key: bytes) -> None:
        """Note that the expected writer has found what the name of this key is now, or nothing."""
        if not self.expected:
            return
        with self._lock:
            if self.expected.pop(key, None) is not None:
                self._changed.notify_all()

    def became(self, inode: Inode, info: ObjectInfo) -> bool:
        """Give an inode that is not open its new version; False if old pages may remain."""
        if not self._drop_pages(inode.number):
            return False
        self._inodes.became(inode, info, 0.0, paged=PageState.NOT)
        return True

    def catch_up(self, inode: Inode, entry: Entry, fresh_until_s: float) -> bool:
        """Make an inode the version `entry`; False while it has other readers or cached pages.

        The kernel reports a close shortly after the program has gone on.
        """
        assert entry.info is not None
        self.adopt(inode)
        with self._lock:
            if inode.is_version(entry):
                return True
            self._wait(lambda: inode.number not in self._counts, CLOSE_S)
            if inode.number in self._counts or not self._drop_pages(inode.number):
                return False
            self._inodes.became(inode, entry.info, fresh_until_s, paged=PageState.NOT)
        self.adopt(inode)
        return True

    def _wait(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait for a condition (lock held); False if too many threads wait already."""
        if self._waiting >= self._max_waiting:
            return False
        self._waiting += 1
        try:
            self._watch(condition, within_s)
        finally:
            self._waiting -= 1
        return True

    def _watch(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait for a condition (lock held); return whether it holds."""
        self._watchers += 1
        try:
            return self._changed.wait_for(condition, within_s)
        finally:
            self._watchers -= 1
