"""What the requests of a mount have taken, and what follows from it for all its streams.

The decisions are `mountpoint.transfer.concurrency`'s; this is the one place where all streams meet
in it.
"""

import threading

import structlog

from mountpoint.metrics.counters import Counters
from mountpoint.transfer.concurrency import BASE_PARTS, Flight, Lateness
from mountpoint.transfer.memory_budget import Budget

log = structlog.get_logger(__name__)


class Pace:
    """How much is in flight, and when a request is late. Thread-safe.

    `most_bytes` is what may be in flight at the most: what the line can bring in the time that
    one request takes.
    """

    def __init__(
        self, budget: Budget, counters: Counters, *, part_bytes: int, most_bytes: int
    ) -> None:
        # dependencies
        self._budget = budget
        self._counters = counters
        # constants
        self._part_bytes = part_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._flight = Flight(most_bytes // part_bytes)
        self._lateness = Lateness()
        budget.aim(BASE_PARTS * part_bytes)

    def arrived(self, size_bytes: int, duration_s: float, *, waited: bool) -> None:
        """Note how long a request took, and whether a reader had to wait for it."""
        with self._lock:
            self._lateness.arrived(size_bytes, duration_s)
            if size_bytes == self._part_bytes:
                before = self._flight.parts
                self._flight.arrived(duration_s, waited=waited)
                if self._flight.parts != before:
                    self._budget.aim(self._flight.parts * self._part_bytes)
                    log.debug("parts in flight", parts=self._flight.parts, before=before)

    def read(self, size_bytes: int) -> None:
        """Count what was read."""
        self._counters.add("bytes_read", size_bytes)

    def waited(self) -> None:
        """Count a read whose bytes were not all here."""
        self._counters.add("reads_waited")

    def late_s(self, size_bytes: int) -> float:
        """Return after how many seconds a request of this size is late."""
        with self._lock:
            return self._lateness.late_s(size_bytes)

    def hedge(self) -> bool:
        """Ask for a late request to be made a second time, and count it if that may be."""
        with self._lock:
            allowed = self._lateness.hedge()
        if allowed:
            self._counters.add("hedges")
        return allowed

    def hedged(self, *, won: bool) -> None:
        """Note whether the second request was faster."""
        if won:
            self._counters.add("hedges_won")
