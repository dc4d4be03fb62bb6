"""The parts of one multipart upload: send or copy them in parallel, or abort the upload.

CreateMultipartUpload is sent with the first part; parts that are complete before its answer wait
for the upload id. Parts in flight are requests of the upload; this module records the parts that
have arrived.

The server can copy a part from another object (UploadPartCopy). That costs no memory. The part's
checksum is the one that the server returns; without one the upload is completed without.

The upload's lock guards everything here.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from mountpoint.errors import NoSuchUpload, S3Error, TooLarge
from mountpoint.s3.client import (
    Body,
    Checksum,
    Condition,
    ObjectClient,
    ObjectInfo,
    PartDone,
    PutOptions,
    Written,
)
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire import checksum
from mountpoint.upload.parts import MAX_PARTS
from mountpoint.upload.requests import RequestScheduler, T, UploadRequest, UploadRequests

#: How long a caller waits for an upload to be aborted.
ABORT_S = 5.0
#: How long a copy may take: S3 copies 50 MB/s and more in one request.
SLOWEST_COPY_BYTES_PER_S = 8 << 20


@dataclass(slots=True)
class SentPart:
    """A part that has arrived. `digest` None: its checksum is not known."""

    done: PartDone
    digest: bytes | None
    size_bytes: int


@dataclass(slots=True)
class Target:
    """The object that an upload creates. It may change until the upload's first request is sent."""

    key: bytes
    options: PutOptions
    condition: Condition


