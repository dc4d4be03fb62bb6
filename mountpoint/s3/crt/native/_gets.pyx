"""GETs without the interpreter: the CRT's C functions, called directly, write into our memory.

`send` gives one GET to the CRT's S3 client, whose threads then call the functions `on_...`. They
take no GIL and wait for nothing. They approve the usual answer: this ETag, this range, as many
bytes, and either no checksum or a CRC that matches. The arrival is then READY, and threads that wait
for it go on. Every other successful answer is *unclear*: the arrival is in doubt, and Python judges it
(`plane`). A failure ends the arrival; Python makes the exception.

Ended gets queue until Python takes them. `_gets.pxd` says who owns what.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from mountpoint.native._arrivals cimport (
    FAILED,
    READY,
    arrival_t,
    describe,
    doubt,
    end,
    hold_arrival,
    release_arrival,
)
from mountpoint.native._blocks cimport new_block, release_block
from mountpoint.native._sync cimport (
    atomic_add,
    now_s,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from mountpoint.s3.crt.native._answers cimport (
    COMPOSITE,
    CRC32,
    CRC32C,
    CRC64NVME,
    FULL_OBJECT,
    METADATA,
    NO_CHECKSUM,
    NO_TYPE,
    OTHER_TYPE,
    described_by,
    is_checksum,
    is_named,
    is_number,
    is_range,
    is_value,
    read_checksum,
    type_of,
)
from mountpoint.s3.crt.native._connections cimport leave
from mountpoint.s3.crt.native._crt cimport (
    aws_byte_cursor,
    aws_http_header,
    aws_s3_meta_request_options,
    aws_s3_meta_request_progress,
    aws_s3_meta_request_result,
)
from mountpoint.s3.crt.native._functions cimport crt

cdef enum:
    # aws_s3_meta_request_type
    DEFAULT = 0
    GET_OBJECT = 1

    # More than S3 sends; the CRT's own limit is similar.
    MAX_HEADERS_BYTES = 64 << 10
    MAX_ERROR_BODY_BYTES = 64 << 10

    # Ended GETs that are settled without delay.
    MANY_WAITING = 256


# --- what the CRT's threads call ---

cdef int on_headers(void* request, const void* headers, int status, void* user) noexcept nogil:
    """Note the headers, and whether they are those of the usual answer."""
    cdef Get* get = <Get*>user
    cdef aws_http_header header
    cdef size_t index
    cdef size_t count = crt.count_headers(headers)
    if get.described_at_s != 0:  # they may be in use; the CRT says them once
        return 0
    for index in range(count):
        memset(&header, 0, sizeof(header))
        if crt.get_index(headers, index, &header) == 0:
            note_header(get, &header)
        else:
            get.unclear = True
    judge_headers(get, status)
    return 0


cdef int on_body(
    void* request, const aws_byte_cursor* body, uint64_t offset, void* user
) noexcept nogil:
    """Keep a body that the CRT has in its own memory: that of a request for a whole object."""
    keep_body(<Get*>user, body, offset)
    return 0


cdef void on_progress(
    void* request, const aws_s3_meta_request_progress* progress, void* user
) noexcept nogil:
    """Count the bytes that have arrived in the block: the CRT itself believes the headers."""
    (<Get*>user).received += progress.bytes_transferred


cdef void on_finish(
    void* request, const aws_s3_meta_request_result* result, void* user
) noexcept nogil:
    """End the arrival, and queue the get for Python."""
    cdef Get* get = <Get*>user
    cdef aws_byte_cursor body
    cdef void* theirs
    get.error = result.error_code
    if result.response_status != 0:
        get.status = result.response_status
    if get.error != 0:
        get.refused = result.error_response_headers != NULL
        if result.error_response_body != NULL:
            body.ptr = result.error_response_body.buffer
            body.len = result.error_response_body.len
            keep_error_body(get, &body)
    pthread_mutex_lock(&get.mutex)
    theirs = get.request
    get.request = NULL
    get.ended = True
    pthread_mutex_unlock(&get.mutex)
    if theirs != NULL:
        crt.release_request(theirs)
    finish(get)


# --- the answer ---

cdef void note_header(Get* get, const aws_http_header* header) noexcept nogil:
    """Keep a header of the answer, and note what it says."""
    cdef answer_t* answer = &get.answer
    cdef int about
    if not keep_header(get, header):
        get.unclear = True
    elif is_named(header, b"etag"):
        answer.etags += 1
        answer.etag = is_value(header, get.etag, get.etag_size)
    elif is_named(header, b"content-length" if get.whole else b"content-range"):
        answer.sizes += 1
        answer.sized = is_number(header, get.size) if get.whole else is_range(
            header, get.start, get.size, get.object_size
        )
    elif get.whole and is_named(header, b"content-range"):  # some say it nevertheless
        if not is_range(header, get.start, get.size, get.object_size):
            get.unclear = True
    elif is_named(header, b"x-amz-checksum-type"):
        answer.kind = type_of(header)
    elif is_checksum(header):
        answer.checksums += 1
        answer.algorithm = read_checksum(header, &answer.checksum)
    else:
        about = described_by(<const char*>header.name.ptr, header.name.len)
        if about & answer.known & ~METADATA:
            get.unclear = True
        answer.known |= about


cdef void judge_headers(Get* get, int status) noexcept nogil:
    """Decide, once all headers were noted, whether they are those of the usual answer."""
    cdef answer_t* answer = &get.answer
    get.described_at_s = now_s()
    get.status = status
    if not is_success(get):
        return
    if answer.etags != 1 or not answer.etag or answer.sizes != 1 or not answer.sized:
        get.unclear = True
    if (status == 200) != get.whole:
        get.unclear = True
    if get.verify and answer.checksums > 0:
        # `wire.checksum` says which checksum covers which body.
        if answer.kind == NO_TYPE and get.single:
            answer.kind = FULL_OBJECT
        if answer.checksums > 1 or answer.algorithm == NO_CHECKSUM or answer.kind == OTHER_TYPE:
            get.unclear = True
        elif answer.kind == (FULL_OBJECT if get.size == get.object_size else COMPOSITE):
            get.algorithm = answer.algorithm
            get.checksum = answer.checksum
    describe(get.arrival)


cdef bint is_success(const Get* get) noexcept nogil:
    return get.status == 200 or get.status == 206


cdef void keep_body(Get* get, const aws_byte_cursor* body, uint64_t offset) noexcept nogil:
    """Copy bytes that have arrived into the block; `offset` is their place in the body."""
    if get.received == 0:
        get.position = offset
    if offset != get.received or get.received + body.len > get.size:
        get.unclear = True
    else:
        memcpy(get.block.bytes + get.received, body.ptr, body.len)
    get.received += body.len


cdef void finish(Get* get) noexcept nogil:
    """End the arrival of a GET that has ended, and queue the GET for Python."""
    get.ended_at_s = now_s()
    if get.pool != NULL:
        leave(get.pool)
        get.pool = NULL
    if get.error != 0:
        end(get.arrival, FAILED, NULL)
    elif get.unclear or get.received != get.size or not matches(get):
        get.unclear = True
        doubt(get.arrival)
    else:
        end(get.arrival, READY, get.block)
    if get.object == NULL:
        let_go(get)
    enqueue(get)


cdef bint matches(Get* get) noexcept nogil:
    """Whether the body has the checksum that the answer promises, if any."""
    cdef const uint8_t* bytes = <const uint8_t*>get.block.bytes
    if get.algorithm == CRC32:
        return crt.crc32(bytes, get.size, 0) == get.checksum
    if get.algorithm == CRC32C:
        return crt.crc32c(bytes, get.size, 0) == get.checksum
    if get.algorithm == CRC64NVME:
        return crt.crc64nvme(bytes, get.size, 0) == get.checksum
    return True


cdef void let_go(Get* get) noexcept nogil:
    """Give back what the reader in the lane has now: the queue must not keep bodies."""
    release_arrival(get.arrival)
    release_block(get.block)
    get.arrival = NULL
    get.block = NULL


cdef void enqueue(Get* get) noexcept nogil:
    """Queue an ended GET. Those of the lane are only to be counted, many at once.

    But if such a one found no connection, Python is to open another.
    """
    cdef Queue* queue = get.queue
    get.next = NULL
    pthread_mutex_lock(&queue.mutex)
    if queue.first == NULL:
        queue.first = get
    else:
        queue.last.next = get
    queue.last = get
    queue.waiting += 1
    if not queue.urgent and (
        get.object != NULL or get.missed or queue.waiting >= MANY_WAITING
    ):
        queue.urgent = True
        pthread_cond_signal(&queue.changed)
    pthread_mutex_unlock(&queue.mutex)


# --- what Python reads ---

cdef bint keep_header(Get* get, const aws_http_header* header) noexcept nogil:
    """Append name and value; False if they are too many or there is no memory."""
    cdef size_t size = get.headers_size + 8 + header.name.len + header.value.len
    cdef char* memory
    if size > MAX_HEADERS_BYTES:
        return False
    memory = <char*>realloc(get.headers, size)
    if memory == NULL:
        return False
    get.headers = memory
    memory += get.headers_size
    put_text(put_text(memory, &header.name), &header.value)
    get.headers_size = size
    return True


cdef char* put_text(char* memory, const aws_byte_cursor* text) noexcept nogil:
    cdef uint32_t size = <uint32_t>text.len
    memcpy(memory, &size, 4)
    memcpy(memory + 4, text.ptr, size)
    return memory + 4 + size


cdef bint keep_error_body(Get* get, const aws_byte_cursor* body) noexcept nogil:
    """Append to the body of a refusal; False if that was too much, and the rest is left out."""
    cdef size_t size = min(body.len, MAX_ERROR_BODY_BYTES - get.error_body_size)
    cdef char* memory
    if size == 0:
        return body.len == 0
    memory = <char*>realloc(get.error_body, get.error_body_size + size)
    if memory != NULL:
        get.error_body = memory
        memcpy(memory + get.error_body_size, body.ptr, size)
        get.error_body_size += size
    return size == body.len


# --- gets ---

cdef Get* new_get(
    Queue* queue, arrival_t* arrival, uint64_t start, uint64_t size, const char* etag,
    size_t etag_size
) noexcept nogil:
    """Return a get of a range, with one reference; NULL without memory."""
    cdef Get* get = <Get*>malloc(sizeof(Get))
    if get == NULL:
        return NULL
    memset(get, 0, sizeof(Get))
    get.etag = <char*>malloc(etag_size + 1)
    get.block = new_block(size)
    if get.etag == NULL or get.block == NULL:
        if get.block != NULL:
            release_block(get.block)
        free(get.etag)
        free(get)
        return NULL
    get.refs = 1
    pthread_mutex_init(&get.mutex, NULL)
    get.queue = queue
    atomic_add(&queue.refs, 1)
    get.arrival = arrival
    hold_arrival(arrival)
    get.start = start
    get.size = size
    memcpy(get.etag, etag, etag_size)
    get.etag_size = etag_size
    get.buffer.buffer = <uint8_t*>get.block.bytes
    get.buffer.capacity = size
    return get


cdef void release_get(Get* get) noexcept nogil:
    """Give one reference back; the last one frees the get."""
    if atomic_add(&get.refs, -1) > 0:
        return
    if get.block != NULL:
        release_block(get.block)
    if get.arrival != NULL:
        release_arrival(get.arrival)
    release_queue(get.queue)
    free(get.etag)
    free(get.headers)
    free(get.error_body)
    pthread_mutex_destroy(&get.mutex)
    free(get)


cdef void release_queue(Queue* queue) noexcept nogil:
    if atomic_add(&queue.refs, -1) == 0:
        pthread_cond_destroy(&queue.changed)
        pthread_mutex_destroy(&queue.mutex)
        free(queue)


cdef bint send(void* client, Get* get, void* message, const void* signing) noexcept nogil:
    """Give the request to the CRT; False if it refuses, and then no callback comes."""
    cdef aws_s3_meta_request_options options
    cdef void* request
    cdef bint late
    memset(&options, 0, sizeof(options))
    options.type = DEFAULT if get.whole else GET_OBJECT
    options.operation_name = cursor(b"GetObject", 9)
    options.signing_config = signing
    options.message = message
    if get.whole:
        options.body_callback = &on_body
    else:
        options.recv_buffer = &get.buffer
        options.progress_callback = &on_progress
    options.headers_callback = &on_headers
    options.finish_callback = &on_finish
    options.user_data = get
    request = crt.make_request(client, &options)
    if request == NULL:
        return False
    pthread_mutex_lock(&get.mutex)
    late = get.ended  # the finish callback was faster
    if not late:
        get.request = request
        if get.cancelled:
            crt.cancel(request)
    pthread_mutex_unlock(&get.mutex)
    if late:
        crt.release_request(request)
    return True


cdef void cancel(Get* get) noexcept nogil:
    """Cancel the request unless it has ended."""
    pthread_mutex_lock(&get.mutex)
    get.cancelled = True
    if get.request != NULL:
        crt.cancel(get.request)
    if get.connection != NULL:
        crt.connection_close(get.connection)
    pthread_mutex_unlock(&get.mutex)


cdef aws_byte_cursor cursor(const char* text, size_t size) noexcept nogil:
    cdef aws_byte_cursor it
    it.len = size
    it.ptr = <const uint8_t*>text
    return it
