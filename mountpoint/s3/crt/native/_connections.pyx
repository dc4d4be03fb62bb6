"""Connections of the lane: GETs that are sent past the S3 client.

The S3 client splits large requests and spreads them over connections; a small GET passes four of its
queues, each on a thread that has to be woken. A read in the lane takes an idle HTTP connection
instead, signs its GET, and sends it: then only the connection's event loop works, and copies the
body once. If no connection is idle, the S3 client gets the GET.

`connections` opens them, as many as reads wait at the same time. A connection whose GET was
cancelled, or that the store closes, is not used again.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from mountpoint.native._sync cimport (
    atomic_add,
    now_s,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from mountpoint.s3.crt.native._crt cimport (
    aws_byte_cursor,
    aws_http_header,
    aws_http_make_request_options,
    aws_signing_config_aws,
)
from mountpoint.s3.crt.native._gets cimport Get, crt, finish, judge_headers, keep_body, note_header

cdef enum:
    # aws_http_header_block
    MAIN = 0

    # The answer is a refusal: aws_common_error's AWS_ERROR_UNKNOWN
    REFUSED = 1


# --- what the CRT's threads call ---

cdef int on_headers(
    void* stream, int block, const aws_http_header* headers, size_t count, void* user
) noexcept nogil:
    """Note some of an answer's headers."""
    cdef size_t index
    if block == MAIN:
        for index in range(count):
            note_header(<Get*>user, &headers[index])
    return 0


cdef int on_headers_done(void* stream, int block, void* user) noexcept nogil:
    """Judge the headers, all of which have arrived."""
    cdef int status = 0
    if block == MAIN:
        crt.response_status(stream, &status)
        judge_headers(<Get*>user, status)
    return 0


cdef int on_body(void* stream, const aws_byte_cursor* body, void* user) noexcept nogil:
    """Keep bytes of the body; not those of a refusal."""
    cdef Get* get = <Get*>user
    if get.status == 200 or get.status == 206:
        keep_body(get, body, get.received)
    return 0


cdef void on_complete(void* stream, int error, void* user) noexcept nogil:
    """End the GET, and give its connection back."""
    cdef Get* get = <Get*>user
    get.error = error
    if error == 0 and get.status != 200 and get.status != 206:
        get.error = REFUSED
    pthread_mutex_lock(&get.mutex)
    get.connection = NULL
    get.ended = True
    pthread_mutex_unlock(&get.mutex)
    give_back(<Connection*>get.lent)
    finish(get)


# --- the pool ---

cdef Connection* enter(Pool* pool) noexcept nogil:
    """Note that a read waits for a GET, and take an idle connection; NULL: there is none."""
    cdef Connection* connection
    pthread_mutex_lock(&pool.mutex)
    pool.reads += 1
    pool.most_reads = max(pool.most_reads, pool.reads)
    while True:
        connection = pool.idle
        if connection == NULL:
            break
        pool.idle = connection.next
        if crt.new_requests_allowed(connection.native):
            atomic_add(&pool.refs, 1)
            break
        discard(pool, connection)
    pthread_mutex_unlock(&pool.mutex)
    return connection


cdef void leave(Pool* pool) noexcept nogil:
    """Note that a read has its GET, or waits no longer."""
    pthread_mutex_lock(&pool.mutex)
    pool.reads -= 1
    pthread_mutex_unlock(&pool.mutex)


cdef void give_back(Connection* connection) noexcept nogil:
    """Give a connection back to its pool."""
    cdef Pool* pool = connection.pool
    cdef bint usable = crt.new_requests_allowed(connection.native)
    pthread_mutex_lock(&pool.mutex)
    if usable and not pool.ended:
        connection.idle_since_s = now_s()
        connection.next = pool.idle
        pool.idle = connection
    else:
        discard(pool, connection)
    pthread_mutex_unlock(&pool.mutex)
    release_pool(pool)


cdef void discard(Pool* pool, Connection* connection) noexcept nogil:
    """Leave a connection for Python to free (mutex held)."""
    connection.next = pool.closed
    pool.closed = connection
    pool.count -= 1


