# Histograms, timers and the readers' table as C structs, for code that runs without the interpreter.
#
# The Python objects own the structs; whoever keeps a pointer to one keeps the object.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    # Eight buckets per power of two, up to 2^40: 12 days in microseconds, 1 TiB in bytes.
    BUCKET_COUNT = 320
    READERS = 1024

# All fields are atomic. Values are whole numbers from 0.
cdef struct histogram_t:
    uint64_t buckets[BUCKET_COUNT]
    uint64_t zeros
    uint64_t total
    uint64_t least              # the smallest value plus 1; 0: there is none
    uint64_t most

cdef struct threads_t:
    int64_t total
    int64_t busy                # atomic
    uint64_t over               # atomic
    histogram_t* idle

cdef struct timer_t:
    histogram_t* histogram      # microseconds
    uint64_t failures           # atomic
    uint64_t begun              # atomic
    uint64_t over               # atomic
    threads_t* threads          # or NULL

# The histogram of the program that a thread runs, as long as that is known.
cdef struct reader_t:
    uint64_t thread
    int64_t until_ns            # monotonic clock
    histogram_t* bytes

cdef int64_t monotonic_ns() noexcept nogil
cdef void add_value(histogram_t* histogram, uint64_t value) noexcept nogil
cdef void begin_timer(timer_t* timer) noexcept nogil
cdef void end_timer(timer_t* timer, int64_t begun_ns, int64_t ended_ns, bint failed) noexcept nogil
cdef void drop_timer(timer_t* timer) noexcept nogil
cdef void undo_timer(timer_t* timer) noexcept nogil
cdef histogram_t* find_reader(const reader_t* table, uint64_t thread) noexcept nogil


cdef class Histogram:
    cdef histogram_t data

cdef class Threads:
    cdef threads_t data
    cdef readonly Histogram idle

cdef class Timer:
    cdef timer_t data
    cdef readonly Histogram histogram
    cdef Threads threads

cdef class Readers:
    cdef reader_t table[READERS]
    cdef list histograms
