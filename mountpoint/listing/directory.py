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
hardly more requests than pages. `FIRST_AHEAD` requests are sent at first, and at most `MOST_AHEAD`
ahead of the reader; at the end of the directory these are wasted. In tests with all kinds of names,
the extra requests were at most half of the number of pages plus eight. Listing 20,000 names of
typical programs took 23 to 31 requests.

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
from mountpoint.listing.flat import Listed
from mountpoint.listing.page_chain import Arrived, Asked, PageChain
from mountpoint.listing.pages import END, Span
from mountpoint.listing.split_points import Guess, guess
from mountpoint.listing.tree import MAX_KEY_BYTES, DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectClient
from mountpoint.s3.retry import Attempts, RetryPolicy

log = structlog.get_logger(__name__)

#: Parallel requests when the second page is needed. If the directory ends there, three of them are
#: wasted on empty answers.
FIRST_AHEAD = 4
#: A page takes 5 ms of CPU and 50 ms of waiting: more requests would only wait for the GIL.
MOST_AHEAD = 8
#: Names joined ahead of a reader: it takes 50 ms to read them.
READY_NAMES = 4000
#: Credit for a guessed page whose names are all new. At least two thirds must be new, or the number
#: of guesses falls. After four good pages, six more are requested.
EARNED = 1.5
#: Credit for a page by a token: where guesses were bad, one more guess after ten pages.
EARNED_BY_TOKEN = 1.1


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
        first: Asked | Listed | None = None,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings
        # constants
        self._prefix = prefix
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._known = first if isinstance(first, Listed) else None
        self._begun = False
        self._complete = False
        self._entries: list[Entry] = []
        self._merge = DirectoryMerge(prefix)
        self._held_since_s = 0.0  # request time of the oldest entry that is not certain yet
        self._reach = b""  # of the joined pages
        self._token: str | None = None  # of the page after them
        #: Never empty. Each begins beyond the one before; only the first may begin before
        #: `_reach`.
        self._runs = deque([PageChain(b"")])
        if isinstance(first, Asked):
            self._runs[0].asked = first
        self._ahead = client.lists_in_order
        self._looked_ahead = False
        self._credit = 0.0
        self._guess: Guess | None = None
        self._guessed_from = b""  # the reach of the page that `_guess` came from

    @property
    def begun(self) -> bool:
        """Whether a page was read."""
        return self._begun

    def read(self, position: int, count: int) -> list[Entry]:
        """Return the entries from `position` on: `count` of them, or up to the end of a page.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing whose
        tokens repeat, and Stalled for one that yields no entry for too long.
        """
        attempts = self._retry_policy.begin()
        while True:
            with self._lock:
                while not self._has(position) and self._join():
                    pass
                if self._has(position):
                    self._go_on(position)
                    return self._entries[position : position + count]
                if attempts.left_s() <= 0:
                    raise Stalled("the listing continues without an entry")
                run = self._runs[0]
                asked = run.asked or self._ask(run)
                if self._begun:  # there is a second page, and a reader needs it
                    self._look_ahead()
            self._wait(run, asked, attempts)

    def names(self) -> set[bytes]:
        """Return all names, each once, after the whole directory has been read."""
        with self._lock:
            return {entry.name for entry in self._entries}

    def close(self) -> None:
        """Cancel requests in flight, and stop listing ahead."""
        with self._lock:
            self._runs[0].cancel()
            self._give_up()

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            assert self._runs
            begins = [run.after for run in self._runs]
            assert all(self._reach <= after for after in begins[1:]), begins
            assert begins == sorted(set(begins)), begins
            assert 0 <= self._credit <= MOST_AHEAD
            assert self._outstanding() <= MOST_AHEAD + 1

    # --- requests and waiting ---

    def _ask(self, run: PageChain) -> Asked:
        asked_at_s = time.monotonic()
        if run.token is not None:
            future = self._client.list(self._prefix, token=run.token)
        elif run.after:
            future = self._client.list(self._prefix, start_after=self._prefix + run.after)
        else:
            future = self._client.list(self._prefix)
        run.asked = Asked(future, asked_at_s)
        self._credit = max(self._credit - 1, 0.0)
        return run.asked

    def _wait(self, run: PageChain, asked: Asked, attempts: Attempts) -> None:
        """Wait for an answer; the caller then checks again. Raises errors that end the retries."""
        error: S3Error | None = None
        try:
            asked.future.result(min(self._retry_policy.try_s, max(attempts.left_s(), 0.0)))
            return
        except CancelledError:
            pass  # another thread closed the listing or no longer needs the page
        except TimeoutError:
            asked.future.cancel()
            error = Stalled(f"no answer within {self._retry_policy.try_s:.0f} s")
        except S3Error as failure:
            error = failure
        finally:
            with self._lock:
                was_guessed = run.guessed
                if run.asked is asked and run.failed:
                    self._failed(run, error)
        # A failed guess is not retried: its names will come by a token.
        if error is not None and not was_guessed and not attempts.again(error):
            raise error

    def _failed(self, run: PageChain, error: S3Error | None) -> None:
        run.asked = None
        if run.guessed and error is not None and not error.retryable:
            self._give_up()
        if run.guessed and run is self._runs[0]:
            self._runs[0] = PageChain(self._reach, self._token)

    # --- arrived pages ---

    def _has(self, position: int) -> bool:
        """Whether the entry at a position is known, or known to be beyond the end."""
        return self._complete or len(self._entries) > position

    def _go_on(self, position: int) -> None:
        """While a reader is busy, join arrived pages and request more in their place."""
        if not self._looked_ahead or self._complete or not self._ahead:
            return
        try:
            while not self._has(position + READY_NAMES) and self._join():
                pass
        except BadAnswer:
            self._give_up()  # the error occurs again when the page is needed
        self._look_ahead()

    def _join(self) -> bool:
        """Join the next page, if it has arrived, and move the chain that continues to the front."""
        if self._known is not None:
            self._join_known(self._known)
            return True
        run = self._runs[0]
        run.collect(self._prefix)
        if not run.pages:
            return False
        arrived = run.pages.popleft()
        if run.guessed and not self._adjoins(arrived):
            self._give_up()
            self._runs[0] = PageChain(self._reach, self._token)
            return False
        guessed, run.guessed = run.guessed, False
        page = self._without_told(arrived.page) if guessed else arrived.page
        self._learn(arrived)
        self._take(page, arrived)
        self._earn(EARNED if guessed else EARNED_BY_TOKEN, page, arrived.page)
        self._begun = True
        if page.next_token is None:
            self._complete = True
        if page.next_token is None or arrived.reach is None:
            self._give_up()
        while len(self._runs) > 1 and self._runs[1].after < self._reach:
            self._runs.popleft().cancel()
        return True

    def _join_known(self, known: Listed) -> None:
        span = Span(b"", END, known.asked_at_s)
        self._listings.add(self._prefix, known.entries, known.asked_at_s, span)
        self._entries = known.entries
        self._note_hidden(known.hidden)
        self._known = None
        self._begun = self._complete = True

    def _adjoins(self, arrived: Arrived) -> bool:
        """Whether a page that begins before the reach contains the name that it must."""
        if arrived.reach is None:
            return False
        if arrived.reach < self._reach + b"/":
            return True  # the page need not contain that name
        key = self._prefix + self._reach
        return key + b"/" in arrived.page.prefixes or any(
            info.key == key for info in arrived.page.objects
        )

    def _without_told(self, page: ListPage) -> ListPage:
        """Drop the names that previous pages covered.

        The merge drops names that still repeat: some stores list folders before the keys that sort
        before them.
        """
        told = self._prefix + self._reach
        return ListPage(
            [info for info in page.objects if info.key > told],
            [prefix for prefix in page.prefixes if prefix > told],
            page.next_token,
            page.skipped,
        )

    def _take(self, page: ListPage, arrived: Arrived) -> None:
        """Add a page's entries, and put them in the cache for lookups."""
        held, held_since_s = self._merge.holds, self._held_since_s
        certain = self._merge.feed(page)
        if len(certain) >= held:  # all entries now held back are from this page
            self._held_since_s = arrived.asked_at_s
        else:
            self._held_since_s = min(held_since_s, arrived.asked_at_s)
        span = None
        if arrived.reach is not None and arrived.reach > self._reach:
            span = Span(self._reach, arrived.reach, arrived.asked_at_s)
            self._reach = arrived.reach
        self._token = page.next_token
        self._entries += certain
        # Entries from an earlier page come first, and are as old as that page.
        if held:
            self._listings.add(self._prefix, certain[:held], held_since_s)
        self._listings.add(self._prefix, certain[held:], arrived.asked_at_s, span)
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

    def _look_ahead(self) -> None:
        """Send the requests that the credit allows: for gaps between chains first, then ahead."""
        self._looked_ahead = True
        self._survey()
        index = 0
        while index < len(self._runs) and self._may_ask_ahead():
            run = self._runs[index]
            index += 1
            last = index == len(self._runs)
            if run.asked is None and not run.ended and (last or run.reach <= self._begins(index)):
                self._ask(run)
            if last and self._may_ask_ahead():
                position = self._position_behind(run)
                if position is not None:
                    self._runs.append(PageChain(position, guessed=True))

    def _may_ask_ahead(self) -> bool:
        if not self._ahead or self._complete or self._credit < 1:
            return False
        return self._outstanding() < MOST_AHEAD

    def _outstanding(self) -> int:
        return sum((run.asked is not None) + len(run.pages) for run in self._runs)

    def _begins(self, index: int) -> bytes:
        return self._runs[index].after

    def _survey(self) -> None:
        """Check the answers to the chains ahead."""
        for index in range(1, len(self._runs)):
            run = self._runs[index]
            if run.failed:
                run.asked = None
                if run.guessed:  # the chain before it continues instead
                    self._cut_off(index)
                    break
            try:
                run.collect(self._prefix)
            except BadAnswer:
                self._give_up()
                break
            if not run.pages:
                continue
            newest = run.pages[-1]
            if newest.is_empty:
                self._cut_off(index)
                self._guess = None
                break
            if newest.reach is None:
                self._give_up()
                break
            self._learn(newest)
            if run.ended:
                self._cut_off(index + 1)
                break

    def _position_behind(self, run: PageChain) -> bytes | None:
        """Return the position after the page that `run`, the last chain, has requested."""
        if self._guess is None or run.ended:
            return None
        position = self._guess.after(run.reach)
        if position is None or position <= self._reach:
            return None
        if len(self._prefix) + len(position) > MAX_KEY_BYTES:
            return None
        return position

    def _learn(self, arrived: Arrived) -> None:
        """Update the guess from the page furthest ahead."""
        if (
            not self._ahead
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

    def _earn(self, most: float, new: ListPage, whole: ListPage) -> None:
        if not self._begun:
            self._credit = FIRST_AHEAD
            return
        names = len(whole.objects) + len(whole.prefixes)
        share = (len(new.objects) + len(new.prefixes)) / max(names, 1)
        self._credit = min(self._credit + most * share, MOST_AHEAD)

    def _give_up(self) -> None:
        """List one page after another from now on."""
        self._ahead = False
        self._cut_off(1)

    def _cut_off(self, index: int) -> None:
        while len(self._runs) > index:
            self._runs.pop().cancel()
