"""Read a range of an object version that becomes part of an upload, some requests ahead.

Each GET is a request of that upload, so it is retried like the upload's own requests. It returns
the right version or fails: by If-Match, and by the ETag in the answer for stores that do not know
If-Match.

The upload's lock guards everything, except `Fetch`, which only the client's callbacks use.
"""

import functools
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from mountpoint.errors import BadAnswer, PreconditionFailed
from mountpoint.s3.client import ByteSource, ObjectInfo
from mountpoint.upload.requests import SLOWEST_BYTES_PER_S, UploadRequest, UploadRequests

#: Bytes per GET: at most the client's part size, or the client could not compare checksums.
READ_BYTES = 4 << 20
#: GETs at a time. Usually there are one or two: the server copies larger ranges.
READS = 4


class Fetch:
    """The sink of one GET: its body as a future. Cancelling the future cancels the GET."""

    def __init__(self, version: ObjectInfo, start: int, stop: int) -> None:
        self._version = version
        self._start = start
        self._stop = stop
        self._next = start
        self._chunks: list[bytes] = []
        self.future: Future[bytes] = Future()

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink. Raises PreconditionFailed for another version."""
        if info.etag != self._version.etag:
            raise PreconditionFailed("the object being copied has changed")

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink. Raises BadAnswer for bytes at another offset."""
        if offset != self._next or offset + len(chunk) > self._stop:
            raise BadAnswer(f"bytes at {offset}, but the next byte is {self._next}")
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


def fetch(source: ByteSource, version: ObjectInfo, start: int, stop: int) -> "Future[bytes]":
    """Get the bytes [start, stop) of an object version. The future raises PreconditionFailed."""
    sink = Fetch(version, start, stop)
    transfer = source.get(version, start, stop, sink)
    # A weak reference: transfer, sink and future refer to each other until the answer has arrived.
    known = weakref.ref(transfer)

    def on_future(future: "Future[bytes]") -> None:
        under_way = known()
        if under_way is not None and future.cancelled():
            under_way.cancel()

    sink.future.add_done_callback(on_future)
    return sink.future


@dataclass(slots=True)
class _Piece:
    """The bytes of one GET; None until they have arrived."""

    data: bytes | None = None


class VersionReader:
    """Reads the bytes [start, stop) of a version, piece by piece.

    Calls `failed` with an error that no retry helped.
    """

    def __init__(
        self,
        source: ByteSource,
        version: ObjectInfo,
        start: int,
        stop: int,
        *,
        requests: UploadRequests,
        failed: Callable[[Exception], None],
    ) -> None:
        # dependencies
        self._source = source
        self._requests = requests
        self._failed = failed
        # constants
        self._version = version
        self._stop = stop
        # mutable
        self._next = start  # the offset of the next GET
        self._pieces: deque[_Piece] = deque()

    @property
    def over(self) -> bool:
        """Whether all bytes have been taken."""
        return self._next == self._stop and not self._pieces

    @property
    def under_way(self) -> bool:
        """Whether a piece was requested that has not been taken."""
        return bool(self._pieces)

    @property
    def may_ask(self) -> bool:
        """Whether more may be requested."""
        return self._next < self._stop and len(self._pieces) < READS

    @property
    def next_bytes(self) -> int:
        """The size of the piece that is requested next."""
        return min(self._stop - self._next, READ_BYTES)

    def ask(self, try_s: float) -> None:
        """Request the next piece. `try_s`: seconds for the request besides those for its bytes."""
        start, stop = self._next, self._next + self.next_bytes
        piece = _Piece()

        def done(data: bytes) -> None:
            piece.data = data

        begin = functools.partial(fetch, self._source, self._version, start, stop)
        try_s += (stop - start) / SLOWEST_BYTES_PER_S
        self._next = stop
        self._pieces.append(piece)
        self._requests.send(UploadRequest(begin, done, self._failed, try_s=try_s))

    def pop(self) -> bytes | None:
        """Return the next piece if it has arrived, else None."""
        if not self._pieces or self._pieces[0].data is None:
            return None
        return self._pieces.popleft().data
