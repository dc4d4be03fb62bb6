"""Opening a file by a reference that a program holds: O_PATH and /proc/self/fd/N, as Samba does.

After ESTALE the kernel looks a name up again, and opens the inode of the newest version. A
reference has no name to look up, so the kernel opens the same inode again, and its thread looks up
nothing in between. That inode then becomes the version that its name has now, once no reader of an
earlier one has it open.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mountpoint.errors import NO_OPTION, NoSuchEntry, NotFound, NotPermitted, StaleInode
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.writes.readers import BEING_READ, Readers
from mountpoint.fs.writes.streamed.lifecycle import BEING_WRITTEN
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy

T = TypeVar("T")

#: The kernel tries again at once, after looking the name up: at most one request to S3.
AGAIN_S = 1.0

BY_DESCRIPTOR_HINT = f"{NO_OPTION}open it by its name, not by a descriptor (/proc/self/fd)"


class ReopenedInodes:
    """Inodes of a mount that programs open by a reference. Thread-safe; its callers wait.

    `is_written` says whether an inode is open for writing.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        inodes: InodeTable,
        local: OverlayNames,
        readers: Readers,
        *,
        is_written: Callable[[Inode], bool],
        ttl_s: float,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._inodes = inodes
        self._local = local
        self._readers = readers
        self._is_written = is_written
        # constants
        self._ttl_s = ttl_s
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        #: Until when (monotonic clock) a thread is expected after its new lookup.
        self.expected: dict[tuple[InodeNumber, int], float] = {}

    def is_reopened(self, inode: Inode, thread: int) -> bool:
        """Whether a thread opens the same inode again; else note that a new lookup is due.

        `thread` is 0 if it is not known.
        """
        now_s = time.monotonic()
        with self._lock:
            self.expected = {
                key: until_s for key, until_s in self.expected.items() if until_s > now_s
            }
            if self.expected.pop((inode.number, thread), None) is not None:
                return True
            if thread:
                self.expected[inode.number, thread] = now_s + AGAIN_S
            return False

    def looked_up(self, thread: int) -> None:
        """Note that a thread looks up a name: what it opens next is no reference.

        It may be an inode that the thread has found stale before: the kernel can know it by its
        name again. Nothing is to do while `expected` is empty.
        """
        with self._lock:
            for key in [key for key in self.expected if key[1] == thread]:
                del self.expected[key]

    def up_to_date(self, inode: Inode, thread: int, act: Callable[[], T]) -> T:
        """Run `act`; where it finds a stale inode that can be updated, do that and repeat it."""
        try:
            return act()
        except StaleInode:
            if not self.is_reopened(inode, thread):
                raise
            self.catch_up(inode)
            return act()

    def catch_up(self, inode: Inode) -> None:
        """Make an inode the newest version of its name.

        Raises NotPermitted while others read an earlier version through it, or write the file;
        NoSuchEntry, and S3Errors.
        """
        try:
            self._catch_up(inode)
        except NotPermitted:
            self._readers.arrived(inode)  # the expected writer will not come
            raise

    def _catch_up(self, inode: Inode) -> None:
        requested_at_s = time.monotonic()
        try:
            start = functools.partial(self._client.head, inode.key)
            entry = Entry(inode.name, self._retry_policy.ask(start).answer())
        except NotFound:
            raise NoSuchEntry("the object was deleted") from None
        other = self._inodes.find(inode.parent or inode, entry)
        written = self._local.file(inode.directory, inode.name) is not None
        if written or any(each is not None and self._is_written(each) for each in (inode, other)):
            raise NotPermitted(BEING_WRITTEN, BY_DESCRIPTOR_HINT)
        if not self._readers.catch_up(inode, entry, requested_at_s + self._ttl_s):
            raise NotPermitted(BEING_READ, BY_DESCRIPTOR_HINT)
