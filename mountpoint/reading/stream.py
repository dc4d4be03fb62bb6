"""One open object's bytes: from a read to ranged GETs and back.

A read whose bytes are here is one call into `_fastpath`. Otherwise, and once for each part
that a reader reaches, the stream asks its `Window` what to fetch, takes the memory from the
budget, and issues ranged GETs for what no part covers yet, each with If-Match so that all
bytes belong to one version of the object.

The waiting reader drives everything that takes time. It wakes when its part has come, has
failed, or has been silent for too long; then it replaces the part by a new request and
waits again, until the total is used up. So a part that was fetched ahead and failed costs
nothing until somebody wants it, and there is no thread that has to notice.

A range whose bytes did not match their checksum is fetched again as it was, not only what a
reader needs of it: S3 has checksums for whole objects and for parts as they were uploaded, and
other bytes of the same place would come without one.

Parts behind the reader go when the next plan is made, and what was fetched exactly for a
random read goes as soon as that read is answered: the kernel's page cache keeps it.
"""

import threading
from typing import NoReturn

from mountpoint._fastpath import Assembly, Part, PartMap, slice_of, touch
from mountpoint.budget import Budget
from mountpoint.config import ReadConfig
from mountpoint.errors import BadHandle, ChecksumMismatch, S3Error, Stalled
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import Patience, Tries
from mountpoint.window import MIB, PAGE_BYTES, Plan, Window

Bytes = bytes | memoryview | Assembly

#: Requests in flight ahead of one reader. 8 parts of 8 MiB were best on two cores; more
#: costs fresh memory and gains nothing.
PARTS_AHEAD = 8

#: An object up to this size is fetched whole when it is opened.
WHOLE_BYTES = MIB
#: Of a larger one the head: one kernel read.
HEAD_BYTES = 128 * 1024
#: When there is no memory to fetch ahead: a program may open files by the thousand.
LEAST_BYTES = PAGE_BYTES

#: The slowest link that is not taken for a stall. The client delivers a part's bytes only
#: when all of them are there, so silence has to be allowed for as long as they may take.
SLOWEST_BYTES_PER_S = MIB


