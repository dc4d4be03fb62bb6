"""The FUSE channel: negotiate with the kernel what libfuse 2.9 cannot.

libfuse 2.9, below llfuse, speaks an old protocol: 128 KiB at a time, 12 requests in the background,
and no flags for an opened file. llfuse receives each request with `fuse_session_receive_buf`, and
answers it through the channel that this call returns. This module exports a function of that name.
If it is loaded with RTLD_GLOBAL before llfuse, llfuse calls this function. It calls libfuse's own,
and after the kernel's INIT it returns our channel on the same descriptor. Our channel's `send`
completes libfuse's answers to INIT (`complete`), OPEN and CREATE (`flags_of_open`), and writes all
others unchanged. libfuse itself negotiates writes of 1 MiB once a channel has room for them.

A thread of llfuse receives a request, answers it, and receives the next one. So the facts about a
request are kept per thread (`served`). That also works without the channel.

In the same way llfuse calls this module to mount. A descriptor that another process has mounted is
only taken over (`take`).

Where any of this does not hold (another loader, a statically linked libfuse, a kernel without
MAX_PAGES), requests pass through unchanged, and everything works as with plain llfuse.

A READ whose bytes are here is answered on the way (`_reads`), and llfuse does not see it. Neither
does it see the OPEN and RELEASE of files that were prepared for that (`_opens`).

A READDIRPLUS, which libfuse does not know, becomes a READDIR, and its answer gets the attributes of
the entries (`_listings`), which the operation has set for it (`set_listed`).

A request whose program is killed meanwhile is answered by another thread (`_callers`).

A mount can outlive its process: then the next one takes over the descriptor, and gets INIT from
memory (`_survival`).

The code that a request passes through takes no GIL: it runs between the kernel and llfuse.

`_protocol.pxd` has the layouts and the protocol's numbers.
"""

from libc.errno cimport EIO, ENOENT, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.fcntl cimport O_ACCMODE, O_APPEND, O_RDONLY, O_TRUNC

from mountpoint.fuse._protocol cimport (
    ASYNC_DIO,
    BUF_IS_FD,
    CLOCK_MONOTONIC,
    CREATE,
    CREATE_OUT_BYTES,
    DIRECT_IO,
    DO_READDIRPLUS,
    INIT,
    INVAL_INODE,
    MADV_DONTNEED,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MAX_PAGES,
    NOFLUSH,
    OPEN,
    PARALLEL_DIROPS,
    PROT_READ,
    PROT_WRITE,
    READDIR,
    READDIRPLUS,
    RENAME,
    RENAME2,
    RTLD_LAZY,
    RTLD_NOLOAD,
    SHORT_INIT_OUT,
    WRITE,
    InHeader,
    InitIn,
    InitOut,
    InvalInodeOut,
    OpenIn,
    OpenOut,
    OutHeader,
    ReadIn,
    Rename2In,
    chan_fd_function,
    chan_new_function,
    clock_gettime,
    dlopen,
    dlsym,
    fuse_buf,
    fuse_chan_ops,
    iovec,
    kern_chan_new_function,
    madvise,
    mmap,
    mount_function,
    munmap,
    pthread_key_create,
    pthread_key_t,
    pthread_setspecific,
    receive_function,
    timespec,
    writev,
)
from mountpoint.fuse._callers cimport begin_serving, end_serving
from mountpoint.fuse._listings cimport merge
from mountpoint.fuse._opens cimport answer_open
from mountpoint.fuse._reads cimport answer_read, write_all
from mountpoint.fuse._survival cimport (
    is_kept_init,
    is_repeated,
    keep_init,
    keep_request,
    number_of,
    resumed,
    resuming,
    take_init,
    wait_while_held,
)

