"""The requests of an upload, with their retries.

No thread has to wait for a request. The client's thread that brings the answer records it. A
request that has failed, or has been silent for too long, is sent again by the thread that waits for
the upload (`drive`). An upload without a waiting thread is driven once a second, because other
uploads may wait for its slot.

The upload's lock guards everything here.
"""

import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Never, Protocol, TypeVar

import structlog

from mountpoint.errors import S3Error, Stalled
from mountpoint.s3.client import Body, ObjectInfo, Stored
from mountpoint.s3.lost_answers import may_have_succeeded
from mountpoint.s3.retry import Attempts, RetryPolicy

log = structlog.get_logger(__name__)

#: 2 Mbit/s. A slower connection would need years for any bucket that is worth mounting.
SLOWEST_BYTES_PER_S = 256 << 10

#: The reason of an `AlreadyExists` for the file's writer.
CREATED_BY_ANOTHER = "another writer created the object in the meantime"

#: The type of an upload.
U = TypeVar("U", contravariant=True)
#: The answer to a request.
T = TypeVar("T")


class UploadScheduler(Protocol[U]):
    """What a mount's uploads share: slots for bodies in flight, and the journal."""

    def take_slot(self, upload: U, in_flight: int, size_bytes: int, *, queues: bool = True) -> bool:
        """Take a slot for one more body of an upload that has `in_flight`; False: ask again.

        The bytes of all bodies together are bounded, because the CRT holds a copy of each. With
        `queues` the upload gets a slot before uploads that ask later, and has to ask until it
        gets one.
        """

    def release_slot(self, upload: U, size_bytes: int) -> None:
        """Give a slot back after the body has arrived."""

    def busy(self) -> bool:
        """Whether any upload has bodies in flight."""

    def arrived(self, size_bytes: int, duration_s: float, *, waited: bool) -> None:
        """Note how long a body took, and whether its writer `waited` for a slot."""

    def allowed_s(self, size_bytes: int) -> float:
        """Return how many seconds a body of this size may take."""

    def denied(self) -> None:
        """Note that S3 has denied writing an object."""

    def closed(self, upload: U) -> None:
        """Note that an upload has ended."""

    def written(self, info: ObjectInfo, body: Body) -> None:
        """Note that these bytes have become an object. Called without a lock, never waits."""

    def multipart_begun(self, key: bytes, upload_id: str) -> None:
        """Note that S3 has a new multipart upload."""

    def multipart_ended(self, upload_id: str) -> None:
        """Note that S3 has completed or removed a multipart upload."""


#: A scheduler as requests use it: without the methods that take an upload.
RequestScheduler = UploadScheduler[Never]


class Owner(Protocol):
    """The upload that requests belong to."""

    def take(self, request: "UploadRequest[T]", future: "Future[T]") -> None:
        """Receive an answer, on any thread; pass it to `UploadRequests.take` with the lock held."""

    def wants(self, request: "UploadRequest[T]") -> bool:
        """Whether a request that has failed should be tried again."""


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """How to find out whether a request has created its object although it has failed.

    `ask` describes the object now at the key; `found` gets it if it `is_ours` (`lost_answers`).
    """

    ask: Callable[[], "Future[Stored]"]
    is_ours: Callable[[Stored], bool]
    found: Callable[[ObjectInfo], None]


@dataclass(eq=False, slots=True)
class UploadRequest(Generic[T]):
    """One request of an upload, with its retries.

    `start` sends it. `done` gets its result, `refused` an error that no retry will help; both are
    called with the upload's lock held. `again`: see RetryingCall. `size_bytes` is the size of its
    body. `try_s` is how long the first try may take; None: the time for a body of this size. Later
    tries may take longer, if the total time allows it. With `lost_answer` it is refused only after
    a look for its object in S3.
    """

    start: Callable[[], "Future[T]"]
    done: Callable[[T], None]
    refused: Callable[[S3Error], None]
    size_bytes: int = 0
    try_s: float | None = None
    again: Callable[[S3Error], bool] | None = None
    lost_answer: LostAnswer | None = None
    # mutable, guarded by the upload's lock
    future: "Future[T] | None" = None  # None if it is not in flight
    began_s: float = 0.0
    late_s: float = 0.0  # when it has been silent for too long
    again_s: float = 0.0  # when to send it again, if it is not in flight
    attempts: Attempts | None = None  # since its first failure
    attempt: int = 0  # the number of this try, from 0

    def end(self) -> None:
        """Release the body: others may refer to this object for longer."""
        self.start = self.done = self.refused = _over
        self.again = self.lost_answer = None


