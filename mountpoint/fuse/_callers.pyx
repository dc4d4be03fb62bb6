"""Programs that are killed while they wait for an answer.

A program whose request was received waits until it is answered, even if it is killed: until then it
is in uninterruptible sleep. If S3 is silent, that can be as long as --read-timeout. So another
thread answers the requests of killed programs with EINTR (`abandon`). The thread that serves such a
request goes on, and the kernel drops its answer.

With some answers the kernel gets something that it gives back later: a lookup of an inode, or a
handle. The thread that serves such a request claims it before it answers (`claim`). After that no
other thread answers it. If another thread has done so before, the first one gives it back itself.

Requests of a writer are not answered so: the file would be released while it is written. For them
the file's handle is known, and the file system decides: it ends the upload that they wait for, or
lets it go on without the program. A write to a staged file waits while others upload it; it is
claimed when the file is about to be changed, or else changes nothing.
"""

from libc.errno cimport EINTR
from libc.stdint cimport uint32_t, uint64_t

from mountpoint.fuse._protocol cimport (
    BATCH_FORGET,
    DESTROY,
    FLUSH,
    FORGET,
    FSYNC,
    INIT,
    INTERRUPT,
    RELEASE,
    RELEASEDIR,
    WRITE,
    InHeader,
)
from mountpoint.fuse._survival cimport send_header

cdef extern from *:
    """
    #define MAX_SERVERS 1100  /* more than --max-threads permits */
    #define load_u32(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)
    #define load_u64(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)
    #define store_u32(pointer, value) __atomic_store_n(pointer, value, __ATOMIC_RELEASE)
    #define store_u64(pointer, value) __atomic_store_n(pointer, value, __ATOMIC_RELEASE)
    #define next_server(pointer) __atomic_fetch_add(pointer, 1, __ATOMIC_RELAXED)

    static int replace_u64(uint64_t *pointer, uint64_t old, uint64_t value) {
        return __atomic_compare_exchange_n(
            pointer, &old, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }

    /* What a thread serves, in a cache line of its own. All of it is atomic: other threads read it
       meanwhile, and drop what they have read if `unique` was not the same before and after. */
    typedef struct {
        uint64_t unique;  /* of the request; 0 if it serves none. ABANDONED: it is answered */
        uint64_t handle;  /* of the file, if the request is one of a writer's, else 0 */
        uint32_t pid;     /* the thread that waits for the answer */
    } __attribute__((aligned(64))) server_t;

    static server_t servers[MAX_SERVERS];
    static __thread server_t *own;
    """
    enum: MAX_SERVERS
    uint32_t load_u32(uint32_t*) nogil
    uint64_t load_u64(uint64_t*) nogil
    void store_u32(uint32_t*, uint32_t) nogil
    void store_u64(uint64_t*, uint64_t) nogil
    uint32_t next_server(uint32_t*) nogil
    bint replace_u64(uint64_t*, uint64_t, uint64_t) nogil
    ctypedef struct server_t:
        uint64_t unique
        uint64_t handle
        uint32_t pid
    server_t servers[]
    server_t* own

# The kernel's numbers are even (FUSE_REQ_ID_STEP).
cdef uint64_t ABANDONED = 1
cdef uint32_t count = 0  # threads that serve requests. Atomic.


cdef void begin_serving(const InHeader* header) noexcept nogil:
    """Note the request that this thread serves from now on."""
    global own
    cdef uint32_t place
    cdef uint64_t handle = 0
    if own == NULL:
        place = next_server(&count)
        if place >= MAX_SERVERS:
            return
        own = &servers[place]
    if is_unawaited(header.opcode):
        return
    if header.opcode in (WRITE, FSYNC, FLUSH):
        handle = (<const uint64_t*>(<const char*>header + sizeof(InHeader)))[0]
    store_u32(&own.pid, header.pid)
    store_u64(&own.handle, handle)
    store_u64(&own.unique, header.unique)


cdef void end_serving() noexcept nogil:
    """Note that this thread has answered its request."""
    if own != NULL:
        store_u64(&own.unique, 0)


cdef uint32_t servers_in_use() noexcept nogil:
    return min(load_u32(&count), <uint32_t>MAX_SERVERS)


cdef bint is_unawaited(uint32_t opcode) noexcept nogil:
    """Whether no program waits for the answer to a request of this kind."""
    return opcode in (FORGET, BATCH_FORGET, INTERRUPT, INIT, DESTROY, RELEASE, RELEASEDIR)


cdef bint claim_request() noexcept nogil:
    """Whether this thread answers the request that it serves; False if another one has done so."""
    cdef uint64_t unique
    if own == NULL:
        return True
    unique = load_u64(&own.unique)
    return unique == 0 or (unique & ABANDONED == 0 and replace_u64(&own.unique, unique, 0))


def claim():
    """See `claim_request`."""
    return bool(claim_request())


def is_abandoned():
    """Whether another thread has answered the request that this thread serves."""
    return own != NULL and load_u64(&own.unique) & ABANDONED != 0


def waiting():
    """Return the requests in progress.

    That is each one's number, the thread that waits for it, and the file's handle if the request is
    one of a writer's, else 0.
    """
    cdef uint32_t index, pid
    cdef uint64_t unique, handle
    found = []
    for index in range(servers_in_use()):
        unique = load_u64(&servers[index].unique)
        pid = load_u32(&servers[index].pid)
        handle = load_u64(&servers[index].handle)
        if unique and not unique & ABANDONED and unique == load_u64(&servers[index].unique):
            found.append((unique, pid, handle))
    return found


def abandon(int descriptor, uint64_t unique):
    """Answer this request with EINTR, on /dev/fuse, unless it has been answered or claimed."""
    cdef uint32_t index
    for index in range(servers_in_use()):
        if replace_u64(&servers[index].unique, unique, unique | ABANDONED):
            send_header(descriptor, unique, -EINTR)
            return True
    return False
