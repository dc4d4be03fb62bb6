"""The inode table: numbers, lookup counts, versions. No I/O.

The kernel names files by inode number, from the lookup that told it until it forgets as
many lookups as it made. Every *version* of an object (its ETag) has an inode number of its
own, because the kernel keeps the pages of a number across opens: so cached pages are never
those of another version. Directories have one number each.

A number is a digest of key and version. So a listing shows the number that a lookup will
give, and a file has the same number in every mount, without anything being remembered. Two
live inodes never share a number: the second takes the next free one. With 32 bits (--inode32)
that is not rare: among a million files there are 116 pairs of equal digests. Of those a listing
may show another number than the lookup gives.

A file that is written here has its number before it has a version. It keeps it when the upload
gives it one: what the kernel has in its pages is what was written. Lookups of that version then
find the inode by an alias.
"""

import hashlib
import itertools
import struct
import threading
from dataclasses import replace
from enum import IntEnum
from typing import NewType

from mountpoint.errors import StaleInode
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.wire.posix_metadata import NOTHING, FileAttributes

InodeNumber = NewType("InodeNumber", int)

#: FUSE_ROOT_ID
ROOT = InodeNumber(1)

#: How long a number is: the interpreter keeps integers in digits of 30 bits, and whatever room a
#: sum or a shift had on the way. Of a million numbers two are equal once in 150,000 times.
LONG_BITS = 56
#: What stat(2) and readdir(3) of 32-bit programs without large-file support can tell.
SHORT_BITS = 32

#: Size, mtime, flags: what is packed in front of ETag and storage class.
_NUMBERS = struct.Struct("<qqB")
#: The flags: it is restored, it is known which attributes are kept (`s3.kept`), some are.
_RESTORED, _TOLD, _ANY = 1, 2, 4
#: Mode, owners and time, behind all else; -1 stands for what is not kept.
_KEPT = struct.Struct("<iqqq")


class Paged(IntEnum):
    """How much of a file the kernel may hold: no page, some, or all."""

    NOT = 0
    SOME = 1
    ALL = 2


class Inode:
    """A directory, or one version of an object.

    There are as many as the kernel cares to remember: a `find` makes millions. So a file's key
    is put together from its directory's and its name, what S3 said of the object is packed into
    one `bytes`, and numbers are no longer than they need to be. One takes 340 bytes in place of
    800 (CPython 3.11, names of 30 bytes in keys of 60, ETags of 32 digits).

    `parent` is the directory that it is in, None for the root; `name` is the root's prefix
    there. `lookups` is what the kernel holds, `opens` our open handles; an inode stays while
    either is positive. `fresh_until_s` says how long (monotonic clock) the attributes may be
    believed. `paged` says what was read, so that the kernel may hold pages of it.
    """

    __slots__ = (
        "_packed",
        "_prefix",
        "fresh_until_s",
        "lookups",
        "name",
        "number",
        "opens",
        "paged",
        "parent",
    )

    def __init__(
        self,
        number: InodeNumber,
        parent: "Inode | None",
        name: bytes,
        info: ObjectInfo | None,
        fresh_until_s: float = 0.0,
        lookups: int = 0,
    ) -> None:
        # constants
        self.number = number
        # mutable
        self.parent = parent
        self.name = name
        self._prefix: bytes | None = None  # of a directory
        if info is None:
            self._prefix = name if parent is None else parent.key + name + b"/"
        self._packed = None if info is None else _pack(info)
        self.fresh_until_s = fresh_until_s
        self.lookups = lookups
        self.opens = 0
        self.paged = Paged.NOT

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self._packed is None

    @property
    def key(self) -> bytes:
        """The object's key, or the directory's prefix."""
        if self._prefix is not None:
            return self._prefix
        return self.directory + self.name

    def is_below(self, other: "Inode") -> bool:
        """Whether it is a directory, or anything below it."""
        inode: Inode | None = self
        while inode is not None and inode is not other:
            inode = inode.parent
        return inode is not None

    def refresh(self) -> None:
        """Find out the prefix again, which those above it have had a part in."""
        if self._prefix is not None and self.parent is not None:
            self.parent.refresh()
            self._prefix = self.parent.key + self.name + b"/"

    @property
    def directory(self) -> bytes:
        """The prefix of the directory that it is in; the root is in itself."""
        return self.name if self.parent is None else self.parent.key

    @property
    def info(self) -> ObjectInfo | None:
        """What S3 said of the object; None for a directory. Made anew each time."""
        return None if self._packed is None else _unpack(self.key, self._packed)

    def describe(self, info: ObjectInfo) -> None:
        """Take what S3 says of the same version now."""
        self._packed = _pack(info)

    def is_version(self, entry: Entry) -> bool:
        """Whether `entry` is this directory, or this version of this object."""
        if self._packed is None or entry.info is None:
            return self.is_directory and entry.is_directory
        packed, other = self._packed, _pack(entry.info)
        # Nearly always; the rest takes ten times as long. In between are mtime and flags.
        if packed[:8] == other[:8] and packed[_NUMBERS.size :] == other[_NUMBERS.size :]:
            return True
        info = _unpack(self.key, self._packed)
        return info.etag == entry.info.etag and info.size_bytes == entry.info.size_bytes


