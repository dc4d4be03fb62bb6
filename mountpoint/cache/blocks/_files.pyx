# cython: cdivision=True
"""Block files: read, verify and write the blocks of an object version on disk. No function needs the GIL.

A block's file (`_format`) is called VERSION.INDEX, that of a small block VERSION.d/INDEX. It is written
under another name and renamed, and never changes afterwards: no reader needs a lock. There is no fsync:
if the machine loses power, blocks may be empty or have zeros, which their checksums show.
"""

from libc.errno cimport ELOOP, ENOENT, ENOMEM, ENXIO, errno
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strchr

from mountpoint.cache.blocks._checksums cimport UNIT_BYTES
from mountpoint.cache.blocks._disk cimport (
    DISK_PAGE_BYTES,
    iovec,
    is_regular,
    open_new,
    open_to_read,
    prefetch,
    publish_file,
    read_piece,
    read_pieces,
    touch_file,
    write_pieces,
)
from mountpoint.cache.blocks._format cimport (
    C_BLOCK_BYTES,
    C_SMALL,
    C_SMALL_BYTES,
    C_MAX_IDENTITY_BYTES,
    MAX_TRAILER_BYTES,
    is_sum,
    make_trailer,
    sums_of,
    trailer_size,
)
from mountpoint.native._arrivals cimport PENDING, READY, Arrival, end
from mountpoint.native._blocks cimport Block, hold_block, new_block, release_block, view_of
from mountpoint.native._sync cimport (
    atomic_add,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef extern from *:
    """
    #define count_up(pointer, amount) __atomic_add_fetch(pointer, amount, __ATOMIC_RELAXED)
    #define get_int(pointer) __atomic_load_n(pointer, __ATOMIC_RELAXED)
    #define set_int(pointer, value) __atomic_store_n(pointer, value, __ATOMIC_RELAXED)
    #define get_pointer(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)

    /* Set a pointer that is NULL; 0 if another thread was faster. */
    static int set_pointer(void **pointer, void *value) {
        void *expected = NULL;
        return __atomic_compare_exchange_n(
            pointer, &expected, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    """
    long long count_up(long long*, long long) nogil
    int get_int(int*) nogil
    void set_int(int*, int) nogil
    void* get_pointer(void**) nogil
    bint set_pointer(void**, void*) nogil

cdef extern from "<unistd.h>" nogil:
    int close(int)
    int unlinkat(int, const char*, int)
    int faccessat(int, const char*, int, int)
    int F_OK

cdef extern from "<sys/stat.h>" nogil:
    int mkdirat(int, const char*, int)

cdef enum:
    # Bytes of reads in lanes that wait to be taken by Python.
    MAX_KEPT_BYTES = 16 << 20
    # Objects of up to 64 GiB: the checksums of their blocks are remembered.
    MAX_REMEMBERED = 1 << 16
    MAX_PATH_BYTES = 512
    # The time of a block's last use is set this often at most: often enough to tell what was used
    # today from what was not.
    TOUCH_S = 300
    # The disk is asked for up to this many bytes while it reads the trailer. More may be read past
    # the page cache, and take longer than the trailer.
    PREFETCHED_BYTES = 64 << 10

    # Results of a read; larger ones are errnos.
    C_FOUND = 0
    C_MISSING = -1
    C_BAD = -2  # also DISK_SHORT

FOUND, MISSING, BAD = C_FOUND, C_MISSING, C_BAD


# --- reading ---

cdef char* whole_pages(char* memory) noexcept nogil:
    """Return the first position in `memory` where a page begins."""
    return memory + (DISK_PAGE_BYTES - <size_t>memory % DISK_PAGE_BYTES) % DISK_PAGE_BYTES


cdef void path_of(const version_t* version, long long number, char* path) noexcept nogil:
    if number & C_SMALL:
        snprintf(path, MAX_PATH_BYTES, b"%s.d/%lld", version.path, number & ~C_SMALL)
    else:
        snprintf(path, MAX_PATH_BYTES, b"%s.%lld", version.path, number)


cdef long long begin_of(long long number) noexcept nogil:
    """Return where a block begins in the object."""
    if number & C_SMALL:
        return (number & ~C_SMALL) * C_SMALL_BYTES
    return number * C_BLOCK_BYTES


cdef uint32_t block_size(const version_t* version, long long number) noexcept nogil:
    cdef long long full = C_SMALL_BYTES if number & C_SMALL else C_BLOCK_BYTES
    return max(min(version.size_bytes - begin_of(number), full), 0)


cdef bint is_there(const version_t* version, long long number) noexcept nogil:
    cdef char path[MAX_PATH_BYTES]
    path_of(version, number, path)
    return faccessat(version.store.directory, path, F_OK, 0) == 0


cdef bint expect_block(const version_t* version, long long number) noexcept nogil:
    """Let the kernel begin to read the file of a block; False if there is none."""
    cdef char path[MAX_PATH_BYTES]
    cdef int file
    path_of(version, number, path)
    file = open_to_read(version.store.directory, path)
    if file < 0:
        return False
    prefetch(file, 0, block_size(version, number) + MAX_TRAILER_BYTES)
    close(file)
    return True


cdef bint has_small(version_t* version) noexcept nogil:
    """Whether there are small blocks of this version; one look at the disk."""
    cdef char path[MAX_PATH_BYTES]
    cdef int found = get_int(&version.small)
    if found == UNKNOWN:
        snprintf(path, MAX_PATH_BYTES, b"%s.d", version.path)
        found = SOME if faccessat(version.store.directory, path, F_OK, 0) == 0 else NONE
        set_int(&version.small, found)
    return found == SOME


cdef long long blocks_of(long long size_bytes) noexcept nogil:
    return (size_bytes + C_BLOCK_BYTES - 1) // C_BLOCK_BYTES


cdef int read_block(
    version_t* version, long long index, uint32_t start, uint32_t stop, char* into
) noexcept nogil:
    """Read bytes [start, stop) of a block, and verify the units that have them.

    A block that is damaged is removed.
    """
    cdef char path[MAX_PATH_BYTES]
    cdef int file
    cdef int result = C_BAD
    path_of(version, index, path)
    file = open_to_read(version.store.directory, path)
    if file >= 0:
        result = read_open(version, file, index, start, stop, into)
        if result > 0 and not is_regular(file):
            result = C_BAD
    elif errno == ENOENT:
        return C_MISSING
    elif errno != ELOOP and errno != ENXIO:  # a symbolic link, or a socket
        return errno
    if result == C_FOUND:
        touch_file(file, TOUCH_S)
        count_up(&version.store.hits, 1)
        count_up(&version.store.bytes_read, stop - start)
    if file >= 0:
        close(file)
    if result == C_BAD:
        count_up(&version.store.bad, 1)
        unlinkat(version.store.directory, path, 0)
    return result


cdef int read_open(
    version_t* version, int file, long long index, uint32_t start, uint32_t stop, char* into
) noexcept nogil:
    """Read from the open file of a block. The checksums in its trailer are read once."""
    cdef char memory[MAX_TRAILER_BYTES + 4096]
    cdef char* trailer = whole_pages(memory)
    cdef iovec pieces[2]
    cdef uint32_t* sums = remembered(version, index)
    cdef uint32_t size = block_size(version, index)
    cdef bint whole = sums == NULL and start == 0 and stop == size
    cdef int result = C_FOUND
    if sums == NULL:
        if not whole and stop - start <= PREFETCHED_BYTES:
            prefetch(file, start, stop - start)
        pieces[0].iov_base = into
        pieces[0].iov_len = size if whole else 0
        pieces[1].iov_base = trailer
        pieces[1].iov_len = trailer_size(&version.identity, size)
        result = read_pieces(file, pieces, 0 if whole else size)
        if result != C_FOUND:
            return result
        sums = sums_of(&version.identity, index, size, trailer)
        if sums == NULL:
            return C_BAD
    if whole:
        result = C_FOUND if is_sum(into, size, sums) else C_BAD
    else:
        result = read_verified(file, size, start, stop, into, sums)
    if not remember(version, index, sums):
        free(sums)
    return result


cdef int read_verified(
    int file, uint32_t size, uint32_t start, uint32_t stop, char* into, const uint32_t* sums
) noexcept nogil:
    """Read [start, stop) of a block of `size` bytes, and verify the units that have them."""
    cdef char unit[UNIT_BYTES]
    cdef uint32_t low, high
    cdef int result = C_FOUND
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
    cdef int result = read_piece(file, into, stop - start, start)
    if result == C_FOUND and not is_sum(into, stop - start, &sums[start // UNIT_BYTES]):
        result = C_BAD
    return result


cdef uint32_t* remembered(version_t* version, long long index) noexcept nogil:
    """Return the checksums of a block that was read before; NULL if they are not known."""
    if version.sums == NULL or index & C_SMALL:
        return NULL
    return <uint32_t*>get_pointer(&version.sums[index])


cdef bint remember(version_t* version, long long index, uint32_t* sums) noexcept nogil:
    """Remember the checksums of a block, for a later read of it; False if that is not possible."""
    if version.sums == NULL or index & C_SMALL:
        return False
    return set_pointer(&version.sums[index], sums) or get_pointer(&version.sums[index]) == sums


cdef int read_range(
    version_t* version, long long start, long long stop, char* into
) noexcept nogil:
    """Read [start, stop) of the object; return C_FOUND, or the first other result."""
    cdef long long number, begin, upto
    cdef int result
    while start < stop:
        number = start // C_BLOCK_BYTES
        begin = begin_of(number)
        upto = min(stop, begin + C_BLOCK_BYTES)
        result = read_block(version, number, start - begin, upto - begin, into)
        if result == C_MISSING and has_small(version):
            number = C_SMALL | (start // C_SMALL_BYTES)
            begin = begin_of(number)
            upto = min(stop, begin + C_SMALL_BYTES)
            result = read_block(version, number, start - begin, upto - begin, into)
        if result != C_FOUND:
            if result == C_MISSING:
                count_up(&version.store.misses, 1)
            return result
        into += upto - start
        start = upto
    return C_FOUND


cdef bint read_there(version_t* version, long long start, long long stop, char* into) noexcept nogil:
    """Read [start, stop) of the object; False if that failed."""
    return read_range(version, start, stop, into) == C_FOUND


cdef long long same_until(
    version_t* version, long long start, long long stop, bint* held
) noexcept nogil:
    """Set whether the bytes at `start` are in a block, and return up to where the answer is valid."""
    cdef long long number = start // C_BLOCK_BYTES
    held[0] = is_there(version, number)
    if held[0] or not has_small(version):
        return min(begin_of(number + 1), stop)
    number = C_SMALL | (start // C_SMALL_BYTES)
    held[0] = is_there(version, number)
    return min(begin_of(number + 1), stop)


# --- writing ---

cdef int write_block(
    version_t* version, long long index, const char* bytes, const char* temporary
) noexcept nogil:
    """Write a block under another name; return 0 or an errno."""
    cdef char memory[MAX_TRAILER_BYTES + 4096]
    cdef char* trailer = whole_pages(memory)
    cdef uint32_t size = block_size(version, index)
    cdef uint32_t whole = make_trailer(&version.identity, index, bytes, size, trailer)
    cdef iovec pieces[2]
    cdef int file, problem
    pieces[0].iov_base = <void*>bytes
    pieces[0].iov_len = size
    pieces[1].iov_base = trailer
    pieces[1].iov_len = whole
    file = open_new(version.store.directory, temporary)
    if file < 0:
        return errno
    problem = write_pieces(file, pieces)
    if close(file) != 0 and problem == 0:
        problem = errno
    if problem != 0:
        unlinkat(version.store.directory, temporary, 0)
    return problem


cdef int publish_block(
    version_t* version, long long number, const char* temporary
) noexcept nogil:
    """Rename a written file to the block's name, or remove it; return 0 or an errno."""
    cdef char path[MAX_PATH_BYTES]
    cdef int directory = version.store.directory
    cdef int problem
    path_of(version, number, path)
    problem = publish_file(directory, temporary, path)
    for _ in range(3):  # others may remove a directory that is empty
        if problem != ENOENT:
            break
        make_folders(directory, path)
        problem = publish_file(directory, temporary, path)
    if problem != 0:
        unlinkat(directory, temporary, 0)
    elif number & C_SMALL:
        set_int(&version.small, SOME)
    return problem


cdef void make_folders(int directory, char* path) noexcept nogil:
    """Make the directories above `path`."""
    cdef char* slash = strchr(path, c"/")
    while slash != NULL:
        slash[0] = 0
        mkdirat(directory, path, 0o700)
        slash[0] = c"/"
        slash = strchr(slash + 1, c"/")


# --- versions ---

cdef void release_version(version_t* version) noexcept nogil:
    """Give one reference back; the last one frees the version."""
    cdef long long index
    if atomic_add(&version.refs, -1) > 0:
        return
    if version.sums != NULL:
        for index in range(blocks_of(version.size_bytes)):
            free(version.sums[index])
        free(version.sums)
    release_store(version.store)
    free(version.path)
    free(<void*>version.identity.text)
    free(version)


cdef void release_store(store_t* store) noexcept nogil:
    if atomic_add(&store.refs, -1) > 0:
        return
    close(store.directory)
    pthread_mutex_destroy(&store.mutex)
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
        pthread_mutex_init(&self.store.mutex, NULL)

    def __dealloc__(self):
        if self.store != NULL:
            count_up(&self.store.kept_bytes, 2 * MAX_KEPT_BYTES)  # no more are queued
            self.forget()
            release_store(self.store)

    @property
    def directory(self):
        """The descriptor of the directory."""
        return self.store.directory

    def counts(self):
        """Return the blocks that were read, those that were missing, the bytes read, the damaged
        blocks, and the blocks of reads in lanes that were dropped.
        """
        cdef store_t* store = self.store
        return store.hits, store.misses, store.bytes_read, store.bad, store.dropped

    def take(self):
        """Return the small blocks that reads in lanes have fetched since the last call: version,
        number and bytes of each.
        """
        cdef kept_t* kept = take_kept(self.store)
        cdef kept_t* following
        cdef CachedVersion version
        cdef list taken = []
        cdef uint32_t size
        while kept != NULL:
            following = kept.next
            version = CachedVersion.__new__(CachedVersion)
            version.version = kept.version
            atomic_add(&kept.version.refs, 1)
            size = block_size(kept.version, kept.number)
            view = memoryview(view_of(kept.block, kept.offset + size))[kept.offset:]
            taken.append((version, kept.number, view))
            forget_kept(self.store, kept)
            kept = following
        return taken

    def forget(self):
        """Drop what `take` would return."""
        cdef kept_t* kept
        cdef kept_t* following
        with nogil:
            kept = take_kept(self.store)
            while kept != NULL:
                following = kept.next
                forget_kept(self.store, kept)
                kept = following


cdef class CachedVersion:
    """The block files of one object version.

    `path` is relative to the store's directory, and lacks the index. `identity` stands in each
    trailer.
    """

    def __init__(
        self, Store store not None, bytes path not None, bytes identity not None,
        long long size_bytes,
    ):
        if len(path) > MAX_PATH_BYTES - 32 or path.count(b"/") != 2 or b"\0" in path:
            raise ValueError(f"not the path of a version: {path!r}")
        if len(identity) > C_MAX_IDENTITY_BYTES:
            raise ValueError(f"an identity of {len(identity)} bytes")
        if self.version != NULL:
            raise ValueError("it has a version")
        self.version = <version_t*>malloc(sizeof(version_t))
        if self.version == NULL:
            raise MemoryError()
        memset(self.version, 0, sizeof(version_t))
        self.version.refs = 1
        self.version.store = store.store
        atomic_add(&store.store.refs, 1)
        self.version.size_bytes = size_bytes
        self.version.path = <char*>malloc(len(path) + 1)
        self.version.identity.text = <char*>malloc(len(identity) + 1)
        if self.version.path == NULL or self.version.identity.text == NULL:
            raise MemoryError()
        if 1 < blocks_of(size_bytes) <= MAX_REMEMBERED:
            self.version.sums = <void**>calloc(blocks_of(size_bytes), sizeof(void*))
        memcpy(self.version.path, <const char*>path, len(path) + 1)
        memcpy(<void*>self.version.identity.text, <const char*>identity, len(identity))
        self.version.identity.size = len(identity)

    def __dealloc__(self):
        if self.version != NULL:
            release_version(self.version)

    @property
    def dropped(self):
        """Whether the blocks are wrong, so that no more are written."""
        return get_int(&self.version.dropped) != 0

    def drop(self):
        """Declare the blocks wrong."""
        set_int(&self.version.dropped, 1)

    def holds(self, long long number):
        """Whether there is a file for this block. It may be damaged, or go away."""
        cdef bint found
        with nogil:
            found = is_there(self.version, number)
        return found

    def expect(self, long long number):
        """Let the disk begin to read a block, and do not wait for it. Whether it is there."""
        cdef bint found
        with nogil:
            found = expect_block(self.version, number)
        return found

    def held_until(self, long long start, long long stop):
        """Return whether the bytes at `start` are in a block, and up to where, at most `stop`, the
        answer is the same. Positions are the object's.
        """
        cdef bint held, following
        cdef long long upto, position
        with nogil:
            position = same_until(self.version, start, stop, &held)
            while position < stop:
                upto = same_until(self.version, position, stop, &following)
                if following != held:
                    break
                position = upto
        return held, position

    def file_bytes(self, long long number):
        """Return the size of a block's file."""
        cdef uint32_t size = block_size(self.version, number)
        return size + trailer_size(&self.version.identity, size)

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

    def write(self, long long number, const unsigned char[::1] data not None, bytes temporary not None):
        """Write the bytes of a block to the new file `temporary`; return 0 or an errno."""
        cdef int problem
        if number < 0 or data.shape[0] == 0 or data.shape[0] != block_size(self.version, number):
            raise ValueError(f"not block {number}: {data.shape[0]} bytes")
        cdef const char* name = temporary
        with nogil:
            problem = write_block(self.version, number, <const char*>&data[0], name)
        return problem

    def publish(self, long long number, bytes temporary not None):
        """Give the written file `temporary` the block's name, or remove it; return 0 or an errno.

        EEXIST: there is such a block.
        """
        cdef int problem
        cdef const char* name = temporary
        with nogil:
            problem = publish_block(self.version, number, name)
        return problem

    def remove(self, long long number):
        """Remove a block; return whether there was one."""
        cdef char path[MAX_PATH_BYTES]
        cdef bint removed
        with nogil:
            path_of(self.version, number, path)
            removed = unlinkat(self.version.store.directory, path, 0) == 0
        return removed


def hold_first(list versions not None):
    """Return for each version whether there is a file for its first block. Releases the GIL."""
    cdef version_t** asked
    cdef bint* held
    cdef CachedVersion each
    cdef Py_ssize_t count = len(versions), index
    asked = <version_t**>malloc((count + 1) * sizeof(version_t*))
    held = <bint*>malloc((count + 1) * sizeof(bint))
    if asked == NULL or held == NULL:
        free(asked)
        free(held)
        raise MemoryError()
    try:
        for index, each in enumerate(versions):
            if each is None:
                raise TypeError("not a version")
            asked[index] = each.version  # `versions` holds it
        with nogil:
            for index in range(count):
                held[index] = is_there(asked[index], 0)
        return [bool(held[index]) for index in range(count)]
    finally:
        free(asked)
        free(held)


# --- small blocks that reads in lanes have fetched ---

cdef void keep(version_t* version, long long position, Block* block, long long offset) noexcept nogil:
    """Queue the small block at `position`, whose bytes are at `offset` of `block`, unless the queue
    is full.
    """
    cdef store_t* store = version.store
    cdef kept_t* kept
    if count_up(&store.kept_bytes, C_SMALL_BYTES) > MAX_KEPT_BYTES:
        count_up(&store.kept_bytes, -C_SMALL_BYTES)
        count_up(&store.dropped, 1)
        return
    kept = <kept_t*>malloc(sizeof(kept_t))
    if kept == NULL:
        count_up(&store.kept_bytes, -C_SMALL_BYTES)
        return
    kept.number = C_SMALL | (position // C_SMALL_BYTES)
    kept.offset = offset
    kept.version = version
    kept.block = block
    atomic_add(&version.refs, 1)
    hold_block(block)
    pthread_mutex_lock(&store.mutex)
    kept.next = store.kept
    store.kept = kept
    pthread_mutex_unlock(&store.mutex)


cdef kept_t* take_kept(store_t* store) noexcept nogil:
    """Empty the queue; return its first entry."""
    cdef kept_t* first
    pthread_mutex_lock(&store.mutex)
    first = store.kept
    store.kept = NULL
    pthread_mutex_unlock(&store.mutex)
    return first


cdef void forget_kept(store_t* store, kept_t* kept) noexcept nogil:
    """Release an entry that was taken."""
    count_up(&store.kept_bytes, -C_SMALL_BYTES)
    release_block(kept.block)
    release_version(kept.version)
    free(kept)
