"""One listing of one directory, which grows as it is read.

**Runs.** S3 gives at most 1,000 names a page, each page after the one before: 50 ms for every
thousand names. So from the second page on, which `ls | head` never asks for, further pages are
asked for at once, each beginning where names are guessed to go on (`split_points`). Such a page and
those that follow it by their tokens are a *run*. The first run begins at the beginning; the
run in front is the one from which names are given out.

**Joining.** A page tells of every name up to its reach (`pages`). When the pages in front
reach *beyond* the position where a run begins, nothing is between them, whatever the guess
was worth: that run goes on, without what has been told already. Until then the run in front
goes on by its tokens; so does a run ahead whose page ends before the next one begins. In both
orders that stores list in, no name is lost, and none comes twice.

**What it costs.** A request costs 1, a page that is joined brings somewhat more, by the share of
its names that are new. With nothing left only the run in front is asked for: where guesses are
bad, there are hardly more requests than pages. `FIRST_AHEAD` requests are made at first, and
never more than `MOST_AHEAD` before their turn; at the end of the directory these are in vain. So
there are at most half as many requests again as pages, and eight (with names of every kind, in
tests; with 20,000 names as programs give them there were 23 to 31 requests).

**Trust.** A page that begins too early, has no order, or lacks the name up to which all was
told, comes from a store that knows no start-after: then all pages come by tokens, from the
last that was joined. So they do where keys are listed in no order. An empty page far ahead is
taken for the end, and nothing is asked for beyond; where the end is says a page in front.

Whoever reads drives it all: requests are made, answers taken and failures repeated by readers,
and what is asked for ahead is waited for only when its turn comes.
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

#: Requests at once when the second page is asked for. A directory that ends there has cost three
#: empty answers too many.
FIRST_AHEAD = 4
#: Pages of 5 ms of CPU and 50 ms of waiting: more would only wait for the interpreter.
MOST_AHEAD = 8
#: So many names are joined before a reader is there: what a reader needs 50 ms for.
READY_NAMES = 4000
#: What a page brings that was guessed, if its names are all new: two thirds of them must be, or
#: there are ever fewer guesses. After four good pages six more are asked for.
EARNED = 1.5
#: What a page brings that came by a token: where guesses were bad, one more after ten pages.
EARNED_BY_TOKEN = 1.1


class DirectoryListing:
    """The entries of the directory `prefix`, page by page. Thread-safe.

    Positions in it stay valid as long as it lives. `first` is what has been asked for already:
    the first page, or all. Nothing is asked before the first read.

    `_lock` is not held while anything is waited for.
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
        self._held_since_s = 0.0  # age of the oldest entry that is not certain yet
        self._reach = b""  # of the pages that were joined
        self._token: str | None = None  # of the page behind them
        #: Never empty. From each to the next they begin further on; only the first may begin
        #: before `_reach`.
        self._runs = deque([PageChain(b"")])
        if isinstance(first, Asked):
            self._runs[0].asked = first
        self._ahead = client.lists_in_order
        self._looked_ahead = False
        self._credit = 0.0
        self._guess: Guess | None = None
        self._guessed_from = b""  # the reach of the page that the guess was made of

    @property
    def begun(self) -> bool:
        """Whether something was read of it."""
        return self._begun

    def read(self, position: int, count: int) -> list[Entry]:
        """Return the entries from `position` on: `count` of them, or up to a page's end.

        Empty only at the end of the directory. Raises S3Errors, BadAnswer for a listing
        that goes in circles, Stalled for one that goes on for too long without an entry.
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
                    raise Stalled("the listing goes on without an entry")
                run = self._runs[0]
                asked = run.asked or self._ask(run)
                if self._begun:  # there is more than one page, and somebody wants it
                    self._look_ahead()
            self._wait(run, asked, attempts)

    def names(self) -> set[bytes]:
        """Return all names, once everything has been read. No two entries have the same."""
        with self._lock:
            return {entry.name for entry in self._entries}

    def close(self) -> None:
        """Cancel what is in flight, and ask for nothing ahead any more."""
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

    # --- asking and waiting ---

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
        """Wait for an answer; return for another look. Raises what no retry will help."""
        error: S3Error | None = None
        try:
            asked.future.result(min(self._retry_policy.try_s, max(attempts.left_s(), 0.0)))
            return
        except CancelledError:
            pass  # by who closed it, or found that it is not needed
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
        # A guess is not made again: what it would have told is asked for by a token.
        if error is not None and not was_guessed and not attempts.again(error):
            raise error

    def _failed(self, run: PageChain, error: S3Error | None) -> None:
        run.asked = None
        if run.guessed and error is not None and not error.retryable:
            self._give_up()
        if run.guessed and run is self._runs[0]:
            self._runs[0] = PageChain(self._reach, self._token)

    # --- what has come ---

    def _has(self, position: int) -> bool:
        """Whether it is known what is at a position."""
        return self._complete or len(self._entries) > position

    def _go_on(self, position: int) -> None:
        """While a reader is busy: join what has come, and ask for more in its place."""
        if not self._looked_ahead or self._complete or not self._ahead:
            return
        try:
            while not self._has(position + READY_NAMES) and self._join():
                pass
        except BadAnswer:
            self._give_up()  # it comes again when the page is needed
        self._look_ahead()

    def _join(self) -> bool:
        """Take the next page, if it has come, and put the run in front from which to go on."""
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
        """Whether the page, which begins before the reach, tells what it should."""
        if arrived.reach is None:
            return False
        if arrived.reach < self._reach + b"/":
            return True  # it need not tell of the name
        key = self._prefix + self._reach
        return key + b"/" in arrived.page.prefixes or any(
            info.key == key for info in arrived.page.objects
        )

    def _without_told(self, page: ListPage) -> ListPage:
        """Leave out what the pages before tell of. Names that come twice all the same (folders,
        in stores that list them before what they list after them) are dropped by the merge.
        """
        told = self._prefix + self._reach
        return ListPage(
            [info for info in page.objects if info.key > told],
            [prefix for prefix in page.prefixes if prefix > told],
            page.next_token,
            page.skipped,
        )

    def _take(self, page: ListPage, arrived: Arrived) -> None:
        """Put in the entries of a page, and note them for lookups."""
        held, held_since_s = self._merge.holds, self._held_since_s
        certain = self._merge.feed(page)
        if len(certain) >= held:  # what is held back now is of this page
            self._held_since_s = arrived.asked_at_s
        else:
            self._held_since_s = min(held_since_s, arrived.asked_at_s)
        span = None
        if arrived.reach is not None and arrived.reach > self._reach:
            span = Span(self._reach, arrived.reach, arrived.asked_at_s)
            self._reach = arrived.reach
        self._token = page.next_token
        self._entries += certain
        # What an earlier page had named comes first, and is as old as that page.
        if held:
            self._listings.add(self._prefix, certain[:held], held_since_s)
        self._listings.add(self._prefix, certain[held:], arrived.asked_at_s, span)
        if page.skipped:
            log.warning(
                "entries of a listing made no sense and were left out",
                prefix=self._shown(),
                count=page.skipped,
            )
        if page.next_token is None:
            self._note_hidden(self._merge.unnameable)

    def _note_hidden(self, count: int) -> None:
        if count:
            log.debug("keys that cannot be names are not shown", prefix=self._shown(), count=count)

    def _shown(self) -> str:
        return self._prefix.decode("utf-8", "backslashreplace")

    # --- what comes next ---

    def _look_ahead(self) -> None:
        """Ask for what the credit allows: gaps between runs first, then further on."""
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
        """See what has come of the runs ahead."""
        for index in range(1, len(self._runs)):
            run = self._runs[index]
            if run.failed:
                run.asked = None
                if run.guessed:  # the run before it goes on in its place
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
        """Return where to ask for the page behind the one that a run, the last, has asked for."""
        if self._guess is None or run.ended:
            return None
        position = self._guess.after(run.reach)
        if position is None or position <= self._reach:
            return None
        if len(self._prefix) + len(position) > MAX_KEY_BYTES:
            return None
        return position

    def _learn(self, arrived: Arrived) -> None:
        """Guess from the furthest page that is known."""
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
        """From now on one page after another."""
        self._ahead = False
        self._cut_off(1)

    def _cut_off(self, index: int) -> None:
        while len(self._runs) > index:
            self._runs.pop().cancel()
