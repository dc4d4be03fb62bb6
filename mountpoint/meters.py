"""How long operations and requests take, how many fail, how large they are, and for which programs.

Beside the counters (`metrics`), which say how often and how much. One `Meters` per mount, handed to
whoever measures: the FUSE adapter per operation (0.2 microseconds), the client per request. What is
made of it, a table or an export, is not known here.

Numbers only grow. All times are whole microseconds.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mountpoint._histogram import SCALE, Histogram, Timer
from mountpoint.processes import program_of

#: A process may become another program (execve), as those of a shell do at once, and its number
#: another process's. To look takes 20 microseconds.
NAME_TTL_S = 0.1
#: Of more programs the others are one: the numbers are kept for as long as the mount lives.
MOST_PROGRAMS = 64
MOST_THREADS = 4096
#: What the mount does by itself, or for whom it cannot know (a process of another container).
NOBODY = "(unknown)"
OTHERS = "(others)"


class RequestMeter:
    """Of one of S3's operations: until the first byte, until the end, and how they failed."""

    def __init__(self) -> None:
        self.timer = Timer()
        self.first_byte_us = Histogram()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._failures: dict[int, int] = {}

    def begin(self) -> "RequestClock":
        """Begin to measure a request."""
        return RequestClock(self)

    def failed(self, status: int) -> None:
        """Count a failure; `status` is that of the answer, 0 if there was none."""
        with self._lock:
            self._failures[status] = self._failures.get(status, 0) + 1

    @property
    def failures(self) -> dict[int, int]:
        """How many have failed, by the status of the answer."""
        with self._lock:
            return self._failures.copy()


class RequestClock:
    """One request that is measured."""

    __slots__ = ("_begun_ns", "_meter")

    def __init__(self, meter: RequestMeter) -> None:
        self._meter = meter
        self._begun_ns = meter.timer.begin()

    def first_byte(self) -> None:
        """Note that the answer begins."""
        self._meter.first_byte_us.add((time.monotonic_ns() - self._begun_ns) // 1000)

    def end(self, failure: int | None) -> None:
        """Note the end; `failure` is the status of a failed one, 0 without an answer."""
        if failure is not None:
            self._meter.failed(failure)
        self._meter.timer.end(self._begun_ns, failure is not None)

    def drop(self) -> None:
        """Note that it was cancelled: how long that took says nothing."""
        self._meter.timer.drop()


class Program:
    """What was done for the programs of one name."""

    def __init__(self) -> None:
        self.read_bytes = Histogram()
        self.written_bytes = Histogram()
        self.requests: dict[str, int] = {}  # guarded by the lock of `Programs`


class Programs:
    """Which programs cause what, by the names that `ps` shows. Thread-safe.

    `asking` returns the number of the thread whose operation the calling thread serves, 0 if none.
    """

    def __init__(self, asking: Callable[[], int] = lambda: 0) -> None:
        # dependencies
        self._asking = asking
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._by_name: dict[str, Program] = {}
        # mutable, guarded by the GIL
        self._by_thread: dict[int, tuple[Program, float]] = {}

    def current(self) -> Program:
        """Return the program whose operation the calling thread serves."""
        thread = self._asking()
        known = self._by_thread.get(thread)
        now_s = time.monotonic()
        if known is not None and now_s < known[1]:
            return known[0]
        name = (program_of(thread)[0] if thread else "") or NOBODY
        program = self._named(name)
        if len(self._by_thread) >= MOST_THREADS:
            self._by_thread.clear()
        self._by_thread[thread] = (program, now_s + NAME_TTL_S)
        return program

    def requested(self, operation: str) -> None:
        """Count a request that is made for the program whose operation is served."""
        program = self.current()
        with self._lock:
            program.requests[operation] = program.requests.get(operation, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers, by name."""
        with self._lock:
            programs = [(name, each, each.requests.copy()) for name, each in self._by_name.items()]
        return {
            name: {
                "reads": each.read_bytes.count,
                "bytes_read": each.read_bytes.total,
                "writes": each.written_bytes.count,
                "bytes_written": each.written_bytes.total,
                "requests": requests,
            }
            for name, each, requests in programs
        }

    def _named(self, name: str) -> Program:
        with self._lock:
            if name not in self._by_name and len(self._by_name) >= MOST_PROGRAMS:
                name = OTHERS
            return self._by_name.setdefault(name, Program())


class Meters:
    """All of one mount. `operations` and `requests` have what there was at least one of."""

    def __init__(self, asking: Callable[[], int] = lambda: 0) -> None:
        self.programs = Programs(asking)
        self.operations: dict[str, Timer] = {}
        self.requests: dict[str, RequestMeter] = {}
        self.read_bytes = Histogram()
        self.written_bytes = Histogram()

    def operation(self, name: str) -> Timer:
        """Return what measures the operations of one name."""
        return self.operations.get(name) or self.operations.setdefault(name, Timer())

    def request(self, operation: str) -> RequestClock:
        """Begin to measure a request to S3."""
        self.programs.requested(operation)
        meter = self.requests.get(operation)
        return (meter or self.requests.setdefault(operation, RequestMeter())).begin()

    def read(self, size_bytes: int) -> None:
        """Note what one read has brought."""
        self.read_bytes.add(size_bytes)
        self.programs.current().read_bytes.add(size_bytes)

    def written(self, size_bytes: int) -> None:
        """Note what one write has taken."""
        self.written_bytes.add(size_bytes)
        self.programs.current().written_bytes.add(size_bytes)

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers, as JSON has them. Not of one moment: nothing stops for it."""
        return {
            "operations": {
                name: _timed(timer) | {"failures": timer.failures}
                for name, timer in list(self.operations.items())
            },
            "requests": {
                name: _timed(meter.timer)
                | {
                    "first_byte_us": _numbers(meter.first_byte_us),
                    "failures": {str(status): n for status, n in sorted(meter.failures.items())},
                }
                for name, meter in list(self.requests.items())
            },
            "read_bytes": _numbers(self.read_bytes),
            "written_bytes": _numbers(self.written_bytes),
            "programs": self.programs.snapshot(),
        }


def _timed(timer: Timer) -> dict[str, Any]:
    return {"under_way": timer.under_way, "us": _numbers(timer.histogram)}


def _numbers(histogram: Histogram) -> dict[str, Any]:
    return {
        "count": histogram.count,
        "total": histogram.total,
        "least": histogram.least,
        "most": histogram.most,
        "zeros": histogram.zeros,
        "buckets": histogram.buckets(),
    }


def upper_bound(bucket: int) -> float:
    """Return the largest value that a bucket counts, of those that `Histogram.buckets` returns."""
    return math.pow(2.0, (bucket + 1) / (1 << SCALE))


def quantile(numbers: Mapping[str, Any], share: float) -> float:
    """Return the value that `share` of all values do not exceed, at most 9 % too large; 0 of none.

    `numbers` are those of a snapshot, or of the difference of two.
    """
    left = share * numbers["count"] - numbers["zeros"]
    if left <= 0:
        return 0.0
    for bucket, count in enumerate(numbers["buckets"]):
        left -= count
        if left <= 0:
            return upper_bound(bucket)
    return upper_bound(len(numbers["buckets"]))
