"""Open, read, create and remove directories.

S3 has no directories: one exists as long as a key is below it. So a new directory exists in this
mount alone (`overlay`), unless a marker keeps it (--keep-directories): an empty object whose key
ends in "/".
"""

import functools
import stat
from dataclasses import dataclass

from mountpoint.errors import DirectoryNotEmpty, NotADirectory, NotPermitted, Stalled
from mountpoint.fs.handles import DirectoryHandle
from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.fs.writes.context import WriteContext
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.prefetch import WalkPrefetcher
from mountpoint.listing.tree import Entry, check_new
from mountpoint.s3.client import NEW

#: Entries per answer to readdir: as many as fit into the kernel's page of 4096 bytes.
ENTRIES_PER_READ = 128


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of readdir. `next_position` is the position of the entry after it."""

    name: bytes
    inode: InodeNumber
    mode: int
    next_position: int


class Directories:
    """The directories of one mount. Thread-safe; no lock is held while waiting."""

    def __init__(
        self, context: WriteContext, listings: ListingCache, walks: WalkPrefetcher
    ) -> None:
        # dependencies
        self._mount = context
        self._listings = listings
        self._walks = walks
        # constants
        self._markers = context.config.keep_directories

    def open(self, inode: Inode, process: int) -> DirectoryHandle:
        """Open a directory for a process. The first read starts the listing."""
        mount = self._mount
        first = self._walks.opened(process, inode.key)
        handle = DirectoryHandle(
            inode,
            process,
            mount.client,
            mount.retry_policy,
            self._listings,
            first,
            lambda: mount.local.entries(inode.key),
        )
        mount.inodes.opened(inode)
        return handle

    def read(
        self, handle: DirectoryHandle, position: int, count: int = ENTRIES_PER_READ
    ) -> list[DirectoryEntry]:
        """Return about `count` entries from `position` on; 0 starts a new listing.

        Empty at the end.
        """
        if position == 0:
            handle.rewind()
        inode = handle.inode
        dots = [(b".", inode.number), (b"..", (inode.parent or inode).number)]
        lines = [
            DirectoryEntry(name, number, stat.S_IFDIR, index + 1)
            for index, (name, number) in enumerate(dots)
            if index >= position
        ]
        start = max(position - len(dots), 0)
        entries = handle.read(start, count)
        self._walks.listed(handle.process, inode.key, entries)
        for index, entry in enumerate(entries, start + len(dots)):
            mode = stat.S_IFDIR if entry.is_directory else stat.S_IFREG
            number = self._mount.inodes.number_of(inode, entry)
            lines.append(DirectoryEntry(entry.name, number, mode, index + 1))
        return lines

    def close(self, handle: DirectoryHandle) -> None:
        """Close a directory."""
        handle.close()
        self._mount.inodes.released(handle.inode)

    def make(self, parent: Inode, name: bytes) -> Entry:
        """Create a directory. Raises NameTooLong, BadArgument, and S3Errors."""
        check_new(parent.key, name + b"/")
        with self._mount.key_locks.shared(lambda: parent.key + name + b"/"):
            prefix = parent.key + name + b"/"
            if self._markers:
                marker = self._mount.uploads.upload(prefix, condition=NEW)
                try:
                    marker.finish()
                finally:
                    marker.abort()
                self._mount.caches.changed(parent.key, name, None)
            self._mount.local.add_directory(prefix)
        return Entry(name, None)

    def remove(self, parent: Inode, entry: Entry) -> None:
        """Remove an empty directory. Raises NotADirectory, and what `check_replaceable` does."""
        if not entry.is_directory:
            raise NotADirectory()
        with self._mount.key_locks.shared(lambda: parent.key + entry.name + b"/"):
            prefix = parent.key + entry.name + b"/"
            if self.check_replaceable(prefix):
                self._mount.delete(prefix)
            self._mount.local.remove_directory(prefix)
            self._mount.local.add_directory(parent.key)
            self._mount.caches.changed(parent.key, entry.name, None)
            self._mount.inodes.removed(parent, entry.name)

    def check_replaceable(self, prefix: bytes) -> bool:
        """Return whether the directory has a marker.

        Raises DirectoryNotEmpty if anything is below it, and NotPermitted if it has a marker that
        this mount may not delete.
        """
        marker = self._check_empty(prefix)
        if marker and not self._markers:
            raise NotPermitted(
                "the bucket has a marker object for this directory",
                "mount with --keep-directories to permit it",
            )
        return marker

    def _check_empty(self, prefix: bytes) -> bool:
        if not self._mount.local.is_empty(prefix):
            raise DirectoryNotEmpty()
        keys = self._keys_below(prefix)
        if any(key != prefix for key in keys):
            raise DirectoryNotEmpty()
        return bool(keys)

    def _keys_below(self, prefix: bytes) -> list[bytes]:
        """Return the first keys below a directory, its marker included. Two keys are enough."""
        client, retry_policy = self._mount.client, self._mount.retry_policy
        attempts = retry_policy.begin()
        keys: list[bytes] = []
        token = None
        while True:
            asked = functools.partial(client.list, prefix, token=token, max_keys=2, flat=True)
            page = retry_policy.ask(asked, attempts).answer()
            keys += [info.key for info in page.objects]
            token = page.next_token
            if len(keys) > 1 or token is None:
                return keys
            if attempts.left_s() <= 0:
                raise Stalled("the listing has only empty pages")
