# The format of blocks; see `_format.pyx`.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    C_BLOCK_BYTES = 1 << 20
    C_SMALL_BYTES = 64 << 10
    UNITS = 64  # of a block
    C_MAX_IDENTITY_BYTES = 4096  # S3's keys have up to 1024 bytes
    MAX_TRAILER_BYTES = 8192
    PAGE_BYTES = 4096

cdef extern from *:
    """
    #define CACHE_SMALL (1LL << 62)
    """
    long long C_SMALL "CACHE_SMALL"  # in the number of a small block

# The identity of a version, as trailers have it.
cdef struct identity_t:
    const char* text
    uint32_t size

cdef uint32_t trailer_size(const identity_t* identity, uint32_t size) noexcept nogil
cdef uint32_t make_trailer(
    const identity_t* identity, uint64_t number, const char* bytes, uint32_t size, char* trailer
) noexcept nogil
cdef uint32_t* sums_of(
    const identity_t* identity, uint64_t number, uint32_t size, const char* trailer
) noexcept nogil
cdef bint is_sum(const char* bytes, uint32_t size, const uint32_t* sums) noexcept nogil
