# The lane of an open file: reads whose bytes are here, without the interpreter.
#
# Ownership: a `lane_t` is shared by its stream's `PartMap`, by the registry while the file is open,
# and by reads in progress. Each owns one reference. It owns a reference to each of its arrivals. A
# `piece_t` owns one to its block, which `release_pieces` gives back.

from mountpoint.native._arrivals cimport arrival_t
from mountpoint.native._blocks cimport Block
from mountpoint.native._sync cimport pthread_mutex_t

cdef enum:
    MAX_PIECES = 2  # parts that one read may span; more are rare

    RECENT = 64  # reads that tell whether the next one is random

# Where reads get their bytes that are not here: exactly these, in one request.
cdef struct source_t:
    int refs                    # atomic
    # Return the block with the bytes [start, stop), with a reference for the caller; NULL if they
    # do not arrive in time, or as they should.
    Block* (*fetch)(source_t*, long long, long long, unsigned long long, double) noexcept nogil
    void (*destroy)(source_t*) noexcept nogil
    # Begin to fetch the object's start, and do not wait; NULL: that is not possible.
    void (*expect)(source_t*) noexcept nogil

cdef extern from *:
    """
    typedef void* _Atomic shared_pointer;
    typedef _Atomic long long shared_bytes;
    """
    # Written under the mutex, and also read without it.
    ctypedef source_t* shared_source "shared_pointer"
    ctypedef long long shared_bytes

# Reads at random places; see `_lane.pyx`.
cdef struct random_t:
    shared_source source        # NULL: they are Python's
    int left                    # reads that may still be answered before Python looks
    double until_s              # the time of the last one (monotonic clock)
    double late_s               # after this long Python takes over
    long long starts[RECENT]    # a ring of the last reads
    long long stops[RECENT]
    double durations_s[RECENT]
    int next                    # the next index in the ring
    int untold                  # reads that Python has not seen, at most RECENT

cdef struct piece_t:
    Block* block
    const char* bytes
    size_t size

# One part that readers have reached, by its half-open range of the object.
cdef struct lane_part_t:
    long long start
    long long stop
    arrival_t* arrival

cdef struct lane_t:
    int refs                    # atomic
    long long size_bytes        # of the object
    pthread_mutex_t mutex       # guards all that follows
    lane_part_t* parts          # in order; they never overlap
    int count
    int capacity
    shared_bytes hit_stop       # the end of the last read
    shared_bytes read_bytes     # by all reads
    long long waits             # reads that waited, and were not taken yet
    bint once                   # its parts go once the whole object was read
    shared_source whole         # has all bytes of the object; NULL: none. Also read without the mutex
    random_t random

cdef lane_t* new_lane(long long size_bytes) noexcept nogil
cdef void release_lane(lane_t* lane) noexcept nogil
cdef bint lane_insert(lane_t* lane, long long start, long long stop, arrival_t* it) noexcept nogil
cdef void lane_remove(lane_t* lane, long long start) noexcept nogil
cdef void lane_clear(lane_t* lane) noexcept nogil
cdef void lane_forget_whole(lane_t* lane) noexcept nogil
cdef void lane_note(lane_t* lane, long long stop, long long size, bint waited) noexcept nogil
cdef long long lane_take_waits(lane_t* lane) noexcept nogil
cdef int lane_read(
    lane_t* lane, long long offset, long long size, unsigned long long thread,
    piece_t* pieces, bint* waited
) noexcept nogil
cdef void release_pieces(piece_t* pieces, int count) noexcept nogil
cdef lane_t* find_lane(unsigned long long handle) noexcept nogil
cdef bint register_lane(unsigned long long handle, lane_t* lane) noexcept nogil
cdef void unregister_lane(unsigned long long handle) noexcept nogil
cdef void lane_allow_whole(lane_t* lane, source_t* source) noexcept nogil


cdef void release_source(source_t* source) noexcept nogil


cdef class LaneSource:
    cdef source_t* source


cdef class Lane:
    cdef lane_t* lane
