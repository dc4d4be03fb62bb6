"""Pass bytes from the client to the kernel: parts, waiting for them, replies without a copy.

The client delivers the body of one ranged GET into one `Part`, from its own threads and with the
GIL. A `PartMap` keeps a stream's parts in order. If a read's bytes are there, it gets a memoryview
of the memory that the client delivered, and llfuse replies from it with the GIL released. Only a
read that spans parts is copied, into an `Assembly`. Its memory comes from a small pool and returns
there once the reply is sent.

The GIL guards everything here except a part's arrival (`native._arrivals`): threads wait for it, and
the native plane ends it, without the GIL.

Other modules decide which ranges to fetch (`mountpoint.read.readahead`) and when to give up
(`mountpoint.read.stream`), and send the requests (`mountpoint.s3`).
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memcpy

from mountpoint.native._arrivals cimport (
    FAILED,
    PENDING,
    READY,
    Arrival,
    describe,
    end,
    overtake,
    serve,
    wait_for,
)
from mountpoint.native._blocks cimport BlockView, view_of
from mountpoint.native._lane cimport (
    Lane,
    lane_clear,
    lane_forget_whole,
    lane_insert,
    lane_note,
    lane_remove,
    lane_take_waits,
    new_lane,
)
from mountpoint.native._sync cimport now_s

import time

from mountpoint.errors import REPLACED, BadAnswer, Interrupted, PreconditionFailed, S3Error

# The pause while another thread has sent a request whose object it has not received yet.
cdef double UNATTACHED_S = 0.001


@cython.final
cdef class Part(Arrival):
    """One ranged GET: the range [start, stop) of an object, in bytes, as it arrives.

    It is the `BodySink` of its request. It fails if bytes are out of order, too many, too few, or
    of another version than `etag`; a reader never sees them. Once all bytes are there, `sums` is
    the result of `summing`.

    On the native plane the bytes arrive without the interpreter (`native`): then the state changes
    at any time, and `settled` follows.
    """

    def __cinit__(self, long long start, long long stop, str etag, *, bint ahead=False,
    summing=None):
        if not 0 <= start < stop:
            raise ValueError(f"not a range: [{start}, {stop})")
        self.start = start
        self.stop = stop
        self.etag = etag
        self.ahead = ahead
        self.summing = summing
        self.issued_at_s = now_s()

    # --- the client's side (BodySink) ---

    def on_headers(self, info):
        """Receive the object's description; another version than `etag` fails the part."""
        if self.arrival.state != PENDING:
            return
        self.described = info
        if info.etag != self.etag:
            self.fail(PreconditionFailed(REPLACED))
        else:
            describe(self.arrival)

    def on_body(self, bytes chunk not None, long long offset, **_):
        """Receive the next bytes. Bytes after the end are dropped."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
        if self.arrival.state != PENDING:
            return
        if offset != self.start + self.received or offset + size > self.stop:
            self.fail(BadAnswer(
                f"bytes {offset}-{offset + size} arrived instead of "
                f"{self.start + self.received}-{self.stop}"
            ))
            return
        self.received += size
        if self.content is None:
            self.content = chunk
        else:
            if self.chunks is None:
                self.chunks = [self.content]
            self.chunks.append(chunk)

    def finish(self, error):
        """Receive the end of the answer. Missing headers or bytes are an error."""
        # Client, request, callback and part refer to each other: without this, no body is freed.
        self.transfer = None
        self.finished = True
        primary = self.primary
        self.primary = None
        if self.arrival.state != PENDING:
            return
        if error is not None:
            self.fail(error)
            return
        if self.received != self.stop - self.start:
            self.fail(BadAnswer(
                f"{self.received} bytes instead of {self.stop - self.start}"
            ))
            return
        if self.described is None:
            self.fail(BadAnswer("bytes without headers: the version is unknown"))
            return
        if self.chunks is not None:
            data = b"".join(self.chunks)
            if self.arrival.state != PENDING:  # joining many bytes lets other threads run
                return
            self.content = data
            self.chunks = None
        if self.summing is not None:
            sums = self.summing(self.content)
            if self.arrival.state != PENDING:  # and so does `summing`
                return
            self.sums = sums
        end(self.arrival, READY, NULL)
        if primary is not None:
            (<Part>primary)._take_over(self)

    def settled(self, error):
        """Learn how the request has ended on the native plane; `error` None: READY."""
        cdef Part primary = self.primary
        self.primary = None
        self.transfer = None
        self.finished = True
        if error is not None:
            self.fail(error)
            if self.failure is None and self.arrival.state == FAILED:  # natively
                self.failure = error
        elif primary is not None and primary.arrival.overtaken:
            primary.native = self.native
            primary._cancel_transfer()

    # --- the reader's side ---

    def attach(self, transfer):
        """Set the request, for cancelling it. It may have ended already."""
        if hasattr(transfer, "settle"):
            self.native = transfer
        if self.finished:
            return
        self.transfer = transfer
        if self.arrival.state == FAILED:
            transfer.cancel()

    def fail(self, error):
        """End the part with `error` unless it has ended, and wake all waiting threads."""
        # No other thread of Python runs between these lines, so it sees both or neither.
        if end(self.arrival, FAILED, NULL):
            self.failure = error
            self.content = None
            self.chunks = None

    def serve(self, Part primary not None):
        """Become a second request for the bytes of `primary`: the first one to be ready counts."""
        if primary.start != self.start or primary.stop != self.stop:
            raise ValueError("not the same range")
        if primary.etag != self.etag:
            raise ValueError("not the same version")
        self.primary = primary
        serve(self.arrival, primary.arrival)

    def claim_hedge(self):
        """Return True to the first caller, which may then send a second request."""
        first = not self.hedged
        self.hedged = True
        return first

    def claim_note(self):
        """Return True to the first caller, which then records the duration."""
        first = not self.noted
        self.noted = True
        return first

    def cancel(self, error=None):
        """Cancel the request if it has not ended."""
        if self.arrival.state == PENDING:
            self.fail(error if error is not None else Interrupted("cancelled"))
        self._cancel_transfer()

    def wait(self, double timeout_s):
        """Wait up to `timeout_s` seconds for the end; True if it has ended. Releases the GIL."""
        return self._wait(False, timeout_s)

    def wait_for_headers(self, double timeout_s):
        """Wait like `wait`, for the headers or the end; True if either is there."""
        return self._wait(True, timeout_s)

    @property
    def ready(self):
        return self.arrival.state == READY

    @property
    def failed(self):
        return self.arrival.state == FAILED

    @property
    def overtaken(self):
        """Whether the second request delivered the bytes."""
        return self.arrival.overtaken

    @property
    def error(self):
        """The reason for a failure; None if it has not failed."""
        if self.failure is None and self.arrival.state == FAILED and self.native is not None:
            self.native.settle()
        return self.failure

    @property
    def info(self):
        """The object's description by the headers; None before they are here."""
        if (
            self.described is None and self.native is not None
            and self.arrival.described and self.arrival.state != FAILED
            # Until the second request is settled, the headers of the first may be arriving.
            and not (self.arrival.overtaken and self.transfer is not None)
        ):
            try:
                info = self.native.info()
            except S3Error as error:
                self.fail(error)
                return None
            self.described = info
            if info.etag != self.etag:
                self.fail(PreconditionFailed(REPLACED))
        return self.described

    @property
    def data(self):
        """The whole range, once ready; None before."""
        return self._buffer()

    def age_s(self):
        """Seconds since the request was sent."""
        return now_s() - self.issued_at_s

    def duration_s(self):
        """Seconds from the request to the end, or until now if it has not ended."""
        ended_at_s = now_s() if self.arrival.state == PENDING else self.arrival.ended_at_s
        return ended_at_s - self.issued_at_s

    cdef void _take_over(self, Part other):
        """Take the bytes of the second request, and cancel the first."""
        if self.arrival.state != PENDING:
            return
        self.described = other.described
        self.content = other.content
        self.chunks = None
        overtake(self.arrival, NULL)
        self._cancel_transfer()

    def _cancel_transfer(self):
        transfer = self.transfer
        self.transfer = None
        if transfer is not None:
            transfer.cancel()

    def _wait(self, bint for_headers, double timeout_s):
        cdef double until_s = now_s() + timeout_s
        cdef bint done
        while True:
            with nogil:
                done = wait_for(self.arrival, for_headers, timeout_s)
            if not done or self.arrival.state != PENDING or not self.arrival.in_doubt:
                return done
            if self.native is not None:
                self.native.settle()
                return True
            time.sleep(UNATTACHED_S)
            timeout_s = until_s - now_s()

    cdef object _buffer(self):
        # A part that the cache has delivered may have the first bytes of S3's answer as well.
        if (
            self.arrival.state == READY and self.arrival.block != NULL
            and not isinstance(self.content, BlockView)
        ):
            self.content = view_of(self.arrival.block, self.stop - self.start)
        return self.content

    cdef const char* _memory(self):
        """Return the first byte of a ready part."""
        if self.arrival.block != NULL:
            return self.arrival.block.bytes
        return PyBytes_AS_STRING(self.content)

    cdef object _view(self, long long offset, long long stop):
        return memoryview(self._buffer())[offset - self.start:stop - self.start]


