"""The C functions of `mountpoint.native` and `fuse/_callers`, for tests. Pointers are plain numbers.

Whoever gets a pointer from a function here owns one reference to it.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mountpoint.fuse._callers cimport begin_serving, end_serving
from mountpoint.fuse._protocol cimport InHeader
from mountpoint.metrics._histogram cimport Timer, begin_timer, drop_timer, undo_timer
from mountpoint.native._arrivals cimport (
    Arrival, arrival_t, describe, doubt, end, hold_arrival, new_arrival, overtake, ready_block,
    release_arrival, serve, wait_for,
)
from mountpoint.native._blocks cimport Block, hold_block, new_block, release_block, view_of
from mountpoint.native._lane cimport (
    MAX_PIECES, Lane, LaneSource, find_lane, lane_clear, lane_insert, lane_note, lane_read,
    lane_remove, lane_t, lane_take_waits, new_lane, piece_t, release_lane, release_pieces,
    source_t,
)
from mountpoint.native._sync cimport atomic_add


# --- blocks ---

def block(size_t size):
    """Return a new block; 0 without memory."""
    return <size_t>new_block(size)


def filled(bytes data not None):
    """Return a new block that begins with `data`."""
    cdef Block* made = new_block(len(data))
    if made == NULL:
        raise MemoryError()
    memcpy(made.bytes, <const char*>data, len(data))
    return <size_t>made


def fill(size_t it, bytes data not None):
    """Write `data` into a block, as the CRT does; what does not fit is lost."""
    cdef Block* block = <Block*>it
    memcpy(block.bytes, <const char*>data, min(<size_t>len(data), block.capacity))


def capacity(size_t it):
    return (<Block*>it).capacity


def block_refs(size_t it):
    return (<Block*>it).refs


def block_hold(size_t it):
    hold_block(<Block*>it)


def block_release(size_t it):
    with nogil:
        release_block(<Block*>it)


def block_view(size_t it, Py_ssize_t size):
    return view_of(<Block*>it, size)


# --- arrivals ---

def arrival():
    return <size_t>new_arrival()


def arrival_of(Arrival it not None):
    """Return the arrival of a part."""
    hold_arrival(it.arrival)
    return <size_t>it.arrival


def arrival_refs(size_t it):
    return (<arrival_t*>it).refs


def arrival_release(size_t it):
    with nogil:
        release_arrival(<arrival_t*>it)


def arrival_state(size_t it):
    """Return state, described, in_doubt and overtaken."""
    cdef arrival_t* its = <arrival_t*>it
    return its.state, bool(its.described), bool(its.in_doubt), bool(its.overtaken)


def arrival_describe(size_t it):
    with nogil:
        describe(<arrival_t*>it)


def arrival_doubt(size_t it):
    with nogil:
        doubt(<arrival_t*>it)


def arrival_end(size_t it, int state, size_t block=0):
    cdef bint ended
    with nogil:
        ended = end(<arrival_t*>it, state, <Block*>block)
    return ended


def arrival_overtake(size_t it, size_t block):
    cdef bint ended
    with nogil:
        ended = overtake(<arrival_t*>it, <Block*>block)
    return ended


def arrival_serve(size_t it, size_t primary):
    with nogil:
        serve(<arrival_t*>it, <arrival_t*>primary)


def arrival_block(size_t it):
    """Return the block of an arrival that is ready; otherwise 0."""
    return <size_t>ready_block(<arrival_t*>it)


def arrival_wait(size_t it, bint for_headers, double timeout_s):
    cdef bint done
    with nogil:
        done = wait_for(<arrival_t*>it, for_headers, timeout_s)
    return done


# --- lanes ---

cdef class OwnLane(Lane):
    """A lane without a `PartMap`."""

    def __cinit__(self, long long size_bytes):
        self.lane = new_lane(size_bytes)
        if self.lane == NULL:
            raise MemoryError()


def lane_of(Lane it not None):
    atomic_add(&it.lane.refs, 1)
    return <size_t>it.lane


def lane_named(unsigned long long handle):
    """Return the lane of a file handle; 0 if it has none."""
    cdef lane_t* found
    with nogil:
        found = find_lane(handle)
    return <size_t>found


def lane_refs(size_t it):
    return (<lane_t*>it).refs


def lane_drop(size_t it):
    with nogil:
        release_lane(<lane_t*>it)


def insert(Lane it not None, long long start, long long stop, size_t arrival):
    return lane_insert(it.lane, start, stop, <arrival_t*>arrival)


def remove(Lane it not None, long long start):
    lane_remove(it.lane, start)


def clear(Lane it not None):
    with nogil:
        lane_clear(it.lane)


def take_waits(Lane it not None):
    return lane_take_waits(it.lane)


def totals(Lane it not None):
    """Return the end of the last read, and the bytes of all."""
    return it.lane.hit_stop, it.lane.read_bytes


def read(Lane it not None, long long offset, long long size, unsigned long long thread=0):
    """Read as `_channel.in_lane` does: the sizes of the pieces, the bytes, and whether it waited.

    No pieces: Python must answer.
    """
    cdef piece_t pieces[MAX_PIECES]
    cdef lane_t* lane = it.lane
    cdef bint waited
    cdef int count, index
    atomic_add(&lane.refs, 1)
    with nogil:
        count = lane_read(lane, offset, size, thread, pieces, &waited)
    texts = [PyBytes_FromStringAndSize(pieces[index].bytes, pieces[index].size)
             for index in range(count)]
    data = b"".join(texts)
    with nogil:
        if count > 0:
            lane_note(lane, offset + <long long>len_of(pieces, count), len_of(pieces, count), waited)
        release_pieces(pieces, count)
        release_lane(lane)
    return [len(text) for text in texts], data, waited


cdef size_t len_of(const piece_t* pieces, int count) noexcept nogil:
    cdef size_t total = 0
    cdef int index
    for index in range(count):
        total += pieces[index].size
    return total


# --- sources ---

cdef struct Fake:
    source_t source             # the first field
    void* fetch                 # a function of Python

cdef int fakes = 0


cdef Block* fetch_fake(
    source_t* source, long long start, long long stop, unsigned long long thread, double timeout_s
) noexcept nogil:
    with gil:
        return <Block*><size_t>(<object>(<Fake*>source).fetch)(start, stop, thread, timeout_s)


cdef void destroy_fake(source_t* source) noexcept nogil:
    with gil:
        Py_DECREF(<object>(<Fake*>source).fetch)
    atomic_add(&fakes, -1)
    free(source)


cdef class Source(LaneSource):
    """A source that calls `fetch` with a range, a thread and the seconds, for a block or 0."""

    def __cinit__(self, fetch):
        cdef Fake* fake = <Fake*>malloc(sizeof(Fake))
        if fake == NULL:
            raise MemoryError()
        memset(fake, 0, sizeof(Fake))
        fake.source.refs = 1
        fake.source.fetch = &fetch_fake
        fake.source.destroy = &destroy_fake
        fake.fetch = <void*>fetch
        Py_INCREF(fetch)
        atomic_add(&fakes, 1)
        self.source = &fake.source


def fetch(LaneSource it not None, long long start, long long stop, double timeout_s=60):
    """Return what a source has of a range; None: nothing."""
    cdef Block* block
    with nogil:
        block = it.source.fetch(it.source, start, stop, 0, timeout_s)
    if block == NULL:
        return None
    data = PyBytes_FromStringAndSize(block.bytes, stop - start)
    release_block(block)
    return data


def sources():
    """Return the number of sources that were not destroyed."""
    return fakes


# --- meters ---

def run_timer(Timer timer not None, long times):
    """Begin activities, and end or undo them in turn, without the interpreter."""
    cdef long index
    with nogil:
        for index in range(times):
            begin_timer(&timer.data)
            if index & 1:
                drop_timer(&timer.data)
            else:
                undo_timer(&timer.data)


# --- callers ---

cdef struct Request:
    InHeader header
    uint64_t handle


def begin_request(uint32_t opcode, uint64_t unique, uint32_t pid, uint64_t handle):
    """Note that this thread serves a request; `handle` is the file of one that has one."""
    cdef Request request
    memset(&request, 0, sizeof(request))
    request.header.opcode = opcode
    request.header.unique = unique
    request.header.pid = pid
    request.handle = handle
    with nogil:
        begin_serving(&request.header)


def end_request():
    with nogil:
        end_serving()
