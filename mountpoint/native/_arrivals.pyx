"""One request's bytes as they arrive, and the threads that wait for them. No function needs the GIL.

An arrival ends once: READY, or FAILED. The first end counts. If a request has ended, and only
Python can decide how (an answer that the native plane does not judge), the arrival is in doubt: it
stays PENDING, but the threads that wait for it wake.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from mountpoint.native._blocks cimport hold_block, release_block
from mountpoint.native._sync cimport (
    atomic_add,
    init_cond,
    now_s,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_timedwait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    time_of,
    timespec,
)

# The longest single wait in seconds: no wait is unbounded, even if the caller wants that.
cdef double MAX_WAIT_S = 3600.0


cdef arrival_t* new_arrival() noexcept nogil:
    """Return a pending arrival with one reference; NULL without memory."""
    cdef arrival_t* arrival = <arrival_t*>malloc(sizeof(arrival_t))
    if arrival == NULL:
        return NULL
    memset(arrival, 0, sizeof(arrival_t))
    arrival.refs = 1
    pthread_mutex_init(&arrival.mutex, NULL)
    init_cond(&arrival.changed)
    return arrival


cdef void hold_arrival(arrival_t* arrival) noexcept nogil:
    atomic_add(&arrival.refs, 1)


cdef void release_arrival(arrival_t* arrival) noexcept nogil:
    """Give one reference back; the last one frees the arrival and gives its block back."""
    if atomic_add(&arrival.refs, -1) > 0:
        return
    if arrival.block != NULL:
        release_block(arrival.block)
    if arrival.primary != NULL:
        release_arrival(arrival.primary)
    pthread_cond_destroy(&arrival.changed)
    pthread_mutex_destroy(&arrival.mutex)
    free(arrival)


cdef void describe(arrival_t* arrival) noexcept nogil:
    """Record that the headers have arrived."""
    pthread_mutex_lock(&arrival.mutex)
    arrival.described = True
    if arrival.header_waiters > 0:  # threads that wait for the end must not wake
        pthread_cond_broadcast(&arrival.changed)
    pthread_mutex_unlock(&arrival.mutex)


cdef void doubt(arrival_t* arrival) noexcept nogil:
    """Record that Python must decide how it has ended."""
    pthread_mutex_lock(&arrival.mutex)
    arrival.in_doubt = True
    pthread_cond_broadcast(&arrival.changed)
    pthread_mutex_unlock(&arrival.mutex)


cdef bint end(arrival_t* arrival, int state, Block* block) noexcept nogil:
    """End it with `state`, unless it has ended; return whether it did.

    If READY, `block` has the bytes, or is NULL if Python has them. The first request for the same
    bytes, if any, then has them, too.
    """
    return end_with(arrival, state, block, False)


cdef bint overtake(arrival_t* arrival, Block* block) noexcept nogil:
    """End it with the bytes of a second request, unless it has ended."""
    return end_with(arrival, READY, block, True)


cdef bint end_with(arrival_t* arrival, int state, Block* block, bint overtaken) noexcept nogil:
    cdef arrival_t* primary
    cdef bint ended
    pthread_mutex_lock(&arrival.mutex)
    ended = arrival.state == PENDING
    if ended:
        if block != NULL:
            hold_block(block)
            arrival.block = block
        arrival.ended_at_s = now_s()
        arrival.overtaken = overtaken
        arrival.state = state
        arrival.described = True
        pthread_cond_broadcast(&arrival.changed)
    primary = arrival.primary
    arrival.primary = NULL
    pthread_mutex_unlock(&arrival.mutex)
    if primary != NULL:
        if ended and state == READY and block != NULL:
            overtake(primary, block)
        release_arrival(primary)
    return ended


cdef void serve(arrival_t* arrival, arrival_t* primary) noexcept nogil:
    """Become a second request for the bytes of `primary`: the first one to be ready counts."""
    hold_arrival(primary)
    pthread_mutex_lock(&arrival.mutex)
    arrival.primary = primary
    pthread_mutex_unlock(&arrival.mutex)


cdef Block* ready_block(arrival_t* arrival) noexcept nogil:
    """Return the block of a READY arrival, with a reference for the caller; otherwise NULL."""
    cdef Block* block = NULL
    pthread_mutex_lock(&arrival.mutex)
    if arrival.state == READY and arrival.block != NULL:
        block = arrival.block
        hold_block(block)
    pthread_mutex_unlock(&arrival.mutex)
    return block


cdef bint wait_for(arrival_t* arrival, bint for_headers, double timeout_s) noexcept nogil:
    """Wait up to `timeout_s` seconds for the headers or the end; return whether it is there.

    The end includes doubt.
    """
    cdef timespec until = time_of(now_s() + min(max(timeout_s, 0.0), MAX_WAIT_S))
    cdef bint done
    pthread_mutex_lock(&arrival.mutex)
    arrival.header_waiters += for_headers
    while True:
        done = arrival.state != PENDING or arrival.in_doubt
        done = done or (for_headers and arrival.described)
        # Any error of timedwait ends the wait: the only possible one is a timeout.
        if done or pthread_cond_timedwait(&arrival.changed, &arrival.mutex, &until) != 0:
            break
    done = arrival.state != PENDING or arrival.in_doubt or (for_headers and arrival.described)
    arrival.header_waiters -= for_headers
    pthread_mutex_unlock(&arrival.mutex)
    return done


cdef class Arrival:
    """An object that receives the bytes of one request on the native plane."""

    def __cinit__(self):
        self.arrival = new_arrival()
        if self.arrival == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.arrival != NULL:
            release_arrival(self.arrival)

    def settled(self, error):
        """Learn how the request has ended; `error` None: the bytes are there."""
        raise NotImplementedError
