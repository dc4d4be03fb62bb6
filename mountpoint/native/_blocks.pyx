"""Memory for bodies: size classes, free lists, huge pages.

New memory is dear: the system zeroes it, page by page, at its first use. So blocks are used again.
A class is at most a quarter larger than the size that needs it. Small blocks come from malloc.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free, malloc

from mountpoint.native._sync cimport (
    atomic_add,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef extern from "<pthread.h>" nogil:
    """
    static pthread_mutex_t lists_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t lists_mutex

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE

cdef enum:
    MALLOC_BYTES = 64 << 10  # up to this size from malloc
    FIRST_BITS = 16  # the first class is for more than 2^16 bytes
    CLASSES = 4 * 16  # four for each power of two, up to 2^32 bytes
    HUGE_PAGE = 2 << 20

# Guarded by lists_mutex.
cdef Block* lists[CLASSES]
cdef size_t kept = 0  # bytes in the free lists
cdef size_t limit = 64 << 20  # the most bytes in the free lists
cdef size_t used = 0  # bytes of blocks with references, without those from malloc


cdef int class_of(size_t size) noexcept nogil:
    """Return the index of the smallest class that holds `size` bytes; one does."""
    cdef int bits = FIRST_BITS
    while (<size_t>2 << bits) < size:
        bits += 1
    cdef size_t step = <size_t>1 << (bits - 2)
    return 4 * (bits - FIRST_BITS) + <int>((size - ((<size_t>1) << bits) + step - 1) // step) - 1


cdef size_t capacity_of(int index) noexcept nogil:
    cdef int bits = FIRST_BITS + index // 4
    return ((<size_t>1) << bits) + (index % 4 + 1) * ((<size_t>1) << (bits - 2))


cdef Block* new_block(size_t size) noexcept nogil:
    """Return a block of at least `size` bytes, whose content is undefined; NULL without memory."""
    global kept, used
    cdef Block* block = NULL
    cdef int index
    if size <= MALLOC_BYTES:
        block = <Block*>malloc(sizeof(Block) + size)
        if block != NULL:
            block.refs = 1
            block.size_class = -1
            block.capacity = size
            block.bytes = <char*>block + sizeof(Block)
            block.next = NULL
        return block
    if size > capacity_of(CLASSES - 1):
        return NULL
    index = class_of(size)
    pthread_mutex_lock(&lists_mutex)
    block = lists[index]
    if block != NULL:
        lists[index] = block.next
        kept -= block.capacity
        used += block.capacity
    pthread_mutex_unlock(&lists_mutex)
    if block == NULL:
        block = mapped(index)
        if block == NULL:
            return NULL
        pthread_mutex_lock(&lists_mutex)
        used += block.capacity
        pthread_mutex_unlock(&lists_mutex)
    block.refs = 1
    block.next = NULL
    return block


cdef Block* mapped(int index) noexcept nogil:
    cdef size_t capacity = capacity_of(index)
    cdef Block* block = <Block*>malloc(sizeof(Block))
    if block == NULL:
        return NULL
    cdef void* memory = mmap(
        NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    if memory == MAP_FAILED:
        free(block)
        return NULL
    if capacity >= HUGE_PAGE:
        madvise(memory, capacity, MADV_HUGEPAGE)
    block.size_class = index
    block.capacity = capacity
    block.bytes = <char*>memory
    return block


cdef void hold_block(Block* block) noexcept nogil:
    atomic_add(&block.refs, 1)


cdef void release_block(Block* block) noexcept nogil:
    """Give one reference back; the last one returns the memory."""
    global kept, used
    cdef bint keep
    if atomic_add(&block.refs, -1) > 0:
        return
    if block.size_class < 0:
        free(block)
        return
    pthread_mutex_lock(&lists_mutex)
    used -= block.capacity
    keep = kept + block.capacity <= limit
    if keep:
        block.next = lists[block.size_class]
        lists[block.size_class] = block
        kept += block.capacity
    pthread_mutex_unlock(&lists_mutex)
    if not keep:
        unmap(block)


cdef void unmap(Block* block) noexcept nogil:
    munmap(block.bytes, block.capacity)
    free(block)


def keep_at_most(size_t size_bytes):
    """Set the most bytes that wait in the free lists for their next use."""
    global limit
    pthread_mutex_lock(&lists_mutex)
    limit = size_bytes
    pthread_mutex_unlock(&lists_mutex)


def give_back():
    """Return all memory in the free lists to the system; return the number of bytes."""
    global kept
    cdef Block* first
    cdef Block* block
    cdef size_t freed = 0
    cdef int index
    with nogil:
        for index in range(CLASSES):
            pthread_mutex_lock(&lists_mutex)
            first = lists[index]
            lists[index] = NULL
            block = first
            while block != NULL:
                kept -= block.capacity
                block = block.next
            pthread_mutex_unlock(&lists_mutex)
            while first != NULL:
                block = first
                first = block.next
                freed += block.capacity
                unmap(block)
    return freed


def held_bytes():
    """Return the bytes of blocks in use, and of those in the free lists (without malloc's)."""
    cdef size_t used_now, kept_now
    pthread_mutex_lock(&lists_mutex)
    used_now = used
    kept_now = kept
    pthread_mutex_unlock(&lists_mutex)
    # Not before: a new object may run the collector, which releases blocks.
    return used_now, kept_now


cdef class BlockView:
    """A read-only buffer of a block's first bytes. It owns one reference."""

    def __init__(self):
        raise TypeError("made by the native plane only")

    def __dealloc__(self):
        if self.block != NULL:
            release_block(self.block)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.block.bytes, self.size, True, flags)


cdef BlockView view_of(Block* block, Py_ssize_t size):
    """Return a view of the block's first `size` bytes."""
    cdef BlockView view = BlockView.__new__(BlockView)
    hold_block(block)
    view.block = block
    view.size = size
    return view
