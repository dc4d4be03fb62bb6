# cython: cdivision=True
"""The format of blocks, as files and as objects of a shared cache. No function needs the GIL.

A *block* is up to 1 MiB of one object version, at a multiple of 1 MiB. A *small block* is 64 KiB: of
reads at random places, which do not fill others. The number of a block is its index; small blocks are
counted by themselves, with the bit SMALL. A block is stored with a trailer behind its bytes, so that
offsets in the file are offsets in the block:

| bytes | content |
|---|---|
| 4 | size of the identity |
| n | the identity: endpoint, bucket, key, ETag and size of the object (`identity`) |
| 8 | number of the block |
| 4 | bytes of the block |
| 4 per unit | CRC32C of each unit of 16 KiB |
| 0 to 4095 | zeros: a file of a whole MiB has whole pages |
| 4 | CRC32C of the trailer so far |
| 4 | size of the whole trailer |
| 8 | magic, with the version of this format |

Numbers are little-endian. A reader knows where the trailer begins, and all of it but the checksums. So a
block that was damaged, renamed, cut, or is another version's by a collision of names is noticed.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from mountpoint.cache.blocks._checksums cimport (
    UNIT_BYTES,
    crc32c,
    crc32c_by_table,
    crc32c_of_units,
    fill_crc32c_table,
)

BLOCK_BYTES = C_BLOCK_BYTES
SMALL_BYTES = C_SMALL_BYTES
SMALL = <long long>C_SMALL
MAX_IDENTITY_BYTES = C_MAX_IDENTITY_BYTES
MAGIC = b"ms3blk01"

cdef const char* magic = b"ms3blk01"

fill_crc32c_table()


cdef uint32_t units_of(uint32_t size) noexcept nogil:
    return (size + UNIT_BYTES - 1) // UNIT_BYTES


cdef uint32_t trailer_size(const identity_t* identity, uint32_t size) noexcept nogil:
    """Return the size of the trailer of a block of `size` bytes."""
    cdef uint32_t whole = identity.size + 4 * units_of(size) + 32
    if size == C_BLOCK_BYTES:
        whole += (PAGE_BYTES - whole % PAGE_BYTES) % PAGE_BYTES
    return whole


cdef char* begin_trailer(
    const identity_t* identity, uint64_t number, uint32_t size, char* trailer
) noexcept nogil:
    """Write what precedes the checksums, and zeros; return the position after it."""
    memset(trailer, 0, trailer_size(identity, size))
    memcpy(trailer, &identity.size, 4)
    memcpy(trailer + 4, identity.text, identity.size)
    trailer += 4 + identity.size
    memcpy(trailer, &number, 8)
    memcpy(trailer + 8, &size, 4)
    return trailer + 12


cdef void end_trailer(char* trailer, uint32_t whole) noexcept nogil:
    """Write what follows the checksums."""
    cdef uint32_t crc = crc32c(trailer, whole - 16)
    memcpy(trailer + whole - 16, &crc, 4)
    memcpy(trailer + whole - 12, &whole, 4)
    memcpy(trailer + whole - 8, magic, 8)


cdef uint32_t make_trailer(
    const identity_t* identity, uint64_t number, const char* bytes, uint32_t size, char* trailer
) noexcept nogil:
    """Write the trailer of a block with these bytes; return its size."""
    cdef uint32_t sums[UNITS]
    cdef uint32_t whole = trailer_size(identity, size)
    cdef char* position = begin_trailer(identity, number, size, trailer)
    crc32c_of_units(bytes, size, sums)
    memcpy(position, sums, 4 * units_of(size))
    end_trailer(trailer, whole)
    return whole


cdef uint32_t* sums_of(
    const identity_t* identity, uint64_t number, uint32_t size, const char* trailer
) noexcept nogil:
    """Return the checksums in the trailer of a block, to be freed; NULL if it is not its trailer."""
    cdef char expected[MAX_TRAILER_BYTES]
    cdef uint32_t whole = trailer_size(identity, size)
    cdef char* position = begin_trailer(identity, number, size, expected)
    cdef uint32_t* sums
    memcpy(position, trailer + (position - expected), 4 * units_of(size))
    end_trailer(expected, whole)
    if memcmp(trailer, expected, whole) != 0:
        return NULL
    sums = <uint32_t*>malloc(4 * UNITS)
    if sums != NULL:
        memcpy(sums, position, 4 * units_of(size))
    return sums


cdef bint is_sum(const char* bytes, uint32_t size, const uint32_t* sums) noexcept nogil:
    """Whether units have these checksums."""
    cdef uint32_t found[UNITS]
    crc32c_of_units(bytes, size, found)
    return memcmp(found, sums, 4 * units_of(size)) == 0


# --- for Python ---

cdef identity_t identity_of(bytes text) except *:
    """Return an identity that must not outlive `text`."""
    cdef identity_t identity
    if len(text) > C_MAX_IDENTITY_BYTES:
        raise ValueError(f"an identity of {len(text)} bytes")
    identity.text = text
    identity.size = len(text)
    return identity


def trailer_bytes(bytes identity not None, uint32_t size):
    """Return the size of the trailer of a block of `size` bytes."""
    cdef identity_t name = identity_of(identity)
    return trailer_size(&name, size)


def trailer_of(bytes identity not None, long long number, const unsigned char[::1] data not None):
    """Return the trailer of a block with these bytes."""
    cdef identity_t name = identity_of(identity)
    cdef char trailer[MAX_TRAILER_BYTES]
    cdef uint32_t whole
    if not 0 < data.shape[0] <= C_BLOCK_BYTES:
        raise ValueError(f"a block of {data.shape[0]} bytes")
    with nogil:
        whole = make_trailer(&name, number, <const char*>&data[0], data.shape[0], trailer)
    return trailer[:whole]


def is_block(
    bytes identity not None, long long number, uint32_t size,
    const unsigned char[::1] content not None,
):
    """Whether this is a block of `size` bytes of the version, followed by its trailer."""
    cdef identity_t name = identity_of(identity)
    cdef uint32_t* sums
    cdef const char* start
    cdef bint right = False
    if not 0 < size <= C_BLOCK_BYTES:
        raise ValueError(f"a block of {size} bytes")
    if content.shape[0] != size + trailer_size(&name, size):
        return False
    start = <const char*>&content[0]
    with nogil:
        sums = sums_of(&name, number, size, start + size)
        if sums != NULL:
            right = is_sum(start, size, sums)
            free(sums)
    return right


def crc32c_of(const unsigned char[::1] data not None, bint by_table=False):
    """Return the CRC32C of some bytes; by the table instead of the processor for tests."""
    cdef const unsigned char* bytes = &data[0] if data.shape[0] else NULL
    if by_table:
        return crc32c_by_table(bytes, data.shape[0])
    return crc32c(bytes, data.shape[0])
