"""The bucket as a file system: one short method per FUSE operation.

Takes and returns this program's own types and raises domain errors; `operations.py` translates
both for llfuse. Thread-safe. `mount/build` puts its parts together. The consistency contract in
short (docs/semantics.md has all of it):

* `open` asks S3, in the request that fetches the first bytes. When the object is no longer
  the inode's version, StaleInode makes the kernel look the name up again.
* An open file stays one version of the object until it is closed.
* An attribute or a name may be `ttl_s` old. The kernel is told how much of that is left, so that
  the age of its cache and of ours do not add up.
* Of a file that is being written, other programs see name, size and time only, until its object
  exists (`fs/writes/streamed`).
"""

import contextlib
import math
import os
import time
from functools import partial
from typing import NamedTuple

from mountpoint.errors import (
    BadHandle,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    NotFound,
    PreconditionFailed,
    StaleInode,
    Superseded,
)
from mountpoint.fs.attributes import Attributes, AttributeView
from mountpoint.fs.caches import Caches
from mountpoint.fs.directories import ENTRIES_PER_READ, Directories, DirectoryEntry
from mountpoint.fs.handles import DirectoryHandle, HandleNumber, HandleTable, OpenFile
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable
from mountpoint.fs.open import Opener
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes
from mountpoint.fs.prepared import Preparer
from mountpoint.fs.resolver import Resolver
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.readers import Readers
from mountpoint.fs.writes.rename import Renamer
from mountpoint.fs.writes.reopen import ReopenedInodes
from mountpoint.fs.writes.unlink import Remover
from mountpoint.listing import tree
from mountpoint.native._handles import FIRST_HANDLE, NativeHandles
from mountpoint.native._lane import unregister
from mountpoint.read.stream import Bytes
from mountpoint.s3.client import ObjectInfo
from mountpoint.system.memory import drop_leftovers, give_back

#: The kernel learns the attributes of so many entries of each listing, and those of the others once
#: programs look some of them up. It then keeps an inode for each, and so does the mount: 330 bytes.
#: An entry with attributes takes twice the CPU time; its lookup, which takes longer, is saved, if a
#: program comes to it within the ttl.
MANY_ENTRIES = 10_000
#: The same with a short ttl, within which a program comes to fewer.
FEW_ENTRIES = 2_000
LONG_TTL_S = 60.0

#: How long after a truncation the kernel may not have its answer yet.
RESIZED_S = 1.0

#: Inodes of 3 MB. Memory is given back when at least this many inodes, and as many as are left,
#: have been forgotten, so that the cost per inode stays small; and only after a second without
#: forgets, because they come in batches.
MANY_FORGOTTEN = 10_000


class UnfinishedFile(NamedTuple):
    """A file that is being written. `pending_bytes` of `size_bytes` are not yet in S3.

    `survives`: another process of the mount can go on with it.
    """

    path: str
    size_bytes: int
    pending_bytes: int
    survives: bool


