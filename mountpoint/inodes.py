"""The inode table: numbers, lookup counts, versions. No I/O.

The kernel names files by inode number, from the lookup that told it until it forgets as
many lookups as it made. Every *version* of an object (its ETag) has an inode number of its
own, because the kernel keeps the pages of a number across opens: so cached pages are never
those of another version. Directories have one number each.

A number is a digest of key and version. So a listing shows the number that a lookup will
give, and a file has the same number in every mount, without anything being remembered. Two
live inodes never share a number: the second takes the next free one.
"""

import hashlib
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
            number = self._number(parent, entry)
            inode = self._inodes.get(number)
            if inode is None:
                inode = Inode(number, parent.number, entry.name, _key(parent, entry), entry.info)
                self._inodes[number] = inode
            inode.info = entry.info  # same version; a copy of equal content has a new mtime
            inode.fresh_until_s = max(fresh_until_s, inode.fresh_until_s)
            inode.lookups += 1
            return inode

    def number_of(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number that a lookup of `entry` would give, without counting one."""
        with self._lock:
            return self._number(parent, entry)

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
                assert inode.number == number
                assert inode.lookups > 0 or inode.opens > 0, inode

    def _number(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number of the entry's inode, or a free one for it (lock held)."""
        key = _key(parent, entry)
        number = digest(key, entry.info)
        while True:
            inode = self._inodes.get(InodeNumber(number))
            if inode is None or (inode.key == key and inode.is_version(entry)):
                return InodeNumber(number)
            number += 1

    def _drop_unheld(self, inode: Inode) -> None:
        if inode.lookups <= 0 and inode.opens <= 0:
            self._inodes.pop(inode.number, None)


def digest(key: bytes, info: ObjectInfo | None) -> int:
    """Return a number of 62 bits, above the root's, for a key and a version. Pure."""
    version = b"" if info is None else f"{info.etag}\n{info.size_bytes}".encode()
    # A NUL ends the key: none that can be reached has one.
    value = hashlib.blake2b(key + b"\0" + version, digest_size=8).digest()
    return (int.from_bytes(value, "little") >> 2) + 2


def _key(parent: Inode, entry: Entry) -> bytes:
    return parent.key + entry.name + (b"/" if entry.info is None else b"")
