"""Histograms that take a tenth of a microsecond per value, and timers that fill them.

The buckets are those of OpenTelemetry's exponential histograms at scale 3. Bucket i counts the
values in (b^i, b^(i+1)] with b = 2^(1/8), so values read from it are at most 9 % off. They are
exported unchanged, and eight adjacent ones form a bucket that ends at a power of two.
https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram

All values only grow. They are atomic: reads in the lane (`native._lane`) count without the
interpreter. So the numbers of one histogram are consistent, but its total may be a few values ahead.
"""

from libc.math cimport ceil, log2
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    """
    #define add_u64(pointer, amount) __atomic_fetch_add(pointer, amount, __ATOMIC_RELEASE)
    #define add_i64(pointer, amount) __atomic_add_fetch(pointer, amount, __ATOMIC_RELAXED)
    #define load_u64(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)
    #define swap_u64(pointer, expected, wanted) \\
        __atomic_compare_exchange_n(pointer, expected, wanted, 1, \\
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED)
    """
    uint64_t add_u64(uint64_t*, uint64_t) nogil
    int64_t add_i64(int64_t*, int64_t) nogil
    uint64_t load_u64(const uint64_t*) nogil
    bint swap_u64(uint64_t*, uint64_t*, uint64_t) nogil

cdef extern from "<pthread.h>" nogil:
    """
    static pthread_mutex_t readers_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    pthread_mutex_t readers_mutex

BUCKETS = BUCKET_COUNT
SCALE = 3


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void add_value(histogram_t* histogram, uint64_t value) noexcept nogil:
    """Count a value."""
    cdef uint64_t seen = load_u64(&histogram.least)
    cdef int index
    while (seen == 0 or value + 1 < seen) and not swap_u64(&histogram.least, &seen, value + 1):
        pass
    seen = load_u64(&histogram.most)
    while value > seen and not swap_u64(&histogram.most, &seen, value):
        pass
    add_u64(&histogram.total, value)
    if value == 0:
        add_u64(&histogram.zeros, 1)
        return
    # 1 belongs to bucket -1, but is counted in bucket 0: no whole number lies between them.
    index = <int>ceil(log2(<double>value) * 8) - 1
    add_u64(&histogram.buckets[max(0, min(index, BUCKET_COUNT - 1))], 1)


cdef void begin_timer(timer_t* timer) noexcept nogil:
    """Start an activity."""
    cdef threads_t* threads = timer.threads
    cdef int64_t busy
    add_u64(&timer.begun, 1)
    if threads != NULL:
        busy = add_i64(&threads.busy, 1)
        add_value(threads.idle, max(0, threads.total - busy))


cdef void end_timer(timer_t* timer, int64_t begun_ns, int64_t ended_ns, bint failed) noexcept nogil:
    """End an activity and record its duration."""
    drop_timer(timer)
    if failed:
        add_u64(&timer.failures, 1)
    add_value(timer.histogram, max(ended_ns - begun_ns, 0) // 1000)


cdef void drop_timer(timer_t* timer) noexcept nogil:
    """End an activity without recording it."""
    add_u64(&timer.over, 1)
    if timer.threads != NULL:
        add_i64(&timer.threads.busy, -1)
        add_u64(&timer.threads.over, 1)


cdef void undo_timer(timer_t* timer) noexcept nogil:
    """Take the start of an activity back."""
    add_u64(&timer.begun, <uint64_t>-1)
    if timer.threads != NULL:
        add_i64(&timer.threads.busy, -1)


cdef histogram_t* find_reader(const reader_t* table, uint64_t thread) noexcept nogil:
    """Return the histogram of a thread in a table of `Readers`; NULL if it is not known."""
    cdef const reader_t* reader = &table[thread % READERS]
    cdef histogram_t* found = NULL
    pthread_mutex_lock(&readers_mutex)
    if reader.thread == thread and monotonic_ns() < reader.until_ns:
        found = reader.bytes
    pthread_mutex_unlock(&readers_mutex)
    return found


cdef dict numbers_of(const histogram_t* histogram):
    cdef list buckets = [load_u64(&histogram.buckets[index]) for index in range(BUCKET_COUNT)]
    cdef uint64_t zeros = load_u64(&histogram.zeros)
    cdef uint64_t least = load_u64(&histogram.least)
    count = zeros + sum(buckets)
    while buckets and buckets[-1] == 0:
        buckets.pop()
    return {
        "count": count,
        "total": load_u64(&histogram.total),
        "least": least - 1 if least else 0,
        "most": load_u64(&histogram.most),
        "zeros": zeros,
        "buckets": buckets,
    }


cdef class Histogram:
    """Counts of values by size. Values are whole numbers from 0."""

    def add(self, uint64_t value):
        """Count a value."""
        add_value(&self.data, value)

    @property
    def count(self):
        return self.numbers()["count"]

    @property
    def zeros(self):
        return self.data.zeros

    @property
    def total(self):
        return self.data.total

    @property
    def least(self):
        return self.data.least - 1 if self.data.least else 0

    @property
    def most(self):
        return self.data.most

    def buckets(self):
        """Return the counts of all buckets, starting with (1, b], without empty ones at the end.

        The first also counts the ones; the last counts all larger values.
        """
        return self.numbers()["buckets"]

    def numbers(self):
        """Return all values by name."""
        return numbers_of(&self.data)


cdef class Threads:
    """The busy ones of `total` threads, as their timers report them.

    `over` counts finished work. `idle` is a histogram of the idle threads at each start of work.
    """

    def __cinit__(self, int64_t total):
        self.data.total = total
        self.idle = Histogram()
        self.data.idle = &self.idle.data

    @property
    def total(self):
        return self.data.total

    @property
    def busy(self):
        return self.data.busy

    @property
    def over(self):
        return self.data.over


cdef class Timer:
    """Durations, in microseconds, of an activity that may run many times in parallel.

    `failures` counts the failed ones. Each activity keeps one of `threads` busy.
    """

    def __cinit__(self, Threads threads=None):
        self.threads = threads
        self.histogram = Histogram()
        self.data.histogram = &self.histogram.data
        self.data.threads = NULL if threads is None else &threads.data

    @property
    def failures(self):
        return self.data.failures

    @property
    def under_way(self):
        """The number of activities that have not ended."""
        cdef uint64_t over = load_u64(&self.data.over)  # first: more may end meanwhile
        return load_u64(&self.data.begun) - over

    @property
    def over(self):
        """The number of activities that have ended, including dropped ones."""
        return self.data.over

    def begin(self):
        """Start an activity; return the time that `end` takes."""
        begin_timer(&self.data)
        return monotonic_ns()

    def end(self, int64_t begun_ns, bint failed=False, at_ns=None):
        """End an activity and record its duration; `at_ns` is the time of its end, by default now."""
        end_timer(&self.data, begun_ns, monotonic_ns() if at_ns is None else at_ns, failed)

    def drop(self):
        """End an activity without recording it."""
        drop_timer(&self.data)

    def numbers(self):
        """Return all values by name."""
        cdef uint64_t over = load_u64(&self.data.over), begun = load_u64(&self.data.begun)
        return {
            "begun": begun,
            "under_way": begun - over,
            "failures": self.data.failures,
            "us": self.histogram.numbers(),
        }


cdef class Readers:
    """The histograms of the programs that threads run, for reads in the lane.

    A thread is known for a short time only: its process may run another program.
    """

    def __cinit__(self):
        self.histograms = []

    def set(self, uint64_t thread, Histogram histogram not None, int64_t until_ns):
        """Count the bytes that this thread reads in `histogram`, until then (monotonic clock)."""
        cdef reader_t* reader = &self.table[thread % READERS]
        if histogram not in self.histograms:
            self.histograms.append(histogram)
        pthread_mutex_lock(&readers_mutex)
        reader.thread = thread
        reader.until_ns = until_ns
        reader.bytes = &histogram.data
        pthread_mutex_unlock(&readers_mutex)
