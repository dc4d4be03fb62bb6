"""Open files and directories: one class each, and the table that numbers them."""

import itertools
import threading
import time
from typing import Generic, NewType, Protocol, TypeVar

import structlog

from mountpoint.errors import BadAnswer, BadHandle, Stalled
from mountpoint.inodes import Inode
from mountpoint.listing.ahead import Asked, WalkAhead
from mountpoint.listing.pages import END, Span, reach_of
from mountpoint.listing.recent import Listings
from mountpoint.reading.stream import Bytes, ReadStream
from mountpoint.s3.client import ListPage, ObjectClient
from mountpoint.s3.retry import Patience
from mountpoint.tree import DirectoryMerge, Entry

log = structlog.get_logger(__name__)

HandleNumber = NewType("HandleNumber", int)


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

    def remove(self, number: HandleNumber) -> H:
        """Forget and return a handle. Raises BadHandle."""
        try:
            return self._handles.pop(number)
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None


class ReadHandle:
    """A file open for reading. `stream` is None for an empty object."""

    def __init__(self, inode: Inode, stream: ReadStream | None) -> None:
        self.inode = inode
        self._stream = stream

    @property
    def was_read(self) -> bool:
        """Whether there have been bytes for the kernel to keep."""
        return self._stream is not None and self._stream.read_bytes > 0

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return b"" if self._stream is None else self._stream.read(offset, size)

    def close(self) -> None:
        """Cancel what is in flight."""
        if self._stream is not None:
            self._stream.close()


class DirectoryHandle:
    """An open directory: its listing, page by page as it is read.

    A listing begins with the first read, after the directory was opened, and anew with the
    first read after `rewind`. Positions in it stay valid until then. The first one may have
    been made ahead, for a `process` that walks through a tree.

    `_lock` guards the listing; it is not held while a page is asked for. Should two threads
    ask for the same page, the second answer is thrown away.
    """

    def __init__(
        self,
        inode: Inode,
        process: int,
        client: ObjectClient,
        patience: Patience,
        listings: Listings,
        ahead: WalkAhead,
    ) -> None:
        # dependencies
        self.inode = inode
        self._process = process
        self._client = client
        self._patience = patience
        self._listings = listings
        self._ahead = ahead
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._listing = _Listing(inode.key)
        self._read = False  # since the directory was opened
        self._asked: Asked | None = None  # the first page

    def rewind(self) -> None:
        """Forget the listing, if it has begun: the next read makes a new one."""
        with self._lock:
            if self._listing.begun:
                self._listing = _Listing(self.inode.key)

    def read(self, position: int, count: int) -> list[Entry]:
        """Return the entries from `position` on: `count` of them, or up to a page's end.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing
        that goes in circles, Stalled for one that goes on for too long without an entry.
        """
        with self._lock:
            listing = self._listing
            first, self._read = not self._read, True
        if first:
            self._begin(listing)
        tries = self._patience.begin()
        while len(listing.entries) <= position and not listing.complete:
            if tries.left_s() <= 0:
                raise Stalled("the listing goes on without an entry")
            self._read_page(listing)
        return listing.entries[position : position + count]

    def _begin(self, listing: "_Listing") -> None:
        """Take what is known of the directory because its process walks."""
        known = self._ahead.opened(self._process, self.inode.key)
        if isinstance(known, Asked):
            self._asked = known
        elif known is not None:
            with self._lock:
                listing.take_whole(known.entries)
            self._note(known.entries, known.asked_at_s, Span(b"", END, known.asked_at_s))

    def _read_page(self, listing: "_Listing") -> None:
        token = listing.token
        with self._lock:
            asked, self._asked = self._asked, None
        asked_at_s = asked.asked_at_s if asked else time.monotonic()
        begun = iter([asked.future] if asked else [])
        page = self._patience.ask(
            lambda: next(begun, None) or self._client.list(self.inode.key, token=token)
        ).answer()
        with self._lock:
            if listing.complete or listing.token != token:
                return  # another thread has been here
            held, held_since_s = listing.merge.holds, listing.held_since_s
            certain = listing.add(page, asked_at_s)
            span = listing.span
        # What an earlier page had named comes first, and is as old as that page.
        if held:
            self._note(certain[:held], held_since_s, None)
        self._note(certain[held:], asked_at_s, span)
        prefix = self.inode.key.decode("utf-8", "backslashreplace")
        if page.skipped:
            log.warning(
                "entries of a listing made no sense and were left out",
                prefix=prefix,
                count=page.skipped,
            )
        hidden = listing.merge.unnameable
        if page.next_token is None and hidden:
            log.debug("keys that cannot be names are not shown", prefix=prefix, count=hidden)

    def _note(self, entries: list[Entry], asked_at_s: float, span: Span | None) -> None:
        self._listings.add(self.inode.key, entries, asked_at_s, span)
        self._ahead.listed(self._process, self.inode.key, entries)


class _Listing:
    """A directory's entries so far."""

    def __init__(self, prefix: bytes) -> None:
        self.merge = DirectoryMerge(prefix)
        self.entries: list[Entry] = []
        self.token: str | None = None  # of the next page
        self.begun = False
        self.complete = False
        self.held_since_s = 0.0  # age of the oldest entry that is not certain yet
        self.span: Span | None = None  # of the last page
        self._prefix = prefix
        self._reach = b""  # of the pages so far
        self._tokens: set[str] = set()

    def take_whole(self, entries: list[Entry]) -> None:
        """Take all there is."""
        self.entries = entries
        self.begun = self.complete = True

    def add(self, page: ListPage, asked_at_s: float) -> list[Entry]:
        """Take the next page; return what became certain."""
        if page.next_token is not None and page.next_token in self._tokens:
            raise BadAnswer("the listing goes in circles: a continuation token came twice")
        held = self.merge.holds
        certain = self.merge.feed(page)
        if len(certain) >= held:  # what is held back now is of this page
            self.held_since_s = asked_at_s
        reach = reach_of(self._prefix, self._reach, page)
        self.span = None if reach is None else Span(self._reach, reach, asked_at_s)
        self._reach = reach or self._reach
        self.entries += certain
        self.begun = True
        self.token = page.next_token
        self.complete = page.next_token is None
        if page.next_token is not None:
            self._tokens.add(page.next_token)
        return certain
