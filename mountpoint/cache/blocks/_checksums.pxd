# CRC32C (Castagnoli), by the processor's instruction where it has one.

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define UNIT_BYTES 16384  /* the bytes that one checksum covers */
    #define CRC32C_POLYNOMIAL 0x82F63B78u  /* reflected */

    static uint32_t crc32c_table[256];

    static inline void fill_crc32c_table(void) {
        for (uint32_t index = 0; index < 256; index++) {
            uint32_t entry = index;
            for (int bit = 0; bit < 8; bit++)
                entry = entry & 1 ? entry >> 1 ^ CRC32C_POLYNOMIAL : entry >> 1;
            crc32c_table[index] = entry;
        }
    }

    static inline uint32_t crc32c_by_table(const unsigned char *bytes, size_t size) {
        uint32_t crc = ~0u;
        for (size_t index = 0; index < size; index++)
            crc = crc32c_table[(crc ^ bytes[index]) & 255] ^ crc >> 8;
        return ~crc;
    }

    #if defined(__x86_64__)
    #define CRC32C_TARGET __attribute__((target("sse4.2")))
    #define crc32c_word(crc, word) ((uint32_t)__builtin_ia32_crc32di(crc, word))
    #define crc32c_byte(crc, byte) __builtin_ia32_crc32qi(crc, byte)
    static inline int has_crc32c(void) { return __builtin_cpu_supports("sse4.2"); }
    #elif defined(__aarch64__)
    #include <arm_acle.h>
    #include <sys/auxv.h>
    #define CRC32C_TARGET __attribute__((target("+crc")))
    #define crc32c_word(crc, word) __builtin_aarch64_crc32cx(crc, word)
    #define crc32c_byte(crc, byte) __builtin_aarch64_crc32cb(crc, byte)
    static inline int has_crc32c(void) { return (getauxval(AT_HWCAP) & (1 << 7)) != 0; }  /* HWCAP_CRC32 */
    #else
    #define CRC32C_TARGET
    #define crc32c_word(crc, word) (crc)
    #define crc32c_byte(crc, byte) (crc)
    static inline int has_crc32c(void) { return 0; }
    #endif

    CRC32C_TARGET
    static inline uint32_t crc32c_by_processor(const unsigned char *bytes, size_t size) {
        uint32_t crc = ~0u;
        uint64_t word;
        for (; size >= 8; size -= 8, bytes += 8) {
            memcpy(&word, bytes, 8);
            crc = crc32c_word(crc, word);
        }
        for (; size > 0; size--, bytes++)
            crc = crc32c_byte(crc, *bytes);
        return ~crc;
    }

    /* Three units at once: the instruction takes three cycles, but can begin in each cycle. */
    CRC32C_TARGET
    static inline void crc32c_of_three(const unsigned char *bytes, uint32_t *sums) {
        uint32_t first = ~0u, second = ~0u, third = ~0u;
        uint64_t word;
        for (size_t offset = 0; offset < UNIT_BYTES; offset += 8) {
            memcpy(&word, bytes + offset, 8);
            first = crc32c_word(first, word);
            memcpy(&word, bytes + UNIT_BYTES + offset, 8);
            second = crc32c_word(second, word);
            memcpy(&word, bytes + 2 * UNIT_BYTES + offset, 8);
            third = crc32c_word(third, word);
        }
        sums[0] = ~first;
        sums[1] = ~second;
        sums[2] = ~third;
    }

    static inline uint32_t crc32c(const void *bytes, size_t size) {
        return has_crc32c() ? crc32c_by_processor(bytes, size) : crc32c_by_table(bytes, size);
    }

    /* The checksums of all units; the last one may be shorter. */
    static inline void crc32c_of_units(const void *start, size_t size, uint32_t *sums) {
        const unsigned char *bytes = start;
        if (has_crc32c())
            for (; size >= 3 * UNIT_BYTES; size -= 3 * UNIT_BYTES, bytes += 3 * UNIT_BYTES, sums += 3)
                crc32c_of_three(bytes, sums);
        while (size > 0) {
            size_t unit = size < UNIT_BYTES ? size : UNIT_BYTES;
            *sums++ = crc32c(bytes, unit);
            bytes += unit;
            size -= unit;
        }
    }
    """
    enum:
        UNIT_BYTES
    void fill_crc32c_table() noexcept nogil  # once, before any other function
    uint32_t crc32c(const void* bytes, size_t size) noexcept nogil
    uint32_t crc32c_by_table(const unsigned char* bytes, size_t size) noexcept nogil
    void crc32c_of_units(const void* start, size_t size, uint32_t* sums) noexcept nogil
