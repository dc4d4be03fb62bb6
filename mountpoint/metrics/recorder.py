"""Durations, failures and sizes of operations and requests, and the programs that cause them.

`counters` adds how often and how much. Each mount has one `Meters` object. The FUSE adapter records
each operation (0.2 microseconds), the client each request. Tables and exports are made elsewhere.

Values only grow. All times are whole microseconds.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mountpoint.metrics._histogram import BUCKETS, SCALE, Histogram, Readers, Threads, Timer
from mountpoint.metrics.counters import Counters
from mountpoint.system.procfs import program_of

#: Seconds that a program's name is cached. A process may run another program (execve), as a
#: shell's child does at once, and its number may be reused. A look-up takes 20 microseconds.
NAME_TTL_S = 0.1
#: Further programs are counted together: entries last as long as the mount.
MAX_PROGRAMS = 64
MAX_THREADS = 4096
#: The program for the mount's own work, and for processes of other containers.
NOBODY = "(unknown)"
OTHERS = "(others)"
#: Seconds after which a failure says nothing about S3 any more, unless there was another request.
RECENT_S = 60.0


class Trouble:
    """Since when all requests have failed, in ways that mean that S3 cannot be used.

    A missing key or another version is the answer of a working S3, and no failure here.
    """

    def __init__(self) -> None:
        # mutable, replaced in one step: start, last failure, its reason
        self._state: tuple[float, float, str] | None = None

    def note(self, reason: str) -> None:
        """Record how a request ended; "" means success."""
        state = self._state
        if reason:
            now_s = time.monotonic()
            self._state = (now_s if state is None else state[0], now_s, reason)
        elif state is not None:
            self._state = None

    def lasting(self, min_s: float) -> str:
        """Return the reason if failures have lasted for `min_s` seconds; "" otherwise."""
        state, now_s = self._state, time.monotonic()
        if state is None or now_s - state[0] < min_s or now_s - state[1] >= RECENT_S:
            return ""
        return f"all requests of the last {now_s - state[0]:.0f} s have failed: {state[2]}"


class RequestMeter:
    """One S3 operation: seconds to the first byte and to the end, and failures by status."""

    def __init__(self) -> None:
        self.timer = Timer()
        self.first_byte_us = Histogram()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._failures: dict[int, int] = {}

    def failed(self, status: int) -> None:
        """Count a failure; `status` is the answer's HTTP status, 0 without an answer."""
        with self._lock:
            self._failures[status] = self._failures.get(status, 0) + 1

    @property
    def failures(self) -> dict[int, int]:
        """The number of failures by HTTP status."""
        with self._lock:
            return self._failures.copy()


