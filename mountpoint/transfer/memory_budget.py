"""One memory budget for all buffers of the process, with fair shares.

A read stream takes a *lease* and asks it for bytes before it fetches ahead. What a reader
is waiting for is never refused (`take`), so nothing deadlocks and nothing fails for lack of
memory; what is fetched ahead is (`try_take`), so the total stays at the limit plus at most
one read per worker thread.

Fair share: `ahead_bytes` is what all streams together should have ahead of their readers (it
moves with what the line can use, see `concurrency`), divided by the leases that hold more than a
small file does. Each may have a little in any case, up to the limit. An upload bounds by itself
what it has in flight; its share is one of the limit.
"""

import threading

#: A lease that holds less is no stream, but the head of a file or a small one.
STREAM_BYTES = 2 << 20

#: What each stream may have ahead, however many there are: enough for four requests of 1 MiB.
LEAST_SHARE_BYTES = 4 << 20


class Budget:
    """`limit_bytes` for everyone together, `ahead_bytes` of it ahead of readers."""

    def __init__(self, limit_bytes: int, ahead_bytes: int | None = None) -> None:
        # constants
        self.limit_bytes = limit_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._ahead_bytes = limit_bytes if ahead_bytes is None else ahead_bytes
        self._held_bytes = 0
        self._streams = 0  # leases that hold STREAM_BYTES or more
        self._throttle = 0

    @property
    def held_bytes(self) -> int:
        """What all leases hold now."""
        return self._held_bytes

    @property
    def throttle(self) -> int:
        """How often a lease was refused for the limit (not for its share)."""
        return self._throttle

    def aim(self, ahead_bytes: int) -> None:
        """Say how much all streams together should have ahead."""
        self._ahead_bytes = ahead_bytes

    def lease(self, *, of_all: bool = False) -> "Lease":
        """Return a new lease, which holds nothing; `of_all`: its share is one of the limit."""
        return Lease(self, of_all)

    def _share_bytes(self, lease: "Lease") -> int:
        others = self._streams - (lease.held_bytes >= STREAM_BYTES)
        divided = self.limit_bytes if lease.of_all else min(self._ahead_bytes, self.limit_bytes)
        return max(divided // (others + 1), LEAST_SHARE_BYTES)

    def _change(self, lease: "Lease", delta: int, *, limited: bool) -> bool:
        with self._lock:
            before, after = lease.held_bytes, lease.held_bytes + delta
            if limited:
                if self._held_bytes + delta > self.limit_bytes:
                    self._throttle += 1
                    return False
                # What is being read is held as well, beside what is ahead.
                share_bytes = self._share_bytes(lease)
                if after > share_bytes + share_bytes // 4:
                    return False
            if after < 0:
                raise ValueError(f"{-after} bytes given back that were not taken")
            lease.held_bytes = after
            self._held_bytes += delta
            self._streams += (after >= STREAM_BYTES) - (before >= STREAM_BYTES)
            return True


class Lease:
    """One stream's, or upload's, part of the budget."""

    def __init__(self, budget: Budget, of_all: bool) -> None:
        self._budget = budget
        self.of_all = of_all
        self.held_bytes = 0  # guarded by the budget's lock

    @property
    def share_bytes(self) -> int:
        """What this stream may have ahead now."""
        return self._budget._share_bytes(self)

    def take(self, size_bytes: int) -> None:
        """Take what a reader is waiting for, whatever the limit says."""
        self._budget._change(self, size_bytes, limited=False)

    def try_take(self, size_bytes: int) -> bool:
        """Take `size_bytes` to read ahead; False if limit or fair share would be exceeded."""
        return self._budget._change(self, size_bytes, limited=True)

    def give(self, size_bytes: int) -> None:
        """Give back."""
        self._budget._change(self, -size_bytes, limited=False)
