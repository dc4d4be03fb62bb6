# cython: cdivision=True
"""Reads in a lane look into block files before they ask S3, without the GIL.

What S3 delivers is queued to be kept in small blocks (`_files`): a read at a random place fetches
whole ones.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mountpoint.cache.blocks._files cimport (
    CachedVersion,
    expect_block,
    keep,
    read_there,
    release_version,
    version_t,
)
from mountpoint.cache.blocks._format cimport C_SMALL_BYTES
from mountpoint.native._blocks cimport Block, new_block, release_block
from mountpoint.native._lane cimport LaneSource, release_source, source_t
from mountpoint.native._sync cimport atomic_add

cdef struct CachedSource:
    source_t source             # first: the lane's view of it
    version_t* version
    source_t* other             # for bytes that are not here; NULL: none


cdef Block* fetch(
    source_t* it, long long start, long long stop, unsigned long long thread, double late_s
) noexcept nogil:
    cdef CachedSource* source = <CachedSource*>it
    cdef Block* block = new_block(stop - start)
    if block != NULL and read_there(source.version, start, stop, block.bytes):
        return block
    if block == NULL or source.other == NULL:
        if block != NULL:
            release_block(block)
        return NULL
    return fetch_small(source, start, stop, thread, late_s, block)


cdef Block* fetch_small(
    CachedSource* source, long long start, long long stop, unsigned long long thread,
    double late_s, Block* block
) noexcept nogil:
    """Fetch the small blocks that have [start, stop), to be kept; return `block` with the bytes."""
    cdef long long begin = start - start % C_SMALL_BYTES
    cdef long long end = stop + (C_SMALL_BYTES - stop % C_SMALL_BYTES) % C_SMALL_BYTES
    cdef long long position
    cdef Block* fetched
    end = min(end, source.version.size_bytes)
    fetched = source.other.fetch(source.other, begin, end, thread, late_s)
    if fetched == NULL:
        release_block(block)
        return NULL
    memcpy(block.bytes, fetched.bytes + (start - begin), stop - start)
    position = begin
    while position < end:
        keep(source.version, position, fetched, position - begin)
        position += C_SMALL_BYTES
    release_block(fetched)
    return block


cdef void expect(source_t* it) noexcept nogil:
    expect_block((<CachedSource*>it).version, 0)


cdef void destroy(source_t* it) noexcept nogil:
    cdef CachedSource* source = <CachedSource*>it
    if source.other != NULL:
        release_source(source.other)
    release_version(source.version)
    free(source)


def lane_source(CachedVersion cached not None, LaneSource other):
    """Return a source for reads in a lane that looks here first, and then in `other`."""
    cdef CachedSource* source = <CachedSource*>malloc(sizeof(CachedSource))
    if source == NULL:
        raise MemoryError()
    cdef LaneSource it = LaneSource.__new__(LaneSource)
    memset(source, 0, sizeof(CachedSource))
    source.source.refs = 1
    source.source.fetch = &fetch
    source.source.destroy = &destroy
    source.source.expect = &expect
    source.version = cached.version
    atomic_add(&cached.version.refs, 1)
    if other is not None and other.source != NULL:
        source.other = other.source
        atomic_add(&other.source.refs, 1)
    it.source = &source.source
    return it
