"""Count the blocks of a data cache, by bucket."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mountpoint.cache.directory import CachedFile, CacheDirectory


@dataclass(slots=True)
class BucketBlocks:
    """The blocks of one bucket; `name` and `endpoint` are empty if all of them are damaged."""

    name: str = ""
    endpoint: str = ""
    blocks: int = 0
    size_bytes: int = 0
    oldest_use_ns: int = 1 << 63
    newest_use_ns: int = 0

    def add(self, blocks: int, size_bytes: int, oldest_use_ns: int, newest_use_ns: int) -> None:
        """Count blocks."""
        self.blocks += blocks
        self.size_bytes += size_bytes
        self.oldest_use_ns = min(self.oldest_use_ns, oldest_use_ns)
        self.newest_use_ns = max(self.newest_use_ns, newest_use_ns)

    def ages_s(self) -> tuple[float, float]:
        """Return the seconds since the least and the most recent use of a block."""
        now_ns = time.time_ns()
        oldest_ns, newest_ns = now_ns - self.oldest_use_ns, now_ns - self.newest_use_ns
        return max(oldest_ns / 1e9, 0.0), max(newest_ns / 1e9, 0.0)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        oldest_s, newest_s = self.ages_s() if self.blocks else (None, None)
        return {
            "blocks": self.blocks,
            "size_bytes": self.size_bytes,
            "oldest_use_age_s": oldest_s,
            "newest_use_age_s": newest_s,
        }


def inventory(directory: CacheDirectory) -> list[BucketBlocks]:
    """Return the blocks by bucket, the largest bucket first. Raises OSError."""
    buckets: dict[str, BucketBlocks] = {}
    for file in directory.files():
        bucket = buckets.setdefault(file.bucket, BucketBlocks())
        bucket.add(1, file.allocated_bytes, file.used_ns, file.used_ns)
        if not bucket.name:
            _name(bucket, directory, file)
    return sorted(buckets.values(), key=lambda each: -each.size_bytes)


def total(buckets: Iterable[BucketBlocks]) -> BucketBlocks:
    """Return the sum."""
    found = BucketBlocks()
    for each in buckets:
        found.add(each.blocks, each.size_bytes, each.oldest_use_ns, each.newest_use_ns)
    return found


def _name(bucket: BucketBlocks, directory: CacheDirectory, file: CachedFile) -> None:
    """Take the bucket's name from a block."""
    try:
        identity = directory.identity(file)
    except OSError:
        return
    if identity is not None:
        bucket.name, bucket.endpoint = identity.bucket, identity.endpoint
