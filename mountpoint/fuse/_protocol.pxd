# Layouts and numbers of the FUSE protocol and of libfuse, and the C functions that `_channel` calls.
#
# Sources: include/uapi/linux/fuse.h; fuse_lowlevel.h and fuse_common.h of libfuse 2.9.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

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

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_SHARED
    int MADV_DONTNEED, MADV_NOHUGEPAGE

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    int CLOCK_MONOTONIC

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned int pthread_key_t
    int pthread_key_create(pthread_key_t*, void (*)(void*) noexcept nogil)
    int pthread_setspecific(pthread_key_t, const void*)

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

cdef struct InitMore:
    uint32_t flags2  # follows InitIn since 7.36, if `flags` has INIT_EXT

cdef struct OpenIn:
    uint32_t flags
    uint32_t open_flags

# A WRITE has the same fields.
cdef struct ReadIn:
    uint64_t handle
    uint64_t offset
    uint32_t size
    uint32_t read_flags
    uint64_t lock_owner
    uint32_t flags
    uint32_t padding

# A FLUSH begins with the same field, and is as long.
cdef struct ReleaseIn:
    uint64_t handle
    uint32_t flags
    uint32_t release_flags
    uint64_t lock_owner

cdef struct Rename2In:
    uint64_t new_directory  # the names follow; in a RENAME directly after this field
    uint32_t flags
    uint32_t padding

cdef struct OutHeader:
    uint32_t length
    int error
    uint64_t unique

cdef struct InvalInodeOut:
    uint64_t inode
    int64_t offset
    int64_t length

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

cdef struct Dirent:
    uint64_t inode
    uint64_t next_offset
    uint32_t name_size  # the name follows, padded to 8 bytes
    uint32_t kind

cdef struct OpenOut:
    uint64_t handle
    uint32_t flags
    uint32_t backing

cdef enum:
    # operations
    FORGET = 2
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45

    # Messages to the kernel that answer no request.
    INVAL_INODE = 2
    RESEND = 7  # since Linux 6.9

    BUF_IS_FD = 1 << 1  # a flag of libfuse
    SHORT_INIT_OUT = 24  # bytes of libfuse's answer, which ends with max_write

    # INIT flags
    DO_READDIRPLUS = 1 << 13  # listings with attributes
    ASYNC_DIO = 1 << 15  # several requests at once for large O_DIRECT reads
    PARALLEL_DIROPS = 1 << 18  # lookups in one directory at the same time
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30  # there is a second word of flags
    HAS_RESEND = 1 << 7  # in that one (bit 39)

    # Flags of an opened file.
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1  # the pages of earlier opens are valid
    NOFLUSH = 1 << 5  # since 7.35; older kernels ignore it
    ENTRY_OUT_BYTES = 128  # struct fuse_entry_out
    CREATE_OUT_BYTES = 128 + 16  # the answer to CREATE: struct fuse_entry_out and an OpenOut

ctypedef int (*receive_function)(void*, fuse_buf*, void**) noexcept nogil
ctypedef void* (*chan_new_function)(fuse_chan_ops*, int, size_t, void*) noexcept nogil
ctypedef int (*chan_fd_function)(void*) noexcept nogil
ctypedef void* (*kern_chan_new_function)(int) noexcept nogil
ctypedef void* (*mount_function)(const char*, void*) noexcept nogil
