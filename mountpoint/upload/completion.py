"""The request that creates an object: PutObject, or CompleteMultipartUpload followed by a HEAD.

The upload's lock guards everything here.
"""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from mountpoint.errors import AlreadyExists, BadAnswer, PreconditionFailed, S3Error, restated
from mountpoint.s3.client import (
    NO_METADATA,
    Body,
    Checksum,
    ObjectClient,
    ObjectInfo,
    Stored,
    Written,
)
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.lost_answers import etag_of_body, etag_of_parts, is_sent
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire import checksum
from mountpoint.upload.multipart import SentPart, Target
from mountpoint.upload.parts import MAX_PARTS, are_equal
from mountpoint.upload.requests import (
    CREATED_BY_ANOTHER,
    LostAnswer,
    UploadRequest,
    UploadRequests,
)

#: "The processing of a CompleteMultipartUpload request could take several minutes":
#: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
COMPLETE_S = 300.0

#: What to do after a store has refused parts that had grown with the file.
WRITE_AGAIN = (
    "write the file again: all its parts will have the size --write-part-size, "
    f"and a file can have {MAX_PARTS} of them"
)


class Completion:
    """The end of the upload of `target`. Calls `completed` or `failed` once, with the lock held."""

    def __init__(
        self,
        client: ObjectClient,
        target: Target,
        *,
        requests: UploadRequests,
        retry_policy: RetryPolicy,
        completed: Callable[[ObjectInfo], None],
        failed: Callable[[Exception], None],
    ) -> None:
        # dependencies
        self._client = client
        self._capabilities = client.capabilities
        self._requests = requests
        self._retry_policy = retry_policy
        self._completed = completed
        self._failed = failed
        # mutable, until the object is created
        self._target = target
        self._unequal = False  # its parts have different sizes

    def put(self, body: Body) -> None:
        """Create the object from one body."""
        size_bytes = body.size_bytes

        def send(terms: Terms) -> "Future[Written]":
            sent = body if terms.checksums else replace(body, checksum=None)
            return self._client.put_object(
                self._target.key, sent, self._target.options, terms.condition
            )

        def done(written: Written) -> None:
            self._completed(self._object_info(written, size_bytes))

        def is_ours(stored: Stored) -> bool:
            return is_sent(stored, size_bytes, body.checksum, lambda: etag_of_body(body))

        self._send(send, done, is_ours, size_bytes, None)

    def complete(self, upload_id: str, sent: Sequence[SentPart], size_bytes: int) -> None:
        """Create the object, of `size_bytes`, from all parts, which have arrived."""
        parts = [each.done for each in sent]
        self._unequal = not are_equal([each.size_bytes for each in sent])
        whole = None
        name = self._target.options.checksum
        digests = [(each.digest, each.size_bytes) for each in sent if each.digest is not None]
        if name is not None and len(digests) == len(sent):
            whole = Checksum(name, checksum.of_parts(name, digests))

        def send(terms: Terms) -> "Future[Written]":
            return self._client.complete_upload(
                self._target.key,
                upload_id,
                parts,
                size_bytes=size_bytes,
                checksum=whole if terms.checksums else None,
                condition=terms.condition,
            )

        def done(written: Written) -> None:
            if self._unequal:
                self._capabilities.took_unequal_parts()
            self._look(self._object_info(written, size_bytes))

        def is_ours(stored: Stored) -> bool:
            return is_sent(stored, size_bytes, whole, lambda: etag_of_parts(parts))

        self._send(send, done, is_ours, 0, COMPLETE_S)

    def _send(
        self,
        send: Callable[[Terms], "Future[Written]"],
        done: Callable[[Written], None],
        is_ours: Callable[[Stored], bool],
        size_bytes: int,
        try_s: float | None,
    ) -> None:
        """Send the request that creates the object, without the headers that the server rejects."""
        terms = Terms(self._target.condition, checksums=self._target.options.checksum is not None)
        fallback = Fallback(self._capabilities, "write", terms, send)
        ask = functools.partial(self._client.head_with_checksums, self._target.key)

        def refused(error: S3Error) -> None:
            self._failed(self._meaning(error))

        lost_answer = LostAnswer(ask, is_ours, self._completed)
        self._requests.send(
            UploadRequest(
                fallback.start, done, refused, size_bytes, try_s, fallback.applies, lost_answer
            )
        )

    def _look(self, expected: ObjectInfo) -> None:
        """Ask for the object's size and time: S3 dates an object of parts to its upload's start."""

        def done(info: ObjectInfo) -> None:
            if info.etag != expected.etag:  # another client has replaced it since
                self._completed(expected)
            elif info.size_bytes != expected.size_bytes:
                self._failed(
                    BadAnswer(f"the object has {info.size_bytes} bytes, not {expected.size_bytes}")
                )
            else:
                self._completed(info)

        def refused(_: S3Error) -> None:
            self._completed(expected)  # the upload is complete all the same

        start = functools.partial(self._client.head, self._target.key)
        self._requests.send(UploadRequest(start, done, refused, try_s=self._retry_policy.try_s))

    def _meaning(self, error: S3Error) -> S3Error:
        """Return the error for the file's writer from a refusal to create the object."""
        if self._unequal and self._capabilities.refused_unequal_parts(error):
            error.hint = WRITE_AGAIN
        if type(error) is not PreconditionFailed or not self._target.condition.absent:
            return error
        return restated(error, AlreadyExists, CREATED_BY_ANOTHER)

    def _object_info(self, written: Written, size_bytes: int) -> ObjectInfo:
        date_ns = written.date_ns or int(time.time()) * 1_000_000_000
        storage_class = self._target.options.storage_class or "STANDARD"
        return ObjectInfo(
            self._target.key,
            size_bytes,
            date_ns,
            written.etag,
            storage_class,
            metadata=self._target.options.metadata or NO_METADATA,
        )
