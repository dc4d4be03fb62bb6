# The typed memory layout of the read path.
#
# Ownership: a Part owns the bytes that the client delivered. A memoryview that was returned to a
# reader keeps those bytes alive, so a Part may be dropped while a reply is being sent. An Assembly
# owns its memory until the last buffer export is released; then the memory goes back to the
# module's pool.

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef class Part:
    cdef readonly long long start       # half-open range of the object, bytes
    cdef readonly long long stop
    cdef readonly str etag              # the required version
    cdef readonly double issued_at_s    # monotonic clock
    cdef readonly bint ahead            # fetched before a reader needed it
    cdef object transfer                # for cancelling; None before and after the request
    cdef readonly object error          # the reason for a failure
    cdef readonly object info           # ObjectInfo from the headers, or None
    cdef readonly bytes data            # the whole range, once ready
    cdef object summing                 # computes checksums of the data, or None
    cdef readonly object sums           # its result, or None
    cdef list chunks                    # the bytes received so far, if in several pieces
    cdef long long received             # bytes
    cdef bint finished                  # there will be no more callbacks
    cdef readonly bint touched          # a reader has reached it
    cdef bint noted                     # its duration has been recorded
    cdef bint hedged                    # a second request was sent
    cdef readonly bint overtaken        # the second request delivered the bytes
    cdef object primary                 # in a second request: the first; None after the end
    cdef double ended_at_s              # monotonic clock
    # Guarded by mutex, because waiting threads read them without the GIL:
    cdef int state                      # PENDING, READY or FAILED
    cdef bint described                 # the headers have arrived, or the part has ended
    cdef int want_headers               # threads that wait for the headers
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed

    cdef void _take_over(self, Part other)
    cdef void _end(self, int state) noexcept
    cdef void _set(self, int state, bint described) noexcept
    cdef bint _wait(self, bint for_headers, double timeout_s) noexcept
    cdef object _view(self, long long offset, long long stop)


cdef class PartMap:
    cdef list parts                     # Parts sorted by start, never overlapping
    cdef readonly long long hit_stop    # the end of the last read by `ready`
    cdef readonly long long read_bytes  # all bytes read


cdef class Assembly:
    cdef char* memory                   # from the pool; returned in __dealloc__
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size
