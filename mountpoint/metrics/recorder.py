"""How long operations and requests take, how many fail, how large they are, and for which programs.

With the counters (`counters`), which say how often and how much. One `Meters` per mount, handed to
whoever measures: the FUSE adapter per operation (0.2 microseconds), the client per request. What is
made of it, a table or an export, is not known here.

Numbers only grow. All times are whole microseconds.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mountpoint.metrics._histogram import BUCKETS, SCALE, Histogram, Threads, Timer
from mountpoint.metrics.counters import Counters
from mountpoint.system.procfs import program_of

#: A process may become another program (execve), as those of a shell do at once, and its number
#: another process's. To look takes 20 microseconds.
NAME_TTL_S = 0.1
#: Of more programs the others are one: the numbers are kept for as long as the mount lives.
MOST_PROGRAMS = 64
MOST_THREADS = 4096
#: What the mount does by itself, or for whom it cannot know (a process of another container).
NOBODY = "(unknown)"
OTHERS = "(others)"
#: So long after a failure nobody knows any more how S3 is, unless it was asked again.
RECENT_S = 60.0


class Trouble:
    """Since when requests have only failed, in ways that say that S3 cannot be used.

    That one does not exist, or is another version, is an answer of an S3 that works.
    """

    def __init__(self) -> None:
        # mutable, replaced in one step: begin, last failure, its reason
        self._state: tuple[float, float, str] | None = None

    def note(self, reason: str) -> None:
        """Note how a request has ended; "" is well."""
        state = self._state
        if reason:
            now_s = time.monotonic()
            self._state = (now_s if state is None else state[0], now_s, reason)
        elif state is not None:
            self._state = None

    def lasting(self, least_s: float) -> str:
        """Return what has gone on for so long and is not over; "" if it is not known to."""
        state, now_s = self._state, time.monotonic()
        if state is None or now_s - state[0] < least_s or now_s - state[1] >= RECENT_S:
            return ""
        return f"all requests of the last {now_s - state[0]:.0f} s have failed: {state[2]}"


class RequestMeter:
    """Of one of S3's operations: until the first byte, until the end, and how they failed."""

    def __init__(self) -> None:
        self.timer = Timer()
        self.first_byte_us = Histogram()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._failures: dict[int, int] = {}

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

    __slots__ = ("_begun_ns", "_meter", "_trouble")

    def __init__(self, meter: RequestMeter, trouble: Trouble) -> None:
        self._meter = meter
        self._trouble = trouble
        self._begun_ns = meter.timer.begin()

    def first_byte(self) -> None:
        """Note that the answer begins."""
        self._meter.first_byte_us.add((time.monotonic_ns() - self._begun_ns) // 1000)

    def end(self, failure: int | None, trouble: str = "") -> None:
        """Note the end; `failure` is the status of a failed one, 0 without an answer.

        `trouble` is the reason where the failure says that S3 cannot be used.
        """
        if failure is not None:
            self._meter.failed(failure)
        self._trouble.note(trouble)
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
    """All of one mount. `operations` and `requests` have what there was at least one of.

    `threads` is how many there are for operations.
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
        """Return what measures the operations of one name."""
        return self.operations.get(name) or self.operations.setdefault(name, Timer(self.threads))

    def request(self, operation: str) -> RequestClock:
        """Begin to measure a request to S3."""
        self.programs.requested(operation)
        meter = self.requests.get(operation)
        meter = meter or self.requests.setdefault(operation, RequestMeter())
        return RequestClock(meter, self.trouble)

    def read(self, size_bytes: int) -> None:
        """Note what one read has brought."""
        self.read_bytes.add(size_bytes)
        self.programs.current().read_bytes.add(size_bytes)

    def written(self, size_bytes: int) -> None:
        """Note what one write has taken."""
        self.written_bytes.add(size_bytes)
        self.programs.current().written_bytes.add(size_bytes)

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers, as JSON has them. Each histogram is of one moment, not all of one."""
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
    """Return the largest value that a bucket counts, of those that `Histogram.buckets` returns."""
    return math.pow(2.0, (bucket + 1) / (1 << SCALE))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of what a histogram has counted between two of its snapshots.

    Nobody has kept the least and the most of them: they are told by the buckets, 9 % off at most.
    """
    earlier, buckets = before["buckets"], list(after["buckets"])
    for bucket, count in enumerate(earlier):
        buckets[bucket] -= count
    used = [bucket for bucket, count in enumerate(buckets) if count]
    zeros = after["zeros"] - before["zeros"]
    least = most = 0
    if used:
        least = 0 if zeros else max(_least_of(used[0]), after["least"])
        # The last bucket has no end.
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


def _least_of(bucket: int) -> int:
    """Return the least whole number that a bucket counts; the first one counts nothing but ones."""
    return 1 if bucket == 0 else math.floor(upper_bound(bucket - 1)) + 1


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
