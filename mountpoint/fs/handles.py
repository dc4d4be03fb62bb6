"""Handles of open files and directories: one class for each kind, and the table of numbers."""

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
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes, parsed
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.directory import DirectoryListing
from mountpoint.listing.flat import Listed
from mountpoint.listing.page_chain import Asked
from mountpoint.listing.tree import Entry
from mountpoint.read.stream import Bytes, ReadStream
from mountpoint.s3.client import ALWAYS, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.staged_file import StagedFile
from mountpoint.upload.parts import MOST_OBJECT_BYTES
from mountpoint.upload.sequential import Sequential
from mountpoint.upload.upload import Upload

HandleNumber = NewType("HandleNumber", int)

#: The kernel always reads larger files ahead. With reads of 4 KiB, each a round trip through the
#: kernel, they would be read at 150 MB/s in place of 600.
MOST_LOOKED_AT = 64 << 20

#: Refused: a write with these flags would have to wait until its bytes are in S3, which is not
#: before the upload ends.
SYNC_FLAGS = os.O_SYNC | os.O_DSYNC


class Handle(Protocol):
    """The part of a handle that the table uses."""

    @property
    def inode(self) -> Inode: ...


H = TypeVar("H", bound=Handle)


class HandleTable(Generic[H]):
    """Handles by number. Thread-safe: each method is one atomic step of the interpreter."""

    def __init__(self) -> None:
        self._handles: dict[HandleNumber, H] = {}
        self._numbers = itertools.count(1)

    def add(self, handle: H) -> HandleNumber:
        """Add a handle; return its number."""
        number = HandleNumber(next(self._numbers))
        self._handles[number] = handle
        return number

    def get(self, number: HandleNumber) -> H:
        """Return a handle. Raises BadHandle for an unknown number."""
        try:
            return self._handles[number]
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None

    def __len__(self) -> int:
        return len(self._handles)

    def replace(self, number: HandleNumber, handle: H) -> None:
        """Give the number to another handle."""
        self._handles[number] = handle

    def remove(self, number: HandleNumber) -> H:
        """Remove and return a handle. Raises BadHandle for an unknown number."""
        try:
            return self._handles.pop(number)
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None


class ReadHandle:
    """A file that is open for reading. `stream` is None for an empty object.

    `writer` is the process that opened the file, if it did so for writing too (O_RDWR); else None.
    """

    def __init__(
        self, inode: Inode, stream: ReadStream | None, *, writer: int | None = None
    ) -> None:
        self.inode = inode
        self.writer = writer
        self._stream = stream
        self.damaged = False  # bytes of it did not match S3's checksum

    @property
    def looked_at(self) -> bool:
        """Whether the program is likely to read little of the file, and the file is not large."""
        stream = self._stream
        return stream is not None and stream.looked_at and stream.size_bytes <= MOST_LOOKED_AT

    def read_exactly(self) -> None:
        """Note that the kernel reads little more of the file than programs ask for."""
        if self._stream is not None:
            self._stream.exact = True

    @property
    def paged(self) -> Paged:
        """How much of the file the kernel may have cached through this handle."""
        if self._stream is None or self._stream.read_bytes == 0:
            return Paged.NOT
        whole = self._stream.read_bytes >= self._stream.size_bytes
        return Paged.ALL if whole else Paged.SOME

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return b"" if self._stream is None else self._stream.read(offset, size)

    def close(self) -> None:
        """Cancel the requests in flight."""
        if self._stream is not None:
            self._stream.close()


