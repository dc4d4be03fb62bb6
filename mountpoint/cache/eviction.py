"""Keep the cache within its limits: remove the blocks that were not used for the longest time.

Any process may do it, one at a time (`CacheDirectory.evicting`), when a block is to be written and
there is no room. It looks at the blocks of randomly chosen folders, at most `SAMPLE` or so, and
removes the oldest of them: in a cache of up to that many blocks these are the oldest of all, in a
larger one nearly. So it takes the same time however many blocks there are, and reads pay only for a
time stamp every few minutes.

A block that was used after the look is kept. A reader that has a file open reads on, because its
bytes stay until it closes the file; one that comes later fetches from S3.
"""

import random
import threading
import time

import structlog

from mountpoint.cache.directory import CachedFile, CacheDirectory

log = structlog.get_logger(__name__)

#: Blocks to look at, at least, if there are so many.
SAMPLE = 2048
#: Of a sample that is not the whole cache, at most this share is removed: its oldest quarter is
#: about the oldest quarter of all.
OLDEST_SHARE = 4
#: This share of the limit is freed in addition, so that not every block begins a search.
SLACK_SHARE = 64
#: So much of the disk stays free, as in mountpoint-s3.
FREE_SHARE = 20
#: How often the sum of all blocks is corrected.
RECOUNT_S = 86_400.0


class Evictor:
    """Makes room in a cache directory. `max_bytes` None: only the disk limits it."""

    def __init__(self, directory: CacheDirectory, max_bytes: int | None) -> None:
        # dependencies
        self._directory = directory
        # constants
        self.max_bytes = max_bytes
        # mutable
        self._lock = threading.Lock()  # a second thread waits for the first, and then has room
        self.evicted = 0  # blocks, by this process

    def reserve(self, size_bytes: int) -> bool:
        """Count a block that is to be written, after making room for it; False if there is none.

        Raises OSError.
        """
        total = self._directory.add_usage(size_bytes)
        if self._excess(total, size_bytes) <= 0:
            return True
        with self._lock:
            excess = self._excess(self._directory.used_bytes, size_bytes)
            if excess <= 0 or self._evict(excess):
                return True
        self._directory.add_usage(-size_bytes)
        return False

    def _excess(self, total_bytes: int, size_bytes: int) -> int:
        """Return how many bytes must go."""
        free_bytes, disk_bytes = self._directory.free_bytes()
        excess = disk_bytes // FREE_SHARE + size_bytes - free_bytes
        if self.max_bytes is not None:
            excess = max(excess, total_bytes - self.max_bytes)
        return excess

    def _evict(self, excess_bytes: int) -> bool:
        """Remove blocks of so many bytes; False if there are not so many, or another process does.

        Raises OSError.
        """
        with self._directory.evicting() as alone:
            if not alone:
                return False
            self._directory.remove_abandoned()
            slack_bytes = (self.max_bytes or 0) // SLACK_SHARE
            freed = 0
            while freed < excess_bytes:
                removed = self._remove_oldest(excess_bytes + slack_bytes - freed)
                if not removed:
                    break
                freed += removed
            if time.time() - self._directory.counted_at_s > RECOUNT_S:
                self._directory.recount()
            return freed >= excess_bytes

    def _remove_oldest(self, size_bytes: int) -> int:
        """Remove the oldest blocks of a sample, of so many bytes at most; return their bytes."""
        folders = self._directory.folders()
        random.shuffle(folders)
        sample: list[CachedFile] = []
        while folders and len(sample) < SAMPLE:
            sample += self._directory.files(folders.pop())
        now_ns = time.time_ns()
        # A clock that was set back has left times in the future: they say nothing.
        sample.sort(key=lambda file: file.used_ns if file.used_ns <= now_ns else 0)
        if folders:
            del sample[max(len(sample) // OLDEST_SHARE, 1) :]
        freed = 0
        for file in sample:
            if freed >= size_bytes:
                break
            if self._directory.remove_unused(file):
                freed += file.allocated_bytes
                self.evicted += 1
        return freed
