"""How much of what programs read came from a data cache, as running mounts tell it."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.words import size, title
from mountpoint.errors import MountError


@dataclass(frozen=True, slots=True)
class Hits:
    """What a mount has read from its cache and from S3 since it began."""

    title: str
    directory: str
    limit_bytes: int | None
    from_cache_bytes: int
    fetched_bytes: int

    @property
    def share(self) -> float | None:
        """The share that came from the cache; None if nothing was read."""
        read_bytes = self.from_cache_bytes + self.fetched_bytes
        return self.from_cache_bytes / read_bytes if read_bytes else None

    def line(self) -> str:
        """Return it as a line."""
        limit = "no limit" if self.limit_bytes is None else f"limit {size(self.limit_bytes)}"
        if self.share is None:
            return f"{self.title}: nothing read yet, {limit}"
        return (
            f"{self.title}: {100 * self.share:.1f} % of {self._read()} came from the cache, {limit}"
        )

    def _read(self) -> str:
        return size(self.from_cache_bytes + self.fetched_bytes)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        found = asdict(self) | {"hit_rate": self.share}
        del found["title"]
        return found


def hits(directory: str, mounts: Iterable[Mount]) -> list[Hits]:
    """Return the numbers of the mounts that use a directory as their cache."""
    found = []
    for mount in mounts:
        used = mount.status.get("cache_directory")
        if used is None or os.path.realpath(used) != os.path.realpath(directory):
            continue
        with contextlib.suppress(MountError):  # it has just ended
            counters = mount.ask("stats")["counters"]
            numbers = counters["cache_bytes_read"], counters["bytes_fetched"]
            limit = mount.status["cache_limit_bytes"]
            found.append(Hits(title(mount.status), mount.directory, limit, *numbers))
    return found