def _over(*_: object) -> Never:
    raise AssertionError("the request is over")


class UploadRequests:
    """The requests of `owner`. All methods are called with the owner's lock held."""

    def __init__(
        self, owner: Owner, scheduler: RequestScheduler, retry_policy: RetryPolicy
    ) -> None:
        # dependencies
        self._owner = owner
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        # mutable
        self._open: list[UploadRequest[Any]] = []  # in flight, or to be sent again
        self.waited = False  # the writer has waited for a slot since the last part arrived

    def __len__(self) -> int:
        return len(self._open)

    def send(self, request: UploadRequest[T]) -> None:
        """Send a request, for the first time or again."""
        if request not in self._open:
            self._open.append(request)
        request.began_s = time.monotonic()
        try_s = request.try_s
        if try_s is None:
            try_s = self._scheduler.allowed_s(request.size_bytes)
        longest_s = try_s * 2 ** min(request.attempt, 4)
        if request.attempts is not None:  # not beyond the total, but long enough to succeed
            longest_s = min(longest_s, max(request.attempts.left_s(), try_s))
        request.late_s = request.began_s + longest_s
        future = request.start()
        request.future = future
        future.add_done_callback(functools.partial(self._owner.take, request))

    def take(self, request: UploadRequest[T], future: "Future[T]") -> bool:
        """Record an answer; True if it is a success. Raises errors other than S3Error."""
        if request.future is not future:
            return False  # the request was given up before
        request.future = None
        error = future.exception()
        if request.size_bytes and error is None:
            duration_s = time.monotonic() - request.began_s
            self._scheduler.arrived(request.size_bytes, duration_s, waited=self.waited)
            self.waited = False
        if isinstance(error, S3Error):
            self._failed(request, error)
            return False
        self._open.remove(request)
        request.done(future.result())
        request.end()
        return True

    def drop_all(self, *, but: Callable[[T], None] | None = None) -> None:
        """Cancel all requests, except for the one in flight whose `done` is `but`."""
        kept = [request for request in self._open if request.done == but and request.future]
        dropped = [request for request in self._open if request not in kept]
        self._open = kept
        for request in dropped:
            self._drop(request)
            request.end()

    def _failed(self, request: UploadRequest[T], error: S3Error) -> None:
        """Send it again or schedule another try; report the error if neither can help."""
        if request.again is not None and request.again(error):
            self.send(request)
            return
        if error.retryable and self._owner.wants(request):
            request.attempts = request.attempts or self._retry_policy.begin()
            pause_s = request.attempts.pause_s()
            if pause_s is not None:
                request.again_s = time.monotonic() + pause_s
                return
            error.hint = error.hint or "all retries failed"
        self._open.remove(request)
        retried = request.attempt > 0
        if request.lost_answer is not None and may_have_succeeded(error, retried=retried):
            self._find_out(request.lost_answer, request.refused, error)
        else:
            request.refused(error)
        request.end()

    def _find_out(
        self, lost: LostAnswer, refused: Callable[[S3Error], None], error: S3Error
    ) -> None:
        """Ask whether a request that has failed has created its object."""

        def done(stored: Stored) -> None:
            if lost.is_ours(stored):
                log.debug("an earlier attempt had succeeded", key=stored.info.key, error=str(error))
                lost.found(stored.info)
            else:
                refused(error)

        def failed(_: S3Error) -> None:
            refused(error)

        self.send(UploadRequest(lost.ask, done, failed, try_s=self._retry_policy.try_s))

    def _drop(self, request: UploadRequest[T]) -> None:
        """Cancel a request whose answer is no longer needed."""
        future, request.future = request.future, None
        if future is not None:
            future.cancel()

    def drive(self) -> bool:
        """Send again one request that is due; True if there was one."""
        now_s = time.monotonic()
        for request in self._open:
            if request.future is not None and now_s >= request.late_s:
                self._drop(request)
                self._failed(request, Stalled(f"no answer in {now_s - request.began_s:.1f} s"))
                return True
            if request.future is None and now_s >= request.again_s:
                request.attempt += 1
                self.send(request)
                return True
        return False

    def next_s(self) -> float:
        """Return the seconds until a request has to be sent again or becomes late."""
        times_s = [
            request.again_s if request.future is None else request.late_s for request in self._open
        ]
        return max(min(times_s, default=math.inf) - time.monotonic(), 0.0)