cdef enum:
    MAX_WRITE_BYTES = 1 << 20
    # With room for the headers, which libfuse subtracts again.
    PAGE_BYTES = 4096
    BUFFER_BYTES = MAX_WRITE_BYTES + PAGE_BYTES
    LARGE_BYTES = 64 << 10  # a thread keeps this much; it returns the rest of a larger request

    # The version that introduced all that is negotiated here. The kernel's own may be newer.
    MINOR = 31
    MIN_MINOR = 28  # MAX_PAGES
    # 1 MiB, the kernel's own limit (fs.fuse.max_pages_limit).
    PAGES = 256
    # The upper limit for read_ahead_kb: the kernel takes the smaller of the two.
    READ_AHEAD_BYTES = 16 << 20
    # Reads ahead of all files together (default 12). With a latency of 20 ms the default would
    # limit many readers. From the second number on the kernel reports congestion.
    BACKGROUND = 64
    CONGESTION = 48

# Libfuse's own functions; NULL until `resolve`.
cdef receive_function real_receive = NULL
cdef chan_new_function chan_new = NULL
cdef chan_fd_function chan_fd = NULL
cdef kern_chan_new_function kern_chan_new = NULL
cdef mount_function real_mount = NULL

# One mount per process. Written by the thread that gets INIT, before any second request.
cdef bint wanted = False
cdef uint32_t listings_wanted = 0  # flags of INIT for those with attributes
cdef int taken = -1  # /dev/fuse, mounted by another process
cdef int mounted = -1  # /dev/fuse
cdef void* channel = NULL
cdef int descriptor = -1
cdef InHeader init_header
cdef InitIn init_in
cdef bint done = False
# Whether the kernel has ended the mount, so that no more requests will come.
cdef bint over = False
cdef fuse_chan_ops operations

# The request that this thread serves: llfuse answers it before it receives another one.
cdef extern from *:
    """
    static __thread struct {
        char *memory;               /* BUFFER_BYTES for its requests; or NULL */
        int64_t large_ns;           /* when the last large request filled it, or 0 */
        uint32_t pid;               /* the thread that sent the request */
        int repeated;               /* whether a dead process had taken it, too */
        uint64_t number;            /* that of the request; the same if it is repeated */
        uint64_t opens;             /* its `unique` if it is an OPEN or CREATE, else 0 */
        uint32_t flags;             /* flags that its answer gets besides libfuse's */
        uint32_t rename_flags;      /* those of renameat2(2), if it is a RENAME */
        int appends;                /* whether it is a WRITE with O_APPEND */
        uint64_t lists;             /* its `unique` if it is a READDIRPLUS, else 0 */
        uint32_t room;              /* the largest answer to it, bytes */
        char *listed;               /* the attributes of its entries; or NULL. Freed with the answer
                                       or at the next request */
        size_t listed_size;
    } served;
    """
    cdef struct Served:
        char* memory
        int64_t large_ns
        uint32_t pid
        int repeated
        uint64_t number
        uint64_t opens
        uint32_t flags
        uint32_t rename_flags
        bint appends
        uint64_t lists
        uint32_t room
        char* listed
        size_t listed_size
    Served served
cdef pthread_key_t memory_key  # unmaps `memory` when the thread ends
# CLOCK_MONOTONIC. All threads write it; any of their values is accurate enough.
cdef int64_t last_large_ns = 0
cdef bint writes_survive = False
cdef int64_t unwanted_ns = 0  # memory that was filled until then may be returned


cdef bint offers_enough(const InitIn* asked) noexcept nogil:
    return asked.major == 7 and asked.minor >= MIN_MINOR and asked.flags & MAX_PAGES != 0


cdef void complete(const InitIn* asked, const void* short_answer, InitOut* answer) noexcept nogil:
    """Extend libfuse's answer of SHORT_INIT_OUT bytes to `answer`, with what the kernel offers."""
    memset(answer, 0, sizeof(InitOut))
    memcpy(answer, short_answer, SHORT_INIT_OUT)
    answer.minor = min(asked.minor, <uint32_t>MINOR)
    answer.max_readahead = max(answer.max_readahead, <uint32_t>READ_AHEAD_BYTES)
    answer.flags |= asked.flags & (MAX_PAGES | PARALLEL_DIROPS | ASYNC_DIO)
    answer.flags |= asked.flags & listings_wanted
    answer.max_background = BACKGROUND
    answer.congestion_threshold = CONGESTION
    answer.time_gran_ns = 1
    answer.max_pages = PAGES


