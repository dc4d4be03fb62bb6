"""One object of a directory bucket that grows: each part is there as soon as S3 has taken it.

What `--incremental-upload` needs (`sequential` has what is as in other uploads). The first part of
a new object is a PUT under the writer's condition; every other is a PUT with the offset at which
the object ends, and If-Match with the version that the part before it has made, so that nobody
else's bytes come between. S3 wants them in order, so one is under way at a time; up to two more
wait for it while the program goes on writing, and then the writer waits.

`finish` sends what is left, and more may follow: each finish is at most one part. What was sent
stays in the bucket, whatever becomes of the rest: `abort` gives up what has not been sent.

A lost answer: a part that was tried before and is then refused, or whose tries run out, may have
arrived. HEAD tells: an object of the size after it, and of another version than before it, has
it; of the first part its checksum has to match, too, if it has one. A part that was sent
twice and arrives late is refused: the object has another ETag by then.

Not known here: how many parts an object has that others have begun (S3 takes 10,000 and says so).
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

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
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.memory_budget import Lease
from mountpoint.upload.part_buffer import Gathering
from mountpoint.upload.requests import UploadRequest, UploadScheduler
from mountpoint.upload.sequential import LOOK_S, Sequential

log = structlog.get_logger(__name__)

#: Parts that are complete and wait for the one under way. With one the line is never idle as long
#: as the program is faster; the second evens out what takes longer.
MOST_WAITING = 2


class Appending(Sequential):
    """What is appended to the object `key`, with memory from `lease`. See Sequential.

    `base` is the object that is appended to, in the version that its writer knows; None for a new
    one, which then comes into being under `condition`: never under ALWAYS, or a first part that
    was given up, and arrives late, would replace what was appended since. Raises NotOffered where
    it is no directory bucket. A write at a wrong offset does no harm.
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
        scheduler: UploadScheduler[Sequential],
        retry_policy: RetryPolicy,
    ) -> None:
        if not client.is_directory:
            raise NotOffered("only directory buckets (S3 Express One Zone) can be appended to")
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
        self._waiting: deque[Body] = deque()  # parts, complete and in order

    def finish(self, size_bytes: int = 0) -> ObjectInfo:
        """Send all that was written until now; return the object with it. More may follow.

        Zeros come first, until it has `size_bytes`. Of a new object to which nothing was written
        this makes an empty one. Raises AlreadyExists or PreconditionFailed when the object is not
        what it was, any S3Error that retries did not help, Interrupted when the mount goes away.
        """
        with self._changed:
            with self._turn():
                self._gather_zeros(size_bytes)
                if self._gathering.size_bytes or not self._is_begun():
                    self._seal()
            size_bytes = self._size_bytes
            while self._info is None or self._info.size_bytes < size_bytes:
                self._wait()
            return self._info

    def rename(self, key: bytes, condition: Condition) -> bool:
        """Whether the object already has this key: what is in S3 is renamed there."""
        return key == self.key

    def describe(self, metadata: Mapping[str, str]) -> bool:
        """Whether the object gets this metadata, too: it has had its own from the beginning."""
        return False

    def fail(self, error: Exception) -> None:
        """Give up, without waiting: all waits end with `error`, and so does what is asked later."""
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
        """Give up what has not been sent. Also the end of one that is finished; waits for nothing.

        `until_s` is for those that have to wait: see `Upload`.
        """
        with self._changed:
            here = 0 if self._info is None else self._info.size_bytes
            if self._failure is None and here < self._size_bytes:
                log.info(
                    "an upload was given up: its beginning stays",
                    key=self.key,
                    size_bytes=here,
                    written_bytes=self._size_bytes,
                )
            self.fail(Interrupted("the upload was given up"))

    # --- memory and parts (lock held) ---

    def _is_begun(self) -> bool:
        """Whether the object is there, or on its way."""
        return self._info is not None or bool(self._requests) or bool(self._waiting)

    def _seal(self) -> None:
        # Wait for a place in the queue.
        while len(self._waiting) >= MOST_WAITING:
            self._wait()
        self._waiting.append(self._gathering.body())
        self._gathering = Gathering(self._checksum)
        self._advance()
        self._check()

    # --- sending (lock held) ---

    def _misplaced(self, error: NotSequential) -> None:
        pass  # what was written before it is as good as ever

    def _is_on_its_way(self) -> bool:
        return bool(self._requests)

    def _wait(self, most_s: float = threading.TIMEOUT_MAX) -> None:
        super()._wait(LOOK_S if self._waiting and not self._requests else most_s)
        self._advance()

    def _advance(self) -> None:
        # Send the next part, if none is under way and there is a place for it.
        if not self._waiting or self._requests or self._failure is not None:
            return
        size_bytes = self._waiting[0].size_bytes
        if size_bytes and not self._scheduler.take_place(self, 0, size_bytes, queues=False):
            return  # it is tried again by who waits, and once a second
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
            self._has_arrived(body, self._described(before, body, written))

        def refused(error: S3Error) -> None:
            if request.attempt or error.retryable:
                self._find_out(error, body, before)
            else:
                self.fail(self._meaning(error, before))

        request = UploadRequest(start, done, refused, body.size_bytes)
        if not body.size_bytes:  # as long as any other request
            request.try_s = self._retry_policy.try_s
        self._requests.send(request)

    def _find_out(self, error: S3Error, body: Body, before: ObjectInfo | None) -> None:
        """Look whether an earlier try has arrived; it fails with `error` if not."""

        def done(stored: Stored) -> None:
            if self._has(stored, body, before):
                log.debug("an earlier try had arrived", key=self.key, error=str(error))
                self._has_arrived(body, stored.info)
            else:
                self.fail(self._meaning(error, before))

        def refused(_: S3Error) -> None:
            self.fail(self._meaning(error, before))

        start = functools.partial(self._client.describe, self.key)
        self._requests.send(UploadRequest(start, done, refused, try_s=self._retry_policy.try_s))

    def _has(self, stored: Stored, body: Body, before: ObjectInfo | None) -> bool:
        """Whether what is there is what was there before, and `body`."""
        if before is not None:
            after = before.size_bytes + body.size_bytes
            return stored.info.size_bytes == after and stored.info.etag != before.etag
        sent = body.checksum
        if sent is not None and stored.checksums.get(sent.name) != sent.value:
            return False
        untouched = stored.info.etag == self._condition.etag
        return stored.info.size_bytes == body.size_bytes and not untouched

    def _has_arrived(self, body: Body, info: ObjectInfo) -> None:
        self._info = info
        self._arrived(body)

    def _described(self, before: ObjectInfo | None, body: Body, written: Written) -> ObjectInfo:
        date_ns = written.date_ns or int(time.time()) * 1_000_000_000
        if before is None:
            # The only class that a directory bucket in an availability zone has.
            storage_class = self._options.storage_class or "EXPRESS_ONEZONE"
            return ObjectInfo(self.key, body.size_bytes, date_ns, written.etag, storage_class)
        size_bytes = before.size_bytes + body.size_bytes
        return replace(before, size_bytes=size_bytes, mtime_ns=date_ns, etag=written.etag)

    def _meaning(self, error: S3Error, before: ObjectInfo | None) -> S3Error:
        """What the refusal of a part means to who writes the file."""
        details: Any = {
            "code": error.code,
            "status": error.status,
            "request_id": error.request_id,
        }
        if before is None:
            if type(error) is PreconditionFailed and self._condition.absent:
                return AlreadyExists("somebody else has created the object meanwhile", **details)
            return error
        if isinstance(error, PreconditionFailed | NotFound):
            return PreconditionFailed("somebody else has changed the object meanwhile", **details)
        return error