class FileSystem:
    """The bucket, from `prefix` down, as a tree of files.

    Offsets and sizes are in bytes. Methods raise OperationErrors (`errors` has their errnos).
    Attributes of directories and open files are valid for `ttl_s`.
    """

    def __init__(
        self,
        *,
        inodes: InodeTable,
        resolver: Resolver,
        local: OverlayNames,
        caches: Caches,
        files: HandleTable[OpenFile],
        native_handles: NativeHandles,
        open_directories: HandleTable[DirectoryHandle],
        directories: Directories,
        opener: Opener,
        preparer: Preparer,
        readers: Readers,
        reopened: ReopenedInodes,
        backend: WriteBackend,
        remover: Remover,
        renamer: Renamer,
        attribute_view: AttributeView,
        resized: dict[InodeNumber, float],
        ttl_s: float,
    ) -> None:
        # dependencies
        self._inodes = inodes
        self._resolver = resolver
        self._local = local
        self._caches = caches
        self._files = files
        self._native_handles = native_handles
        self._open_directories = open_directories
        self._directories = directories
        self._opener = opener
        self.preparer = preparer
        self._readers = readers
        self._reopened = reopened
        self._backend = backend
        self._remover = remover
        self._renamer = renamer
        self._attribute_view = attribute_view
        # constants
        self._ttl_s = ttl_s
        # mutable
        self.resized = resized  # until when a truncation may be unknown
        self._looked_up_in = InodeNumber(0)  # the directory of the last lookup
        # mutable, used by `sweep` only: inodes forgotten by its last call, and its last give-back
        self._forgotten = 0
        self._given_back = 0

    # --- names and attributes ---

    def lookup(self, parent: InodeNumber, name: bytes, thread: int = 0) -> Attributes:
        """Return the attributes of a child to a thread, and count a lookup of its inode."""
        if self._reopened.expected:
            self._reopened.looked_up(thread)
        directory = self._directory(parent)
        self._looked_up_in = parent
        if len(name) > tree.MAX_NAME_BYTES:
            raise NameTooLong(f"{len(name)} bytes; a name may have at most {tree.MAX_NAME_BYTES}")
        writer = self._local.file(directory.key, name)
        if writer is not None and self._inodes.looked_up_again(writer.inode):
            return self._attribute_view.attributes(writer.inode, 0.0)
        refreshes = self._caches.refreshes
        try:
            entry, fresh_until_s = self._resolver.resolve(directory, name)
        except NoSuchEntry:
            self._readers.came_to(directory.key + name)
            raise
        if refreshes != self._caches.refreshes:  # the answer may be older than the refresh
            fresh_until_s = 0.0
        if self._readers.expected:
            self._readers.make_way(directory, entry)
        inode = self._inodes.looked_up(directory, entry, fresh_until_s)
        if self.preparer.fetches and entry.info is not None:
            self.preparer.looked_up(inode)
        return self._attribute_view.attributes(inode, inode.fresh_until_s - time.monotonic())

    def getattr(self, number: InodeNumber, thread: int = 0) -> Attributes:
        """Return the attributes of an inode to a thread; asks S3 when they are too old.

        Raises StaleInode when the inode is not the newest version, NoSuchEntry, and S3Errors.
        """
        inode = self._inodes.get(number)
        if self._local.writer(inode) is not None:
            return self._attribute_view.attributes(inode, 0.0)
        # An open file keeps its version, and attributes of directories do not change.
        if inode.is_directory or inode.opens:
            return self._attribute_view.attributes(inode, self._ttl_s)
        left_s = inode.fresh_until_s - time.monotonic()
        if left_s > 0:
            return self._attribute_view.attributes(inode, left_s)
        if self._native_handles.is_open(number):
            return self._attribute_view.attributes(inode, self._ttl_s)
        refreshes = self._caches.refreshes
        entry, fresh_until_s = self._resolver.resolve(inode.parent or inode, inode.name)
        if not inode.is_version(entry):
            if inode.is_directory or not self._reopened.is_reopened(inode, thread):
                raise StaleInode("the object was replaced")
            self._reopened.catch_up(inode)
            return self._attribute_view.attributes(inode, inode.fresh_until_s - time.monotonic())
        if entry.info is not None:
            inode.set_info(entry.info)
        if refreshes == self._caches.refreshes:
            inode.fresh_until_s = fresh_until_s
        return self._attribute_view.attributes(inode, fresh_until_s - time.monotonic())

    def forget(self, number: InodeNumber, lookups: int) -> None:
        """Subtract lookups from an inode's count; forget a directory's listing with its inode.

        A listing is small, but the interpreter returns a page of memory to the system only when
        it is empty: the listings of 10,000 directories held all the memory of a million files.
        """
        inode = self._inodes.forget(number, lookups)
        if inode is not None and inode.is_directory:
            self._resolver.forget_directory(inode.key)

    def sweep(self) -> None:
        """Drop expired listings, and give memory back after many forgets. Called once a second."""
        self._caches.sweep()
        for number in self._native_handles.take_unknown():
            with contextlib.suppress(BadHandle):
                self.release(HandleNumber(number))
        now_s = time.monotonic()
        for number in [each for each, until_s in self.resized.copy().items() if until_s <= now_s]:
            self.resized.pop(number, None)
        forgotten = self._inodes.forgotten
        enough = max(MANY_FORGOTTEN, len(self._inodes))
        if forgotten == self._forgotten and forgotten - self._given_back >= enough:
            self._inodes.compact()
            drop_leftovers()
            give_back()
            self._given_back = forgotten
        self._forgotten = forgotten

    def access(self, number: InodeNumber, mask: int, uid: int, gid: int) -> bool:
        """Whether the user may do `mask` (R_OK, W_OK, X_OK).

        With the option default_permissions the kernel checks this itself.
        """
        return self.getattr(number).allow(mask, uid, gid)

    def set_attributes(
        self,
        number: InodeNumber,
        *,
        size_bytes: int | None,
        mtime_ns: int | None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        handle: HandleNumber | None = None,
        thread: int = 0,
    ) -> Attributes:
        """Set the size, if the writing back end allows it, or other attributes (`AttributeStore`).

        `handle` is the open file that ftruncate was called on; None for truncate. `thread` is the
        thread that sends the request.
        """
        inode = self._inodes.get(number)
        try:
            if size_bytes is not None:
                truncate = partial(self._truncate, inode, size_bytes, handle)
                self.resized[number] = math.inf
                try:
                    self._reopened.up_to_date(inode, thread, truncate, os.O_TRUNC)
                finally:
                    self.resized[number] = time.monotonic() + RESIZED_S
                return self._attribute_view.attributes(inode, 0.0)  # it may be no version any more
            attributes = FileAttributes(mode, uid, gid, mtime_ns)
            writer = self._local.writer(inode)
            if writer is None or not writer.set_attributes(attributes):
                self._backend.set_attributes(inode, attributes)
        except Superseded:
            raise
        except (PreconditionFailed, NotFound, StaleInode):
            self._caches.disbelieve(inode)
            raise
        return self.getattr(number)

    # --- directories ---

    def opendir(self, number: InodeNumber, process: int = 0) -> HandleNumber:
        """Open a directory for a process."""
        directory = self._directory(number)
        return self._open_directories.add(self._directories.open(directory, process))

    def readdir(
        self, number: HandleNumber, position: int, count: int = ENTRIES_PER_READ
    ) -> list[DirectoryEntry]:
        """See Directories."""
        return self._directories.read(self._open_directories.get(number), position, count)

    def has_use_for_attributes(self, number: HandleNumber, position: int) -> bool:
        """Whether the kernel should learn the attributes of entries that a directory lists.

        If a directory has many, it learns those of the others once programs look some of them up.
        """
        if position < (MANY_ENTRIES if self._ttl_s >= LONG_TTL_S else FEW_ENTRIES):
            return True
        handle = self._open_directories.get(number)
        if self._looked_up_in == handle.inode.number:
            handle.looked_up = True
        return handle.looked_up

    def lookup_listed(self, number: HandleNumber, entry: DirectoryEntry) -> Attributes | None:
        """Look up an entry that an open directory lists, as `lookup` does, without a request.

        Returns None if it would need one, for a file that is being written, and if the kernel knows
        the entry from an earlier lookup.
        """
        if self._inodes.is_fresh(entry.inode, time.monotonic()):
            return None
        directory = self._open_directories.get(number).inode
        if self._local.file(directory.key, entry.name) is not None:
            return None
        refreshes = self._caches.refreshes
        known = self._resolver.known(directory, entry.name)
        if known is None or refreshes != self._caches.refreshes:
            return None
        inode = self._inodes.looked_up(directory, *known)
        return self._attribute_view.attributes(inode, inode.fresh_until_s - time.monotonic())

    def close_unknown_directory(self, request: int) -> None:
        """Close the directory that a dead process has opened for a request that comes again."""
        number = self._open_directories.made_for(request)
        if number is not None:
            with contextlib.suppress(BadHandle):  # that was done before
                self.releasedir(number)

    def releasedir(self, number: HandleNumber) -> None:
        """Close a directory."""
        self._directories.close(self._open_directories.remove(number))

    def mkdir(self, parent: InodeNumber, name: bytes) -> Attributes:
        """Create a directory, and count a lookup of it."""
        directory = self._directory(parent)
        entry = self._directories.make(directory, name)
        inode = self._inodes.looked_up(directory, entry, time.monotonic() + self._ttl_s)
        return self._attribute_view.attributes(inode, self._ttl_s)

    def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory."""
        directory = self._directory(parent)
        self._directories.remove(
            directory, self._resolver.resolve(directory, name, attributes=False)[0]
        )

    # --- files ---

    def create(
        self,
        parent: InodeNumber,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = NOTHING,
    ) -> tuple[HandleNumber, Attributes]:
        """Create a file for a process, and count a lookup of it."""
        handle = self._backend.create(self._directory(parent), name, flags, process, attributes)
        return self._files.add(handle), self._attribute_view.attributes(handle.inode, 0.0)

    def open(
        self, number: InodeNumber, flags: int, process: int = 0, thread: int = 0
    ) -> HandleNumber:
        """Open a file for a thread of a process, to read or to change it."""
        inode = self._inodes.get(number)
        if inode.is_directory:
            raise IsADirectory()
        open_it = partial(self._opener.open, inode, flags, process)
        return self._files.add(self._reopened.up_to_date(inode, thread, open_it, flags))

    def was_resized(self, file: OpenFile) -> bool:
        """Whether the kernel may not have the answer yet to a truncation of a file.

        Until then it believes in the size before. It must cache no pages that it reads meanwhile:
        they would have zeros in the place of what is no longer there. Nothing is to do while
        `resized` is empty.
        """
        return self.resized.get(file.inode.number, 0.0) > time.monotonic()

    def opened_before(
        self, request: int, *, creates: bool = False
    ) -> tuple[HandleNumber, Attributes] | None:
        """Return the file that a dead process has opened for a request that comes again.

        The kernel knows nothing of it. If it is staged, it is there, and the handle is the answer.
        Any other is closed: a file to read may have a newer version by now, and one that was
        to be streamed is lost. `creates`: the request also looks the file up.
        """
        number = self._files.made_for(request)
        inode = None if number is None else self.inode_of_file(number)
        if number is None or inode is None:
            return None
        if self._local.writer(inode) is not None:
            return number, self._attribute_view.attributes(inode, 0.0)
        self.release(number)
        if creates:
            self.forget(inode.number, 1)
        return None

    def read(self, number: HandleNumber, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        if number >= FIRST_HANDLE:
            data = self._native_handles.read(number, offset, size)
            if data is not None:
                return data
        return self._files.get(number).read(offset, size)

    def write(
        self, number: HandleNumber, offset: int, data: bytes, *, appends: bool = False
    ) -> int:
        """Write bytes to a file; return how many were accepted. `appends`: see OpenFile."""
        return self._files.get(number).write(offset, data, appends=appends)

    def flush(self, number: HandleNumber, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor of a file; `killed`: it is being killed."""
        self._files.get(number).flush(process, killed=killed)

    def give_up(self, number: int, process: int) -> bool:
        """Note that a process is killed while it waits in a write, `flush` or `fsync`.

        Returns whether it may end before that does: see OpenFile.
        """
        with contextlib.suppress(BadHandle):  # it was closed meanwhile
            return self._files.get(HandleNumber(number)).give_up(process)
        return False

    def fsync(self, number: HandleNumber) -> None:
        """Upload all that was written to a file."""
        self._files.get(number).fsync()

    def release(self, number: HandleNumber) -> None:
        """Close a file handle."""
        handle = self._files.remove(number)
        unregister(number)
        try:
            handle.release()
        finally:
            self._inodes.released(handle.inode)

    def has_bytes(self, number: HandleNumber) -> bool:
        """Whether an open file has any bytes to map."""
        info = self._files.get(number).inode.info
        return info is not None and info.size_bytes > 0

    def file(self, number: HandleNumber) -> OpenFile:
        """Return the handle of an open file."""
        return self._files.get(number)

    def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Delete a file."""
        self._remover.unlink(self._directory(parent), name)

    def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        *,
        replace: bool = True,
    ) -> None:
        """Rename a file or directory; replace the target if `replace` and the options allow it."""
        directory, to = self._directory(parent), self._directory(new_parent)
        self._renamer.rename(directory, name, to, new_name, replace=replace)

    # --- for mount-s3ctl and metrics ---

    def refresh(self, path: bytes) -> list[tuple[InodeNumber, bytes]]:
        """See Caches."""
        return self._caches.refresh(path)

    def version(self, path: bytes) -> ObjectInfo:
        """Return the version of the file at a path below the mount, as a lookup finds it."""
        directory, slash, name = (self._inodes.root.key + path).rpartition(b"/")
        directory += slash
        if self._local.file(directory, name) is not None:
            raise NoSuchEntry("it is being written")
        info = self._resolver.version(directory, name)
        if info is None:
            raise IsADirectory("it is a directory")
        return info

    def open_files(self) -> int:
        """Return the number of open file handles."""
        return len(self._files) + len(self._native_handles)

    def being_written(self) -> list[UnfinishedFile]:
        """Return the files whose latest content is not in S3."""
        return [
            UnfinishedFile(
                self.shown(each.inode.key), each.size_bytes, each.pending_bytes, each.survives
            )
            for each in self._local.writers()
            if not each.removed
        ]

    def needs_process(self) -> bool:
        """Whether a file is being written that another process could not go on with."""
        return not all(each.survives for each in self._local.writers())

    # --- for log lines ---

    def path_of(self, number: InodeNumber, name: bytes = b"") -> str:
        """Return the path below the mount of an inode, or of `name` in that directory."""
        try:
            inode = self._inodes.get(number)
        except StaleInode:
            return f"<inode {number}>"
        slash = b"" if inode.is_directory or not name else b"/"
        return self.shown(inode.key + slash + name)

    def inode_of_file(self, number: HandleNumber) -> Inode | None:
        """Return the inode of an open file; None for an unknown handle."""
        try:
            return self._files.get(number).inode
        except BadHandle:
            return None

    def path_of_handle(self, number: HandleNumber, *, directory: bool = False) -> str:
        """Return the path below the mount of an open file or directory."""
        try:
            handle = self._open_directories.get(number) if directory else self._files.get(number)
            return self.shown(handle.inode.key)
        except BadHandle:
            return f"<handle {number}>"

    def shown(self, key: bytes) -> str:
        """Return the path below the mount of a key."""
        return "/" + key[len(self._inodes.root.key) :].decode("utf-8", "backslashreplace")

    # --- inside ---

    def _truncate(self, inode: Inode, size_bytes: int, handle: HandleNumber | None) -> None:
        if handle is None:
            self._backend.truncate(inode, size_bytes)
        else:
            self._files.get(handle).truncate(size_bytes)

    def _directory(self, number: InodeNumber) -> Inode:
        inode = self._inodes.get(number)
        if not inode.is_directory:
            raise NotADirectory()
        return inode
