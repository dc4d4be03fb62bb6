"""Open files, for reading or through the writing back end.

By default `open` asks S3, in the request that also fetches the first bytes.

Unless the mount always asks, a version that was seen recently is opened without a request, and its
first read sends the first one. If that finds another object, or none, the read fails, and later
opens ask S3.

Small files are opened without the interpreter, if they were prepared for that (`prepared`). Such a
handle is adopted where it needs an object (`reads/adoption`).
"""

import os
import time
from collections.abc import Callable

from mountpoint.errors import (
    NoSuchEntry,
    NotFound,
    ObjectArchived,
    OperationError,
    PreconditionFailed,
    StaleInode,
    Superseded,
)
from mountpoint.fs.handles import OpenFile
from mountpoint.fs.inodes import Inode, PageState
from mountpoint.fs.reads.adoption import Adopter
from mountpoint.fs.reads.handle import ReadContext, ReadHandle
from mountpoint.fs.resolver import Resolver, newest
from mountpoint.fs.writes.open_flags import changes
from mountpoint.listing.cache import ListingCache
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

#: Objects of these classes must be restored before they can be read.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/archived-objects.html
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class Opener:
    """Opens the files of a mount. Thread-safe.

    `asks_always`: each open asks S3 for the newest version, even if a recent one is known. What S3
    has said is recent for `ttl_s`. `on_open` is called before the kernel learns of an open for
    reading. Its arguments are the file's key, and whether the program is likely to read little of
    it. It returns whether the kernel will read little more than the program asks for.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        streams: Streams,
        listings: ListingCache,
        resolver: Resolver,
        context: ReadContext,
        adopter: Adopter,
        *,
        asks_always: bool,
        ttl_s: float,
        on_open: Callable[[bytes, bool], bool],
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._streams = streams
        self._listings = listings
        self._resolver = resolver
        self._mount = context
        self._adopter = adopter
        self._on_open = on_open
        # constants
        self._asks_always = asks_always
        self._ttl_s = ttl_s
        # mutable
        self.opened = 0  #: opens for reading, about

    def open(self, inode: Inode, flags: int, process: int) -> OpenFile:
        """Open a file to read or to change it. Its inode counts an open.

        `process` is the process that opens it for writing, or the thread that opens it for reading;
        0: unknown. Raises StaleInode or Superseded if the kernel has to look the name up again,
        NoSuchEntry, ObjectArchived, NotPermitted, and S3Errors.
        """
        self._mount.inodes.opened(inode)  # keeps the inode while S3 is asked
        try:
            changing = self._open_to_write(inode, flags, process)
            if changing is not None:
                if changes(flags):  # it may have joined another writer
                    self._mount.readers.arrived(inode)
                return changing
            try:
                handle = self._open_to_read(inode, flags, process)
            except BaseException:
                self._mount.readers.end(inode)
                raise
        except Superseded:
            self._mount.inodes.released(inode)
            raise
        except (PreconditionFailed, NotFound, StaleInode) as error:
            self._mount.inodes.released(inode)
            if changes(flags) and not isinstance(error, NotFound):
                self._mount.readers.expect(inode)
            raise self._missed(inode, flags, error) from None
        except BaseException:
            self._mount.inodes.released(inode)
            if changes(flags):
                self._mount.readers.arrived(inode)
            raise
        self.opened += 1
        exactly = self._on_open(inode.key, handle.looked_at)
        # Files that are opened without the interpreter would be read likewise.
        self._mount.prepared.pause(exactly)
        if exactly:
            handle.read_exactly()
        elif handle.from_disk or (self._mount.prepared.fetches and handle.small):
            self._mount.prepared.wake(inode.number)
        return handle

    def restore(self, inode: Inode, version: ObjectInfo, writer: int | None) -> ReadHandle:
        """Open a version for reading that another process of this mount had open.

        Sends no request. If the version is no longer the newest, reads fail.
        """
        self._mount.inodes.opened(inode)
        self._mount.readers.begin(inode)
        inode.paged = PageState.SOME
        stream = self._streams.stream(version) if version.size_bytes > 0 else None
        return ReadHandle(inode, stream, self._mount, version=version, writer=writer)

    def is_recent(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a version may be opened without a request, unless a listing names another one."""
        # A listing does not say whether an archived object has been restored.
        if self._asks_always or info.storage_class in ARCHIVE_CLASSES:
            return False
        return inode.fresh_until_s > now_s

    # --- inside ---

    def _open_to_write(self, inode: Inode, flags: int, process: int) -> OpenFile | None:
        """Open a file that is being written or is to be changed.

        Returns None for a file that is only read, and counts a reader of it.
        """
        while True:
            changing = self._mount.backend.open(inode, flags, process)
            if changing is not None:
                return changing
            self._mount.readers.begin(inode)
            if not self._mount.backend.is_written(inode):
                return None
            self._mount.readers.end(inode)  # a writer has come in the meantime

    def _open_to_read(self, inode: Inode, flags: int, process: int) -> ReadHandle:
        """Open the inode's version of a file.

        Asks S3 whether it is the newest version, unless a recent answer says so and the flags do
        not have O_DIRECT. Raises StaleInode, PreconditionFailed or NotFound when another version is
        the newest or none is left, ObjectArchived, and S3Errors.
        """
        if self._mount.prepared.has_opened:
            self._adopter.note_opened()
        writer = process if flags & os.O_ACCMODE == os.O_RDWR else None
        direct = bool(flags & os.O_DIRECT)
        info = inode.info
        assert info is not None
        requested_at_s = time.monotonic()
        generation = self._mount.prepared.generation
        recent = not direct and self.is_recent(inode, info, requested_at_s)
        if recent and self._is_listed(inode):
            stream = self._stream_unasked(inode, info, process)
        else:
            stream = self._open_stream(inode, info, direct=direct, process=process)
            self._listings.record_nonempty(inode.directory, requested_at_s)
            if generation == self._mount.prepared.generation:  # nothing says otherwise by now
                inode.fresh_until_s = max(inode.fresh_until_s, requested_at_s + self._ttl_s)
                if generation != self._mount.prepared.generation:
                    inode.fresh_until_s = 0.0
        return ReadHandle(inode, stream, self._mount, version=info, writer=writer)

    def _missed(self, inode: Inode, flags: int, error: OperationError) -> OperationError:
        """Return the error of an open(2) that found another object than the inode's version.

        StaleInode makes the kernel look the name up again: the name may be a directory's by now.
        It also makes O_CREAT work, which FUSE does not pass on: the kernel then creates a file
        that is gone.
        """
        self._mount.caches.disbelieve(inode)
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
