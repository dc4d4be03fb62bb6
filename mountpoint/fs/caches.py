"""Forget what a mount remembers of the bucket: after its own changes, and on request."""

from collections.abc import Callable

from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable
from mountpoint.fs.resolver import Resolver
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.prefetch import WalkPrefetcher
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo


class Caches:
    """What one mount remembers of names and attributes. Thread-safe; no method waits.

    `refreshes` counts the calls of `refresh`: an answer to a request that was sent before one of
    them may be too old. `forget_prepared` is called after each change (`native._prepared`).
    """

    def __init__(
        self,
        listings: ListingCache,
        resolver: Resolver,
        walks: WalkPrefetcher,
        inodes: InodeTable,
        forget_prepared: Callable[[], None],
    ) -> None:
        # dependencies
        self._listings = listings
        self._resolver = resolver
        self._walks = walks
        self._inodes = inodes
        self._forget_prepared = forget_prepared
        # mutable
        self.refreshes = 0

    def changed(self, directory: bytes, name: bytes, info: ObjectInfo | None) -> None:
        """Record that this mount has changed a name, after S3 has stored the change.

        `info` is the new object; None: there is none, or it is not known.
        """
        self._walks.invalidate()
        self._resolver.forget_absent_name(directory, name)
        if info is None:
            self._listings.discard(directory, name)
        else:
            self._listings.record_created(directory, Entry(name, info))
        self._forget_prepared()

    def record_removed(self, directory: bytes, name: bytes) -> None:
        """Record that this mount has removed a name."""
        self._listings.record_removed(directory, name)
        self._forget_prepared()

    def discard_below(self, prefix: bytes) -> None:
        """Drop all names in and below a directory."""
        self._listings.discard_below(prefix)
        self._forget_prepared()

    def disbelieve(self, inode: Inode) -> None:
        """Record that an inode's version is no longer the newest one."""
        self._listings.discard(inode.directory, inode.name)
        inode.fresh_until_s = 0.0
        self._forget_prepared()

    def refresh(self, path: bytes) -> list[tuple[InodeNumber, bytes]]:
        """Forget what is known of a path below the mount, and of all below it; "" is the root.

        Return the names that the kernel may know, each with its directory's inode, so that the
        kernel can be made to forget them too. Open files keep their versions.
        """
        self.refreshes += 1
        key = self._inodes.root.key
        *above, last = path.split(b"/")
        for name in above:
            if self._listings.find(key, name) is None:  # it may be cached as absent
                self._listings.discard(key, name)
            key += name + b"/"
        if path:
            self._listings.discard(key, last)
            key += last + b"/"
        self._listings.discard_below(key)
        self._resolver.forget_absent()
        self._walks.invalidate()
        held = [each for each in self._inodes.below(key[:-1] if path else key) if each.parent]
        for each in held:
            each.fresh_until_s = 0.0
        self._forget_prepared()
        return [(each.parent.number, each.name) for each in held if each.parent]

    def sweep(self) -> None:
        """Drop expired listings."""
        self._listings.sweep()
