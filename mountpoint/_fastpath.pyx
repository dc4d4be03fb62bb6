"""Pass bytes from the client to the kernel: parts, waiting for them, replies without a copy.

The client delivers the body of one ranged GET into one `Part`, from its own threads and with the
GIL. A `PartMap` keeps a stream's parts in order. If a read's bytes are there, it gets a memoryview
of the memory that the client delivered, and llfuse replies from it with the GIL released. Only a
read that spans parts is copied, into an `Assembly`. Its memory comes from a small pool and returns
there once the reply is sent.

The GIL guards everything here except a part's `state` and `described`. Waiting threads read these
without the GIL; the part's own mutex guards them.

Other modules decide which ranges to fetch (`mountpoint.read.readahead`) and when to give up
(`mountpoint.read.stream`), and send the requests (`mountpoint.s3`).
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from mountpoint.errors import BadAnswer, Interrupted, PreconditionFailed

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, timespec*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_destroy(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)

cdef enum:
    PENDING = 0
    READY = 1
    FAILED = 2

# The longest single wait in seconds: no wait is unbounded, even if the caller wants that.
cdef double MAX_WAIT_S = 3600.0


cdef double now_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


@cython.final
cdef class Part:
    """One ranged GET: the range [start, stop) of an object, in bytes, as it arrives.

    It is the `BodySink` of its request. It fails if bytes are out of order, too many, too few, or
    of another version than `etag`; a reader never sees them. Once all bytes are there, `sums` is
    the result of `summing`.
    """

    def __cinit__(self, long long start, long long stop, str etag, *, bint ahead=False,
    summing=None):
        cdef pthread_condattr_t attributes
        if not 0 <= start < stop:
            raise ValueError(f"not a range: [{start}, {stop})")
        self.start = start
        self.stop = stop
        self.etag = etag
        self.ahead = ahead
        self.summing = summing
        self.issued_at_s = now_s()
        pthread_mutex_init(&self.mutex, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.changed, &attributes)
        pthread_condattr_destroy(&attributes)

    def __dealloc__(self):
        pthread_cond_destroy(&self.changed)
        pthread_mutex_destroy(&self.mutex)

    # --- the client's side (BodySink) ---

    def on_headers(self, info):
        """Receive the object's description; another version than `etag` fails the part."""
        if self.state != PENDING:
            return
        self.info = info
        if info.etag != self.etag:
            self.fail(PreconditionFailed("the object was replaced while it was being read"))
        else:
            self._set(PENDING, True)

    def on_body(self, bytes chunk not None, long long offset, **_):
        """Receive the next bytes. Bytes after the end are dropped."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
        if self.state != PENDING:
            return
        if offset != self.start + self.received or offset + size > self.stop:
            self.fail(BadAnswer(
                f"bytes {offset}-{offset + size} arrived instead of "
                f"{self.start + self.received}-{self.stop}"
            ))
            return
        self.received += size
        if self.data is None:
            self.data = chunk
        else:
            if self.chunks is None:
                self.chunks = [self.data]
            self.chunks.append(chunk)

    def finish(self, error):
        """Receive the end of the answer. Missing headers or bytes are an error."""
        # Client, request, callback and part refer to each other: without this, no body is freed.
        self.transfer = None
        self.finished = True
        primary = self.primary
        self.primary = None
        if self.state != PENDING:
            return
        if error is not None:
            self.fail(error)
            return
        if self.received != self.stop - self.start:
            self.fail(BadAnswer(
                f"{self.received} bytes instead of {self.stop - self.start}"
            ))
            return
        if self.info is None:
            self.fail(BadAnswer("bytes without headers: the version is unknown"))
            return
        if self.chunks is not None:
            data = b"".join(self.chunks)
            if self.state != PENDING:  # joining many bytes lets other threads run
                return
            self.data = data
            self.chunks = None
        if self.summing is not None:
            sums = self.summing(self.data)
            if self.state != PENDING:  # and so does `summing`
                return
            self.sums = sums
        self._end(READY)
        if primary is not None:
            (<Part>primary)._take_over(self)

    # --- the reader's side ---

    def attach(self, transfer):
        """Set the request, for cancelling it. It may have ended already."""
        if self.finished:
            return
        self.transfer = transfer
        if self.state == FAILED:
            transfer.cancel()

    def fail(self, error):
        """End the part with `error` unless it has ended, and wake all waiting threads."""
        if self.state != PENDING:
            return
        self.error = error
        self.data = None
        self.chunks = None
        self._end(FAILED)

    def serve(self, Part primary not None):
        """Become a second request for the bytes of `primary`: the first one to be ready counts."""
        if primary.start != self.start or primary.stop != self.stop:
            raise ValueError("not the same range")
        if primary.etag != self.etag:
            raise ValueError("not the same version")
        self.primary = primary

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
        transfer = self.transfer
        self.transfer = None
        self.fail(error if error is not None else Interrupted("cancelled"))
        if transfer is not None:
            transfer.cancel()

    def wait(self, double timeout_s):
        """Wait up to `timeout_s` seconds for the end; True if it has ended. Releases the GIL."""
        return self._wait(False, timeout_s)

    def wait_for_headers(self, double timeout_s):
        """Wait like `wait`, for the headers or the end; True if either is there."""
        return self._wait(True, timeout_s)

    @property
    def ready(self):
        return self.state == READY

    @property
    def failed(self):
        return self.state == FAILED

    def age_s(self):
        """Seconds since the request was sent."""
        return now_s() - self.issued_at_s

    def duration_s(self):
        """Seconds from the request to the end, or until now if it has not ended."""
        return (now_s() if self.state == PENDING else self.ended_at_s) - self.issued_at_s

    cdef void _take_over(self, Part other):
        """Take the bytes of the second request, and cancel the first."""
        if self.state != PENDING:
            return
        self.info = other.info
        self.data = other.data
        self.chunks = None
        self.overtaken = True
        transfer = self.transfer
        self.transfer = None
        self._end(READY)
        if transfer is not None:
            transfer.cancel()

    cdef void _end(self, int state) noexcept:
        self.ended_at_s = now_s()
        self._set(state, True)

    cdef void _set(self, int state, bint described) noexcept:
        pthread_mutex_lock(&self.mutex)
        self.state = state
        self.described = described
        # Headers must not wake threads that wait for the end.
        if state != PENDING or self.want_headers > 0:
            pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)

    cdef bint _wait(self, bint for_headers, double timeout_s) noexcept:
        cdef timespec until
        cdef double until_s = now_s() + min(max(timeout_s, 0.0), MAX_WAIT_S)
        cdef bint done
        until.tv_sec = <long>until_s
        until.tv_nsec = <long>((until_s - until.tv_sec) * 1e9)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            self.want_headers += for_headers
            while True:
                done = self.described if for_headers else self.state != PENDING
                # Any error of timedwait ends the wait: the only possible one is a timeout.
                if done or pthread_cond_timedwait(&self.changed, &self.mutex, &until) != 0:
                    break
            done = self.described if for_headers else self.state != PENDING
            self.want_headers -= for_headers
            pthread_mutex_unlock(&self.mutex)
        return done

    cdef object _view(self, long long offset, long long stop):
        return memoryview(self.data)[offset - self.start:stop - self.start]


@cython.final
cdef class PartMap:
    """A stream's parts by position. They never overlap."""

    def __cinit__(self):
        self.parts = []

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
                if part.state == READY and part.touched and stop <= part.stop:
                    self.hit_stop = stop
                    self.read_bytes += stop - offset
                    return part._view(offset, stop)
                return None
            if part.start > offset:
                return None
        return None

    def note_read(self, long long size):
        """Count bytes that were not read by `ready`."""
        self.read_bytes += size

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
                return True
        return False

    def clear(self):
        """Remove all parts and return them."""
        parts = self.parts
        self.parts = []
        return parts


def touch(Part part not None):
    """Record that a reader has reached this part; True the first time."""
    cdef bint first = not part.touched
    part.touched = True
    return first


def slice_of(list parts not None, long long offset, long long stop):
    """Return [offset, stop) from ready parts that cover it: a view, or an `Assembly`.

    Raises ValueError if they do not cover it.
    """
    cdef Part part
    cdef Assembly assembly
    cdef long long position = offset
    cdef long long upto
    for part in parts:
        if part.state != READY or not part.start <= position < part.stop:
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
            PyBytes_AS_STRING(part.data) + (position - part.start),
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
