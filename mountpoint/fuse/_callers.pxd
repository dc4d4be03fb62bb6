from mountpoint.fuse._protocol cimport InHeader

cdef void begin_serving(const InHeader* header) noexcept nogil
cdef void end_serving() noexcept nogil
cdef bint claim_request() noexcept nogil
