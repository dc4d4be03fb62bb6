"""What was listed a moment ago: lookups answered without asking S3.

There is no readdirplus below llfuse, so `ls -l` is a listing and then one lookup per name.
A page of LIST names up to 1,000 entries; each is good for a lookup until its page is
`ttl_s` old, counted from when the page was asked for. The newest knowledge counts: a page
that names something else, or that tells of a name without naming it, ends what older pages
said. Of a page that is gone its span is kept: where it began and how far it told, so that
it can be asked for again (`batch_lookup`).

A name that does not exist is believed not to for `negative_ttl_s`, by the page that tells
of it and does not name it, or by the lookup that found nothing (`missed`). With 0 that is
never believed, and only S3 can say so.

Nothing takes time that grows with the number of pages: for each directory there is an index
from name to the newest page. Pages go when they are too old, when newer ones name all that
they name, and when there is too much: then the oldest, but for those that were used since.
"""

import itertools
import math
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from mountpoint.listing.pages import Span, Spans
from mountpoint.listing.tree import Entry

#: About 60 MB with names of 30 bytes in keys of 60. A second of LIST brings some 30,000 names.
MAX_NAMES = 100_000
#: Pages of one name or none are mostly overhead: 1 KB each.
MAX_PAGES = 10_000
#: Ten million names; about 3 MB. The directories that were used last are kept.
MAX_SPANS = 10_000
#: Names that do not exist, as many as the reference keeps; about 20 MB.
MAX_MISSES = 100_000
#: Directories in which something was seen, and names that were discarded: about 4 MB each.
MAX_SEEN = 20_000


K = TypeVar("K")


class _Page:
    """One page's names; None for what exists, but has to be asked for.

    `live` counts the names for which no newer page is held; `used` is whether one was found
    since the page was last looked at to be dropped.
    """

    __slots__ = (
        "asked_at_s",
        "directory",
        "entries",
        "files",
        "first",
        "live",
        "number",
        "until_s",
        "used",
    )

    def __init__(
        self,
        number: int,
        directory: bytes,
        asked_at_s: float,
        until_s: float,
        entries: list[Entry],
    ) -> None:
        self.number = number
        self.directory = directory
        self.asked_at_s = asked_at_s
        self.until_s = until_s  # one object for all of its lookups: inodes keep it
        self.entries = {each.name: each if each.has_version else None for each in entries}
        self.live = 0
        self.used = False
        self.first = (entries[0].name if entries else b"", number)
        self.files: list[bytes] | None = None  # in order, once somebody asks for it


class _Directory:
    """The pages of one directory.

    Invariant: `newest[name].entries` has `name`, and each page in `firsts` is held.
    """

    __slots__ = ("firsts", "newest")

    def __init__(self) -> None:
        self.newest: dict[bytes, _Page] = {}
        self.firsts: list[tuple[bytes, int]] = []  # first name and number, in order


