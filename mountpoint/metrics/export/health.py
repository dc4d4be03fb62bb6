"""The health of a mount, for /healthz and /livez.

Three things are known without asking anyone. *It serves*: it is mounted, and not all of its threads
are stuck. *Its credentials* are valid. *S3 works*: the programs' requests do not all fail. A health
check sends nothing to S3 and never accesses the mount itself: a process that waits for its own
mount may hang forever.
"""

import threading
import time
from collections.abc import Callable

from mountpoint.errors import CredentialsUnavailable
from mountpoint.metrics.recorder import Meters
from mountpoint.system.kernel import mount_points

#: If all threads are busy, some operation or request must end within this many seconds: requests
#: have shorter deadlines.
STUCK_S = 180.0


class Health:
    """The health of one mount. Thread-safe. `patience_s` is the longest wait for S3 in seconds."""

    def __init__(
        self,
        meters: Meters,
        stopping: threading.Event,
        directory: str,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # dependencies
        self._meters = meters
        self._stopping = stopping
        self._check_credentials: Callable[[], None] = _nothing
        # constants
        self._directory = directory
        self._patience_s = patience_s
        self._clock = clock
        # mutable, each replaced in one step
        self._serving = False
        self._is_seen = False  # a directory mounted by descriptor may be invisible to us
        self._progress: tuple[int, float] = (-1, 0.0)  # ended operations and requests, since when

    def serving(self, check_credentials: Callable[[], None]) -> None:
        """Record that requests are served, with credentials that can be checked."""
        self._check_credentials = check_credentials
        self._is_seen = self._directory in mount_points()
        self._serving = True

    def why_not_alive(self) -> str:
        """Return the fault that a restart would repair, or ""."""
        if self._stopping.is_set():
            return "the bucket is being unmounted"
        if not self._serving:
            return "the bucket is not mounted yet"
        if self._is_seen and self._directory not in mount_points():
            return f"the mount at {self._directory} is gone"
        return self._stuck()

    def why_not_well(self) -> str:
        """Return the reason why programs cannot use the mount, or ""."""
        reason = self.why_not_alive()
        if reason:
            return reason
        try:
            self._check_credentials()
        except CredentialsUnavailable as error:
            return str(error)
        return self._meters.trouble.lasting(self._patience_s)

    def _stuck(self) -> str:
        threads = self._meters.threads
        if not threads.total or threads.busy < threads.total:
            self._progress = (-1, 0.0)
            return ""
        over = threads.over + sum(each.timer.over for each in list(self._meters.requests.values()))
        now_s = self._clock()
        if over != self._progress[0]:
            self._progress = (over, now_s)
        stuck_s = now_s - self._progress[1]
        if stuck_s < STUCK_S:
            return ""
        return (
            f"all {threads.total} threads are busy, and no operation has ended for {stuck_s:.0f} s"
        )


def _nothing() -> None:
    """Check nothing: there are no credentials yet."""
