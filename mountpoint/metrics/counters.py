"""Plain counters of a mount: requests, bytes, retries, hedges, checksums.

Each mount has one `Counters` object. Requests, bodies and retries are counted, but not reads; an
`add` takes 0.2 microseconds. SIGUSR2 to the mounting process writes all counters as one log line
(`mount/signals`), and so does the unmount.

Counters only grow and have no times: a rate is the difference of two lines.
"""

import threading
from collections.abc import Callable
from typing import Literal, get_args

import structlog

from mountpoint.log.setup import METRICS

log = structlog.get_logger(METRICS)

CounterName = Literal[
    # Requests sent, including retries and the mount's first LIST.
    "gets",
    "heads",
    "lists",
    # PUTs of whole objects; multipart uploads created, parts, completed and aborted uploads.
    "puts",
    "uploads",
    "parts",
    "completes",
    "aborts",
    "deletes",
    "copies",
    "renames",
    # Bytes that GETs requested; after a cancellation S3 may have sent fewer.
    "bytes_asked",
    # Bytes of GET bodies as they arrive. A cancelled request adds none, because the CRT passes on
    # whole parts only.
    "bytes_fetched",
    # Bytes that the kernel read; added at the next request, or when the file is closed.
    "bytes_read",
    # Reads that had to wait for some of their bytes.
    "reads_waited",
    # Bytes of files prefetched before their opens, and those of files that were not opened.
    "bytes_prefetched",
    "bytes_prefetched_in_vain",
    # Bytes of the bodies of PUTs and parts, including retries.
    "bytes_sent",
    # Requests sent again because the first try failed or took too long.
    "retries",
    # Hedges: second requests for late ones, and those that answered first.
    "hedges",
    "hedges_won",
    # Bodies that were compared with a checksum from S3, and those that came without one.
    "checksums_verified",
    "checksums_absent",
    # The data cache. Blocks: read; missing although they were expected; removed because they were
    # damaged; removed to make room; not kept because the disk was too slow or full. And bytes.
    "cache_hits",
    "cache_misses",
    "cache_bad_blocks",
    "cache_evictions",
    "cache_dropped",
    "cache_bytes_read",
    "cache_bytes_written",
    # The shared cache in a bucket, likewise; requests that failed, also those to write.
    "cache_shared_hits",
    "cache_shared_misses",
    "cache_shared_bad_blocks",
    "cache_shared_errors",
    "cache_shared_dropped",
    "cache_shared_bytes_read",
    "cache_shared_bytes_written",
]

#: In the order of the log line.
NAMES: tuple[CounterName, ...] = get_args(CounterName)


class Counters:
    """A mount's counters, by name. Thread-safe.

    `catch_up` has functions that count what is not counted yet; each snapshot calls them first.
    """

    def __init__(self) -> None:
        self.catch_up: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        # mutable, guarded by _lock
        self._values: dict[str, int] = dict.fromkeys(NAMES, 0)

    def add(self, name: CounterName, amount: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._values[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all counters at one moment."""
        for catch_up in self.catch_up.copy():
            catch_up()
        with self._lock:
            return self._values.copy()

    def log(self) -> None:
        """Write all counters as one log line at info level."""
        log.info("counters", **self.snapshot())
