"""Lookups that are answered together: one LIST says what a thousand siblings are.

A lookup alone is a request of its own. Programs look up neighbours: `ls -l`, a directory read
file by file, sixteen threads on one folder. Within the ttl the page that named a file
answers (`cache`). Past it the same page is asked for again, once, and all lookups of names in
it wait for that one answer; so n names cost one LIST per 1,000 names and ttl, whoever asks
in which order. A page that is in use is asked for again a little earlier, and nobody waits.
Where nothing was listed, a page begins at the name that is looked up; one such page at a
time is asked for, because nobody knows how far it will tell. `pages.Account` says when a
page is worth it.

What exists may be as old as the ttl, so everyone takes it from the answer. What does *not*
exist must be known from a request that was sent after the lookup began, or a new object
would not be visible at once: only who sent the request takes that from the answer. The
others, and everyone whose name the answer does not tell of, look up alone.

A page is asked for in one try, since there is another way. It knows nothing of versions that
`open` found to be others: `cache` does.
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

#: About 4 MB. Directories in which nothing was looked up for longest are forgotten first.
MAX_ACCOUNTS = 10_000
#: A page is renewed so long before it is too old, if it is in use: a LIST of 1,000 names takes S3
#: 50 to 200 ms, for which everybody would wait.
AHEAD_S = 0.25


class _Flight:
    """A page that has been asked for.

    `explores` says that nobody knows how far it will tell. `landed` is set when `cache`
    has what it says; `entries` and `span` are set by then, unless it tells of nothing.
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

    What has only `ahead_s` left to be believed is renewed when it is looked up, without a wait.
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
        self._exploring: set[bytes] = set()  # directories with a flight to where nobody was

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return what a name is and until when that may be believed, or None: ask for it alone.

        Raises NoSuchEntry when S3 has just said so.
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
        """Forget what lookups in a directory have cost, and its pages."""
        with self._lock:
            self._accounts.pop(directory, None)
        self._listings.forget(directory)

    def _board(self, directory: bytes, name: bytes) -> tuple[_Flight | None, bool]:
        """Return the flight that will tell of `name`, and whether the caller has to make it."""
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
                flight.landed.set()  # a moment ago, or it is not in there
                return flight, False
            if not self._account(directory).buys_page(now_s, known=span is not None):
                return None, False
            return self._new_flight(directory, after, explores=span is None), True

    def _answered(self, directory: bytes, entry: Entry, fresh_until_s: float) -> None:
        """Note a lookup that was answered without asking, and renew what it came from in time.

        That is for files to do: a page that names one also shows that all directories above
        it exist, whose names are looked up before.
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
        """Send the request; it lands by itself."""
        flight.asked_at_s = time.monotonic()
        start_after = flight.directory + flight.after if flight.after else None
        flight.future = self._client.list(flight.directory, start_after=start_after)
        flight.future.add_done_callback(lambda future: self._arrived(flight, future))

    def _wait(self, flight: _Flight) -> None:
        """Wait for a page; half of the time is left for a lookup alone."""
        if not flight.landed.wait(self._retry_policy.once_s) and flight.future is not None:
            flight.future.cancel()  # and so it lands

    def _arrived(self, flight: _Flight, future: "Future[ListPage]") -> None:
        """Take the answer. Called once, by whoever ends the request."""
        try:
            page = future.result()
        except (OperationError, CancelledError) as error:
            prefix = flight.directory.decode("utf-8", "backslashreplace")
            log.debug("siblings could not be listed", prefix=prefix, reason=str(error))
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
        # All of them: those that this page is not certain of are left out by their names.
        merged = DirectoryMerge(flight.directory).feed(replace(page, next_token=None))
        flight.entries = [each for each in merged if each.is_directory or span.tells_of(each.name)]
        flight.span = span
        self._listings.add(flight.directory, flight.entries, flight.asked_at_s, span)
        if len(flight.entries) <= SMALL_PAGE:
            with self._lock:
                self._account(flight.directory).refund()

    def _first_hand(self, flight: _Flight, name: bytes) -> tuple[Entry, float] | None:
        """Answer the lookup that a page was asked for, from that page."""
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
