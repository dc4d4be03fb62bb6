"""The requests of an upload, with their retries: sent, answered, and sent again.

Nobody has to wait for a request. Its answer is noted by the client's thread that brings it. What
has failed, or has been silent for too long, is noticed and sent again by whoever waits for the
upload (`drive`), and once a second for uploads that nobody waits for: others may wait for their
place on the line.

The upload's lock guards all of this.
"""

import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mountpoint.errors import NotOffered, S3Error, Stalled
from mountpoint.s3.retry import Attempts, RetryPolicy

#: 2 Mbit/s. What is slower would need years for what is worth mounting.
SLOWEST_BYTES_PER_S = 256 << 10

#: An upload.
U = TypeVar("U", contravariant=True)


class UploadScheduler(Protocol[U]):
    """What an upload shares with the others of its mount."""

    def take_place(
        self, upload: U, in_flight: int, size_bytes: int, *, queues: bool = True
    ) -> bool:
        """Take a place for one more body of an upload that has `in_flight`; False to ask again.

        The bytes of all bodies together are bounded, because the CRT holds a copy of each. Who
        `queues` gets a place before those that ask later, and has to ask until there is one.
        """

    def leave_place(self, upload: U, size_bytes: int) -> None:
        """Give a place back: the body has arrived."""

    def busy(self) -> bool:
        """Whether anything is in flight, of any upload."""

    def arrived(self, size_bytes: int, duration_s: float, *, waited: bool) -> None:
        """Note how long a body took; `waited` is whether its writer had to wait for a place."""

    def allowed_s(self, size_bytes: int) -> float:
        """Seconds that a body of this size may take."""

    def knows_conditions(self) -> bool:
        """Whether the server may know If-None-Match."""

    def knows_checksums(self) -> bool:
        """Whether the server may take checksums."""

    def does_without(self, error: NotOffered, *, condition: bool, checksum: bool) -> bool:
        """Note what a server does not know that refused a request with a condition, a checksum.

        True if it is worth it to ask again, for what is known now.
        """

    def copies_parts(self) -> bool | None:
        """Whether the server copies parts of objects; None until it has done so or refused it."""

    def part_copied(self) -> None:
        """Note that it does."""

    def does_without_copies(self, error: S3Error) -> bool:
        """Note that it does not, if that is what `error` means; True if so."""

    def took_unequal_parts(self) -> None:
        """Note that the server has made an object of parts of different sizes."""

    def wants_equal_parts(self, error: S3Error) -> bool:
        """Note that it makes none, if that is what `error` means; True if so.

        `error` refused parts of different sizes.
        """

    def denied(self) -> None:
        """Note that S3 does not let an object be written."""

    def closed(self, upload: U) -> None:
        """Note that an upload is over."""

    def multipart_begun(self, key: bytes, upload_id: str) -> None:
        """Note that S3 has a multipart upload."""

    def multipart_ended(self, upload_id: str) -> None:
        """Note that S3 has completed or forgotten it."""


class Owner(Protocol):
    """Whose requests they are."""

    def take(self, request: "UploadRequest", future: "Future[Any]") -> None:
        """Take an answer, on any thread: hand it to `UploadRequests.take`, with the lock."""

    def wants(self, request: "UploadRequest") -> bool:
        """Whether a request that has failed is worth another try."""


@dataclass(eq=False, slots=True)
class UploadRequest:
    """One request of an upload, with its retries.

    `start` makes it, `done` takes its result and `refused` an error that no retry will help:
    both with the upload's lock held. `size_bytes` is that of its body, `try_s` what the first
    try may take, later ones more; None for what a body of this size may.
    """

    start: Callable[[], "Future[Any]"]
    done: Callable[[Any], None]
    refused: Callable[[S3Error], None]
    size_bytes: int = 0
    try_s: float | None = None
    # mutable, guarded by the upload's lock
    future: "Future[Any] | None" = None  # under way
    began_s: float = 0.0
    late_s: float = 0.0  # when it has been silent for too long
    again_s: float = 0.0  # when it is sent again, if it is not under way
    attempts: Attempts | None = None  # since its first failure
    attempt: int = 0  # of its tries, the first is 0

    def end(self) -> None:
        """Let go of the bytes: `refused` may refer to this, and a cycle waits for the collector."""
        self.start = self.done = self.refused = _over


def _over(*_: Any) -> Any:
    raise AssertionError("the request is over")


class UploadRequests:
    """The requests of `owner`, which shares a `scheduler`. All with the owner's lock held."""

    def __init__(
        self, owner: Owner, scheduler: UploadScheduler[Any], retry_policy: RetryPolicy
    ) -> None:
        # dependencies
        self._owner = owner
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        # mutable
        self._open: list[UploadRequest] = []  # under way, or to be sent again
        self.waited = False  # the writer, for a place, since the last part has arrived

    def __len__(self) -> int:
        return len(self._open)

    def send(self, request: UploadRequest) -> None:
        """Send a request, for the first time or again."""
        if request not in self._open:
            self._open.append(request)
        request.began_s = time.monotonic()
        try_s = request.try_s
        if try_s is None:
            try_s = self._scheduler.allowed_s(request.size_bytes)
        request.late_s = request.began_s + try_s * 2 ** min(request.attempt, 4)
        future = request.start()
        request.future = future
        future.add_done_callback(functools.partial(self._owner.take, request))

    def take(self, request: UploadRequest, future: "Future[Any]") -> bool:
        """Take an answer; True if it is a success. Raises what is no S3Error."""
        if request.future is not future:
            return False  # it was given up before
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

    def drop_all(self, *, but: Callable[[Any], None] | None = None) -> None:
        """Cancel all requests but that whose result `but` takes, if it is under way."""
        kept = [request for request in self._open if request.done == but and request.future]
        dropped = [request for request in self._open if request not in kept]
        self._open = kept
        for request in dropped:
            self._drop(request)
            request.end()

    def _failed(self, request: UploadRequest, error: S3Error) -> None:
        """Note when to try again, or that it is of no use."""
        if error.retryable and self._owner.wants(request):
            request.attempts = request.attempts or self._retry_policy.begin()
            pause_s = request.attempts.pause_s()
            if pause_s is not None:
                request.again_s = time.monotonic() + pause_s
                return
            error.hint = error.hint or "all retries failed"
        self._open.remove(request)
        request.refused(error)
        if request not in self._open:  # else it has been sent again
            request.end()

    def _drop(self, request: UploadRequest) -> None:
        """Cancel a request whose answer nobody wants."""
        future, request.future = request.future, None
        if future is not None:
            future.cancel()

    def drive(self) -> bool:
        """Send again what has to be; True if something was done."""
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
        """Seconds until something has to be driven."""
        times_s = [
            request.again_s if request.future is None else request.late_s for request in self._open
        ]
        return max(min(times_s, default=math.inf) - time.monotonic(), 0.0)
