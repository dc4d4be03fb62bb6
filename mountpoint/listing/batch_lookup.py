"""Batch lookups: one LIST answers the lookups of up to a thousand siblings.

A lookup alone is a request of its own. But programs look up neighbours: `ls -l`, a directory read
file by file, sixteen threads in one folder. Within the ttl, the page that named a file answers
(`cache`). After that, the same page is requested again, once, and all lookups of names in it wait
for that one answer. So n names cost one LIST per 1,000 names and ttl, whichever threads look them
up and in any order. A page in use is renewed a little earlier, so that no lookup waits. Where
nothing was listed yet, a page begins at the name being looked up. Only one such page per directory
is requested at a time, because it is unknown how many names it will cover. `pages.PageCredit`
decides when a page is worth its cost.

An existing name may be as old as the ttl, so every lookup may take it from the answer. A *missing*
name must be known from a request sent after the lookup began, or a new object would not be visible
at once. So only the lookup that sent the LIST may treat a missing name as absent. The other
lookups, and those for names that the answer does not cover, send their own requests.

A page gets a single try, because the lookup alone is the fallback. This module does not track
versions that `open` found to be outdated; `cache` does.
"""

import threading
import time
from collections import OrderedDict
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import structlog

from mountpoint.errors import NoSuchEntry, OperationError
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.pages import SMALL_PAGE, PageCredit, Span, just_before, reach_of
from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectClient
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: About 4 MB. The least recently used directories are forgotten first.
MAX_ACCOUNTS = 10_000
#: Seconds before the end of the ttl at which a page in use is renewed: a LIST of 1,000 names takes
#: S3 50 to 200 ms, and all lookups would wait for it.
AHEAD_S = 0.25


class _Flight:
    """A page that has been requested.

    `explores` means that it is unknown how many names it will cover. `landed` is set once `cache`
    has its contents; `entries` and `span` are set before, unless the page proves nothing.
    """

    def __init__(self, directory: bytes, after: bytes, *, explores: bool) -> None:
        self.directory = directory
        self.after = after
        self.explores = explores
        self.asked_at_s = 0.0
        self.future: Future[ListPage] | None = None
        self.entries: list[Entry] = []
        self.span: Span | None = None
        self.landed = threading.Event()


