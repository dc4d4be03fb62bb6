# HTTP connections on which GETs are sent past the S3 client.
#
# Ownership: the plane, and each connection that is in use, own one reference to the `Pool`; the last
# release frees it with its connections. A `Connection` belongs to one list of the pool, or to the
# GET that uses it, from `enter` to the GET's end. It owns a reference to awscrt's object.

from mountpoint.native._sync cimport pthread_mutex_t
from mountpoint.s3.crt.native._gets cimport Get

cdef struct Connection:
    void* native                # the CRT's
    void* object                # awscrt's HttpClientConnection: a reference
    Pool* pool
    double idle_since_s         # monotonic clock
    Connection* next            # in a list of the pool

cdef struct Pool:
    int refs                    # atomic
    pthread_mutex_t mutex       # guards all that follows
    Connection* idle            # last in, first out, so that surplus ones stay idle
    Connection* closed          # of no more use; Python frees them
    int count                   # idle ones, and those in use
    int reads                   # reads that are waiting for a GET
    int most_reads              # likewise, the most since Python looked
    bint ended                  # the mount ends: connections are not kept

cdef class Connections:
    cdef Pool* pool

cdef Connection* enter(Pool* pool) noexcept nogil
cdef void leave(Pool* pool) noexcept nogil
cdef bint send_on(
    Connection* connection, Get* get, void* message, const void* signing
) noexcept nogil
cdef void release_pool(Pool* pool) noexcept nogil
