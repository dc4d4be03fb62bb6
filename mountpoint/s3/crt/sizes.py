"""The size of an object whose HEAD has none: take it from a listing.

Proxies that send bodies in chunks omit Content-Length from HEAD answers, some of them only for text
that they may compress. A LIST of the key then supplies the size. It counts only if its ETag is the
same, so the size belongs to this version, or the request fails.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

from mountpoint.errors import Unusable
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.wire import reading
from mountpoint.s3.wire.errors import Headers

T = TypeVar("T")

#: The key is the first of those that begin with it, but stores with real folders may differ.
FEW_KEYS = 10


def with_size(
    key: bytes,
    heading: "Future[Headers]",
    ask_page: "Callable[[], Future[ListPage]]",
    parse: Callable[[ObjectInfo, Headers], T],
) -> "Future[T]":
    """Parse the headers of a HEAD, with the size of the object.

    If the headers have no size, `ask_page` lists the first keys that begin with `key`.
    """
    result: Future[T] = Future()
    under_way: list[Future[Headers] | Future[ListPage]] = [heading]

    def end(size_bytes: int | None) -> None:
        headers = heading.result()
        info = reading.object_info(key, 200, headers, size_bytes=size_bytes)
        under_way.clear()
        result.set_result(parse(info, headers))

    def fail(error: Exception) -> None:
        under_way.clear()
        result.set_exception(error)

    def on_page(page: "Future[ListPage]") -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled
            try:
                end(_listed_size(key, heading.result(), page.result()))
            except Exception as error:
                fail(error)

    def on_head(_: "Future[Headers]") -> None:
        with contextlib.suppress(InvalidStateError):
            try:
                if reading.object_size(200, heading.result()) is not None:
                    end(None)
                    return
                page = ask_page()
                under_way[:] = [page]
                page.add_done_callback(on_page)
            except Exception as error:
                fail(error)

    def on_result(_: "Future[T]") -> None:
        if result.cancelled():
            for each in under_way:
                each.cancel()

    result.add_done_callback(on_result)
    heading.add_done_callback(on_head)
    return result


def _listed_size(key: bytes, headers: Headers, page: ListPage) -> int:
    info = reading.object_info(key, 200, headers, size_bytes=0)
    for listed in page.objects:
        if (listed.key, listed.etag) == (key, info.etag):
            return listed.size_bytes
    raise Unusable("neither HEAD nor a listing has the size of this version")
