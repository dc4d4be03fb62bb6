"""Resolve names: local directories, cached listings, then S3.

Where attributes are kept (`setattr`), a lookup needs a file's metadata, which LIST does not return.
It takes them from the file's inode, or else from a HEAD (`heads`). Deleting and renaming do not
need them.

Not known here: files that are being written (`overlay`). They take precedence over all of this.
"""

import time
from collections import deque

from mountpoint.errors import NoSuchEntry
from mountpoint.fs.heads import Heads
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.resolver import Lookups
from mountpoint.listing.tree import Entry

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
        lookups: Lookups,
        listings: ListingCache,
        heads: Heads,
        inodes: InodeTable,
        local: OverlayNames,
        *,
        ttl_s: float,
        describes: bool,
    ) -> None:
        # dependencies
        self._lookups = lookups
        self._listings = listings
        self._heads = heads
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
            described = described or self._heads.described(directory.key, entry)
            if described is not None:
                return described, fresh_until_s
        raise NoSuchEntry("the object was deleted")
