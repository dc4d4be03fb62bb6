# A pool of HTTP connections.
#
# Ownership: the plane, and each GET from `enter` to `leave`, own one reference to the `Pool`; the
# last release frees it with its connections. A `Connection` belongs to one list of the pool, or to
# the GET that uses it, until it is given back. It owns a reference to awscrt's object.

from mountpoint.native._sync cimport pthread_mutex_t

cdef struct Connection:
    void* native                # the CRT's
    void* object                # awscrt's HttpClientConnection: a reference
    double idle_since_s         # monotonic clock
    bint proven                 # it has brought an answer
    Connection* next            # in a list of the pool

cdef struct Pool:
    int refs                    # atomic
    pthread_mutex_t mutex       # guards all that follows
    Connection* idle            # last in, first out, so that surplus ones stay idle
    Connection* closed          # of no more use; Python frees them
    int count                   # idle ones, and those in use
    int gets                    # under way: on a connection, or for lack of one by the S3 client
    int most_gets               # likewise, the most since Python looked
    int useless                 # connections that the store has soon closed, without any answer
    bint grows                  # more connections can be opened
    bint ended                  # the mount ends: connections are not kept

cdef class Connections:
    cdef Pool* pool

cdef Connection* enter(Pool* pool, bint* missed) noexcept nogil
cdef void leave(Pool* pool) noexcept nogil
cdef void give_back(Pool* pool, Connection* connection) noexcept nogil