class Siblings:
    """Lookups by pages of the directory's listing. Thread-safe; no lock is held while waiting.

    An entry that expires within `ahead_s` is renewed when it is looked up, without a wait.
    """

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # constants
        self._ttl_s = ttl_s
        self.ahead_s = min(AHEAD_S, ttl_s / 4)
        self._enabled = client.lists_in_order and ttl_s > 0
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._accounts: OrderedDict[bytes, PageCredit] = OrderedDict()  # last used last
        self._flights: dict[tuple[bytes, bytes], _Flight] = {}  # by directory and `after`
        self._exploring: set[bytes] = set()  # directories with a page of unknown reach in flight

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return a name's entry and its expiry on the clock; None: the caller must look it up.

        Raises NoSuchEntry if the page requested for this lookup shows that the name is missing.
        """
        known = self._listings.find(directory, name)
        if known is None and self._enabled:
            flight, leads = self._board(directory, name)
            if flight is None:
                return None
            if leads:
                self._ask(flight)
            self._wait(flight)
            if leads:
                return self._first_hand(flight, name)
            known = self._listings.find(directory, name)
        if known is not None:
            self._answered(directory, known[0], known[1])
        return known

    def forget(self, directory: bytes) -> None:
        """Forget a directory's page credit and its pages."""
        with self._lock:
            self._accounts.pop(directory, None)
        self._listings.forget(directory)

    def _board(self, directory: bytes, name: bytes) -> tuple[_Flight | None, bool]:
        """Return the page request that will cover `name`, and whether the caller must send it."""
        with self._lock:
            now_s = time.monotonic()
            span = self._listings.span_of(directory, name)
            if span is not None and not span.tells_of(name):
                return None, False
            after = just_before(name) if span is None else span.after
            flight = self._flights.get((directory, after))
            if flight is not None:
                return flight, False
            if span is None and directory in self._exploring:
                return None, False
            if span is not None and span.asked_at_s > now_s - self._ttl_s:
                flight = _Flight(directory, after, explores=False)
                flight.landed.set()  # the page has just arrived, or it lacks the name
                return flight, False
            if not self._account(directory).buys_page(now_s, known=span is not None):
                return None, False
            return self._new_flight(directory, after, explores=span is None), True

    def _answered(self, directory: bytes, entry: Entry, fresh_until_s: float) -> None:
        """Record a lookup answered without a request, and renew its page in time.

        Only lookups of files do this. A page that names a file also proves that all directories
        above it exist, and these are looked up first.
        """
        flight = None
        with self._lock:
            now_s = time.monotonic()
            account = self._accounts.get(directory)
            if account is None:
                return
            account.answered(now_s)
            if entry.is_directory or fresh_until_s - now_s > self.ahead_s:
                return
            span = self._listings.span_of(directory, entry.name)
            if span is not None and span.asked_at_s > now_s - self._ttl_s + self.ahead_s:
                return
            after = just_before(entry.name) if span is None else span.after
            under_way = (directory, after) in self._flights or (
                span is None and directory in self._exploring
            )
            if not under_way and account.spares_page():
                flight = self._new_flight(directory, after, explores=span is None)
        if flight is not None:
            self._ask(flight)

    def _new_flight(self, directory: bytes, after: bytes, *, explores: bool) -> _Flight:
        flight = self._flights[directory, after] = _Flight(directory, after, explores=explores)
        if explores:
            self._exploring.add(directory)
        return flight

    def _ask(self, flight: _Flight) -> None:
        """Send the request; its callback calls `_arrived`."""
        flight.asked_at_s = time.monotonic()
        start_after = flight.directory + flight.after if flight.after else None
        flight.future = self._client.list(flight.directory, start_after=start_after)
        flight.future.add_done_callback(lambda future: self._arrived(flight, future))

    def _wait(self, flight: _Flight) -> None:
        """Wait for a page; half of the total time is left for a lookup alone."""
        if not flight.landed.wait(self._retry_policy.once_s) and flight.future is not None:
            flight.future.cancel()  # its callback lands the flight

    def _arrived(self, flight: _Flight, future: "Future[ListPage]") -> None:
        """Receive the answer. Called once, by the thread that ends the request."""
        try:
            page = future.result()
        except (OperationError, CancelledError) as error:
            prefix = flight.directory.decode("utf-8", "backslashreplace")
            log.debug(
                "the siblings of a name could not be listed", prefix=prefix, reason=str(error)
            )
            self._failed(flight.directory)
        else:
            self._learn(flight, page)
        finally:
            self._land(flight)

    def _learn(self, flight: _Flight, page: ListPage) -> None:
        reach = reach_of(flight.directory, flight.after, page)
        if reach is None:
            self._failed(flight.directory)
            return
        span = Span(flight.after, reach, flight.asked_at_s)
        # Use all entries: those that this page cannot confirm are excluded by name.
        merged = DirectoryMerge(flight.directory).feed(replace(page, next_token=None))
        flight.entries = [each for each in merged if each.is_directory or span.tells_of(each.name)]
        flight.span = span
        self._listings.add(flight.directory, flight.entries, flight.asked_at_s, span)
        if len(flight.entries) <= SMALL_PAGE:
            with self._lock:
                self._account(flight.directory).refund()

    def _first_hand(self, flight: _Flight, name: bytes) -> tuple[Entry, float] | None:
        """Answer the lookup that sent the request, from its page."""
        for entry in flight.entries:
            if entry.name == name:
                return (entry, flight.asked_at_s + self._ttl_s) if entry.has_version else None
        if flight.span is not None and flight.span.tells_of(name):
            raise NoSuchEntry()
        return None

    def _land(self, flight: _Flight) -> None:
        with self._lock:
            del self._flights[flight.directory, flight.after]
            if flight.explores:
                self._exploring.remove(flight.directory)
        flight.landed.set()

    def _failed(self, directory: bytes) -> None:
        with self._lock:
            self._account(directory).pause()

    def _account(self, directory: bytes) -> PageCredit:
        account = self._accounts.get(directory)
        if account is None:
            account = self._accounts[directory] = PageCredit(self._ttl_s)
            if len(self._accounts) > MAX_ACCOUNTS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(directory)
        return account
