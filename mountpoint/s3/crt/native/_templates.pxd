from libc.stdint cimport uint64_t

from mountpoint.native._lane cimport source_t
from mountpoint.s3.crt.native._connections cimport Pool
from mountpoint.s3.crt.native._crt cimport aws_byte_cursor, aws_http_header
from mountpoint.s3.crt.native._gets cimport Queue

# What the GETs of one version have in common, for reads in the lane. It owns a reference to the
# Python objects that it points into.
cdef struct Template:
    source_t source             # the first field: `source_t*` and `Template*` are the same
    void* kept                  # a tuple of them
    void* client
    Queue* queue
    Pool* pool                  # of `kept`
    const void* signing         # NULL: unsigned
    aws_byte_cursor path
    aws_http_header* headers    # all but Range
    size_t headers_count
    const char* etag
    size_t etag_size
    uint64_t object_size
    bint verify
    bint single
    bint matches                # the headers require the version
    Template* next              # in the queue's `gone`

cdef Template* new_template() noexcept
cdef void free_gone(Queue* queue) noexcept
