"""Bytes of an object version that become part of another: read in order, some requests ahead.

Each GET is a request of the upload that wants them, so it is asked again like the upload's own
requests. It is of the version that is meant or fails: If-Match asks for that, and stores that do
not know it are found out by the ETag in the answer.

Guarded by the upload's lock, but for `Fetch`, which only the client's callbacks touch.
"""

import functools
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from mountpoint.errors import BadAnswer, PreconditionFailed
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.upload.requests import SLOWEST_BYTES_PER_S, UploadRequest, UploadRequests

#: A GET's bytes: no more than the client's parts, or it could not compare checksums.
READ_BYTES = 4 << 20
#: GETs at a time. Mostly there are one or two: what is larger the server copies.
READS = 4


class Fetch:
    """The sink of one GET: its body as a future, whose cancellation cancels the GET."""

    def __init__(self, source: ObjectInfo, start: int, stop: int) -> None:
        self._source = source
        self._start = start
        self._stop = stop
        self._next = start
        self._chunks: list[bytes] = []
        self.future: Future[bytes] = Future()

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink. Raises PreconditionFailed for another version."""
        if info.etag != self._source.etag:
            raise PreconditionFailed("the object that is copied has changed")

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink. Raises BadAnswer for bytes of another place."""
        if offset != self._next or offset + len(chunk) > self._stop:
            raise BadAnswer(f"bytes at {offset}, where {self._next} was next")
        self._next += len(chunk)
        self._chunks.append(chunk)

    def finish(self, error: Exception | None) -> None:
        """See BodySink."""
        if error is None and self._next != self._stop:
            error = BadAnswer(f"the answer ends at {self._next}, not {self._stop}")
        chunks, self._chunks = self._chunks, []
        try:
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        except InvalidStateError:
            pass  # cancelled


def fetch(client: ObjectClient, source: ObjectInfo, start: int, stop: int) -> "Future[bytes]":
    """GET the bytes [start, stop) of an object version."""
    sink = Fetch(source, start, stop)
    whole = (start, stop) == (0, source.size_bytes)
    transfer = client.get(source.key, start, stop, sink, if_match=source.etag, whole=whole)
    # Not strongly: transfer, sink and future hold each other already, until the answer has come.
    known = weakref.ref(transfer)

    def on_future(future: "Future[bytes]") -> None:
        under_way = known()
        if under_way is not None and future.cancelled():
            under_way.cancel()

    sink.future.add_done_callback(on_future)
    return sink.future


@dataclass(slots=True)
class _Piece:
    """What one GET brings."""

    data: bytes | None = None


class Reading:
    """The bytes [start, stop) of `source`, piece by piece.

    `failed` is told what no retry helped.
    """

    def __init__(
        self,
        client: ObjectClient,
        source: ObjectInfo,
        start: int,
        stop: int,
        *,
        requests: UploadRequests,
        failed: Callable[[Exception], None],
    ) -> None:
        # dependencies
        self._client = client
        self._requests = requests
        self._failed = failed
        # constants
        self._source = source
        self._stop = stop
        # mutable
        self._next = start  # to be asked for
        self._pieces: deque[_Piece] = deque()

    @property
    def over(self) -> bool:
        """Whether all bytes have been taken."""
        return self._next == self._stop and not self._pieces

    @property
    def under_way(self) -> bool:
        """Whether there is a piece that has been asked for and not taken."""
        return bool(self._pieces)

    @property
    def may_ask(self) -> bool:
        """Whether there is something to ask for, and not too much asked for already."""
        return self._next < self._stop and len(self._pieces) < READS

    @property
    def next_bytes(self) -> int:
        """The size of the piece that is asked for next."""
        return min(self._stop - self._next, READ_BYTES)

    def ask(self, try_s: float) -> None:
        """Ask for the next piece; `try_s` is what a request may take beside its bytes."""
        start, stop = self._next, self._next + self.next_bytes
        piece = _Piece()

        def done(data: bytes) -> None:
            piece.data = data

        begin = functools.partial(fetch, self._client, self._source, start, stop)
        try_s += (stop - start) / SLOWEST_BYTES_PER_S
        self._next = stop
        self._pieces.append(piece)
        self._requests.send(UploadRequest(begin, done, self._failed, try_s=try_s))

    def pop(self) -> bytes | None:
        """Take the next piece, if it is there."""
        if not self._pieces or self._pieces[0].data is None:
            return None
        return self._pieces.popleft().data
