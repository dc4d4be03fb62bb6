"""Pages of a directory's listing that are asked for one after another, by their tokens.

What is asked, what has come and how far it tells; `directory` says when, and joins several.
"""

from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from mountpoint.errors import BadAnswer
from mountpoint.listing.pages import reach_of
from mountpoint.s3.client import ListPage


class Asked(NamedTuple):
    """A page that has been asked for, and the clock just before."""

    future: "Future[ListPage]"
    asked_at_s: float


class Arrived(NamedTuple):
    """A page, and up to where it tells: None is of nothing."""

    page: ListPage
    asked_at_s: float
    reach: bytes | None

    @property
    def is_empty(self) -> bool:
        """Whether it says that there is nothing any more."""
        page = self.page
        return not (page.objects or page.prefixes or page.skipped or page.next_token is not None)


class PageChain:
    """Pages that follow each other by their tokens, from the position `after` on.

    With a `token` it begins behind a page that has one. `guessed` says that its first page
    has not been joined yet, and that nobody knows whether one may.
    """

    def __init__(self, after: bytes, token: str | None = None, *, guessed: bool = False) -> None:
        self.after = after
        self.token = token  # of the next page
        self.guessed = guessed
        self.reach = after  # of the pages that have come
        self.asked: Asked | None = None
        self.ended = False
        self.pages: deque[Arrived] = deque()  # that have come and are not joined
        self._tokens = {token}

    @property
    def failed(self) -> bool:
        """Whether its request has ended without an answer."""
        if self.asked is None or not self.asked.future.done():
            return False
        return self.asked.future.cancelled() or self.asked.future.exception() is not None

    def collect(self, prefix: bytes) -> None:
        """Take the answer, if it has come. Raises BadAnswer for a token that came before."""
        asked = self.asked
        if asked is None or not asked.future.done() or self.failed:
            return
        self.asked = None
        page = asked.future.result()
        if page.next_token is not None and page.next_token in self._tokens:
            raise BadAnswer("the listing goes in circles: a continuation token came twice")
        self._tokens.add(page.next_token)
        reach = reach_of(prefix, self.reach, page)
        self.token = page.next_token
        self.ended = page.next_token is None
        self.reach = reach or self.reach
        self.pages.append(Arrived(page, asked.asked_at_s, reach))

    def cancel(self) -> None:
        """Cancel what is in flight."""
        if self.asked is not None:
            self.asked.future.cancel()
