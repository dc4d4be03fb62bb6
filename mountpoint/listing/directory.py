"""List one directory, page by page, with further pages requested in parallel.

**Chains.** S3 returns at most 1,000 names a page, each after the one before: 50 ms per thousand
names. So from the second page on, which `ls | head` never requests, further pages are requested in
parallel. Each begins where names are guessed to continue (`split_points`). Such a page and those
that follow it by their tokens are a *chain*. The first chain begins at the start of the directory;
the reader gets the names of the front chain.

**Joining.** A page covers every name up to its reach (`pages`). When the front pages reach *beyond*
the position where a chain begins, there is no gap between them, however good the guess was. Then
that chain continues, without the names that were already returned. Until then the front chain
continues by its tokens; so does a later chain whose page ends before the next chain begins. In both
orders that stores use, no name is lost and none is returned twice.

**Cost.** A request costs 1 credit. A joined page earns somewhat more, times the share of its names
that are new. Without credit, only the front chain is requested: where guesses are bad, there are
hardly more requests than pages. `FIRST_PARALLEL` requests are sent at first, and at most
`MAX_PARALLEL` ahead of the reader; at the end of the directory these are wasted. In tests with all
kinds of names, the extra requests were at most half of the number of pages plus eight. Listing
20,000 names of typical programs took 23 to 31 requests.

**Trust.** If a page begins too early, is unordered, or lacks the name up to which the previous
pages reach, the store does not support start-after. Then all pages come by tokens, from the last
joined one on. The same holds if the store lists in no order. An empty page far ahead is assumed to
be the end, and nothing beyond it is requested, but only a front page proves the end.

The reading threads do all the work: they send requests, take answers and retry failures. They wait
for a page ahead only when they need it.
"""

import threading
import time
from collections import deque
from concurrent.futures import CancelledError

import structlog

from mountpoint.errors import BadAnswer, S3Error, Stalled
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.flat import CompleteDirectory
from mountpoint.listing.page_chain import ArrivedPage, PageChain, PageRequest
from mountpoint.listing.pages import END, Span
from mountpoint.listing.split_points import Guess, guess
from mountpoint.listing.tree import MAX_KEY_BYTES, DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectClient
from mountpoint.s3.retry import Attempts, RetryPolicy

log = structlog.get_logger(__name__)

#: Parallel requests when the second page is needed. If the directory ends there, three of them are
#: wasted on empty answers.
FIRST_PARALLEL = 4
#: A page takes 5 ms of CPU and 50 ms of waiting: more requests would only wait for the GIL.
MAX_PARALLEL = 8
#: Names joined ahead of a reader: it takes 50 ms to read them.
READY_NAMES = 4000
#: Credit for a guessed page whose names are all new. At least two thirds must be new, or the number
#: of guesses falls. After four good pages, six more are requested.
CREDIT_BY_GUESS = 1.5
#: Credit for a page by a token: where guesses were bad, one more guess after ten pages.
CREDIT_BY_TOKEN = 1.1


