"""The FUSE channel: what libfuse 2.9 cannot negotiate with the kernel, and the kernel offers.

libfuse 2.9, below llfuse, speaks an old protocol: reads of 128 KiB at most, 12 requests in
the background. llfuse takes each request with `fuse_session_receive_buf` and has it
answered through the channel that this call returns. This module exports a function of that
name. Loaded with RTLD_GLOBAL before llfuse, it is what llfuse calls; it calls libfuse's own,
and once it has seen the kernel's INIT it returns a channel of ours on the same descriptor.
That channel's `send` completes libfuse's answer to INIT (`complete`) and writes everything
else as it is.

Where any of this is not so (another loader, a libfuse linked statically, a kernel without
MAX_PAGES), requests pass through unchanged, and everything works as plain llfuse.

Nothing here takes the GIL: it runs between the kernel and llfuse.

Layouts and numbers: include/uapi/linux/fuse.h, fuse_lowlevel.h and fuse_common.h of libfuse
2.9.
"""

from libc.errno cimport EINTR, ENODEV, ENOENT, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char*, int)
    void* dlsym(void*, const char*)
    int RTLD_LAZY
    int RTLD_NOLOAD

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    Py_ssize_t writev(int, const iovec*, int)

cdef struct fuse_buf:
    size_t size
    int flags
    void* mem
    int fd
    long long pos

cdef struct fuse_chan_ops:
    int (*receive)(void**, char*, size_t) noexcept nogil
    int (*send)(void*, const iovec*, size_t) noexcept nogil
    void (*destroy)(void*) noexcept nogil

cdef struct InHeader:
    uint32_t length
    uint32_t opcode
    uint64_t unique
    uint64_t node
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint32_t padding

cdef struct InitIn:
    uint32_t major
    uint32_t minor
    uint32_t max_readahead
    uint32_t flags

cdef struct OutHeader:
    uint32_t length
    int error
    uint64_t unique

cdef struct InitOut:
    uint32_t major
    uint32_t minor
    uint32_t max_readahead
    uint32_t flags
    uint16_t max_background
    uint16_t congestion_threshold
    uint32_t max_write
    uint32_t time_gran_ns
    uint16_t max_pages
    uint16_t map_alignment
    uint32_t flags2
    uint32_t unused[7]

cdef enum:
    INIT = 26
    BUF_IS_FD = 1 << 1
    BUFFER_BYTES = (128 + 4) << 10  # as libfuse's own: what llfuse has allocated
    SHORT_INIT_OUT = 24  # bytes of libfuse's answer: up to max_write

    # INIT flags
    ASYNC_DIO = 1 << 15  # large O_DIRECT reads: several requests at once
    PARALLEL_DIROPS = 1 << 18  # lookups in one directory at the same time
    MAX_PAGES = 1 << 22

    # The version in which all that is asked for here existed. The kernel's own may be newer.
    MINOR = 31
    LEAST_MINOR = 28  # MAX_PAGES
    # 1 MiB, the kernel's own limit (fs.fuse.max_pages_limit).
    PAGES = 256
    # What read_ahead_kb may be set to: the kernel takes the smaller of the two.
    READ_AHEAD_BYTES = 16 << 20
    # Reads ahead of all files together (default 12): with 20 ms of latency they would be
    # what limits many readers. From the second number on the kernel calls itself congested.
    BACKGROUND = 64
    CONGESTION = 48

ctypedef int (*receive_function)(void*, fuse_buf*, void**) noexcept nogil
ctypedef void* (*chan_new_function)(fuse_chan_ops*, int, size_t, void*) noexcept nogil
ctypedef int (*chan_fd_function)(void*) noexcept nogil

# Libfuse's own functions; NULL until `resolve`.
cdef receive_function real_receive = NULL
cdef chan_new_function chan_new = NULL
cdef chan_fd_function chan_fd = NULL

# One mount per process. Written by the thread that gets INIT, before there is a second request.
cdef bint wanted = False
cdef void* channel = NULL
cdef int descriptor = -1
cdef InHeader init_header
cdef InitIn init_in
cdef bint done = False
cdef fuse_chan_ops operations


cdef bint offers_enough(const InitIn* asked) noexcept nogil:
    return asked.major == 7 and asked.minor >= LEAST_MINOR and asked.flags & MAX_PAGES != 0


