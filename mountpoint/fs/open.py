"""Open files, for reading or through the writing back end.

By default `open` asks S3, in the request that also fetches the first bytes.

Unless the mount always asks, a version that was seen recently is opened without a request, and its
first read sends the first one. If that finds another object, or none, the read fails, and later
opens ask S3.

Small files in the data cache are opened without the interpreter, if they were prepared for that
(`prepared`). Such a handle is adopted where it needs an object.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import structlog

from mountpoint.errors import (
    FileDamaged,
    NoSuchEntry,
    NotFound,
    ObjectArchived,
    OperationError,
    PreconditionFailed,
    StaleInode,
    Superseded,
)
from mountpoint.fs.caches import Caches
from mountpoint.fs.handles import HandleNumber, HandleTable, OpenFile
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable, PageState
from mountpoint.fs.resolver import Resolver, newest
from mountpoint.fs.session.log import SessionLog
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.open_flags import changes
from mountpoint.fs.writes.readers import Readers
from mountpoint.listing.cache import ListingCache
from mountpoint.native._handles import OpenedFile
from mountpoint.native._lane import Lane, unregister
from mountpoint.native._prepared import PreparedFiles
from mountpoint.read.stream import SMALL_BYTES, Bytes, ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: Objects of these classes must be restored before they can be read.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/archived-objects.html
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

#: The kernel always reads larger files ahead. With reads of 4 KiB, each a round trip through the
#: kernel, they would be read at 150 MB/s instead of 600.
MAX_LOOKED_AT = 64 << 20


class ReadHandle:
    """A file that is open for reading. `stream` is None for an empty object.

    `version` is what is read. `from_disk`: the data cache may have all of it, and is asked first.
    `writer` is the process that opened the file, if it did so for writing too (O_RDWR); else None.
    With its first write another handle takes this one's number.
    """

    shared = False

    def __init__(
        self,
        inode: Inode,
        stream: ReadStream | None,
        opener: "Opener",
        *,
        version: ObjectInfo,
        writer: int | None = None,
    ) -> None:
        # dependencies
        self.inode = inode
        self._stream = stream
        self._opener = opener
        # constants
        self.version = version
        self.writer = writer
        self.from_disk = stream is not None and stream.from_disk
        # mutable
        self._damaged = False  # bytes of it did not match S3's checksum

    @property
    def small(self) -> bool:
        """Whether the file is small enough for an open to fetch all of it."""
        stream = self._stream
        return stream is not None and stream.size_bytes <= SMALL_BYTES

    @property
    def looked_at(self) -> bool:
        """Whether the program is likely to read little of the file, and the file is not large."""
        stream = self._stream
        return stream is not None and stream.looked_at and stream.size_bytes <= MAX_LOOKED_AT

    @property
    def lane(self) -> Lane | None:
        """See OpenFile."""
        return None if self._stream is None else self._stream.lane

    def read_exactly(self) -> None:
        """Note that the kernel reads little more of the file than programs ask for."""
        if self._stream is not None:
            self._stream.exact = True

    @property
    def paged(self) -> PageState:
        """How much of the file the kernel may have cached through this handle."""
        stream = self._stream
        read_bytes = 0 if stream is None else stream.read_bytes
        if stream is None or read_bytes == 0:
            return PageState.NOT
        return PageState.ALL if read_bytes >= stream.size_bytes else PageState.SOME

    def read(self, offset: int, size: int) -> Bytes:
        """See OpenFile. Raises FileDamaged if bytes do not match S3's checksum."""
        if self._stream is None:
            return b""
        try:
            return self._stream.read(offset, size)
        except (PreconditionFailed, NotFound):
            self._opener.changed(self.inode)
            raise
        except FileDamaged:
            if not self._damaged:
                self._damaged = True
                self._opener.damaged(self.inode)
            raise

    def write(self, offset: int, data: bytes, *, appends: bool) -> int:
        """See OpenFile and WriteBackend.take_over."""
        return self._opener.take_over(self, offset).write(offset, data, appends=appends)

    def truncate(self, size_bytes: int) -> None:
        """See OpenFile. The file is opened for writing if it is cut to nothing."""
        info = self.inode.info
        if info is not None and info.size_bytes == size_bytes:
            return
        if size_bytes:
            self._opener.truncate(self.inode, size_bytes)
        else:
            self._opener.take_over(self, None)

    def flush(self, process: int, *, killed: bool) -> None:
        """Do nothing: nothing was written."""

    def give_up(self, process: int) -> bool:
        """Do nothing: there is no upload."""
        return False

    def fsync(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Cancel the requests in flight."""
        if self._stream is not None:
            self._stream.close()

    def release(self) -> None:
        """See OpenFile."""
        if self._stream is not None:
            self._stream.close()
            self.inode.paged = max(self.inode.paged, self.paged)
        self._opener.left(self.inode)


class Opener:
    """Opens the files of a mount. Thread-safe.

    `files` has all open files. `asks_always`: each open asks S3 for the newest version, even if a
    recent one is known. What S3 has said is recent for `ttl_s`. `on_open` is called before the
    kernel learns of an open for reading. Its arguments are the file's key, and whether the program
    is likely to read little of it. It returns whether the kernel will read little more than the
    program asks for. `on_damage` is called with the inode of a file of which the kernel may hold
    pages that differ from S3's bytes. `prepared` has the files that are opened without the
    interpreter, and `session` their lines of the log.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        streams: Streams,
        files: HandleTable[OpenFile],
        listings: ListingCache,
        resolver: Resolver,
        inodes: InodeTable,
        readers: Readers,
        caches: Caches,
        backend: WriteBackend,
        prepared: PreparedFiles,
        session: SessionLog | None,
        *,
        asks_always: bool,
        ttl_s: float,
        on_open: Callable[[bytes, bool], bool],
        on_damage: Callable[[InodeNumber], None],
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._streams = streams
        self._files = files
        self._listings = listings
        self._resolver = resolver
        self._inodes = inodes
        self._readers = readers
        self._caches = caches
        self._backend = backend
        self._prepared = prepared
        self._session = session
        self._on_open = on_open
        self._on_damage = on_damage
        # constants
        self._asks_always = asks_always
        self._ttl_s = ttl_s
        # mutable
        self._adopting = threading.Lock()
        self.opened = 0  #: opens for reading, about

    def open(self, inode: Inode, flags: int, process: int) -> OpenFile:
        """Open a file to read or to change it. Its inode counts an open.

        `process` is the process that opens it for writing, or the thread that opens it for reading;
        0: unknown. Raises StaleInode or Superseded if the kernel has to look the name up again,
        NoSuchEntry, ObjectArchived, NotPermitted, and S3Errors.
        """
        self._inodes.opened(inode)  # keeps the inode while S3 is asked
        try:
            changing = self._open_to_write(inode, flags, process)
            if changing is not None:
                if changes(flags):  # it may have joined another writer
                    self._readers.arrived(inode)
                return changing
            try:
                handle = self._open_to_read(inode, flags, process)
            except BaseException:
                self._readers.end(inode)
                raise
        except Superseded:
            self._inodes.released(inode)
            raise
        except (PreconditionFailed, NotFound, StaleInode) as error:
            self._inodes.released(inode)
            if changes(flags) and not isinstance(error, NotFound):
                self._readers.expect(inode)
            raise self._missed(inode, flags, error) from None
        except BaseException:
            self._inodes.released(inode)
            if changes(flags):
                self._readers.arrived(inode)
            raise
        self.opened += 1
        exactly = self._on_open(inode.key, handle.looked_at)
        self._prepared.pause(exactly)  # files that are opened elsewhere would be read likewise
        if exactly:
            handle.read_exactly()
        elif handle.from_disk or (self._prepared.fetches and handle.small):
            self._prepared.wake(inode.number)
        return handle

    def adopt(self, inode: Inode) -> None:
        """Give all handles of a file that were opened without the interpreter an object.

        Those that come later find what the caller has done before.
        """
        self._prepared.forget_all()
        with self._adopting:
            self._mark_opened()
            for opened in self._prepared.handles.take(inode.number):
                self._adopt(inode, opened)

    def note_opened(self) -> None:
        """Note of which files the kernel may have pages, though Python has not opened them."""
        with self._adopting:
            self._mark_opened()

    def adopt_handle(self, number: HandleNumber) -> None:
        """Give a handle an object, if it was opened without the interpreter."""
        with self._adopting:
            opened = self._prepared.handles.take_handle(number)
            if opened is None:
                return
            try:
                inode = self._inodes.get(InodeNumber(opened.inode))
            except StaleInode:
                unregister(number)
                raise
            self._adopt(inode, opened)

    def restore(self, inode: Inode, version: ObjectInfo, writer: int | None) -> ReadHandle:
        """Open a version for reading that another process of this mount had open.

        Sends no request. If the version is no longer the newest, reads fail.
        """
        self._inodes.opened(inode)
        self._readers.begin(inode)
        inode.paged = PageState.SOME
        stream = self._streams.stream(version) if version.size_bytes > 0 else None
        return ReadHandle(inode, stream, self, version=version, writer=writer)

    # --- what open files report ---

    def take_over(self, reading: ReadHandle, offset: int | None) -> OpenFile:
        """Open a file for writing that is open for reading; the new handle takes the number.

        See WriteBackend. The kernel serializes writes and truncations of an inode.
        """
        handle = self._backend.take_over(reading.inode, reading.writer, offset)
        self._files.replace(reading, handle)
        reading.close()
        self._readers.end(reading.inode)
        return handle

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """Give a file another size, by its name."""
        self._backend.truncate(inode, size_bytes)

    def changed(self, inode: Inode) -> None:
        """Note that a read has found another version, or none."""
        self._caches.disbelieve(inode)

    def damaged(self, inode: Inode) -> None:
        """Note that a read has found bytes that do not match S3's checksum."""
        self.adopt(inode)
        self._inodes.disown(inode, inode.info)
        self._prepared.forget_all()
        self._on_damage(inode.number)

    def left(self, inode: Inode) -> None:
        """Note that a handle for reading was closed."""
        self._readers.end(inode)

    def is_recent(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a version may be opened without a request, unless a listing names another one."""
        # A listing does not say whether an archived object has been restored.
        if self._asks_always or info.storage_class in ARCHIVE_CLASSES:
            return False
        return inode.fresh_until_s > now_s

    # --- inside ---

    def _mark_opened(self) -> None:
        for number in self._prepared.take_opened():
            with contextlib.suppress(StaleInode):
                inode = self._inodes.get(InodeNumber(number))
                inode.paged = max(inode.paged, PageState.SOME)

    def _adopt(self, inode: Inode, opened: OpenedFile) -> None:
        info = inode.info
        assert info is not None
        self._inodes.opened(inode)
        self._readers.joined(inode)
        stream = self._streams.stream(info)
        stream.use_disk()
        number = HandleNumber(opened.handle)
        if self._session is not None:
            try:
                self._session.note_line("handle", number, opened.line)
            except OSError as error:  # the handle works, but for a process that goes on
                log.warning("an open file is not in the session's log", reason=str(error))
        unregister(number)
        stream.lane.register(number)
        # At last: until then a close waits in `adopt_handle`.
        self._files.put(number, ReadHandle(inode, stream, self, version=info))

    def _open_to_write(self, inode: Inode, flags: int, process: int) -> OpenFile | None:
        """Open a file that is being written or is to be changed.

        Returns None for a file that is only read, and counts a reader of it.
        """
        while True:
            changing = self._backend.open(inode, flags, process)
            if changing is not None:
                return changing
            self._readers.begin(inode)
            if not self._backend.is_written(inode):
                return None
            self._readers.end(inode)  # a writer has come in the meantime

    def _open_to_read(self, inode: Inode, flags: int, process: int) -> ReadHandle:
        """Open the inode's version of a file.

        Asks S3 whether it is the newest version, unless a recent answer says so and the flags do
        not have O_DIRECT. Raises StaleInode, PreconditionFailed or NotFound when another version is
        the newest or none is left, ObjectArchived, and S3Errors.
        """
        if self._prepared.has_opened:
            self.note_opened()
        writer = process if flags & os.O_ACCMODE == os.O_RDWR else None
        direct = bool(flags & os.O_DIRECT)
        info = inode.info
        assert info is not None
        requested_at_s = time.monotonic()
        generation = self._prepared.generation
        recent = not direct and self.is_recent(inode, info, requested_at_s)
        if recent and self._is_listed(inode):
            stream = self._stream_unasked(inode, info, process)
        else:
            stream = self._open_stream(inode, info, direct=direct, process=process)
            self._listings.record_nonempty(inode.directory, requested_at_s)
            if generation == self._prepared.generation:  # nothing says otherwise by now
                inode.fresh_until_s = max(inode.fresh_until_s, requested_at_s + self._ttl_s)
                if generation != self._prepared.generation:
                    inode.fresh_until_s = 0.0
        return ReadHandle(inode, stream, self, version=info, writer=writer)

    def _missed(self, inode: Inode, flags: int, error: OperationError) -> OperationError:
        """Return the error of an open(2) that found another object than the inode's version.

        StaleInode makes the kernel look the name up again: the name may be a directory's by now.
        It also makes O_CREAT work, which FUSE does not pass on: the kernel then creates a file
        that is gone.
        """
        self._caches.disbelieve(inode)
        if isinstance(error, NotFound) and not flags & os.O_ACCMODE and self._is_gone(inode):
            return NoSuchEntry("the object was deleted")
        return StaleInode("the object was replaced or deleted")

    def _is_gone(self, inode: Inode) -> bool:
        """Whether no file or directory has the name of a missing object."""
        try:
            entry, _ = self._resolver.resolve(inode.parent or inode, inode.name)
        except NoSuchEntry:
            return True
        return inode.is_version(entry)  # still listed, but cannot be read

    def _is_listed(self, inode: Inode) -> bool:
        """Whether what is known of an inode's name is its version, or nothing."""
        known = self._listings.find(inode.directory, inode.name)
        if known is None:
            return not self._listings.is_absent(inode.directory, inode.name)
        return inode.is_version(known[0])

    def _stream_unasked(self, inode: Inode, info: ObjectInfo, process: int) -> ReadStream | None:
        """Return a stream of a version that is assumed to be the newest; send no request."""

        def following(count: int) -> list[ObjectInfo]:
            entries = self._listings.files_after(inode.directory, inode.name, count)
            infos = [each.info for each in entries if each.info is not None]
            return [each for each in infos if each.storage_class not in ARCHIVE_CLASSES]

        try:
            stream = self._streams.unasked(info, following, paged=bool(inode.paged), opener=process)
        except (PreconditionFailed, NotFound):  # the prefetch of its first bytes found that
            return self._open_stream(inode, info, direct=False, process=process)
        if stream is not None:
            _expect_gaps(inode, stream)
        return stream

    def _open_stream(
        self, inode: Inode, info: ObjectInfo, *, direct: bool, process: int
    ) -> ReadStream | None:
        """Return a stream of the inode's version if S3 says that it is the newest one."""
        archived = info.storage_class in ARCHIVE_CLASSES
        stream = self._streams.stream(info, process) if info.size_bytes > 0 else None
        cached = stream is not None and stream.begins_in_cache
        paged = inode.paged and not (stream is not None and stream.shares)
        if stream is not None and not (archived or paged or cached):
            try:
                inode.set_info(stream.open())
            except BaseException:
                stream.close()
                raise
        else:
            # No bytes are needed now: the file is empty, or the kernel or the data cache has some.
            version = newest(self._client, self._retry_policy, inode)
            if archived and not version.restored:
                raise ObjectArchived(f"the object is in the storage class {info.storage_class}")
            inode.set_info(version)
            if stream is not None and cached:
                stream.open_unasked(paged=bool(inode.paged))
            if stream is not None and not direct:
                _expect_gaps(inode, stream)
        inode.paged = max(inode.paged, PageState.SOME)
        return stream


def _expect_gaps(inode: Inode, stream: ReadStream) -> None:
    if inode.paged is PageState.ALL:
        stream.expect_gaps()