class WriteHandle:
    """A file that is written as one upload: the state that its `StreamedHandle`s share.

    Writing may go on after an upload has ended, while a descriptor is open. The object, `base`, is
    then the beginning of another upload, without the zeros that filled it up to its size. A file
    that is opened for appending starts in this way. `begin` makes an upload, with or without a
    base, and returns the attributes that go with it. `replaces`: there is an object of this name.
    `appends`: each write goes to the end (O_APPEND).
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
        self.kept = kept  # attributes that the object is to keep, with the time that was set last
        self.told = kept  # attributes that the object has, or will have when it is uploaded
        self.mtime_ns = self._time(base)  # of the last write, or as it was set
        self.upload: Sequential | None = None  # None: there is nothing to upload
        self._on_base_bytes = 0  # how many bytes of `base` the upload begins with
        self._filled_from_bytes: int | None = None  # where the zeros begin that filled `base` up
        if base is None:
            self.upload, self.told = begin(self, None)
        self.closing = False  # its opener has closed a descriptor of it
        self.flushed = False  # a descriptor has been closed, so the process had one
        self.killed = False  # the process that closed a descriptor last was being killed
        self.finishing = False  # its upload is being completed
        self.removed = False  # it has no name any more: discard what is written
        self._removed_bytes = 0
        self._least_bytes = 0  # the size that was set: zeros fill the file up to it
        self.settled = threading.Event()  # nothing is left to upload, or never will be
        self._failure: Exception | None = None
        self.settling = threading.Lock()  # guards `settled` and what changes with it
        self.opens = 0  # its StreamedHandles, guarded by settling
        self.writers = 0  # how many handles have been able to write it
        self._claimed: Sequential | None = None  # the upload that a thread completes

    @property
    def size_bytes(self) -> int:
        """The file's size: what was written, or the size that was set if that is larger."""
        if self.removed:
            return self._removed_bytes
        return max(self.written_bytes, self._least_bytes)

    @property
    def written_bytes(self) -> int:
        """The offset of the next write."""
        if self.upload is not None:
            return self.upload.size_bytes
        if self._filled_from_bytes is not None:
            return self._filled_from_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def stored_bytes(self) -> int:
        """How many bytes from the file's beginning `base` has."""
        if self.upload is not None:
            return self._on_base_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def pending_bytes(self) -> int:
        """How many bytes of the file S3 does not have."""
        return 0 if self.upload is None else self.upload.pending_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Write the next bytes; return how many. Raises NotSequential, and what uploads raise.

        Zeros beyond the next byte only set the size: glibc's posix_fallocate writes one zero at the
        end of each block. A write at the end of a size that was set first fills the gap with zeros.
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
        """Discard the file without an error; return the upload that the caller has to abort."""
        self._removed_bytes = self.size_bytes
        self.removed = True
        begun, self.upload = self.upload, None
        self.settled.set()
        return begun

    def discards(self, offset: int, size_bytes: int) -> bool:
        """Whether the file has been removed. A write to it then changes its size only."""
        if self.removed:
            self._removed_bytes = max(self._removed_bytes, offset + size_bytes)
        return self.removed

    def resize(self, size_bytes: int) -> None:
        """Note the new size of a file that has been removed."""
        self._removed_bytes = size_bytes

    def set_size(self, size_bytes: int) -> None:
        """Set the size of the file. The caller ensures that it is at least what was written.

        Raises TooLarge above S3's limit.
        """
        if size_bytes > MOST_OBJECT_BYTES:
            raise TooLarge(f"{size_bytes} bytes; an object may have at most {MOST_OBJECT_BYTES}")
        if self.upload is None and size_bytes != self.size_bytes:
            self._go_on(self.written_bytes)
        self._least_bytes = size_bytes
        self.mtime_ns = time.time_ns()

    def finish(self, upload: Sequential) -> ObjectInfo:
        """Finish an upload of this file, with the size that was set; return the new object."""
        return upload.finish(self._least_bytes)

    def restart(self) -> None:
        """Start again with an empty file."""
        begun = self.upload
        self._least_bytes = 0
        self.kept = replace(self.kept, mtime_ns=None)
        self.mtime_ns = time.time_ns()
        self._on_base_bytes = 0
        self.upload, self.told = self._begin(self, None)
        if begun is not None:
            begun.abort()

    def fail(self, error: Exception) -> None:
        """Discard unuploaded writes and reject later ones."""
        self._failure = self._failure or error
        if self.upload is not None:
            self.upload.fail(error)

    def check(self) -> None:
        """Raise the error that the file has failed with, if any."""
        if self.upload is not None:
            self.upload.check()
        if self._failure is not None:
            raise self._failure

    def claim(self, upload: Sequential) -> bool:
        """Whether the caller is the one that has to complete this upload."""
        with self.settling:
            if upload is not self.upload or upload is self._claimed:
                return False
            self._claimed = upload
            return True

    def stored(self, info: ObjectInfo) -> None:
        """Note that the object is `info` now, with all that was written and its attributes."""
        if self.upload is not None:
            self._filled_from_bytes = None
            if isinstance(self.upload, Upload):  # appended zeros stay
                self._filled_from_bytes = self.upload.filled_from_bytes
            self.upload = None
        self.base, self.condition = info, unchanged(info)

    def moved(self, copy: ObjectInfo) -> None:
        """Note that `base` is now at `copy`, after a rename."""
        self.base, self.condition = copy, unchanged(copy)

    def became(self, info: ObjectInfo) -> None:
        """Note that the object is `info` now: its attributes were set, its bytes are the same."""
        self.base, self.condition = info, unchanged(info)
        self.kept = self.told = parsed(info.metadata)
        self.mtime_ns = self._time(info)

    def _time(self, base: ObjectInfo | None) -> int:
        if base is None:
            return time.time_ns()
        return base.mtime_ns if self.kept.mtime_ns is None else self.kept.mtime_ns

    def _go_on(self, offset: int) -> Sequential:
        """Begin an upload on `base`. The kernel allows no other write to the inode meanwhile."""
        base = self.base
        assert base is not None
        if offset not in (self.written_bytes, base.size_bytes):
            raise NotSequential(
                f"a write at {offset}, but the next byte to write is {self.written_bytes}"
            )
        upload, self.told = self._begin(self, base)
        self.upload, self._on_base_bytes = upload, offset
        if isinstance(upload, Upload):
            upload.copy(base, 0, offset)
        return upload


