"""One request to S3 and its answer: from the client's callbacks to the caller's future or sink.

Callbacks come on the client's threads, in the order headers, body, done. An exchange ends once:
with its answer or when the mount goes away, whichever comes first.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, Protocol, TypeVar

from mountpoint.errors import (
    BadAnswer,
    ChecksumMismatch,
    Contended,
    NoSuchUpload,
    NotFound,
    PreconditionFailed,
    S3Error,
    Unusable,
)
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import RequestClock
from mountpoint.s3.client import BodySink, ObjectInfo, Transfer
from mountpoint.s3.crt.threads import keep_state
from mountpoint.s3.wire import checksum, reading
from mountpoint.s3.wire.checksum import Verification
from mountpoint.s3.wire.errors import request_id

T = TypeVar("T")
Headers = list[tuple[str, str]]

#: The largest answer to a metadata request that is accepted: a LIST page of 1,000 keys of
#: 1,024 bytes, each byte percent-encoded, with room for the other fields.
MAX_METADATA_BYTES = 16 << 20

#: Failures that concern one object, and not S3 or the credentials.
EXPECTED = (NotFound, PreconditionFailed, Contended, NoSuchUpload)


class Owner(Protocol):
    """The part of the client that an exchange uses."""

    counters: Counters

    def first_end(self, exchange: "Exchange") -> bool:
        """Record the end of an exchange; True the first time."""

    def error_of(
        self, error: BaseException, status: int | None, headers: Headers | None, body: bytes | None
    ) -> S3Error:
        """Return the S3Error for a failed request."""


class Exchange(ABC):
    """One request and its answer."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.clock: RequestClock | None = None  # started when the request is sent
        self.ended = False
        self.cancelled = False

    def _stop_clock(self, failure: S3Error | None, at_ns: int | None = None) -> None:
        """Record the end, now or at `at_ns` of the monotonic clock."""
        if self.clock is None:
            return
        if self.cancelled and failure is not None:
            self.clock.drop()
        elif failure is None:
            self.clock.end(None, at_ns=at_ns)
        else:
            trouble = "" if isinstance(failure, EXPECTED) else failure.code or str(failure)
            self.clock.end(failure.status, trouble, at_ns=at_ns)

    def end(self, error: Exception | None) -> None:
        """Deliver the outcome, once."""
        if self.owner.first_end(self):
            self.deliver(error)

    def drop(self, error: Exception) -> None:
        """Deliver that the request was not sent."""
        if self.clock is not None:
            self.clock.drop()
        self.end(error)

    @abstractmethod
    def deliver(self, error: Exception | None) -> None:
        """Pass the outcome to the caller's future or sink."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the request, if it has not ended."""


class PythonExchange(Exchange):
    """An exchange whose answer the CRT passes to Python, by callbacks.

    Request, callbacks and exchange refer to each other. The end clears `request`; otherwise every
    body received would stay in memory.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self.request: Transfer | None = None
        self.status = 0
        self.headers: Headers = []

    def on_headers(self, status_code: int, headers: Headers, **_: Any) -> None:
        """Receive status and headers."""
        keep_state()
        if self.clock is not None and not self.status:
            self.clock.first_byte()
        self.status = status_code
        self.headers = headers

    @abstractmethod
    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Receive the next bytes of the body."""

    def on_done(
        self,
        error: BaseException | None = None,
        error_headers: Headers | None = None,
        error_body: bytes | None = None,
        status_code: int | None = None,
        **_: Any,
    ) -> None:
        """Receive the end of the request."""
        keep_state()
        self.request = None
        failure = None
        if error is not None:
            failure = self.owner.error_of(error, status_code, error_headers, error_body)
        self._stop_clock(failure)
        self.end(failure)

    def cancel(self) -> None:
        """Cancel the request, if it has not ended."""
        self.cancelled = True
        request = self.request
        if request is not None:
            request.cancel()


