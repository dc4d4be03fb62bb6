"""List directories ahead of a program that walks through a tree (`walk_detector`).

There are two ways. One flat LIST, without a delimiter, returns 1,000 keys with all the directories
they are in (`flat`): for small directories that is one request instead of a hundred. It begins at
the directory being opened and stays one page ahead of the walk, as long as that is worth its cost
(`pages.PageCredit`). For large directories it is not; then the next few siblings are listed in
parallel, each with the request that it would need anyway.

Pages requested more than `MAX_AGE_S` ago are not used. A program that does not walk always gets a
listing that was requested after its `opendir`.
"""

import math
import threading
import time
from collections import OrderedDict
from concurrent.futures import CancelledError
from functools import partial

import structlog

from mountpoint.errors import OperationError
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.flat import CompleteDirectory, FlatListing
from mountpoint.listing.page_chain import PageRequest
from mountpoint.listing.pages import PageCredit
from mountpoint.listing.tree import Entry
from mountpoint.listing.walk_detector import WalkDetector
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: Half of the second that is allowed. The attributes of the files come from the same page, are
#: read after the listing, and must also be younger than a second.
MAX_AGE_S = 0.5
#: Siblings that are listed in parallel.
MAX_SIBLINGS = 4
#: Siblings listed before any was used; each one that is used allows two more.
FIRST_ALLOWED = 4
MAX_ALLOWED = 8
#: Processes that are tracked.
MAX_WALKERS = 16


class WalkPrefetcher:
    """The listings ahead of all walks. Thread-safe; no lock is held while waiting."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        # dependencies
        self._new_walker = partial(_Walker, client, retry_policy, listings, ttl_s)
        # constants
        self._max_age_s = min(MAX_AGE_S, ttl_s / 2)
        self._enabled = client.lists_in_order and ttl_s > 0
        # mutable, guarded by _lock; each walker has its own lock
        self._lock = threading.Lock()
        self._walkers: OrderedDict[int, _Walker] = OrderedDict()  # by process, last used last
        self._changed_at_s = -math.inf

    def invalidate(self) -> None:
        """Record a change by this mount: pages requested before are too old."""
        self._changed_at_s = math.nextafter(time.monotonic(), math.inf)

    def opened(self, process: int, directory: bytes) -> CompleteDirectory | PageRequest | None:
        """Record that a process opens a directory; return its listing, if one is known.

        Waits for a page in flight, but no longer than one try. Raises nothing.
        """
        walker = self._walker(process)
        if walker is None:
            return None
        try:
            now_s = time.monotonic()
            if not walker.detector.opened(directory, now_s):
                return None
            oldest_s = max(now_s - self._max_age_s, self._changed_at_s)
            request = walker.siblings.pop(directory, oldest_s)
            if request is None:
                complete = walker.flat.find(directory, walker.detector.top, oldest_s)
                if complete is not None:
                    return complete
            else:
                walker.flat.skip_directory()
            if walker.flat.paused:
                walker.siblings.send(walker.detector.next_after(directory, MAX_SIBLINGS))
            return request
        finally:
            walker.busy.release()

    def listed(self, process: int, directory: bytes, entries: list[Entry]) -> None:
        """Record that a process has read more of a directory."""
        children = [directory + each.name + b"/" for each in entries if each.is_directory]
        walker = self._walker(process) if children else None
        if walker is not None:
            walker.detector.listed(directory, children)
            walker.busy.release()

    def _walker(self, process: int) -> "_Walker | None":
        """Return a process's walker, locked; None if it is busy or the process is unknown.

        Calls of one process are sequential, unless its threads share open directories. The kernel
        reports process number 0 for processes in other containers.
        """
        if not self._enabled or process == 0:
            return None
        with self._lock:
            walker = self._walkers.get(process)
            if walker is None:
                walker = self._walkers[process] = self._new_walker()
            self._walkers.move_to_end(process)
            if len(self._walkers) > MAX_WALKERS:
                self._walkers.popitem(last=False)
            return walker if walker.busy.acquire(blocking=False) else None


class _Walker:
    """One process. Only the holder of `busy` may use it; no thread waits for `busy`."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        self.busy = threading.Lock()
        self.detector = WalkDetector()
        self.flat = _FlatPrefetch(client, retry_policy, listings, ttl_s)
        self.siblings = _SiblingPrefetch(client)


