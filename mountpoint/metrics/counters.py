"""What a mount has done so far, in plain numbers.

One `Counters` per mount, handed to whoever counts. Counting happens per request, per body and
per retry, never per read: an `add` takes 0.2 microseconds. SIGUSR2 to the mounting process
writes all of them as one log line (`mount/signals`), and so does the unmount.

Numbers only grow. It knows nothing of time: a rate is the difference of two lines.
"""

import threading
from typing import Literal, get_args

import structlog

from mountpoint.log.setup import METRICS

log = structlog.get_logger(METRICS)

CounterName = Literal[
    # Requests that were made, retries and the mount's first LIST included.
    "gets",
    "heads",
    "lists",
    # Of single objects; of multipart uploads: begun, parts, completed; given up.
    "puts",
    "uploads",
    "parts",
    "completes",
    "aborts",
    "deletes",
    "copies",
    "renames",
    # Of the ranges that GETs asked for; of a cancelled one S3 may have sent less.
    "bytes_asked",
    # Of the bodies of GETs, as they come: of a cancelled request nothing, because the CRT hands
    # on whole parts only.
    "bytes_fetched",
    # What the kernel read; counted with the next request, or when the file is closed.
    "bytes_read",
    # Reads whose bytes were not all here.
    "reads_waited",
    # Of files that were asked for ahead of their opens, and of those of them nobody opened.
    "bytes_prefetched",
    "bytes_prefetched_in_vain",
    # Of the bodies of PUTs and parts, those of retries included.
    "bytes_sent",
    # Requests made again, because the first try failed or was too late.
    "retries",
    # Second requests for what took too long, and those of them that came first.
    "hedges",
    "hedges_won",
    # Bodies that were compared with a checksum of S3's, and those that came without one.
    "checksums_verified",
    "checksums_absent",
]

#: In the order of the log line.
NAMES: tuple[CounterName, ...] = get_args(CounterName)


class Counters:
    """The numbers of one mount, by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # mutable, guarded by _lock
        self._values: dict[str, int] = dict.fromkeys(NAMES, 0)

    def add(self, name: CounterName, amount: int = 1) -> None:
        """Count."""
        with self._lock:
            self._values[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all numbers, of one moment."""
        with self._lock:
            return self._values.copy()

    def log(self) -> None:
        """Write all numbers as one line, at info level."""
        log.info("counters", **self.snapshot())
