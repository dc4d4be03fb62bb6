"""GETs on the native plane: send them, and settle those that have ended.

`_requests` sends a GET, and ends the arrival of its sink, without the interpreter. What only Python
can do follows when the GET is *settled*: judge an answer that is unclear, make the exception of a
failure, record durations and counters, let go of the body. The first thread that needs the result
settles; one thread of the plane settles all others.
"""

import functools
import threading
import time

import awscrt.exceptions
import structlog
from awscrt.auth import AwsSigningConfig
from awscrt.s3 import S3Client, S3ResponseError

from mountpoint.errors import (
    REPLACED,
    BadAnswer,
    PreconditionFailed,
    S3Error,
    TransportFault,
)
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from mountpoint.native._arrivals import Arrival
from mountpoint.native._lane import LaneSource
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.exchange import Exchange, Owner, description_of_range, mismatch
from mountpoint.s3.crt.native import symbols
from mountpoint.s3.crt.native._connections import Connections
from mountpoint.s3.crt.native._requests import NativeGet, NativeGets
from mountpoint.s3.crt.native.connections import Connect, ConnectionOpener
from mountpoint.s3.wire import checksum
from mountpoint.s3.wire.checksum import Verification
from mountpoint.s3.wire.reading import described

log = structlog.get_logger(__name__)

#: Names and values.
EncodedHeaders = list[tuple[bytes, bytes]]

#: Ended GETs wait this long for others: settling them together needs the interpreter less often.
GATHER_S = 0.02
#: The plane's thread looks this often for GETs that nobody waits for, and whether the client has
#: been closed.
LOOK_S = 1.0


