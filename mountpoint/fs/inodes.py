"""The inode table: numbers, lookup counts, versions. No I/O.

The kernel uses an inode number from the lookup that returned it until it has forgotten as many
lookups as it made. Each *version* of an object (its ETag) has its own inode number, because the
kernel keeps a number's pages across opens: so cached pages never belong to another version. A
directory has one number.

A number is a digest of key and version. So a listing shows the same number as a later lookup, and
a file has the same number in each mount, although nothing is stored. Two live inodes never share a
number: the second takes the next free one. With 32 bits (--inode32) that is not rare: a million
files have 116 pairs of equal digests. For those a listing may show another number than the lookup.

A file that is written here has its number before it has a version, and keeps it when the upload
gives it one: the kernel's pages hold what was written. Lookups of that version find the inode by an
alias.
"""

import hashlib
import itertools
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import NewType

from mountpoint.errors import StaleInode
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes, formatted, parsed
from mountpoint.fs.session.log import SessionLog, text_of
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import NO_METADATA, ObjectInfo

InodeNumber = NewType("InodeNumber", int)

#: FUSE_ROOT_ID
ROOT = InodeNumber(1)

#: Length of a number in bits. CPython stores integers in digits of 30 bits, and keeps the room that
#: a sum or a shift needed on the way. A million numbers have two equal ones in 1 of 150,000 cases.
LONG_BITS = 56
#: What 32-bit programs without large-file support can get from stat(2) and readdir(3).
SHORT_BITS = 32

#: Size, mtime, flags: packed in front of ETag and storage class.
_NUMBERS = struct.Struct("<qqB")
#: Flags: the object is restored; its metadata is known; it has file attributes.
_RESTORED, _HAS_METADATA, _HAS_ATTRIBUTES = 1, 2, 4
#: Mode, owners and time, at the end; -1 stands for an attribute that is not kept.
_KEPT = struct.Struct("<iqqq")


class PageState(IntEnum):
    """How much of a file the kernel may have cached: no page, some pages, or all."""

    NOT = 0
    SOME = 1
    ALL = 2


class Inode:
    """A directory, or one version of an object.

    A `find` makes the kernel hold millions of them. So a file's key is built from its directory's
    key and its name, the `ObjectInfo` is packed into one `bytes`, and numbers are short. An inode
    takes 340 bytes instead of 800 (CPython 3.11, names of 30 bytes in keys of 60, ETags of 32
    digits).

    `parent` is the directory of the inode; the root has None, and its `name` is its prefix.
    `lookups` is the kernel's count, `opens` the number of our open handles; an inode stays while
    either is positive. The attributes are valid until `fresh_until_s` (monotonic clock). `paged`
    says how much was read, so how much the kernel may have cached.
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
        self._prefix: bytes | None = None  # directories only
        if info is None:
            self._prefix = name if parent is None else parent.key + name + b"/"
        self._packed = None if info is None else _pack(info)
        self.fresh_until_s = fresh_until_s
        self.lookups = lookups
        self.opens = 0
        self.paged = PageState.NOT

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self._packed is None

    @property
    def key(self) -> bytes:
        """The object's key, or the directory's prefix."""
        if self._prefix is not None:
            return self._prefix
        parent = self.parent
        if parent is None or parent._prefix is None:
            return self.directory + self.name
        return parent._prefix + self.name  # the usual case, in one call

    def is_below(self, other: "Inode") -> bool:
        """Whether it is the directory `other`, or anything below it."""
        inode: Inode | None = self
        while inode is not None and inode is not other:
            inode = inode.parent
        return inode is not None

    def refresh(self) -> None:
        """Compute the prefix again, after a directory above was renamed."""
        if self._prefix is not None and self.parent is not None:
            self.parent.refresh()
            self._prefix = self.parent.key + self.name + b"/"

    @property
    def directory(self) -> bytes:
        """The prefix of its directory; the root is its own directory."""
        return self.name if self.parent is None else self.parent.key

    @property
    def info(self) -> ObjectInfo | None:
        """The object as S3 described it; None for a directory. Unpacked at each call.

        Of its metadata only the file attributes are kept.
        """
        return None if self._packed is None else _unpack(self.key, self._packed)

    @property
    def stored(self) -> tuple[int, int, FileAttributes] | None:
        """The object's size, time (ns) and file attributes, faster than `info`; None as there."""
        if self._packed is None:
            return None
        size_bytes, mtime_ns, flags = _NUMBERS.unpack_from(self._packed)
        kept = _attributes(self._packed) if flags & _HAS_ATTRIBUTES else NOTHING
        return size_bytes, mtime_ns, kept

    def set_info(self, info: ObjectInfo) -> None:
        """Replace the description with a newer one of the same version."""
        self._packed = _pack(info)

    def is_version(self, entry: Entry) -> bool:
        """Whether `entry` is this directory, or this version of this object."""
        if self._packed is None or entry.info is None:
            return self.is_directory and entry.is_directory
        packed, other = self._packed, _pack(entry.info)
        # The usual case; the rest takes ten times as long. Mtime and flags lie in between.
        if packed[:8] == other[:8] and packed[_NUMBERS.size :] == other[_NUMBERS.size :]:
            return True
        info = _unpack(self.key, self._packed)
        return info.etag == entry.info.etag and info.size_bytes == entry.info.size_bytes


