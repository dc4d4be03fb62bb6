"""If HEAD has no size: that of the same version in a listing, or an error."""

from concurrent.futures import Future

import pytest

from mountpoint.errors import NotFound, Unusable
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.crt import sizes
from mountpoint.s3.wire import reading

ETAG = '"e"'
HEADERS = [("ETag", ETAG), ("x-amz-meta-mode", "33152")]


class Lookup:
    """A HEAD and a LIST that the test answers."""

    def __init__(self) -> None:
        self.heading: Future[reading.Headers] = Future()
        self.pages: list[Future[ListPage]] = []
        self.result = sizes.with_size(b"k", self.heading, self._ask_page, lambda info, _: info)

    def _ask_page(self) -> "Future[ListPage]":
        self.pages.append(Future())
        return self.pages[-1]

    def list(self, *infos: ObjectInfo) -> None:
        """Answer the LIST."""
        self.pages[0].set_result(ListPage(list(infos), []))


def listed(key: bytes = b"k", size: int = 7, etag: str = ETAG) -> ObjectInfo:
    return ObjectInfo(key, size, 0, etag)


def test_size_in_head() -> None:
    """If HEAD has the size, nothing is listed."""
    lookup = Lookup()
    lookup.heading.set_result([*HEADERS, ("Content-Length", "5")])
    assert lookup.result.result(0).size_bytes == 5
    assert not lookup.pages


@pytest.mark.parametrize("size", [0, 7])
def test_told_by_a_listing(size: int) -> None:
    """Everything except the size comes from HEAD."""
    lookup = Lookup()
    lookup.heading.set_result(HEADERS)
    lookup.list(listed(b"k/", 1), listed(size=size), listed(b"k2", 2))
    found = lookup.result.result(0)
    assert found.size_bytes == size
    assert found.metadata == {"mode": "33152"}


@pytest.mark.parametrize("infos", [[], [listed(b"k2")], [listed(etag='"other"')]])
def test_told_of_another_version(infos: list[ObjectInfo]) -> None:
    """The size of another object or version is never used."""
    lookup = Lookup()
    lookup.heading.set_result(HEADERS)
    lookup.list(*infos)
    with pytest.raises(Unusable):
        lookup.result.result(0)


def test_failures_pass() -> None:
    """A missing key, or a refused listing, is the result."""
    lookup = Lookup()
    lookup.heading.set_exception(NotFound())
    with pytest.raises(NotFound):
        lookup.result.result(0)
    lookup = Lookup()
    lookup.heading.set_result(HEADERS)
    lookup.pages[0].set_exception(Unusable("no"))
    with pytest.raises(Unusable, match="no"):
        lookup.result.result(0)


def test_cancelled() -> None:
    """The request in flight is cancelled as well."""
    lookup = Lookup()
    lookup.result.cancel()
    assert lookup.heading.cancelled()
    lookup = Lookup()
    lookup.heading.set_result(HEADERS)
    lookup.result.cancel()
    assert lookup.pages[0].cancelled()
