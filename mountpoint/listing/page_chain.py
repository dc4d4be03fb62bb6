"""A chain of pages of a directory's listing, requested one after another by their tokens.

It holds the request in flight, the arrived pages and their reach. `directory` decides when to send
requests, and joins several chains.
"""

from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from mountpoint.errors import BadAnswer
from mountpoint.listing.pages import reach_of
from mountpoint.s3.client import ListPage


class PageRequest(NamedTuple):
    """A page in flight, and the clock just before its request."""

    future: "Future[ListPage]"
    requested_at_s: float


class ArrivedPage(NamedTuple):
    """A page and its reach; None if the page proves nothing."""

    page: ListPage
    requested_at_s: float
    reach: bytes | None

    @property
    def is_empty(self) -> bool:
        """Whether the page says that no names follow."""
        page = self.page
        return not (page.objects or page.prefixes or page.skipped or page.next_token is not None)


class PageChain:
    """Pages that follow each other by their tokens, from the position `after` on.

    With a `token`, it continues after the page that had this token. `guessed` means that its first
    page has not been joined yet, and that it may not fit.
    """

    def __init__(self, after: bytes, token: str | None = None, *, guessed: bool = False) -> None:
        self.after = after
        self.token = token  # of the next page
        self.guessed = guessed
        self.reach = after  # of the arrived pages
        self.request: PageRequest | None = None
        self.ended = False
        self.pages: deque[ArrivedPage] = deque()  # arrived but not joined
        self._tokens = {token}

    @property
    def failed(self) -> bool:
        """Whether its request failed."""
        if self.request is None or not self.request.future.done():
            return False
        return self.request.future.cancelled() or self.request.future.exception() is not None

    def collect(self, prefix: bytes) -> None:
        """Take the answer, if it has arrived. Raises BadAnswer if a token repeats."""
        request = self.request
        if request is None or not request.future.done() or self.failed:
            return
        self.request = None
        page = request.future.result()
        if page.next_token is not None and page.next_token in self._tokens:
            raise BadAnswer("the listing loops: a continuation token occurred twice")
        self._tokens.add(page.next_token)
        reach = reach_of(prefix, self.reach, page)
        self.token = page.next_token
        self.ended = page.next_token is None
        self.reach = reach or self.reach
        self.pages.append(ArrivedPage(page, request.requested_at_s, reach))

    def cancel(self) -> None:
        """Cancel the request in flight."""
        if self.request is not None:
            self.request.future.cancel()
