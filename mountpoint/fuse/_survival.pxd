from libc.stdint cimport uint64_t

from mountpoint.fuse._protocol cimport InHeader

cdef bint resuming() noexcept nogil
cdef void keep_init(const char* request, int size) noexcept nogil
cdef int take_init(char* memory, size_t room) noexcept nogil
cdef bint is_kept_init(uint64_t unique) noexcept nogil
cdef void resumed(int descriptor) noexcept nogil
cdef void keep_request(const InHeader* header) noexcept nogil
cdef int send_header(int descriptor, uint64_t unique, int error) noexcept nogil
cdef bint is_repeated(const InHeader* header) noexcept nogil
cdef uint64_t number_of(const InHeader* header) noexcept nogil
cdef void wait_while_held() noexcept nogil
