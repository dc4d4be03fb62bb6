"""One object that is written from its beginning to its end: what every way of uploading it shares.

Bytes are gathered into parts. Who writes takes turns, and returns when the bytes are in memory.
Each request is an `UploadRequest`: its answer comes on a client's thread, which notes it and gives
memory back. What failed, or has been silent for too long, is sent again by whoever waits for this
upload, as with reads: a writer that has to wait for memory, or `finish`. While nobody waits,
`drive` is called once a second.

Memory: a writer asks the budget for what it gathers. What the budget refuses goes to a temporary
file (`system/spill`) until its part has been sent. Waiting for memory could be for good, because
one program may write all files in turn. What slows a writer down that is faster than S3 is the
line: it bounds the parts in flight. Where no temporary file can be written, a writer waits for its
own parts in flight, or for a moment, and then takes the memory all the same: so uploads together
exceed the budget by no more than the part that each is gathering.

Not known here: the requests (`upload`, `append`), file handles, directories, whether a key may
be overwritten.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from mountpoint.errors import Interrupted, NotSequential
from mountpoint.s3.client import Body, ChecksumName, Condition, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.memory_budget import Lease
from mountpoint.upload.part_buffer import Gathering
from mountpoint.upload.parts import part_size
from mountpoint.upload.requests import UploadRequest, UploadRequests, UploadScheduler

#: How long a writer without parts on their way waits for memory of other uploads, where there are
#: no temporary files. A part takes 0.1 s on S3.
PRESSED_S = 0.25
#: How often a writer looks that waits for what other uploads give back: they cannot wake it.
LOOK_S = 0.01

#: Zeros are gathered in pieces of this size; all pieces are the same memory.
ZEROS = bytes(1 << 20)


class Sequential(ABC):
    """The upload of an object that has `size_bytes` already, with memory from `lease`.

    Thread-safe; `_changed` guards everything and is never held while waiting for S3. Callbacks
    of futures come with it or without it: it is reentrant.
    """

    def __init__(
        self,
        *,
        size_bytes: int,
        part_bytes: int,
        checksum: ChecksumName | None,
        lease: Lease,
        spill: Spill,
        scheduler: UploadScheduler["Sequential"],
        retry_policy: RetryPolicy,
    ) -> None:
        # dependencies
        self._lease = lease
        self._spill = spill
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        # constants
        self._checksum = checksum
        self._part_bytes = part_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._requests = UploadRequests(self, scheduler, retry_policy)
        self._size_bytes = size_bytes
        self._gathering = Gathering(checksum)
        self._pending_bytes = 0
        self._failure: Exception | None = None
        self._writing = False  # somebody adds bytes, maybe waiting

    @property
    def size_bytes(self) -> int:
        """The size of the object with all that has been written."""
        return self._size_bytes

    @property
    def pending_bytes(self) -> int:
        """How much of what was written S3 does not have yet."""
        return self._pending_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Take the next bytes, which must begin where the last ones ended.

        Returns when they are gathered, having waited for memory if need be. Raises NotSequential
        for any other offset, and what has become of earlier parts; and more, as subclasses say.
        """
        with self._changed, self._turn():
            if offset != self._size_bytes:
                expected = self._size_bytes
                error = NotSequential(f"a write at {offset}, where {expected} was next")
                self._misplaced(error)
                raise error
            self._gather(data)
            return len(data)

    def extend(self, size_bytes: int) -> None:
        """Go on with zeros until the object has this size. Raises what `write` raises."""
        with self._changed, self._turn():
            self._gather_zeros(size_bytes)

    @abstractmethod
    def finish(self, size_bytes: int = 0) -> ObjectInfo:
        """Upload what is left; return the object, which is in S3 with all that was written.

        It has at least `size_bytes`: what is missing is zeros.
        """

    @abstractmethod
    def rename(self, key: bytes, condition: Condition) -> bool:
        """Give the object another key, and condition; False if that has to be done in S3."""

    @abstractmethod
    def describe(self, metadata: Mapping[str, str]) -> bool:
        """Let the object have this user metadata, too; False if that has to be done in S3."""

    def check(self) -> None:
        """Raise what has become of parts on their way, if that is known and bad."""
        with self._changed:
            self._check()

    def drive(self) -> None:
        """Send again what has to be: once a second, for what nobody waits for."""
        with self._changed:
            try:
                while self._failure is None and self._requests.drive():
                    pass
                if self._failure is None:
                    self._advance()
            except Exception as failure:  # nobody else would hear of it
                self.fail(failure)

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Give up, without waiting: all waits end with `error`, and so does what is asked later."""

    @abstractmethod
    def abort(self, until_s: float | None = None) -> None:
        """Give up what is not there yet; nothing where all is. May wait, until `until_s` at most.

        That something could not be removed is logged and no error.
        """

    # --- Owner ---

    def take(self, request: UploadRequest, future: "Future[Any]") -> None:
        """See Owner."""
        with self._changed:
            try:
                if self._requests.take(request, future):
                    self._advance()
            except Exception as failure:  # nobody else would hear of it
                self.fail(failure)
            self._changed.notify_all()

    def wants(self, request: UploadRequest) -> bool:
        """See Owner."""
        return self._failure is None

    # --- what subclasses do (lock held) ---

    @abstractmethod
    def _seal(self) -> None:
        """Send the part that has been gathered, or queue it, when it is its turn."""

    @abstractmethod
    def _advance(self) -> None:
        """Do what comes after an answer."""

    @abstractmethod
    def _is_on_its_way(self) -> bool:
        """Whether memory will come back."""

    @abstractmethod
    def _misplaced(self, error: NotSequential) -> None:
        """Take notice of a write at a wrong offset."""

    # --- turns, memory and waiting (lock held) ---

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until nobody else writes; then others wait."""
        self._check()
        while self._writing:
            self._wait()
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _part_size(self, before_bytes: int) -> int:
        """Return how large the part becomes that begins after `before_bytes`."""
        return part_size(self._part_bytes, before_bytes)

    def _gather(self, data: bytes) -> None:
        """Gather bytes, and seal parts that are full."""
        rest = memoryview(data)
        while rest:
            self._check()
            before = self._size_bytes - self._gathering.size_bytes
            room = self._part_size(before) - self._gathering.size_bytes
            if room <= 0:
                self._seal()
                continue
            size = min(room, len(rest))
            self._keep(data if size == len(data) else rest[:size])
            self._size_bytes += size
            self._pending_bytes += size
            rest = rest[size:]

    def _gather_zeros(self, size_bytes: int) -> None:
        """Gather zeros until the object has this size (its turn)."""
        while (left := size_bytes - self._size_bytes) > 0:
            self._gather(ZEROS[:left])

    def _keep(self, data: bytes | memoryview) -> None:
        """Add bytes to the part: in memory, or in a temporary file if there is none left."""
        patient_until_s = time.monotonic() + PRESSED_S
        while not self._lease.try_take(len(data)):
            if self._gathering.spill(data, self._spill):
                return
            if self._is_on_its_way():
                self._wait()
            elif self._scheduler.busy() and time.monotonic() < patient_until_s:
                self._wait(LOOK_S)
            else:
                self._lease.take(len(data))
                break
        self._gathering.append(data)

    def _arrived(self, body: Body) -> None:
        """Give back what a body held that S3 has taken."""
        self._lease.give(body.memory_bytes)
        self._pending_bytes -= body.size_bytes
        if body.size_bytes:
            self._scheduler.leave_place(self, body.size_bytes)

    def _let_go(self) -> None:
        """Give back what an upload has that is over."""
        self._gathering = Gathering(None)
        self._lease.give(self._lease.held_bytes)
        self._pending_bytes = 0
        self._scheduler.closed(self)

    def _wait(self, most_s: float = threading.TIMEOUT_MAX) -> None:
        """Wait until something has happened, and send again what has to be. Raises the failure."""
        self._check()
        if self._retry_policy.stopping.is_set():
            self.fail(Interrupted("the mount is going away"))
        elif not self._requests.drive():
            self._changed.wait(min(self._requests.next_s(), most_s))
        self._check()
