"""Compare all blocks of a data cache with their identities and checksums."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mountpoint.cache.directory import CachedFile, CacheDirectory
from mountpoint.ctl.words import age, size

SHOW_S = 0.1


@dataclass(slots=True)
class Check:
    """What has been checked so far, of `total_bytes`. `bad` has paths and reasons."""

    total_bytes: int
    blocks: int = 0
    size_bytes: int = 0
    removed: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def share(self) -> float:
        """The share of the bytes that has been checked. Others may write blocks meanwhile."""
        return min(self.size_bytes / self.total_bytes, 0.99) if self.total_bytes else 0.99

    def figures(self) -> str:
        """Return bytes, rate and time left."""
        rate = self.size_bytes / max(time.monotonic() - self.began_s, 1e-3)
        left = age(max(self.total_bytes - self.size_bytes, 0) / rate) if rate else "-"
        done, total = size(self.size_bytes), size(self.total_bytes)
        return f"{done} of {total}, {size(rate)}/s, {left} left"


def check_all(directory: CacheDirectory, check: Check, show: Callable[[], None]) -> None:
    """Check all blocks and remove the bad ones. Raises OSError.

    `show` is called after every bad one, and now and then.
    """
    next_s = 0.0
    for file in directory.files():
        why = _problem(directory, file)
        check.blocks += 1
        check.size_bytes += file.allocated_bytes
        if why is not None:
            check.bad.append((file.path, why))
            check.removed += directory.remove(file)
        if why is not None or time.monotonic() >= next_s:
            show()
            next_s = time.monotonic() + SHOW_S


def _problem(directory: CacheDirectory, file: CachedFile) -> str | None:
    try:
        return directory.check(file)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
