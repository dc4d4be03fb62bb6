"""One new object, written from its beginning to its end, and visible when it is complete.

Bytes are gathered into parts. Up to one part is a PUT at the end. When there is more, the first
part goes out with a CreateMultipartUpload before it, others follow while the writer goes on, and
CompleteMultipartUpload makes them one object.

Each request is an `Errand`: its answer comes on a client's thread, which notes the part and gives
its memory back. What failed, or has been silent for too long, is sent again by whoever waits for
this upload, as with reads: a writer that has to wait for memory, or `finish`. A program that
computes between two writes costs nothing, and there is no timer.

Memory: what a writer gathers is asked of the budget. If it is refused and parts are in flight,
the writer waits until they are done: that is the back-pressure. If nothing is in flight it is
granted, after a moment in which parts of other uploads may come back, or nothing ever would; so
uploads together exceed the budget by no more than the part that each is gathering.

A lost answer: a PUT, or the completion, that was tried before and is then refused may have been
done by an earlier try (If-None-Match fails on the object that we have just made; a completed
upload is no longer there). Then, and when tries run out, HEAD tells: if the object there has our
size and checksum, or our ETag where there are no checksums, it is ours, or just as good.

Not known here: file handles, directories, whether a key may be overwritten.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from mountpoint.budget import Lease
from mountpoint.errors import (
    AlreadyExists,
    BadAnswer,
    Interrupted,
    NoSuchUpload,
    NotOffered,
    NotSequential,
    OperationError,
    PreconditionFailed,
    S3Error,
    TooLarge,
)
from mountpoint.s3 import checksum
from mountpoint.s3.client import (
    ALWAYS,
    Body,
    Checksum,
    Condition,
    ObjectClient,
    ObjectInfo,
    PartDone,
    PutOptions,
    Stored,
    Written,
)
from mountpoint.s3.retry import Patience
from mountpoint.writing.errands import Errand, Errands, Line
from mountpoint.writing.parts import MOST_PARTS, Gathering, part_size

log = structlog.get_logger(__name__)

#: "The processing of a CompleteMultipartUpload request could take several minutes":
#: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
COMPLETE_S = 300.0
#: How long a writer that has nothing in flight waits for memory that others give back, and how
#: often it looks: none of the others knows of it. A part takes 0.1 s on S3.
PRESSED_S = 0.25
PRESSED_LOOK_S = 0.01
#: How long anyone waits for an upload to be aborted.
ABORT_S = 5.0


@dataclass(slots=True)
class Sent:
    """A part that has arrived."""

    done: PartDone
    digest: bytes
    size_bytes: int


class Upload:
    """The upload of the object `key`, with memory from `lease`.

    Thread-safe; `_changed` guards everything and is never held while waiting for S3. Callbacks
    of futures come with it or without it: it is reentrant.
    """

    def __init__(
        self,
        client: ObjectClient,
        key: bytes,
        *,
        options: PutOptions,
        condition: Condition,
        part_bytes: int,
        lease: Lease,
        line: Line["Upload"],
        patience: Patience,
    ) -> None:
        # dependencies
        self._client = client
        self._lease = lease
        self._line = line
        self._patience = patience
        # constants
        self.key = key
        self._options = options
        self._condition = condition
        self._part_bytes = part_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._errands = Errands(self, line, patience)
        self._size_bytes = 0
        self._gathering = Gathering(options.checksum)
        self._waiting_for_id: list[tuple[int, Body, bytes]] = []
        self._begun = False  # CreateMultipartUpload has been sent
        self._upload_id: str | None = None
        self._next_number = 1
        self._in_flight = 0  # parts
        self._sent: dict[int, Sent] = {}
        self._finishing = False
        self._info: ObjectInfo | None = None  # what has become of it
        self._failure: Exception | None = None
        self._writing = False  # somebody is in `write`, maybe waiting
        self._aborted = True  # nothing is pending at S3

    @property
    def size_bytes(self) -> int:
        """How much has been written."""
        return self._size_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Take the next bytes, which must begin where the last ones ended.

        Returns when they are in memory, having waited for some if need be. Raises NotSequential
        for any other offset, and after `finish`; TooLarge beyond what S3 takes; and whatever
        has become of earlier parts. After an error the object will not come into being.
        """
        with self._changed:
            self._check()
            while self._writing:
                self._wait()
            if self._finishing:
                raise NotSequential("the file has been uploaded already: no more can be written")
            if offset != self._size_bytes:
                expected = self._size_bytes
                self._give_up(NotSequential(f"a write at {offset}, where {expected} was next"))
            self._writing = True
            try:
                self._gather(data)
            finally:
                self._writing = False
                self._changed.notify_all()
            return len(data)

    def finish(self) -> ObjectInfo:
        """Upload what is left and complete the object; return it. Again: the same answer.

        When this returns the object is in S3, with the bytes that were written. Raises
        AlreadyExists or PreconditionFailed when its condition was not met, any S3Error that
        retries did not help, Interrupted when the mount goes away.
        """
        with self._changed:
            self._check()
            while self._writing:
                self._wait()
            if not self._finishing:
                self._finishing = True
                if not self._begun:
                    self._put()
                elif self._gathering.size_bytes:
                    self._send_gathered()
                self._advance()
            while self._info is None:
                self._wait()
            return self._info

    def check(self) -> None:
        """Raise what has become of parts in flight, if that is known and bad."""
        with self._changed:
            self._check()

    def fail(self, error: Exception) -> None:
        """Give up, without waiting: all waits end with `error`, and so does what is asked later.

        Nothing happens where the upload is complete, or has failed before.
        """
        with self._changed:
            if self._info is not None or self._failure is not None:
                return
            self._failure = error
            # What is being begun is waited for: its answer says what to abort.
            self._errands.drop_all(but=self._created)
            self._gathering = Gathering(None)
            self._waiting_for_id.clear()
            self._lease.give(self._lease.held_bytes)
            self._line.closed(self)
            self._abort()
            self._changed.notify_all()

    def abort(self, until_s: float | None = None) -> None:
        """Give up, and wait until S3 has forgotten the parts, for 5 seconds or until `until_s`.

        That it could not be done is logged and no error: the parts can be removed later.
        """
        self.fail(Interrupted("the upload was given up"))
        until_s = time.monotonic() + ABORT_S if until_s is None else until_s
        with self._changed:
            while not self._aborted and self._errands:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    break
                if not self._errands.drive():
                    self._changed.wait(min(left_s, self._errands.next_s()))
            if not self._aborted and self._info is None:
                log.warning("parts of an upload may have been left in the bucket", key=self.key)
                self._aborted = True  # nobody has to hear of it twice

    # --- memory and parts (lock held) ---

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _gather(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._check()
            before = self._size_bytes - self._gathering.size_bytes
            room = part_size(self._part_bytes, before) - self._gathering.size_bytes
            if room == 0:
                self._seal()
                continue
            size = min(room, len(rest))
            self._take(size)
            self._gathering.append(data if size == len(data) else rest[:size])
            self._size_bytes += size
            rest = rest[size:]

    def _give_up(self, error: OperationError) -> NoReturn:
        self.fail(error)
        raise error

    def _take(self, size_bytes: int) -> None:
        """Take memory for what is to be gathered; wait for it while parts are in flight."""
        patient_until_s = time.monotonic() + PRESSED_S
        while not self._lease.try_take(size_bytes):
            if self._in_flight:
                self._wait()
            elif self._line.busy() and time.monotonic() < patient_until_s:
                self._wait(PRESSED_LOOK_S)
            else:
                self._lease.take(size_bytes)
                return

    def _seal(self) -> None:
        """Send the part that has been gathered, when it is its turn."""
        while not self._line.may_send(self, self._in_flight):
            self._errands.waited = True
            self._wait()
        self._send_gathered()
        self._check()

    def _send_gathered(self) -> None:
        if self._next_number > MOST_PARTS:
            self._give_up(
                TooLarge(
                    f"the file has reached {MOST_PARTS} parts, which is all that S3 takes",
                    hint="a larger --write-part-size makes larger files possible",
                )
            )
        body, digest = self._gathering.body(), self._gathering.digest
        number, self._next_number = self._next_number, self._next_number + 1
        self._gathering = Gathering(self._options.checksum)
        self._in_flight += 1
        if self._upload_id is not None:
            self._send_part(number, body, digest)
            return
        self._waiting_for_id.append((number, body, digest))
        if not self._begun:
            self._begun, self._aborted = True, False
            start = functools.partial(self._client.create_upload, self.key, self._options)
            self._errands.send(
                Errand(start, self._created, self._not_created, try_s=self._patience.try_s)
            )

    def _not_created(self, error: S3Error) -> None:
        self._aborted = not error.retryable  # else it may have been: the answer was lost
        self.fail(error)

    def _created(self, upload_id: str) -> None:
        self._upload_id = upload_id
        if self._failure is not None:
            self._abort()
            return
        waiting, self._waiting_for_id = self._waiting_for_id, []
        for number, body, digest in waiting:
            self._send_part(number, body, digest)

    def _send_part(self, number: int, body: Body, digest: bytes) -> None:
        def done(written: Written) -> None:
            told = body.checksum if written.checksum else None
            self._sent[number] = Sent(PartDone(number, written.etag, told), digest, body.size_bytes)
            self._in_flight -= 1
            self._lease.give(body.size_bytes)

        assert self._upload_id is not None
        start = functools.partial(self._client.upload_part, self.key, self._upload_id, number, body)
        self._errands.send(Errand(start, done, self.fail, body.size_bytes))

    # --- Owner ---

    def take(self, errand: Errand, future: "Future[Any]") -> None:
        """See Owner."""
        with self._changed:
            try:
                if self._errands.take(errand, future):
                    self._advance()
            except Exception as failure:  # nobody else would hear of it
                self.fail(failure)
            self._changed.notify_all()

    def wants(self, errand: Errand) -> bool:
        """See Owner."""
        return self._failure is None or errand.done != self._created

    # --- the end (lock held) ---

    def _advance(self) -> None:
        """Complete the upload when all parts are there."""
        done = self._failure is not None or self._info is not None
        if self._finishing and not done and not self._errands:
            self._complete()

    def _put(self) -> None:
        body = self._gathering.body()

        def start() -> "Future[Written]":
            return self._client.put_object(self.key, body, self._options, self._asked())

        def done(written: Written) -> None:
            self._completed(self._described(written))

        def is_ours(stored: Stored) -> bool:
            return self._matches(stored, body.checksum, lambda: _md5(body))

        self._send_last(start, done, is_ours, body.size_bytes, None)

    def _complete(self) -> None:
        assert self._upload_id is not None
        sent = [self._sent[number] for number in sorted(self._sent)]
        parts = [each.done for each in sent]
        whole = None
        if self._options.checksum is not None:
            digests = [(each.digest, each.size_bytes) for each in sent]
            name = self._options.checksum
            whole = Checksum(name, checksum.of_parts(name, digests))
        upload_id = self._upload_id

        def start() -> "Future[Written]":
            return self._client.complete_upload(
                self.key,
                upload_id,
                parts,
                size_bytes=self._size_bytes,
                checksum=whole,
                condition=self._asked(),
            )

        def done(written: Written) -> None:
            self._look(self._described(written))

        def is_ours(stored: Stored) -> bool:
            return self._matches(stored, whole, lambda: _etag_of_parts(parts))

        self._send_last(start, done, is_ours, 0, COMPLETE_S)

    def _send_last(
        self,
        start: Callable[[], "Future[Written]"],
        done: Callable[[Written], None],
        is_ours: Callable[[Stored], bool],
        size_bytes: int,
        try_s: float | None,
    ) -> None:
        """Send the request that makes the object."""

        def refused(error: S3Error) -> None:
            if isinstance(error, NotOffered) and self._asked().absent:
                self._line.has_no_conditions()
                self._errands.send(errand)
            elif errand.attempt or error.retryable or isinstance(error, NoSuchUpload):
                self._find_out(error, is_ours)
            else:
                self.fail(self._meaning(error))

        errand = Errand(start, done, refused, size_bytes, try_s)
        self._errands.send(errand)

    def _find_out(self, error: S3Error, is_ours: Callable[[Stored], bool]) -> None:
        """Look whether an earlier try has made the object; it fails with `error` if not."""

        def done(stored: Stored) -> None:
            if is_ours(stored):
                log.debug("an earlier try had been done", key=self.key, error=str(error))
                self._completed(stored.info)
            else:
                self.fail(self._meaning(error))

        def refused(_: S3Error) -> None:
            self.fail(self._meaning(error))

        start = functools.partial(self._client.describe, self.key)
        self._errands.send(Errand(start, done, refused, try_s=self._patience.try_s))

    def _look(self, told: ObjectInfo) -> None:
        """Ask how large the object has become and how old: of parts S3 tells the day they began."""

        def done(info: ObjectInfo) -> None:
            if info.etag != told.etag:  # somebody else has replaced it since
                self._completed(told)
            elif info.size_bytes != self._size_bytes:
                self.fail(BadAnswer(f"{self._size_bytes} bytes became {info.size_bytes}"))
            else:
                self._completed(info)

        def refused(_: S3Error) -> None:
            self._completed(told)  # complete is complete

        start = functools.partial(self._client.head, self.key)
        self._errands.send(Errand(start, done, refused, try_s=self._patience.try_s))

    def _completed(self, info: ObjectInfo) -> None:
        self._info = info
        self._aborted = True
        self._gathering = Gathering(None)
        self._sent.clear()
        self._lease.give(self._lease.held_bytes)
        self._line.closed(self)

    def _asked(self) -> Condition:
        """The condition, as far as the server knows any."""
        if self._condition.absent and not self._line.knows_conditions():
            return ALWAYS
        return self._condition

    def _meaning(self, error: S3Error) -> S3Error:
        """What the refusal of a write means to who wanted to create, not to replace."""
        if type(error) is not PreconditionFailed or not self._condition.absent:
            return error
        return AlreadyExists(
            "somebody else has created the object meanwhile",
            code=error.code,
            status=error.status,
            request_id=error.request_id,
        )

    def _described(self, written: Written) -> ObjectInfo:
        date_ns = written.date_ns or int(time.time()) * 1_000_000_000
        storage_class = self._options.storage_class or "STANDARD"
        return ObjectInfo(self.key, self._size_bytes, date_ns, written.etag, storage_class)

    def _matches(self, stored: Stored, expected: Checksum | None, etag: Callable[[], str]) -> bool:
        """Whether what is stored is what was written; by the ETag where there is no checksum."""
        if stored.info.size_bytes != self._size_bytes:
            return False
        told = stored.checksums.get(expected.name) if expected is not None else None
        if expected is not None and told:
            return told.partition("-")[0] == expected.value.partition("-")[0]
        return stored.info.etag.strip('"') == etag()

    def _abort(self) -> None:
        """Have the parts removed, if there are any and their upload is known."""
        if self._upload_id is None or self._aborted:
            return

        def done(_: None) -> None:
            self._aborted = True

        def refused(error: S3Error) -> None:
            self._aborted = isinstance(error, NoSuchUpload)

        start = functools.partial(self._client.abort_upload, self.key, self._upload_id)
        self._errands.send(Errand(start, done, refused, try_s=min(self._patience.try_s, ABORT_S)))

    def _wait(self, most_s: float = threading.TIMEOUT_MAX) -> None:
        """Wait until something has happened, and send again what has to be. Raises the failure."""
        self._check()
        if self._patience.stopping.is_set():
            self.fail(Interrupted("the mount is going away"))
        elif not self._errands.drive():
            self._changed.wait(min(self._errands.next_s(), most_s))
        self._check()


def _md5(body: Body) -> str:
    hashed = hashlib.md5(usedforsecurity=False)
    for piece in body.pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def _etag_of_parts(parts: list[PartDone]) -> str:
    """Return the ETag that S3 gives an object of these parts; "" if they have others' ETags."""
    try:
        own = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(own, usedforsecurity=False).hexdigest()}-{len(parts)}"
