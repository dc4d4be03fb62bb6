"""Resolve a name: from the cache, else from S3.

The order is: a cached proof that the name is missing; a page that lists it, cached or requested
because it will also answer for its neighbours (`batch_lookup`); one LIST of the few keys that begin
with the name; and HEAD and LIST in parallel if too many other keys begin with it.
"""

import time

from mountpoint.errors import NoSuchEntry, NotFound, Stalled
from mountpoint.listing import tree
from mountpoint.listing.batch_lookup import Siblings
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ListPage, ObjectClient, ObjectInfo
from mountpoint.s3.retry import Attempts, RetryPolicy


class Lookups:
    """Lookups in all directories of a mount. Thread-safe; no lock is held while waiting.

    An entry that expires within `ahead_s` is renewed when it is looked up.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        listings: ListingCache,
        *,
        ttl_s: float,
        negative_ttl_s: float,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        self._siblings = Siblings(client, retry_policy, listings, ttl_s)
        # constants
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self.ahead_s = self._siblings.ahead_s

    def forget(self, directory: bytes) -> None:
        """Forget how a directory's listing is divided into pages."""
        self._siblings.forget(directory)

    def find(self, directory: bytes, name: bytes) -> tuple[Entry, float]:
        """Return a name's entry and its expiry on the monotonic clock.

        Raises NoSuchEntry, with its own expiry; also S3Errors, Stalled and Interrupted.
        """
        if not tree.is_name(name):
            raise NoSuchEntry()
        if len(directory) + len(name) > tree.MAX_KEY_BYTES:
            raise NoSuchEntry("S3 has no keys of this length")
        asked_at_s = time.monotonic()
        absent_until_s = self._listings.absent(directory, name)
        if absent_until_s is not None:
            raise NoSuchEntry(ttl_s=min(absent_until_s - asked_at_s, self._negative_ttl_s))
        attempts = self._retry_policy.begin()
        try:
            return self._siblings.find(directory, name) or self._alone(directory, name, attempts)
        except NoSuchEntry:
            self._listings.missed(directory, name, asked_at_s)
            passed_s = time.monotonic() - asked_at_s
            raise NoSuchEntry(ttl_s=max(self._negative_ttl_s - passed_s, 0.0)) from None

    def _alone(self, directory: bytes, name: bytes, attempts: Attempts) -> tuple[Entry, float]:
        asked_at_s = time.monotonic()
        entry = self._by_list(directory, name, attempts)
        if entry is None:
            entry = self._by_both(directory, name, attempts)
        self._listings.add(directory, [entry], asked_at_s)
        return entry, asked_at_s + self._ttl_s

    def _by_list(self, directory: bytes, name: bytes, attempts: Attempts) -> Entry | None:
        """Look up a name with one LIST; None if the page does not settle it."""
        if not self._client.lists_in_order:
            return None
        key = directory + name
        page = self._retry_policy.ask(
            lambda: self._client.list(key, max_keys=tree.FEW_KEYS), attempts
        ).answer()
        certain, entry = tree.told_by(page, key, name)
        if certain and entry is None:
            raise NoSuchEntry()
        return entry

    def _by_both(self, directory: bytes, name: bytes, attempts: Attempts) -> Entry:
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