def _pack(info: ObjectInfo) -> bytes:
    flags = _RESTORED if info.restored else 0
    behind = b""
    if info.metadata is not None:
        flags |= _HAS_METADATA
        kept = parsed(info.metadata) if info.metadata else NOTHING
        if kept is not NOTHING and kept != NOTHING:
            flags |= _HAS_ATTRIBUTES
            values = (kept.mode, kept.uid, kept.gid, kept.mtime_ns)
            behind = _KEPT.pack(*(-1 if value is None else value for value in values))
    numbers = _NUMBERS.pack(info.size_bytes, info.mtime_ns, flags)
    # No ETag has a newline (`s3/wire`).
    texts = f"{info.etag}\n{info.storage_class}".encode("utf-8", "surrogatepass")
    return numbers + texts + behind


def _attributes(packed: bytes) -> FileAttributes:
    mode, uid, gid, mtime_ns = _KEPT.unpack_from(packed, len(packed) - _KEPT.size)
    return FileAttributes(
        None if mode < 0 else mode,
        None if uid < 0 else uid,
        None if gid < 0 else gid,
        None if mtime_ns < 0 else mtime_ns,
    )


def _unpack(key: bytes, packed: bytes) -> ObjectInfo:
    size_bytes, mtime_ns, flags = _NUMBERS.unpack_from(packed)
    metadata = NO_METADATA if flags & _HAS_METADATA else None
    end = len(packed)
    if flags & _HAS_ATTRIBUTES:
        end -= _KEPT.size
        metadata = formatted(_attributes(packed))
    texts = packed[_NUMBERS.size : end].decode("utf-8", "surrogatepass")
    etag, _, storage_class = texts.partition("\n")
    restored = bool(flags & _RESTORED)
    return ObjectInfo(key, size_bytes, mtime_ns, etag, storage_class, restored, metadata)