class StreamedHandle:
    """A handle of a file that is being written; `opener` is the process that opened it.

    Other processes get it by fork(2) or through a socket. When the opener closes it, the upload
    ends (`fs/writes/streamed`). Create it with the lock of `file`, or before others have `file`.
    """

    def __init__(self, file: WriteHandle, opener: int, *, writes: bool) -> None:
        # dependencies
        self.file = file
        self.inode = file.inode
        # constants
        self.opener = opener
        self.writes = writes
        # mutable
        self.wrote = False  # something was written through this handle
        file.opens += 1
        file.writers += writes


#: Makes an upload of a file, on a base or without one; returns it and the attributes it carries.
Begin = Callable[[WriteHandle, ObjectInfo | None], tuple[Sequential, FileAttributes]]


class StagedWriter:
    """A staged file: the state that all its handles share.

    `new`: the file was created here, so the kernel has no pages of an earlier version. `kept` are
    the attributes that the object keeps; None: attributes are never kept.
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
        self.handles: set[StagedHandle] = set()  # guarded by the lock of StagedWrites
        self.kept = kept or NOTHING  # attributes that the object is to keep, except its time
        self.set_ns: int | None = None  # the time, if it was set after the last write
        self.settling = threading.Lock()  # guards these attributes
        self.tried: FileAttributes | None = None  # attributes of the last copy that was tried

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.file.size_bytes

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more."""
        return self.file.unlinked

    @property
    def pending_bytes(self) -> int:
        """How many bytes S3 may lack: all of a changed file, as the close decides what is sent."""
        return self.file.size_bytes if self.file.dirty else 0

    @property
    def is_stored(self) -> bool:
        """Whether there is an object under its key."""
        return self.file.base is not None or not self.new

    @property
    def told(self) -> FileAttributes:
        """The attributes that the object in S3 has."""
        base = self.file.base
        return parsed(base.metadata) if base is not None and self._keeps else NOTHING

    @property
    def mtime_ns(self) -> int:
        """The time of the last write, or the time that was set after it."""
        if self.set_ns is not None:
            return self.set_ns
        kept_ns = None if self.file.dirty else self.told.mtime_ns
        return self.file.mtime_ns if kept_ns is None else kept_ns

    def write(self, offset: int, data: bytes) -> int:
        """Write at any offset; return the number of bytes."""
        written = self.file.write(offset, data)
        self.set_ns = None
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros."""
        self.file.truncate(size_bytes)
        self.set_ns = None


class StagedHandle:
    """A handle of a staged file; `opener` is the process that opened it.

    `changed`: the file was changed through this handle, and no upload has been tried since. An open
    that creates the file or cuts it to nothing counts as a change.
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
        self.wrote = False  # at any time since the open
        self.flushed = False  # a descriptor has been closed, so the process had one
        self.killed = False  # the process that closed a descriptor last was being killed

    @property
    def is_lost(self) -> bool:
        """Whether to discard what was changed, because the process was killed.

        A process that is killed inside open(2) never gets a descriptor, so it never closes one.
        """
        return self.killed or not (self.flushed or self.wrote)

    def write(self, offset: int, data: bytes) -> int:
        """Write at any offset; return the number of bytes."""
        written = self.writer.write(offset, data)
        self.wrote = self.changed = True  # after it, or an earlier upload would clear it
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros."""
        self.writer.truncate(size_bytes)
        self.wrote = self.changed = True


def check_flags(flags: int) -> None:
    """Raise BadArgument for flags that no file can be written with."""
    if flags & SYNC_FLAGS:
        raise BadArgument(
            "O_SYNC and O_DSYNC are not supported: a file is in S3 when it is closed",
            f"{NO_OPTION}omit the flag, and use fsync(2)",
        )


def unchanged(info: ObjectInfo) -> Condition:
    """Return the condition that the object is still this version."""
    return Condition(etag=info.etag) if info.etag else ALWAYS


class DirectoryHandle:
    """An open directory, with its listing as far as it was read.

    The first read starts the listing, after the directory was opened; so does the first read after
    `rewind`. Positions stay valid until then. `process` is the process that opened the directory;
    `first` is the prefetched start of the first listing, if that process walks the tree. `local`
    returns the entries that are not in the bucket; they follow those of the bucket.

    The listing has its own lock, and is replaced in one step of the interpreter.
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
        """Drop the listing if it has begun, so that the next read starts a new one."""
        # Before the new listing starts: so one of them has a file that is uploaded meanwhile.
        self._beside = self._local()
        listing = self._listing
        if listing.begun:
            self._listing = self._new_listing()
            listing.close()

    def read(self, position: int, count: int) -> list[Entry]:
        """Return entries from `position` on: `count` of them, or fewer at the end of a page.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing that goes
        in circles, and Stalled for one that brings no entry for too long.
        """
        entries = self._listing.read(position, count)
        if entries or not self._beside:
            return entries
        listed = self._listing.names()
        beside = [each for each in self._beside if each.name not in listed]
        start = position - len(listed)
        return beside[start : start + count]

    def close(self) -> None:
        """Cancel the requests in flight."""
        self._listing.close()
