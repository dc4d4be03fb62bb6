"""What a name is: a directory that was made here, what was listed, what S3 says.

Where attributes are kept (`setattr`) a lookup wants to know more of a file than LIST tells: what
its inode knows, else HEAD (`heads`). What is only to be deleted or renamed needs none of that.

Not known here: files that are being written (`overlay`), which come before all of this.
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

#: What is listed and gone, when it is to be described, is looked up once more.
DESCRIBE_TRIES = 2

#: Names that were looked up last and were not there, and for how long that spares asking again
#: before something is renamed to one: as long as between any two requests.
MANY_ABSENT = 32
ABSENT_S = 1.0


class Names:
    """The names of a mount. Thread-safe; its callers wait. `describes`: attributes are shown."""

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
        """Return what a name is, and until when (monotonic clock) that may be believed.

        Raises NoSuchEntry, and what `Lookups` does.
        """
        if self._local.is_directory(directory + name + b"/"):
            return Entry(name, None), time.monotonic() + self._ttl_s
        return self._lookups.find(directory, name)

    def look(self, directory: Inode, name: bytes) -> tuple[Entry, float]:
        """As `find`; of a file also which attributes it keeps, where they are shown."""
        try:
            return self._described(directory, name)
        except NoSuchEntry:
            self._absent.append((directory.key, name, time.monotonic()))
            raise

    def target(self, directory: Inode, name: bytes) -> tuple[Entry | None, bool]:
        """Return what has a name, and whether that is to be looked at again before it goes."""
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
        """Forget which names were not there."""
        self._absent.clear()

    def _described(self, directory: Inode, name: bytes) -> tuple[Entry, float]:
        for _ in range(DESCRIBE_TRIES):
            entry, fresh_until_s = self.find(directory.key, name)
            known = entry.info is None or entry.info.attributes is not None
            if known or not self._describes:
                return entry, fresh_until_s
            described = self._inodes.told(directory, entry, time.monotonic())
            described = described or self._heads.described(directory.key, entry)
            if described is not None:
                return described, fresh_until_s
        raise NoSuchEntry("the object was deleted")
