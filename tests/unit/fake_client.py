"""An `ObjectClient` in memory, which tests script: slow, faulty, changing its objects.

By default every request is answered from a small thread pool, as the real client does it.
With `stepped=True` nothing is answered until the test calls `step`. What goes wrong is said
by `inject` (the next requests of a kind) or by `script` (a function of the request, which
may also change the objects). Every request is recorded.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mountpoint.errors import (
    AccessDenied,
    BadAnswer,
    Interrupted,
    NotFound,
    PreconditionFailed,
    TransportFault,
)
from mountpoint.s3.client import BodySink, ListPage, ObjectInfo

T = TypeVar("T")

#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0
MTIME_NS = 1_700_000_000_000_000_000
REQUEST_ID = "FAKE0123456789"
ARCHIVE_CLASSES = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True)
class Request:
    """One request as it was made. `start` and `stop` are a GET's range."""

    kind: str  # "head", "list" or "get"
    key: bytes  # of "list": the prefix
    start: int = 0
    stop: int = 0
    if_match: str | None = None
    token: str | None = None
    start_after: bytes | None = None
    max_keys: int = 0
    flat: bool = False


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request, in the order in which it would happen."""

    delay_s: float = 0.0  #: wait first, or until cancelled
    silent: bool = False  #: no answer until cancelled
    error: Exception | None = None  #: answered instead (of a GET: after `cut` bytes, if given)
    etag: str | None = None  #: headers of another version
    no_headers: bool = False  #: a body without headers
    shift: int = 0  #: the body says it starts that much later
    cut: int | None = None  #: only so many bytes of the body
    extra: bytes = b""  #: too much after the body
    hang: bool = False  #: what has been sent is all there is: no end until cancelled


def etag_of(data: bytes) -> str:
    """Return the ETag of a plain upload."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def list_page(
    objects: Mapping[bytes, ObjectInfo],
    prefix: bytes,
    token: str | None,
    max_keys: int,
    start_after: bytes | None = None,
) -> ListPage:
    """Return one page as S3 lists it with the delimiter "/": bytewise, prefixes rolled up."""
    assert token is None or start_after is None
    after = None if token is None else bytes.fromhex(token.removeprefix("after-"))
    page = ListPage([], [])
    last = None
    for key in sorted(key for key in objects if key.startswith(prefix)):
        if start_after is not None and key <= start_after:
            continue
        head, slash, _ = key[len(prefix) :].partition(b"/")
        item = prefix + head + slash
        if item == last or (after is not None and item <= after):
            continue
        if len(page.objects) + len(page.prefixes) == max_keys:
            assert last is not None
            return replace(page, next_token=f"after-{last.hex()}")
        if slash:
            page.prefixes.append(item)
        else:
            page.objects.append(objects[key])
        last = item
    return page


def path_page(
    objects: Mapping[bytes, ObjectInfo],
    prefix: bytes,
    token: str | None,
    max_keys: int,
    start_after: bytes | None = None,
) -> ListPage:
    """Return one page as a store lists it that keeps folders: by name, files before folders."""
    assert token is None or start_after is None
    items = {
        (head, slash)
        for key in objects
        if key.startswith(prefix)
        for head, slash, _ in [key[len(prefix) :].partition(b"/")]
    }
    after: tuple[bytes, ...] = ()
    if start_after is not None:
        after = (start_after[len(prefix) :], b"/")
    elif token is not None:
        name, _, kind = token.partition(".")
        after = (bytes.fromhex(name), kind.encode())
    rest = sorted(item for item in items if item > after)
    shown = rest[:max_keys]
    return ListPage(
        [objects[prefix + name] for name, slash in shown if not slash],
        [prefix + name + slash for name, slash in shown if slash],
        None if shown == rest else f"{shown[-1][0].hex()}.{shown[-1][1].decode()}",
    )


