"""The bucket as a file system: one short method per FUSE operation.

Takes and returns this program's own types and raises domain errors; `operations.py` translates
both for llfuse. Thread-safe. The consistency contract in short (docs/semantics.md has all of it):

* `open` asks S3, in the request that fetches the first bytes. When the object is no longer
  the inode's version, StaleInode makes the kernel look the name up again.
* An open file stays one version of the object until it is closed.
* An attribute or a name may be `ttl_s` old. The kernel is told how much of that is left, so that
  the age of its cache and of ours do not add up.
* Of a file that is being written, other programs see name, size and time only, until its object
  exists (`fs/writes/streamed`).
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from mountpoint.config import ChangeConfig, FileSystemConfig, WriteConfig
from mountpoint.copy.metadata import SelfCopies
from mountpoint.copy.objects import Copies
from mountpoint.errors import (
    BadHandle,
    FileDamaged,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotFound,
    PreconditionFailed,
    StaleInode,
    Superseded,
)
from mountpoint.fs.attributes import Attributes, AttributeView
from mountpoint.fs.directories import Directories
from mountpoint.fs.handles import (
    DirectoryHandle,
    HandleNumber,
    HandleTable,
    ReadHandle,
)
from mountpoint.fs.heads import Heads
from mountpoint.fs.inodes import LONG_BITS, SHORT_BITS, Inode, InodeNumber, InodeTable
from mountpoint.fs.names import Names
from mountpoint.fs.open import Opener
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes
from mountpoint.fs.rename import Renames
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.interface import WrittenHandle, of_a_mount
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.readers import Readers
from mountpoint.fs.writes.reopen import Held
from mountpoint.fs.writes.staged import StagedWrites
from mountpoint.fs.writes.streamed import StreamedWrites
from mountpoint.listing import tree
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.prefetch import WalkAhead
from mountpoint.listing.resolver import Lookups
from mountpoint.listing.tree import Entry
from mountpoint.read.stream import Bytes
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.area import StagingArea
from mountpoint.system.memory import drop_leftovers, give_back
from mountpoint.upload.uploads import Uploads

T = TypeVar("T")

#: Entries per answer to readdir: as many as fit into the kernel's page of 4096 bytes.
ENTRIES_PER_READ = 128

#: Inodes of 3 MB. Memory is given back when at least this many inodes, and as many as are left,
#: have been forgotten, so that the cost per inode stays small; and only after a second without
#: forgets, because they come in batches.
MANY_FORGOTTEN = 10_000


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of readdir. `next_position` is the position of the entry after it."""

    name: bytes
    inode: InodeNumber
    mode: int
    next_position: int


class BeingWritten(NamedTuple):
    """A file that is being written. `pending_bytes` of `size_bytes` are not yet in S3."""

    path: str
    size_bytes: int
    pending_bytes: int


