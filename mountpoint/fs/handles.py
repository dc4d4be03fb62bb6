"""Open files and directories: one class each, and the table that numbers them."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Generic, NewType, Protocol, TypeVar

from mountpoint.errors import NO_OPTION, BadArgument, BadHandle, NotSequential, TooLarge
from mountpoint.fs.inodes import Inode, Paged
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.directory import DirectoryListing
from mountpoint.listing.flat import Listed
from mountpoint.listing.page_chain import Asked
from mountpoint.listing.tree import Entry
from mountpoint.read.stream import Bytes, ReadStream
from mountpoint.s3.client import ALWAYS, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire.posix_metadata import NOTHING, FileAttributes
from mountpoint.staging.staged_file import StagedFile
from mountpoint.upload.parts import MOST_OBJECT_BYTES
from mountpoint.upload.sequential import Sequential
from mountpoint.upload.upload import Upload

HandleNumber = NewType("HandleNumber", int)

#: The kernel reads a larger file ahead in any case: with reads of 4 KiB, each a way into the kernel
#: and back, it is read at 150 MB/s and not at 600.
MOST_LOOKED_AT = 64 << 20

#: Nothing is in S3 before the end, so no single write can be made to be.
SYNC_FLAGS = os.O_SYNC | os.O_DSYNC


class Handle(Protocol):
    """What the table needs to know of a handle."""

    @property
    def inode(self) -> Inode: ...


H = TypeVar("H", bound=Handle)


class HandleTable(Generic[H]):
    """Handles by number. Thread-safe: every operation is one step of the interpreter."""

    def __init__(self) -> None:
        self._handles: dict[HandleNumber, H] = {}
        self._numbers = itertools.count(1)

    def add(self, handle: H) -> HandleNumber:
        """Number a handle."""
        number = HandleNumber(next(self._numbers))
        self._handles[number] = handle
        return number

    def get(self, number: HandleNumber) -> H:
        """Return a handle. Raises BadHandle."""
        try:
            return self._handles[number]
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None

    def __len__(self) -> int:
        return len(self._handles)

    def replace(self, number: HandleNumber, handle: H) -> None:
        """Let a number stand for another handle."""
        self._handles[number] = handle

    def remove(self, number: HandleNumber) -> H:
        """Forget and return a handle. Raises BadHandle."""
        try:
            return self._handles.pop(number)
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None


class ReadHandle:
    """A file open for reading. `stream` is None for an empty object.

    `writer` is the process that opened it if that asked for writing, too (O_RDWR); else None.
    """

    def __init__(
        self, inode: Inode, stream: ReadStream | None, *, writer: int | None = None
    ) -> None:
        self.inode = inode
        self.writer = writer
        self._stream = stream
        self.damaged = False  # what was read of it was not what S3 has

    @property
    def looked_at(self) -> bool:
        """Whether little of the file is likely to be read, and all would not take long."""
        stream = self._stream
        return stream is not None and stream.looked_at and stream.size_bytes <= MOST_LOOKED_AT

    def read_exactly(self) -> None:
        """Note that the kernel reads little more of the file than programs do."""
        if self._stream is not None:
            self._stream.exact = True

    @property
    def paged(self) -> Paged:
        """How much there has been for the kernel to keep."""
        if self._stream is None or self._stream.read_bytes == 0:
            return Paged.NOT
        whole = self._stream.read_bytes >= self._stream.size_bytes
        return Paged.ALL if whole else Paged.SOME

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return b"" if self._stream is None else self._stream.read(offset, size)

    def close(self) -> None:
        """Cancel what is in flight."""
        if self._stream is not None:
            self._stream.close()


class WriteHandle:
    """A file that is being written as one upload: what all its `StreamedHandle`s share.

    When the upload has ended and a descriptor is still open, writing may go on: then what is
    there, `base`, is the beginning of another upload, without the zeros that made good its size.
    A file that is opened to append to begins so. `begin` makes an upload of it, on such a base or
    on nothing, and says which attributes go along. `replaces`: there is an object under this name.
    `appends`: whatever is written comes behind all else (O_APPEND).
    """

    def __init__(
        self,
        inode: Inode,
        begin: "Begin",
        *,
        condition: Condition,
        kept: FileAttributes = NOTHING,
        base: ObjectInfo | None = None,
        replaces: bool = False,
        appends: bool = False,
    ) -> None:
        # dependencies
        self.inode = inode
        self._begin = begin
        # constants
        self.replaces = replaces
        self.appends = appends
        # mutable
        self.condition = condition  # of the next upload
        self.base = base
        self.kept = kept  # what the object is to keep: of the time, as it was set last
        self.told = kept  # what the object keeps, or will when it is uploaded
        self.mtime_ns = self._time(base)  # of the last write, or as it was set
        self.upload: Sequential | None = None  # None: nothing is to be uploaded
        self._on_base_bytes = 0  # so much of `base` is what the upload begins with
        self._filled_from_bytes: int | None = None  # in `base`: zeros that nobody has written
        if base is None:
            self.upload, self.told = begin(self, None)
        self.closing = False  # its opener has closed a descriptor of it
        self.flushed = False  # a descriptor of it has been closed, so there was one
        self.killed = False  # who closed a descriptor last was being killed
        self.finishing = False  # its upload is being completed
        self.removed = False  # it has no name any more: nothing comes of what is written
        self._removed_bytes = 0
        self._least_bytes = 0  # the size as it was set: zeros follow what is written
        self.settled = threading.Event()  # nothing is to be uploaded, or there never will be
        self._failure: Exception | None = None
        self.settling = threading.Lock()  # held to set it and what goes with it
        self.opens = 0  # its StreamedHandles, guarded by settling
        self.writers = 0  # how many have been able to write it
        self._claimed: Sequential | None = None  # by who brings it to its place

    @property
    def size_bytes(self) -> int:
        """How large the file has become, or was set."""
        if self.removed:
            return self._removed_bytes
        return max(self.written_bytes, self._least_bytes)

    @property
    def written_bytes(self) -> int:
        """Where the next write is to begin."""
        if self.upload is not None:
            return self.upload.size_bytes
        if self._filled_from_bytes is not None:
            return self._filled_from_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def stored_bytes(self) -> int:
        """How much of it, from its beginning, `base` has."""
        if self.upload is not None:
            return self._on_base_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def pending_bytes(self) -> int:
        """How much of it S3 does not have."""
        return 0 if self.upload is None else self.upload.pending_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Take the next bytes; return how many. Raises NotSequential, and what uploads raise.

        Zeros beyond the next byte only set the size: glibc's posix_fallocate writes one at the
        end of each block. What is written at the end of the size that was set has zeros before it.
        """
        size_bytes = self.size_bytes
        ahead = offset > self.written_bytes
        if ahead and data.count(0) == len(data):
            self.set_size(max(size_bytes, offset + len(data)))
            return len(data)
        upload = self.upload
        if upload is None:
            upload = self._go_on(offset)
        if ahead and offset == size_bytes:
            upload.extend(offset)
        written = upload.write(offset, data)
        self.mtime_ns = time.time_ns()
        return written

    def remove(self) -> Sequential | None:
        """Let nothing come of it, without an error; return the upload that is to be aborted."""
        self._removed_bytes = self.size_bytes
        self.removed = True
        begun, self.upload = self.upload, None
        self.settled.set()
        return begun

    def discards(self, offset: int, size_bytes: int) -> bool:
        """Whether it has been removed, so that what is written makes nothing but its size."""
        if self.removed:
            self._removed_bytes = max(self._removed_bytes, offset + size_bytes)
        return self.removed

    def resize(self, size_bytes: int) -> None:
        """Note the size of a file that has been removed."""
        self._removed_bytes = size_bytes

    def set_size(self, size_bytes: int) -> None:
        """Note the size that the file is to have: at least what has been written.

        Raises TooLarge.
        """
        if size_bytes > MOST_OBJECT_BYTES:
            raise TooLarge(f"{size_bytes} bytes; an object has {MOST_OBJECT_BYTES} at most")
        if self.upload is None and size_bytes != self.size_bytes:
            self._go_on(self.written_bytes)
        self._least_bytes = size_bytes
        self.mtime_ns = time.time_ns()

    def finish(self, upload: Sequential) -> ObjectInfo:
        """Finish an upload of this file, with the size that was set."""
        return upload.finish(self._least_bytes)

    def restart(self) -> None:
        """Begin anew, with nothing written."""
        begun = self.upload
        self._least_bytes = 0
        self.kept = replace(self.kept, mtime_ns=None)
        self.mtime_ns = time.time_ns()
        self._on_base_bytes = 0
        self.upload, self.told = self._begin(self, None)
        if begun is not None:
            begun.abort()

    def fail(self, error: Exception) -> None:
        """Let nothing become of what was written since the last upload, nor of what will be."""
        self._failure = self._failure or error
        if self.upload is not None:
            self.upload.fail(error)

    def check(self) -> None:
        """Raise what has become of what was written, if that is known and bad."""
        if self.upload is not None:
            self.upload.check()
        if self._failure is not None:
            raise self._failure

    def claim(self, upload: Sequential) -> bool:
        """Whether it is the caller who has to bring a complete upload to its place."""
        with self.settling:
            if upload is not self.upload or upload is self._claimed:
                return False
            self._claimed = upload
            return True

    def stored(self, info: ObjectInfo) -> None:
        """Note that the object is this now, with all that was written and no attributes left."""
        if self.upload is not None:
            self._filled_from_bytes = None
            if isinstance(self.upload, Upload):  # else nothing can be taken back
                self._filled_from_bytes = self.upload.filled_from_bytes
            self.upload = None
        self.base, self.condition = info, unchanged(info)

    def moved(self, copy: ObjectInfo) -> None:
        """Note where `base` is now."""
        self.base, self.condition = copy, unchanged(copy)

    def became(self, info: ObjectInfo) -> None:
        """Note that the object is this now, with attributes that were set of what is there."""
        self.base, self.condition = info, unchanged(info)
        self.kept = self.told = info.attributes or NOTHING
        self.mtime_ns = self._time(info)

    def _time(self, base: ObjectInfo | None) -> int:
        if base is None:
            return time.time_ns()
        return base.mtime_ns if self.kept.mtime_ns is None else self.kept.mtime_ns

    def _go_on(self, offset: int) -> Sequential:
        """Begin an upload with what is there. The kernel lets nobody else write meanwhile."""
        base = self.base
        assert base is not None
        if offset not in (self.written_bytes, base.size_bytes):
            raise NotSequential(f"a write at {offset}, where {self.written_bytes} was next")
        upload, self.told = self._begin(self, base)
        self.upload, self._on_base_bytes = upload, offset
        if isinstance(upload, Upload):
            upload.copy(base, 0, offset)
        return upload