@cython.final
cdef class PartMap(Lane):
    """A stream's parts by position. They never overlap. Those that readers have reached are in its
    lane, too. `size_bytes` is the object's size."""

    def __cinit__(self, long long size_bytes):
        self.parts = []
        self.lane = new_lane(size_bytes)
        if self.lane == NULL:
            raise MemoryError()

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        return iter(list(self.parts))

    def ready(self, long long offset, long long stop):
        """Return a view of [offset, stop) if a single part holds it and a reader has reached it.

        None otherwise, including the first read from a part that was fetched ahead: so the caller
        plans once per part and not once per read.
        """
        cdef Part part
        for part in self.parts:
            if part.start <= offset < part.stop:
                if part.arrival.state == READY and part.touched and stop <= part.stop:
                    lane_note(self.lane, stop, stop - offset, False)
                    return part._view(offset, stop)
                return None
            if part.start > offset:
                return None
        return None

    @property
    def hit_stop(self):
        """The end of the last read whose bytes were here."""
        return self.lane.hit_stop

    @property
    def read_bytes(self):
        """All bytes read."""
        return self.lane.read_bytes

    def note_read(self, long long size):
        """Count bytes that were not here when a read came."""
        lane_note(self.lane, -1, size, False)

    def take_waits(self):
        """Return the number of reads in the lane that waited since the last call."""
        return lane_take_waits(self.lane)

    def touch(self, Part part not None):
        """Record that a reader has reached this part."""
        if not part.touched:
            part.touched = True
            lane_insert(self.lane, part.start, part.stop, part.arrival)

    def covering(self, long long start, long long stop):
        """Return the parts that overlap [start, stop), in order."""
        cdef Part part
        return [part for part in self.parts if part.start < stop and start < part.stop]

    def gaps(self, long long start, long long stop):
        """Return the half-open ranges within [start, stop) that no part covers."""
        cdef Part part
        cdef list found = []
        for part in self.parts:
            if part.stop <= start:
                continue
            if part.start >= stop:
                break
            if part.start > start:
                found.append((start, part.start))
            start = part.stop
        if start < stop:
            found.append((start, stop))
        return found

    def insert(self, Part part not None):
        """Add a part. Raises ValueError if it overlaps another one."""
        cdef Part other
        cdef Py_ssize_t index = 0
        for other in self.parts:
            if other.start < part.stop and part.start < other.stop:
                raise ValueError(
                    f"[{part.start}, {part.stop}) overlaps [{other.start}, {other.stop})"
                )
            if other.start < part.start:
                index += 1
        self.parts.insert(index, part)

    def remove(self, Part part not None):
        """Remove exactly this part; False if it is not there."""
        cdef Py_ssize_t index
        for index in range(len(self.parts)):
            if self.parts[index] is part:
                del self.parts[index]
                if part.touched:
                    lane_remove(self.lane, part.start)
                return True
        return False

    def clear(self):
        """Remove all parts and return them. The lane fetches nothing more itself."""
        parts = self.parts
        self.parts = []
        lane_clear(self.lane)
        lane_forget_whole(self.lane)
        self.take_random()
        return parts


