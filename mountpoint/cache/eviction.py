"""Keep the cache within its limits: remove the blocks that were not used for the longest time.

Any process may do it, one at a time (`CacheDirectory.evicting`), when a block is to be written and
there is no room. It looks at the blocks of randomly chosen folders, at most `SAMPLE` or so, and
removes the oldest of them: in a cache of up to that many blocks these are the oldest of all, in a
larger one nearly. So it takes the same time however many blocks there are, and reads pay only for a
time stamp every few minutes.

A block that was used after the look is kept. A reader that has a file open reads on, because its
bytes stay until it closes the file; one that comes later fetches from S3.
"""

import itertools
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
#: This share of all bytes is freed in addition, so that not every block begins a search.
SLACK_SHARE = 64
#: So much of the disk stays free, as in mountpoint-s3.
FREE_SHARE = 20
#: A time of last use may be this far in the future.
AHEAD_NS = 300 * 10**9
#: How often the sum of all blocks is corrected.
RECOUNT_S = 86_400.0


class NoRoom(Exception):
    """The limit is too small, or other files fill the disk."""


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
        # mutable, guarded by _counting
        self._counting = threading.Lock()
        self._in_flight_bytes = 0

    def reserve(self, size_bytes: int) -> bool:
        """Make room for a block that is to be written, until `release`; False: not now.

        Raises NoRoom if there is none, and OSError.
        """
        self.release(-size_bytes)
        fits = False
        try:
            fits = self._excess() <= 0
            if not fits:
                with self._lock:
                    excess = self._excess()
                    fits = excess <= 0 or self._evict(excess)
        finally:
            if not fits:
                self.release(size_bytes)
        return fits

    def release(self, size_bytes: int) -> None:
        """Give room back: the block has been written, and is counted in the directory, or not."""
        with self._counting:
            self._in_flight_bytes -= size_bytes

    def _excess(self) -> int:
        """Return how many bytes must go."""
        free_bytes, disk_bytes = self._directory.free_bytes()
        excess = disk_bytes // FREE_SHARE + self._in_flight_bytes - free_bytes
        if self.max_bytes is not None:
            total = self._directory.used_bytes + self._in_flight_bytes
            excess = max(excess, total - self.max_bytes)
        return excess

    def _evict(self, excess_bytes: int) -> bool:
        """Remove blocks of so many bytes; False if another process is removing some.

        Raises NoRoom and OSError.
        """
        with self._directory.evicting() as alone:
            if not alone:
                return False
            self._directory.remove_abandoned()
            slack_bytes = self._directory.used_bytes // SLACK_SHARE
            freed = 0
            while freed < excess_bytes:
                removed = self._remove_oldest(excess_bytes + slack_bytes - freed)
                if not removed:
                    break
                freed += removed
            # If too few blocks are left, the total is wrong, or others fill the disk.
            since_s = abs(time.time() - self._directory.counted_at_s)
            if freed < excess_bytes or since_s > RECOUNT_S:
                self._directory.recount()
            if freed < excess_bytes and self._excess() > 0:
                raise NoRoom("there is no room, although no blocks are left to remove")
            return True

    def _remove_oldest(self, size_bytes: int) -> int:
        """Remove the oldest blocks of a sample, of so many bytes at most; return their bytes."""
        folders = self._directory.folders()
        random.shuffle(folders)
        sample: list[CachedFile] = []
        while folders and len(sample) <= SAMPLE:
            files = self._directory.files(folders.pop())
            sample += itertools.islice(files, SAMPLE + 1 - len(sample))
        # A clock that was set back has left times in the future: they say nothing. One of a file
        # server may be ahead a little.
        latest_ns = time.time_ns() + AHEAD_NS
        sample.sort(key=lambda file: file.used_ns if file.used_ns <= latest_ns else 0)
        if len(sample) > SAMPLE:
            del sample[max(len(sample) // OLDEST_SHARE, 1) :]
        freed = 0
        for file in sample:
            if freed >= size_bytes:
                break
            if self._directory.remove_unused(file):
                freed += file.allocated_bytes
                self.evicted += 1
        return freed