cdef void complete(const InitIn* asked, const void* short_answer, InitOut* answer) noexcept nogil:
    """Make `answer` of libfuse's, SHORT_INIT_OUT bytes, and what the kernel offers beyond it."""
    memset(answer, 0, sizeof(InitOut))
    memcpy(answer, short_answer, SHORT_INIT_OUT)
    answer.minor = min(asked.minor, <uint32_t>MINOR)
    answer.max_readahead = max(answer.max_readahead, <uint32_t>READ_AHEAD_BYTES)
    answer.flags |= asked.flags & (MAX_PAGES | PARALLEL_DIROPS | ASYNC_DIO)
    answer.max_background = BACKGROUND
    answer.congestion_threshold = CONGESTION
    answer.time_gran_ns = 1
    answer.max_pages = PAGES


cdef public int fuse_session_receive_buf(
    void* session, fuse_buf* buf, void** chp
) noexcept nogil:
    """What llfuse calls for each request, in place of libfuse's function."""
    cdef int size = real_receive(session, buf, chp)
    if size > 0 and wanted and channel == NULL and not buf.flags & BUF_IS_FD:
        note_init(<const char*>buf.mem, size, chp[0])
    if size > 0 and channel != NULL:
        chp[0] = channel
    return size


cdef void note_init(const char* request, int size, void* theirs) noexcept nogil:
    global channel, descriptor
    if size < <int>(sizeof(InHeader) + sizeof(InitIn)):
        return
    memcpy(&init_header, request, sizeof(InHeader))
    if init_header.opcode != INIT:
        return
    memcpy(&init_in, request + sizeof(InHeader), sizeof(InitIn))
    if not offers_enough(&init_in):
        return
    descriptor = chan_fd(theirs)
    operations.receive = NULL
    operations.send = &send
    operations.destroy = NULL
    channel = chan_new(&operations, descriptor, BUFFER_BYTES, NULL)


cdef int send(void* _channel, const iovec* pieces, size_t count) noexcept nogil:
    """Write an answer; its last effect is that the kernel wakes who asked."""
    cdef OutHeader header
    cdef InitOut answer
    cdef iovec completed[2]
    global done
    if not done and count == 2 and pieces[1].iov_len == SHORT_INIT_OUT:
        memcpy(&header, pieces[0].iov_base, sizeof(OutHeader))
        if header.unique == init_header.unique and header.error == 0:
            complete(&init_in, pieces[1].iov_base, &answer)
            done = True
            header.length = sizeof(OutHeader) + sizeof(InitOut)
            completed[0].iov_base = &header
            completed[0].iov_len = sizeof(OutHeader)
            completed[1].iov_base = &answer
            completed[1].iov_len = sizeof(InitOut)
            return write_all(completed, 2)
    return write_all(pieces, count)


cdef int write_all(const iovec* pieces, size_t count) noexcept nogil:
    cdef int error
    while writev(descriptor, pieces, <int>count) < 0:
        error = errno
        # The request was interrupted meanwhile, or the mount is gone: nobody waits for it.
        if error == ENOENT or error == ENODEV:
            return 0
        if error != EINTR:
            return -error
    return 0


cdef bint is_resolved() noexcept nogil:
    return real_receive != NULL and chan_new != NULL and chan_fd != NULL


def resolve(str library):
    """Find libfuse's own functions from `library`, the file of llfuse, which is loaded.

    True if they are there: then requests pass through here if they come here at all.
    """
    global real_receive, chan_new, chan_fd
    cdef bytes path = library.encode()
    cdef void* handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if handle == NULL:
        return False
    # Found in llfuse's own dependencies: also in a libfuse that a wheel brings along.
    real_receive = <receive_function>dlsym(handle, b"fuse_session_receive_buf")
    chan_new = <chan_new_function>dlsym(handle, b"fuse_chan_new")
    chan_fd = <chan_fd_function>dlsym(handle, b"fuse_chan_fd")
    return is_resolved()


def want(bint yes):
    """Say before the mount whether more is to be negotiated, where `resolve` has succeeded."""
    global wanted
    wanted = yes and is_resolved()


def negotiated():
    """Whether the kernel offers reads of 1 MiB, and gets them; known from INIT on."""
    return channel != NULL


def completed_init(bytes request not None, bytes answer not None):
    """Return libfuse's `answer` to the INIT `request`, completed; both without headers."""
    cdef InitIn asked
    cdef InitOut out
    if len(request) < <Py_ssize_t>sizeof(InitIn) or len(answer) != SHORT_INIT_OUT:
        raise ValueError("not an INIT and libfuse's answer to it")
    memcpy(&asked, <const char*>request, sizeof(InitIn))
    if not offers_enough(&asked):
        return answer
    complete(&asked, <const char*>answer, &out)
    return (<char*>&out)[:sizeof(InitOut)]