cdef void release_pool(Pool* pool) noexcept nogil:
    """Give one reference back; the last one frees the pool."""
    if atomic_add(&pool.refs, -1) > 0:
        return
    with gil:
        free_connections(pool.idle)
        free_connections(pool.closed)
    pthread_mutex_destroy(&pool.mutex)
    free(pool)


cdef void free_connections(Connection* connection) noexcept:
    """Free a list of connections; the CRT closes those that are open."""
    cdef Connection* following
    while connection != NULL:
        following = connection.next
        Py_DECREF(<object>connection.object)
        free(connection)
        connection = following


cdef sweep(Pool* pool, double max_idle_s, bint ending):
    """Free connections that are closed or have been idle for long; at the end, all idle ones."""
    cdef Connection* connection
    cdef Connection* idle
    cdef Connection* closed
    cdef double idle_since_s = now_s() - max_idle_s
    with nogil:
        pthread_mutex_lock(&pool.mutex)
        pool.ended = pool.ended or ending
        idle = NULL
        while pool.idle != NULL:
            connection = pool.idle
            pool.idle = connection.next
            if ending or connection.idle_since_s < idle_since_s or (
                not crt.new_requests_allowed(connection.native)
            ):
                discard(pool, connection)
            else:
                connection.next = idle
                idle = connection
        while idle != NULL:  # in their order
            connection = idle
            idle = connection.next
            connection.next = pool.idle
            pool.idle = connection
        closed = pool.closed
        pool.closed = NULL
        pthread_mutex_unlock(&pool.mutex)
    free_connections(closed)


cdef class Connections:
    """The pool of one client."""

    def __cinit__(self):
        self.pool = <Pool*>malloc(sizeof(Pool))
        if self.pool == NULL:
            raise MemoryError()
        memset(self.pool, 0, sizeof(Pool))
        self.pool.refs = 1
        pthread_mutex_init(&self.pool.mutex, NULL)

    def __dealloc__(self):
        if self.pool != NULL:
            self.end()
            release_pool(self.pool)

    def add(self, connection):
        """Add an awscrt.http.HttpClientConnection that is open and speaks HTTP/1.1."""
        cdef Connection* it = <Connection*>malloc(sizeof(Connection))
        if it == NULL:
            raise MemoryError()
        memset(it, 0, sizeof(Connection))
        it.native = (<void**>PyCapsule_GetPointer(connection._binding, b"aws_http_connection"))[0]
        it.object = <void*>connection
        Py_INCREF(connection)
        it.pool = self.pool
        with nogil:
            pthread_mutex_lock(&self.pool.mutex)
            self.pool.count += 1
            pthread_mutex_unlock(&self.pool.mutex)
            atomic_add(&self.pool.refs, 1)
            give_back(it)

    def missing(self, double max_idle_s):
        """Return how many more connections reads could have used since the last call.

        Lets go of those that the store has closed, and of those that were idle for so long.
        """
        cdef int missing
        sweep(self.pool, max_idle_s, False)
        with nogil:
            pthread_mutex_lock(&self.pool.mutex)
            missing = self.pool.most_reads - self.pool.count
            self.pool.most_reads = self.pool.reads
            pthread_mutex_unlock(&self.pool.mutex)
        return max(missing, 0)

    @property
    def count(self):
        """The connections that are open, as far as this is known."""
        return self.pool.count

    def end(self):
        """Close connections that are idle, and from now on those that are given back."""
        sweep(self.pool, 0, True)


# --- sending ---

# A request that is being signed. Keys are in the configuration, so this ends before `sign` does.
cdef struct signing_t:
    void* message
    bint signed


cdef bint send_on(
    Connection* connection, Get* get, void* message, const void* signing
) noexcept nogil:
    """Sign and send a GET; False if that fails: then no callback comes.

    The connection goes back to the pool in any case. `message` may be NULL, for lack of memory.
    """
    cdef aws_http_make_request_options options
    cdef void* stream
    if message == NULL or not sign(message, <const aws_signing_config_aws*>signing):
        give_back(connection)
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
        give_back(connection)
        return False
    get.lent = connection
    get.connection = connection.native
    if crt.stream_activate(stream) != 0:
        crt.stream_release(stream)
        get.connection = NULL
        give_back(connection)
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
