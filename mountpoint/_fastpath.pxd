# The typed memory layout of the read path.
#
# Ownership: a Part owns the bytes that the client delivered: an object of Python's, or a block of
# its arrival (`native`). A memoryview that was returned to a reader keeps those bytes alive, so a
# Part may be dropped while a reply is being sent. An Assembly owns its memory until the last buffer
# export is released; then the memory goes back to the module's pool.

from mountpoint.native._arrivals cimport Arrival
from mountpoint.native._lane cimport Lane


cdef class Part(Arrival):
    cdef readonly long long start       # half-open range of the object, bytes
    cdef readonly long long stop
    cdef readonly str etag              # the required version
    cdef readonly double issued_at_s    # monotonic clock
    cdef readonly bint ahead            # fetched before a reader needed it
    cdef public bint cached             # the bytes come from the data cache
    cdef readonly object transfer       # for cancelling; None before and after the request
    cdef object native                  # on the native plane: the request, which knows the answer
    cdef object failure                 # the reason for a failure
    cdef object described               # ObjectInfo from the headers, or None
    cdef object content                 # a buffer of the whole range, once ready; None before
    cdef object summing                 # computes checksums of the data, or None
    cdef readonly object sums           # its result, or None
    cdef list chunks                    # the bytes received so far, if in several pieces
    cdef long long received             # bytes
    cdef readonly bint finished         # there will be no more callbacks
    cdef readonly bint touched          # a reader has reached it
    cdef bint noted                     # its duration has been recorded
    cdef bint hedged                    # a second request was sent
    cdef object primary                 # in a second request: the first; None after the end

    cdef void _take_over(self, Part other)
    cdef object _buffer(self)
    cdef const char* _memory(self)
    cdef object _view(self, long long offset, long long stop)


cdef class PartMap(Lane):
    cdef list parts                     # Parts sorted by start, never overlapping


cdef class Assembly:
    cdef char* memory                   # from the pool; returned in __dealloc__
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size