def _pack(info: ObjectInfo) -> bytes:
    flags = _RESTORED if info.restored else 0
    behind = b""
    if info.attributes is not None:
        flags |= _TOLD
        if info.attributes != NOTHING:
            flags |= _ANY
            kept = info.attributes
            values = (kept.mode, kept.uid, kept.gid, kept.mtime_ns)
            behind = _KEPT.pack(*(-1 if value is None else value for value in values))
    numbers = _NUMBERS.pack(info.size_bytes, info.mtime_ns, flags)
    # No ETag has a newline (`wire`).
    texts = f"{info.etag}\n{info.storage_class}".encode("utf-8", "surrogatepass")
    return numbers + texts + behind


def _unpack(key: bytes, packed: bytes) -> ObjectInfo:
    size_bytes, mtime_ns, flags = _NUMBERS.unpack_from(packed)
    attributes = NOTHING if flags & _TOLD else None
    end = len(packed)
    if flags & _ANY:
        end -= _KEPT.size
        values = _KEPT.unpack_from(packed, end)
        attributes = FileAttributes(*(None if value < 0 else value for value in values))
    texts = packed[_NUMBERS.size : end].decode("utf-8", "surrogatepass")
    etag, _, storage_class = texts.partition("\n")
    restored = bool(flags & _RESTORED)
    return ObjectInfo(key, size_bytes, mtime_ns, etag, storage_class, restored, attributes)


