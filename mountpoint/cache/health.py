"""Whether the cache directory is used: it steps aside for a while when it fails, or is slower than
S3.

A full disk, a directory that went away or became read-only, and a disk that another program keeps
busy are temporary: reads go on from S3 meanwhile, the log has one warning, and after `PAUSE_S` the
directory is tried again. The first success after a pause ends the outage.
"""

import os
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

#: How long the directory is left alone after a failure.
PAUSE_S = 30.0
#: An operation that has taken this long is stuck, like one on a server that is away.
STUCK_S = 1.0

#: Speeds are compared once so many bytes of each were read, in ranges of at least `MIN_BYTES`: of
#: smaller ones the time is that of the request.
COMPARED_BYTES = 64 << 20
MIN_BYTES = 1 << 20
#: The disk may be this much slower: it saves requests.
TOLERANCE = 1.5


class Health:
    """The state of one direction: reading from the directory `path`, or writing. Thread-safe.

    Each change is one step of the interpreter. `on_failure` is called after each failure.
    """

    def __init__(
        self,
        path: str,
        doing: str,
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        # dependencies
        self._clock = clock
        self._on_failure = on_failure
        # constants
        self._path = path
        self._doing = doing
        # mutable
        self._paused_until_s = 0.0
        self._failing = False  # since the last success
        self._begun_s: dict[object, float] = {}  # operations in progress

    @property
    def usable(self) -> bool:
        """Whether the directory may be used now."""
        now_s = self._clock()
        if now_s < self._paused_until_s:
            return False
        if not self._begun_s:
            return True
        oldest_s = min(self._begun_s.copy().values(), default=now_s)
        return now_s - oldest_s < STUCK_S

    def begin(self, operation: object) -> None:
        """Note that an operation begins."""
        self._begun_s[operation] = self._clock()

    def end(self, operation: object) -> None:
        """Note that an operation has ended, in any way."""
        self._begun_s.pop(operation, None)

    def failed(self, number: int, *, why: str = "") -> None:
        """Note an error (an errno), and leave the directory alone for a while."""
        self._paused_until_s = self._clock() + PAUSE_S
        self._on_failure()
        if not self._failing:
            self._failing = True
            log.warning(
                f"the cache is not used for {self._doing} at the moment",
                directory=self._path,
                reason=why or os.strerror(number),
                again_after_s=PAUSE_S,
            )

    def succeeded(self) -> None:
        """Note a success."""
        if self._failing and self._clock() >= self._paused_until_s:
            self._failing = False
            log.info(f"the cache is used for {self._doing} again", directory=self._path)


class Speeds:
    """Compares the disk with S3, by the seconds that ranges took. Thread-safe in the same way."""

    def __init__(self) -> None:
        self._disk = (0, 0.0)  # bytes and seconds
        self._s3 = (0, 0.0)

    def read(self, size_bytes: int, duration_s: float) -> None:
        """Record a range from the disk."""
        if size_bytes >= MIN_BYTES:
            self._disk = _added(self._disk, size_bytes, duration_s)

    def fetched(self, size_bytes: int, duration_s: float) -> None:
        """Record a range from S3."""
        if size_bytes >= MIN_BYTES:
            self._s3 = _added(self._s3, size_bytes, duration_s)

    def disk_is_slower(self) -> bool:
        """Whether the disk is clearly slower than S3. If so, its record begins anew."""
        disk_bytes, disk_s = self._disk
        s3_bytes, s3_s = self._s3
        if min(disk_bytes, s3_bytes) < COMPARED_BYTES:
            return False
        slower = disk_s / disk_bytes > TOLERANCE * s3_s / s3_bytes
        if slower:
            self._disk = (0, 0.0)
        return slower


def _added(record: tuple[int, float], size_bytes: int, duration_s: float) -> tuple[int, float]:
    total_bytes, total_s = record
    if total_bytes >= 2 * COMPARED_BYTES:  # older ranges count half
        total_bytes, total_s = total_bytes // 2, total_s / 2
    return total_bytes + size_bytes, total_s + duration_s
