"""Open files for reading: choose the version, and decide whether to ask S3 first.

By default `open` asks S3, in the request that also fetches the first bytes.

Unless the mount always asks, a version that was seen recently is opened without a request, and its
first read sends the first one. If that finds another object, or none, the read fails, and later
opens ask S3.
"""

import os
import time

from mountpoint.errors import (
    NoSuchEntry,
    NotFound,
    ObjectArchived,
    OperationError,
    PreconditionFailed,
    StaleInode,
)
from mountpoint.fs.handles import ReadHandle
from mountpoint.fs.heads import newest
from mountpoint.fs.inodes import Inode, Paged
from mountpoint.fs.names import Names
from mountpoint.listing.cache import ListingCache
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

#: Objects of these classes must be restored before they can be read.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/archived-objects.html
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class Opener:
    """Opens the files of a mount for reading. Thread-safe.

    `asks_always`: each open asks S3 for the newest version, even if a recent one is known.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        streams: Streams,
        listings: ListingCache,
        names: Names,
        *,
        asks_always: bool,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._streams = streams
        self._listings = listings
        self._names = names
        # constants
        self._asks_always = asks_always

    def open(
        self, inode: Inode, *, direct: bool, process: int = 0, writer: int | None = None
    ) -> ReadHandle:
        """Open the inode's version of a file.

        Asks S3 whether it is the newest version, unless a recent answer says so and the open is not
        `direct` (O_DIRECT). `process` is the thread that opens it, 0 if that is not known; `writer`
        is the process if it also opens the file for writing (O_RDWR).
        Raises StaleInode, PreconditionFailed or NotFound when another version is the newest or none
        is left, ObjectArchived, and S3Errors.
        """
        info = inode.info
        assert info is not None
        asked_at_s = time.monotonic()
        if not direct and self._believes(inode, info, asked_at_s):
            return ReadHandle(inode, self._stream_unasked(inode, info, process), writer=writer)
        stream = self._open_stream(inode, info, direct=direct, process=process)
        handle = ReadHandle(inode, stream, writer=writer)
        self._listings.see(inode.directory, asked_at_s)
        return handle

    def missed(self, inode: Inode, flags: int, error: OperationError) -> OperationError:
        """Return the error of an open(2) that found another object than the inode's version.

        StaleInode makes the kernel look the name up again: the name may be a directory's by now.
        It also makes O_CREAT work, which FUSE does not pass on: the kernel then creates a file
        that is gone.
        """
        self.disbelieve(inode)
        if isinstance(error, NotFound) and not flags & os.O_ACCMODE and self._is_gone(inode):
            return NoSuchEntry("the object was deleted")
        return StaleInode("the object was replaced or deleted")

    def _is_gone(self, inode: Inode) -> bool:
        """Whether a missing object has left no file or directory of its name."""
        try:
            entry, _ = self._names.look(inode.parent or inode, inode.name)
        except NoSuchEntry:
            return True
        return inode.is_version(entry)  # still listed, but cannot be read

    def disbelieve(self, inode: Inode) -> None:
        """Note that the inode's version is no longer the newest one."""
        self._listings.discard(inode.directory, inode.name)
        inode.fresh_until_s = 0.0

    def _believes(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a version may be opened without a request."""
        # A listing does not say whether an archived object has been restored.
        if self._asks_always or info.storage_class in ARCHIVE_CLASSES:
            return False
        if inode.fresh_until_s <= now_s:
            return False
        known = self._listings.find(inode.directory, inode.name)
        if known is None:
            return not self._listings.is_gone(inode.directory, inode.name)
        return inode.is_version(known[0])

    def _stream_unasked(self, inode: Inode, info: ObjectInfo, process: int) -> ReadStream | None:
        """Return a stream of a version that is assumed to be the newest; send no request."""

        def following(count: int) -> list[ObjectInfo]:
            entries = self._listings.following(inode.directory, inode.name, count)
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
        if stream is not None and not archived and not inode.paged:
            try:
                inode.describe(stream.open())
            except BaseException:
                stream.close()
                raise
        else:
            # No bytes are needed now: the file is empty, or the kernel has pages of it.
            version = newest(self._client, self._retry_policy, inode)
            if archived and not version.restored:
                raise ObjectArchived(f"the object is in the storage class {info.storage_class}")
            inode.describe(version)
            if stream is not None and not direct:
                _expect_gaps(inode, stream)
        inode.paged = max(inode.paged, Paged.SOME)
        return stream


def _expect_gaps(inode: Inode, stream: ReadStream) -> None:
    if inode.paged is Paged.ALL:
        stream.expect_gaps()