class FakeClient:
    """An `ObjectClient`. Make it in a `with`, so that its threads end."""

    lists_in_order = True

    def __init__(
        self,
        objects: Mapping[bytes, bytes] | None = None,
        *,
        stepped: bool = False,
        chunk_bytes: int | None = None,
        page_size: int = 1000,
        threads: int = 4,
    ) -> None:
        self.script: Callable[[Request], Fault | None] | None = None
        self.chunk_bytes = chunk_bytes
        self.page_size = page_size
        self.requests: list[Request] = []
        self.delivered_bytes = 0
        self.cancelled = 0  #: requests that were cancelled before their end
        self._lock = threading.Lock()  # guards all that is below
        self._objects: dict[bytes, tuple[ObjectInfo, bytes]] = {}
        self._faults: list[tuple[str, Fault]] = []
        self._under_way: dict[_Exchange, None] = {}
        self._waiting: list[_Exchange] = []
        self._interrupted = False
        self._stepped = stepped
        self._pool = ThreadPoolExecutor(threads)
        for key, data in (objects or {}).items():
            self.put(key, data)

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the bucket ---

    def put(
        self,
        key: bytes,
        data: bytes,
        *,
        mtime_ns: int = MTIME_NS,
        storage_class: str = "STANDARD",
        restored: bool = False,
    ) -> ObjectInfo:
        """Put an object in the place of whatever was there."""
        info = ObjectInfo(key, len(data), mtime_ns, etag_of(data), storage_class, restored)
        with self._lock:
            self._objects[key] = (info, data)
        return info

    def delete(self, key: bytes) -> None:
        """Delete an object."""
        with self._lock:
            del self._objects[key]

    def info(self, key: bytes) -> ObjectInfo:
        """Return what the bucket holds now."""
        with self._lock:
            return self._objects[key][0]

    # --- the script ---

    def inject(self, kind: str, *faults: Fault) -> None:
        """Let the next requests of a kind go wrong, one fault each."""
        with self._lock:
            self._faults += [(kind, fault) for fault in faults]

    def step(self, count: int = 1, *, last_first: bool = False) -> int:
        """Answer waiting requests of a stepped client; return how many there were."""
        for done in range(count):
            with self._lock:
                if not self._waiting:
                    return done
                exchange = self._waiting.pop(-1 if last_first else 0)
            self._run(exchange)
        return count

    # --- what was asked ---

    def count(self, kind: str | None = None) -> int:
        """Return the number of requests so far, of one kind or all."""
        with self._lock:
            return sum(kind in (None, request.kind) for request in self.requests)

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges of all GETs, as asked."""
        with self._lock:
            return [(each.start, each.stop) for each in self.requests if each.kind == "get"]

    def under_way(self) -> int:
        """Return the number of requests that have not ended."""
        with self._lock:
            return len(self._under_way)

    def quiet(self) -> None:
        """Wait until nothing is under way."""
        until_s = time.monotonic() + SAFE_S
        while self.under_way():
            assert time.monotonic() < until_s
            time.sleep(0.001)

    # --- ObjectClient ---

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """See ObjectClient."""

        def answer() -> ObjectInfo:
            return self._object(key)[0]

        return self._ask(Request("head", key), answer)

    def list(
        self,
        prefix: bytes,
        *,
        token: str | None = None,
        start_after: bytes | None = None,
        max_keys: int = 1000,
        flat: bool = False,
    ) -> "Future[ListPage]":
        """See ObjectClient."""
        request = Request(
            "list",
            prefix,
            token=token,
            start_after=start_after,
            max_keys=max_keys,
            flat=flat,
        )

        def answer() -> ListPage:
            with self._lock:
                # A listing knows nothing of restores.
                objects = {
                    key: replace(info, restored=False) for key, (info, _) in self._objects.items()
                }
            return self.flat_page(objects, request) if flat else self.page(objects, request)

        return self._ask(request, answer)

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        """Answer a listing as S3 does; a class below may be another store."""
        max_keys = min(request.max_keys, self.page_size)
        return list_page(objects, request.key, request.token, max_keys, request.start_after)

    def flat_page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        """Answer a flat listing as S3 does; a class below may be another store."""
        after = request.start_after or b""
        if request.token is not None:
            after = bytes.fromhex(request.token.removeprefix("after-"))
        keys = sorted(key for key in objects if key.startswith(request.key) and key > after)
        shown = keys[: min(request.max_keys, self.page_size)]
        token = None if shown == keys else f"after-{shown[-1].hex()}"
        return ListPage([objects[key] for key in shown], [], token)

    def get(
        self,
        key: bytes,
        start: int,
        stop: int,
        sink: BodySink,
        *,
        if_match: str | None,
        whole: bool = False,
    ) -> "_Download":
        """See ObjectClient."""
        assert 0 <= start < stop
        assert not whole or start == 0
        download = _Download(self, Request("get", key, start, stop, if_match), sink)
        self._begin(download)
        return download

    def interrupt(self) -> None:
        """See ObjectClient."""
        with self._lock:
            self._interrupted = True
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.end(None, Interrupted("the mount is going away"))

    def close(self) -> None:
        """See ObjectClient."""
        self.interrupt()
        self._pool.shutdown()

    # --- inside ---

    def _ask(self, request: Request, answer: Callable[[], T]) -> "Future[T]":
        inquiry = _Inquiry(self, request, answer)
        self._begin(inquiry)
        return inquiry.future

    def _begin(self, exchange: "_Exchange") -> None:
        with self._lock:
            self.requests.append(exchange.request)
            self._under_way[exchange] = None
            interrupted = self._interrupted
            if self._stepped:
                self._waiting.append(exchange)
        if interrupted:
            exchange.end(None, Interrupted("the mount is going away"))
        elif not self._stepped:
            self._pool.submit(self._run, exchange)

    def _run(self, exchange: "_Exchange") -> None:
        fault = self._next_fault(exchange.request)
        if fault.delay_s:
            exchange.ended.wait(fault.delay_s)
        if fault.silent or exchange.ended.is_set():
            return
        try:
            exchange.answer(fault)
        except Exception as error:
            exchange.end(None, error)

    def _next_fault(self, request: Request) -> Fault:
        if self.script is not None:
            scripted = self.script(request)
            if scripted is not None:
                return scripted
        with self._lock:
            for index, (kind, fault) in enumerate(self._faults):
                if kind == request.kind:
                    del self._faults[index]
                    return fault
        return Fault()

    def _object(self, key: bytes) -> tuple[ObjectInfo, bytes]:
        with self._lock:
            if key not in self._objects:
                raise NotFound("no such key", code="NoSuchKey", status=404, request_id=REQUEST_ID)
            return self._objects[key]

    def _download(self, request: Request) -> tuple[ObjectInfo, bytes]:
        """Return what a GET answers, or raise the refusal."""
        info, data = self._object(request.key)
        if request.if_match not in (None, info.etag):
            raise PreconditionFailed(
                "replaced", code="PreconditionFailed", status=412, request_id=REQUEST_ID
            )
        if info.storage_class in ARCHIVE_CLASSES and not info.restored:
            raise AccessDenied(
                "archived", code="InvalidObjectState", status=403, request_id=REQUEST_ID
            )
        if request.stop > len(data):
            raise BadAnswer(f"asked for bytes {request.start}-{request.stop} of {len(data)}")
        return info, data[request.start : request.stop]

    def _first_end(self, exchange: "_Exchange") -> bool:
        with self._lock:
            if exchange not in self._under_way:
                return False
            del self._under_way[exchange]
            if exchange in self._waiting:
                self._waiting.remove(exchange)
            exchange.ended.set()
            return True


class _Exchange:
    """One request and its answer, which comes once."""

    def __init__(self, client: FakeClient, request: Request) -> None:
        self.client = client
        self.request = request
        self.ended = threading.Event()

    def answer(self, fault: Fault) -> None:
        """Answer the request, as wrong as `fault` says."""
        raise NotImplementedError

    def end(self, result: Any, error: Exception | None) -> None:
        """Deliver the outcome, once."""
        if self.client._first_end(self):
            self.deliver(result, error)

    def deliver(self, result: Any, error: Exception | None) -> None:
        """Hand the outcome to who asked."""
        raise NotImplementedError

    def cancel(self) -> None:
        """See Transfer."""
        if not self.ended.is_set():
            self.client.cancelled += 1
            self.end(None, TransportFault("cancelled"))


class _Inquiry(_Exchange, Generic[T]):
    """A HEAD or LIST."""

    def __init__(self, client: FakeClient, request: Request, ask: Callable[[], T]) -> None:
        super().__init__(client, request)
        self.ask = ask
        self.future: Future[T] = Future()
        self.future.add_done_callback(self._on_future)

    def answer(self, fault: Fault) -> None:
        if fault.error is not None:
            raise fault.error
        self.end(self.ask(), None)

    def deliver(self, result: Any, error: Exception | None) -> None:
        try:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        except InvalidStateError:
            pass  # cancelled

    def _on_future(self, future: "Future[T]") -> None:
        if future.cancelled():
            self.cancel()


class _Download(_Exchange):
    """A ranged GET."""

    def __init__(self, client: FakeClient, request: Request, sink: BodySink) -> None:
        super().__init__(client, request)
        self.sink = sink

    def answer(self, fault: Fault) -> None:
        if fault.error is not None and fault.cut is None:
            raise fault.error
        info, body = self.client._download(self.request)
        if fault.etag is not None:
            info = replace(info, etag=fault.etag)
        if not fault.no_headers:
            self.sink.on_headers(info)
        body = body[: fault.cut] + fault.extra
        step = self.client.chunk_bytes or max(len(body), 1)
        for position in range(0, len(body), step):
            if self.ended.is_set():
                return
            chunk = body[position : position + step]
            with self.client._lock:
                self.client.delivered_bytes += len(chunk)
            self.sink.on_body(chunk, self.request.start + fault.shift + position)
        if not fault.hang:
            self.end(None, fault.error)

    def deliver(self, result: Any, error: Exception | None) -> None:
        self.sink.finish(error)
