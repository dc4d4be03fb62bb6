"""Read headers of an answer without the interpreter. Pure: only their usual forms count.

`wire.reading` and `wire.checksum` have the rules for all forms.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, strlen

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char*, const char*, size_t)


cdef bint is_named(const aws_http_header* header, const char* name) noexcept nogil:
    cdef size_t size = strlen(name)
    return (
        header.name.len == size
        and strncasecmp(<const char*>header.name.ptr, name, size) == 0
    )


cdef bint is_checksum(const aws_http_header* header) noexcept nogil:
    """Whether it is a checksum, or the type of one."""
    return header.name.len > 15 and strncasecmp(
        <const char*>header.name.ptr, b"x-amz-checksum-", 15
    ) == 0


cdef int described_by(const char* name, size_t size) noexcept nogil:
    """Return what a header of this name describes, besides the object's size and ETag."""
    if size == 13 and strncasecmp(name, b"last-modified", 13) == 0:
        return MODIFIED
    if size == 13 and strncasecmp(name, b"x-amz-restore", 13) == 0:
        return RESTORED
    if size == 19 and strncasecmp(name, b"x-amz-storage-class", 19) == 0:
        return STORAGE_CLASS
    if size >= 11 and strncasecmp(name, b"x-amz-meta-", 11) == 0:
        return METADATA
    return NOTHING


cdef bint is_value(const aws_http_header* header, const char* value, size_t size) noexcept nogil:
    return header.value.len == size and memcmp(header.value.ptr, value, size) == 0


cdef bint is_range(
    const aws_http_header* header, uint64_t start, uint64_t size, uint64_t object_size
) noexcept nogil:
    """Whether it is the Content-Range of [start, start + size) of an object of this size."""
    cdef char text[80]
    cdef int length = snprintf(
        text, sizeof(text), b"bytes %llu-%llu/%llu",
        <unsigned long long>start,
        <unsigned long long>(start + size - 1),
        <unsigned long long>object_size,
    )
    return is_value(header, text, length)


cdef bint is_number(const aws_http_header* header, uint64_t number) noexcept nogil:
    cdef char text[24]
    cdef int size = snprintf(text, sizeof(text), b"%llu", <unsigned long long>number)
    return is_value(header, text, size)


cdef int type_of(const aws_http_header* header) noexcept nogil:
    """Return the type in a header x-amz-checksum-type."""
    if header.value.len == 11 and strncasecmp(
        <const char*>header.value.ptr, b"FULL_OBJECT", 11
    ) == 0:
        return FULL_OBJECT
    if header.value.len == 9 and strncasecmp(
        <const char*>header.value.ptr, b"COMPOSITE", 9
    ) == 0:
        return COMPOSITE
    return OTHER_TYPE


cdef int read_checksum(const aws_http_header* header, uint64_t* value) noexcept nogil:
    """Return the algorithm of a checksum's header, and its value; NO_CHECKSUM if it is unusual."""
    cdef int algorithm = NO_CHECKSUM
    cdef size_t size = 4
    if is_named(header, b"x-amz-checksum-crc64nvme"):
        algorithm = CRC64NVME
        size = 8
    elif is_named(header, b"x-amz-checksum-crc32c"):
        algorithm = CRC32C
    elif is_named(header, b"x-amz-checksum-crc32"):
        algorithm = CRC32
    if algorithm == NO_CHECKSUM or not read_base64(header, size, value):
        return NO_CHECKSUM
    return algorithm


cdef bint read_base64(const aws_http_header* header, size_t size, uint64_t* value) noexcept nogil:
    """Read `size` bytes, 4 or 8, in their only spelling, as a big-endian number."""
    cdef size_t length = 4 * ((size + 2) // 3)
    cdef size_t digits = (8 * size + 5) // 6
    cdef size_t index
    cdef uint64_t number = 0
    cdef int digit
    cdef int surplus = <int>(6 * digits - 8 * size)
    if header.value.len != length:
        return False
    for index in range(length):
        if index >= digits:
            if header.value.ptr[index] != c"=":
                return False
            continue
        digit = base64_digit(header.value.ptr[index])
        if digit < 0:
            return False
        if index < digits - 1:
            number = number << 6 | <uint64_t>digit
        else:
            if digit & ((1 << surplus) - 1):
                return False
            number = number << (6 - surplus) | <uint64_t>(digit >> surplus)
    value[0] = number
    return True


cdef int base64_digit(uint8_t character) noexcept nogil:
    if c"A" <= character <= c"Z":
        return character - c"A"
    if c"a" <= character <= c"z":
        return character - c"a" + 26
    if c"0" <= character <= c"9":
        return character - c"0" + 52
    if character == c"+":
        return 62
    if character == c"/":
        return 63
    return -1
