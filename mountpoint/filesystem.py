"""What S3 looks like as a file system: one short method per operation.

Types of this program in and out, domain errors raised; `operations.py` translates for
llfuse. Thread-safe; llfuse's lock is not held here. The consistency contract, in short
(docs/semantics.md has it whole):

* `open` asks S3, in the request that fetches the first bytes. When the object is no longer
  the inode's version, StaleInode makes the kernel look the name up again.
* An open file is one version of the object to the end.
* An attribute or a name may be `ttl_s` old. The kernel is told what is left of that, so that
  its cache and ours do not add up.

Without `asks_on_open` a version that is younger than `ttl_s` is opened unasked, and its first
read makes the first request. When that shows that the object is another one or gone, the read
fails, and from then on it is asked for.
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from mountpoint import tree
from mountpoint.config import FileSystemConfig
from mountpoint.errors import (
    BadHandle,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    NotFound,
    ObjectArchived,
    PreconditionFailed,
    ReadOnly,
    StaleInode,
)
from mountpoint.handles import DirectoryHandle, HandleNumber, HandleTable, ReadHandle
from mountpoint.inodes import Inode, InodeNumber, InodeTable
from mountpoint.listing.ahead import WalkAhead
from mountpoint.listing.lookups import Lookups
from mountpoint.listing.recent import Listings
from mountpoint.memory import drop_leftovers, give_back
from mountpoint.reading.stream import Bytes, ReadStream
from mountpoint.reading.streams import Streams
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import Patience
from mountpoint.tree import Entry

#: Must be restored before they can be read.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/archived-objects.html
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

#: Entries per answer to readdir: what fits into the kernel's page of 4096 bytes.
ENTRIES_PER_READ = 128

#: Inodes of 3 MB. Memory goes back when so many have gone, and as many as are left, so that this
#: takes little for each; and when no more have gone for a second, because they go in batches.
MANY_FORGOTTEN = 10_000

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows. `ttl_s` is how long the kernel may believe it."""

    inode: InodeNumber
    mode: int
    links: int
    size_bytes: int
    mtime_ns: int
    uid: int
    gid: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One line of readdir. `next_position` is where the line after it is read."""

    name: bytes
    inode: InodeNumber
    mode: int
    next_position: int


class FileSystem:
    """The bucket, from `prefix` down, as a tree of read-only files.

    `on_open` is called with the key of each file that is opened, before the kernel knows.
    """

    def __init__(
        self,
        client: ObjectClient,
        *,
        prefix: bytes,
        config: FileSystemConfig,
        streams: Streams,
        patience: Patience,
        on_open: Callable[[bytes], None] = lambda key: None,
    ) -> None:
        # dependencies
        self._on_open = on_open
        self._client = client
        self._config = config
        self._streams = streams
        self._patience = patience
        # constants
        self._mounted_at_ns = time.time_ns()
        # mutable, of `sweep` alone: how many inodes had gone when it last looked, and gave back
        self._forgotten = 0
        self._given_back = 0
        # mutable, each with a lock of its own
        self._inodes = InodeTable(prefix)
        self._listings = Listings(config.ttl_s, negative_ttl_s=config.negative_ttl_s)
        self._lookups = Lookups(
            client,
            patience,
            self._listings,
            ttl_s=config.ttl_s,
            negative_ttl_s=config.negative_ttl_s,
        )
        self._ahead = WalkAhead(client, patience, self._listings, config.ttl_s)
        self._files: HandleTable[ReadHandle] = HandleTable()
        self._directories: HandleTable[DirectoryHandle] = HandleTable()

    # --- names and attributes ---

    def lookup(self, parent: InodeNumber, name: bytes) -> Attributes:
        """Return the attributes of a child, and count a lookup of its inode."""
        directory = self._directory(parent)
        if len(name) > tree.MAX_NAME_BYTES:
            raise NameTooLong(f"{len(name)} bytes; a name has {tree.MAX_NAME_BYTES} at most")
        entry, fresh_until_s = self._lookups.find(directory.key, name)
        inode = self._inodes.looked_up(directory, entry, fresh_until_s)
        return self._attributes(inode, inode.fresh_until_s - time.monotonic())

    def getattr(self, number: InodeNumber) -> Attributes:
        """Return the attributes of an inode; asks S3 when they are too old."""
        inode = self._inodes.get(number)
        # An open file is its version to the end, and a directory has nothing that changes.
        if inode.is_directory or inode.opens:
            return self._attributes(inode, self._config.ttl_s)
        left_s = inode.fresh_until_s - time.monotonic()
        if left_s > 0:
            return self._attributes(inode, left_s)
        entry, fresh_until_s = self._lookups.find(inode.directory, inode.name)
        if not inode.is_version(entry):
            raise StaleInode("the object was replaced")
        if entry.info is not None:
            inode.describe(entry.info)
        inode.fresh_until_s = fresh_until_s
        return self._attributes(inode, fresh_until_s - time.monotonic())

    def forget(self, number: InodeNumber, lookups: int) -> None:
        """Uncount lookups; with a directory goes what is known of its listing.

        That is little, but a page of the interpreter's memory goes back to the system only when
        nothing is in it: the pages of 10,000 directories kept all of a million files' memory.
        """
        inode = self._inodes.forget(number, lookups)
        if inode is not None and inode.is_directory:
            self._lookups.forget(inode.key)

    def sweep(self) -> None:
        """Let go what is too old, and give back what much was forgotten of; once a second."""
        self._listings.sweep()
        forgotten = self._inodes.forgotten
        enough = max(MANY_FORGOTTEN, len(self._inodes))
        if forgotten == self._forgotten and forgotten - self._given_back >= enough:
            self._inodes.compact()
            drop_leftovers()
            give_back()
            self._given_back = forgotten
        self._forgotten = forgotten

    def access(self, number: InodeNumber, mask: int, uid: int, gid: int) -> bool:
        """Whether the user may do `mask` (R_OK, W_OK, X_OK). Raises ReadOnly for W_OK.

        The kernel checks by itself with the option default_permissions.
        """
        attributes = self.getattr(number)
        if mask & os.W_OK:
            raise ReadOnly("the file system is read-only")
        if uid == 0:
            executable = attributes.mode & 0o111 or stat.S_ISDIR(attributes.mode)
            return bool(executable) or not mask & os.X_OK
        shift = 6 if uid == attributes.uid else 3 if gid == attributes.gid else 0
        return mask & (attributes.mode >> shift) == mask

    # --- directories ---

    def opendir(self, number: InodeNumber, process: int = 0) -> HandleNumber:
        """Open a directory for a process. Its listing is made when it is read."""
        inode = self._directory(number)
        first = self._ahead.opened(process, inode.key)
        handle = DirectoryHandle(
            inode, process, self._client, self._patience, self._listings, first
        )
        self._inodes.opened(inode)
        return self._directories.add(handle)

    def readdir(self, number: HandleNumber, position: int) -> list[DirectoryEntry]:
        """Return some entries from `position` on; 0 begins a new listing. None at the end."""
        handle = self._directories.get(number)
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
        entries = handle.read(start, ENTRIES_PER_READ)
        self._ahead.listed(handle.process, inode.key, entries)
        for index, entry in enumerate(entries, start + len(dots)):
            mode = stat.S_IFDIR if entry.is_directory else stat.S_IFREG
            number_ = self._inodes.number_of(inode, entry)
            lines.append(DirectoryEntry(entry.name, number_, mode, index + 1))
        return lines

    def releasedir(self, number: HandleNumber) -> None:
        """Close a directory."""
        handle = self._directories.remove(number)
        handle.close()
        self._inodes.released(handle.inode)

    # --- files ---

    def open(self, number: InodeNumber, flags: int) -> HandleNumber:
        """Open a file for reading, if the inode's version is, or is believed to be, the newest."""
        inode = self._inodes.get(number)
        info = inode.info
        if info is None:
            raise IsADirectory()
        if flags & WRITE_FLAGS:
            raise ReadOnly("the file system is read-only")
        self._inodes.opened(inode)  # so that it stays while S3 is asked
        asked_at_s = time.monotonic()
        try:
            if flags & os.O_DIRECT or not self._believes(inode, info, asked_at_s):
                handle = ReadHandle(inode, self._open_stream(inode, info))
                self._listings.see(inode.directory, asked_at_s)
            else:
                handle = ReadHandle(inode, self._stream_unasked(inode, info))
        except (PreconditionFailed, NotFound, StaleInode) as error:
            self._disbelieve(inode)
            self._inodes.released(inode)
            if isinstance(error, NotFound):
                raise NoSuchEntry("the object was deleted") from None
            raise StaleInode("the object was replaced") from None
        except BaseException:
            self._inodes.released(inode)
            raise
        self._on_open(inode.key)
        return self._files.add(handle)

    def read(self, number: HandleNumber, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        handle = self._files.get(number)
        try:
            return handle.read(offset, size)
        except (PreconditionFailed, NotFound):
            self._disbelieve(handle.inode)
            raise

    def release(self, number: HandleNumber) -> None:
        """Close a file."""
        handle = self._files.remove(number)
        handle.close()
        handle.inode.paged = handle.inode.paged or handle.was_read
        self._inodes.released(handle.inode)

    # --- for log lines ---

    def path_of(self, number: InodeNumber, name: bytes = b"") -> str:
        """Return the path below the mount of an inode, or of a name in it."""
        try:
            inode = self._inodes.get(number)
        except StaleInode:
            return f"<inode {number}>"
        slash = b"" if inode.is_directory or not name else b"/"
        return self._shown(inode.key + slash + name)

    def path_of_handle(self, number: HandleNumber, *, directory: bool = False) -> str:
        """Return the path below the mount of an open file or directory."""
        table: HandleTable[ReadHandle] | HandleTable[DirectoryHandle]
        table = self._directories if directory else self._files
        try:
            return self._shown(table.get(number).inode.key)
        except BadHandle:
            return f"<handle {number}>"

    def _shown(self, key: bytes) -> str:
        return "/" + key[len(self._inodes.root.key) :].decode("utf-8", "backslashreplace")

    # --- inside ---

    def _directory(self, number: InodeNumber) -> Inode:
        inode = self._inodes.get(number)
        if not inode.is_directory:
            raise NotADirectory()
        return inode

    def _believes(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a version may be opened without asking S3."""
        # A listing does not say whether an archived object has been restored.
        if self._config.asks_on_open or info.storage_class in ARCHIVE_CLASSES:
            return False
        if inode.fresh_until_s <= now_s:
            return False
        known = self._listings.find(inode.directory, inode.name)
        if known is None:
            return not self._listings.is_gone(inode.directory, inode.name)
        return inode.is_version(known[0])

    def _disbelieve(self, inode: Inode) -> None:
        """Note that the object is not, or is no longer, the inode's version."""
        self._listings.discard(inode.directory, inode.name)
        inode.fresh_until_s = 0.0

    def _stream_unasked(self, inode: Inode, info: ObjectInfo) -> ReadStream | None:
        """Return a stream of a version that is believed to be the newest one."""

        def following(count: int) -> list[ObjectInfo]:
            entries = self._listings.following(inode.directory, inode.name, count)
            infos = [each.info for each in entries if each.info is not None]
            return [each for each in infos if each.storage_class not in ARCHIVE_CLASSES]

        try:
            return self._streams.unasked(info, following, paged=inode.paged)
        except (PreconditionFailed, NotFound):  # when it was fetched ahead
            return self._open_stream(inode, info)

    def _open_stream(self, inode: Inode, info: ObjectInfo) -> ReadStream | None:
        """Return a stream of the inode's version, if it is the newest one."""
        archived = info.storage_class in ARCHIVE_CLASSES
        stream = self._streams.stream(info) if info.size_bytes > 0 else None
        if stream is not None and not archived and not inode.paged:
            try:
                inode.describe(stream.open())
            except BaseException:
                stream.close()
                raise
        else:
            # No byte is needed now: there is none, or the kernel has pages of it.
            newest = self._patience.ask(lambda: self._client.head(info.key)).answer()
            if not inode.is_version(Entry(inode.name, newest)):
                raise StaleInode()
            if archived and not newest.restored:
                raise ObjectArchived(f"the object is in the storage class {info.storage_class}")
            inode.describe(newest)
        inode.paged = True
        return stream

    def _attributes(self, inode: Inode, left_s: float) -> Attributes:
        """Return the attributes of an inode that may be believed for `left_s`."""
        ttl_s = min(max(left_s, 0.0), self._config.ttl_s)
        info = inode.info
        if info is None:
            kind, links = stat.S_IFDIR | self._config.dir_mode, 2
            size_bytes, mtime_ns = 0, self._mounted_at_ns
        else:
            kind, links = stat.S_IFREG | self._config.file_mode, 1
            size_bytes, mtime_ns = info.size_bytes, info.mtime_ns
            # So that the kernel asks for a file that is in use when it can be renewed.
            ttl_s -= self._lookups.ahead_s if ttl_s > self._lookups.ahead_s else 0.0
        return Attributes(
            inode=inode.number,
            mode=kind,
            links=links,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            uid=self._config.uid,
            gid=self._config.gid,
            ttl_s=ttl_s,
        )
