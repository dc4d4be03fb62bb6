"""Resolve a name in a directory, as lookups, `stat`, deletions and renames need it.

The steps, in this order; the first one that knows the name answers:

1. the overlay: a directory that was created here (`overlay`);
2. the cache: a recent proof that the name is missing, or a page that lists it (`listing/cache`);
3. S3: one LIST that all lookups of neighbouring names share (`listing/batch_lookup`), or else
   requests for this name alone (`listing/single_lookup`).

Where attributes are kept (`setattr`), a lookup also needs a file's metadata, which LIST does not
return. They come from the file's inode, or else from a HEAD. Its answer is newer than the listing
that named the file and expires with it. Deleting and renaming do not need them.

Files that are being written take precedence over all of this. They have inodes instead of entries,
so the callers ask the overlay for them first.
"""

import functools
import time

from mountpoint.errors import NoSuchEntry, NotFound, StaleInode
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.listing import tree
from mountpoint.listing.batch_lookup import BatchLookups
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.single_lookup import SingleLookups
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

#: HEAD may find that a listed file is gone. The name is then looked up once more.
METADATA_TRIES = 2

#: How many absent names are remembered from the latest lookups, and for how long. A rename to one
#: of them sends no request. One second is no more than may pass between any two requests.
MANY_ABSENT = 32
ABSENT_S = 1.0


class Resolver:
    """Resolves the names of a mount. Thread-safe; no lock is held while waiting.

    `attributes`: objects' metadata keep attributes, which `resolve` returns. An entry that expires
    within `renew_before_s` is renewed when it is looked up.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        listings: ListingCache,
        inodes: InodeTable,
        local: OverlayNames,
        *,
        ttl_s: float,
        negative_ttl_s: float,
        attributes: bool,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        self._inodes = inodes
        self._local = local
        self._batches = BatchLookups(client, retry_policy, listings, ttl_s)
        self._single = SingleLookups(client, retry_policy, listings, ttl_s)
        # constants
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._attributes = attributes
        self.renew_before_s = self._batches.renew_before_s
        # mutable, used in single steps of the interpreter
        self._absent: dict[tuple[bytes, bytes], float] = {}  # the latest last; times of lookups

    def resolve(
        self, parent: Inode, name: bytes, *, attributes: bool = True
    ) -> tuple[Entry, float]:
        """Return the entry of a name, and its expiry on the monotonic clock.

        A file's entry includes its attributes, if the mount keeps them and `attributes` is set.
        Raises NoSuchEntry, with its own expiry; also S3Errors, Stalled and Interrupted.
        """
        if not attributes:
            return self._find(parent.key, name)
        try:
            if self._attributes:
                found = self._find_with_attributes(parent, name)
            else:
                found = self._find(parent.key, name)
        except NoSuchEntry:
            self._note_absent(parent.key, name)
            raise
        if self._absent:
            self.forget_absent_name(parent.key, name)
        return found

    def known(self, parent: Inode, name: bytes) -> tuple[Entry, float] | None:
        """Return what `resolve` returns, if that needs no request; otherwise None.

        None also for a file whose attributes may be in its metadata.
        """
        if self._local.is_directory(parent.key + name + b"/"):
            return Entry(name, None), time.monotonic() + self._ttl_s
        known = self._listings.find(parent.key, name)
        if known is not None and self._attributes and not known[0].is_directory:
            return None
        return known

    def resolve_target(self, parent: Inode, name: bytes) -> tuple[Entry | None, bool]:
        """Return a rename's target or None, and whether to check it again before replacing it.

        Raises what `resolve` raises, except NoSuchEntry.
        """
        known = self._listings.find(parent.key, name)
        if known is not None:
            return known[0], True
        absent_s = self._absent.get((parent.key, name))
        if absent_s is not None and absent_s > time.monotonic() - ABSENT_S:
            return None, False
        try:
            return self._find(parent.key, name)[0], True
        except NoSuchEntry:
            return None, False

    def version(self, directory: bytes, name: bytes) -> ObjectInfo | None:
        """Return the version of a file; None for a directory. Raises what `resolve` raises."""
        return self._find(directory, name)[0].info

    def forget_absent(self) -> None:
        """Forget the names that were absent."""
        self._absent.clear()

    def forget_absent_name(self, directory: bytes, name: bytes) -> None:
        """Forget that a name was absent: it may exist now."""
        self._absent.pop((directory, name), None)

    def forget_directory(self, directory: bytes) -> None:
        """Forget how a directory's listing is divided into pages."""
        self._batches.forget(directory)

    def _note_absent(self, directory: bytes, name: bytes) -> None:
        self.forget_absent_name(directory, name)  # the latest last
        self._absent[directory, name] = time.monotonic()
        if len(self._absent) > MANY_ABSENT:
            self._absent.pop(next(iter(list(self._absent))), None)

    # --- the steps ---

    def _find(self, directory: bytes, name: bytes) -> tuple[Entry, float]:
        """Resolve a name without its attributes."""
        try:
            return self._find_object(directory, name)
        except NoSuchEntry:
            # Others have emptied a directory in which a file is being written here.
            if not self._local.has_files_below(directory + name + b"/"):
                raise
            return Entry(name, None), time.monotonic()

    def _find_object(self, directory: bytes, name: bytes) -> tuple[Entry, float]:
        """Do the same, without the directories of files that are being written."""
        started_s = time.monotonic()
        if self._local.is_directory(directory + name + b"/"):
            return Entry(name, None), started_s + self._ttl_s
        if self._negative_ttl_s > 0:
            absent_until_s = self._listings.absent_until(directory, name)
            if absent_until_s is not None:
                raise NoSuchEntry(ttl_s=min(absent_until_s - started_s, self._negative_ttl_s))
        known = self._listings.find(directory, name)
        if known is not None:
            self._batches.record_hit(directory, *known)
            return known
        if not tree.is_name(name):
            raise NoSuchEntry()
        if len(directory) + len(name) > tree.MAX_KEY_BYTES:
            raise NoSuchEntry("S3 has no keys of this length")
        attempts = self._retry_policy.begin()
        try:
            shared = self._batches.find(directory, name)
            return shared or self._single.find(directory, name, attempts)
        except NoSuchEntry:
            self._listings.record_absent(directory, name, started_s)
            passed_s = time.monotonic() - started_s
            raise NoSuchEntry(ttl_s=max(self._negative_ttl_s - passed_s, 0.0)) from None

    def _find_with_attributes(self, parent: Inode, name: bytes) -> tuple[Entry, float]:
        for _ in range(METADATA_TRIES):
            entry, fresh_until_s = self._find(parent.key, name)
            if entry.info is None or entry.info.metadata is not None:
                return entry, fresh_until_s
            found = self._inodes.with_metadata(parent, entry, time.monotonic())
            found = found or self._head(parent.key, entry)
            if found is not None:
                return found, fresh_until_s
        raise NoSuchEntry("the object was deleted")

    def _head(self, directory: bytes, entry: Entry) -> Entry | None:
        """Return a listed file as HEAD describes it, which may be a newer version.

        Returns None if the object is gone.
        """
        listed = entry.info
        assert listed is not None
        try:
            info = self._retry_policy.ask(functools.partial(self._client.head, listed.key)).answer()
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