class _FlatPrefetch:
    """A flat listing that stays ahead of a walk."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # mutable
        self._credit = PageCredit(ttl_s)
        self._base = b""
        self._listing: FlatListing | None = None
        self._token: str | None = None  # of the page after the last one
        self._request: PageRequest | None = None  # the page in flight
        self._complete: dict[bytes, CompleteDirectory] = {}
        self._unopened = 0  # directories of the last page that are still to be opened
        self._next_at = 0  # the next page is requested when no more than this are to be opened

    @property
    def paused(self) -> bool:
        """Whether the last pages were not worth their cost: the directories are too large."""
        return self._credit.paused

    def skip_directory(self) -> None:
        """Record a directory that did not need this listing."""
        self._credit.skip()

    def find(self, directory: bytes, base: bytes, oldest_s: float) -> CompleteDirectory | None:
        """Return a directory of a walk that began at `base`, if it is complete."""
        self._complete = {
            prefix: each
            for prefix, each in self._complete.items()
            if each.requested_at_s >= oldest_s
        }
        if directory not in self._complete:
            if self._request is None:
                self._request_covering(directory, base)
            self._receive()
        found = self._complete.get(directory)
        if found is not None:
            self._credit.record_hit(time.monotonic())
            self._unopened -= 1
            if self._unopened <= self._next_at:
                self._request_next()
        return found

    def _request_covering(self, directory: bytes, base: bytes) -> None:
        """Request a page that covers a directory, if one is worth its cost."""
        if self._listing is not None and self._listing.is_in(directory):
            # The directory is larger than the page ahead. Its subdirectories, if any, are known.
            if self._unopened <= 0:
                self._request_next()
            return
        self._stop()
        if self._credit.buy_page(time.monotonic(), known=True):
            self._base = base
            self._listing = FlatListing(base, directory)
            self._send(directory, None)

    def _request_next(self) -> None:
        if (
            self._request is None
            and self._token is not None
            and self._credit.buy_page(time.monotonic(), known=True)
        ):
            self._send(None, self._token)

    def _send(self, start_after: bytes | None, token: str | None) -> None:
        requested_at_s = time.monotonic()
        future = self._client.list(self._base, start_after=start_after, token=token, flat=True)
        self._request = PageRequest(future, requested_at_s)

    def _stop(self) -> None:
        self._listing = None
        self._token = None

    def _receive(self) -> None:
        """Wait for the page in flight, if there is one."""
        request, self._request = self._request, None
        if request is None or self._listing is None:
            return
        try:
            page = request.future.result(self._retry_policy.once_s)
            complete = self._listing.feed(page, request.requested_at_s)
        except (OperationError, CancelledError, TimeoutError) as error:
            request.future.cancel()
            prefix = self._base.decode("utf-8", "backslashreplace")
            log.debug("a tree could not be listed in advance", prefix=prefix, reason=str(error))
            complete = None
        if complete is None:
            self._stop()
            self._credit.pause()
            return
        self._token = page.next_token
        self._complete |= {each.prefix: each for each in complete}
        self._unopened = len(complete)
        self._next_at = len(complete) // 2
        for each in complete:
            self._listings.record_nonempty(each.prefix, each.requested_at_s)


class _SiblingPrefetch:
    """The next siblings, listed in parallel."""

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._allowed = FIRST_ALLOWED
        self._requests: dict[bytes, PageRequest] = {}

    def pop(self, directory: bytes, oldest_s: float) -> PageRequest | None:
        """Return the request for a directory, if one was sent."""
        for prefix, request in list(self._requests.items()):
            if request.requested_at_s < oldest_s:
                self._requests.pop(prefix).future.cancel()
        found = self._requests.pop(directory, None)
        if found is not None:
            self._allowed = min(self._allowed + 2, MAX_ALLOWED)
        return found

    def send(self, directories: list[bytes]) -> None:
        """Request the next directories, as many as earlier use allows."""
        for directory in directories:
            if self._allowed > 0 and directory not in self._requests:
                self._allowed -= 1
                requested_at_s = time.monotonic()
                self._requests[directory] = PageRequest(
                    self._client.list(directory), requested_at_s
                )
