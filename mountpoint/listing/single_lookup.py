"""Look up one name with requests of its own.

One LIST of the few keys that begin with the name usually suffices. If too many other keys begin
with it, HEAD and LIST are sent in parallel.
"""

import time

from mountpoint.errors import NoSuchEntry, NotFound, Stalled
from mountpoint.listing import tree
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ListPage, ObjectClient, ObjectInfo
from mountpoint.s3.retry import Attempts, RetryPolicy


class SingleLookups:
    """Lookups of single names in all directories of a mount. Thread-safe; its callers wait."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache, ttl_s: float
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # constants
        self._ttl_s = ttl_s

    def find(self, directory: bytes, name: bytes, attempts: Attempts) -> tuple[Entry, float]:
        """Return a name's entry and its expiry on the monotonic clock, and cache the entry.

        Raises NoSuchEntry, S3Errors, Stalled and Interrupted.
        """
        requested_at_s = time.monotonic()
        entry = self._by_list(directory, name, attempts)
        if entry is None:
            entry = self._by_head_and_list(directory, name, attempts)
        self._listings.add(directory, [entry], requested_at_s)
        return entry, requested_at_s + self._ttl_s

    def _by_list(self, directory: bytes, name: bytes, attempts: Attempts) -> Entry | None:
        """Look up a name with one LIST; None if the page does not settle it."""
        if not self._client.lists_in_order:
            return None
        key = directory + name
        page = self._retry_policy.ask(
            lambda: self._client.list(key, max_keys=tree.FEW_KEYS), attempts
        ).answer()
        certain, entry = tree.decide_by_page(page, key, name)
        if certain and entry is None:
            raise NoSuchEntry()
        return entry

    def _by_head_and_list(self, directory: bytes, name: bytes, attempts: Attempts) -> Entry:
        """Look up a name with HEAD and LIST in parallel."""
        key = directory + name
        heading = self._retry_policy.ask(lambda: self._client.head(key), attempts)
        below = len(key) < tree.MAX_KEY_BYTES and self._any_below(key + b"/", attempts)
        head: ObjectInfo | None = None
        if not below:
            try:
                head = heading.answer()
            except NotFound:
                head = None
        entry = tree.decide(name, head, below)
        if entry is None:
            raise NoSuchEntry()
        return entry

    def _any_below(self, prefix: bytes, attempts: Attempts) -> bool:
        """Whether any key begins with `prefix`."""
        page = self._first_below(prefix, None, attempts)
        # S3 may send empty pages before the one that matters.
        while not (page.objects or page.prefixes or page.next_token is None):
            if attempts.left_s() <= 0:
                raise Stalled("the listing has only empty pages")
            page = self._first_below(prefix, page.next_token, attempts)
        return bool(page.objects or page.prefixes)

    def _first_below(self, prefix: bytes, token: str | None, attempts: Attempts) -> ListPage:
        return self._retry_policy.ask(
            lambda: self._client.list(prefix, token=token, max_keys=1), attempts
        ).answer()