class ReadStream:
    """The bytes of `info`'s version of an object.

    Thread-safe. `_lock` guards the plan and what is issued; it is never held while waiting.
    """

    def __init__(
        self,
        client: ObjectClient,
        info: ObjectInfo,
        *,
        config: ReadConfig,
        budget: Budget,
        patience: Patience,
    ) -> None:
        # dependencies
        self._client = client
        self._config = config
        self._patience = patience
        # constants
        self._key = info.key
        self._etag = info.etag
        self._size = info.size_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._lease = budget.lease()
        self._window = Window(
            info.size_bytes,
            part_bytes=config.part_size_bytes,
            ahead_bytes=PARTS_AHEAD * config.part_size_bytes,
        )
        self._closed = False
        # The ranges that have once come with another checksum than they have.
        self._mismatched: set[tuple[int, int]] = set()
        # mutable, guarded by the GIL
        self._parts = PartMap()

    def open(self) -> ObjectInfo:
        """Fetch the head of the object and return what S3 says of it now.

        That is freshness check and first data in one round trip. Raises PreconditionFailed
        when the version is no longer the newest, NotFound when the object is gone. The
        object must not be empty.
        """
        tries = self._patience.begin()
        stop = self._size if self._size <= WHOLE_BYTES else HEAD_BYTES
        if not self._lease.try_take(stop):
            stop = min(self._size, LEAST_BYTES)
            self._lease.take(stop)
        self._window.fetched_head(stop)
        while True:
            with self._lock:
                part = self._issue(0, stop, ahead=True)
            part.wait_for_headers(self._time_for(part, tries))
            if part.info is None or part.failed:
                self._replace_failed(part, tries)
            # Also when it came just as it was being given up.
            if part.info is not None and not part.failed:
                return part.info
            self._lease.take(stop)

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the object.

        The result is a buffer that nobody changes. Raises PreconditionFailed or NotFound
        when the object was replaced or deleted, other S3Errors when S3 does not deliver
        within `timeout_s`, Interrupted when the mount goes away.
        """
        stop = min(offset + size, self._size)
        if offset >= stop:
            return b""
        view = self._parts.ready(offset, stop)
        return self._fetch(offset, stop) if view is None else view

    def close(self) -> None:
        """Cancel what is in flight and give all memory back."""
        with self._lock:
            self._closed = True
            parts = self._parts.clear()
            self._lease.give(self._lease.held_bytes)
        for part in parts:
            part.cancel()

    def _fetch(self, offset: int, stop: int) -> Bytes:
        tries = self._patience.begin()
        planned = False
        while True:
            with self._lock:
                parts = self._cover(offset, stop, plan=not planned)
            planned = True
            late = self._wait(parts, tries)
            if late is None:
                answer = slice_of(parts, offset, stop)
                with self._lock:
                    self._drop([part for part in parts if not part.ahead and part.stop <= stop])
                return answer
            self._replace_failed(late, tries)

    def _cover(self, offset: int, stop: int, *, plan: bool) -> list[Part]:
        """Return parts that cover [offset, stop), issuing what is missing (lock held)."""
        if self._closed:
            raise BadHandle("the file has been closed")
        if plan:
            todo = self._window.plan(offset, stop - offset)
            self._drop_behind(offset, stop)
            # What failed before this read came is no answer to it.
            self._drop([part for part in self._parts.covering(offset, stop) if part.failed])
        else:
            todo = Plan(offset, stop, self._config.part_size_bytes)
        first, last = min(todo.start, offset), max(todo.stop, stop)
        self._issue_mismatched(first, last)
        for start, end in self._parts.gaps(first, last):
            self._issue_range(start, end, todo.part_bytes, wanted=stop)
        parts = self._parts.covering(offset, stop)
        for part in parts:
            touch(part)
        return parts

    def _issue_mismatched(self, first: int, last: int) -> None:
        """Issue again, as they were, the mismatched ranges that [first, last) touches (lock held).

        Not as memory allows: in smaller pieces nothing could be compared.
        """
        for start, stop in self._mismatched:
            touches = start < last and first < stop
            if touches and self._parts.gaps(start, stop) == [(start, stop)]:
                self._lease.take(stop - start)
                self._issue(start, stop, ahead=True)

    def _issue_range(self, start: int, end: int, part_bytes: int, *, wanted: int) -> None:
        """Issue [start, end) in parts; beyond `wanted` only as memory allows (lock held)."""
        while start < end:
            stop = min(start + part_bytes, end)
            if start >= wanted:
                if not self._lease.try_take(stop - start):
                    return
                self._issue(start, stop, ahead=True)
            elif stop > wanted and self._lease.try_take(stop - start):
                self._issue(start, stop, ahead=True)
            else:
                stop = min(stop, wanted)
                self._lease.take(stop - start)
                self._issue(start, stop, ahead=False)
            start = stop

    def _issue(self, start: int, stop: int, *, ahead: bool) -> Part:
        """Send one ranged GET whose memory has been taken (lock held)."""
        part = Part(start, stop, self._etag, ahead=ahead)
        self._parts.insert(part)
        whole = (start, stop) == (0, self._size)
        transfer = self._client.get(self._key, start, stop, part, if_match=self._etag, whole=whole)
        part.attach(transfer)
        return part

    def _wait(self, parts: list[Part], tries: Tries) -> Part | None:
        """Wait for all; return the first that failed or has been silent for too long."""
        for part in parts:
            part.wait(self._time_for(part, tries))
            if not part.ready:
                return part
        return None

    def _time_for(self, part: Part, tries: Tries) -> float:
        """Seconds that this part may still take."""
        allowed = self._config.stall_s + (part.stop - part.start) / SLOWEST_BYTES_PER_S
        return max(min(allowed - part.age_s(), tries.left_s()), 0.0)

    def _replace_failed(self, part: Part, tries: Tries) -> None:
        """Make way for a new try of this part's range, or raise why there is none."""
        stalled = not part.failed
        part.cancel(Stalled(f"{part.stop - part.start} bytes did not come in {part.age_s():.1f} s"))
        error = part.error
        if error is None:  # it has become ready while it was being given up
            return
        with self._lock:
            self._drop([part])
            if stalled:
                self._window.slow_down()
        if not isinstance(error, S3Error):
            raise error
        if not error.retryable or not tries.again():
            self._give_up(error)

    def _give_up(self, error: S3Error) -> NoReturn:
        if error.retryable:
            error.hint = error.hint or "all retries failed; --read-timeout sets how long they go on"
        raise error

    def _drop_behind(self, offset: int, stop: int) -> None:
        """Let go of what no reader is near to any more; [offset, stop) is read now (lock held)."""
        wanted = self._parts.covering(offset, stop)
        passed = [part for part in self._parts if not self._window.keeps(part.start, part.stop)]
        passed = [part for part in passed if part not in wanted]
        # Somebody may be waiting for a part that has been touched and has not ended yet.
        passed = [part for part in passed if part.ready or part.failed or not part.touched]
        self._drop(passed)
        for part in passed:
            part.cancel()

    def _drop(self, parts: list[Part]) -> None:
        for part in parts:
            if self._parts.remove(part):
                self._lease.give(part.stop - part.start)
            if isinstance(part.error, ChecksumMismatch):
                self._mismatched.add((part.start, part.stop))
