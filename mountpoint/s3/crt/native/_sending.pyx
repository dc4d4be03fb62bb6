"""Send a GET: on a connection of ours (`_http`), or by the CRT's S3 client (`_gets`)."""

from mountpoint.native._sync cimport atomic_add
from mountpoint.s3.crt.native._connections cimport Connection, Pool, enter, leave
from mountpoint.s3.crt.native._functions cimport crt
from mountpoint.s3.crt.native._gets cimport Get, cursor, release_get, send
from mountpoint.s3.crt.native._http cimport send_on

cdef enum:
    MAX_SMALL_BYTES = 1 << 20     # that are sent on connections of our own


cdef bint dispatch(void* client, Pool* pool, Get* get, const wanted_t* wanted) noexcept nogil:
    """Send a GET on a connection of the pool, or by the S3 client; False if both refuse it.

    `pool` may be NULL.
    """
    cdef Connection* connection
    cdef void* message
    cdef bint sent = False
    atomic_add(&get.refs, 1)  # for the CRT, until Python takes the get from the queue
    if pool != NULL and get.size <= MAX_SMALL_BYTES:
        connection = enter(pool, &get.missed)
        get.pool = pool
        if connection != NULL:
            message = new_message(wanted)
            sent = send_on(connection, get, message, wanted.signing)
            crt.release_message(message)
    if not sent:
        message = new_message(wanted)
        sent = message != NULL and send(client, get, message, wanted.signing)
        crt.release_message(message)
    if not sent:
        if get.pool != NULL:
            leave(pool)
            get.pool = NULL
        release_get(get)
    return sent


cdef void* new_message(const wanted_t* wanted) noexcept nogil:
    """Return the message of a GET; NULL without memory."""
    cdef void* message = crt.new_request(crt.default_allocator())
    cdef size_t index
    if message == NULL:
        return NULL
    crt.set_method(message, cursor(b"GET", 3))
    crt.set_path(message, wanted.path)
    for index in range(wanted.headers_count):
        crt.add_header(message, wanted.headers[index])
    if wanted.range != NULL:
        crt.add_header(message, wanted.range[0])
    return message
