"""The memory budget for all buffers of the process, with fair shares.

A read stream takes a *lease* and claims bytes from it before it fetches ahead. Bytes that a reader
waits for are never refused (`take`), so nothing deadlocks or fails for lack of memory. Bytes
fetched ahead may be refused (`try_take`). So the total exceeds the limit by at most one read per
worker thread.

Fair share: `ahead_bytes` is the target for all streams that one event loop serves (it follows the
usable bandwidth, see `concurrency`). With several loops, as many streams have that much each. More
streams share what these would have. A stream is a lease that holds more than a small file needs.
Each may hold parts of full size, as long as these take a quarter of the limit in all, and a small
minimum in any case. An upload limits its own parts in flight; its share is a share of the limit.
"""

import threading

#: A lease that holds less is not a stream: it holds the start of a file, or a small file.
STREAM_BYTES = 2 << 20

#: Each stream's minimum, however many there are: enough for four requests of 1 MiB.
MIN_SHARE_BYTES = 4 << 20

#: A share consists of four parts, so that as many requests are in flight. With more streams it
#: consists of fewer, larger ones, as long as all streams together have 16 requests in flight.
SHARE_PARTS = 4
ALL_PARTS = 16
#: At least two: one arrives while another is read.
MIN_PARTS = 2
#: Each stream may have that many parts of full size, if they take a quarter of the limit in all.
FULL_SHARE = 4


class Budget:
    """`limit_bytes` for all leases, `ahead_bytes` of it for reading ahead.

    `part_bytes` is the full size of a part. `loops` streams have `ahead_bytes` each, if that is at
    most `max_ahead_bytes` in all.
    """

    def __init__(
        self,
        limit_bytes: int,
        ahead_bytes: int | None = None,
        *,
        part_bytes: int = 0,
        loops: int = 1,
        max_ahead_bytes: int = 0,
    ) -> None:
        # constants
        self.limit_bytes = limit_bytes
        self._part_bytes = part_bytes
        self._loops = loops
        self._max_ahead_bytes = max_ahead_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._ahead_bytes = limit_bytes if ahead_bytes is None else ahead_bytes
        self._held_bytes = 0
        self._streams = 0  # leases that hold STREAM_BYTES or more
        self._refusals = 0

    @property
    def held_bytes(self) -> int:
        """The bytes that all leases hold now."""
        return self._held_bytes

    @property
    def refusals(self) -> int:
        """How often a lease was refused because of the limit, not its share."""
        return self._refusals

    def aim(self, ahead_bytes: int) -> None:
        """Set the target for the bytes ahead of all streams that one event loop serves."""
        self._ahead_bytes = ahead_bytes

    def lease(self, *, of_all: bool = False) -> "Lease":
        """Return a new, empty lease; with `of_all`, its share is a share of the limit."""
        return Lease(self, of_all)

    def _sharers(self, lease: "Lease") -> int:
        """Return the number of streams, including this one."""
        return self._streams + (lease.held_bytes < STREAM_BYTES)

    def _share_bytes(self, lease: "Lease") -> int:
        streams = self._sharers(lease)
        if lease.of_all:
            return max(self.limit_bytes // streams, MIN_SHARE_BYTES)
        ahead_bytes = self._ahead_bytes * min(streams, self._loops)
        ahead_bytes = min(ahead_bytes, max(self._max_ahead_bytes, self._ahead_bytes))
        fair_bytes = min(ahead_bytes, self.limit_bytes) // streams
        full_bytes = self.limit_bytes // FULL_SHARE // streams
        full_bytes = min(full_bytes, MIN_PARTS * self._part_bytes)
        return max(fair_bytes, full_bytes, MIN_SHARE_BYTES)

    def _spare_bytes(self, lease: "Lease") -> int:
        """Return the bytes of the part being read, which a lease holds in addition to its share."""
        part_bytes = self._share_bytes(lease) // lease.parts
        if lease.parts < SHARE_PARTS and self._part_bytes:
            return min(part_bytes, self._part_bytes)
        return part_bytes

    def _change(self, lease: "Lease", delta: int, *, limited: bool) -> bool:
        with self._lock:
            before, after = lease.held_bytes, lease.held_bytes + delta
            if limited:
                if self._held_bytes + delta > self.limit_bytes:
                    self._refusals += 1
                    return False
                # The share of a small file is not computed: none is smaller than this.
                if after > MIN_SHARE_BYTES and after > (
                    self._share_bytes(lease) + self._spare_bytes(lease)
                ):
                    return False
            if after < 0:
                raise ValueError(f"{-after} bytes given back that were not taken")
            lease.held_bytes = after
            self._held_bytes += delta
            self._streams += (after >= STREAM_BYTES) - (before >= STREAM_BYTES)
            return True


class Lease:
    """One stream's or upload's part of the budget."""

    def __init__(self, budget: Budget, of_all: bool) -> None:
        self._budget = budget
        self.of_all = of_all
        self.held_bytes = 0  # guarded by the budget's lock

    @property
    def parts(self) -> int:
        """The number of parts in this stream's share."""
        if self.of_all:
            return SHARE_PARTS
        return min(max(ALL_PARTS // self._budget._sharers(self), MIN_PARTS), SHARE_PARTS)

    @property
    def share_bytes(self) -> int:
        """The bytes that this stream may have ahead now."""
        return self._budget._share_bytes(self)

    def take(self, size_bytes: int) -> None:
        """Claim bytes that a reader waits for, regardless of the limit."""
        self._budget._change(self, size_bytes, limited=False)

    def try_take(self, size_bytes: int) -> bool:
        """Claim bytes to read ahead; False if they would exceed the limit or the fair share."""
        return self._budget._change(self, size_bytes, limited=True)

    def give(self, size_bytes: int) -> None:
        """Return bytes to the budget."""
        self._budget._change(self, -size_bytes, limited=False)