class Inquiry(PythonExchange, Generic[T]):
    """A metadata request: its whole answer is parsed into a future."""

    def __init__(
        self, owner: Owner, operation: str, parse: Callable[[int, Headers, bytes], T]
    ) -> None:
        super().__init__(owner)
        self._operation = operation
        self._parse = parse
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self.future: Future[T] = Future()
        # A weak reference: a future keeps its callbacks. The cycle would keep everything they hold,
        # such as a part of an upload, until the garbage collector runs.
        inquiry = weakref.ref(self)

        def on_future(future: "Future[T]") -> None:
            asked = inquiry()
            if asked is not None and future.cancelled():
                asked.cancel()

        self.future.add_done_callback(on_future)

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Keep the bytes. Raises BadAnswer if there are too many."""
        keep_state()
        self._size_bytes += len(chunk)
        if self._size_bytes > MAX_METADATA_BYTES:
            raise BadAnswer(f"the answer to {self._operation} is over {MAX_METADATA_BYTES} bytes")
        self._chunks.append(chunk)

    def deliver(self, error: Exception | None) -> None:
        """Parse the answer and set the future, even if no caller waits for it any more."""
        answer = None
        if error is None:
            try:
                answer = self._parse(self.status, self.headers, b"".join(self._chunks))
            except Exception as failure:
                error = failure
        try:
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(answer)  # type: ignore[arg-type]  # parsed: a T
        except InvalidStateError:
            pass  # cancelled


class Download(PythonExchange):
    """A ranged GET: passes bytes to the sink as they arrive.

    `whole` means that the range is the whole object. With `verify`, the body is compared with the
    answer's checksum, if any, before the sink receives the end.
    """

    def __init__(
        self,
        owner: Owner,
        key: bytes,
        start: int,
        stop: int,
        sink: BodySink,
        *,
        whole: bool,
        verify: bool,
    ) -> None:
        super().__init__(owner)
        self._key = key
        self._start = start
        self._stop = stop
        self._sink = sink
        # A chunked body has no length. The sink counts the bytes and compares the ETag.
        self._size_bytes = stop if whole else None
        self._verify = verify
        self._verification: Verification | None = None

    def on_headers(self, status_code: int, headers: Headers, **_: Any) -> None:
        """Check that the answer has the range requested. Raises BadAnswer."""
        super().on_headers(status_code, headers)
        if status_code not in (200, 206):
            return  # `on_done` receives it again as an error, with its body
        info = description_of_range(
            self._key, status_code, headers, self._start, self._stop, self._size_bytes
        )
        if self._verify:
            promise = checksum.expected(headers, info, self._start, self._stop)
            self._verification = promise and Verification(promise)
        self._sink.on_headers(info)

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Pass bytes to the sink."""
        keep_state()
        self.owner.counters.add("bytes_fetched", len(chunk))
        if not self.ended:
            if self._verification is not None:
                self._verification.update(chunk)
            self._sink.on_body(chunk, offset)

    def deliver(self, error: Exception | None) -> None:
        """Pass the end to the sink."""
        if error is None and self._verify:
            error = self._mismatch()
        self._sink.finish(error)

    def _mismatch(self) -> ChecksumMismatch | None:
        """Return the checksum error, if any, and count the verified bytes."""
        verification = self._verification
        if verification is not None and not verification.matches():
            return mismatch(verification, self.status, self.headers)
        absent = verification is None
        self.owner.counters.add("checksums_absent" if absent else "checksums_verified")
        return None


def description_of_range(
    key: bytes, status: int, headers: Headers, start: int, stop: int, size_bytes: int | None
) -> ObjectInfo:
    """Return the description of the object in a successful answer to a GET of [start, stop).

    `size_bytes` is the object's size if all of it was requested; otherwise None. Raises BadAnswer
    if the answer has another range.
    """
    info = reading.object_info(key, status, headers, size_bytes=size_bytes)
    content_range = reading.content_range(headers)
    answered = (0, info.size_bytes)
    if content_range is not None or status == 206:
        answered = (content_range or (0, 0))[:2]
    if answered != (start, stop):
        asked = f"bytes {start}-{stop} were requested"
        if status == 200 and size_bytes is None:
            raise Unusable(
                f"{asked}, but the whole object was sent: does the store ignore Range?",
                status=status,
            )
        raise BadAnswer(f"{asked}, but {answered[0]}-{answered[1]} were sent")
    return info


def mismatch(verification: Verification, status: int, headers: Headers) -> ChecksumMismatch:
    """Return the error for a body that does not match its checksum."""
    return ChecksumMismatch(
        f"the body does not match its {verification.name} checksum",
        status=status,
        request_id=request_id(headers),
    )
