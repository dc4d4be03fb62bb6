# How the bytes of one request arrive: its state, and threads that wait for it.
#
# Ownership: an `arrival_t` is shared by the Python object (`Arrival`), by the request in flight, by
# the reads that wait, and by a second request for the same bytes. Each owns one reference. While the
# state is READY, the arrival owns one reference to its block, if it has one.

from mountpoint.native._blocks cimport Block
from mountpoint.native._sync cimport pthread_cond_t, pthread_mutex_t

cdef extern from *:
    """
    typedef _Atomic int shared_int;
    """
    # Python reads these fields without the mutex: whoever sees READY also sees the block.
    ctypedef int shared_int
    ctypedef bint shared_bint "shared_int"

cdef enum:
    PENDING = 0
    READY = 1
    FAILED = 2

cdef struct arrival_t:
    int refs                    # atomic
    pthread_mutex_t mutex       # guards all that follows
    pthread_cond_t changed
    shared_int state            # PENDING, READY or FAILED
    shared_bint described       # the headers have arrived, or it has ended
    shared_bint in_doubt        # it has ended, and Python must decide how
    int header_waiters          # threads that wait for the headers
    Block* block                # the bytes if READY on the native plane; NULL if Python has them
    arrival_t* primary          # in a second request: the first one, until this one has ended
    shared_bint overtaken       # the second request delivered the bytes
    double ended_at_s           # monotonic clock

cdef arrival_t* new_arrival() noexcept nogil
cdef void hold_arrival(arrival_t* arrival) noexcept nogil
cdef void release_arrival(arrival_t* arrival) noexcept nogil
cdef void describe(arrival_t* arrival) noexcept nogil
cdef void doubt(arrival_t* arrival) noexcept nogil
cdef bint end(arrival_t* arrival, int state, Block* block) noexcept nogil
cdef bint overtake(arrival_t* arrival, Block* block) noexcept nogil
cdef void serve(arrival_t* arrival, arrival_t* primary) noexcept nogil
cdef Block* ready_block(arrival_t* arrival) noexcept nogil
cdef bint wait_for(arrival_t* arrival, bint for_headers, double timeout_s) noexcept nogil


cdef class Arrival:
    cdef arrival_t* arrival