class FileSystem:
    """The bucket, from `prefix` down, as a tree of files.

    Offsets and sizes are in bytes. Methods raise OperationErrors (`errors` has their errnos).

    `on_open` is called before the kernel learns of an open. Its arguments are the file's key, and
    whether the program is likely to read little of it. It returns whether the kernel will read
    little more than the program asks for. `on_damage` is called with the inode of a file of which
    the kernel may hold pages that differ from S3's bytes. `drop_pages`: see Readers.
    """

    def __init__(
        self,
        client: ObjectClient,
        *,
        prefix: bytes,
        config: FileSystemConfig,
        change: ChangeConfig,
        write: WriteConfig,
        streams: Streams,
        uploads: Uploads,
        copies: Copies,
        retry_policy: RetryPolicy,
        staging: StagingArea | None = None,
        on_open: Callable[[bytes, bool], bool] = lambda key, looked_at: False,
        on_damage: Callable[[InodeNumber], None] = lambda inode: None,
        drop_pages: Callable[[InodeNumber], bool] = lambda inode: True,
    ) -> None:
        # dependencies
        self._on_damage = on_damage
        self._on_open = on_open
        self._client = client
        self._config = config
        self._retry_policy = retry_policy
        # mutable, used by `sweep` only: inodes forgotten by its last call, and its last give-back
        self._forgotten = 0
        self._given_back = 0
        # mutable: how often `refresh` was called
        self._refreshes = 0
        # mutable, each with a lock of its own
        self._inodes = InodeTable(prefix, SHORT_BITS if config.inode32 else LONG_BITS)
        self._listings = ListingCache(config.ttl_s, negative_ttl_s=config.negative_ttl_s)
        self._lookups = Lookups(
            client,
            retry_policy,
            self._listings,
            ttl_s=config.ttl_s,
            negative_ttl_s=config.negative_ttl_s,
        )
        self._ahead = WalkAhead(client, retry_policy, self._listings, config.ttl_s)
        self._local = OverlayNames(prefix)
        self._readers = Readers(self._inodes, drop_pages)
        self._key_locks = KeyLocks(retry_policy.stopping)
        self._attribute_store = AttributeStore(
            SelfCopies(client, uploads, retry_policy), self._inodes, change, self._changed
        )
        self._names = Names(
            self._lookups,
            self._listings,
            Heads(client, retry_policy, self._listings),
            self._inodes,
            self._local,
            ttl_s=config.ttl_s,
            describes=self._attribute_store.keeps,
        )
        self._opener = Opener(
            client,
            retry_policy,
            streams,
            self._listings,
            self._names,
            asks_always=config.asks_on_open,
        )
        self._attribute_view = AttributeView(
            config,
            self._local,
            keeps=self._attribute_store.keeps,
            ahead_s=self._lookups.ahead_s,
            mounted_at_ns=time.time_ns(),
        )
        self._changes = StreamedWrites(
            client,
            retry_policy,
            self._key_locks,
            uploads,
            copies,
            self._inodes,
            self._local,
            self._readers,
            self._attribute_store,
            change,
            self._changed,
        )
        self._writing = of_a_mount(self._changes)
        if staging is not None:
            staged = StagedWrites(
                staging,
                client,
                retry_policy,
                self._key_locks,
                uploads,
                copies,
                self._inodes,
                self._local,
                self._readers,
                self._attribute_store,
                change,
                write,
                self._changed,
            )
            self._writing = of_a_mount(staged)
        self._held = Held(
            client,
            retry_policy,
            self._inodes,
            self._local,
            self._readers,
            is_written=self._writing.is_written,
            ttl_s=config.ttl_s,
        )
        self._making = Directories(
            client, retry_policy, self._key_locks, uploads, self._local, change, self._changed
        )
        self._renames = Renames(
            copies,
            self._key_locks,
            self._making,
            self._writing,
            self._names,
            self._listings,
            self._inodes,
            self._local,
            change,
            self._changed,
        )
        self._files: HandleTable[ReadHandle | WrittenHandle] = HandleTable()
        self._directories: HandleTable[DirectoryHandle] = HandleTable()

    # --- names and attributes ---

    def lookup(self, parent: InodeNumber, name: bytes) -> Attributes:
        """Return the attributes of a child, and count a lookup of its inode."""
        directory = self._directory(parent)
        if len(name) > tree.MAX_NAME_BYTES:
            raise NameTooLong(f"{len(name)} bytes; a name may have at most {tree.MAX_NAME_BYTES}")
        writer = self._local.file(directory.key, name)
        if writer is not None:
            self._inodes.looked_up_again(writer.inode)
            return self._attribute_view.attributes(writer.inode, 0.0)
        refreshes = self._refreshes
        entry, fresh_until_s = self._names.look(directory, name)
        if refreshes != self._refreshes:  # the answer may be older than the refresh
            fresh_until_s = 0.0
        inode = self._inodes.looked_up(directory, entry, fresh_until_s)
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
            return self._attribute_view.attributes(inode, self._config.ttl_s)
        left_s = inode.fresh_until_s - time.monotonic()
        if left_s > 0:
            return self._attribute_view.attributes(inode, left_s)
        refreshes = self._refreshes
        entry, fresh_until_s = self._names.look(inode.parent or inode, inode.name)
        if not inode.is_version(entry):
            if inode.is_directory or not self._held.comes_again(inode, thread):
                raise StaleInode("the object was replaced")
            self._held.catch_up(inode)
            return self._attribute_view.attributes(inode, inode.fresh_until_s - time.monotonic())
        if entry.info is not None:
            inode.describe(entry.info)
        if refreshes == self._refreshes:
            inode.fresh_until_s = fresh_until_s
        return self._attribute_view.attributes(inode, fresh_until_s - time.monotonic())

    def forget(self, number: InodeNumber, lookups: int) -> None:
        """Subtract lookups from an inode's count; forget a directory's listing with its inode.

        A listing is small, but the interpreter returns a page of memory to the system only when
        it is empty: the listings of 10,000 directories held all the memory of a million files.
        """
        inode = self._inodes.forget(number, lookups)
        if inode is not None and inode.is_directory:
            self._lookups.forget(inode.key)

    def sweep(self) -> None:
        """Drop expired listings, and give memory back after many forgets. Called once a second."""
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
        """Whether the user may do `mask` (R_OK, W_OK, X_OK).

        With the option default_permissions the kernel checks this itself.
        """
        attributes = self.getattr(number)
        if uid == 0:
            executable = attributes.mode & 0o111 or stat.S_ISDIR(attributes.mode)
            return bool(executable) or not mask & os.X_OK
        shift = 6 if uid == attributes.uid else 3 if gid == attributes.gid else 0
        return mask & (attributes.mode >> shift) == mask

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
                self._up_to_date(inode, thread, lambda: self._truncate(inode, size_bytes, handle))
                return self._attribute_view.attributes(inode, 0.0)  # it may be no version any more
            attributes = FileAttributes(mode, uid, gid, mtime_ns)
            writer = self._local.writer(inode)
            if writer is None or not self._writing.set_open(writer, attributes):
                self._changes.set_attributes(inode, attributes)
        except Superseded:
            raise
        except (PreconditionFailed, NotFound, StaleInode):
            self._opener.disbelieve(inode)
            raise
        return self.getattr(number)

    def _truncate(self, inode: Inode, size_bytes: int, number: HandleNumber | None) -> None:
        opened = None if number is None else self._files.get(number)
        if isinstance(opened, ReadHandle):
            opened = None
            if inode.info is not None and inode.info.size_bytes == size_bytes:
                return
            if number is not None and not size_bytes:
                self._take_over(number, None)
                return
        self._writing.truncate(inode, size_bytes, opened)

    # --- directories ---

    def opendir(self, number: InodeNumber, process: int = 0) -> HandleNumber:
        """Open a directory for a process. The first read starts the listing."""
        inode = self._directory(number)
        first = self._ahead.opened(process, inode.key)
        handle = DirectoryHandle(
            inode,
            process,
            self._client,
            self._retry_policy,
            self._listings,
            first,
            lambda: self._local.entries(inode.key),
        )
        self._inodes.opened(inode)
        return self._directories.add(handle)

    def readdir(self, number: HandleNumber, position: int) -> list[DirectoryEntry]:
        """Return entries from `position` on; 0 starts a new listing. Empty at the end."""
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

    def mkdir(self, parent: InodeNumber, name: bytes) -> Attributes:
        """Create a directory, and count a lookup of it."""
        directory = self._directory(parent)
        entry = self._making.make(directory, name)
        fresh_until_s = time.monotonic() + self._config.ttl_s
        inode = self._inodes.looked_up(directory, entry, fresh_until_s)
        return self._attribute_view.attributes(inode, self._config.ttl_s)

    def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory."""
        directory = self._directory(parent)
        self._making.remove(directory, self._names.find(directory.key, name)[0])

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
        handle = self._writing.create(self._directory(parent), name, flags, process, attributes)
        return self._files.add(handle), self._attribute_view.attributes(handle.inode, 0.0)

    def open(
        self, number: InodeNumber, flags: int, process: int = 0, thread: int = 0
    ) -> HandleNumber:
        """Open a file for a thread of a process, to read or to change it."""
        inode = self._inodes.get(number)
        if inode.is_directory:
            raise IsADirectory()
        return self._up_to_date(inode, thread, lambda: self._open(inode, flags, process))

    def _up_to_date(self, inode: Inode, thread: int, act: Callable[[], T]) -> T:
        """Run `act`; where it finds a stale inode that can be updated, do that and repeat it."""
        try:
            return act()
        except StaleInode:
            if not self._held.comes_again(inode, thread):
                raise
            self._held.catch_up(inode)
            return act()

    def _open(self, inode: Inode, flags: int, process: int) -> HandleNumber:
        self._inodes.opened(inode)  # keeps the inode while S3 is asked
        try:
            changing = self._open_to_write(inode, flags, process)
            if changing is not None:
                return self._files.add(changing)
            try:
                writer = process if flags & os.O_ACCMODE == os.O_RDWR else None
                direct = bool(flags & os.O_DIRECT)
                handle = self._opener.open(inode, direct=direct, process=process, writer=writer)
            except BaseException:
                self._readers.end(inode)
                raise
        except Superseded:
            self._inodes.released(inode)
            raise
        except (PreconditionFailed, NotFound, StaleInode) as error:
            self._inodes.released(inode)
            raise self._opener.missed(inode, flags, error) from None
        except BaseException:
            self._inodes.released(inode)
            raise
        if self._on_open(inode.key, handle.looked_at):
            handle.read_exactly()
        return self._files.add(handle)

    def _open_to_write(self, inode: Inode, flags: int, process: int) -> WrittenHandle | None:
        """Open a file that is being written or is to be changed.

        Returns None for a file that is only read, and counts a reader of it.
        """
        while True:
            changing = self._writing.open(inode, flags, process)
            if changing is not None:
                return changing
            self._readers.begin(inode)
            if not self._writing.is_written(inode):
                return None
            self._readers.end(inode)  # a writer has come in the meantime

    def read(self, number: HandleNumber, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        handle = self._files.get(number)
        if not isinstance(handle, ReadHandle):
            return self._writing.read(handle, offset, size)
        try:
            return handle.read(offset, size)
        except (PreconditionFailed, NotFound):
            self._opener.disbelieve(handle.inode)
            raise
        except FileDamaged:
            if not handle.damaged:
                handle.damaged = True
                self._inodes.disown(handle.inode, handle.inode.info)
                self._on_damage(handle.inode.number)
            raise

    def write(self, number: HandleNumber, offset: int, data: bytes) -> int:
        """Write bytes to a file; return how many were accepted."""
        handle = self._files.get(number)
        if isinstance(handle, ReadHandle):
            handle = self._take_over(number, offset)
        return self._writing.write(handle, offset, data)

    def _take_over(self, number: HandleNumber, offset: int | None) -> WrittenHandle:
        """Turn a file that was opened for reading into one that is written.

        See `StreamedWrites.take_over`. The kernel serializes writes and truncations of an inode.
        """
        reading = self._files.get(number)
        assert isinstance(reading, ReadHandle)
        handle = self._writing.take_over(reading, offset)
        self._files.replace(number, handle)
        reading.close()
        self._readers.end(reading.inode)
        return handle

    def flush(self, number: HandleNumber, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor of a file; `killed`: it is being killed."""
        handle = self._files.get(number)
        if not isinstance(handle, ReadHandle):
            self._writing.flush(handle, process, killed=killed)

    def fsync(self, number: HandleNumber) -> None:
        """Upload all that was written to a file."""
        handle = self._files.get(number)
        if not isinstance(handle, ReadHandle):
            self._writing.sync(handle)

    def release(self, number: HandleNumber) -> None:
        """Close a file handle."""
        handle = self._files.remove(number)
        try:
            if not isinstance(handle, ReadHandle):
                self._writing.release(handle)
            else:
                handle.close()
                handle.inode.paged = max(handle.inode.paged, handle.paged)
                self._readers.end(handle.inode)
        finally:
            self._inodes.released(handle.inode)

    def has_bytes(self, number: HandleNumber) -> bool:
        """Whether an open file has any bytes to map."""
        info = self._files.get(number).inode.info
        return info is not None and info.size_bytes > 0

    def is_shared(self, number: HandleNumber) -> bool:
        """Whether others may change the content of an open file, so that no pages may be cached."""
        return not isinstance(self._files.get(number), ReadHandle)

    def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Delete a file."""
        directory = self._directory(parent)
        writer = self._local.file(directory.key, name)
        if writer is not None and self._writing.unlink_open(writer):
            return
        with self._key_locks.alone(lambda: [directory.key + name]):
            self._changes.unlink(directory, self._names.find(directory.key, name)[0])
            self._listings.gone(directory.key, name)

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
        self._renames.rename(directory, name, to, new_name, replace=replace)

    def refresh(self, path: bytes) -> list[tuple[InodeNumber, bytes]]:
        """Forget what is known of a path below the mount, and of all below it; "" is the root.

        Return the names that the kernel may know, each with its directory's inode, so that the
        kernel can be made to forget them too. Open files keep their versions.
        """
        self._refreshes += 1
        key = self._inodes.root.key
        *above, last = path.split(b"/")
        for name in above:
            if self._listings.find(key, name) is None:  # it may be cached as absent
                self._listings.discard(key, name)
            key += name + b"/"
        if path:
            self._listings.discard(key, last)
            key += last + b"/"
        self._listings.forget_below(key)
        self._names.forget_absent()
        self._ahead.changed()
        held = [each for each in self._inodes.below(key[:-1] if path else key) if each.parent]
        for each in held:
            each.fresh_until_s = 0.0
        return [(each.parent.number, each.name) for each in held if each.parent]

    def open_files(self) -> int:
        """Return the number of open file handles."""
        return len(self._files)

    def being_written(self) -> list[BeingWritten]:
        """Return the files whose latest content is not in S3."""
        return [
            BeingWritten(self._shown(each.inode.key), each.size_bytes, each.pending_bytes)
            for each in self._local.writers()
            if not each.removed
        ]

    # --- for log lines ---

    def path_of(self, number: InodeNumber, name: bytes = b"") -> str:
        """Return the path below the mount of an inode, or of `name` in that directory."""
        try:
            inode = self._inodes.get(number)
        except StaleInode:
            return f"<inode {number}>"
        slash = b"" if inode.is_directory or not name else b"/"
        return self._shown(inode.key + slash + name)

    def path_of_handle(self, number: HandleNumber, *, directory: bool = False) -> str:
        """Return the path below the mount of an open file or directory."""
        try:
            handle = self._directories.get(number) if directory else self._files.get(number)
            return self._shown(handle.inode.key)
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

    def _changed(self, directory: bytes, name: bytes, info: ObjectInfo | None) -> None:
        """Take note that this mount has changed a name. `info` None: its entry is not known."""
        self._ahead.changed()
        if info is None:
            self._listings.discard(directory, name)
        else:
            self._listings.made(directory, Entry(name, info))
