"""The inode table: numbers, lookup counts, versions. No I/O.

The kernel names files by inode number, from the lookup that told it until it forgets as
many lookups as it made. Every *version* of an object (its ETag) has an inode number of its
own, because the kernel keeps the pages of a number across opens: so cached pages are never
those of another version. Directories have one number each.

`current` maps a name to the inode of its newest known version; an older version lives on
under its number while the kernel or an open handle holds it.
"""

import threading
from dataclasses import dataclass
from typing import NewType

from mountpoint.errors import StaleInode
from mountpoint.s3.client import ObjectInfo
from mountpoint.tree import Entry

InodeNumber = NewType("InodeNumber", int)

#: FUSE_ROOT_ID
ROOT = InodeNumber(1)


@dataclass(slots=True)
class Inode:
    """A directory, or one version of an object.

    `key` is the object's key, or the directory's prefix. `info` is None for a directory.
    `lookups` is what the kernel holds, `opens` our open handles; an inode stays while either
    is positive. `fresh_until_s` says how long (monotonic clock) the attributes may be
    believed. `paged` is set once data was read, so that the kernel may hold pages of it.
    """

    number: InodeNumber
    parent: InodeNumber
    name: bytes
    key: bytes
    info: ObjectInfo | None
    fresh_until_s: float = 0.0
    lookups: int = 0
    opens: int = 0
    paged: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.info is None

    @property
    def directory(self) -> bytes:
        """The prefix of the directory that it is in."""
        return self.key[: len(self.key) - len(self.name) - self.is_directory]

    def is_version(self, entry: Entry) -> bool:
        """Whether `entry` is this directory, or this version of this object."""
        if self.info is None or entry.info is None:
            return self.info is entry.info
        return self.info.etag == entry.info.etag and self.info.size_bytes == entry.info.size_bytes


class InodeTable:
    """All inodes that kernel or handles hold. Thread-safe; no method waits.

    `prefix` is what the root directory stands for.
    """

    def __init__(self, prefix: bytes) -> None:
        self.root = Inode(ROOT, ROOT, b"", prefix, None, fresh_until_s=float("inf"), lookups=1)
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._inodes: dict[InodeNumber, Inode] = {ROOT: self.root}
        self._current: dict[tuple[InodeNumber, bytes], Inode] = {}
        self._last = int(ROOT)

    def __len__(self) -> int:
        return len(self._inodes)

    def get(self, number: InodeNumber) -> Inode:
        """Return the inode. Raises StaleInode for a number that nobody holds."""
        try:
            return self._inodes[number]
        except KeyError:
            raise StaleInode(f"inode {number} has been forgotten") from None

    def looked_up(self, parent: Inode, entry: Entry, fresh_until_s: float) -> Inode:
        """Return the inode of `entry`, counting one lookup; a new version is a new inode."""
        with self._lock:
            inode = self._current.get((parent.number, entry.name))
            if inode is None or not inode.is_version(entry):
                inode = self._add(parent, entry)
            inode.info = entry.info  # same version; a copy of equal content has a new mtime
            inode.fresh_until_s = max(fresh_until_s, inode.fresh_until_s)
            inode.lookups += 1
            return inode

    def number_of(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number to show for `entry` in a directory, without a lookup.

        That is its inode's if the kernel knows it, else one that nothing has.
        """
        with self._lock:
            inode = self._current.get((parent.number, entry.name))
            if inode is not None and inode.is_version(entry):
                return inode.number
            return self._next()

    def opened(self, inode: Inode) -> None:
        """Count an open handle."""
        with self._lock:
            inode.opens += 1

    def released(self, inode: Inode) -> None:
        """Uncount an open handle."""
        with self._lock:
            inode.opens -= 1
            self._drop_unheld(inode)

    def forget(self, number: InodeNumber, lookups: int) -> None:
        """Uncount what the kernel no longer holds."""
        with self._lock:
            inode = self._inodes.get(number)
            if inode is None or inode is self.root:
                return
            inode.lookups = max(inode.lookups - lookups, 0)
            self._drop_unheld(inode)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            for number, inode in self._inodes.items():
                assert inode.number == number <= self._last
                assert inode.lookups > 0 or inode.opens > 0, inode
            for (parent, name), inode in self._current.items():
                assert self._inodes[inode.number] is inode
                assert (inode.parent, inode.name) == (parent, name)

    def _add(self, parent: Inode, entry: Entry) -> Inode:
        key = parent.key + entry.name + (b"/" if entry.info is None else b"")
        inode = Inode(self._next(), parent.number, entry.name, key, entry.info)
        self._inodes[inode.number] = inode
        self._current[parent.number, entry.name] = inode
        return inode

    def _drop_unheld(self, inode: Inode) -> None:
        if inode.lookups > 0 or inode.opens > 0:
            return
        self._inodes.pop(inode.number, None)
        if self._current.get((inode.parent, inode.name)) is inode:
            del self._current[inode.parent, inode.name]

    def _next(self) -> InodeNumber:
        self._last += 1
        return InodeNumber(self._last)