class StreamedHandle:
    """A file that is being written, open; `opener` is the process that opened it.

    Other processes come to have it by fork(2) or from a socket. The opener's close ends the
    upload (`fs/writes/streamed`). The lock of `file` is held, or nobody else has it yet.
    """

    def __init__(self, file: WriteHandle, opener: int, *, writes: bool) -> None:
        # dependencies
        self.file = file
        self.inode = file.inode
        # constants
        self.opener = opener
        self.writes = writes
        # mutable
        self.wrote = False  # something was written through it
        file.opens += 1
        file.writers += writes


#: Makes the upload of a file, on a base or not, and says which attributes go along.
Begin = Callable[[WriteHandle, ObjectInfo | None], tuple[Sequential, FileAttributes]]


class StagedWriter:
    """A file that is staged: what all handles of it share.

    `new`: it was made here, so that the kernel has no pages of an earlier version. `kept` is what
    is kept of its attributes; None: nothing is ever.
    """

    def __init__(
        self, inode: Inode, file: StagedFile, *, new: bool, kept: FileAttributes | None
    ) -> None:
        # dependencies
        self.inode = inode
        self.file = file
        # constants
        self.new = new
        self._keeps = kept is not None
        # mutable
        self.handles: set[StagedHandle] = set()  # guarded by who makes them
        self.kept = kept or NOTHING  # what the object is to keep, but for the time
        self.set_ns: int | None = None  # the time, as it was set since it was written last
        self.settling = threading.Lock()  # held to change them
        self.tried: FileAttributes | None = None  # what the object was last copied to keep

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return self.file.size_bytes

    @property
    def removed(self) -> bool:
        """Whether it has no name any more."""
        return self.file.unlinked

    @property
    def pending_bytes(self) -> int:
        """How much of it S3 may not have: all, because what is sent is decided at the end."""
        return self.file.size_bytes if self.file.dirty else 0

    @property
    def is_stored(self) -> bool:
        """Whether there is an object under its key."""
        return self.file.base is not None or not self.new

    @property
    def told(self) -> FileAttributes:
        """What the object keeps, as it is in S3 now."""
        base = self.file.base
        return base.attributes or NOTHING if base is not None and self._keeps else NOTHING

    @property
    def mtime_ns(self) -> int:
        """When it was written last, or as it was set since."""
        if self.set_ns is not None:
            return self.set_ns
        kept_ns = None if self.file.dirty else self.told.mtime_ns
        return self.file.mtime_ns if kept_ns is None else kept_ns

    def write(self, offset: int, data: bytes) -> int:
        """Write at any offset; return how many bytes."""
        written = self.file.write(offset, data)
        self.set_ns = None
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut it off, or continue it with zeros."""
        self.file.truncate(size_bytes)
        self.set_ns = None


class StagedHandle:
    """A staged file, open; `opener` is the process that opened it.

    `changed`: the file was changed through it, and uploading that has not been tried since. A file
    that was made or cut to nothing by opening it has changed by that.
    """

    def __init__(
        self, writer: StagedWriter, opener: int, *, writes: bool, changed: bool = False
    ) -> None:
        # dependencies
        self.writer = writer
        self.inode = writer.inode
        # constants
        self.opener = opener
        self.writes = writes
        # mutable
        self.changed = changed
        self.wrote = False  # at any time, after it was opened
        self.flushed = False  # a descriptor of it has been closed, so there was one
        self.killed = False  # who closed a descriptor last was being killed

    @property
    def is_lost(self) -> bool:
        """Whether nothing is to become of what was changed: its process was killed.

        Who is killed within open(2) never has a descriptor that could be closed.
        """
        return self.killed or not (self.flushed or self.wrote)

    def write(self, offset: int, data: bytes) -> int:
        """Write at any offset; return how many bytes."""
        written = self.writer.write(offset, data)
        self.wrote = self.changed = True  # afterwards: or an upload before it would be taken for it
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or continue it with zeros."""
        self.writer.truncate(size_bytes)
        self.wrote = self.changed = True


