"""Answers to READDIRPLUS: listings with the attributes of each entry.

libfuse 2.9 knows only READDIR. So llfuse answers that (`_channel`), and the attributes that the
operation has found are inserted: a struct fuse_entry_out in front of each struct fuse_dirent. One
of zeros means that the kernel must look the name up.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mountpoint.fuse._protocol cimport ENTRY_OUT_BYTES, Dirent


cdef size_t length_of(const char* listing, size_t left) noexcept nogil:
    """Return the size of the first entry of a listing, padded; 0 if it is not complete."""
    cdef size_t length
    if left < sizeof(Dirent):
        return 0
    length = (sizeof(Dirent) + (<const Dirent*>listing).name_size + 7) // 8 * 8
    return length if length <= left else 0


cdef char* merge(
    const char* listing, size_t size, const char* attributes, size_t attributes_size,
    size_t* merged_size
) noexcept nogil:
    """Return a listing with attributes, to be freed; NULL if there is no memory, or on a mistake.

    If the attributes are not those of as many entries, all names must be looked up.
    """
    cdef size_t position = 0, count = 0, length, index
    cdef char* memory
    cdef char* end
    while position < size:
        length = length_of(listing + position, size - position)
        if length == 0:
            return NULL
        position += length
        count += 1
    merged_size[0] = size + count * ENTRY_OUT_BYTES
    memory = <char*>malloc(merged_size[0])
    if memory == NULL:
        return NULL
    end = memory
    position = 0
    for index in range(count):
        length = length_of(listing + position, size - position)
        if attributes_size == count * ENTRY_OUT_BYTES:
            memcpy(end, attributes + index * ENTRY_OUT_BYTES, ENTRY_OUT_BYTES)
        else:
            memset(end, 0, ENTRY_OUT_BYTES)
        memcpy(end + ENTRY_OUT_BYTES, listing + position, length)
        end += ENTRY_OUT_BYTES + length
        position += length
    return memory


def merged(bytes listing not None, bytes attributes not None):
    """Return what `merge` returns. Raises ValueError if the listing is not complete."""
    cdef size_t size
    cdef char* memory = merge(listing, len(listing), attributes, len(attributes), &size)
    if memory == NULL:
        raise ValueError("not a listing")
    try:
        return memory[:size]
    finally:
        free(memory)
