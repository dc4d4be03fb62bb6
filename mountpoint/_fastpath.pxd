# The typed map of the read path's memory.
#
# Ownership: a Part owns the bytes that the client delivered. A memoryview that was handed
# out keeps those bytes alive by itself, so a Part may be dropped while a reply is on its way.
# An Assembly owns its memory until the last buffer export is released; then the memory
# goes back to the module's pool.

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef class Part:
    cdef readonly long long start       # half-open range of the object, bytes
    cdef readonly long long stop
    cdef readonly str etag              # the version that it must be
    cdef readonly double issued_at_s    # monotonic clock
    cdef readonly bint ahead            # fetched before anyone asked for it
    cdef object transfer                # to cancel it; None before and after
    cdef readonly object error          # why it failed
    cdef readonly object info           # ObjectInfo from the headers, or None
    cdef readonly bytes data            # all of it, once ready
    cdef object summing                 # makes its checksums of all of it, or None
    cdef readonly object sums           # these, or None
    cdef list chunks                    # what has come so far, if in several pieces
    cdef long long received             # bytes
    cdef bint finished                  # no callback comes any more
    cdef readonly bint touched          # a reader has been here
    cdef bint noted                     # its duration has been noted
    cdef bint hedged                    # there is, or was, a second request
    cdef readonly bint overtaken        # the bytes came by the second request
    cdef object primary                 # of a second request: the first; None after the end
    cdef double ended_at_s              # monotonic clock
    # Guarded by mutex, because waiters look at them without the GIL:
    cdef int state                      # PENDING, READY or FAILED
    cdef bint described                 # headers are there, or the part has ended
    cdef int want_headers               # threads that wait for the headers
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed

    cdef void _take_over(self, Part other)
    cdef void _end(self, int state) noexcept
    cdef void _set(self, int state, bint described) noexcept
    cdef bint _wait(self, bint for_headers, double timeout_s) noexcept
    cdef object _view(self, long long offset, long long stop)


cdef class PartMap:
    cdef list parts                     # of Part, by start, never overlapping
    cdef readonly long long hit_stop    # where the last read by `ready` ended
    cdef readonly long long read_bytes  # all that was read


cdef class Assembly:
    cdef char* memory                   # from the pool; given back in __dealloc__
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size
