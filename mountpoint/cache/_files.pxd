# Block files: the bytes of object versions on disk.
#
# Ownership: a `store_t` owns the descriptor of the cache directory. It is shared by its `Store` and
# by its versions. A `version_t` is shared by its `CachedVersion`, and by sources for reads in a
# lane. Each of these owns one reference.

from libc.stdint cimport uint32_t

cdef struct store_t:
    int refs                    # atomic, like all that follow but the descriptor
    int directory               # descriptor of the cache directory
    long long hits              # blocks that were read
    long long misses            # blocks that were not there when a read came
    long long bytes_read
    long long bad               # blocks that were removed because they were damaged

cdef struct version_t:
    int refs                    # atomic
    store_t* store
    char* path                  # of the version's blocks, without ".INDEX"
    char* identity              # as the trailer has it
    uint32_t identity_size
    long long size_bytes        # of the object
    void** sums                 # checksums of each block that was read; atomic. NULL: none


cdef class Store:
    cdef store_t* store


cdef class CachedVersion:
    cdef version_t* version
    cdef public bint dropped    # its blocks are wrong: no more are written
