"""One new object, written from its beginning to its end, and visible when it is complete.

Bytes are gathered into parts. Up to one part is a PUT at the end. When there is more, the first
part goes out with a CreateMultipartUpload before it, others follow while the writer goes on, and
CompleteMultipartUpload makes them one object.

What another object has already, `copy` appends: the server copies it as parts of their own, and
only what is too small to be one is read and gathered like what is written (`parts.next_step`).

Each request is an `Errand`: its answer comes on a client's thread, which notes the part and gives
its memory back. What failed, or has been silent for too long, is sent again by whoever waits for
this upload, as with reads: a writer that has to wait for memory, or `finish`. A program that
computes between two writes costs nothing, and there is no timer.

Memory: what a writer gathers is asked of the budget. If it is refused and parts are in flight,
the writer waits until they are done: that is the back-pressure. If nothing is in flight it is
granted, after a moment in which parts of other uploads may come back, or nothing ever would; so
uploads together exceed the budget by no more than the part that each is gathering.

Not known here: the requests (`multipart`, `completion`), file handles, directories, whether a key
may be overwritten.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import structlog

from mountpoint.budget import Lease
from mountpoint.errors import Interrupted, NotSequential, TooLarge
from mountpoint.s3.client import Condition, ObjectClient, ObjectInfo, PutOptions
from mountpoint.s3.retry import Patience
from mountpoint.writing.completion import Completion
from mountpoint.writing.errands import Errand, Errands, Line
from mountpoint.writing.multipart import ABORT_S, Multipart
from mountpoint.writing.parts import S3_LIMITS, Gathering, Limits, next_step, part_size
from mountpoint.writing.source import Reading

log = structlog.get_logger(__name__)

#: How long a writer that has nothing in flight waits for memory that others give back, and how
#: often it looks: none of the others knows of it. A part takes 0.1 s on S3.
PRESSED_S = 0.25
PRESSED_LOOK_S = 0.01
#: Parts that the server copies at a time for one upload; they cost neither memory nor bandwidth.
COPIES = 8


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
        limits: Limits = S3_LIMITS,
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
        self._checksum = options.checksum
        self._part_bytes = part_bytes
        self._limits = limits
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self.key = key
        self._errands = Errands(self, line, patience)
        self._multipart = Multipart(
            client,
            key,
            options,
            errands=self._errands,
            line=line,
            lease=lease,
            patience=patience,
            failed=self.fail,
        )
        self._completion = Completion(
            client,
            key,
            options,
            condition,
            errands=self._errands,
            line=line,
            patience=patience,
            completed=self._completed,
            failed=self.fail,
        )
        self._size_bytes = 0
        self._gathering = Gathering(options.checksum)
        self._finishing = False
        self._info: ObjectInfo | None = None  # what has become of it
        self._failure: Exception | None = None
        self._writing = False  # somebody is in `write` or `copy`, maybe waiting

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
        with self._changed, self._turn():
            if offset != self._size_bytes:
                expected = self._size_bytes
                error = NotSequential(f"a write at {offset}, where {expected} was next")
                self.fail(error)
                raise error
            self._gather(data)
            return len(data)

    def copy(self, source: ObjectInfo, start: int, stop: int) -> None:
        """Take the bytes [start, stop) of an object version of this bucket as the next ones.

        Returns when what is read of them is in memory; what the server copies may be under way.
        Raises PreconditionFailed or NotFound when that version is there no more, and what `write`
        raises; it may come with a later call. After an error the object will not come into being.
        """
        if not 0 <= start <= stop <= source.size_bytes:
            raise ValueError(f"bytes {start}-{stop} of {source.size_bytes}")
        with self._changed, self._turn():
            while start < stop:
                gathered = self._gathering.size_bytes
                before = self._size_bytes - gathered
                step = next_step(
                    self._limits,
                    self._multipart.next_number,
                    before,
                    gathered,
                    source.size_bytes,
                    stop - start,
                )
                if step.copied:
                    self._copy_part(source, start, start + step.size_bytes)
                else:
                    self._read(source, start, start + step.size_bytes)
                start += step.size_bytes

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
                if not self._multipart.begun:
                    self._completion.put(self._gathering.body())
                elif self._gathering.size_bytes:
                    self._send_gathered()
                self._advance()
            while self._info is None:
                self._wait()
            return self._info

    def rename(self, key: bytes, condition: Condition) -> bool:
        """Give the object another key, and condition; False if S3 knows of the upload already."""
        with self._changed:
            if self._multipart.begun or self._finishing:
                return False
            self.key = self._multipart.key = self._completion.key = key
            self._completion.condition = condition
            return True

    def describe(self, metadata: Mapping[str, str]) -> bool:
        """Let the object have this user metadata, beside what it was to have of other names.

        False if a request that says what it has was sent already.
        """
        with self._changed:
            if self._multipart.begun or self._finishing:
                return False
            self._multipart.describe(metadata)
            self._completion.describe(metadata)
            return True

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
            self._errands.drop_all(but=self._multipart.created)
            self._gathering = Gathering(None)
            self._lease.give(self._lease.held_bytes)
            self._line.closed(self)
            self._multipart.give_up()
            self._changed.notify_all()

    def abort(self, until_s: float | None = None) -> None:
        """Give up, and wait until S3 has forgotten the parts, for 5 seconds or until `until_s`.

        That it could not be done is logged and no error: the parts can be removed later.
        """
        self.fail(Interrupted("the upload was given up"))
        until_s = time.monotonic() + ABORT_S if until_s is None else until_s
        with self._changed:
            while not self._multipart.aborted and self._errands:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    break
                if not self._errands.drive():
                    self._changed.wait(min(left_s, self._errands.next_s()))
            if not self._multipart.aborted and self._info is None:
                log.warning("parts of an upload may have been left in the bucket", key=self.key)
                self._multipart.aborted = True  # nobody has to hear of it twice

    # --- memory and parts (lock held) ---

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until nobody else writes; then others wait."""
        self._check()
        while self._writing:
            self._wait()
        if self._finishing:
            raise NotSequential("the file has been uploaded already: no more can be written")
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _gather(self, data: bytes, *, taken: bool = False) -> None:
        """Gather bytes, and send parts that are full. `taken`: memory for them has been taken."""
        rest = memoryview(data)
        while rest:
            self._check()
            before = self._size_bytes - self._gathering.size_bytes
            room = part_size(self._part_bytes, before) - self._gathering.size_bytes
            if room == 0:
                self._seal()
                continue
            size = min(room, len(rest))
            if not taken:
                self._take(size)
            self._gathering.append(data if size == len(data) else rest[:size])
            self._size_bytes += size
            rest = rest[size:]

    def _read(self, source: ObjectInfo, start: int, stop: int) -> None:
        """Gather bytes of another object."""
        reading = Reading(
            self._client, source, start, stop, errands=self._errands, failed=self.fail
        )
        while not reading.over:
            if not reading.under_way:
                self._take(reading.next_bytes)
                reading.ask(self._patience.try_s)
            while reading.may_ask and self._lease.try_take(reading.next_bytes):
                reading.ask(self._patience.try_s)
            self._check()
            data = reading.pop()
            if data is None:
                self._wait()
            else:
                self._gather(data, taken=True)

    def _copy_part(self, source: ObjectInfo, start: int, stop: int) -> None:
        """Have the server copy a part, after what has been gathered."""
        if self._gathering.size_bytes:
            self._seal()
        while self._multipart.copying >= COPIES:
            self._wait()
        with self._numbered():
            self._multipart.copy(source, start, stop)
        self._size_bytes += stop - start
        self._check()

    def _take(self, size_bytes: int) -> None:
        """Take memory for what is to be gathered; wait for it while parts are in flight."""
        patient_until_s = time.monotonic() + PRESSED_S
        while not self._lease.try_take(size_bytes):
            if self._multipart.in_flight:
                self._wait()
            elif self._line.busy() and time.monotonic() < patient_until_s:
                self._wait(PRESSED_LOOK_S)
            else:
                self._lease.take(size_bytes)
                return

    def _seal(self) -> None:
        """Send the part that has been gathered, when it is its turn."""
        while not self._line.may_send(self, self._multipart.in_flight):
            self._errands.waited = True
            self._wait()
        self._send_gathered()
        self._check()

    def _send_gathered(self) -> None:
        body, digest = self._gathering.body(), self._gathering.digest
        self._gathering = Gathering(self._checksum)
        with self._numbered():
            self._multipart.send(body, digest)

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Fail when there are no more numbers for parts."""
        try:
            yield
        except TooLarge as error:
            self.fail(error)
            raise

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
        return self._failure is None or errand.done != self._multipart.created

    # --- the end (lock held) ---

    def _advance(self) -> None:
        """Complete the upload when all parts are there."""
        done = self._failure is not None or self._info is not None
        # Not only the errands: an answer may come while the next part is about to become one.
        if self._finishing and not done and not self._errands and self._multipart.idle:
            self._complete()

    def _complete(self) -> None:
        upload_id = self._multipart.upload_id
        assert upload_id is not None
        self._completion.complete(upload_id, self._multipart.sent(), self._size_bytes)

    def _completed(self, info: ObjectInfo) -> None:
        self._info = info
        self._multipart.forget()
        self._gathering = Gathering(None)
        self._lease.give(self._lease.held_bytes)
        self._line.closed(self)

    def _wait(self, most_s: float = threading.TIMEOUT_MAX) -> None:
        """Wait until something has happened, and send again what has to be. Raises the failure."""
        self._check()
        if self._patience.stopping.is_set():
            self.fail(Interrupted("the mount is going away"))
        elif not self._errands.drive():
            self._changed.wait(min(self._errands.next_s(), most_s))
        self._check()
