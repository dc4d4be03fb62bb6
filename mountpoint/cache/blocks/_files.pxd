# Block files: the bytes of object versions on disk.
#
# Ownership: a `store_t` owns the descriptor of the cache directory. It is shared by its `Store` and
# by its versions. A `version_t` is shared by its `CachedVersion`, and by sources for reads in a
# lane. Each of these owns one reference. A `kept_t` owns a reference to its version and one to its
# block, until Python takes it or the store ends.

from mountpoint.cache.blocks._format cimport identity_t
from mountpoint.native._blocks cimport Block
from mountpoint.native._sync cimport pthread_mutex_t

cdef enum:
    UNKNOWN = 0
    NONE = 1
    SOME = 2

cdef struct store_t:
    int refs                    # atomic, like all that follow but the descriptor
    int directory               # descriptor of the cache directory
    long long hits              # blocks that were read
    long long misses            # blocks that were not there when a read came
    long long bytes_read
    long long bad               # blocks that were removed because they were damaged
    long long dropped           # small blocks of reads in lanes for which there was no room
    long long kept_bytes        # of the small blocks in the queue, or so
    pthread_mutex_t mutex       # guards the queue
    kept_t* kept                # small blocks that reads in lanes have fetched

cdef struct version_t:
    int refs                    # atomic
    store_t* store
    char* path                  # of the version's blocks, without ".INDEX"
    identity_t identity         # it owns the text
    long long size_bytes        # of the object
    int small                   # whether there are small blocks; atomic
    int dropped                 # its blocks are wrong: no more are written; atomic
    void** sums                 # checksums of each block that was read; atomic. NULL: none


cdef struct kept_t:
    version_t* version
    long long number
    Block* block
    long long offset            # of the bytes in the block
    kept_t* next


cdef class Store:
    cdef store_t* store


cdef class CachedVersion:
    cdef version_t* version


cdef bint read_there(version_t* version, long long start, long long stop, char* into) noexcept nogil
cdef bint expect_block(const version_t* version, long long number) noexcept nogil
cdef void keep(version_t* version, long long position, Block* block, long long offset) noexcept nogil
cdef void release_version(version_t* version) noexcept nogil
