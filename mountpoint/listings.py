"""What the listings of the last second said: lookups answered without asking S3.

There is no readdirplus below llfuse, so `ls -l` is a listing and then one lookup per name.
A page of LIST names up to 1,000 entries; each is good for a lookup until its page is
`ttl_s` old, counted from when the page was asked for. Pages are dropped when they are too
old, or when there are more than `MAX_NAMES` names.

It knows nothing of what is not listed: only S3 can say that a name does not exist.
"""

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mountpoint.tree import Entry

#: About 25 MB with names of 30 bytes. A second of LIST brings some 30,000 names.
MAX_NAMES = 100_000


class _Page(NamedTuple):
    directory: bytes
    asked_at_s: float
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
        self._discarded_at_s: dict[tuple[bytes, bytes], float] = {}  # oldest first

    def add(self, directory: bytes, entries: list[Entry], asked_at_s: float) -> None:
        """Note what a page said. `asked_at_s` is the clock when it was asked for."""
        page = _Page(directory, asked_at_s, {entry.name: entry for entry in entries})
        with self._lock:
            # Pages may come in another order than they were asked for.
            insort(self._pages, page, key=_asked_at_s)
            insort(self._of.setdefault(directory, []), page, key=_asked_at_s)
            self._names += len(page.entries)
            self._drop_old()

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return the entry and until when (on the clock) it may be used, or None."""
        with self._lock:
            self._drop_old()
            discarded_at_s = self._discarded_at_s.get((directory, name), 0.0)
            for page in reversed(self._of.get(directory, ())):
                entry = page.entries.get(name)
                if entry is not None and page.asked_at_s > discarded_at_s:
                    return entry, page.asked_at_s + self._ttl_s
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

    def _drop_old(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._pages and (self._pages[0].asked_at_s <= oldest or self._names > MAX_NAMES):
            page = self._pages.popleft()
            self._names -= len(page.entries)
            pages = self._of[page.directory]
            pages.remove(page)
            if not pages:
                del self._of[page.directory]
        while self._discarded_at_s:
            name, discarded_at_s = next(iter(self._discarded_at_s.items()))
            if discarded_at_s > oldest:
                break
            del self._discarded_at_s[name]


def _asked_at_s(page: _Page) -> float:
    return page.asked_at_s