def slice_of(list parts not None, long long offset, long long stop):
    """Return [offset, stop) from ready parts that cover it: a view, or an `Assembly`.

    Raises ValueError if they do not cover it.
    """
    cdef Part part
    cdef Assembly assembly
    cdef long long position = offset
    cdef long long upto
    for part in parts:
        if part.arrival.state != READY or not part.start <= position < part.stop:
            raise ValueError(f"no ready part at {position}")
        position = min(stop, part.stop)
        if position == stop:
            break
    if position != stop:
        raise ValueError(f"no ready part at {position}")
    part = parts[0]
    if stop <= part.stop:
        return part._view(offset, stop)
    assembly = Assembly(stop - offset)
    position = offset
    for part in parts:
        upto = min(stop, part.stop)
        memcpy(
            assembly.memory + (position - offset),
            part._memory() + (position - part.start),
            upto - position,
        )
        position = upto
        if position == stop:
            break
    return assembly


# Memory of released assemblies, for reuse: at most POOL_SIZE blocks of PIECE bytes, the largest
# read that the kernel sends. New memory of this size causes a page fault per 4 KiB.
cdef enum:
    PIECE = 1 << 20
    POOL_SIZE = 8

cdef void* pool[POOL_SIZE]
cdef int pooled = 0


@cython.final
cdef class Assembly:
    """A read-only buffer assembled from several parts."""

    def __cinit__(self, Py_ssize_t size):
        global pooled
        if size <= 0:
            raise ValueError("an assembly is not empty")
        self.size = size
        if size <= PIECE and pooled > 0:
            pooled -= 1
            self.memory = <char*>pool[pooled]
            self.capacity = PIECE
            return
        self.capacity = PIECE if size <= PIECE else size
        self.memory = <char*>PyMem_RawMalloc(self.capacity)
        if self.memory == NULL:
            raise MemoryError()

    def __dealloc__(self):
        global pooled
        if self.memory == NULL:
            return
        if self.capacity == PIECE and pooled < POOL_SIZE:
            pool[pooled] = self.memory
            pooled += 1
        else:
            PyMem_RawFree(self.memory)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.memory, self.size, True, flags)
