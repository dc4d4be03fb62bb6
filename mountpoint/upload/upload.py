"""One new object, written from its beginning to its end, and visible when it is complete.

An object of up to one part is a PUT at the end. For a larger one, the first part is sent together
with CreateMultipartUpload, more parts follow while the writer goes on, and CompleteMultipartUpload
makes them one object (`sequential` has what all uploads share).

`copy` appends bytes of another object. The server copies them as parts of their own; only ranges
that are too small for a part are read and gathered like written bytes (`parts.next_step`). Where
all parts must have one size, so must copied parts (`parts.next_equal_step`).

Not known here: the requests (`multipart`, `completion`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import structlog

from mountpoint.errors import AccessDenied, Interrupted, NotSequential, TooLarge, UploadEnding
from mountpoint.s3.client import Body, Condition, ObjectClient, ObjectInfo, PutOptions
from mountpoint.s3.content_types import after_rename
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.kept_bodies import KeptBodies, Room
from mountpoint.transfer.memory_budget import Lease
from mountpoint.upload.completion import Completion
from mountpoint.upload.multipart import ABORT_S, Multipart, Target
from mountpoint.upload.part_buffer import PartBuffer
from mountpoint.upload.parts import S3_LIMITS, Limits, Step, next_equal_step, next_step
from mountpoint.upload.requests import T, UploadRequest, UploadScheduler
from mountpoint.upload.sequential import LOOK_S, SequentialUpload
from mountpoint.upload.source import VersionReader

log = structlog.get_logger(__name__)

#: Parts that the server copies at a time for one upload. They cost no memory and no bandwidth.
COPIES = 8


class Upload(SequentialUpload):
    """The upload of the object `key`, with memory from `lease`. See SequentialUpload.

    With `equal_bytes` all parts have that size, except the last, which may be smaller. After an
    error, even of a write at a wrong offset, the object is never created. After `finish` no more
    can be written. Raises TooLarge beyond S3's limits.
    """

    def __init__(
        self,
        client: ObjectClient,
        key: bytes,
        *,
        options: PutOptions,
        condition: Condition,
        part_bytes: int,
        equal_bytes: int | None = None,
        limits: Limits = S3_LIMITS,
        types_follow_names: bool = False,
        lease: Lease,
        spill: Spill,
        scheduler: UploadScheduler[SequentialUpload],
        retry_policy: RetryPolicy,
        room: Room | None = None,
    ) -> None:
        super().__init__(
            size_bytes=0,
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
        self.equal_bytes = equal_bytes
        self._limits = limits
        self._types_follow_names = types_follow_names
        # mutable, guarded by _changed
        self._target = Target(key, options, condition)
        self._multipart = Multipart(
            client,
            self._target,
            requests=self._requests,
            scheduler=scheduler,
            retry_policy=retry_policy,
            arrived=self._arrived,
            failed=self.fail,
        )
        self._completion = Completion(
            client,
            self._target,
            requests=self._requests,
            retry_policy=retry_policy,
            completed=self._completed,
            failed=self.fail,
        )
        self._finishing = False
        self.filled_from_bytes: int | None = None  # `finish` has added zeros behind this offset
        self._info: ObjectInfo | None = None  # the object, once it is complete
        self._only: Body | None = None  # the body of an object that has one, until it is complete
        self._kept = KeptBodies(room)  # those of other objects

    @property
    def key(self) -> bytes:
        """The key of the object."""
        return self._target.key

    def copy(self, source: ObjectInfo, start: int, stop: int, *, last: bool = False) -> None:
        """Add the bytes [start, stop) of an object version of this bucket as the next ones.

        `last`: nothing will follow, so with equal parts the end need not be read. Returns when the
        bytes to read are in memory; copies by the server may still be in flight. Raises
        PreconditionFailed or NotFound when that version no longer exists, and what `write` raises;
        later calls may raise it instead. After an error the object is never created.
        """
        if not 0 <= start <= stop <= source.size_bytes:
            raise ValueError(f"bytes {start}-{stop} of {source.size_bytes}")
        with self._changed, self._turn():
            while start < stop:
                step = self._next_step(source.size_bytes, stop - start, last=last)
                if self._client.capabilities.copies_parts is False:
                    self._read(source, start, stop)
                    return
                if not step.copied:
                    self._read(source, start, start + step.size_bytes)
                elif not self._copy_part(source, start, start + step.size_bytes):
                    continue
                start += step.size_bytes

    def finish(self, size_bytes: int = 0) -> ObjectInfo:
        """Upload the rest, complete the object and return it. Later calls return the same.

        First zeros extend it to `size_bytes`. On return the object is in S3 with all bytes that
        were written. Raises AlreadyExists or PreconditionFailed when its condition was not met,
        any S3Error that retries did not help, and Interrupted when the mount goes away.
        """
        with self._changed:
            with super()._turn():
                if not self._finishing:
                    self.filled_from_bytes = self._size_bytes
                    self._gather_zeros(size_bytes)
                    while not self._take_slot():  # for all gathered bytes, zeros included
                        self._wait(LOOK_S)
                    self._finishing = True
                    if not self._multipart.begun:
                        self._only = self._buffer.body()
                        self._completion.put(self._only)
                    elif self._buffer.size_bytes:
                        self._send_gathered()
                    self._advance()
            while self._info is None:
                self._wait()
            only, self._only = self._only, None
            kept = self._kept.take()
        for body in (only, kept):
            if body is not None:
                self._scheduler.written(self._info, body)
        if kept is not None:
            self._kept.give_back(kept.size_bytes)
        return self._info

    def rename(self, key: bytes, condition: Condition) -> bool:
        """Set the object's key and condition; False if S3 knows the upload already."""
        with self._changed:
            if self._multipart.begun or self._finishing:
                return False
            target = self._target
            if self._types_follow_names:
                content_type = after_rename(target.options.content_type, target.key, key)
                target.options = replace(target.options, content_type=content_type)
            target.key, target.condition = key, condition
            return True

    def add_metadata(self, metadata: Mapping[str, str]) -> bool:
        """Add user metadata to the object; metadata of other names stays.

        Returns False if the request that carries the metadata was sent already.
        """
        with self._changed:
            if self._multipart.begun or self._finishing:
                return False
            options = self._target.options
            self._target.options = replace(options, metadata={**options.metadata, **metadata})
            return True

    def fail(self, error: Exception) -> None:
        """Give up without waiting: all waits, and all later calls, raise `error`.

        Does nothing if the upload is complete or has failed before.
        """
        with self._changed:
            if self._info is not None or self._failure is not None:
                return
            self._failure = error
            self._only = None
            self._kept.drop()
            if isinstance(error, AccessDenied):
                self._scheduler.denied()
            # Keep a CreateMultipartUpload in flight: its answer has the id to abort.
            self._requests.drop_all(but=self._multipart.created)
            self._let_go()
            self._multipart.give_up()
            self._changed.notify_all()

    def abort(self, until_s: float | None = None) -> None:
        """Give up, and wait until S3 has removed the parts, for 5 seconds or until `until_s`.

        If that fails it is logged; that is no error: the parts can be removed later.
        """
        self.fail(Interrupted("the upload was abandoned"))
        until_s = time.monotonic() + ABORT_S if until_s is None else until_s
        with self._changed:
            while not self._multipart.aborted and self._requests:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    break
                if not self._requests.drive():
                    self._changed.wait(min(left_s, self._requests.next_s()))
            if not self._multipart.aborted and self._info is None:
                log.warning("parts of an upload may remain in the bucket", key=self.key)
                self._multipart.aborted = True  # warn once only

    # --- memory and parts (lock held) ---

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with super()._turn():
            if self._finishing:
                raise UploadEnding(
                    "the file is already uploaded: no more bytes can be written",
                    "mount with --staged-writes DIR to permit it",
                )
            yield

    def _misplaced(self, error: NotSequential) -> None:
        self.fail(error)

    def _part_size(self, before_bytes: int) -> int:
        return self.equal_bytes or super()._part_size(before_bytes)

    def _next_step(self, source_bytes: int, left_bytes: int, *, last: bool) -> Step:
        """Return the next step for a range of a source."""
        gathered = self._buffer.size_bytes
        if self.equal_bytes is not None:
            return next_equal_step(
                self._limits, self.equal_bytes, gathered, source_bytes, left_bytes, last=last
            )
        before = self._size_bytes - gathered
        number = self._multipart.next_number
        return next_step(self._limits, number, before, gathered, source_bytes, left_bytes)

    def _is_on_its_way(self) -> bool:
        return self._multipart.in_flight > 0

    def _read(self, source: ObjectInfo, start: int, stop: int) -> None:
        """Read bytes of another object, and gather them."""
        reading = VersionReader(
            self._client, source, start, stop, requests=self._requests, failed=self.fail
        )
        while not reading.over:
            while reading.may_ask and self._lease.try_take(reading.next_bytes):
                reading.ask(self._retry_policy.try_s)
            if not reading.under_way and not self._is_on_its_way():
                self._lease.take(reading.next_bytes)  # one request at least, or none would arrive
                reading.ask(self._retry_policy.try_s)
            self._check()
            data = reading.pop()
            if data is None:
                self._wait()
            else:
                self._lease.give(len(data))
                self._gather(data)

    def _copy_part(self, source: ObjectInfo, start: int, stop: int) -> bool:
        """Let the server copy a part, after the gathered one; False if the server copies none."""
        if self._buffer.size_bytes:
            self._seal()
        while self._multipart.copying >= COPIES:
            self._wait()
        self._kept.drop()
        number = self._multipart.next_number
        with self._numbered():
            self._multipart.copy(source, start, stop)
        while self._multipart.copying and not self._client.capabilities.copies_parts:
            self._wait()
        self._check()
        if self._multipart.next_number == number:
            return False
        self._size_bytes += stop - start
        return True

    def _seal(self) -> None:
        """Send the gathered part, when it is its turn."""
        while not self._take_slot():
            self._wait(LOOK_S)
        self._send_gathered()
        self._check()

    def _take_slot(self) -> bool:
        """Take a slot for the gathered part. If this returns True, it must be sent."""
        size_bytes, in_flight = self._buffer.size_bytes, self._multipart.in_flight
        if size_bytes and not self._scheduler.take_slot(self, in_flight, size_bytes):
            self._requests.waited = True
            return False
        return True

    def _send_gathered(self) -> None:
        body, digest = self._buffer.body(), self._buffer.digest
        self._buffer = PartBuffer(self._checksum)
        self._kept.add(body)
        with self._numbered():
            self._multipart.send(body, digest)

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Fail the upload when there are no part numbers left."""
        try:
            yield
        except TooLarge as error:
            self.fail(error)
            raise

    # --- Owner ---

    def wants(self, request: UploadRequest[T]) -> bool:
        """See Owner."""
        return super().wants(request) or request.done != self._multipart.created

    # --- the end (lock held) ---

    def _advance(self) -> None:
        # Complete the upload when all parts have arrived.
        done = self._failure is not None or self._info is not None
        # `_requests` alone does not tell: an answer may arrive while a part is being prepared.
        if self._finishing and not done and not self._requests and self._multipart.idle:
            self._complete()

    def _complete(self) -> None:
        upload_id = self._multipart.upload_id
        assert upload_id is not None
        self._completion.complete(upload_id, self._multipart.sent(), self._size_bytes)

    def _completed(self, info: ObjectInfo) -> None:
        self._info = info
        self._multipart.forget()
        self._let_go()