class ListingCache:
    """Recently listed entries, by the prefix of their directory. Thread-safe."""

    def __init__(
        self,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        negative_ttl_s: float = 0.0,
    ) -> None:
        # constants
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._kept_s = max(ttl_s, negative_ttl_s)
        self._clock = clock
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # by number; about oldest first
        self._of: dict[bytes, _Directory] = {}
        self._names = 0
        self._spans: OrderedDict[bytes, Spans] = OrderedDict()  # by directory, last used last
        self._span_count = 0
        # By when they were asked for, oldest first:
        self._seen_at_s: dict[bytes, float] = {}  # directories
        self._discarded_at_s: dict[tuple[bytes, bytes], float] = {}
        self._missed_at_s: dict[tuple[bytes, bytes], float] = {}
        self._forgotten_at_s: dict[bytes, float] = {}  # directories, with all below them

    def add(
        self,
        directory: bytes,
        entries: list[Entry],
        asked_at_s: float,
        span: Span | None = None,
    ) -> None:
        """Note what a page said. `asked_at_s` is the clock when it was asked for.

        What has no version is not kept: it has to be asked for one by one.
        """
        with self._lock:
            if self._is_forgotten(directory, asked_at_s):
                return
            until_s = asked_at_s + self._ttl_s
            page = _Page(next(self._numbers), directory, asked_at_s, until_s, entries)
            self._put(page)
            if entries:
                self._see(directory, asked_at_s)
            if span is not None:
                self._add_span(directory, span._replace(page=page.number))
            self._drop_old()

    def see(self, directory: bytes, asked_at_s: float) -> None:
        """Note that there was something in a directory: so it exists, and all above it."""
        with self._lock:
            if not self._is_forgotten(directory, asked_at_s):
                self._see(directory, asked_at_s)
            self._drop_old()

    def span_of(self, directory: bytes, name: bytes) -> Span | None:
        """Return the newest page, fresh or not, in which a name lies or would lie.

        One whose names are not held any more counts as very old.
        """
        with self._lock:
            self._drop_old()
            span = self._span_of(directory, name)
            if span is None:
                return None
            self._spans.move_to_end(directory)
            fresh = span.asked_at_s > self._clock() - self._ttl_s
            if fresh and span.page not in self._pages:
                span = span._replace(asked_at_s=-math.inf)
            return span._replace(page=0)

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return the entry and until when (on the clock) it may be used, or None."""
        with self._lock:
            self._drop_old()
            return self._find(directory, name)

    def absent(self, directory: bytes, name: bytes) -> float | None:
        """Return until when (on the clock) a name may be believed not to exist, or None."""
        if self._negative_ttl_s <= 0:
            return None
        with self._lock:
            self._drop_old()
            told_at_s = self._absent_at_s(directory, name)
            until_s = told_at_s + self._negative_ttl_s
            return until_s if until_s > self._clock() else None

    def is_gone(self, directory: bytes, name: bytes) -> bool:
        """Whether a page younger than the ttl tells of a name, and no page names it."""
        with self._lock:
            self._drop_old()
            span = self._span_of(directory, name)
            page = None if span is None else self._pages.get(span.page)
            if span is None or page is None or not span.tells_of(name):
                return False
            return name not in page.entries and page.asked_at_s > self._clock() - self._ttl_s

    def missed(self, directory: bytes, name: bytes, asked_at_s: float) -> None:
        """Note that a lookup has found nothing; it asked at `asked_at_s`."""
        if self._negative_ttl_s <= 0:
            return
        with self._lock:
            if not self._is_forgotten(directory, asked_at_s):
                _note(self._missed_at_s, (directory, name), asked_at_s, MAX_MISSES)
            self._drop_old()

    def following(self, directory: bytes, name: bytes, count: int) -> list[Entry]:
        """Return the next files behind `name` that are known, in the order of their names."""
        found: list[Entry] = []
        with self._lock:
            self._drop_old()
            place = self._of.get(directory)
            page = place and place.newest.get(name)
            while place and page and len(found) < count:
                if page.files is None:
                    page.files = sorted(each for each, entry in page.entries.items() if entry)
                for each in page.files[bisect_right(page.files, name) :]:
                    known = self._find(directory, each)
                    if known is not None and not known[0].is_directory:
                        found.append(known[0])
                        if len(found) == count:
                            break
                name = max(name, page.first[0], *page.files[-1:])
                index = bisect_right(place.firsts, (name, math.inf))
                page = self._pages[place.firsts[index][1]] if index < len(place.firsts) else None
        return found

    def discard(self, directory: bytes, name: bytes) -> None:
        """Forget a name, which has turned out to be something else.

        Pages that were asked for before count no more for it, also those still on their way.
        """
        with self._lock:
            self._missed_at_s.pop((directory, name), None)
            _note(self._discarded_at_s, (directory, name), self._clock(), MAX_SEEN)
            place = self._of.get(directory)
            page = place and place.newest.get(name)
            if page:
                page.entries[name] = None
            self._drop_old()

    def made(self, directory: bytes, entry: Entry) -> None:
        """Note what this mount has just made."""
        with self._lock:
            self._missed_at_s.pop((directory, entry.name), None)
        self.add(directory, [entry], self._clock())

    def gone(self, directory: bytes, name: bytes) -> None:
        """Note that this mount has just removed a name, after `discard`: this counts more."""
        self.missed(directory, name, math.nextafter(self._clock(), math.inf))

    def forget(self, directory: bytes) -> None:
        """Forget how the listing of a directory was divided into pages."""
        with self._lock:
            self._span_count -= len(self._spans.pop(directory, ()))

    def forget_below(self, prefix: bytes) -> None:
        """Forget all names in a directory and below, also those that are still on their way."""
        with self._lock:
            _note(self._forgotten_at_s, prefix, self._clock(), MAX_SEEN)
            for directory in [each for each in self._of if each.startswith(prefix)]:
                for _, number in list(self._of[directory].firsts):
                    self._drop(self._pages[number])
            for directory in [each for each in self._spans if each.startswith(prefix)]:
                self._span_count -= len(self._spans.pop(directory))
            for seen in [each for each in self._seen_at_s if each.startswith(prefix)]:
                del self._seen_at_s[seen]
            for missed in [each for each in self._missed_at_s if each[0].startswith(prefix)]:
                del self._missed_at_s[missed]

    def sweep(self) -> None:
        """Let go what is too old, also where nobody looks for anything any more."""
        with self._lock:
            self._drop_old()

    def __len__(self) -> int:
        """Return the number of names remembered."""
        return self._names

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            assert self._names == sum(len(page.entries) for page in self._pages.values())
            assert self._span_count == sum(map(len, self._spans.values()))
            firsts = [first for place in self._of.values() for first in place.firsts]
            assert {number for _, number in firsts} == set(self._pages)
            for place in self._of.values():
                assert place.firsts == sorted(place.firsts)
                for name, page in place.newest.items():
                    assert name in page.entries
                    assert self._pages[page.number] is page
            for number, page in self._pages.items():
                newest = self._of[page.directory].newest
                assert page.live == sum(newest.get(name) is page for name in page.entries)
                assert page.number == number

    # --- what is known (lock held) ---

    def _is_forgotten(self, directory: bytes, asked_at_s: float) -> bool:
        """Whether what was asked for then had to be forgotten since."""
        if not self._forgotten_at_s:
            return False
        while self._forgotten_at_s.get(directory, -math.inf) < asked_at_s:
            if not directory:
                return False
            directory = directory[: directory.rfind(b"/", 0, -1) + 1]
        return True

    def _find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        oldest_s = max(self._clock() - self._ttl_s, self._discarded_s(directory, name))
        place = self._of.get(directory)
        page = place and place.newest.get(name)
        if page and page.asked_at_s > oldest_s:
            entry = page.entries[name]
            if entry is not None and not self._is_gone(page, name):
                page.used = True
                return entry, page.until_s
        seen_at_s = self._seen_at_s.get(directory + name + b"/", -math.inf)
        if seen_at_s > oldest_s:
            return Entry(name, None), seen_at_s + self._ttl_s
        return None

    def _discarded_s(self, directory: bytes, name: bytes) -> float:
        return self._discarded_at_s.get((directory, name), -math.inf)

    def _is_gone(self, page: _Page, name: bytes) -> bool:
        """Whether a page that is newer than the newest with this name tells of it."""
        span = self._span_of(page.directory, name)
        if span is None or not span.tells_of(name):
            return False
        return (span.asked_at_s, span.page) > (page.asked_at_s, page.number)

    def _absent_at_s(self, directory: bytes, name: bytes) -> float:
        """Return when it was said last that a name does not exist; -inf if it may exist."""
        said_s = self._missed_at_s.get((directory, name), -math.inf)
        span = self._span_of(directory, name)
        if span is not None and span.tells_of(name):
            page = self._pages.get(span.page)
            if page is not None and name not in page.entries:
                said_s = max(said_s, span.asked_at_s)
        place = self._of.get(directory)
        newest = place and place.newest.get(name)
        denied_s = max(
            newest.asked_at_s if newest else -math.inf,
            self._discarded_s(directory, name),
            self._seen_at_s.get(directory + name + b"/", -math.inf),
        )
        return said_s if said_s > denied_s else -math.inf

    def _span_of(self, directory: bytes, name: bytes) -> Span | None:
        spans = self._spans.get(directory)
        return None if spans is None else spans.find(name)

    # --- what is kept (lock held) ---

    def _put(self, page: _Page) -> None:
        place = self._of.setdefault(page.directory, _Directory())
        self._pages[page.number] = page
        insort(place.firsts, page.first)
        self._names += len(page.entries)
        newest = place.newest
        passed = []
        for name in page.entries:
            other = newest.get(name)
            if other is not None:
                if other.asked_at_s > page.asked_at_s:
                    continue  # pages may come in another order than they were asked for
                other.live -= 1
                if other.live == 0:
                    passed.append(other)
            newest[name] = page
            page.live += 1
        for other in passed:
            self._drop(other)
        if page.entries and page.live == 0:
            self._drop(page)

    def _drop(self, page: _Page) -> None:
        del self._pages[page.number]
        self._names -= len(page.entries)
        place = self._of[page.directory]
        del place.firsts[bisect_left(place.firsts, page.first)]
        if page.live:
            for name in page.entries:
                if place.newest.get(name) is page:
                    del place.newest[name]
        if not place.firsts:
            del self._of[page.directory]

    def _see(self, directory: bytes, asked_at_s: float) -> None:
        while directory:
            last_s = self._seen_at_s.get(directory, asked_at_s)
            _note(self._seen_at_s, directory, max(last_s, asked_at_s), MAX_SEEN)
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
        oldest_s = self._clock() - self._kept_s
        while self._pages:
            page = next(iter(self._pages.values()))
            if page.asked_at_s > oldest_s:
                if self._names <= MAX_NAMES and len(self._pages) <= MAX_PAGES:
                    break
                if page.used:  # a second chance
                    page.used = False
                    self._pages.move_to_end(page.number)
                    continue
            self._drop(page)
        _drop_until(oldest_s, self._discarded_at_s)
        _drop_until(oldest_s, self._seen_at_s)
        _drop_until(oldest_s, self._missed_at_s)
        _drop_until(oldest_s, self._forgotten_at_s)  # what was asked for before is too old, too


def _note(times_s: dict[K, float], key: K, time_s: float, most: int) -> None:
    """Put a time last, and let the first go where there are too many."""
    times_s.pop(key, None)
    times_s[key] = time_s
    if len(times_s) > most:
        del times_s[next(iter(times_s))]


def _drop_until(oldest_s: float, times_s: dict[K, float]) -> None:
    while times_s:
        first = next(iter(times_s))
        if times_s[first] > oldest_s:
            break
        del times_s[first]