cdef public void* fuse_mount(const char* directory, void* options) noexcept nogil:
    """Replace libfuse's function of this name, which llfuse calls to mount. NULL if it fails."""
    global mounted
    cdef void* made = real_mount(directory, options) if taken < 0 else kern_chan_new(taken)
    if made != NULL:
        mounted = chan_fd(made)
    return made


cdef public int fuse_session_receive_buf(
    void* session, fuse_buf* buf, void** chp
) noexcept nogil:
    """Replace libfuse's function of this name, which llfuse calls for each request."""
    global over
    cdef int size
    cdef void* channel_of_libfuse = chp[0]
    served.pid = 0
    served.number = 0
    served.opens = 0
    forget_listed()
    while True:
        end_serving()
        # From the first request on: a thread that waits with a smaller buffer when INIT is answered
        # would have no other buffer for the largest write.
        if wanted and not make_room(buf):
            return -ENOMEM
        chp[0] = channel_of_libfuse
        size = receive(session, buf, chp)
        if size == 0:  # ENODEV: unmounted, or aborted by `umount -f`
            over = True
        if size < <int>sizeof(InHeader):
            return size
        if channel == NULL or buf.flags & BUF_IS_FD:
            break
        keep_request(<const InHeader*>buf.mem)
        begin_serving(<const InHeader*>buf.mem)
        wait_while_held()
        if not (
            answer_read(<const char*>buf.mem, size, descriptor)
            or answer_open(<const char*>buf.mem, size, descriptor)
        ):
            break
    if wanted and size > LARGE_BYTES:
        note_large()
    if not buf.flags & BUF_IS_FD:
        note(<const char*>buf.mem, size, chp[0])
        size = as_rename(<char*>buf.mem, size)
        as_readdir(<char*>buf.mem, size)
    if channel != NULL:
        chp[0] = channel
    return size


cdef int receive(void* session, fuse_buf* buf, void** chp) noexcept nogil:
    """Receive a request from the kernel; the first one, of a mount that goes on, from memory."""
    cdef int size
    if wanted and resuming():
        size = take_init(<char*>buf.mem, buf.size)
        if size > 0:
            return size
    return real_receive(session, buf, chp)


