"""One memory budget for all buffers of the process, with fair shares.

A read stream takes a *lease* and asks it for bytes before it fetches ahead. What a reader
is waiting for is never refused (`take`), so nothing deadlocks and nothing fails for lack of
memory; what is fetched ahead is (`try_take`), so the total stays at the limit plus at most
one read per worker thread.

Fair share: the limit divided by the leases that hold something. A stream may exceed its
share while others leave theirs unused, but not the limit.
"""

import threading


class Budget:
    """`limit_bytes` for everyone together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # guarded by _lock:
        self._held_bytes = 0
        self._holders = 0  # leases that hold something

    @property
    def held_bytes(self) -> int:
        """What all leases hold now."""
        return self._held_bytes

    def lease(self) -> "Lease":
        """Return a new lease, which holds nothing."""
        return Lease(self)

    def _change(self, lease: "Lease", delta: int, *, limited: bool) -> bool:
        with self._lock:
            if limited:
                others = self._holders - (lease.held_bytes > 0)
                share = self.limit_bytes // (others + 1)
                crowded = self._held_bytes + delta > self.limit_bytes // 2
                if self._held_bytes + delta > self.limit_bytes:
                    return False
                if crowded and lease.held_bytes + delta > share:
                    return False
            before, after = lease.held_bytes, lease.held_bytes + delta
            if after < 0:
                raise ValueError(f"{-after} bytes given back that were not taken")
            lease.held_bytes = after
            self._held_bytes += delta
            self._holders += (after > 0) - (before > 0)
            return True


class Lease:
    """One stream's part of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held_bytes = 0  # guarded by the budget's lock

    def take(self, size_bytes: int) -> None:
        """Take what a reader is waiting for, whatever the limit says."""
        self._budget._change(self, size_bytes, limited=False)

    def try_take(self, size_bytes: int) -> bool:
        """Take `size_bytes` to read ahead; False if limit or fair share would be exceeded."""
        return self._budget._change(self, size_bytes, limited=True)

    def give(self, size_bytes: int) -> None:
        """Give back."""
        self._budget._change(self, -size_bytes, limited=False)
