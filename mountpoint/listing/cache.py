"""Cache of listed names: answers lookups without asking S3.

llfuse has no readdirplus, so `ls -l` is a listing followed by one lookup per name. A page of LIST
names up to 1,000 entries. Each is valid for lookups until the page is `ttl_s` old, counted from the
request. The newest information wins: a page that names something else, or that covers a name
without listing it, overrides older pages. After a page is dropped, its span stays: its start and
its reach, so that it can be requested again (`batch_lookup`).

A missing name counts as absent for `negative_ttl_s`, by a page that covers it without listing it,
or by a lookup that found nothing (`record_absent`). With 0, only S3 can say that a name is missing.

No operation takes time proportional to the number of pages: each directory has an index from name
to the newest page. Pages are dropped when they are too old, when newer pages name everything they
name, and when the cache is full. Then the oldest go first, except those used recently.
"""

import itertools
import math
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from mountpoint.listing.pages import Span, Spans
from mountpoint.listing.tree import Entry

#: About 60 MB with names of 30 bytes in keys of 60. LIST returns some 30,000 names per second.
MAX_NAMES = 100_000
#: Pages with one name or none are mostly overhead: 1 KB each.
MAX_PAGES = 10_000
#: Spans of ten million names; about 3 MB. Those of the most recently used directories are kept.
MAX_SPANS = 10_000
#: Missing names, as many as AWS's mount-s3 keeps; about 20 MB.
MAX_ABSENT = 100_000
#: Directories known to have an entry, and discarded names: about 4 MB each.
MAX_TIMES = 20_000
#: The share of the ttl within which an existing directory is not recorded again: each open of a
#: file does so.
JUST_SHARE = 1 / 16


K = TypeVar("K")


class _Page:
    """One page's names; None for an entry that exists but needs a lookup.

    `live` counts the names that no newer page holds. `used` means that a lookup found one of them
    since the page was last considered for eviction.
    """

    __slots__ = (
        "directory",
        "entries",
        "files",
        "first",
        "live",
        "number",
        "requested_at_s",
        "until_s",
        "used",
    )

    def __init__(
        self,
        number: int,
        directory: bytes,
        requested_at_s: float,
        until_s: float,
        entries: list[Entry],
    ) -> None:
        self.number = number
        self.directory = directory
        self.requested_at_s = requested_at_s
        self.until_s = until_s  # one float object for all lookups, because inodes keep it
        self.entries = {each.name: each if each.has_version else None for each in entries}
        self.live = 0
        self.used = False
        self.first = (entries[0].name if entries else b"", number)
        self.files: list[bytes] | None = None  # sorted, built at first use


class _DirectoryIndex:
    """The pages of one directory.

    Invariant: `newest[name].entries` has `name`, and the cache holds each page in `firsts`.
    """

    __slots__ = ("firsts", "newest")

    def __init__(self) -> None:
        self.newest: dict[bytes, _Page] = {}
        self.firsts: list[tuple[bytes, int]] = []  # first name and number of each page, sorted


