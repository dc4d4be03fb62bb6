"""Chains of pages: what they take of the answers."""

from concurrent.futures import Future

import pytest

from mountpoint.errors import BadAnswer, Throttled
from mountpoint.listing.page_chain import PageChain, PageRequest
from mountpoint.s3.client import ListPage, ObjectInfo


def page(*names: bytes, token: str | None = None) -> ListPage:
    """Return a page of these objects."""
    objects = [ObjectInfo(b"d/" + name, 1, 0, '"e"') for name in names]
    return ListPage(objects, [], token, 0)


def asked(chain: PageChain, at_s: float = 1.0) -> "Future[ListPage]":
    """Give the chain a request in flight."""
    future: Future[ListPage] = Future()
    chain.request = PageRequest(future, at_s)
    return future


def answered(chain: PageChain, answer: ListPage) -> None:
    """Let a request of the chain be answered."""
    asked(chain).set_result(answer)
    chain.collect(b"d/")


def test_pages_until_the_end() -> None:
    """Each page moves the reach and the token; one without a token is the last."""
    chain = PageChain(b"")
    answered(chain, page(b"a", b"b", token="1"))
    assert (chain.token, chain.ended) == ("1", False)
    reach = chain.reach
    assert reach >= b"b"
    answered(chain, page(b"c"))
    assert (chain.token, chain.ended) == (None, True)
    assert len(chain.pages) == 2
    assert chain.request is None


def test_a_request_in_flight_changes_nothing() -> None:
    """Before its answer there is nothing to collect."""
    chain = PageChain(b"")
    asked(chain)
    chain.collect(b"d/")
    assert chain.request is not None
    assert not chain.pages


def test_a_failed_request_stays() -> None:
    """Its failure is for the caller, who sees it in the future."""
    chain = PageChain(b"")
    asked(chain).set_exception(Throttled("SlowDown"))
    chain.collect(b"d/")
    assert chain.failed
    assert chain.request is not None


def test_a_listing_that_loops() -> None:
    """A token that occurs twice would list the same pages for ever."""
    chain = PageChain(b"")
    answered(chain, page(b"a", token="1"))
    answered(chain, page(b"b", token="2"))
    with pytest.raises(BadAnswer, match="loops"):
        answered(chain, page(b"c", token="1"))


def test_cancel() -> None:
    """The request in flight is cancelled, and counts as failed."""
    chain = PageChain(b"")
    chain.cancel()
    future = asked(chain)
    chain.cancel()
    assert future.cancelled()
    assert chain.failed
