# One GET without the interpreter, and the queue of those that have ended.
#
# Ownership: a `Get` is shared by the Python object (`NativeGet`) and by the CRT, until the callback
# for its end. Each owns one reference; the last release frees it. It owns a reference to its arrival,
# and until then one to its block: the CRT writes into it, also after a cancel.

from libc.stdint cimport uint64_t

from mountpoint.native._arrivals cimport arrival_t
from mountpoint.native._blocks cimport Block
from mountpoint.native._sync cimport pthread_cond_t, pthread_mutex_t
from mountpoint.s3.crt.native._connections cimport Connection, Pool
from mountpoint.s3.crt.native._crt cimport aws_byte_buf, aws_byte_cursor, aws_http_header

cdef struct Queue:
    int refs                    # atomic: the plane's and those of its gets
    pthread_mutex_t mutex       # guards all that follows
    pthread_cond_t changed
    Get* first                  # ended gets; each has a reference to its Python object
    Get* last
    int waiting                 # ended gets
    bint urgent                 # one of them needs Python soon
    void* gone                  # templates of sources that nobody uses (`_requests`)
    bint closed                 # nobody will take them

# Headers of an answer.
cdef struct answer_t:
    int etags, sizes            # headers of these names
    bint etag                   # as it must be
    bint sized                  # for the range, or the whole object
    int algorithm               # of a checksum
    int checksums               # headers of them
    int kind                    # of the checksum's body
    uint64_t checksum
    int known                   # what the headers describe

cdef struct Get:
    int refs                    # atomic
    Queue* queue
    void* object                # the NativeGet: a reference, from the start until it is taken.
                                # NULL: a read in the lane; then the thread of the reader counts
    uint64_t thread
    double begun_at_s           # monotonic clock
    arrival_t* arrival
    Block* block
    aws_byte_buf buffer         # the block, as the CRT sees it
    uint64_t start              # the range [start, start + size) of the object, in bytes
    uint64_t size
    uint64_t object_size
    char* etag                  # as the answer must have it; freed with the get
    size_t etag_size
    bint whole                  # the range is the object: the request has no Range header
    bint verify                 # compare with the checksum of the answer
    bint single                 # the ETag is not of a multipart upload
    # Written by callbacks, one after another; read by Python once `ended`.
    answer_t answer             # what its headers have said so far
    int status
    int error                   # of the CRT; 0: success
    bint refused                # the failure is an answer of the store, with headers
    bint unclear                # Python must judge the answer
    int algorithm               # of the checksum that the answer promises; NO_CHECKSUM
    uint64_t checksum           # its value
    uint64_t received           # bytes of the body
    uint64_t position           # of its first byte, by the CRT, if the request has no range
    double described_at_s       # monotonic clock; 0: there were no headers
    double ended_at_s
    char* headers               # name and value after another, each with its size before it
    size_t headers_size
    char* error_body
    size_t error_body_size
    Pool* pool                  # from `enter` to `finish`: a reference; NULL: only the S3 client
    Connection* lent            # of the pool; NULL: the S3 client sends the GET
    bint missed                 # no connection was idle, and another could be opened
    pthread_mutex_t mutex       # guards the four below
    void* request               # the S3 client's, with a reference, until it has ended
    void* connection            # the CRT's of `lent`, until then
    bint ended
    bint cancelled
    Get* next                   # in the queue

cdef Get* new_get(
    Queue* queue, arrival_t* arrival, uint64_t start, uint64_t size, const char* etag,
    size_t etag_size
) noexcept nogil
cdef void release_get(Get* get) noexcept nogil
cdef void release_queue(Queue* queue) noexcept nogil
cdef void note_header(Get* get, const aws_http_header* header) noexcept nogil
cdef bint is_success(const Get* get) noexcept nogil
cdef void judge_headers(Get* get, int status) noexcept nogil
cdef void keep_body(Get* get, const aws_byte_cursor* body, uint64_t offset) noexcept nogil
cdef bint keep_error_body(Get* get, const aws_byte_cursor* body) noexcept nogil
cdef void finish(Get* get) noexcept nogil
cdef bint send(void* client, Get* get, void* message, const void* signing) noexcept nogil
cdef void cancel(Get* get) noexcept nogil
cdef aws_byte_cursor cursor(const char* text, size_t size) noexcept nogil