def check_flags(flags: int) -> None:
    """Raise BadArgument for what no file can be opened with that is to be written."""
    if flags & SYNC_FLAGS:
        raise BadArgument(
            "O_SYNC and O_DSYNC cannot be had: a file is in S3 when it is closed",
            f"{NO_OPTION}leave the flag out, and use fsync(2)",
        )


def unchanged(info: ObjectInfo) -> Condition:
    """Return the condition that this version is still there."""
    return Condition(etag=info.etag) if info.etag else ALWAYS


class DirectoryHandle:
    """An open directory, and its listing as far as it was read.

    A listing begins with the first read, after the directory was opened, and anew with the
    first read after `rewind`. Positions in it stay valid until then. `process` is who opened it;
    `first` is what was asked for of the first listing because that process walks. `local` tells
    what is not in the bucket: that comes behind what is.

    Its listing has a lock, and is exchanged in one step of the interpreter.
    """

    def __init__(
        self,
        inode: Inode,
        process: int,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        listings: ListingCache,
        first: Asked | Listed | None = None,
        local: Callable[[], list[Entry]] = list,
    ) -> None:
        # dependencies
        self.inode = inode
        self.process = process
        self._new_listing = partial(DirectoryListing, inode.key, client, retry_policy, listings)
        self._local = local
        # mutable
        self._listing = self._new_listing(first)
        self._beside = local()

    def rewind(self) -> None:
        """Forget the listing, if it has begun: the next read makes a new one."""
        # Before a new listing is asked for: what is uploaded meanwhile is in one of them.
        self._beside = self._local()
        listing = self._listing
        if listing.begun:
            self._listing = self._new_listing()
            listing.close()

    def read(self, position: int, count: int) -> list[Entry]:
        """Return the entries from `position` on: `count` of them, or up to a page's end.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing
        that goes in circles, Stalled for one that goes on for too long without an entry.
        """
        entries = self._listing.read(position, count)
        if entries or not self._beside:
            return entries
        listed = self._listing.names()
        beside = [each for each in self._beside if each.name not in listed]
        start = position - len(listed)
        return beside[start : start + count]

    def close(self) -> None:
        """Cancel what is in flight."""
        self._listing.close()
