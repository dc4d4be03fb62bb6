"""Statistics of a mount's requests, from all streams, and the decisions that follow.

`concurrency` and `hedging` decide; all streams of a mount share one `TransferStats`.
"""

import threading

import structlog

from mountpoint.metrics.counters import Counters
from mountpoint.transfer.concurrency import BASE_PARTS, ConcurrencyController
from mountpoint.transfer.hedging import HedgingPolicy
from mountpoint.transfer.memory_budget import Budget

log = structlog.get_logger(__name__)


class TransferStats:
    """Decides the bytes in flight and the hedges of all streams. Thread-safe.

    `max_bytes` is the most that may be in flight: the link bandwidth times the duration of a
    request.
    """

    def __init__(
        self, budget: Budget, counters: Counters, *, part_bytes: int, max_bytes: int
    ) -> None:
        # dependencies
        self._budget = budget
        self._counters = counters
        # constants
        self._part_bytes = part_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._concurrency = ConcurrencyController(max_bytes // part_bytes)
        self._hedging = HedgingPolicy()
        budget.aim(BASE_PARTS * part_bytes)

    def arrived(self, size_bytes: int, duration_s: float, *, waited: bool) -> None:
        """Record the seconds that a request took, and whether a reader waited for it."""
        with self._lock:
            self._hedging.arrived(size_bytes, duration_s)
            if size_bytes == self._part_bytes:
                before = self._concurrency.parts
                self._concurrency.arrived(duration_s, waited=waited)
                if self._concurrency.parts != before:
                    self._budget.aim(self._concurrency.parts * self._part_bytes)
                    log.debug("parts in flight", parts=self._concurrency.parts, before=before)

    def read(self, size_bytes: int) -> None:
        """Count bytes read."""
        self._counters.add("bytes_read", size_bytes)

    def waited(self, reads: int = 1) -> None:
        """Count reads that had to wait for some of their bytes."""
        self._counters.add("reads_waited", reads)

    def late_s(self, size_bytes: int) -> float:
        """Return the seconds after which a request of this size is late."""
        return self._hedging.late_s(size_bytes)  # reads one number, so it needs no lock

    def hedge(self) -> bool:
        """Claim a hedge for a late request, and count it if allowed."""
        with self._lock:
            allowed = self._hedging.hedge()
        if allowed:
            self._counters.add("hedges")
        return allowed

    def hedged(self, *, won: bool) -> None:
        """Record whether the second request was faster."""
        if won:
            self._counters.add("hedges_won")
