from mountpoint.s3.crt.native._connections cimport Pool
from mountpoint.s3.crt.native._crt cimport aws_byte_cursor, aws_http_header
from mountpoint.s3.crt.native._gets cimport Get

# A request.
cdef struct wanted_t:
    aws_byte_cursor path
    aws_http_header* headers
    size_t headers_count
    const aws_http_header* range  # one more; NULL: none
    const void* signing           # NULL: unsigned

cdef bint dispatch(void* client, Pool* pool, Get* get, const wanted_t* wanted) noexcept nogil
