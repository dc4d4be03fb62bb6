"""The kernel's side of a mount that goes on when its process has died.

Another process keeps /dev/fuse open, so the kernel keeps the mount, and its requests wait. A new
process can answer them once it knows what the kernel said only to the first one, and what it had
told the dead one. Both are in memory that outlives a process (`keep`):

* INIT. libfuse gets it again, from here. The kernel needs the answer only if the process died
  before it had given one.
* The requests that each thread has taken. The kernel sends them again if it can
  (FUSE_NOTIFY_RESEND, Linux 6.9), with a mark in `unique`. Otherwise they fail with EIO.

A repeated request may have been carried out. `Operations` knows for which ones that matters.
"""

from libc.errno cimport EIO
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport nanosleep, timespec

from mountpoint.fuse._protocol cimport (
    HAS_RESEND,
    INIT_EXT,
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    RESEND,
    InHeader,
    InitIn,
    InitMore,
    OutHeader,
    iovec,
    mmap,
)
from mountpoint.fuse._reads cimport write_all

cdef extern from *:
    """
    #define load_int(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)
    #define store_int(pointer, value) __atomic_store_n(pointer, value, __ATOMIC_RELEASE)
    #define exchange_int(pointer, value) __atomic_exchange_n(pointer, value, __ATOMIC_ACQ_REL)
    #define next_u32(pointer) __atomic_fetch_add(pointer, 1, __ATOMIC_RELAXED)
    /* Each thread's own place in `taken`, plus one. */
    static __thread uint32_t place;
    """
    int load_int(int*) nogil
    void store_int(int*, int) nogil
    int exchange_int(int*, int) nogil
    uint32_t next_u32(uint32_t*) nogil
    uint32_t place

cdef enum:
    FORMAT = 1
    MAX_INIT_BYTES = 256
    MAX_THREADS = 1100  # more than --max-threads permits
    WAIT_NS = 1000000

    # What a process does with INIT.
    RECEIVES = 0  # the kernel sends it
    REPEATS = 1  # it comes from `kept`
    WAITS = 2  # it has come from there, and its answer has not
    SERVES = 3

cdef uint64_t RESENT = 1ULL << 63  # in `unique` (FUSE_UNIQUE_RESEND)

cdef struct Kept:
    uint32_t format
    uint32_t init_bytes
    char init[MAX_INIT_BYTES]
    uint32_t threads
    uint64_t taken[MAX_THREADS]  # the last request of each thread

cdef Kept* kept = NULL
cdef int state = RECEIVES
cdef int held = False  # requests wait


cdef void pause() noexcept nogil:
    cdef timespec moment
    moment.tv_sec = 0
    moment.tv_nsec = WAIT_NS
    nanosleep(&moment, NULL)


cdef bint resuming() noexcept nogil:
    """Whether requests of the kernel have to wait, because libfuse has not answered INIT."""
    return load_int(&state) in (REPEATS, WAITS)


cdef void keep_init(const char* request, int size) noexcept nogil:
    """Keep the kernel's INIT."""
    if kept == NULL or load_int(&state) != RECEIVES or size > MAX_INIT_BYTES:
        return
    memcpy(kept.init, request, size)
    kept.init_bytes = size


cdef int take_init(char* memory, size_t room) noexcept nogil:
    """Copy the kept INIT to `memory`, and return its size; 0 if another thread has taken it.

    Then wait until it is answered.
    """
    if load_int(&state) == REPEATS and exchange_int(&state, WAITS) == REPEATS:
        memcpy(memory, kept.init, min(<size_t>kept.init_bytes, room))
        return kept.init_bytes
    while load_int(&state) == WAITS:
        pause()
    return 0


cdef bint is_kept_init(uint64_t unique) noexcept nogil:
    """Whether this request is the INIT that a dead process has received, too."""
    return load_int(&state) == WAITS and unique == (<const InHeader*>kept.init).unique


cdef void resumed(int descriptor) noexcept nogil:
    """Begin to serve, after INIT: with the requests that the dead process had taken."""
    cdef uint32_t index
    if not resends() or send_header(descriptor, 0, RESEND) < 0:
        for index in range(min(kept.threads, <uint32_t>MAX_THREADS)):
            # One that was answered before is not known to the kernel.
            send_header(descriptor, kept.taken[index], -EIO)
    kept.threads = 0
    store_int(&state, SERVES)


cdef bint resends() noexcept nogil:
    """Whether the kernel can send requests again."""
    cdef const InitIn* asked = <const InitIn*>(kept.init + sizeof(InHeader))
    cdef const InitMore* more = <const InitMore*>(kept.init + sizeof(InHeader) + sizeof(InitIn))
    return asked.flags & INIT_EXT != 0 and more.flags2 & HAS_RESEND != 0


cdef int send_header(int descriptor, uint64_t unique, int error) noexcept nogil:
    """Send the kernel a message that is only a header; return 0 or a negative errno."""
    cdef OutHeader header
    cdef iovec piece
    header.length = sizeof(OutHeader)
    header.error = error
    header.unique = unique
    piece.iov_base = &header
    piece.iov_len = sizeof(OutHeader)
    return write_all(descriptor, &piece, 1)


cdef void keep_request(const InHeader* header) noexcept nogil:
    """Keep the request that this thread has taken; it has answered the one before."""
    global place
    if kept == NULL:
        return
    if place == 0:
        place = next_u32(&kept.threads) + 1
    if place <= MAX_THREADS:
        kept.taken[place - 1] = header.unique


cdef void wait_while_held() noexcept nogil:
    """Let a request wait that has come while this process is to hand the mount over."""
    while load_int(&held):
        pause()


cdef bint is_repeated(const InHeader* header) noexcept nogil:
    """Whether a dead process had taken this request, too."""
    return header.unique & RESENT != 0


cdef uint64_t number_of(const InHeader* header) noexcept nogil:
    """Return a number for the request, the same for each process that takes it."""
    return header.unique & ~RESENT


def keep(int memory, bint resume):
    """Keep INIT and requests in `memory`, a descriptor of at least `KEPT_BYTES`, from now on.

    `resume`: go on with what a dead process has kept there. Raises OSError if it cannot be mapped,
    and ValueError if it has been kept in another format, or without INIT.
    """
    global kept, state
    cdef void* mapped = mmap(
        NULL, sizeof(Kept), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0
    )
    if mapped == MAP_FAILED:
        raise OSError("the kept requests cannot be mapped")
    kept = <Kept*>mapped
    if not resume:
        kept.format = FORMAT
    elif kept.format != FORMAT or not 0 < kept.init_bytes <= MAX_INIT_BYTES:
        kept = NULL
        raise ValueError("the requests were kept by another version of mount-s3")
    else:
        state = REPEATS


def hold(bint yes):
    """Let requests wait that come from now on, or no longer.

    If this process is killed meanwhile, the next one gets them, where the kernel can repeat them.
    """
    store_int(&held, yes)


def has_init():
    """Whether INIT is kept, so that another process can go on."""
    return kept != NULL and kept.init_bytes > 0


def repeats():
    """Whether the kernel sends again what a dead process had taken; otherwise it fails with EIO."""
    return kept != NULL and resends()


KEPT_BYTES = sizeof(Kept)
