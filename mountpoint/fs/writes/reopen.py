"""Opening a file by a reference that a program holds: O_PATH and /proc/self/fd/N, as Samba does.

After ESTALE the kernel looks a name up again, and opens the inode of the newest version. A
reference has no name to look up, so the kernel opens the same inode again, and its thread looks up
nothing in between. That inode then becomes the version that its name has now, once no reader of an
earlier one has it open.

The kernel tries twice only. If the second inode is stale, too, the program gets ESTALE, and may
open the name again; the kernel can lead it to the same inode without a lookup. That is no
reference.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mountpoint.errors import NO_OPTION, NoSuchEntry, NotFound, NotPermitted, StaleInode
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.writes.open_flags import changes
from mountpoint.fs.writes.readers import BEING_READ, Readers
from mountpoint.fs.writes.streamed.lifecycle import BEING_WRITTEN
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy

T = TypeVar("T")

#: The kernel tries again at once, after looking the name up: at most one request to S3.
AGAIN_S = 1.0

BY_DESCRIPTOR_HINT = f"{NO_OPTION}open it by its name, not by a descriptor (/proc/self/fd)"


class _Stale(NamedTuple):
    """What a thread found stale: an inode's number, and until when (monotonic clock) the kernel may
    try again. `looked_up`: after a lookup, so for the last time.
    """

    number: InodeNumber
    until_s: float
    looked_up: bool


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
        #: By thread, as long as the kernel may try again.
        self.expected: dict[int, _Stale] = {}

    def is_reopened(self, inode: Inode, thread: int) -> bool:
        """Whether a thread opens the same inode again; else note that a new lookup is due.

        `thread` is 0 if it is not known.
        """
        now_s = time.monotonic()
        with self._lock:
            self.expected = {
                each: stale for each, stale in self.expected.items() if stale.until_s > now_s
            }
            before = self.expected.pop(thread, None)
            if before is not None and before.looked_up:
                return False
            if before is not None and before.number == inode.number:
                return True
            if thread:
                self.expected[thread] = _Stale(inode.number, now_s + AGAIN_S, looked_up=False)
            return False

    def looked_up(self, thread: int) -> None:
        """Note that a thread looks up a name: what it opens next is no reference.

        It may be an inode that the thread has found stale before: the kernel can know it by its
        name again. Nothing is to do while `expected` is empty.
        """
        with self._lock:
            before = self.expected.get(thread)
            if before is not None:
                self.expected[thread] = before._replace(looked_up=True)

    def up_to_date(self, inode: Inode, thread: int, act: Callable[[], T], flags: int) -> T:
        """Run `act`; where it finds a stale inode that can be updated, do that and repeat it.

        `flags` are those of open(2). If they change the file, readers may be waiting for it.
        """
        try:
            done = act()
        except StaleInode:
            if not self.is_reopened(inode, thread):
                if changes(flags) and thread and thread not in self.expected:
                    self._readers.arrived(inode)  # it will not: the kernel does not try again
                raise
            try:
                self.catch_up(inode)
            except NotPermitted:
                if changes(flags):
                    self._readers.arrived(inode)  # it will not come
                raise
            return act()
        if self.expected:
            with self._lock:
                self.expected.pop(thread, None)
        return done

    def catch_up(self, inode: Inode) -> None:
        """Make an inode the newest version of its name.

        Raises NotPermitted while others read an earlier version through it, or write the file;
        NoSuchEntry, and S3Errors.
        """
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
