"""OPEN, FLUSH and RELEASE of prepared files, answered between the kernel and llfuse.

`native._prepared` has the files, and `native._handles` the handles of those that are open. The
meters count these operations as if Python had served them.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t
from posix.fcntl cimport O_ACCMODE, O_APPEND, O_DIRECT, O_RDONLY, O_TRUNC

from mountpoint.fuse._callers cimport claim_request
from mountpoint.fuse._protocol cimport (
    FLUSH,
    KEEP_CACHE,
    NOFLUSH,
    OPEN,
    RELEASE,
    InHeader,
    OpenIn,
    OpenOut,
    OutHeader,
    ReleaseIn,
    iovec,
    writev,
)
from mountpoint.fuse._survival cimport is_repeated, number_of, send_header
from mountpoint.metrics._histogram cimport (
    Timer,
    begin_timer,
    end_timer,
    monotonic_ns,
    timer_t,
    undo_timer,
)
from mountpoint.native._handles cimport close_handle, has_handle, note_unknown
from mountpoint.native._prepared cimport PreparedFiles, is_prepared, open_prepared, table_t

# Set by `serve_opens`; `served` keeps their objects.
cdef table_t* files = NULL
cdef timer_t* open_timer = NULL
cdef timer_t* flush_timer = NULL
cdef timer_t* release_timer = NULL
cdef tuple served = ()


cdef bint answer_open(const char* request, int size, int descriptor) noexcept nogil:
    """Answer a request about a prepared file; False if Python must answer."""
    cdef const InHeader* header = <const InHeader*>request
    cdef const void* body = request + sizeof(InHeader)
    if files == NULL or is_repeated(header):
        return False
    if header.opcode == OPEN and size >= <int>(sizeof(InHeader) + sizeof(OpenIn)):
        return open_file(header, <const OpenIn*>body, descriptor)
    if header.opcode == RELEASE or header.opcode == FLUSH:
        if size >= <int>(sizeof(InHeader) + sizeof(ReleaseIn)):
            return close_file(header, <const ReleaseIn*>body, descriptor)
    return False


cdef bint open_file(const InHeader* header, const OpenIn* how, int descriptor) noexcept nogil:
    cdef OpenOut out
    cdef int64_t begun_ns
    if how.flags & (O_ACCMODE | O_APPEND | O_DIRECT | O_TRUNC) != O_RDONLY:
        return False
    begun_ns = monotonic_ns()
    if not is_prepared(files, header.node, begun_ns * 1e-9):
        return False
    begin_timer(open_timer)
    out.handle = open_prepared(
        files, header.node, number_of(header), header.pid, begun_ns * 1e-9
    )
    if out.handle == 0:
        undo_timer(open_timer)
        return False
    # As llfuse does, and `_channel.flags_of_open`.
    out.flags = KEEP_CACHE | NOFLUSH
    out.backing = 0
    # The kernel releases no handle that it has not got.
    if not claim_request() or not deliver(header, &out, descriptor):
        if not close_handle(files.handles, out.handle):
            note_unknown(files.handles, out.handle)
    end_timer(open_timer, begun_ns, monotonic_ns(), False)
    return True


cdef bint close_file(const InHeader* header, const ReleaseIn* how, int descriptor) noexcept nogil:
    """Answer a RELEASE or FLUSH. Nothing was written; only kernels before 5.16 flush (NOFLUSH)."""
    cdef bint releases = header.opcode == RELEASE
    cdef timer_t* timer = release_timer if releases else flush_timer
    cdef int64_t begun_ns
    if not has_handle(files.handles, how.handle):
        return False
    begin_timer(timer)
    begun_ns = monotonic_ns()
    if releases and not close_handle(files.handles, how.handle):
        undo_timer(timer)
        return False
    send_header(descriptor, header.unique, 0)
    end_timer(timer, begun_ns, monotonic_ns(), False)
    return True


cdef bint deliver(const InHeader* header, OpenOut* opened, int descriptor) noexcept nogil:
    """Answer an OPEN; False if the kernel did not take it: nobody waits for it."""
    cdef OutHeader out
    cdef iovec pieces[2]
    out.length = sizeof(OutHeader) + sizeof(OpenOut)
    out.error = 0
    out.unique = header.unique
    pieces[0].iov_base = &out
    pieces[0].iov_len = sizeof(OutHeader)
    pieces[1].iov_base = opened
    pieces[1].iov_len = sizeof(OpenOut)
    while writev(descriptor, pieces, 2) < 0:
        if errno != EINTR:
            return False
    return True


def opens_in_lane():
    """Return the number of files that were opened without the interpreter."""
    return files.opens if files != NULL else 0


def serve_opens(
    PreparedFiles prepared not None, Timer opens not None, Timer flushes not None,
    Timer releases not None,
):
    """Set before mounting the files that are opened without the interpreter, and the meters.

    Without a call all opens go to llfuse; so they do without the channel of our own (`want`).
    """
    global files, open_timer, flush_timer, release_timer, served
    served = (prepared, opens, flushes, releases)
    open_timer = &opens.data
    flush_timer = &flushes.data
    release_timer = &releases.data
    files = &prepared.table