class NativeDownload(Exchange):
    """A ranged GET on the native plane; `get` is set when it is sent. See `exchange.Download`."""

    def __init__(
        self,
        owner: Owner,
        version: ObjectInfo,
        start: int,
        stop: int,
        sink: Arrival,
        *,
        whole: bool,
        verify: bool,
    ) -> None:
        super().__init__(owner)
        # constants
        self.version = version
        self.start = start
        self.stop = stop
        self.whole = whole  # the request has no Range header
        self.verify = verify
        # mutable, guarded by _lock
        self._lock = threading.RLock()
        self._sink: Arrival | None = sink  # until it is settled
        self._verified = False  # by Python
        # mutable
        self.get: NativeGet | None = None

    def deliver(self, error: Exception | None) -> None:
        """Pass the end to the sink."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.settled(error)

    def cancel(self) -> None:
        """Cancel the request, if it has not ended: one that has is timed and counted."""
        if self.get is None:
            self.cancelled = True  # `NativePlane.send` looks
        elif not self.get.ended:
            self.cancelled = True
            self.get.cancel()

    def info(self) -> ObjectInfo:
        """Return the description of the object, once the headers are here. Raises BadAnswer."""
        get = self.get
        assert get is not None
        if get.unclear:
            return self._description(get)
        # The answer was compared: it has the size and ETag of the version.
        version = self.version
        return described(version.key, version.size_bytes, version.etag, get.description())

    def settle(self, get: NativeGet | None = None) -> None:
        """Do what is left to do when the request has ended. Later calls have no effect."""
        get = get or self.get
        with self._lock:
            if get is None or not get.ended or get.owner is None:
                return
            failure = self._failure(get)
            if failure is None and get.unclear:
                get.accept()
            self._record(get, failure)
            self.end(failure)
            get.release()

    def _failure(self, get: NativeGet) -> S3Error | None:
        if get.error:
            return self._refusal(get)
        if not get.unclear:
            return None
        try:
            return self._judged(get)
        except S3Error as error:
            return error

    def _refusal(self, get: NativeGet) -> S3Error:
        error = awscrt.exceptions.from_code(get.error)
        headers = get.headers()
        if get.refused and isinstance(error, awscrt.exceptions.AwsCrtError):
            error = S3ResponseError(
                code=error.code,
                name=error.name,
                message=error.message,
                status_code=get.status,
                headers=headers,
                body=get.error_body(),
            )
        return self.owner.error_of(error, get.status or None, headers, get.error_body())

    def _judged(self, get: NativeGet) -> S3Error | None:
        """Judge an answer by the rules of the other plane; None: it is right. Raises BadAnswer."""
        info = self._description(get)
        if info.etag != self.version.etag:
            return PreconditionFailed(REPLACED)
        if get.position != self.start:
            stop = get.position + get.received
            return BadAnswer(
                f"bytes {get.position}-{stop} arrived instead of {self.start}-{self.stop}"
            )
        if get.received != self.stop - self.start:
            return BadAnswer(f"{get.received} bytes instead of {self.stop - self.start}")
        promise = None
        if self.verify:
            promise = checksum.expected(get.headers(), info, self.start, self.stop)
        if promise is None:
            return None
        self._verified = True
        verification = Verification(promise)
        verification.update(get.body())
        return None if verification.matches() else mismatch(verification, get.status, get.headers())

    def _record(self, get: NativeGet, failure: S3Error | None) -> None:
        """Count and time the request."""
        counters = self.owner.counters
        if get.received:
            counters.add("bytes_fetched", get.received)
        if failure is None and self.verify:
            verified = get.verified or self._verified
            counters.add("checksums_verified" if verified else "checksums_absent")
        if self.clock is not None and get.described_at_s:
            self.clock.first_byte(round(get.described_at_s * 1e9))
        self._stop_clock(failure, round(get.ended_at_s * 1e9))

    def _description(self, get: NativeGet) -> ObjectInfo:
        whole_bytes = self.stop if self.whole else None
        return description_of_range(
            self.version.key, get.status, get.headers(), self.start, self.stop, whole_bytes
        )


class NativePlane:
    """The native plane of one client, and the thread that settles its GETs.

    `connect` opens connections for small GETs (`connections`). Raises symbols.Unavailable if
    this machine's awscrt cannot be used so.
    """

    def __init__(
        self, client: S3Client, counters: Counters, meters: Meters, connect: Connect | None
    ) -> None:
        # dependencies
        self._counters = counters
        self._meters = meters
        self._connections = Connections()
        # The layouts that these need are those of libraries whose versions are not checked.
        bundled = symbols.is_bundled()
        self._opener = ConnectionOpener(self._connections, connect if bundled else None)
        self._gets = NativeGets(_addresses(), client, self._connections)
        self._settling = threading.Lock()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._under_way = 0
        self._closed = False

    def send(
        self,
        download: NativeDownload,
        sink: Arrival,
        target: str,
        headers: EncodedHeaders,
        signing: AwsSigningConfig | None,
    ) -> None:
        """Send a GET with these headers. If the CRT refuses it, that is its outcome."""
        with self._lock:
            self._under_way += 1
            if self._thread is None:
                self._start()
        try:
            download.get = self._gets.get(
                sink,
                target.encode(),
                headers,
                signing,
                start=download.start,
                size=download.stop - download.start,
                object_size=download.version.size_bytes,
                etag=download.version.etag.encode(),
                whole=download.whole,
                verify=download.verify,
                single=not checksum.is_multipart(download.version.etag),
                owner=download,
            )
        except Exception as error:
            with self._lock:
                self._under_way -= 1
            if not isinstance(error, TransportFault):
                raise
            download.drop(error)
            return
        if download.cancelled:  # while it was being sent
            download.cancel()

    def source(
        self,
        target: str,
        headers: EncodedHeaders,
        signing: AwsSigningConfig | None,
        version: ObjectInfo,
        *,
        verify: bool,
        matches: bool,
    ) -> LaneSource:
        """Return a source of ranges of a version for reads in its lane.

        `headers` are all but Range; `matches`: they require the version.
        """
        with self._lock:
            if self._thread is None:
                self._start()
        return self._gets.source(
            target.encode(),
            headers,
            signing,
            object_size=version.size_bytes,
            etag=version.etag.encode(),
            verify=verify,
            single=not checksum.is_multipart(version.etag),
            matches=matches,
        )

    def close(self) -> None:
        """End the thread once all GETs have ended; the caller has cancelled them."""
        with self._lock:
            self._closed = True
        self._connections.end()

    def _start(self) -> None:
        """Start the thread (lock held)."""
        self._thread = threading.Thread(target=self._run, name="native gets", daemon=True)
        self._counters.catch_up.append(self._settle_ended)
        self._thread.start()

    def _settle(self, get: NativeGet) -> bool:
        """Settle one GET; return whether `send` has sent it."""
        if get.begun_at_s:
            self._record(get)
            return False
        if isinstance(get.owner, NativeDownload):  # otherwise it is settled
            get.owner.settle(get)
        return True

    def _record(self, get: NativeGet) -> None:
        """Count and time a GET of a read in the lane. If it failed, the read has sent another."""
        counters = self._counters
        counters.add("gets")
        counters.add("bytes_asked", get.requested)
        counters.add("bytes_fetched", get.received)
        clock = self._meters.request("GetObject", get.thread, round(get.begun_at_s * 1e9))
        if get.described_at_s:
            clock.first_byte(round(get.described_at_s * 1e9))
        ended_ns = round(get.ended_at_s * 1e9)
        if not get.error:
            if get.verify and not get.unclear:
                counters.add("checksums_verified" if get.verified else "checksums_absent")
            clock.end(None, at_ns=ended_ns)
        elif get.cancelled:
            clock.drop()
        else:
            clock.end(get.status, at_ns=ended_ns)

    def _run(self) -> None:
        while True:
            if self._gets.wait(LOOK_S):
                time.sleep(GATHER_S)
            self._settle_ended()
            self._opener.open_missing()
            with self._lock:
                if self._closed and not self._under_way:
                    break
        self._connections.end()  # those that were in use
        self._counters.catch_up.remove(self._settle_ended)

    def _settle_ended(self) -> None:
        """Settle all GETs that have ended; return when they are."""
        settled = 0
        with self._settling:
            for get in self._gets.take():
                try:
                    settled += self._settle(get)
                except Exception:
                    log.exception("a request could not be settled")
        with self._lock:
            self._under_way -= settled


@functools.cache
def _addresses() -> tuple[int, ...]:
    return symbols.addresses()
