# cython: cdivision=True
"""Block files: read, verify and write the bytes of an object version on disk. No function needs the GIL.

A *block* is up to 1 MiB of one object version, at a multiple of 1 MiB. Its file has the bytes first,
so that offsets in the file are offsets in the block, and then a trailer:

| bytes | content |
|---|---|
| 4 | size of the identity |
| n | the identity: endpoint, bucket, key, ETag and size of the object (`identity`) |
| 8 | index of the block |
| 4 | bytes of the block |
| 4 per unit | CRC32C of each unit of 16 KiB |
| 4 | CRC32C of the trailer so far |
| 4 | size of the whole trailer |
| 8 | magic, with the version of this format |

Numbers are little-endian. A reader knows where the trailer begins, and all of it but the checksums. So a
file that was damaged, renamed, cut, or is another version's by a collision of names is noticed. A
file is written under another name and renamed, and never changes afterwards: no reader needs a lock.
There is no fsync: if the machine loses power, blocks may be empty or have zeros, which their checksums show.
"""

from libc.errno cimport EINTR, ENOENT, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strrchr

from mountpoint.cache._checksums cimport (
    UNIT_BYTES,
    crc32c,
    crc32c_by_table,
    crc32c_of_units,
    fill_crc32c_table,
)
from mountpoint.native._arrivals cimport PENDING, READY, Arrival, end
from mountpoint.native._blocks cimport Block, new_block, release_block
from mountpoint.native._lane cimport LaneSource, release_source, source_t
from mountpoint.native._sync cimport atomic_add

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #define count_up(pointer, amount) __atomic_add_fetch(pointer, amount, __ATOMIC_RELAXED)

    /* O_NOATIME: this module sets the times. Some file systems refuse it. */
    static int open_to_read(int directory, const char *path) {
        int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
        int file = openat(directory, path, flags | O_NOATIME);
        return file < 0 && errno == EPERM ? openat(directory, path, flags) : file;
    }

    static int open_new(int directory, const char *path) {
        return openat(directory, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }

    /* Set the time of the last use to now, if it is older than this many seconds, or in the future. */
    static void touch_file(int file, long older_s) {
        struct stat found;
        struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
        long now = time(NULL);
        if (fstat(file, &found) == 0 && (found.st_atime + older_s < now || found.st_atime > now))
            futimens(file, times);
    }
    """
    long long count_up(long long*, long long) nogil
    int open_to_read(int directory, const char* path) nogil
    int open_new(int directory, const char* path) nogil
    void touch_file(int file, long older_s) nogil

cdef extern from "<unistd.h>" nogil:
    int close(int)
    ssize_t pread(int, void*, size_t, long long)
    int unlinkat(int, const char*, int)
    int faccessat(int, const char*, int, int)
    int F_OK

cdef extern from "<sys/stat.h>" nogil:
    int mkdirat(int, const char*, int)

cdef extern from "<stdio.h>" nogil:
    int renameat(int, const char*, int, const char*)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t writev(int, iovec*, int)

cdef enum:
    C_BLOCK_BYTES = 1 << 20
    UNITS = 64  # of a block
    MAX_IDENTITY_BYTES = 4096
    MAX_TRAILER_BYTES = MAX_IDENTITY_BYTES + 4 * UNITS + 32
    MAX_PATH_BYTES = 512
    # The time of a block's last use is set this often at most: often enough to tell what was used
    # today from what was not.
    TOUCH_S = 300

    # Results of a read; larger ones are errnos.
    C_FOUND = 0
    C_MISSING = -1
    C_BAD = -2

BLOCK_BYTES = C_BLOCK_BYTES
FOUND, MISSING, BAD = C_FOUND, C_MISSING, C_BAD
MAGIC = b"ms3blk01"

cdef const char* magic = b"ms3blk01"

fill_crc32c_table()


# --- trailers ---

cdef uint32_t trailer_size(uint32_t identity_size, uint32_t size) noexcept nogil:
    return identity_size + 4 * ((size + UNIT_BYTES - 1) // UNIT_BYTES) + 32


cdef char* begin_trailer(
    const version_t* version, long long index, uint32_t size, char* trailer
) noexcept nogil:
    """Write what precedes the checksums; return the position after it."""
    cdef uint64_t number = index
    memcpy(trailer, &version.identity_size, 4)
    memcpy(trailer + 4, version.identity, version.identity_size)
    trailer += 4 + version.identity_size
    memcpy(trailer, &number, 8)
    memcpy(trailer + 8, &size, 4)
    return trailer + 12


cdef void end_trailer(char* trailer, uint32_t whole) noexcept nogil:
    """Write what follows the checksums."""
    cdef uint32_t crc = crc32c(trailer, whole - 16)
    memcpy(trailer + whole - 16, &crc, 4)
    memcpy(trailer + whole - 12, &whole, 4)
    memcpy(trailer + whole - 8, magic, 8)


cdef bint is_trailer(
    const version_t* version, long long index, uint32_t size, const char* trailer, uint32_t* sums
) noexcept nogil:
    """Whether it is the trailer of this block; `sums` then has its checksums."""
    cdef char expected[MAX_TRAILER_BYTES]
    cdef uint32_t whole = trailer_size(version.identity_size, size)
    cdef uint32_t units = (size + UNIT_BYTES - 1) // UNIT_BYTES
    cdef char* position = begin_trailer(version, index, size, expected)
    cdef size_t known = position - expected
    if memcmp(trailer, expected, known) != 0:
        return False
    memcpy(position, trailer + known, 4 * units)
    end_trailer(expected, whole)
    memcpy(sums, trailer + known, 4 * units)
    return memcmp(trailer, expected, whole) == 0


# --- reading ---

cdef int read_fully(int file, char* into, size_t size, long long offset) noexcept nogil:
    """Read exactly `size` bytes; return C_FOUND, C_BAD at the end of the file, or an errno."""
    cdef ssize_t done
    while size > 0:
        done = pread(file, into, size, offset)
        if done < 0 and errno == EINTR:
            continue
        if done <= 0:
            return errno if done < 0 else C_BAD
        into += done
        offset += done
        size -= done
    return C_FOUND


cdef void path_of(const version_t* version, long long index, char* path) noexcept nogil:
    snprintf(path, MAX_PATH_BYTES, b"%s.%lld", version.path, index)


cdef uint32_t block_size(const version_t* version, long long index) noexcept nogil:
    return min(version.size_bytes - index * C_BLOCK_BYTES, <long long>C_BLOCK_BYTES)


cdef int read_block(
    const version_t* version, long long index, uint32_t start, uint32_t stop, char* into
) noexcept nogil:
    """Read bytes [start, stop) of a block, and verify the units that have them.

    A block that is damaged is removed.
    """
    cdef char path[MAX_PATH_BYTES]
    cdef int file, result
    path_of(version, index, path)
    file = open_to_read(version.store.directory, path)
    if file < 0:
        if errno == ENOENT:
            count_up(&version.store.misses, 1)
            return C_MISSING
        return errno
    result = read_open(version, file, index, start, stop, into)
    if result == C_FOUND:
        touch_file(file, TOUCH_S)
        count_up(&version.store.hits, 1)
        count_up(&version.store.bytes_read, stop - start)
    close(file)
    if result == C_BAD:
        count_up(&version.store.bad, 1)
        unlinkat(version.store.directory, path, 0)
    return result


cdef int read_open(
    const version_t* version, int file, long long index, uint32_t start, uint32_t stop, char* into
) noexcept nogil:
    cdef char trailer[MAX_TRAILER_BYTES]
    cdef uint32_t sums[UNITS]
    cdef char unit[UNIT_BYTES]
    cdef uint32_t size = block_size(version, index)
    cdef uint32_t whole = trailer_size(version.identity_size, size)
    cdef uint32_t low, high
    cdef int result = read_fully(file, trailer, whole, size)
    if result == C_FOUND and not is_trailer(version, index, size, trailer, sums):
        result = C_BAD
    while start < stop and result == C_FOUND:
        low = start - start % UNIT_BYTES
        if low == start and (stop - start >= UNIT_BYTES or stop == size):
            # Whole units go directly to where they belong.
            high = stop if stop == size else stop - stop % UNIT_BYTES
            result = read_units(file, into, low, high, sums)
        else:
            high = min(low + <uint32_t>UNIT_BYTES, size)
            result = read_units(file, unit, low, high, sums)
            high = min(high, stop)
            memcpy(into, unit + (start - low), high - start)
        into += high - start
        start = high
    return result


cdef int read_units(
    int file, char* into, uint32_t start, uint32_t stop, const uint32_t* sums
) noexcept nogil:
    """Read and verify the units [start, stop) of a block; `sums` are those of the whole block."""
    cdef int result = read_fully(file, into, stop - start, start)
    if result == C_FOUND and not is_sum(into, stop - start, &sums[start // UNIT_BYTES]):
        result = C_BAD
    return result


cdef bint is_sum(const char* bytes, uint32_t size, const uint32_t* sums) noexcept nogil:
    """Whether units have these checksums."""
    cdef uint32_t found[UNITS]
    crc32c_of_units(bytes, size, found)
    return memcmp(found, sums, 4 * ((size + UNIT_BYTES - 1) // UNIT_BYTES)) == 0


cdef int read_range(
    const version_t* version, long long start, long long stop, char* into
) noexcept nogil:
    """Read [start, stop) of the object; return C_FOUND, or the first other result."""
    cdef long long index, upto
    cdef int result
    while start < stop:
        index = start // C_BLOCK_BYTES
        upto = min(stop, (index + 1) * C_BLOCK_BYTES)
        result = read_block(
            version, index, start - index * C_BLOCK_BYTES, upto - index * C_BLOCK_BYTES, into
        )
        if result != C_FOUND:
            return result
        into += upto - start
        start = upto
    return C_FOUND


# --- writing ---

cdef int write_block(
    const version_t* version, long long index, const char* bytes, const char* temporary
) noexcept nogil:
    """Write a block under another name, and rename it; return 0 or an errno."""
    cdef char path[MAX_PATH_BYTES]
    cdef char trailer[MAX_TRAILER_BYTES]
    cdef uint32_t sums[UNITS]
    cdef uint32_t size = block_size(version, index)
    cdef uint32_t whole = trailer_size(version.identity_size, size)
    cdef char* position = begin_trailer(version, index, size, trailer)
    cdef iovec pieces[2]
    cdef int file, problem
    crc32c_of_units(bytes, size, sums)
    memcpy(position, sums, 4 * ((size + UNIT_BYTES - 1) // UNIT_BYTES))
    end_trailer(trailer, whole)
    pieces[0].iov_base = <void*>bytes
    pieces[0].iov_len = size
    pieces[1].iov_base = trailer
    pieces[1].iov_len = whole
    file = open_new(version.store.directory, temporary)
    if file < 0:
        return errno
    problem = write_fully(file, pieces)
    if close(file) != 0 and problem == 0:
        problem = errno
    if problem == 0:
        path_of(version, index, path)
        problem = publish(version.store.directory, temporary, path)
    if problem != 0:
        unlinkat(version.store.directory, temporary, 0)
    return problem


cdef int write_fully(int file, iovec* pieces) noexcept nogil:
    cdef ssize_t done
    cdef int first = 0
    while first < 2:
        done = writev(file, pieces + first, 2 - first)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        while first < 2 and done >= <ssize_t>pieces[first].iov_len:
            done -= pieces[first].iov_len
            first += 1
        if first < 2:
            pieces[first].iov_base = <char*>pieces[first].iov_base + done
            pieces[first].iov_len -= done
    return 0


cdef int publish(int directory, const char* temporary, char* path) noexcept nogil:
    """Rename a file to `path`; make the two directories above it if they are missing."""
    cdef char* last
    cdef char* first
    if renameat(directory, temporary, directory, path) == 0:
        return 0
    if errno != ENOENT:
        return errno
    last = strrchr(path, c"/")
    last[0] = 0
    first = strrchr(path, c"/")
    first[0] = 0
    mkdirat(directory, path, 0o700)
    first[0] = c"/"
    mkdirat(directory, path, 0o700)
    last[0] = c"/"
    return 0 if renameat(directory, temporary, directory, path) == 0 else errno


# --- versions ---

cdef void release_version(version_t* version) noexcept nogil:
    """Give one reference back; the last one frees the version."""
    if atomic_add(&version.refs, -1) > 0:
        return
    release_store(version.store)
    free(version.path)
    free(version.identity)
    free(version)


cdef void release_store(store_t* store) noexcept nogil:
    if atomic_add(&store.refs, -1) > 0:
        return
    close(store.directory)
    free(store)


cdef class Store:
    """A cache directory, open for reading and writing blocks. It owns the descriptor `directory`."""

    def __cinit__(self, int directory):
        self.store = <store_t*>malloc(sizeof(store_t))
        if self.store == NULL:
            raise MemoryError()
        memset(self.store, 0, sizeof(store_t))
        self.store.refs = 1
        self.store.directory = directory

    def __dealloc__(self):
        if self.store != NULL:
            release_store(self.store)

    @property
    def directory(self):
        """The descriptor of the directory."""
        return self.store.directory

    def counts(self):
        """Return the blocks that were read, those that were missing, the bytes read, and the
        damaged blocks.
        """
        return self.store.hits, self.store.misses, self.store.bytes_read, self.store.bad


cdef class CachedVersion:
    """The block files of one object version.

    `path` is relative to the store's directory, and lacks the index. `identity` stands in each
    trailer.
    """

    def __cinit__(
        self, Store store not None, bytes path not None, bytes identity not None,
        long long size_bytes,
    ):
        if len(path) > MAX_PATH_BYTES - 32 or path.count(b"/") != 2 or b"\0" in path:
            raise ValueError(f"not the path of a version: {path!r}")
        if len(identity) > MAX_IDENTITY_BYTES:
            raise ValueError(f"an identity of {len(identity)} bytes")
        self.version = <version_t*>malloc(sizeof(version_t))
        if self.version == NULL:
            raise MemoryError()
        memset(self.version, 0, sizeof(version_t))
        self.version.refs = 1
        self.version.store = store.store
        atomic_add(&store.store.refs, 1)
        self.version.size_bytes = size_bytes
        self.version.path = <char*>malloc(len(path) + 1)
        self.version.identity = <char*>malloc(len(identity) + 1)
        if self.version.path == NULL or self.version.identity == NULL:
            raise MemoryError()
        memcpy(self.version.path, <const char*>path, len(path) + 1)
        memcpy(self.version.identity, <const char*>identity, len(identity))
        self.version.identity_size = len(identity)

    def __dealloc__(self):
        if self.version != NULL:
            release_version(self.version)

    def holds(self, long long index):
        """Whether there is a file for this block. It may be damaged, or go away."""
        cdef char path[MAX_PATH_BYTES]
        cdef bint found
        with nogil:
            path_of(self.version, index, path)
            found = faccessat(self.version.store.directory, path, F_OK, 0) == 0
        return found

    def held_until(self, long long start, long long stop):
        """Return whether there is a file for the block at `start`, and the end of the blocks from
        there on for which the answer is the same, at most `stop`. Positions are the object's.
        """
        cdef char path[MAX_PATH_BYTES]
        cdef long long index = start // C_BLOCK_BYTES
        cdef bint held = False
        cdef bint first = True
        cdef bint found
        with nogil:
            while index * C_BLOCK_BYTES < stop:
                path_of(self.version, index, path)
                found = faccessat(self.version.store.directory, path, F_OK, 0) == 0
                if not first and found != held:
                    break
                held = found
                first = False
                index += 1
        return held, min(index * C_BLOCK_BYTES, stop)

    def file_bytes(self, long long index):
        """Return the size of a block's file."""
        cdef uint32_t size = block_size(self.version, index)
        return size + trailer_size(self.version.identity_size, size)

    def read(self, long long start, long long stop, Arrival arrival not None):
        """Read [start, stop), which ends the arrival, if it succeeds.

        Returns FOUND, MISSING, BAD (the damaged block was removed), or an errno. ENOMEM: there is
        no memory.
        """
        cdef Block* block
        cdef int result = C_FOUND
        if not 0 <= start < stop <= self.version.size_bytes:
            raise ValueError(f"not a range of the object: [{start}, {stop})")
        with nogil:
            if arrival.arrival.state == PENDING:
                block = new_block(stop - start)
                if block == NULL:
                    result = ENOMEM
                else:
                    result = read_range(self.version, start, stop, block.bytes)
                    if result == C_FOUND:
                        end(arrival.arrival, READY, block)
                    release_block(block)
        return result

    def write(self, long long index, const unsigned char[::1] data not None, bytes temporary not None):
        """Write the bytes of a block by way of the file `temporary`; return 0 or an errno."""
        cdef int problem
        if index < 0 or data.shape[0] == 0 or data.shape[0] != block_size(self.version, index):
            raise ValueError(f"not block {index}: {data.shape[0]} bytes")
        cdef const char* name = temporary
        with nogil:
            problem = write_block(self.version, index, <const char*>&data[0], name)
        return problem

    def remove(self, long long index):
        """Remove a block; return whether there was one."""
        cdef char path[MAX_PATH_BYTES]
        cdef bint removed
        with nogil:
            path_of(self.version, index, path)
            removed = unlinkat(self.version.store.directory, path, 0) == 0
        return removed

    def lane_source(self, LaneSource other):
        """Return a source for reads in a lane that looks here first, and then in `other`."""
        cdef CachedSource* source = <CachedSource*>malloc(sizeof(CachedSource))
        if source == NULL:
            raise MemoryError()
        cdef LaneSource it = LaneSource.__new__(LaneSource)
        memset(source, 0, sizeof(CachedSource))
        source.source.refs = 1
        source.source.fetch = &fetch
        source.source.destroy = &destroy
        source.version = self.version
        atomic_add(&self.version.refs, 1)
        if other is not None and other.source != NULL:
            source.other = other.source
            atomic_add(&other.source.refs, 1)
        it.source = &source.source
        return it


# --- reads in a lane ---

cdef struct CachedSource:
    source_t source             # first: the lane's view of it
    version_t* version
    source_t* other             # for bytes that are not here; NULL: none


cdef Block* fetch(
    source_t* it, long long start, long long stop, unsigned long long thread, double late_s
) noexcept nogil:
    cdef CachedSource* source = <CachedSource*>it
    cdef Block* block = new_block(stop - start)
    if block != NULL:
        if read_range(source.version, start, stop, block.bytes) == C_FOUND:
            return block
        release_block(block)
    if source.other == NULL:
        return NULL
    return source.other.fetch(source.other, start, stop, thread, late_s)


cdef void destroy(source_t* it) noexcept nogil:
    cdef CachedSource* source = <CachedSource*>it
    if source.other != NULL:
        release_source(source.other)
    release_version(source.version)
    free(source)


# --- without a mount ---

def crc32c_of(const unsigned char[::1] data not None, bint by_table=False):
    """Return the CRC32C of some bytes; by the table instead of the processor for tests."""
    cdef const unsigned char* bytes = &data[0] if data.shape[0] else NULL
    if by_table:
        return crc32c_by_table(bytes, data.shape[0])
    return crc32c(bytes, data.shape[0])