cdef bint make_room(fuse_buf* buf) noexcept nogil:
    """Receive the request into memory of our own; llfuse keeps and frees its own memory itself."""
    cdef void* memory
    cdef size_t offset
    if served.memory == NULL:
        # Pages that no request has filled cost nothing.
        memory = mmap(
            NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if memory == MAP_FAILED:
            return False
        madvise(memory, BUFFER_BYTES, MADV_NOHUGEPAGE)  # or a small request would take 2 MiB of it
        pthread_setspecific(memory_key, memory)
        served.memory = <char*>memory
        if writes_survive:
            offset = 0
            while offset < BUFFER_BYTES:
                (<volatile char*>served.memory)[offset] = 0
                offset += PAGE_BYTES
    elif served.large_ns != 0 and served.large_ns <= unwanted_ns and not writes_survive:
        madvise(served.memory, BUFFER_BYTES, MADV_DONTNEED)
        served.large_ns = 0
    # A request fails with EIO if this process is killed while the kernel has to find a page for it
    # (fuse_dev_do_read). All but writes fit into the first page, so that one is here.
    (<volatile char*>served.memory)[0] = 0
    buf.mem = served.memory
    buf.size = BUFFER_BYTES
    return True


cdef void note_large() noexcept nogil:
    global last_large_ns
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    served.large_ns = last_large_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void unmap(void* memory) noexcept nogil:
    munmap(memory, BUFFER_BYTES)


cdef void note(const char* request, int size, void* theirs) noexcept nogil:
    cdef const InHeader* header = <const InHeader*>request
    served.pid = header.pid
    served.repeated = is_repeated(header)
    served.number = number_of(header)
    if header.opcode == OPEN and size >= <int>(sizeof(InHeader) + sizeof(OpenIn)):
        served.opens = header.unique
        served.flags = flags_of_open((<const OpenIn*>(request + sizeof(InHeader))).flags)
    elif header.opcode == WRITE and size >= <int>(sizeof(InHeader) + sizeof(ReadIn)):
        served.appends = (<const ReadIn*>(request + sizeof(InHeader))).flags & O_APPEND != 0
    elif header.opcode == CREATE:
        served.opens = header.unique
        served.flags = DIRECT_IO
    elif header.opcode == INIT and wanted and channel == NULL:
        note_init(request, size, theirs)


cdef int as_rename(char* request, int size) noexcept nogil:
    """Turn a RENAME2 into a RENAME, which libfuse knows; keep its flags; return the new size.

    Otherwise renameat2(2) would fail, and `mv` would look up all names once more.
    """
    cdef InHeader* header = <InHeader*>request
    cdef int body = sizeof(InHeader) + sizeof(uint64_t)
    cdef int surplus = sizeof(Rename2In) - sizeof(uint64_t)
    served.rename_flags = 0
    if header.opcode != RENAME2 or size < body + surplus:
        return size
    served.rename_flags = (<Rename2In*>(request + sizeof(InHeader))).flags
    header.opcode = RENAME
    header.length -= surplus
    memmove(request + body, request + body + surplus, size - body - surplus)
    return size - surplus


cdef void as_readdir(char* request, int size) noexcept nogil:
    """Turn a READDIRPLUS into a READDIR, which libfuse knows."""
    cdef InHeader* header = <InHeader*>request
    if header.opcode == READDIRPLUS and size >= <int>(sizeof(InHeader) + sizeof(ReadIn)):
        header.opcode = READDIR
        served.lists = header.unique
        served.room = (<const ReadIn*>(request + sizeof(InHeader))).size


cdef void forget_listed() noexcept nogil:
    free(served.listed)
    served.listed = NULL
    served.listed_size = 0
    served.lists = 0


cpdef uint32_t flags_of_open(uint32_t flags) noexcept nogil:
    """Return the flags of the answer to an OPEN, by the flags of open(2)."""
    if flags & O_TRUNC or flags & O_ACCMODE != O_RDONLY:
        # Writes bypass the page cache. There they cost three times as much, and take the place of
        # what is read. With O_DIRECT the kernel would also send all pieces of a write at once
        # (ASYNC_DIO), in any order. And such a file cannot be mapped for shared writing (ENODEV):
        # bytes that a program stores in a mapping of a file that is only read here would be in its
        # pages, visible to all other readers, and in no object.
        return DIRECT_IO
    return NOFLUSH  # close(2) then waits for no answer


cdef void note_init(const char* request, int size, void* theirs) noexcept nogil:
    global channel, descriptor
    if size < <int>(sizeof(InHeader) + sizeof(InitIn)):
        return
    memcpy(&init_header, request, sizeof(InHeader))
    memcpy(&init_in, request + sizeof(InHeader), sizeof(InitIn))
    if not offers_enough(&init_in):
        return
    keep_init(request, size)
    descriptor = chan_fd(theirs)
    operations.receive = NULL
    operations.send = &send
    operations.destroy = NULL
    channel = chan_new(&operations, descriptor, BUFFER_BYTES, NULL)


cdef int send(void* _channel, const iovec* pieces, size_t count) noexcept nogil:
    """Write an answer. At its end the kernel wakes the thread that sent the request."""
    cdef OutHeader header
    cdef InitOut init_out
    cdef char opened[CREATE_OUT_BYTES]
    cdef size_t size
    global done
    if count == 2:
        size = pieces[1].iov_len
        memcpy(&header, pieces[0].iov_base, sizeof(OutHeader))
        if not done and is_for(init_header.unique, &header):
            if size == SHORT_INIT_OUT:
                complete(&init_in, pieces[1].iov_base, &init_out)
                done = True
                if not is_kept_init(header.unique):
                    return write_answer(&header, &init_out, sizeof(InitOut))
                # The kernel refuses a second answer. It has none if the process died too soon.
                write_answer(&header, &init_out, sizeof(InitOut))
                resumed(descriptor)
                return 0
        elif served.opens != 0 and is_for(served.opens, &header):
            if size == sizeof(OpenOut) or size == CREATE_OUT_BYTES:
                memcpy(opened, pieces[1].iov_base, size)
                (<OpenOut*>&opened[size - sizeof(OpenOut)]).flags |= served.flags
                return write_answer(&header, opened, size)
        elif served.lists != 0 and is_for(served.lists, &header):
            return write_listing(&header, <const char*>pieces[1].iov_base, size)
    return write_all(descriptor, pieces, count)


cdef int write_listing(OutHeader* header, const char* listing, size_t size) noexcept nogil:
    """Write an answer to READDIRPLUS."""
    cdef size_t merged_size = 0
    cdef int result
    cdef char* merged = merge(listing, size, served.listed, served.listed_size, &merged_size)
    forget_listed()
    if merged == NULL or merged_size > served.room:
        header.error = -EIO
        merged_size = 0
    result = write_answer(header, merged, merged_size)
    free(merged)
    return result


cdef bint is_for(uint64_t unique, const OutHeader* answer) noexcept nogil:
    return answer.unique == unique and answer.error == 0


cdef int write_answer(OutHeader* header, void* body, size_t size) noexcept nogil:
    cdef iovec pieces[2]
    header.length = <uint32_t>(sizeof(OutHeader) + size)
    pieces[0].iov_base = header
    pieces[0].iov_len = sizeof(OutHeader)
    pieces[1].iov_base = body
    pieces[1].iov_len = size
    return write_all(descriptor, pieces, 2)


cdef bint is_resolved() noexcept nogil:
    return (
        real_receive != NULL and real_mount != NULL
        and chan_new != NULL and chan_fd != NULL and kern_chan_new != NULL
    )


def resolve(str library):
    """Find libfuse's own functions through `library`, the path of llfuse, which must be loaded.

    Return whether all were found. Only then can requests pass through this module.
    """
    global real_receive, real_mount, chan_new, chan_fd, kern_chan_new
    cdef bytes path = library.encode()
    cdef void* handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if handle == NULL:
        return False
    # Searched in llfuse's own dependencies, so that a libfuse inside a wheel is found too.
    real_receive = <receive_function>dlsym(handle, b"fuse_session_receive_buf")
    chan_new = <chan_new_function>dlsym(handle, b"fuse_chan_new")
    chan_fd = <chan_fd_function>dlsym(handle, b"fuse_chan_fd")
    kern_chan_new = <kern_chan_new_function>dlsym(handle, b"fuse_kern_chan_new")
    real_mount = <mount_function>dlsym(handle, b"fuse_mount")
    return is_resolved()


def want(bint yes):
    """Set before mounting whether to negotiate more. Has no effect if `resolve` has failed."""
    global wanted
    if yes and not wanted and is_resolved():
        wanted = pthread_key_create(&memory_key, &unmap) == 0
    elif not yes:
        wanted = False


def want_attributes(bint yes):
    """Set before mounting whether the kernel asks for the attributes of listed entries."""
    global listings_wanted
    listings_wanted = DO_READDIRPLUS if yes else 0


def take(int number):
    """Make the next mount use this descriptor of /dev/fuse, which is mounted already.

    Return False if `resolve` has failed: then that is not possible.
    """
    global taken
    if is_resolved():
        taken = number
    return is_resolved()


def device():
    """Return the descriptor of /dev/fuse, known when it is mounted; else -1."""
    return mounted


def negotiated():
    """Whether the kernel offers reads of 1 MiB and uses them; known from INIT on."""
    return channel != NULL


def is_over():
    """Whether the kernel has ended the mount. Requests may still be in progress."""
    return over


def request_pid():
    """Return the id of the thread whose request this thread of llfuse serves.

    0 where that is not known: in a thread that serves none, or if `resolve` has failed.
    """
    return served.pid


def is_repeated_request():
    """Whether a process that has died had taken the request that this thread serves, too."""
    return bool(served.repeated)


def request_number():
    """Return the number of the request that this thread serves, the same if it is repeated; or 0."""
    return served.number


def rename_flags():
    """Return the renameat2(2) flags of the RENAME that this thread serves."""
    return served.rename_flags


def appends():
    """Whether the WRITE that this thread serves is one with O_APPEND: it writes at the end."""
    return bool(served.appends)


def listing_room():
    """Return the largest answer in bytes to the READDIRPLUS that this thread serves; 0: READDIR."""
    return served.room if served.lists != 0 else 0


def set_listed(bytes attributes not None):
    """Set the attributes of all entries that this thread answers to a READDIRPLUS.

    They are as many struct fuse_entry_out. Together with the entries they must fit into the room.
    """
    cdef char* memory = <char*>malloc(len(attributes) + 1)
    if memory == NULL:
        raise MemoryError()
    memcpy(memory, <const char*>attributes, len(attributes))
    free(served.listed)
    served.listed = memory
    served.listed_size = len(attributes)


def go_direct():
    """Make the file of the OPEN that this thread serves bypass the page cache."""
    served.flags = DIRECT_IO


def drop_pages(uint64_t inode):
    """Make the kernel forget all pages and attributes of an inode; True once it has none.

    False without our channel.
    """
    cdef OutHeader header
    cdef InvalInodeOut out
    cdef iovec pieces[2]
    cdef bint dropped
    if channel == NULL:
        return False
    header.error = INVAL_INODE
    header.unique = 0
    out.inode = inode
    out.offset = 0
    out.length = 0
    header.length = <uint32_t>(sizeof(OutHeader) + sizeof(InvalInodeOut))
    pieces[0].iov_base = &header
    pieces[0].iov_len = sizeof(OutHeader)
    pieces[1].iov_base = &out
    pieces[1].iov_len = sizeof(InvalInodeOut)
    with nogil:
        # ENOENT: the kernel does not know the inode.
        dropped = writev(descriptor, pieces, 2) >= 0 or errno == ENOENT
    return dropped


def last_large():
    """Return when the last large request came, as time.monotonic_ns() does; 0 if none did."""
    return last_large_ns


def let_writes_survive():
    """Have writes in progress survive this process, too, not only other requests.

    Then all pages of a thread's memory are here, always (`make_room`). Call it before mounting.
    """
    global writes_survive
    writes_survive = True


def return_memory(int64_t until_ns):
    """Make each thread return the memory that large requests had filled by `until_ns`.

    A thread does so before it receives a request. A thread that waits must be interrupted (EINTR).
    """
    global unwanted_ns
    unwanted_ns = until_ns


def completed_init(bytes request not None, bytes answer not None):
    """Return libfuse's `answer` to the INIT `request`, extended; both without headers."""
    cdef InitIn asked
    cdef InitOut out
    if len(request) < <Py_ssize_t>sizeof(InitIn) or len(answer) != SHORT_INIT_OUT:
        raise ValueError("not an INIT and libfuse's answer to it")
    memcpy(&asked, <const char*>request, sizeof(InitIn))
    if not offers_enough(&asked):
        return answer
    complete(&asked, <const char*>answer, &out)
    return (<char*>&out)[:sizeof(InitOut)]
