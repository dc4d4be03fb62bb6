"""Small GETs on HTTP connections of our own, past the CRT's S3 client.

The S3 client splits large requests and spreads them over connections. A small GET passes four of
its queues, each on a thread that has to be woken. `send_on` signs the GET in the thread that wants
it, and sends it on a connection that is idle: only the connection's event loop works then, and
copies the body once.
"""

from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from mountpoint.native._sync cimport pthread_mutex_lock, pthread_mutex_unlock
from mountpoint.s3.crt.native._connections cimport Connection, give_back
from mountpoint.s3.crt.native._crt cimport (
    aws_byte_cursor,
    aws_http_header,
    aws_http_make_request_options,
    aws_signing_config_aws,
)
from mountpoint.s3.crt.native._functions cimport crt
from mountpoint.s3.crt.native._gets cimport (
    Get,
    finish,
    is_success,
    judge_headers,
    keep_body,
    keep_error_body,
    note_header,
)

cdef enum:
    # aws_http_header_block
    MAIN = 0

    # The answer is a refusal. aws_common_error has it as AWS_ERROR_UNKNOWN.
    REFUSED = 3


# --- what the CRT's threads call ---

cdef int on_headers(
    void* stream, int block, const aws_http_header* headers, size_t count, void* user
) noexcept nogil:
    """Note some of an answer's headers; not those after its body, which are called MAIN, too."""
    cdef Get* get = <Get*>user
    cdef size_t index
    if block == MAIN and get.described_at_s == 0:
        for index in range(count):
            note_header(get, &headers[index])
    return 0


cdef int on_headers_done(void* stream, int block, void* user) noexcept nogil:
    """Judge the headers, all of which have arrived."""
    cdef Get* get = <Get*>user
    cdef int status = 0
    if block == MAIN and get.described_at_s == 0:
        crt.response_status(stream, &status)
        judge_headers(get, status)
    return 0


cdef int on_body(void* stream, const aws_byte_cursor* body, void* user) noexcept nogil:
    """Keep bytes of the body. -1 ends the connection: the body is longer than it may be."""
    cdef Get* get = <Get*>user
    if is_success(get):
        keep_body(get, body, get.received)
        return -1 if get.received > get.size else 0
    return 0 if keep_error_body(get, body) else -1


cdef void on_complete(void* stream, int error, void* user) noexcept nogil:
    """End the GET, and give its connection back."""
    cdef Get* get = <Get*>user
    get.error = error
    if get.received > get.size:
        get.error = 0  # Python judges what was sent instead
    elif get.status != 0 and not is_success(get):
        get.error = REFUSED
        get.refused = True
    pthread_mutex_lock(&get.mutex)
    get.connection = NULL
    get.ended = True
    get.lent.proven = get.lent.proven or get.status != 0 or get.cancelled
    pthread_mutex_unlock(&get.mutex)
    give_back(get.pool, get.lent)
    finish(get)


# --- sending ---

# A request that is being signed. Its configuration has a static provider (`crt/signing`), which
# calls back at once: so this is not used any more when `sign` ends.
cdef struct signing_t:
    void* message
    bint signed


cdef bint send_on(
    Connection* connection, Get* get, void* message, const void* signing
) noexcept nogil:
    """Sign and send a GET; False if that fails: then no callback comes.

    The connection goes back to the pool when the GET ends, or if this fails. `message` may be NULL,
    for lack of memory.
    """
    cdef aws_http_make_request_options options
    cdef void* stream
    if message == NULL or not sign(message, <const aws_signing_config_aws*>signing):
        give_back(get.pool, connection)
        return False
    memset(&options, 0, sizeof(options))
    options.self_size = sizeof(options)
    options.request = message
    options.user_data = get
    options.on_response_headers = &on_headers
    options.on_response_header_block_done = &on_headers_done
    options.on_response_body = &on_body
    options.on_complete = &on_complete
    stream = crt.http_make_request(connection.native, &options)
    if stream == NULL:
        give_back(get.pool, connection)
        return False
    get.lent = connection
    get.connection = connection.native  # without the mutex: nobody else has the GET yet
    if crt.stream_activate(stream) != 0:
        crt.stream_release(stream)
        get.connection = NULL
        get.lent = NULL
        give_back(get.pool, connection)
        return False
    crt.stream_release(stream)  # the CRT keeps its own until the end
    return True


cdef bint sign(void* message, const aws_signing_config_aws* config) noexcept nogil:
    """Add the headers of a signature made now; without a configuration, none."""
    cdef aws_signing_config_aws now
    cdef signing_t state
    cdef timespec moment
    cdef void* signable
    if config == NULL:
        return True
    signable = crt.new_signable(crt.default_allocator(), message)
    if signable == NULL:
        return False
    now = config[0]
    clock_gettime(CLOCK_REALTIME, &moment)
    crt.date_time_init(&now.date, moment.tv_sec)
    state.message = message
    state.signed = False
    crt.sign_request(crt.default_allocator(), signable, &now, <void*>&on_signed, &state)
    crt.signable_destroy(signable)
    return state.signed


cdef void on_signed(void* result, int error, void* user) noexcept nogil:
    """Add the headers of the signature to the message."""
    cdef signing_t* state = <signing_t*>user
    if error == 0:
        state.signed = crt.apply_signing_result(
            state.message, crt.default_allocator(), result
        ) == 0