class DirectoryListing:
    """The entries of the directory `prefix`, page by page. Thread-safe.

    Positions stay valid as long as the object lives. `first` is what was already requested or
    listed: the first page, or everything. No request is sent before the first read.

    `_lock` is not held while a thread waits.
    """

    def __init__(
        self,
        prefix: bytes,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        listings: ListingCache,
        first: PageRequest | CompleteDirectory | None = None,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # constants
        self._prefix = prefix
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._given = first if isinstance(first, CompleteDirectory) else None
        self._started = False
        self._complete = False
        self._entries: list[Entry] = []
        self._merge = DirectoryMerge(prefix)
        self._held_since_s = 0.0  # request time of the oldest entry that is not certain yet
        self._reach = b""  # of the joined pages
        self._token: str | None = None  # of the page after them
        #: Never empty. Each begins beyond the one before; only the first may begin before
        #: `_reach`.
        self._chains = deque([PageChain(b"")])
        if isinstance(first, PageRequest):
            self._chains[0].request = first
        self._parallel = client.lists_in_order
        self._sent_parallel = False
        self._credit = 0.0
        self._guess: Guess | None = None
        self._guessed_from = b""  # the reach of the page that `_guess` came from

    @property
    def started(self) -> bool:
        """Whether a page was read."""
        return self._started

    def read(self, position: int, count: int) -> list[Entry]:
        """Return the entries from `position` on: `count` of them, or up to the end of a page.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing whose
        tokens repeat, and Stalled for one that yields no entry for too long.
        """
        attempts = self._retry_policy.begin()
        while True:
            with self._lock:
                while not self._is_known(position) and self._join():
                    pass
                if self._is_known(position):
                    self._read_ahead(position)
                    return self._entries[position : position + count]
                if attempts.left_s() <= 0:
                    raise Stalled("the listing continues without an entry")
                chain = self._chains[0]
                request = chain.request or self._send(chain)
                if self._started:  # there is a second page, and a reader needs it
                    self._send_parallel()
            self._wait(chain, request, attempts)

    def names(self) -> set[bytes]:
        """Return all names, each once, after the whole directory has been read."""
        with self._lock:
            return {entry.name for entry in self._entries}

    def close(self) -> None:
        """Cancel requests in flight, and stop listing ahead."""
        with self._lock:
            self._chains[0].cancel()
            self._stop_parallel()

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            assert self._chains
            begins = [chain.after for chain in self._chains]
            assert all(self._reach <= after for after in begins[1:]), begins
            assert begins == sorted(set(begins)), begins
            assert 0 <= self._credit <= MAX_PARALLEL
            assert self._outstanding() <= MAX_PARALLEL + 1

    # --- requests and waiting ---

    def _send(self, chain: PageChain) -> PageRequest:
        requested_at_s = time.monotonic()
        if chain.token is not None:
            future = self._client.list(self._prefix, token=chain.token)
        elif chain.after:
            future = self._client.list(self._prefix, start_after=self._prefix + chain.after)
        else:
            future = self._client.list(self._prefix)
        chain.request = PageRequest(future, requested_at_s)
        self._credit = max(self._credit - 1, 0.0)
        return chain.request

    def _wait(self, chain: PageChain, request: PageRequest, attempts: Attempts) -> None:
        """Wait for an answer; the caller then checks again. Raises errors that end the retries."""
        error: S3Error | None = None
        try:
            request.future.result(min(self._retry_policy.try_s, max(attempts.left_s(), 0.0)))
            return
        except CancelledError:
            pass  # another thread closed the listing or no longer needs the page
        except TimeoutError:
            request.future.cancel()
            error = Stalled(f"no answer within {self._retry_policy.try_s:.0f} s")
        except S3Error as failure:
            error = failure
        finally:
            with self._lock:
                was_guessed = chain.guessed
                if chain.request is request and chain.failed:
                    self._failed(chain, error)
        # A failed guess is not retried: its names will come by a token.
        if error is not None and not was_guessed and not attempts.again(error):
            raise attempts.last(error)

    def _failed(self, chain: PageChain, error: S3Error | None) -> None:
        chain.request = None
        if chain.guessed and error is not None and not error.retryable:
            self._stop_parallel()
        if chain.guessed and chain is self._chains[0]:
            self._chains[0] = PageChain(self._reach, self._token)

    # --- arrived pages ---

    def _is_known(self, position: int) -> bool:
        """Whether the entry at a position is known, or known to be beyond the end."""
        return self._complete or len(self._entries) > position

    def _read_ahead(self, position: int) -> None:
        """While a reader is busy, join arrived pages and request more in their place."""
        if not self._sent_parallel or self._complete or not self._parallel:
            return
        try:
            while not self._is_known(position + READY_NAMES) and self._join():
                pass
        except BadAnswer:
            self._stop_parallel()  # the error occurs again when the page is needed
        self._send_parallel()

    def _join(self) -> bool:
        """Join the next page, if it has arrived, and move the chain that continues to the front."""
        if self._given is not None:
            self._join_complete(self._given)
            return True
        chain = self._chains[0]
        chain.collect(self._prefix)
        if not chain.pages:
            return False
        arrived = chain.pages.popleft()
        if chain.guessed and not self._adjoins(arrived):
            self._stop_parallel()
            self._chains[0] = PageChain(self._reach, self._token)
            return False
        guessed, chain.guessed = chain.guessed, False
        page = self._without_covered(arrived.page) if guessed else arrived.page
        self._update_guess(arrived)
        self._merge_page(page, arrived)
        self._earn_credit(CREDIT_BY_GUESS if guessed else CREDIT_BY_TOKEN, page, arrived.page)
        self._started = True
        if page.next_token is None:
            self._complete = True
        if page.next_token is None or arrived.reach is None:
            self._stop_parallel()
        while len(self._chains) > 1 and self._chains[1].after < self._reach:
            self._chains.popleft().cancel()
        return True

    def _join_complete(self, given: CompleteDirectory) -> None:
        span = Span(b"", END, given.requested_at_s)
        self._listings.add(self._prefix, given.entries, given.requested_at_s, span)
        self._entries = given.entries
        self._note_hidden(given.hidden)
        self._given = None
        self._started = self._complete = True

    def _adjoins(self, arrived: ArrivedPage) -> bool:
        """Whether a page that begins before the reach contains the name that it must."""
        if arrived.reach is None:
            return False
        if arrived.reach < self._reach + b"/":
            return True  # the page need not contain that name
        key = self._prefix + self._reach
        return key + b"/" in arrived.page.prefixes or any(
            info.key == key for info in arrived.page.objects
        )

    def _without_covered(self, page: ListPage) -> ListPage:
        """Drop the names that previous pages covered.

        The merge drops names that still repeat: some stores list folders before the keys that sort
        before them.
        """
        covered = self._prefix + self._reach
        return ListPage(
            [info for info in page.objects if info.key > covered],
            [prefix for prefix in page.prefixes if prefix > covered],
            page.next_token,
            page.skipped,
        )

    def _merge_page(self, page: ListPage, arrived: ArrivedPage) -> None:
        """Add a page's entries, and put them in the cache for lookups."""
        held, held_since_s = self._merge.holds, self._held_since_s
        certain = self._merge.feed(page)
        if len(certain) >= held:  # all entries now held back are from this page
            self._held_since_s = arrived.requested_at_s
        else:
            self._held_since_s = min(held_since_s, arrived.requested_at_s)
        span = None
        if arrived.reach is not None and arrived.reach > self._reach:
            span = Span(self._reach, arrived.reach, arrived.requested_at_s)
            self._reach = arrived.reach
        self._token = page.next_token
        self._entries += certain
        # Entries from an earlier page come first, and are as old as that page.
        if held:
            self._listings.add(self._prefix, certain[:held], held_since_s)
        self._listings.add(self._prefix, certain[held:], arrived.requested_at_s, span)
        if page.skipped:
            log.warning(
                "invalid entries of a listing were skipped",
                prefix=self._shown(),
                count=page.skipped,
            )
        if page.next_token is None:
            self._note_hidden(self._merge.unnameable)

    def _note_hidden(self, count: int) -> None:
        if count:
            log.debug(
                "keys that cannot be file names are not shown", prefix=self._shown(), count=count
            )

    def _shown(self) -> str:
        return self._prefix.decode("utf-8", "backslashreplace")

    # --- listing ahead ---

    def _send_parallel(self) -> None:
        """Send the requests that the credit allows: for gaps between chains first, then ahead."""
        self._sent_parallel = True
        self._check_chains()
        index = 0
        while index < len(self._chains) and self._may_send():
            chain = self._chains[index]
            index += 1
            last = index == len(self._chains)
            gap = last or chain.reach <= self._chains[index].after
            if chain.request is None and not chain.ended and gap:
                self._send(chain)
            if last and self._may_send():
                position = self._next_start(chain)
                if position is not None:
                    self._chains.append(PageChain(position, guessed=True))

    def _may_send(self) -> bool:
        if not self._parallel or self._complete or self._credit < 1:
            return False
        return self._outstanding() < MAX_PARALLEL

    def _outstanding(self) -> int:
        return sum((chain.request is not None) + len(chain.pages) for chain in self._chains)

    def _check_chains(self) -> None:
        """Check the answers to the chains ahead."""
        for index in range(1, len(self._chains)):
            chain = self._chains[index]
            if chain.failed:
                chain.request = None
                if chain.guessed:  # the chain before it continues instead
                    self._cancel_from(index)
                    break
            try:
                chain.collect(self._prefix)
            except BadAnswer:
                self._stop_parallel()
                break
            if not chain.pages:
                continue
            newest = chain.pages[-1]
            if newest.is_empty:
                self._cancel_from(index)
                self._guess = None
                break
            if newest.reach is None:
                self._stop_parallel()
                break
            self._update_guess(newest)
            if chain.ended:
                self._cancel_from(index + 1)
                break

    def _next_start(self, chain: PageChain) -> bytes | None:
        """Return the position after the page that `chain`, the last chain, has requested."""
        if self._guess is None or chain.ended:
            return None
        position = self._guess.after(chain.reach)
        if position is None or position <= self._reach:
            return None
        if len(self._prefix) + len(position) > MAX_KEY_BYTES:
            return None
        return position

    def _update_guess(self, arrived: ArrivedPage) -> None:
        """Update the guess from the page furthest ahead."""
        if (
            not self._parallel
            or arrived.reach is None
            or arrived.reach <= self._guessed_from
            or arrived.page.next_token is None
        ):
            return
        self._guessed_from = arrived.reach
        start = len(self._prefix)
        names = [info.key[start:] for info in arrived.page.objects]
        names += [prefix[start:-1] for prefix in arrived.page.prefixes]
        names.sort()
        self._guess = guess(names) or self._guess

    def _earn_credit(self, credit: float, new: ListPage, whole: ListPage) -> None:
        if not self._started:
            self._credit = FIRST_PARALLEL
            return
        names = len(whole.objects) + len(whole.prefixes)
        share = (len(new.objects) + len(new.prefixes)) / max(names, 1)
        self._credit = min(self._credit + credit * share, MAX_PARALLEL)

    def _stop_parallel(self) -> None:
        """List one page after another from now on."""
        self._parallel = False
        self._cancel_from(1)

    def _cancel_from(self, index: int) -> None:
        while len(self._chains) > index:
            self._chains.pop().cancel()