class InodeTable:
    """All inodes that kernel or handles hold. Thread-safe; no method waits.

    `prefix` is what the root directory stands for, `bits` how long numbers are.
    """

    def __init__(self, prefix: bytes, bits: int = LONG_BITS) -> None:
        # constants
        self._bits = bits
        self.root = Inode(ROOT, None, prefix, None, fresh_until_s=float("inf"), lookups=1)
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._inodes: dict[InodeNumber, Inode] = {ROOT: self.root}
        #: Numbers that versions would have, to those of the inodes that have become them.
        self._aliases: dict[int, InodeNumber] = {}
        self._alias_of: dict[InodeNumber, int] = {}
        self._unborn = itertools.count(1)

        self.forgotten = 0  #: how many have gone so far

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
                inode = Inode(number, parent, entry.name, entry.info)
                self._inodes[number] = inode
            elif entry.info is not None:
                inode.describe(entry.info)  # a copy of equal content has a new mtime
            inode.fresh_until_s = max(fresh_until_s, inode.fresh_until_s)
            inode.lookups += 1
            return inode

    def told(self, parent: Inode, entry: Entry, now_s: float) -> Entry | None:
        """Return a listed file with the attributes that it keeps, if its inode knows them."""
        inode = self._inodes.get(self.number_of(parent, entry))
        if inode is None or inode.fresh_until_s <= now_s:
            return None
        info = inode.info
        return None if info is None or info.attributes is None else Entry(entry.name, info)

    def looked_up_again(self, inode: Inode) -> None:
        """Count a lookup of an inode that is known to be what was looked for."""
        with self._lock:
            inode.lookups += 1

    def create(self, parent: Inode, name: bytes, mtime_ns: int) -> Inode:
        """Return the inode of a new file, of no version, counting one lookup and one open."""
        key = parent.key + name
        with self._lock:
            info = ObjectInfo(key, 0, mtime_ns, self._no_version())
            number = self._number(parent, Entry(name, info))
            inode = Inode(number, parent, name, info, lookups=1)
            inode.opens = 1
            self._inodes[number] = inode
            return inode

    def uncreate(self, inode: Inode) -> None:
        """Undo `create`: there is no such file after all."""
        self.forget(inode.number, 1)
        self.released(inode)

    def became(
        self, inode: Inode, info: ObjectInfo, fresh_until_s: float, *, paged: Paged = Paged.SOME
    ) -> None:
        """Note that an inode is this version from now on: it was written through it.

        `paged`: the kernel may hold pages of it, as of all that was written.
        """
        with self._lock:
            inode.describe(info)
            inode.fresh_until_s = fresh_until_s
            inode.paged = paged
            self._alias(inode)

    def disown(self, inode: Inode, info: ObjectInfo | None = None) -> None:
        """Note that an inode is no version: what the kernel has of it is not what is stored.

        For who still has it open it is as large and as old as `info`, or empty, and keeps the same.
        """
        with self._lock:
            self._drop_alias(inode)
            inode.fresh_until_s = 0.0
            if inode.info is not None:
                info = info or ObjectInfo(inode.key, 0, 0, "")
                inode.describe(replace(info, key=inode.key, etag=self._no_version()))

    def find(self, parent: Inode, entry: Entry) -> Inode | None:
        """Return the inode of `entry`, if anybody holds it."""
        with self._lock:
            return self._inodes.get(self._number(parent, entry))

    def moved(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Give an inode another name. With a directory go all that are below it."""
        with self._lock:
            inode.parent, inode.name = parent, name
            moved = [inode]
            if inode.is_directory:
                moved = [each for each in self._inodes.values() if each.is_below(inode)]
            for each in moved:
                each.refresh()
            for each in moved:  # whose keys are made of their directories' by now
                self._alias(each)

    def number_of(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number that a lookup of `entry` would give, without counting one."""
        with self._lock:
            return self._number(parent, entry)

    def below(self, key: bytes) -> list[Inode]:
        """Return the inodes of a key, as a file and as a directory, and of all below it."""
        inodes = list(self._inodes.values())  # one step of the interpreter
        place = key + b"/" if key and not key.endswith(b"/") else key
        return [each for each in inodes if each.key.startswith(place) or each.key == key]

    def opened(self, inode: Inode) -> None:
        """Count an open handle."""
        with self._lock:
            inode.opens += 1

    def released(self, inode: Inode) -> None:
        """Uncount an open handle."""
        with self._lock:
            inode.opens -= 1
            self._drop_unheld(inode)

    def forget(self, number: InodeNumber, lookups: int) -> Inode | None:
        """Uncount what the kernel no longer holds; return the inode if it is gone now.

        The kernel forgets a million at once: this takes a microsecond of each.
        """
        with self._lock:
            inode = self._inodes.get(number)
            if inode is None or inode is self.root:
                return None
            inode.lookups = max(inode.lookups - lookups, 0)
            return inode if self._drop_unheld(inode) else None

    def compact(self) -> None:
        """Give back the room of those that have gone: by itself a dict never shrinks.

        Takes 50 ns for each that is left, in which nobody is answered.
        """
        with self._lock:
            self._inodes = dict(self._inodes)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            for number, inode in self._inodes.items():
                assert inode.number == number < 1 << self._bits
                assert inode.lookups > 0 or inode.opens > 0, inode
            assert self._alias_of == {number: alias for alias, number in self._aliases.items()}
            for alias, number in self._aliases.items():
                assert alias == self._digest(self._inodes[number].key, self._inodes[number].info)

    def _number(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number of the entry's inode, or a free one for it (lock held)."""
        key = _key(parent, entry)
        number = self._digest(key, entry.info)
        number = self._aliases.get(number, number)
        while True:
            inode = self._inodes.get(InodeNumber(number))
            if inode is None:
                return InodeNumber(number)
            same = inode.parent is parent and inode.name == entry.name
            if (same or inode.key == key) and inode.is_version(entry):
                return InodeNumber(number)
            number = max((number + 1) % (1 << self._bits), ROOT + 1)

    def _drop_unheld(self, inode: Inode) -> bool:
        if inode.lookups > 0 or inode.opens > 0:
            return False
        self.forgotten += 1
        self._inodes.pop(inode.number, None)
        self._drop_alias(inode)
        return True

    def _alias(self, inode: Inode) -> None:
        """Let an inode be found by the number that its key and version have now."""
        self._drop_alias(inode)
        number = self._digest(inode.key, inode.info)
        if number == inode.number:
            return
        # Equal content, written again after it was deleted: the last inode is the one.
        other = self._aliases.get(number)
        if other is not None:
            del self._alias_of[other]
        self._aliases[number] = inode.number
        self._alias_of[inode.number] = number

    def _drop_alias(self, inode: Inode) -> None:
        number = self._alias_of.pop(inode.number, None)
        if number is not None:
            del self._aliases[number]

    def _digest(self, key: bytes, info: ObjectInfo | None) -> int:
        return digest(key, info, self._bits)

    def _no_version(self) -> str:
        """Return an ETag that no object has: those are quoted."""
        return f"unborn-{next(self._unborn)}"


def digest(key: bytes, info: ObjectInfo | None, bits: int) -> int:
    """Return a number of so many bits, above the root's, for a key and a version. Pure."""
    version = b"" if info is None else f"{info.etag}\n{info.size_bytes}".encode()
    # A NUL ends the key: none that can be reached has one.
    value = hashlib.blake2b(key + b"\0" + version, digest_size=bits // 8).digest()
    return max(int.from_bytes(value, "little"), ROOT + 1)


def _key(parent: Inode, entry: Entry) -> bytes:
    return parent.key + entry.name + (b"/" if entry.info is None else b"")
