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
from mountpoint.listing.flat import FlatListing, Listed
from mountpoint.listing.page_chain import Asked
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
MAX_ASKED = 4
#: Siblings listed before any was used; each one that is used allows two more.
FIRST_TRUST = 4
MAX_TRUST = 8
#: Processes that are tracked.
MAX_WALKERS = 16


class WalkAhead:
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

    def changed(self) -> None:
        """Record a change by this mount: pages requested before are too old."""
        self._changed_at_s = math.nextafter(time.monotonic(), math.inf)

    def opened(self, process: int, directory: bytes) -> Listed | Asked | None:
        """Record that a process opens a directory; return its listing, if one is known.

        Waits for a page in flight, but no longer than one try. Raises nothing.
        """
        walker = self._walker(process)
        if walker is None:
            return None
        try:
            now_s = time.monotonic()
            if not walker.walk.opened(directory, now_s):
                return None
            oldest_s = max(now_s - self._max_age_s, self._changed_at_s)
            asked = walker.next.take(directory, oldest_s)
            if asked is None:
                whole = walker.flat.take(directory, walker.walk.top, oldest_s)
                if whole is not None:
                    return whole
            else:
                walker.flat.skip()
            if walker.flat.rests:
                walker.next.ask(walker.walk.next_after(directory, MAX_ASKED))
            return asked
        finally:
            walker.busy.release()

    def listed(self, process: int, directory: bytes, entries: list[Entry]) -> None:
        """Record that a process has read more of a directory."""
        children = [directory + each.name + b"/" for each in entries if each.is_directory]
        walker = self._walker(process) if children else None
        if walker is not None:
            walker.walk.listed(directory, children)
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
        self.walk = WalkDetector()
        self.flat = _Flat(client, retry_policy, listings, ttl_s)
        self.next = _Next(client)


class _Flat:
    """A flat listing that stays ahead of a walk."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # mutable
        self._account = PageCredit(ttl_s)
        self._base = b""
        self._listing: FlatListing | None = None
        self._token: str | None = None  # of the page after the last one
        self._asked: Asked | None = None  # the page in flight
        self._whole: dict[bytes, Listed] = {}
        self._to_come = 0  # directories of the last page that are still to be opened
        self._few = 0  # the next page is requested when no more than this are to be opened

    @property
    def rests(self) -> bool:
        """Whether the last pages were not worth their cost: the directories are too large."""
        return self._account.paused

    def skip(self) -> None:
        """Record a directory that did not need this listing."""
        self._account.skip()

    def take(self, directory: bytes, base: bytes, oldest_s: float) -> Listed | None:
        """Return a directory of a walk that began at `base`, if it is complete."""
        self._whole = {
            prefix: each for prefix, each in self._whole.items() if each.asked_at_s >= oldest_s
        }
        if directory not in self._whole:
            if self._asked is None:
                self._ask_for(directory, base)
            self._receive()
        found = self._whole.get(directory)
        if found is not None:
            self._account.record_hit(time.monotonic())
            self._to_come -= 1
            if self._to_come <= self._few:
                self._ask_next()
        return found

    def _ask_for(self, directory: bytes, base: bytes) -> None:
        """Request a page that covers a directory, if one is worth its cost."""
        if self._listing is not None and self._listing.is_in(directory):
            # The directory is larger than the page ahead. Its subdirectories, if any, are known.
            if self._to_come <= 0:
                self._ask_next()
            return
        self._stop()
        if self._account.buy_page(time.monotonic(), known=True):
            self._base = base
            self._listing = FlatListing(base, directory)
            self._ask(directory, None)

    def _ask_next(self) -> None:
        if (
            self._asked is None
            and self._token is not None
            and self._account.buy_page(time.monotonic(), known=True)
        ):
            self._ask(None, self._token)

    def _ask(self, start_after: bytes | None, token: str | None) -> None:
        asked_at_s = time.monotonic()
        future = self._client.list(self._base, start_after=start_after, token=token, flat=True)
        self._asked = Asked(future, asked_at_s)

    def _stop(self) -> None:
        self._listing = None
        self._token = None

    def _receive(self) -> None:
        """Wait for the page in flight, if there is one."""
        asked, self._asked = self._asked, None
        if asked is None or self._listing is None:
            return
        try:
            page = asked.future.result(self._retry_policy.once_s)
            whole = self._listing.feed(page, asked.asked_at_s)
        except (OperationError, CancelledError, TimeoutError) as error:
            asked.future.cancel()
            prefix = self._base.decode("utf-8", "backslashreplace")
            log.debug("a tree could not be listed in advance", prefix=prefix, reason=str(error))
            whole = None
        if whole is None:
            self._stop()
            self._account.pause()
            return
        self._token = page.next_token
        self._whole |= {each.prefix: each for each in whole}
        self._to_come = len(whole)
        self._few = len(whole) // 2
        for each in whole:
            self._listings.see(each.prefix, each.asked_at_s)


class _Next:
    """The next siblings, listed in parallel."""

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._trust = FIRST_TRUST
        self._asked: dict[bytes, Asked] = {}

    def take(self, directory: bytes, oldest_s: float) -> Asked | None:
        """Return the request for a directory, if one was sent."""
        for prefix, asked in list(self._asked.items()):
            if asked.asked_at_s < oldest_s:
                self._asked.pop(prefix).future.cancel()
        found = self._asked.pop(directory, None)
        if found is not None:
            self._trust = min(self._trust + 2, MAX_TRUST)
        return found

    def ask(self, directories: list[bytes]) -> None:
        """Request the next directories, as many as earlier use allows."""
        for directory in directories:
            if self._trust > 0 and directory not in self._asked:
                self._trust -= 1
                asked_at_s = time.monotonic()
                self._asked[directory] = Asked(self._client.list(directory), asked_at_s)
