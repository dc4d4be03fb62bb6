"""The base class of uploads: one object, written in order from its beginning to its end.

Bytes are gathered into parts. Writers take turns, and return when their bytes are in memory. Each
request is an `UploadRequest`: its answer arrives on a client's thread, which records it and frees
memory. As with reads, a request that has failed or is silent for too long is sent again by a thread
that waits for the upload: a writer that waits for memory, or `finish`. While no thread waits,
`drive` is called once a second.

Memory: a writer asks the budget for the bytes that it gathers. If the budget refuses, they go to a
temporary file (`system/spill`) until their part has been sent. Waiting for memory instead could
last forever, because one program may write several files in turn. The scheduler slows down a writer
that is faster than S3: it bounds the parts in flight. Where no temporary file can be written, a
writer waits for its own parts in flight, or briefly, and then takes the memory all the same. So all
uploads together exceed the budget by at most the part that each of them gathers.

Not known here: the requests (`upload`, `append`), file handles, directories, and whether a key may
be overwritten.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from mountpoint.errors import Interrupted, NotSequential
from mountpoint.s3.client import Body, ChecksumName, Condition, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.memory_budget import Lease
from mountpoint.upload.part_buffer import PartBuffer
from mountpoint.upload.parts import part_size
from mountpoint.upload.requests import T, UploadRequest, UploadRequests, UploadScheduler

#: How long a writer without parts in flight waits for memory of other uploads, where there are no
#: temporary files. S3 takes 0.1 s for a part.
PRESSED_S = 0.25
#: How often a writer checks for memory or slots of other uploads, which cannot wake it.
LOOK_S = 0.01

#: Zeros are gathered in pieces of this size; all pieces are the same memory.
ZEROS = bytes(1 << 20)


class SequentialUpload(ABC):
    """An upload to an object that already has `size_bytes`, with memory from `lease`.

    Thread-safe. `_changed` guards everything and is never held while waiting for S3. It is
    reentrant, because futures call back with or without it.
    """

    def __init__(
        self,
        *,
        size_bytes: int,
        part_bytes: int,
        checksum: ChecksumName | None,
        lease: Lease,
        spill: Spill,
        scheduler: UploadScheduler["SequentialUpload"],
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
        self._buffer = PartBuffer(checksum)
        self._pending_bytes = 0
        self._failure: Exception | None = None
        self._writing = False  # a thread is adding bytes, or waits to

    @property
    def size_bytes(self) -> int:
        """The size of the object with all bytes that were written."""
        return self._size_bytes

    @property
    def pending_bytes(self) -> int:
        """How many of the written bytes S3 does not have yet."""
        return self._pending_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Write the next bytes, which must begin where the last ones ended.

        Returns when they are gathered, after waiting for memory if necessary. Raises NotSequential
        for another offset, and errors of earlier parts. Subclasses may raise more.
        """
        with self._changed, self._turn():
            if offset != self._size_bytes:
                expected = self._size_bytes
                error = NotSequential(
                    f"a write at {offset}, but the next byte to write is {expected}"
                )
                self._misplaced(error)
                raise error
            self._gather(data)
            return len(data)

    def extend(self, size_bytes: int) -> None:
        """Add zeros until the object has this size. Raises what `write` raises."""
        with self._changed, self._turn():
            self._gather_zeros(size_bytes)

    @abstractmethod
    def finish(self, size_bytes: int = 0) -> ObjectInfo:
        """Upload the rest; return the object, which then has all bytes that were written.

        Zeros are added first until it has at least `size_bytes`.
        """

    @abstractmethod
    def rename(self, key: bytes, condition: Condition) -> bool:
        """Set the object's key and condition; False if the caller has to rename it in S3."""

    @abstractmethod
    def add_metadata(self, metadata: Mapping[str, str]) -> bool:
        """Add user metadata to the object; False if the caller has to do that in S3."""

    def check(self) -> None:
        """Raise the error that the upload has failed with, if any."""
        with self._changed:
            self._check()

    def drive(self) -> None:
        """Send due requests again. Called once a second, for uploads without a waiting thread."""
        with self._changed:
            try:
                while self._failure is None and self._requests.drive():
                    pass
                if self._failure is None:
                    self._advance()
            except Exception as failure:  # no other thread would learn of it
                self.fail(failure)

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Give up without waiting: all waits, and all later calls, raise `error`."""

    @abstractmethod
    def abort(self, until_s: float | None = None) -> None:
        """Discard an incomplete upload; a complete one stays. Waits until `until_s` at most.

        Parts that could not be removed are logged; that is no error.
        """

    # --- Owner ---

    def take(self, request: UploadRequest[T], future: "Future[T]") -> None:
        """See Owner."""
        with self._changed:
            try:
                if self._requests.take(request, future):
                    self._advance()
            except Exception as failure:  # no other thread would learn of it
                self.fail(failure)
            self._changed.notify_all()

    def wants(self, request: UploadRequest[T]) -> bool:
        """See Owner."""
        return self._failure is None

    # --- what subclasses do (lock held) ---

    @abstractmethod
    def _seal(self) -> None:
        """Send the gathered part, or queue it, when it is its turn."""

    @abstractmethod
    def _advance(self) -> None:
        """Continue after an answer has arrived."""

    @abstractmethod
    def _is_on_its_way(self) -> bool:
        """Whether parts are in flight, so that memory will be released."""

    @abstractmethod
    def _misplaced(self, error: NotSequential) -> None:
        """Handle a write at a wrong offset."""

    # --- turns, memory and waiting (lock held) ---

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other thread writes, then make others wait."""
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
        """Return the size of the part that begins after `before_bytes`."""
        return part_size(self._part_bytes, before_bytes)

    def _gather(self, data: bytes) -> None:
        """Gather bytes, and seal full parts."""
        rest = memoryview(data)
        while rest:
            self._check()
            before = self._size_bytes - self._buffer.size_bytes
            room = self._part_size(before) - self._buffer.size_bytes
            if room <= 0:
                self._seal()
                continue
            size = min(room, len(rest))
            self._keep(data if size == len(data) else rest[:size])
            self._size_bytes += size
            self._pending_bytes += size
            rest = rest[size:]

    def _gather_zeros(self, size_bytes: int) -> None:
        """Gather zeros until the object has this size. The caller has the turn."""
        while (left := size_bytes - self._size_bytes) > 0:
            self._gather(ZEROS[:left])

    def _keep(self, data: bytes | memoryview) -> None:
        """Add bytes to the part: in memory, or in a temporary file if no memory is left."""
        patient_until_s = time.monotonic() + PRESSED_S
        while not self._lease.try_take(len(data)):
            if self._buffer.spill(data, self._spill):
                return
            if self._is_on_its_way():
                self._wait()
            elif self._scheduler.busy() and time.monotonic() < patient_until_s:
                self._wait(LOOK_S)
            else:
                self._lease.take(len(data))
                break
        self._buffer.append(data)

    def _arrived(self, body: Body) -> None:
        """Release what a body held, after S3 has accepted it."""
        self._lease.give(body.memory_bytes)
        self._pending_bytes -= body.size_bytes
        if body.size_bytes:
            self._scheduler.release_slot(self, body.size_bytes)

    def _let_go(self) -> None:
        """Release all that a finished upload holds."""
        self._buffer = PartBuffer(None)
        self._lease.give(self._lease.held_bytes)
        self._pending_bytes = 0
        self._scheduler.closed(self)

    def _wait(self, max_s: float = threading.TIMEOUT_MAX) -> None:
        """Wait for a change, and send due requests again. Raises the upload's failure."""
        self._check()
        if self._retry_policy.stopping.is_set():
            self.fail(Interrupted("the mount is ending"))
        elif not self._requests.drive():
            self._changed.wait(min(self._requests.next_s(), max_s))
        self._check()
