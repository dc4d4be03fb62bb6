"""Batch lookups: one LIST answers the lookups of up to a thousand siblings.

A single lookup is a request of its own. But programs look up neighbours: `ls -l`, a directory read
file by file, sixteen threads in one folder. Within the ttl, the page that named a file answers
(`cache`). After that, the same page is requested again, once, and all lookups of names in it wait
for that one answer: they are a *batch*. So n names cost one LIST per 1,000 names and ttl, whichever
threads look them up and in any order. A page in use is renewed a little earlier, so that no lookup
waits. Where nothing was listed yet, a page begins at the name being looked up. Only one such page
per directory is requested at a time, because it is unknown how many names it will cover.
`pages.PageCredit` decides when a page is worth its cost.

An existing name may be as old as the ttl, so every lookup may take it from the answer. A *missing*
name must be known from a request sent after the lookup began, or a new object would be invisible
for a while. So only the lookup that sent the LIST may treat a missing name as absent. The other
lookups, and those for names that the answer does not cover, send their own requests.

A page gets a single try, because single lookups are the fallback. This module does not track
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
MAX_DIRECTORIES = 10_000
#: Seconds before the end of the ttl at which a page in use is renewed: a LIST of 1,000 names takes
#: S3 50 to 200 ms, and all lookups would wait for it.
RENEW_BEFORE_S = 0.25


class _Batch:
    """A page that has been requested, for all lookups of the names that it will cover.

    `open_ended` means that it is unknown how many names that will be. `arrived` is set once `cache`
    has the page's names; `entries` and `span` are set before, unless the page proves nothing.
    """

    def __init__(self, directory: bytes, after: bytes, *, open_ended: bool) -> None:
        self.directory = directory
        self.after = after
        self.open_ended = open_ended
        self.requested_at_s = 0.0
        self.future: Future[ListPage] | None = None
        self.entries: list[Entry] = []
        self.span: Span | None = None
        self.arrived = threading.Event()


class BatchLookups:
    """Lookups by pages of the directory's listing. Thread-safe; no lock is held while waiting.

    An entry that expires within `renew_before_s` is renewed when it is looked up, without a wait.
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
        self.renew_before_s = min(RENEW_BEFORE_S, ttl_s / 4)
        self._enabled = client.lists_in_order and ttl_s > 0
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._credits: OrderedDict[bytes, PageCredit] = OrderedDict()  # last used last
        self._batches: dict[tuple[bytes, bytes], _Batch] = {}  # by directory and `after`
        self._open_ended: set[bytes] = set()  # directories with an open-ended batch

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float] | None:
        """Return the entry of a name that is not cached, and its expiry on the clock.

        None: no page answers, so the caller must look the name up by itself. Raises NoSuchEntry if
        the page requested for this lookup shows that the name is missing.
        """
        if not self._enabled:
            return None
        batch, must_send = self._batch_of(directory, name)
        if batch is None:
            return None
        if must_send:
            self._send(batch)
        self._wait(batch)
        if must_send:
            return self._result_for_sender(batch, name)
        known = self._listings.find(directory, name)
        if known is not None:
            self.record_hit(directory, *known)
        return known

    def record_hit(self, directory: bytes, entry: Entry, fresh_until_s: float) -> None:
        """Record a lookup answered without a request, and renew its page in time.

        Only lookups of files do this. A page that names a file also proves that all directories
        above it exist, and these are looked up first.
        """
        batch = None
        with self._lock:
            now_s = time.monotonic()
            credit = self._credits.get(directory)
            if credit is None:
                return
            credit.record_hit(now_s)
            if entry.is_directory or fresh_until_s - now_s > self.renew_before_s:
                return
            span = self._listings.span_of(directory, entry.name)
            if span is not None and span.requested_at_s > now_s - self._ttl_s + self.renew_before_s:
                return
            after = just_before(entry.name) if span is None else span.after
            requested = (directory, after) in self._batches or (
                span is None and directory in self._open_ended
            )
            if not requested and credit.buy_renewal():
                batch = self._new_batch(directory, after, open_ended=span is None)
        if batch is not None:
            self._send(batch)

    def forget(self, directory: bytes) -> None:
        """Forget a directory's page credit and its pages."""
        with self._lock:
            self._credits.pop(directory, None)
        self._listings.drop_spans(directory)

    def _batch_of(self, directory: bytes, name: bytes) -> tuple[_Batch | None, bool]:
        """Return the batch that will cover `name`, if any, and whether the caller must send it."""
        with self._lock:
            now_s = time.monotonic()
            span = self._listings.span_of(directory, name)
            if span is not None and not span.covers(name):
                return None, False
            after = just_before(name) if span is None else span.after
            batch = self._batches.get((directory, after))
            if batch is not None:
                return batch, False
            if span is None and directory in self._open_ended:
                return None, False
            if span is not None and span.requested_at_s > now_s - self._ttl_s:
                batch = _Batch(directory, after, open_ended=False)
                batch.arrived.set()  # the page has just arrived, or it lacks the name
                return batch, False
            if not self._credit(directory).buy_page(now_s, known=span is not None):
                return None, False
            return self._new_batch(directory, after, open_ended=span is None), True

    def _new_batch(self, directory: bytes, after: bytes, *, open_ended: bool) -> _Batch:
        batch = self._batches[directory, after] = _Batch(directory, after, open_ended=open_ended)
        if open_ended:
            self._open_ended.add(directory)
        return batch

    def _send(self, batch: _Batch) -> None:
        """Send the request; its callback calls `_receive`."""
        batch.requested_at_s = time.monotonic()
        start_after = batch.directory + batch.after if batch.after else None
        batch.future = self._client.list(batch.directory, start_after=start_after)
        batch.future.add_done_callback(lambda future: self._receive(batch, future))

    def _wait(self, batch: _Batch) -> None:
        """Wait for a page; half of the total time is left for a single lookup."""
        if not batch.arrived.wait(self._retry_policy.once_s) and batch.future is not None:
            batch.future.cancel()  # its callback ends the batch

    def _receive(self, batch: _Batch, future: "Future[ListPage]") -> None:
        """Receive the answer. Called once, by the thread that ends the request."""
        try:
            page = future.result()
        except (OperationError, CancelledError) as error:
            prefix = batch.directory.decode("utf-8", "backslashreplace")
            log.debug(
                "the siblings of a name could not be listed", prefix=prefix, reason=str(error)
            )
            self._pause(batch.directory)
        else:
            self._store(batch, page)
        finally:
            self._end(batch)

    def _store(self, batch: _Batch, page: ListPage) -> None:
        reach = reach_of(batch.directory, batch.after, page)
        if reach is None:
            self._pause(batch.directory)
            return
        span = Span(batch.after, reach, batch.requested_at_s)
        # Use all entries: those that this page cannot confirm are excluded by name.
        merged = DirectoryMerge(batch.directory).feed(replace(page, next_token=None))
        batch.entries = [each for each in merged if each.is_directory or span.covers(each.name)]
        batch.span = span
        self._listings.add(batch.directory, batch.entries, batch.requested_at_s, span)
        if len(batch.entries) <= SMALL_PAGE:
            with self._lock:
                self._credit(batch.directory).refund()

    def _result_for_sender(self, batch: _Batch, name: bytes) -> tuple[Entry, float] | None:
        """Answer the lookup that sent the request, from its page."""
        for entry in batch.entries:
            if entry.name == name:
                return (entry, batch.requested_at_s + self._ttl_s) if entry.has_version else None
        if batch.span is not None and batch.span.covers(name):
            raise NoSuchEntry()
        return None

    def _end(self, batch: _Batch) -> None:
        with self._lock:
            del self._batches[batch.directory, batch.after]
            if batch.open_ended:
                self._open_ended.remove(batch.directory)
        batch.arrived.set()

    def _pause(self, directory: bytes) -> None:
        with self._lock:
            self._credit(directory).pause()

    def _credit(self, directory: bytes) -> PageCredit:
        credit = self._credits.get(directory)
        if credit is None:
            credit = self._credits[directory] = PageCredit(self._ttl_s)
            if len(self._credits) > MAX_DIRECTORIES:
                self._credits.popitem(last=False)
        self._credits.move_to_end(directory)
        return credit
