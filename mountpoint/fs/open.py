"""Opening files for reading: which version is opened, and whether S3 is asked for it.

`open` asks S3, in the request that fetches the first bytes.

Unless it is to ask always, a version that is young enough is opened unasked, and its first read
makes the first request. When that shows that the object is another one or gone, the read fails,
and from then on it is asked for.
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

#: Must be restored before they can be read.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/archived-objects.html
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class Opener:
    """Opens files of a mount. Thread-safe.

    `asks_always`: S3 is asked for the newest version, whatever is believed.
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

    def open(self, inode: Inode, *, direct: bool, writer: int | None = None) -> ReadHandle:
        """Open a file, if the inode's version is the newest, or, unless `direct`, believed to be.

        `writer` is the process, if it opens the file to write, too (O_RDWR).
        Raises StaleInode, PreconditionFailed or NotFound when it is not, ObjectArchived, and
        S3Errors.
        """
        info = inode.info
        assert info is not None
        asked_at_s = time.monotonic()
        if not direct and self._believes(inode, info, asked_at_s):
            return ReadHandle(inode, self._stream_unasked(inode, info), writer=writer)
        handle = ReadHandle(inode, self._open_stream(inode, info, direct=direct), writer=writer)
        self._listings.see(inode.directory, asked_at_s)
        return handle

    def missed(self, inode: Inode, flags: int, error: OperationError) -> OperationError:
        """Return what open(2) is to fail with when the object is not the inode's version.

        With StaleInode the kernel looks the name up again: it may be a directory's by now, and
        O_CREAT, of which we hear nothing, makes a file anew that is gone.
        """
        self.disbelieve(inode)
        if isinstance(error, NotFound) and not flags & os.O_ACCMODE and self._is_gone(inode):
            return NoSuchEntry("the object was deleted")
        return StaleInode("the object was replaced, or deleted")

    def _is_gone(self, inode: Inode) -> bool:
        """Whether there is nothing else in the place of an object that is not there."""
        try:
            entry, _ = self._names.look(inode.parent or inode, inode.name)
        except NoSuchEntry:
            return True
        return inode.is_version(entry)  # it is listed, and cannot be had

    def disbelieve(self, inode: Inode) -> None:
        """Note that the object is not, or is no longer, the inode's version."""
        self._listings.discard(inode.directory, inode.name)
        inode.fresh_until_s = 0.0

    def _believes(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a version may be opened without asking S3."""
        # A listing does not say whether an archived object has been restored.
        if self._asks_always or info.storage_class in ARCHIVE_CLASSES:
            return False
        if inode.fresh_until_s <= now_s:
            return False
        known = self._listings.find(inode.directory, inode.name)
        if known is None:
            return not self._listings.is_gone(inode.directory, inode.name)
        return inode.is_version(known[0])

    def _stream_unasked(self, inode: Inode, info: ObjectInfo) -> ReadStream | None:
        """Return a stream of a version that is believed to be the newest one."""

        def following(count: int) -> list[ObjectInfo]:
            entries = self._listings.following(inode.directory, inode.name, count)
            infos = [each.info for each in entries if each.info is not None]
            return [each for each in infos if each.storage_class not in ARCHIVE_CLASSES]

        try:
            stream = self._streams.unasked(info, following, paged=bool(inode.paged))
        except (PreconditionFailed, NotFound):  # when it was fetched ahead
            return self._open_stream(inode, info, direct=False)
        if stream is not None:
            _expect_gaps(inode, stream)
        return stream

    def _open_stream(self, inode: Inode, info: ObjectInfo, *, direct: bool) -> ReadStream | None:
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
