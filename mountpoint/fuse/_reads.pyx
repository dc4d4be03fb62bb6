"""READs that are answered between the kernel and llfuse, without the interpreter.

`native._lane` finds the bytes; they are written from the memory in which they arrived. The meters
count these reads as if Python had served them.
"""

from libc.errno cimport EINTR, EIO, ENODEV, ENOENT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mountpoint.fuse._protocol cimport READ, InHeader, OutHeader, ReadIn, iovec, writev
from mountpoint.metrics._histogram cimport (
    Histogram,
    Readers,
    Timer,
    add_value,
    begin_timer,
    end_timer,
    find_reader,
    histogram_t,
    monotonic_ns,
    reader_t,
    timer_t,
    undo_timer,
)
from mountpoint.native._lane cimport (
    MAX_PIECES,
    find_lane,
    lane_note,
    lane_read,
    lane_t,
    piece_t,
    release_lane,
    release_pieces,
)

cdef extern from *:
    """
    #define add_u64(pointer, amount) __atomic_fetch_add(pointer, amount, __ATOMIC_RELAXED)
    """
    uint64_t add_u64(uint64_t*, uint64_t) nogil

# The meters of reads in the lane; NULL until `serve_lane`. `meters` keeps their objects.
cdef timer_t* read_timer = NULL
cdef histogram_t* read_bytes = NULL
cdef const reader_t* readers = NULL
cdef tuple meters = ()
# Reads that were answered in the lane. Atomic.
cdef uint64_t lane_reads = 0


cdef bint answer_read(const char* request, int size, int descriptor) noexcept nogil:
    """Answer a READ whose bytes are here, without the interpreter; False if Python must answer."""
    cdef const InHeader* header = <const InHeader*>request
    cdef const ReadIn* read = <const ReadIn*>(request + sizeof(InHeader))
    cdef lane_t* lane
    cdef histogram_t* program
    cdef piece_t pieces[MAX_PIECES]
    cdef iovec parts[MAX_PIECES + 1]
    cdef OutHeader answer
    cdef int64_t begun_ns
    cdef size_t total = 0
    cdef bint waited
    cdef int count, index
    if header.opcode != READ or read_timer == NULL or size < <int>(sizeof(InHeader) + 40):
        return False
    program = find_reader(readers, header.pid)
    if program == NULL:
        return False
    lane = find_lane(read.handle)
    if lane == NULL:
        return False
    begin_timer(read_timer)
    begun_ns = monotonic_ns()
    count = lane_read(lane, read.offset, read.size, header.pid, pieces, &waited)
    if count == 0:
        undo_timer(read_timer)
        release_lane(lane)
        return False
    for index in range(count):
        parts[index + 1].iov_base = <void*>pieces[index].bytes
        parts[index + 1].iov_len = pieces[index].size
        total += pieces[index].size
    answer.length = <uint32_t>(sizeof(OutHeader) + total)
    answer.error = 0
    answer.unique = header.unique
    parts[0].iov_base = &answer
    parts[0].iov_len = sizeof(OutHeader)
    lane_note(lane, read.offset + total, total, waited)
    if write_all(descriptor, parts, count + 1) < 0:
        answer.length = sizeof(OutHeader)
        answer.error = -EIO
        write_all(descriptor, parts, 1)
    release_pieces(pieces, count)
    release_lane(lane)
    end_timer(read_timer, begun_ns, monotonic_ns(), False)
    add_value(read_bytes, total)
    add_value(program, total)
    add_u64(&lane_reads, 1)
    return True


cdef int write_all(int descriptor, const iovec* pieces, size_t count) noexcept nogil:
    """Write an answer to the kernel; return 0, or a negative errno."""
    cdef int error
    while writev(descriptor, pieces, <int>count) < 0:
        error = errno
        # The request was interrupted, or the mount is gone: no thread waits for the answer.
        if error == ENOENT or error == ENODEV:
            return 0
        if error != EINTR:
            return -error
    return 0


def serve_lane(Timer timer not None, Histogram sizes not None, Readers programs not None):
    """Set before mounting the meters of reads that are answered without the interpreter.

    Without a call all reads go to llfuse. Only with the channel of our own (`want`) is there a lane.
    """
    global read_timer, read_bytes, readers, meters
    meters = (timer, sizes, programs)
    read_timer = &timer.data
    read_bytes = &sizes.data
    readers = programs.table


def reads_in_lane():
    """Return the number of reads that were answered without the interpreter."""
    return lane_reads
