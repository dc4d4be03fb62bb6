# How headers of an answer are read without the interpreter.

from libc.stdint cimport uint64_t

from mountpoint.s3.crt.native._crt cimport aws_http_header

cdef enum:
    # Algorithms of a checksum that the native plane computes.
    NO_CHECKSUM = 0
    CRC32 = 1
    CRC32C = 2
    CRC64NVME = 3

    # Types of a checksum (x-amz-checksum-type).
    NO_TYPE = 0
    FULL_OBJECT = 1
    COMPOSITE = 2
    OTHER_TYPE = 3

    # What a header describes, besides the object's size and ETag.
    NOTHING = 0
    MODIFIED = 1
    RESTORED = 2
    STORAGE_CLASS = 4
    METADATA = 8

cdef bint is_named(const aws_http_header* header, const char* name) noexcept nogil
cdef bint is_checksum(const aws_http_header* header) noexcept nogil
cdef int described_by(const char* name, size_t size) noexcept nogil
cdef bint is_value(const aws_http_header* header, const char* value, size_t size) noexcept nogil
cdef bint is_number(const aws_http_header* header, uint64_t number) noexcept nogil
cdef bint is_range(
    const aws_http_header* header, uint64_t start, uint64_t size, uint64_t object_size
) noexcept nogil
cdef int type_of(const aws_http_header* header) noexcept nogil
cdef int read_checksum(const aws_http_header* header, uint64_t* value) noexcept nogil