class ListingCache:
    """Recently listed entries, by the prefix of their directory. Thread-safe.

    `on_change` is called when a file turns out to be another version, or to be gone.
    """

    def __init__(
        self,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        negative_ttl_s: float = 0.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        # dependencies
        self._on_change = on_change
        # constants
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._kept_s = max(ttl_s, negative_ttl_s)
        self._clock = clock
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # by number; roughly oldest first
        self._indexes: dict[bytes, _DirectoryIndex] = {}
        self._names = 0
        self._spans: OrderedDict[bytes, Spans] = OrderedDict()  # by directory, last used last
        self._span_count = 0
        # By the time of the request, oldest first:
        self._nonempty_at_s: dict[bytes, float] = {}  # directories
        self._discarded_at_s: dict[tuple[bytes, bytes], float] = {}
        self._absent_at_s: dict[tuple[bytes, bytes], float] = {}
        # Directories, with all below them; pages requested before have expired, too:
        self._discarded_below_at_s: dict[bytes, float] = {}
        self._times_s: tuple[dict[Any, float], ...] = (
            self._discarded_at_s,
            self._nonempty_at_s,
            self._absent_at_s,
            self._discarded_below_at_s,
        )

    def add(
        self,
        directory: bytes,
        entries: list[Entry],
        requested_at_s: float,
        span: Span | None = None,
    ) -> None:
        """Add a page's entries. `requested_at_s` is the clock when the page was requested.

        An entry without a version is not kept: each lookup must ask S3 for it.
        """
        with self._lock:
            if self._is_discarded(directory, requested_at_s):
                return
            until_s = requested_at_s + self._ttl_s
            page = _Page(next(self._numbers), directory, requested_at_s, until_s, entries)
            changed = self._add_page(page, covers=span is not None)
            if entries:
                self._note_nonempty(directory, requested_at_s)
            if span is not None:
                self._add_span(directory, span._replace(page=page.number))
            self._drop_old()
        if changed:
            self._on_change()

    def record_nonempty(self, directory: bytes, requested_at_s: float) -> None:
        """Record that a directory has an entry, so it and all directories above it exist."""
        with self._lock:
            if not (
                self._was_just_nonempty(directory, requested_at_s)
                or self._is_discarded(directory, requested_at_s)
            ):
                self._note_nonempty(directory, requested_at_s)

    def span_of(self, directory: bytes, name: bytes) -> Span | None:
        """Return the newest page, expired or not, whose span includes `name`.

        A page whose names were dropped counts as very old.
        """
        with self._lock:
            self._drop_old()
            span = self._span_of(directory, name)
            if span is None:
                return None
            self._spans.move_to_end(directory)
            fresh = span.requested_at_s > self._clock() - self._ttl_s
            if fresh and span.page not in self._pages:
                span = span._replace(requested_at_s=-math.inf)
            return span._replace(page=0)

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return the entry and its expiry on the clock, or None.

        Drops nothing: `sweep` and all changes do, and each file that is opened comes here.
        """
        with self._lock:
            return self._find(directory, name)

    def absent_until(self, directory: bytes, name: bytes) -> float | None:
        """Return the time on the clock until which a name counts as missing, or None."""
        if self._negative_ttl_s <= 0:
            return None
        with self._lock:
            self._drop_old()
            proved_at_s = self._absence_proved_at_s(directory, name)
            until_s = proved_at_s + self._negative_ttl_s
            return until_s if until_s > self._clock() else None

    def is_absent(self, directory: bytes, name: bytes) -> bool:
        """Whether a page within the ttl covers a name, and no page lists it."""
        with self._lock:
            self._drop_old()
            span = self._span_of(directory, name)
            page = None if span is None else self._pages.get(span.page)
            if span is None or page is None or not span.covers(name):
                return False
            return name not in page.entries and page.requested_at_s > self._clock() - self._ttl_s

    def record_absent(self, directory: bytes, name: bytes, requested_at_s: float) -> None:
        """Record a lookup that found nothing; its request was sent at `requested_at_s`."""
        if self._negative_ttl_s <= 0:
            return
        with self._lock:
            if not self._is_discarded(directory, requested_at_s):
                _note(self._absent_at_s, (directory, name), requested_at_s, MAX_ABSENT)
            self._drop_old()

    def files_after(self, directory: bytes, name: bytes, count: int) -> list[Entry]:
        """Return up to `count` known files after `name`, sorted by name."""
        found: list[Entry] = []
        with self._lock:
            self._drop_old()
            index = self._indexes.get(directory)
            page = index and index.newest.get(name)
            while index and page and len(found) < count:
                if page.files is None:
                    page.files = sorted(each for each, entry in page.entries.items() if entry)
                for at in range(bisect_right(page.files, name), len(page.files)):
                    known = self._find(directory, page.files[at])
                    if known is not None and not known[0].is_directory:
                        found.append(known[0])
                        if len(found) == count:
                            break
                name = max(name, page.first[0], *page.files[-1:])
                position = bisect_right(index.firsts, (name, math.inf))
                following = index.firsts[position : position + 1]
                page = self._pages[following[0][1]] if following else None
        return found

    def discard(self, directory: bytes, name: bytes) -> None:
        """Drop a name that turned out to be outdated.

        Pages requested before no longer count for it, including those still in flight.
        """
        with self._lock:
            self._absent_at_s.pop((directory, name), None)
            _note(self._discarded_at_s, (directory, name), self._clock(), MAX_TIMES)
            index = self._indexes.get(directory)
            page = index and index.newest.get(name)
            if page:
                page.entries[name] = None
            self._drop_old()
        self._on_change()

    def record_created(self, directory: bytes, entry: Entry) -> None:
        """Add an entry that this mount has just created."""
        with self._lock:
            self._absent_at_s.pop((directory, entry.name), None)
        self.add(directory, [entry], self._clock())

    def record_removed(self, directory: bytes, name: bytes) -> None:
        """Record, after `discard`, that this mount has just removed a name."""
        self.record_absent(directory, name, math.nextafter(self._clock(), math.inf))

    def drop_spans(self, directory: bytes) -> None:
        """Forget how a directory's listing was divided into pages."""
        with self._lock:
            self._span_count -= len(self._spans.pop(directory, ()))

    def discard_below(self, prefix: bytes) -> None:
        """Drop all names in and below a directory, also from pages still in flight."""
        with self._lock:
            _note(self._discarded_below_at_s, prefix, self._clock(), MAX_TIMES)
            for directory in [each for each in self._indexes if each.startswith(prefix)]:
                for _, number in list(self._indexes[directory].firsts):
                    self._drop(self._pages[number])
            for directory in [each for each in self._spans if each.startswith(prefix)]:
                self._span_count -= len(self._spans.pop(directory))
            for nonempty in [each for each in self._nonempty_at_s if each.startswith(prefix)]:
                del self._nonempty_at_s[nonempty]
            for absent in [each for each in self._absent_at_s if each[0].startswith(prefix)]:
                del self._absent_at_s[absent]

    def sweep(self) -> None:
        """Drop expired pages, including those of directories that are no longer used."""
        with self._lock:
            self._drop_old()

    def __len__(self) -> int:
        """Return the number of cached names."""
        return self._names

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            assert self._names == sum(len(page.entries) for page in self._pages.values())
            assert self._span_count == sum(map(len, self._spans.values()))
            firsts = [first for index in self._indexes.values() for first in index.firsts]
            assert {number for _, number in firsts} == set(self._pages)
            for index in self._indexes.values():
                assert index.firsts == sorted(index.firsts)
                for name, page in index.newest.items():
                    assert name in page.entries
                    assert self._pages[page.number] is page
            for number, page in self._pages.items():
                newest = self._indexes[page.directory].newest
                assert page.live == sum(newest.get(name) is page for name in page.entries)
                assert page.number == number

    # --- lookups (lock held) ---

    def _is_discarded(self, directory: bytes, requested_at_s: float) -> bool:
        """Whether a page requested at `requested_at_s` was invalidated since."""
        if not self._discarded_below_at_s:
            return False
        while self._discarded_below_at_s.get(directory, -math.inf) < requested_at_s:
            if not directory:
                return False
            directory = directory[: directory.rfind(b"/", 0, -1) + 1]
        return True

    def _was_just_nonempty(self, directory: bytes, at_s: float) -> bool:
        """Whether that was recorded so shortly before `at_s` that a later time changes little."""
        if self._discarded_at_s:
            return False
        last_s = self._nonempty_at_s.get(directory)
        return last_s is not None and at_s - last_s < JUST_SHARE * self._ttl_s

    def _find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        oldest_s = self._clock() - self._ttl_s
        if self._discarded_at_s:
            oldest_s = max(oldest_s, self._discarded_s(directory, name))
        index = self._indexes.get(directory)
        page = index and index.newest.get(name)
        if page and page.requested_at_s > oldest_s:
            entry = page.entries[name]
            if entry is not None and not self._is_superseded(page, name):
                page.used = True
                return entry, page.until_s
        nonempty_at_s = self._nonempty_at_s.get(directory + name + b"/", -math.inf)
        if nonempty_at_s > oldest_s:
            return Entry(name, None), nonempty_at_s + self._ttl_s
        return None

    def _discarded_s(self, directory: bytes, name: bytes) -> float:
        return self._discarded_at_s.get((directory, name), -math.inf)

    def _is_superseded(self, page: _Page, name: bytes) -> bool:
        """Whether a newer page than the newest one with this name covers it."""
        spans = self._spans.get(page.directory)
        span = None if spans is None else spans.find(name)
        if span is None or span.page == page.number or not span.covers(name):
            return False
        return (span.requested_at_s, span.page) > (page.requested_at_s, page.number)

    def _absence_proved_at_s(self, directory: bytes, name: bytes) -> float:
        """Return the time of the newest proof that a name is missing; -inf if it may exist."""
        absent_s = self._absent_at_s.get((directory, name), -math.inf)
        span = self._span_of(directory, name)
        if span is not None and span.covers(name):
            page = self._pages.get(span.page)
            if page is not None and name not in page.entries:
                absent_s = max(absent_s, span.requested_at_s)
        index = self._indexes.get(directory)
        newest = index and index.newest.get(name)
        present_s = max(
            newest.requested_at_s if newest else -math.inf,
            self._discarded_s(directory, name),
            self._nonempty_at_s.get(directory + name + b"/", -math.inf),
        )
        return absent_s if absent_s > present_s else -math.inf

    def _span_of(self, directory: bytes, name: bytes) -> Span | None:
        spans = self._spans.get(directory)
        return None if spans is None else spans.find(name)

    # --- changes (lock held) ---

    def _add_page(self, page: _Page, *, covers: bool) -> bool:
        """Add a page; return whether a file may be another version than in older ones, or gone.

        `covers`: the page lists all names of a span.
        """
        changed = False
        touched: set[_Page] = set()
        others = page.directory in self._indexes
        index = self._indexes.setdefault(page.directory, _DirectoryIndex())
        self._pages[page.number] = page
        insort(index.firsts, page.first)
        self._names += len(page.entries)
        newest = index.newest
        superseded = []
        for name in page.entries:
            other = newest.get(name)
            if other is not None:
                if other.requested_at_s > page.requested_at_s:
                    continue  # pages may arrive in another order than they were requested
                changed = changed or _differ(other.entries[name], page.entries[name])
                touched.add(other)
                other.live -= 1
                if other.live == 0:
                    superseded.append(other)
            newest[name] = page
            page.live += 1
        if covers and others:  # names of older pages that this one does not list
            changed = changed or not touched or any(other.live for other in touched)
        for other in superseded:
            self._drop(other)
        if page.entries and page.live == 0:
            self._drop(page)
        return changed

    def _drop(self, page: _Page) -> None:
        del self._pages[page.number]
        self._names -= len(page.entries)
        index = self._indexes[page.directory]
        del index.firsts[bisect_left(index.firsts, page.first)]
        if page.live:
            for name in page.entries:
                if index.newest.get(name) is page:
                    del index.newest[name]
        if not index.firsts:
            del self._indexes[page.directory]

    def _note_nonempty(self, directory: bytes, requested_at_s: float) -> None:
        while directory:
            last_s = self._nonempty_at_s.get(directory, requested_at_s)
            _note(self._nonempty_at_s, directory, max(last_s, requested_at_s), MAX_TIMES)
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
            if page.requested_at_s > oldest_s:
                if self._names <= MAX_NAMES and len(self._pages) <= MAX_PAGES:
                    break
                if page.used:  # a second chance
                    page.used = False
                    self._pages.move_to_end(page.number)
                    continue
                self._on_change()  # a later page cannot be compared with it
            self._drop(page)
        for times_s in self._times_s:
            if times_s:
                _drop_until(oldest_s, times_s)


def _differ(one: Entry | None, other: Entry | None) -> bool:
    """Whether two entries of a name are not the same version of a file."""
    if one is None or other is None:
        return True
    return (one.info and one.info.etag) != (other.info and other.info.etag)


def _note(times_s: dict[K, float], key: K, time_s: float, limit: int) -> None:
    """Set `key` as the newest, and drop the oldest if there are more than `limit`."""
    times_s.pop(key, None)
    times_s[key] = time_s
    if len(times_s) > limit:
        del times_s[next(iter(times_s))]


def _drop_until(oldest_s: float, times_s: dict[K, float]) -> None:
    while times_s:
        first = next(iter(times_s))
        if times_s[first] > oldest_s:
            break
        del times_s[first]