class InodeTable:
    """All inodes that the kernel or open handles hold. Thread-safe; no method waits.

    `prefix` is the key prefix of the root directory, `bits` the length of the numbers. `log` gets
    the directories, which another process needs to go on. `on_drop` is called with the number of
    each inode that goes.
    """

    def __init__(
        self,
        prefix: bytes,
        bits: int = LONG_BITS,
        log: SessionLog | None = None,
        on_drop: Callable[[int], None] = lambda number: None,
    ) -> None:
        # dependencies
        self._log = log
        self._on_drop = on_drop
        # constants
        self._bits = bits
        self.root = Inode(ROOT, None, prefix, None, fresh_until_s=float("inf"), lookups=1)
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._inodes: dict[InodeNumber, Inode] = {ROOT: self.root}
        #: From the number that a version would have to the number of the inode that has become it.
        self._aliases: dict[int, InodeNumber] = {}
        self._alias_of: dict[InodeNumber, int] = {}
        self._removed: set[InodeNumber] = set()  # directories
        self._disowned: set[InodeNumber] = set()  # files that are no version any more
        self._unborn = itertools.count(1)

        self.forgotten = 0  #: how many inodes have been dropped so far

    def __len__(self) -> int:
        return len(self._inodes)

    def get(self, number: InodeNumber) -> Inode:
        """Return the inode. Raises StaleInode for a number that is not in use."""
        try:
            return self._inodes[number]
        except KeyError:
            raise StaleInode(f"inode {number} has been forgotten") from None

    def is_fresh(self, number: InodeNumber, now_s: float) -> bool:
        """Whether the kernel has looked up this inode, and its attributes are valid."""
        inode = self._inodes.get(number)
        return inode is not None and inode.lookups > 0 and inode.fresh_until_s > now_s

    def looked_up(self, parent: Inode, entry: Entry, fresh_until_s: float) -> Inode:
        """Return the inode of `entry`, and count a lookup. A new version gets a new inode."""
        with self._lock:
            number, inode = self._place(parent, entry)
            if inode is None:
                inode = Inode(number, parent, entry.name, entry.info)
                self._inodes[number] = inode
                if self._removed:
                    self._alias(inode)  # its number may be that after a removed one
                if entry.info is None and self._log is not None:
                    self._note(inode)
            elif entry.info is not None:
                inode.set_info(entry.info)  # a copy of equal content has a new mtime
            if fresh_until_s > inode.fresh_until_s:
                inode.fresh_until_s = fresh_until_s
            inode.lookups += 1
            return inode

    def with_metadata(self, parent: Inode, entry: Entry, now_s: float) -> Entry | None:
        """Return a listed file with its metadata, if its inode has a recent one; else None."""
        inode = self._inodes.get(self.number_of(parent, entry))
        if inode is None or inode.fresh_until_s <= now_s:
            return None
        info = inode.info
        return None if info is None or info.metadata is None else Entry(entry.name, info)

    def looked_up_again(self, inode: Inode) -> bool:
        """Count a lookup of an inode that the caller has found; False: it is gone by now."""
        with self._lock:
            if self._inodes.get(inode.number) is not inode:
                return False
            inode.lookups += 1
            return True

    def create(self, parent: Inode, name: bytes, mtime_ns: int) -> Inode:
        """Return the inode of a new file, which has no version. Count one lookup and one open."""
        key = parent.key + name
        with self._lock:
            info = ObjectInfo(key, 0, mtime_ns, self._no_version())
            number, _ = self._place(parent, Entry(name, info))
            inode = Inode(number, parent, name, info, lookups=1)
            inode.opens = 1
            self._inodes[number] = inode
            return inode

    def restore_directory(self, number: InodeNumber, parent: Inode, name: bytes) -> Inode:
        """Add a directory that the kernel knows from another process of this mount."""
        return self._restore(Inode(number, parent, name, None))

    def restore_file(
        self, number: InodeNumber, parent: Inode, name: bytes, version: ObjectInfo | None
    ) -> Inode:
        """Add a file that the kernel knows from another process of this mount.

        `version`: None if it has none, because it was being written.
        """
        info = version or ObjectInfo(parent.key + name, 0, 0, self._no_version())
        inode = self._restore(Inode(number, parent, name, info))
        if version is None:
            self._disowned.add(number)
        return inode

    def uncreate(self, inode: Inode) -> None:
        """Undo `create`: the file does not come into being."""
        self.forget(inode.number, 1)
        self.released(inode)

    def became(
        self,
        inode: Inode,
        info: ObjectInfo,
        fresh_until_s: float,
        *,
        paged: PageState = PageState.SOME,
    ) -> None:
        """Note that an inode is the version `info` from now on: it was written through the inode.

        `paged`: how much of it the kernel may have cached.
        """
        with self._lock:
            inode.set_info(info)
            inode.fresh_until_s = fresh_until_s
            inode.paged = paged
            self._disowned.discard(inode.number)
            self._alias(inode)

    def disown(self, inode: Inode, info: ObjectInfo | None = None) -> None:
        """Note that an inode is no version any more: the kernel's pages differ from the object.

        Open handles see the size, time and attributes of `info`, or an empty file without it.
        """
        with self._lock:
            self._drop_alias(inode)
            inode.fresh_until_s = 0.0
            if inode.info is not None:
                info = info or ObjectInfo(inode.key, 0, 0, "")
                inode.set_info(replace(info, key=inode.key, etag=self._no_version()))
                if self._inodes.get(inode.number) is inode:
                    self._disowned.add(inode.number)

    def find(self, parent: Inode, entry: Entry) -> Inode | None:
        """Return the inode of `entry`, if there is one."""
        with self._lock:
            return self._place(parent, entry)[1]

    def moved(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Give an inode another name. A directory takes along all inodes below it."""
        with self._lock:
            inode.parent, inode.name = parent, name
            moved = [inode]
            if inode.is_directory:
                moved = [each for each in self._inodes.values() if each.is_below(inode)]
            for each in moved:
                each.refresh()
            for each in moved:  # after all of them have their new keys
                self._alias(each)
            if inode.is_directory:
                self._note(inode)

    def move_others(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, *, versions: bool
    ) -> None:
        """Give the disowned inodes of a file its new name; with `versions`, those of any version.

        The kernel may know the file by one of them, and goes on with it after a rename, without a
        lookup. What a program then writes through that inode goes to its key. With `versions` this
        looks at every inode.
        """
        with self._lock:
            all_ = self._inodes.values() if versions else map(self.get, self._disowned)
            found = [each for each in all_ if each.parent is parent and each.name == name]
            for inode in found:
                if not inode.is_directory:
                    inode.parent, inode.name = to, new_name
                    self._alias(inode)

    def removed(self, parent: Inode, name: bytes) -> None:
        """Note that the kernel has removed a directory. If one is made there again, it is another.

        The kernel lets nothing be in an inode that it has removed, and programs may keep that for
        long: as their working directory, or with an open file.
        """
        with self._lock:
            number, inode = self._place(parent, Entry(name, None))
            if inode is None:
                return
            self._removed.add(number)
            self._drop_alias(inode)
            if self._log is not None:
                self._log.drop("directory", number)

    def number_of(self, parent: Inode, entry: Entry) -> InodeNumber:
        """Return the number that a lookup of `entry` would give, without counting one."""
        with self._lock:
            return self._place(parent, entry)[0]

    def below(self, key: bytes) -> list[Inode]:
        """Return the inodes of a key, as a file and as a directory, and of all keys below it."""
        inodes = list(self._inodes.values())  # one step of the interpreter
        directory = key + b"/" if key and not key.endswith(b"/") else key
        return [each for each in inodes if each.key.startswith(directory) or each.key == key]

    def opened(self, inode: Inode) -> None:
        """Count an open handle."""
        with self._lock:
            inode.opens += 1

    def released(self, inode: Inode) -> None:
        """Subtract an open handle."""
        with self._lock:
            inode.opens -= 1
            self._drop_unheld(inode)

    def forget(self, number: InodeNumber, lookups: int) -> Inode | None:
        """Subtract lookups that the kernel has forgotten; return the inode if that removed it.

        The kernel forgets a million inodes at once. This takes one microsecond per inode.
        """
        with self._lock:
            inode = self._inodes.get(number)
            if inode is None or inode is self.root:
                return None
            inode.lookups = max(inode.lookups - lookups, 0)
            return inode if self._drop_unheld(inode) else None

    def compact(self) -> None:
        """Release the memory of removed inodes: a dict does not shrink by itself.

        Takes 50 ns for each inode that is left, and blocks all other calls meanwhile.
        """
        with self._lock:
            self._inodes = dict(self._inodes)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            for number, inode in self._inodes.items():
                assert inode.number == number < 1 << self._bits
                assert inode.lookups > 0 or inode.opens > 0, inode
            assert self._removed <= self._inodes.keys()
            assert self._disowned <= self._inodes.keys()
            assert self._alias_of == {number: alias for alias, number in self._aliases.items()}
            for alias, number in self._aliases.items():
                inode = self._inodes[number]
                assert alias == digest(inode.key, inode.info, self._bits)

    def _place(self, parent: Inode, entry: Entry) -> tuple[InodeNumber, Inode | None]:
        """Return the entry's inode with its number, or None and a free number (lock held)."""
        key = parent.key + entry.name
        if entry.info is None:
            key += b"/"
        number = digest(key, entry.info, self._bits)
        number = self._aliases.get(number, number)
        while True:
            inode = self._inodes.get(InodeNumber(number))
            if inode is None:
                return InodeNumber(number), None
            same = inode.parent is parent and inode.name == entry.name
            alike = (same or inode.key == key) and inode.is_version(entry)
            if alike and number not in self._removed:
                return InodeNumber(number), inode
            number = max((number + 1) % (1 << self._bits), ROOT + 1)

    def _restore(self, inode: Inode) -> Inode:
        # How often the kernel has looked it up is not known. It will forget all of that at once.
        inode.lookups = 1
        with self._lock:
            self._inodes[inode.number] = inode
            self._alias(inode)
        return inode

    def _drop_unheld(self, inode: Inode) -> bool:
        if inode.lookups > 0 or inode.opens > 0 or self._inodes.get(inode.number) is not inode:
            return False
        self.forgotten += 1
        del self._inodes[inode.number]
        self._on_drop(inode.number)
        self._removed.discard(inode.number)
        self._disowned.discard(inode.number)
        self._drop_alias(inode)
        if self._log is not None and inode.is_directory:
            self._log.drop("directory", inode.number)
        return True

    def _note(self, directory: Inode) -> None:
        """Note a directory for another process."""
        parent = directory.parent
        if self._log is not None and parent is not None:
            fields = {"parent": parent.number, "name": text_of(directory.name)}
            self._log.note("directory", directory.number, fields)

    def _alias(self, inode: Inode) -> None:
        """Make the inode findable by the number of its present key and version."""
        self._drop_alias(inode)
        if self._inodes.get(inode.number) is not inode or inode.number in self._removed:
            return  # it was forgotten, or removed
        number = digest(inode.key, inode.info, self._bits)
        if number == inode.number:
            return
        # Equal content was deleted and written again: the last inode takes the alias.
        other = self._aliases.get(number)
        if other is not None:
            del self._alias_of[other]
        self._aliases[number] = inode.number
        self._alias_of[inode.number] = number

    def _drop_alias(self, inode: Inode) -> None:
        number = self._alias_of.pop(inode.number, None)
        if number is not None:
            del self._aliases[number]

    def _no_version(self) -> str:
        """Return an ETag that no object can have: S3's are quoted."""
        return f"unborn-{next(self._unborn)}"


def digest(key: bytes, info: ObjectInfo | None, bits: int) -> int:
    """Return a number of `bits` bits, above the root's, for a key and a version. Pure."""
    version = b"" if info is None else f"{info.etag}\n{info.size_bytes}".encode()
    # A NUL ends the key: keys that can be reached have none.
    value = hashlib.blake2b(key + b"\0" + version, digest_size=bits // 8).digest()
    return max(int.from_bytes(value, "little"), ROOT + 1)
