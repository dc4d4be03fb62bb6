"""What the listings of the last second said: lookups answered without asking S3.

There is no readdirplus below llfuse, so `ls -l` is a listing and then one lookup per name.
A page of LIST names up to 1,000 entries; each is good for a lookup until its page is
`ttl_s` old, counted from when the page was asked for. Pages are dropped when they are too
old, or when there are more than `MAX_NAMES` names. Of a dropped page its span is kept: where
it began and how far it told, so that it can be asked for again (`siblings`).

It knows nothing of what is not listed: only S3 can say that a name does not exist.
"""

import threading
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mountpoint.listing.pages import Span, Spans
from mountpoint.tree import Entry

#: About 25 MB with names of 30 bytes. A second of LIST brings some 30,000 names.
MAX_NAMES = 100_000
#: Ten million names; about 3 MB. The directories that were used last are kept.
MAX_SPANS = 10_000


K = TypeVar("K")


class _Page(NamedTuple):
    directory: bytes
    asked_at_s: float
    until_s: float  # one object for all of its lookups: inodes keep it
    entries: dict[bytes, Entry]


class Listings:
    """Recently listed entries, by the prefix of their directory. Thread-safe."""

    def __init__(self, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        # constants
        self._ttl_s = ttl_s
        self._clock = clock
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._pages: deque[_Page] = deque()  # oldest first
        self._of: dict[bytes, list[_Page]] = {}  # oldest first
        self._names = 0
        self._spans: OrderedDict[bytes, Spans] = OrderedDict()  # by directory, last used last
        self._span_count = 0
        self._seen_at_s: dict[bytes, float] = {}  # directories, oldest first
        self._discarded_at_s: dict[tuple[bytes, bytes], float] = {}  # oldest first

    def add(
        self,
        directory: bytes,
        entries: list[Entry],
        asked_at_s: float,
        span: Span | None = None,
    ) -> None:
        """Note what a page said. `asked_at_s` is the clock when it was asked for.

        What has no version is left out: it has to be asked for one by one.
        """
        known = {entry.name: entry for entry in entries if entry.has_version}
        page = _Page(directory, asked_at_s, asked_at_s + self._ttl_s, known)
        with self._lock:
            # Pages may come in another order than they were asked for.
            insort(self._pages, page, key=_asked_at_s)
            insort(self._of.setdefault(directory, []), page, key=_asked_at_s)
            self._names += len(page.entries)
            if page.entries:
                self._see(directory, asked_at_s)
            if span is not None:
                self._add_span(directory, span)
            self._drop_old()

    def see(self, directory: bytes, asked_at_s: float) -> None:
        """Note that there was something in a directory: so it exists, and all above it."""
        with self._lock:
            self._see(directory, asked_at_s)
            self._drop_old()

    def span_of(self, directory: bytes, name: bytes) -> Span | None:
        """Return the newest page, fresh or not, in which a name lies or would lie."""
        with self._lock:
            spans = self._spans.get(directory)
            if spans is None:
                return None
            self._spans.move_to_end(directory)
            return spans.find(name)

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return the entry and until when (on the clock) it may be used, or None."""
        with self._lock:
            self._drop_old()
            discarded_at_s = self._discarded_at_s.get((directory, name), 0.0)
            for page in reversed(self._of.get(directory, ())):
                entry = page.entries.get(name)
                if entry is not None and page.asked_at_s > discarded_at_s:
                    return entry, page.until_s
            seen_at_s = self._seen_at_s.get(directory + name + b"/")
            if seen_at_s is not None and seen_at_s > self._clock() - self._ttl_s:
                return Entry(name, None), seen_at_s + self._ttl_s
        return None

    def discard(self, directory: bytes, name: bytes) -> None:
        """Forget a name, which has turned out to be something else.

        Pages that were asked for before count no more for it, also those still on their way.
        """
        with self._lock:
            self._discarded_at_s.pop((directory, name), None)
            self._discarded_at_s[directory, name] = self._clock()
            self._drop_old()

    def __len__(self) -> int:
        """Return the number of names remembered."""
        return self._names

    def _see(self, directory: bytes, asked_at_s: float) -> None:
        while directory:
            last_s = self._seen_at_s.pop(directory, asked_at_s)
            self._seen_at_s[directory] = max(last_s, asked_at_s)
            directory = directory[: directory.rfind(b"/", 0, -1) + 1]

    def _add_span(self, directory: bytes, span: Span) -> None:
        spans = self._spans.setdefault(directory, Spans())
        self._spans.move_to_end(directory)
        self._span_count -= len(spans)
        spans.add(span)
        self._span_count += len(spans)
        while self._span_count > MAX_SPANS:
            _, oldest = self._spans.popitem(last=False)
            self._span_count -= len(oldest)

    def _drop_old(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._pages and (self._pages[0].asked_at_s <= oldest or self._names > MAX_NAMES):
            page = self._pages.popleft()
            self._names -= len(page.entries)
            pages = self._of[page.directory]
            pages.remove(page)
            if not pages:
                del self._of[page.directory]
        _drop_until(oldest, self._discarded_at_s)
        _drop_until(oldest, self._seen_at_s)


def _drop_until(oldest_s: float, times_s: dict[K, float]) -> None:
    while times_s:
        first = next(iter(times_s))
        if times_s[first] > oldest_s:
            break
        del times_s[first]


def _asked_at_s(page: _Page) -> float:
    return page.asked_at_s
