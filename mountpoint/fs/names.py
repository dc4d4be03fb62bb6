"""Resolve names: local directories, cached listings, then S3.

Where attributes are kept (`setattr`), a lookup needs a file's metadata, which LIST does not return.
It takes them from the file's inode, or else from a HEAD. The answer to that is newer than the
listing that named the file, and expires with it. A lookup waits for its own HEAD only. Deleting and
renaming do not need metadata.

Not known here: files that are being written (`overlay`). They take precedence over all of this.
"""

import functools
import time
from collections import deque

from mountpoint.errors import NoSuchEntry, NotFound, StaleInode
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.resolver import Lookups
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

#: HEAD may find that a listed file is gone. The name is then looked up once more.
DESCRIBE_TRIES = 2

#: How many absent names are remembered from the latest lookups, and for how long. A rename to one
#: of them sends no request. One second is no more than may pass between any two requests.
MANY_ABSENT = 32
ABSENT_S = 1.0


class Names:
    """Resolves the names of a mount. Thread-safe; its callers wait. `describes`: see `look`."""

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        lookups: Lookups,
        listings: ListingCache,
        inodes: InodeTable,
        local: OverlayNames,
        *,
        ttl_s: float,
        describes: bool,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._lookups = lookups
        self._listings = listings
        self._inodes = inodes
        self._local = local
        # constants
        self._ttl_s = ttl_s
        self._describes = describes
        # mutable, used in single steps of the interpreter
        self._absent: deque[tuple[bytes, bytes, float]] = deque(maxlen=MANY_ABSENT)

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float]:
        """Return the entry of a name, and until when (monotonic clock) it is valid.

        Raises NoSuchEntry, and what `Lookups.find` raises.
        """
        if self._local.is_directory(directory + name + b"/"):
            return Entry(name, None), time.monotonic() + self._ttl_s
        return self._lookups.find(directory, name)

    def look(self, directory: Inode, name: bytes) -> tuple[Entry, float]:
        """As `find`. Where attributes are shown (`describes`), a file's entry includes them."""
        try:
            return self._described(directory, name)
        except NoSuchEntry:
            self._absent.append((directory.key, name, time.monotonic()))
            raise

    def target(self, directory: Inode, name: bytes) -> tuple[Entry | None, bool]:
        """Return the entry of a name or None, and whether to check it again before replacing it."""
        known = self._listings.find(directory.key, name)
        if known is not None:
            return known[0], True
        oldest_s = time.monotonic() - ABSENT_S
        for where, what, asked_at_s in list(self._absent):
            if (where, what) == (directory.key, name) and asked_at_s > oldest_s:
                return None, False
        try:
            return self.find(directory.key, name)[0], True
        except NoSuchEntry:
            return None, False

    def forget(self, directory: bytes) -> None:
        """Forget how a directory's listing is divided into pages."""
        self._lookups.forget(directory)

    def forget_absent(self) -> None:
        """Forget the names that were absent."""
        self._absent.clear()

    def _described(self, directory: Inode, name: bytes) -> tuple[Entry, float]:
        for _ in range(DESCRIBE_TRIES):
            entry, fresh_until_s = self.find(directory.key, name)
            known = entry.info is None or entry.info.metadata is not None
            if known or not self._describes:
                return entry, fresh_until_s
            described = self._inodes.told(directory, entry, time.monotonic())
            described = described or self._head(directory.key, entry)
            if described is not None:
                return described, fresh_until_s
        raise NoSuchEntry("the object was deleted")

    def _head(self, directory: bytes, entry: Entry) -> Entry | None:
        """Return a listed file as HEAD describes it, which may be a newer version.

        Returns None if the object is gone. Raises S3Errors.
        """
        listed = entry.info
        assert listed is not None
        start = functools.partial(self._client.head, listed.key)
        try:
            info = self._retry_policy.ask(start).answer()
        except NotFound:
            self._listings.discard(directory, entry.name)
            return None
        if (info.etag, info.size_bytes) != (listed.etag, listed.size_bytes):
            self._listings.discard(directory, entry.name)
        return Entry(entry.name, info)


def newest(client: ObjectClient, retry_policy: RetryPolicy, inode: Inode) -> ObjectInfo:
    """Return the newest version of a file. Raises StaleInode if the inode is another version."""
    info = retry_policy.ask(functools.partial(client.head, inode.key)).answer()
    if not inode.is_version(Entry(inode.name, info)):
        raise StaleInode("the object was replaced")
    return info
