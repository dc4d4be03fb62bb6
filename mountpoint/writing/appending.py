"""One object of a directory bucket that grows: each part is there as soon as S3 has taken it.

What `--incremental-upload` needs. Bytes are gathered into parts, as in `upload`. The first part of
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

Memory is asked of the budget as in `upload`: refused, the writer waits while anything is on its
way, and gets it otherwise.

Not known here: file handles, whether a key may be overwritten, how many parts an object has
that others have begun (S3 takes 10,000 and says so).
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

from mountpoint.budget import Lease
from mountpoint.errors import (
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
from mountpoint.s3.retry import Patience
from mountpoint.writing.errands import Errand, Errands, Line
from mountpoint.writing.parts import Gathering, part_size

log = structlog.get_logger(__name__)

#: Parts that are complete and wait for the one under way. With one the line is never idle as long
#: as the program is faster; the second evens out what takes longer.
MOST_WAITING = 2
#: How long a writer that has nothing on its way waits for memory that others give back, and how
#: often it looks: as in `upload`.
PRESSED_S = 0.25
PRESSED_LOOK_S = 0.01


class Appending:
    """What is appended to the object `key`, with memory from `lease`.

    `base` is the object that is appended to, in the version that its writer knows; None for a new
    one, which then comes into being under `condition`: never under ALWAYS, or a first part that
    was given up, and arrives late, would replace what was appended since. Raises NotOffered where
    it is no directory bucket.

    Thread-safe; `_changed` guards everything and is never held while waiting for S3. Callbacks
    of futures come with it or without it: it is reentrant.
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
        line: Line["Appending"],
        patience: Patience,
    ) -> None:
        if not client.is_directory:
            raise NotOffered("only directory buckets (S3 Express One Zone) can be appended to")
        if base is None and condition == ALWAYS:
            raise ValueError("a new object needs a condition")
        # dependencies
        self._client = client
        self._lease = lease
        self._line = line
        self._patience = patience
        # constants
        self.key = key
        self._condition = condition
        self._options = options
        self._part_bytes = part_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._errands = Errands(self, line, patience)
        self._info = base  # the object with all parts that have arrived
        self._size_bytes = 0 if base is None else base.size_bytes  # with all that was written
        self._gathering = Gathering(options.checksum)
        self._waiting: deque[Body] = deque()  # parts, complete and in order
        self._failure: Exception | None = None
        self._writing = False  # somebody is in `write`, or begins to finish

    @property
    def size_bytes(self) -> int:
        """The size of the object with all that has been written."""
        return self._size_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Take the next bytes, which must begin where the last ones, or the object, ended.

        Returns when they are in memory, having waited for some if need be. Raises NotSequential
        for any other offset, which does no harm, and whatever has become of earlier parts.
        """
        with self._changed:
            self._enter()
            try:
                if offset != self._size_bytes:
                    expected = self._size_bytes
                    raise NotSequential(f"a write at {offset}, where {expected} was next")
                self._gather(data)
            finally:
                self._leave()
            return len(data)

    def finish(self) -> ObjectInfo:
        """Send all that was written until now; return the object with it. More may follow.

        Of a new object to which nothing was written this makes an empty one. Raises AlreadyExists
        or PreconditionFailed when the object is not what it was, any S3Error that retries did not
        help, Interrupted when the mount goes away.
        """
        with self._changed:
            self._enter()
            try:
                if self._gathering.size_bytes or not self._is_begun():
                    self._seal()
            finally:
                self._leave()
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

    def check(self) -> None:
        """Raise what has become of parts on their way, if that is known and bad."""
        with self._changed:
            self._check()

    def fail(self, error: Exception) -> None:
        """Give up, without waiting: all waits end with `error`, and so does what is asked later."""
        with self._changed:
            if self._failure is not None:
                return
            self._failure = error
            self._errands.drop_all(but=_nobody)
            self._gathering = Gathering(None)
            self._waiting.clear()
            self._lease.give(self._lease.held_bytes)
            self._line.closed(self)
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

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _enter(self) -> None:
        """Be the only one who adds parts."""
        self._check()
        while self._writing:
            self._wait()
        self._writing = True

    def _leave(self) -> None:
        self._writing = False
        self._changed.notify_all()

    def _is_begun(self) -> bool:
        """Whether the object is there, or on its way."""
        return self._info is not None or bool(self._errands) or bool(self._waiting)

    def _gather(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._check()
            before = self._size_bytes - self._gathering.size_bytes
            room = part_size(self._part_bytes, before) - self._gathering.size_bytes
            if room <= 0:
                self._seal()
                continue
            size = min(room, len(rest))
            self._take(size)
            self._gathering.append(data if size == len(data) else rest[:size])
            self._size_bytes += size
            rest = rest[size:]

    def _take(self, size_bytes: int) -> None:
        """Take memory for what is to be gathered; wait for it while anything is on its way."""
        patient_until_s = time.monotonic() + PRESSED_S
        while not self._lease.try_take(size_bytes):
            if self._errands:
                self._wait()
            elif self._line.busy() and time.monotonic() < patient_until_s:
                self._wait(PRESSED_LOOK_S)
            else:
                self._lease.take(size_bytes)
                return

    def _seal(self) -> None:
        """Queue the part that has been gathered; wait for a place in the queue."""
        while len(self._waiting) >= MOST_WAITING:
            self._wait()
        self._waiting.append(self._gathering.body())
        self._gathering = Gathering(self._options.checksum)
        self._send_next()
        self._check()

    # --- sending (lock held) ---

    def _send_next(self) -> None:
        """Send the next part, if none is under way."""
        if not self._waiting or self._errands or self._failure is not None:
            return
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
            self._arrived(body, self._described(before, body, written))

        def refused(error: S3Error) -> None:
            if errand.attempt or error.retryable:
                self._find_out(error, body, before)
            else:
                self.fail(self._meaning(error, before))

        errand = Errand(start, done, refused, body.size_bytes)
        if not body.size_bytes:  # as long as any other request
            errand.try_s = self._patience.try_s
        self._errands.send(errand)

    def _find_out(self, error: S3Error, body: Body, before: ObjectInfo | None) -> None:
        """Look whether an earlier try has arrived; it fails with `error` if not."""

        def done(stored: Stored) -> None:
            if self._has(stored, body, before):
                log.debug("an earlier try had arrived", key=self.key, error=str(error))
                self._arrived(body, stored.info)
            else:
                self.fail(self._meaning(error, before))

        def refused(_: S3Error) -> None:
            self.fail(self._meaning(error, before))

        start = functools.partial(self._client.describe, self.key)
        self._errands.send(Errand(start, done, refused, try_s=self._patience.try_s))

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

    def _arrived(self, body: Body, info: ObjectInfo) -> None:
        self._info = info
        self._lease.give(body.size_bytes)

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

    # --- Owner ---

    def take(self, errand: Errand, future: "Future[Any]") -> None:
        """See Owner."""
        with self._changed:
            try:
                if self._errands.take(errand, future):
                    self._send_next()
            except Exception as failure:  # nobody else would hear of it
                self.fail(failure)
            self._changed.notify_all()

    def wants(self, errand: Errand) -> bool:
        """See Owner."""
        return self._failure is None

    # --- waiting (lock held) ---

    def _wait(self, most_s: float = threading.TIMEOUT_MAX) -> None:
        """Wait until something has happened, and send again what has to be. Raises the failure."""
        self._check()
        if self._patience.stopping.is_set():
            self.fail(Interrupted("the mount is going away"))
        elif not self._errands.drive():
            self._changed.wait(min(self._errands.next_s(), most_s))
        self._check()


def _nobody(_: Any) -> None:
    """Stands for no request at all."""
