"""Handles of open files and directories, and the table of their numbers.

An open file is an `OpenFile`. There is one class for each way to open one: `reads/handle` reads,
`writes/streamed/handle` and `writes/staged/writer` write.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Generic, NewType, Protocol, TypeVar

from mountpoint.errors import BadHandle
from mountpoint.fs.inodes import Inode
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.directory import DirectoryListing
from mountpoint.listing.flat import CompleteDirectory
from mountpoint.listing.page_chain import PageRequest
from mountpoint.listing.tree import Entry
from mountpoint.native._handles import FIRST_HANDLE
from mountpoint.native._lane import Lane
from mountpoint.read.stream import Bytes
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy

HandleNumber = NewType("HandleNumber", int)


class OpenFile(Protocol):
    """A handle of an open file. Errors are domain errors and S3Errors.

    `shared`: others may change the file's content meanwhile, so the kernel must cache no pages.
    `lane`: where reads find bytes without the interpreter; None if each read comes to the handle.
    """

    @property
    def inode(self) -> Inode: ...
    @property
    def shared(self) -> bool: ...
    @property
    def lane(self) -> Lane | None: ...

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""

    def write(self, offset: int, data: bytes, *, appends: bool) -> int:
        """Write bytes; return how many were accepted.

        `appends`: at the end of the file (O_APPEND). The kernel takes `offset` for that, but does
        not know yet that another program truncates the file when it opens it.
        """

    def truncate(self, size_bytes: int) -> None:
        """Give the file another size."""

    def flush(self, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; `killed`: it is being killed."""

    def give_up(self, process: int) -> bool:
        """Note that a process is killed while it waits in `write`, `flush` or `fsync`.

        Does not wait. Returns whether the process may end now: an upload goes on without it, and a
        write that waits is not made.
        """

    def fsync(self) -> None:
        """Upload all that was written; return when it is in S3."""

    def release(self) -> None:
        """Close the handle."""


H = TypeVar("H")


class HandleTable(Generic[H]):
    """Handles by number. Thread-safe: each change is one atomic step of the interpreter.

    `note` is called with each number that gets a handle, and with None when it is removed. `adopt`
    is called with a number that has no handle, and may give it one (`put`).
    """

    def __init__(self, note: Callable[[HandleNumber, H | None], None] | None = None) -> None:
        # dependencies
        self._note = note
        self.adopt: Callable[[HandleNumber], None] = lambda number: None
        # mutable
        self._handles: dict[HandleNumber, H] = {}
        self._made_for: dict[int, HandleNumber] = {}
        self._numbers = itertools.count(1)

    def add(self, handle: H) -> HandleNumber:
        """Add a handle; return its number."""
        number = HandleNumber(next(self._numbers))
        self._handles[number] = handle
        if self._note is not None:
            self._note(number, handle)
        return number

    def restore(self, handles: dict[HandleNumber, H], made_for: dict[int, HandleNumber]) -> None:
        """Add the handles of another process of this mount, before all others.

        `made_for`: those handles by the number of the request for which they were made.
        """
        self._handles.update(handles)
        self._made_for = made_for
        own = [number for number in handles if number < FIRST_HANDLE]
        self._numbers = itertools.count(max(own, default=0) + 1)

    def get(self, number: HandleNumber) -> H:
        """Return a handle. Raises BadHandle for an unknown number."""
        handle = self._handles.get(number)
        if handle is None:
            self.adopt(number)
            handle = self._handles.get(number)
        if handle is None:
            raise BadHandle(f"handle {number} is not open")
        return handle

    def put(self, number: HandleNumber, handle: H) -> None:
        """Give a number that was noted before a handle."""
        self._handles[number] = handle

    def __len__(self) -> int:
        return len(self._handles)

    def made_for(self, request: int) -> HandleNumber | None:
        """Return the handle that another process has made for a request, and has not answered."""
        return self._made_for.get(request)

    def replace(self, handle: H, other: H) -> None:
        """Give the number of a handle that is open to another handle."""
        numbers = [number for number, each in list(self._handles.items()) if each is handle]
        self._handles.update(dict.fromkeys(numbers, other))
        if self._note is not None:
            for number in numbers:
                self._note(number, other)

    def remove(self, number: HandleNumber) -> H:
        """Remove and return a handle. Raises BadHandle for an unknown number."""
        handle = self._handles.pop(number, None)
        if handle is None:
            self.adopt(number)
            handle = self._handles.pop(number, None)
        if handle is None:
            raise BadHandle(f"handle {number} is not open")
        if self._note is not None:
            self._note(number, None)
        return handle


class DirectoryHandle:
    """An open directory, with its listing as far as it was read.

    The first read starts the listing, after the directory was opened; so does the first read after
    `rewind`. Positions stay valid until then. `process` is the process that opened the directory;
    `first` is the prefetched start of the first listing, if that process walks the tree. `local`
    returns the entries that are not in the bucket; they follow those of the bucket.
    `looked_up`: programs have looked up names that it lists.

    The listing has its own lock, and is replaced in one step of the interpreter.
    """

    def __init__(
        self,
        inode: Inode,
        process: int,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        listings: ListingCache,
        first: PageRequest | CompleteDirectory | None = None,
        local: Callable[[], list[Entry]] = list,
    ) -> None:
        # dependencies
        self.inode = inode
        self.process = process
        self._new_listing = partial(DirectoryListing, inode.key, client, retry_policy, listings)
        self._local = local
        # mutable
        self.looked_up = False  # whether programs look up the names that it lists
        self._listing = self._new_listing(first)
        self._beside = local()

    def rewind(self) -> None:
        """Drop the listing if it has started, so that the next read starts a new one."""
        # Before the new listing starts: so one of them has a file that is uploaded meanwhile.
        self._beside = self._local()
        listing = self._listing
        if listing.started:
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
