"""Read-ahead policy: fed with the reads of one handle, it says which bytes to fetch. Pure.

It knows positions and nothing else: no clock, no memory budget, no S3. The stream calls
`plan` for a read whose bytes are not here, and once for each part that a reader reaches.

A handle may be read by several sequential readers at once (threads, merged runs, the
kernel's own read-ahead that comes concurrently and out of order), so the policy follows
several *runs*. A read that belongs to no run is fetched exactly, in whole pages, and starts
a run of its own with no read-ahead: random readers stay at that. A second read that follows
it makes the run sequential; from then on it holds every read in its neighbourhood, and with
each its read-ahead doubles, from 1 MiB up to `ahead_bytes`. A run may never read ahead more
than it has read so far, so that a short one costs little, but for the run from the start of
the object.
"""

from dataclasses import dataclass

PAGE_BYTES = 4096
MIB = 1 << 20

#: Kernel read-ahead runs on several threads: reads of one sequential reader arrive some
#: hundred KiB before or after the last one. Observed with 128 KiB reads and 1 MiB windows.
JITTER_BYTES = 512 * 1024

#: The first step of read-ahead, and the smallest part of it: below 1 MiB the request, not
#: the bytes, is what costs (0.7 ms per 1 MiB GET, 0.45 ms per 4 KiB GET on loopback).
FIRST_AHEAD_BYTES = MIB

#: Sequential readers of one handle that are told apart. A merge of sixteen runs is the most
#: that has been seen in the field.
MAX_RUNS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Fetch [start, stop) of the object, in parts of at most `part_bytes`."""

    start: int
    stop: int
    part_bytes: int


@dataclass(slots=True)
class _Run:
    """One sequential reader.

    Invariants: start <= cursor <= fetched <= size of the object; ahead >= 0.
    """

    start: int  # where it began
    cursor: int  # the end of its furthest read
    fetched: int  # the end of what has been planned for it
    ahead: int  # how far beyond the cursor to fetch

    def holds(self, offset: int) -> bool:
        if self.ahead == 0:  # one read so far: the second has to follow it
            return self.cursor - PAGE_BYTES <= offset <= self.cursor
        return self.cursor - JITTER_BYTES <= offset <= self.fetched + JITTER_BYTES


class Window:
    """The policy of one handle on an object of `size_bytes`."""

    def __init__(self, size_bytes: int, *, part_bytes: int, ahead_bytes: int) -> None:
        self._size = size_bytes
        self._part = part_bytes
        self._ahead = ahead_bytes
        self._runs: list[_Run] = []  # the most recently used last

    def plan(self, offset: int, size: int) -> Plan:
        """Return what to fetch for a read of [offset, offset + size), within the object."""
        stop = offset + size
        run = self._run_at(offset)
        if run is None:
            return self._begin(offset, stop)
        swept = run.cursor
        if stop > run.cursor:
            run.cursor = stop
            read = self._ahead if run.start == 0 else stop - run.start
            run.ahead = min(max(2 * run.ahead, FIRST_AHEAD_BYTES), read, self._ahead)
        self._absorb(run, swept)
        # A quarter of the window per part keeps four requests or more in flight.
        part = min(max(run.ahead // 4, FIRST_AHEAD_BYTES), self._part)
        run.fetched = self._extended(run, part)
        return Plan(offset, max(stop, run.fetched), part)

    def fetched_head(self, stop: int) -> None:
        """Note that [0, stop) has been fetched for a reader who has not come yet."""
        self._runs.append(_Run(0, 0, min(stop, self._size), 0))

    def keeps(self, start: int, stop: int) -> bool:
        """Whether a sequential reader may still come to [start, stop)."""
        return any(
            run.cursor - JITTER_BYTES < stop and start < run.fetched + JITTER_BYTES
            for run in self._runs
        )

    def slow_down(self) -> None:
        """Halve parts and read-ahead: a request has taken too long for its size."""
        self._part = min(self._part, max(self._part // 2, 32 * PAGE_BYTES))
        self._ahead = max(self._ahead // 2, self._part)
        for run in self._runs:
            run.ahead = min(run.ahead, self._ahead)
            run.fetched = run.cursor

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert len(self._runs) <= MAX_RUNS
        for run in self._runs:
            assert 0 <= run.start <= run.cursor <= run.fetched <= self._size, run
            assert 0 <= run.ahead <= self._ahead, run

    def _extended(self, run: _Run, part: int) -> int:
        """Return how far to fetch: by whole steps, or up to the end of the object.

        Fetching exactly up to cursor + ahead at each plan would leave ever smaller pieces
        (4 GiB took 2,760 requests instead of 519). A step is a part, or half of the window
        while that is less, so that at least half of the window is always there.
        """
        fetched = max(run.fetched, run.cursor)
        wanted = run.cursor + run.ahead
        if wanted >= self._size:
            return self._size
        step = min(part, max(run.ahead // 2, PAGE_BYTES))
        return fetched + max(wanted - fetched, 0) // step * step

    def _absorb(self, run: _Run, swept: int) -> None:
        """Forget runs that this one has passed: they were its own reads, out of order."""
        self._runs = [
            other
            for other in self._runs
            if other is not run
            and not swept - JITTER_BYTES <= other.cursor <= run.cursor + JITTER_BYTES
        ]
        self._runs.append(run)  # the most recently used is last

    def _run_at(self, offset: int) -> _Run | None:
        near = [run for run in self._runs if run.holds(offset)]
        return min(near, key=lambda run: abs(run.cursor - offset), default=None)

    def _begin(self, offset: int, stop: int) -> Plan:
        start = offset - offset % PAGE_BYTES
        stop = min(stop + -stop % PAGE_BYTES, self._size)
        ahead = min(FIRST_AHEAD_BYTES, self._ahead) if start == 0 else 0
        fetched = min(stop + ahead, self._size)
        if len(self._runs) == MAX_RUNS:
            del self._runs[0]
        self._runs.append(_Run(start, stop, fetched, ahead))
        return Plan(start, fetched, max(stop - start, min(FIRST_AHEAD_BYTES, self._part)))
