"""Connections of our own for small GETs, past the CRT's S3 client (`_http`).

If none is idle, the S3 client gets the GET. `connections` opens as many as there are GETs at the
same time. A connection whose GET was cancelled, or that the store closes, is not used again.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from mountpoint.native._sync cimport (
    atomic_add,
    now_s,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from mountpoint.s3.crt.native._functions cimport crt


# A connection that is closed so soon without an answer was of no use: the store wants no more.
cdef double SHORT_S = 1.0


cdef Connection* enter(Pool* pool, bint* missed) noexcept nogil:
    """Note that a GET begins, and take an idle connection for it; NULL: there is none.

    `missed` is set to whether there could be one if Python opened more. The caller has a reference
    to the pool then, until `leave`.
    """
    cdef Connection* connection
    atomic_add(&pool.refs, 1)
    pthread_mutex_lock(&pool.mutex)
    pool.gets += 1
    pool.most_gets = max(pool.most_gets, pool.gets)
    while True:
        connection = pool.idle
        if connection == NULL:
            break
        pool.idle = connection.next
        if crt.new_requests_allowed(connection.native):
            break
        discard(pool, connection, True)
    missed[0] = connection == NULL and pool.grows
    pthread_mutex_unlock(&pool.mutex)
    return connection


cdef void leave(Pool* pool) noexcept nogil:
    """Note that a GET has ended; its connection, if it had one, was given back."""
    pthread_mutex_lock(&pool.mutex)
    pool.gets -= 1
    pthread_mutex_unlock(&pool.mutex)
    release_pool(pool)


cdef void give_back(Pool* pool, Connection* connection) noexcept nogil:
    """Give a connection back to its pool."""
    cdef bint usable = crt.new_requests_allowed(connection.native)
    pthread_mutex_lock(&pool.mutex)
    if usable and not pool.ended:
        connection.idle_since_s = now_s()
        connection.next = pool.idle
        pool.idle = connection
    else:
        discard(pool, connection, not usable)
    pthread_mutex_unlock(&pool.mutex)


cdef void discard(Pool* pool, Connection* connection, bint died) noexcept nogil:
    """Leave a connection for Python to free (mutex held). `died`: it was closed."""
    if died and not connection.proven and now_s() - connection.idle_since_s < SHORT_S:
        pool.useless += 1
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
    cdef Connection* closed
    cdef Connection** link = &pool.idle
    cdef double idle_since_s = now_s() - max_idle_s
    cdef bint died
    with nogil:
        pthread_mutex_lock(&pool.mutex)
        pool.ended = pool.ended or ending
        while link[0] != NULL:
            connection = link[0]
            died = not crt.new_requests_allowed(connection.native)
            if ending or died or connection.idle_since_s < idle_since_s:
                link[0] = connection.next
                discard(pool, connection, died)
            else:
                link = &connection.next
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
        with nogil:
            pthread_mutex_lock(&self.pool.mutex)
            self.pool.count += 1
            pthread_mutex_unlock(&self.pool.mutex)
            give_back(self.pool, it)

    def missing(self, double max_idle_s):
        """Return how many more connections GETs could have used since the last call.

        Lets go of those that the store has closed, and of those that were idle for so long.
        """
        cdef int missing
        sweep(self.pool, max_idle_s, False)
        with nogil:
            pthread_mutex_lock(&self.pool.mutex)
            missing = 0 if self.pool.ended else self.pool.most_gets - self.pool.count
            self.pool.most_gets = self.pool.gets
            pthread_mutex_unlock(&self.pool.mutex)
        return max(missing, 0)

    def grow(self, bint grows):
        """Note whether more connections can be opened: then GETs that have none say so at once."""
        pthread_mutex_lock(&self.pool.mutex)
        self.pool.grows = grows
        pthread_mutex_unlock(&self.pool.mutex)

    def take_useless(self):
        """Return how many the store has soon closed, without any answer, since the last call."""
        cdef int useless
        pthread_mutex_lock(&self.pool.mutex)
        useless = self.pool.useless
        self.pool.useless = 0
        pthread_mutex_unlock(&self.pool.mutex)
        return useless

    @property
    def count(self):
        """The connections that are open, as far as this is known."""
        cdef int count
        pthread_mutex_lock(&self.pool.mutex)
        count = self.pool.count
        pthread_mutex_unlock(&self.pool.mutex)
        return count

    def end(self):
        """Close connections that are idle, and from now on those that are given back."""
        sweep(self.pool, 0, True)