class Multipart:
    """The multipart upload of `target`; it sends no request before the first part.

    Calls `arrived` with each body that S3 has accepted, and `failed` with errors that no retry
    helped, with the upload's lock held, as all methods are called.
    """

    def __init__(
        self,
        client: ObjectClient,
        target: Target,
        *,
        requests: UploadRequests,
        scheduler: RequestScheduler,
        retry_policy: RetryPolicy,
        arrived: Callable[[Body], None],
        failed: Callable[[Exception], None],
    ) -> None:
        # dependencies
        self._client = client
        self._requests = requests
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        self._arrived = arrived
        self._failed = failed
        # mutable
        self._target = target
        self.begun = False  # CreateMultipartUpload has been sent
        self.upload_id: str | None = None
        self.in_flight = 0  # parts that are sent
        self.copying = 0  # parts that the server copies
        self.aborted = True  # nothing is pending in S3
        self._given_up = False
        self._waiting_for_id: list[Callable[[str], None]] = []
        self.next_number = 1
        self._sent: dict[int, SentPart] = {}

    def send(self, body: Body, digest: bytes) -> None:
        """Send the next part. Raises TooLarge when there are no more part numbers."""
        number = self._number()
        self.in_flight += 1

        def done(written: Written) -> None:
            stored = body.checksum if written.checksum else None
            part = PartDone(number, written.etag, stored)
            self._sent[number] = SentPart(part, digest, body.size_bytes)
            self.in_flight -= 1
            self._arrived(body)

        def go(upload_id: str) -> None:
            def send(terms: Terms) -> "Future[Written]":
                sent = body if terms.checksums else replace(body, checksum=None)
                return self._client.upload_part(self._target.key, upload_id, number, sent)

            self._send(send, done, self._failed, body.size_bytes)

        self._with_id(go)

    def copy(self, source: ObjectInfo, start: int, stop: int) -> None:
        """Copy [start, stop) of this version as the next part. Raises TooLarge as `send`.

        Where the server copies no parts (`Capabilities.copies_parts`), the number is free again.
        """
        number = self._number()
        self.copying += 1
        name = self._target.options.checksum

        def done(written: Written) -> None:
            stored = digest = None
            if name is not None:
                digest = checksum.decoded(name, written.checksum)
                stored = Checksum(name, written.checksum) if digest is not None else None
            part = PartDone(number, written.etag, stored)
            self._sent[number] = SentPart(part, digest, stop - start)
            self.copying -= 1
            self._client.capabilities.copies_parts = True

        def refused(error: S3Error) -> None:
            # The caller waits for the first copied part, so no later part has a number yet.
            first = number == self.next_number - 1
            if first and self._client.capabilities.refused_copied_part(error):
                self.next_number = number
                self.copying -= 1
            else:
                self._failed(error)

        def go(upload_id: str) -> None:
            begin = functools.partial(
                self._client.copy_part,
                source.key,
                self._target.key,
                upload_id,
                number,
                start,
                stop,
                source_etag=source.etag,
                checksum=name,
            )
            try_s = self._retry_policy.try_s + (stop - start) / SLOWEST_COPY_BYTES_PER_S
            self._requests.send(UploadRequest(begin, done, refused, try_s=try_s))

        self._with_id(go)

    @property
    def idle(self) -> bool:
        """Whether all parts have arrived: none is in flight, copied, or waiting for the id."""
        return not self.in_flight and not self.copying

    def sent(self) -> list[SentPart]:
        """Return the parts that have arrived, in order."""
        return [self._sent[number] for number in sorted(self._sent)]

    def forget(self) -> None:
        """Note that the object is complete, so that nothing is left to abort."""
        self._ended()
        self._sent.clear()

    def give_up(self) -> None:
        """Remove the parts from S3, at once or when the upload's id arrives."""
        self._given_up = True
        self._waiting_for_id.clear()
        self._abort()

    def _send(
        self,
        send: Callable[[Terms], "Future[T]"],
        done: Callable[[T], None],
        failed: Callable[[S3Error], None],
        size_bytes: int = 0,
        try_s: float | None = None,
    ) -> None:
        """Send a request that may carry a checksum, unless the server accepts none."""
        terms = Terms(checksums=self._target.options.checksum is not None)
        fallback = Fallback(self._client.capabilities, "write", terms, send)
        self._requests.send(
            UploadRequest(fallback.start, done, failed, size_bytes, try_s, fallback.applies)
        )

    def _number(self) -> int:
        if self.next_number > MAX_PARTS:
            raise TooLarge(
                f"the file has reached {MAX_PARTS} parts, the most that S3 accepts",
                hint="use a larger --write-part-size for larger files",
            )
        number, self.next_number = self.next_number, self.next_number + 1
        return number

    def _with_id(self, go: Callable[[str], None]) -> None:
        """Call `go` with the upload's id, at once or when it arrives."""
        if self.upload_id is not None:
            go(self.upload_id)
            return
        self._waiting_for_id.append(go)
        if not self.begun:
            self.begun, self.aborted = True, False

            def send(terms: Terms) -> "Future[str]":
                known = self._target.options
                options = known if terms.checksums else replace(known, checksum=None)
                return self._client.create_upload(self._target.key, options)

            self._send(send, self.created, self._not_created, try_s=self._retry_policy.try_s)

    def created(self, upload_id: str) -> None:
        """Store the upload's id, and send the parts that wait for it."""
        self.upload_id = upload_id
        self._scheduler.multipart_begun(self._target.key, upload_id)
        if self._given_up:
            self._abort()
            return
        waiting, self._waiting_for_id = self._waiting_for_id, []
        for go in waiting:
            go(upload_id)

    def _not_created(self, error: S3Error) -> None:
        self.aborted = not error.retryable  # if retryable, it may exist: its answer was lost
        self._failed(error)

    def _ended(self) -> None:
        self.aborted = True
        if self.upload_id is not None:
            self._scheduler.multipart_ended(self.upload_id)

    def _abort(self) -> None:
        """Remove the parts from S3, if there are any and the upload's id is known."""
        if self.upload_id is None or self.aborted:
            return

        def done(_: None) -> None:
            self._ended()

        def refused(error: S3Error) -> None:
            if isinstance(error, NoSuchUpload):
                self._ended()

        start = functools.partial(self._client.abort_upload, self._target.key, self.upload_id)
        self._requests.send(
            UploadRequest(start, done, refused, try_s=min(self._retry_policy.try_s, ABORT_S))
        )