class RequestClock:
    """The measurement of one request."""

    __slots__ = ("_begun_ns", "_meter", "_trouble")

    def __init__(self, meter: RequestMeter, trouble: Trouble, begun_ns: int | None = None) -> None:
        self._meter = meter
        self._trouble = trouble
        now_ns = meter.timer.begin()
        self._begun_ns = now_ns if begun_ns is None else begun_ns

    def first_byte(self, at_ns: int | None = None) -> None:
        """Record the first byte of the answer; `at_ns` is its time, by default now."""
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        self._meter.first_byte_us.add(max(at_ns - self._begun_ns, 0) // 1000)

    def end(self, failure: int | None, trouble: str = "", at_ns: int | None = None) -> None:
        """Record the end; `failure` is the HTTP status of a failed request, 0 without an answer.

        `trouble` is the reason if the failure means that S3 cannot be used. `at_ns` is the time of
        the end, by default now.
        """
        if failure is not None:
            self._meter.failed(failure)
        self._trouble.note(trouble)
        self._meter.timer.end(self._begun_ns, failure is not None, at_ns)

    def drop(self) -> None:
        """Drop a cancelled request: its duration says nothing."""
        self._meter.timer.drop()


class Program:
    """The work done for the programs of one name."""

    def __init__(self) -> None:
        self.read_bytes = Histogram()
        self.written_bytes = Histogram()
        self.requests: dict[str, int] = {}  # guarded by the lock of `Programs`


class Programs:
    """The work that each program causes, by the name that `ps` shows. Thread-safe.

    `asking` returns the number of the thread whose operation the calling thread serves, or 0.
    `readers` has the threads that are known, for reads in the lane.
    """

    def __init__(self, asking: Callable[[], int] = lambda: 0) -> None:
        # dependencies
        self._asking = asking
        self.readers = Readers()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._by_name: dict[str, Program] = {}
        # mutable, guarded by the GIL
        self._by_thread: dict[int, tuple[Program, float]] = {}

    def current(self, thread: int = 0) -> Program:
        """Return the program that `thread` runs; 0: whose operation the calling thread serves."""
        thread = thread or self._asking()
        known = self._by_thread.get(thread)
        now_s = time.monotonic()
        if known is not None and now_s < known[1]:
            return known[0]
        name = (program_of(thread)[0] if thread else "") or NOBODY
        program = self._named(name)
        if len(self._by_thread) >= MAX_THREADS:
            self._by_thread.clear()
        self._by_thread[thread] = (program, now_s + NAME_TTL_S)
        if thread:
            self.readers.set(thread, program.read_bytes, round((now_s + NAME_TTL_S) * 1e9))
        return program

    def requested(self, operation: str, thread: int = 0) -> None:
        """Count a request for the program that `thread` runs. See `current`."""
        program = self.current(thread)
        with self._lock:
            program.requests[operation] = program.requests.get(operation, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """Return all values by program name."""
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
            if name not in self._by_name and len(self._by_name) >= MAX_PROGRAMS:
                name = OTHERS
            return self._by_name.setdefault(name, Program())


class Meters:
    """All measurements of one mount. `operations` and `requests` have an entry per name in use.

    `threads` is the number of threads that serve operations.
    """

    def __init__(self, asking: Callable[[], int] = lambda: 0, threads: int = 0) -> None:
        self.counters = Counters()
        self.programs = Programs(asking)
        self.threads = Threads(threads)
        self.trouble = Trouble()
        self.operations: dict[str, Timer] = {}
        self.requests: dict[str, RequestMeter] = {}
        self.read_bytes = Histogram()
        self.written_bytes = Histogram()

    def operation(self, name: str) -> Timer:
        """Return the timer for operations of this name."""
        return self.operations.get(name) or self.operations.setdefault(name, Timer(self.threads))

    def request(self, operation: str, thread: int = 0, begun_ns: int | None = None) -> RequestClock:
        """Start measuring a request to S3.

        `thread` caused it, by default the one whose operation the calling thread serves. It began
        at `begun_ns` (monotonic clock), by default now.
        """
        self.programs.requested(operation, thread)
        meter = self.requests.get(operation)
        meter = meter or self.requests.setdefault(operation, RequestMeter())
        return RequestClock(meter, self.trouble, begun_ns)

    def read(self, size_bytes: int) -> None:
        """Record the bytes that one read returned."""
        self.read_bytes.add(size_bytes)
        self.programs.current().read_bytes.add(size_bytes)

    def written(self, size_bytes: int) -> None:
        """Record the bytes of one write."""
        self.written_bytes.add(size_bytes)
        self.programs.current().written_bytes.add(size_bytes)

    def snapshot(self) -> dict[str, Any]:
        """Return all values, as for JSON. Each histogram is consistent, but not with the others."""
        return {
            "operations": {name: timer.numbers() for name, timer in list(self.operations.items())},
            "requests": {
                name: meter.timer.numbers()
                | {
                    "first_byte_us": meter.first_byte_us.numbers(),
                    "failures": {str(status): n for status, n in sorted(meter.failures.items())},
                }
                for name, meter in list(self.requests.items())
            },
            "read_bytes": self.read_bytes.numbers(),
            "written_bytes": self.written_bytes.numbers(),
            "threads": {
                "total": self.threads.total,
                "busy": self.threads.busy,
                "idle": self.threads.idle.numbers(),
            },
            "programs": self.programs.snapshot(),
        }


def upper_bound(bucket: int) -> float:
    """Return the largest value in a bucket of `Histogram.buckets`."""
    return math.pow(2.0, (bucket + 1) / (1 << SCALE))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a histogram counted between two of its snapshots.

    The smallest and largest of them come from the buckets, so they are up to 9 % off.
    """
    earlier, buckets = before["buckets"], list(after["buckets"])
    for bucket, count in enumerate(earlier):
        buckets[bucket] -= count
    used = [bucket for bucket, count in enumerate(buckets) if count]
    zeros = after["zeros"] - before["zeros"]
    least = most = 0
    if used:
        least = 0 if zeros else max(_smallest_in(used[0]), after["least"])
        # The last bucket is unbounded.
        most = after["most"]
        if used[-1] < BUCKETS - 1:
            most = min(math.floor(upper_bound(used[-1])), most)
    return {
        "count": after["count"] - before["count"],
        "total": after["total"] - before["total"],
        "least": least,
        "most": most,
        "zeros": zeros,
        "buckets": buckets[: used[-1] + 1] if used else [],
    }


def _smallest_in(bucket: int) -> int:
    """Return the smallest whole number in a bucket; the first bucket holds only ones."""
    return 1 if bucket == 0 else math.floor(upper_bound(bucket - 1)) + 1


def quantile(numbers: Mapping[str, Any], share: float) -> float:
    """Return the value that `share` of all values do not exceed, up to 9 % too large; 0 if none.

    `numbers` come from a snapshot, or from the difference of two.
    """
    left = share * numbers["count"] - numbers["zeros"]
    if left <= 0:
        return 0.0
    for bucket, count in enumerate(numbers["buckets"]):
        left -= count
        if left <= 0:
            return upper_bound(bucket)
    return upper_bound(len(numbers["buckets"]))
