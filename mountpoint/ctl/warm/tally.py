"""What a warming has done so far, and how long the rest may take."""

import threading
import time
from collections.abc import Callable
from typing import Any

from mountpoint.ctl.warm.state import FileState
from mountpoint.ctl.words import age, count, size

#: The share that is shown until all files are done.
ALMOST = 0.99
#: Parts in which a mount reads.
SMALLEST_BYTES, LARGEST_BYTES = 1 << 20, 8 << 20
#: Reads of 1 MiB arrive out of order, so that the first parts are cut once more.
EXTRA = 4


class Tally:
    """Counts files and bytes. Thread-safe; `failed` is told of each failure."""

    def __init__(
        self, failed: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        # dependencies
        self._failed = failed
        self._clock = clock
        # constants
        self._began_s = clock()
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self.all_found = False
        self.files = 0
        self.done = 0
        self.failures = 0
        self.size_bytes = 0
        self.cached_bytes = 0  # were in the cache before
        self.to_fetch_bytes = 0
        self.fetched_bytes = 0
        self.to_send = 0  # files
        self.sent = 0
        self.too_large = 0
        self.least_requests = 0
        self.most_requests = 0

    def found(self, state: FileState) -> None:
        """Note a file, and what is to be fetched of it."""
        with self._lock:
            self.files += 1
            self.size_bytes += state.size_bytes
            if state.too_large:
                self.too_large += 1
                return
            self.to_send += state.unsent
            self.cached_bytes += state.size_bytes - state.missing_bytes
            self.to_fetch_bytes += state.missing_bytes
            least, most = requests_of(state)
            self.least_requests += least
            self.most_requests += most

    def again(self, state: FileState) -> None:
        """Note that a file that was read is to be read again in part."""
        with self._lock:
            self.to_fetch_bytes += state.missing_bytes

    def fetched(self, size_bytes: int) -> None:
        """Note bytes that were read through the mount."""
        with self._lock:
            self.fetched_bytes += size_bytes

    def settled(self, *, sent: bool = False) -> None:
        """Note that the caches have a whole file; `sent`: the bucket has it now."""
        with self._lock:
            self.done += 1
            self.sent += sent

    def fail(self, path: str, why: str, unread_bytes: int = 0) -> None:
        """Note that a path cannot be warmed; `unread_bytes` of it will not be fetched."""
        with self._lock:
            self.failures += 1
            self.to_fetch_bytes -= unread_bytes
            self._failed(path, why)

    @property
    def seconds(self) -> float:
        """The time since the beginning."""
        return max(self._clock() - self._began_s, 1e-3)

    @property
    def share(self) -> float:
        """The share of the bytes that is fetched, as far as files have been found."""
        if not self.to_fetch_bytes:
            return ALMOST if self.all_found else 0.0
        return min(self.fetched_bytes / self.to_fetch_bytes, ALMOST)

    def figures(self) -> str:
        """Return bytes, rate and time left."""
        rate = self.fetched_bytes / self.seconds
        left_bytes = self.to_fetch_bytes - self.fetched_bytes
        figures = f"{size(self.fetched_bytes)} of {size(self.to_fetch_bytes)}, {size(rate)}/s"
        if not self.all_found:
            return f"{figures}, looking for files"
        return f"{figures}, {age(left_bytes / rate)} left" if rate else figures

    def summary(self) -> str:
        """Return what was done, in a line."""
        parts = [
            f"{count(self.done, 'file')} in the cache",
            f"{size(self.fetched_bytes)} fetched",
            f"{size(self.cached_bytes)} were there",
        ]
        if self.sent:
            parts.append(f"{self.sent} sent to the cache bucket")
        if self.too_large:
            parts.append(f"{self.too_large} too large for the cache bucket")
        if self.failures:
            parts.append(f"{self.failures} failed")
        if not self.all_found or self.done + self.failures + self.too_large < self.files:
            parts.append("not finished")
        rate = size(self.fetched_bytes / self.seconds)
        return f"{', '.join(parts)}; {age(self.seconds)}, {rate}/s"

    def estimate(self) -> str:
        """Return what there is to do, in a line."""
        more = f", {self.to_send} to send to the cache bucket" if self.to_send else ""
        more += f", {self.too_large} too large for the cache bucket" if self.too_large else ""
        more += f", {self.failures} failed" if self.failures else ""
        requests = count(self.most_requests, "request")
        if self.least_requests < self.most_requests:
            requests = f"{self.least_requests} to {requests}"
        return (
            f"{count(self.files, 'file')} of {size(self.size_bytes)}: "
            f"{size(self.cached_bytes)} in the cache, {size(self.to_fetch_bytes)} to fetch "
            f"in {requests}{more}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        return {
            "files": self.files,
            "done": self.done,
            "failed": self.failures,
            "size_bytes": self.size_bytes,
            "cached_bytes": self.cached_bytes,
            "to_fetch_bytes": self.to_fetch_bytes,
            "fetched_bytes": self.fetched_bytes,
            "to_send": self.to_send,
            "sent": self.sent,
            "too_large": self.too_large,
            "least_requests": self.least_requests,
            "most_requests": self.most_requests,
            "duration_s": self.seconds,
        }


def requests_of(state: FileState) -> tuple[int, int]:
    """Return the least and the most requests that a mount sends to read what is missing of a file.

    A file of up to 1 MiB comes with one. Of others, the mount requests parts of 1 MiB to 8 MiB:
    large ones if several are to be in flight at once, small ones at the beginning. And it asks for
    the checksum of the whole. Pure.
    """
    if not state.missing:
        return 0, 0
    if state.size_bytes <= SMALLEST_BYTES:
        return 1, 1
    least = most = 1
    for start, stop in state.missing:
        least += -(-(stop - start) // LARGEST_BYTES)
        smallest = -(-(stop - start) // SMALLEST_BYTES)
        most += smallest + min(smallest, EXTRA)
    return least, most
