"""Append to one object of a directory bucket: each part exists as soon as S3 has accepted it.

This is what `--incremental-upload` uses (`sequential` has what all uploads share). The first part
of a new object is a PUT under the writer's condition. Each other part is a PUT with the offset at
which the object ends, and If-Match with the version that the part before it has made, so that no
other writer's bytes come between. S3 needs them in order, so one is in flight at a time. Up to two
more wait for it while the program goes on writing; after that the writer waits.

`finish` sends the rest, at most one part, and more may follow. Bytes that were sent stay in the
bucket, whatever happens to the rest: `abort` drops the bytes that have not been sent.

Lost answers (`s3/lost_answers`): the part has arrived if the object has the right size and another
version than before. For the first part the checksum must match as well, if there is one. If a part
was sent twice, S3 refuses the late one: the object has another ETag by then.

Not known here: how many parts an object has that other programs began (S3 accepts 10,000, and
reports the limit).
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace

import structlog

from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    Interrupted,
    NotFound,
    NotOffered,
    NotSequential,
    PreconditionFailed,
    S3Error,
    restated,
)
from mountpoint.s3.client import (
    ALWAYS,
    Body,
    Condition,
    ObjectClient,
    ObjectInfo,
    PutOptions,
    Stored,
    Written,
)
from mountpoint.s3.lost_answers import is_appended, is_first_part
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.memory_budget import Lease
from mountpoint.upload.part_buffer import PartBuffer
from mountpoint.upload.requests import (
    CREATED_BY_ANOTHER,
    LostAnswer,
    UploadRequest,
    UploadScheduler,
)
from mountpoint.upload.sequential import LOOK_S, SequentialUpload

log = structlog.get_logger(__name__)

#: Complete parts that wait for the one in flight. With one the connection is never idle as long as
#: the program is faster; the second evens out slow requests.
MAX_WAITING = 2


class AppendUpload(SequentialUpload):
    """An upload that appends to the object `key`, with memory from `lease`. See SequentialUpload.

    `base` is the object to append to, in the version that its writer knows; None for a new object,
    which is created under `condition`. That is never ALWAYS: a first part that was given up and
    arrives late would replace what was appended since. Raises NotOffered unless the bucket is a
    directory bucket. A write at a wrong offset does no harm.
    """

    def __init__(
        self,
        client: ObjectClient,
        key: bytes,
        *,
        base: ObjectInfo | None,
        condition: Condition = ALWAYS,
        options: PutOptions,
        part_bytes: int,
        lease: Lease,
        spill: Spill,
        scheduler: UploadScheduler[SequentialUpload],
        retry_policy: RetryPolicy,
    ) -> None:
        if not client.is_directory:
            raise NotOffered("only directory buckets (S3 Express One Zone) support appends")
        if base is None and condition == ALWAYS:
            raise ValueError("a new object needs a condition")
        super().__init__(
            size_bytes=0 if base is None else base.size_bytes,
            part_bytes=part_bytes,
            checksum=options.checksum,
            lease=lease,
            spill=spill,
            scheduler=scheduler,
            retry_policy=retry_policy,
        )
        # dependencies
        self._client = client
        # constants
        self.key = key
        self._condition = condition
        self._options = options
        # mutable, guarded by _changed
        self._info = base  # the object with all parts that have arrived
        self._waiting: deque[Body] = deque()  # complete parts, in order

    def finish(self, size_bytes: int = 0) -> ObjectInfo:
        """Send all that was written until now; return the object. More may follow.

        First zeros extend the object to `size_bytes`. A new object without bytes becomes an empty
        one. Raises AlreadyExists or PreconditionFailed when the object is not the expected version,
        any S3Error that retries did not help, and Interrupted when the mount goes away.
        """
        with self._changed:
            with self._turn():
                self._gather_zeros(size_bytes)
                if self._buffer.size_bytes or not self._is_begun():
                    self._seal()
            size_bytes = self._size_bytes
            while self._info is None or self._info.size_bytes < size_bytes:
                self._wait()
            return self._info

    def rename(self, key: bytes, condition: Condition) -> bool:
        """Whether the object has this key already. If not, the caller has to rename it in S3."""
        return key == self.key

    def add_metadata(self, metadata: Mapping[str, str]) -> bool:
        """Refuse new metadata (False): the object has had its own from the beginning."""
        return False

    def fail(self, error: Exception) -> None:
        """Give up without waiting: all waits, and all later calls, raise `error`."""
        with self._changed:
            if self._failure is not None:
                return
            self._failure = error
            if isinstance(error, AccessDenied):
                self._scheduler.denied()
            self._requests.drop_all()
            self._waiting.clear()
            self._let_go()
            self._changed.notify_all()

    def abort(self, until_s: float | None = None) -> None:
        """Drop what has not been sent; after `finish`, release the resources. Waits for nothing.

        `until_s` is not used here: see `Upload.abort`.
        """
        with self._changed:
            here = 0 if self._info is None else self._info.size_bytes
            if self._failure is None and here < self._size_bytes:
                log.info(
                    "an upload was abandoned: the bytes already sent remain in the bucket",
                    key=self.key,
                    size_bytes=here,
                    written_bytes=self._size_bytes,
                )
            self.fail(Interrupted("the upload was abandoned"))

    # --- memory and parts (lock held) ---

    def _is_begun(self) -> bool:
        """Whether the object exists, or its first part is in flight or waits."""
        return self._info is not None or bool(self._requests) or bool(self._waiting)

    def _seal(self) -> None:
        # Wait for a slot in the queue.
        while len(self._waiting) >= MAX_WAITING:
            self._wait()
        self._waiting.append(self._buffer.body())
        self._buffer = PartBuffer(self._checksum)
        self._advance()
        self._check()

    # --- sending (lock held) ---

    def _misplaced(self, error: NotSequential) -> None:
        pass  # all that was written before it is still good

    def _is_on_its_way(self) -> bool:
        return bool(self._requests)

    def _wait(self, max_s: float = threading.TIMEOUT_MAX) -> None:
        super()._wait(LOOK_S if self._waiting and not self._requests else max_s)
        self._advance()

    def _advance(self) -> None:
        # Send the next part, if none is in flight and the scheduler has a slot for it.
        if not self._waiting or self._requests or self._failure is not None:
            return
        size_bytes = self._waiting[0].size_bytes
        if size_bytes and not self._scheduler.take_slot(self, 0, size_bytes, queues=False):
            return  # a waiting writer tries again, and so does the sweep once a second
        body, before = self._waiting.popleft(), self._info

        def start() -> "Future[Written]":
            if before is None:
                return self._client.put_object(self.key, body, self._options, self._condition)
            return self._client.append_object(
                self.key,
                body,
                offset=before.size_bytes,
                options=self._options,
                condition=Condition(etag=before.etag),
            )

        def done(written: Written) -> None:
            self._has_arrived(body, self._object_info(before, body, written))

        def refused(error: S3Error) -> None:
            self.fail(self._meaning(error, before))

        def is_ours(stored: Stored) -> bool:
            if before is None:
                return is_first_part(stored, body, self._condition)
            return is_appended(stored, body, before)

        def found(info: ObjectInfo) -> None:
            self._has_arrived(body, info)

        ask = functools.partial(self._client.head_with_checksums, self.key)
        lost_answer = LostAnswer(ask, is_ours, found)
        request = UploadRequest(start, done, refused, body.size_bytes, lost_answer=lost_answer)
        if not body.size_bytes:  # the usual limit of any request
            request.try_s = self._retry_policy.try_s
        self._requests.send(request)

    def _has_arrived(self, body: Body, info: ObjectInfo) -> None:
        self._info = info
        self._arrived(body)

    def _object_info(self, before: ObjectInfo | None, body: Body, written: Written) -> ObjectInfo:
        date_ns = written.date_ns or int(time.time()) * 1_000_000_000
        if before is None:
            # The only class of directory buckets in an availability zone.
            storage_class = self._options.storage_class or "EXPRESS_ONEZONE"
            return ObjectInfo(self.key, body.size_bytes, date_ns, written.etag, storage_class)
        size_bytes = before.size_bytes + body.size_bytes
        return replace(before, size_bytes=size_bytes, mtime_ns=date_ns, etag=written.etag)

    def _meaning(self, error: S3Error, before: ObjectInfo | None) -> S3Error:
        """Return the error for the file's writer from the refusal of a part."""
        if before is None:
            if type(error) is PreconditionFailed and self._condition.absent:
                return restated(error, AlreadyExists, CREATED_BY_ANOTHER)
            return error
        if isinstance(error, PreconditionFailed | NotFound):
            text = "another writer changed the object in the meantime"
            return restated(error, PreconditionFailed, text)
        return error
