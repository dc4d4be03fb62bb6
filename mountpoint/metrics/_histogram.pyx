"""Histograms that take a tenth of a microsecond per value, and timers that fill them.

The buckets are those of OpenTelemetry's exponential histograms at scale 3. Bucket i counts the
values in (b^i, b^(i+1)] with b = 2^(1/8), so values read from it are at most 9 % off. They are
exported unchanged, and eight adjacent ones form a bucket that ends at a power of two.
https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram

The GIL guards all state. Values only grow.
"""

from libc.math cimport ceil, log2
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    # Eight buckets per power of two, up to 2^40: 12 days in microseconds, 1 TiB in bytes.
    _BUCKETS = 320

BUCKETS = _BUCKETS
SCALE = 3


cdef class Histogram:
    """Counts of values by size. Values are whole numbers from 0."""

    cdef unsigned long long _buckets[_BUCKETS]
    cdef readonly unsigned long long count
    cdef readonly unsigned long long zeros
    cdef readonly unsigned long long total
    cdef readonly unsigned long long least
    cdef readonly unsigned long long most

    def add(self, unsigned long long value):
        """Count a value."""
        self._add(value)

    cdef void _add(self, unsigned long long value) noexcept:
        cdef int index
        if self.count == 0 or value < self.least:
            self.least = value
        if value > self.most:
            self.most = value
        self.count += 1
        self.total += value
        if value == 0:
            self.zeros += 1
            return
        # 1 belongs to bucket -1, but is counted in bucket 0: no whole number lies between them.
        index = <int>ceil(log2(<double>value) * 8) - 1
        self._buckets[max(0, min(index, _BUCKETS - 1))] += 1

    def buckets(self):
        """Return the counts of all buckets, starting with (1, b], without empty ones at the end.

        The first also counts the ones; the last counts all larger values.
        """
        return self.numbers()["buckets"]

    def numbers(self):
        """Return all values by name, of one moment: they are copied before other code can run."""
        cdef unsigned long long buckets[_BUCKETS]
        cdef unsigned long long count = self.count, total = self.total, zeros = self.zeros
        cdef unsigned long long least = self.least, most = self.most
        cdef int stop = _BUCKETS
        memcpy(buckets, self._buckets, sizeof(buckets))
        while stop > 0 and buckets[stop - 1] == 0:
            stop -= 1
        return {
            "count": count,
            "total": total,
            "least": least,
            "most": most,
            "zeros": zeros,
            "buckets": [buckets[index] for index in range(stop)],
        }


cdef class Threads:
    """The busy ones of `total` threads, as their timers report them.

    `over` counts finished work. `idle` is a histogram of the idle threads at each start of work.
    """

    cdef readonly long long total
    cdef readonly long long busy
    cdef readonly unsigned long long over
    cdef readonly Histogram idle

    def __cinit__(self, long long total):
        self.total = total
        self.idle = Histogram()

    cdef void _take(self) noexcept:
        self.busy += 1
        self.idle._add(max(0, self.total - self.busy))

    cdef void _leave(self) noexcept:
        self.busy -= 1
        self.over += 1


cdef class Timer:
    """Durations, in microseconds, of an activity that may run many times in parallel.

    `failures` counts the failed ones. Each activity keeps one of `threads` busy.
    """

    cdef readonly Histogram histogram
    cdef readonly unsigned long long failures
    cdef unsigned long long _begun
    cdef unsigned long long _over
    cdef Threads _threads

    def __cinit__(self, Threads threads=None):
        self.histogram = Histogram()
        self._threads = threads

    @property
    def under_way(self):
        """The number of activities that have not ended."""
        return self._begun - self._over

    @property
    def over(self):
        """The number of activities that have ended, including dropped ones."""
        return self._over

    def begin(self):
        """Start an activity; return the time that `end` takes."""
        self._begun += 1
        if self._threads is not None:
            self._threads._take()
        return _now_ns()

    def end(self, long long begun_ns, bint failed=False):
        """End an activity and record its duration."""
        self._leave()
        self.failures += failed
        self.histogram._add((_now_ns() - begun_ns) // 1000)

    def drop(self):
        """End an activity without recording it."""
        self._leave()

    cdef void _leave(self) noexcept:
        self._over += 1
        if self._threads is not None:
            self._threads._leave()

    def numbers(self):
        """Return all values by name, of one moment."""
        cdef unsigned long long begun = self._begun, over = self._over, failures = self.failures
        us = self.histogram.numbers()
        return {"begun": begun, "under_way": begun - over, "failures": failures, "us": us}


cdef long long _now_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec
