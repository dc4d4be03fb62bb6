"""Read-ahead policy: takes the reads of one handle and returns the ranges to fetch. Pure.

It knows positions and nothing else: no clock, no memory budget, no S3. The stream calls `plan` for
a read whose bytes are not here, and once for each part that a reader reaches.

Several sequential readers may share a handle (threads, merged runs, the kernel's own concurrent and
unordered read-ahead), so the policy tracks several *runs*. A read outside of all runs starts a new
one and is fetched exactly, in whole pages; for random readers it stays at that. A second read that
follows makes the run sequential; one just before it makes it a backward run. From then on the run
includes every read near it. With each, its read-ahead doubles, from 1 MiB up to the memory limit.

A byte that is fetched and never read costs as much as one that is read, so a run earns its
read-ahead:

* A single reader from the start of the object gets it without condition, once it reads 128 KiB at
  once or reads on.
* Other runs get a quarter of what they have read so far; an eighth if many runs take turns.
* If the handle *jumps* (it starts new runs and does not return to old ones, like a Parquet or zip
  reader), a new run is fetched at once up to the length that all of the last runs reached. Beyond
  that it gets an eighth of what it has read; a quarter once it is long.
* If little was read of the last files, a run from the start goes as far as those reads went.
* Read-ahead never goes into a range that another run has read.

If the whole object was read before, the kernel has most of its pages, and only reads of the *gaps*
between them arrive here. So a run continues after bytes that it skips. These are fetched with the
rest, as long as they are no more than what was read, plus a quarter. If the kernel has lost every
other MiB of a file, the whole file is fetched, with as many requests as the first time; one request
per gap would be eight times as many.

Reads of one size at one distance (a column of a matrix, every n-th block) are a *stride*: its next
pieces are fetched ahead, each exactly. Once some pieces were left unread, no more than a quarter of
the pieces read are fetched ahead: columns of a Parquet file look like a short stride.
"""

from collections.abc import Iterable, Iterator

from mountpoint.config import MIB
from mountpoint.read.patterns import JITTER_READS, PAGE_BYTES, Jumps, Range, Run, Stride

#: The first step of read-ahead, and its smallest part. Below 1 MiB the request costs more than the
#: bytes (0.7 ms per 1 MiB GET, 0.45 ms per 4 KiB GET on loopback).
FIRST_AHEAD_BYTES = MIB

#: A window has at least four parts, so that as many requests are in flight; fewer if many streams
#: share the memory (`Lease.parts`). It has half as many again if it is larger than the first share
#: of two readers. Then `transfer/concurrency`, which learns from parts of full size, has found that
#: more in flight help. Four streams that share 160 MiB, with 90 MB/s per connection, read 1160
#: to 1208 MB/s with parts of 4 MiB and 850 with parts of 8 MiB.
FIRST_SHARE_BYTES = 32 * MIB
USUAL_PARTS = 4
#: At most this many parts below full size are ahead of a reader. Four streams then have as many
#: requests as the client has connections, 25. Others would only queue there, each with the memory
#: of a full part (peak 430 MB with nine, 385 with seven).
MAX_PARTS = 7

#: Less is not worth a request of its own. A run that goes on may waste this much.
MIN_AHEAD_BYTES = MIB // 2

#: A first read of this size comes from a program that copies rather than looks: the kernel turns a
#: read of 4 KiB into 16 KiB, and the buffers of cat, cp and Python into 128 KiB or more.
LARGE_READ_BYTES = 128 * 1024

#: The number of sequential readers of one handle to track. Merges of sixteen runs are the most
#: that were seen in the field; the rest are the random reads between them.
MAX_RUNS = 32

#: After this many reads in a row outside of all runs, the next one is likely to be so, too.
RANDOM_PLANS = 16

#: A run is forgotten after this many plans for other runs. Readers that take turns need a plan
#: each. But a reader whose reads are hits plans only once per part, and in random turns one reader
#: is always late: with 32 in random turns, 64 plans lost one read in two hundred, 128 plans none
#: in six tests.
RETIRE_PLANS = 4 * MAX_RUNS

#: A reader is active, and shares the bytes ahead, if one of this many last plans was for it.
ACTIVE_PLANS = 32

#: With more active readers, each fetches half as far ahead; together it is as much.
FEW_READERS = 4


class Window:
    """The policy of one handle on an object of `size_bytes`. Requests are `part_bytes` at most."""

    def __init__(self, size_bytes: int, *, part_bytes: int) -> None:
        # constants
        self._size = size_bytes
        self._largest_part = part_bytes
        # mutable
        self._reach = size_bytes
        self._gaps = False  # the kernel may have pages between the reads
        self._read = 0  # bytes read before the read being planned
        self._part = part_bytes
        self._parts = USUAL_PARTS
        self._runs: list[Run] = []  # the most recently used last
        self._stride = Stride()
        self._plans = 0
        self._jumps = Jumps(size_bytes)
        self._hit_stop = 0
        self._last: Run | None = None  # the run of the last read, if known
        self._single = 0  # consecutive plans that fetched exactly the read

    def plan(
        self,
        offset: int,
        size: int,
        *,
        ahead_bytes: int,
        parts: int = USUAL_PARTS,
        hit_stop: int = 0,
        read_bytes: int = 0,
    ) -> list[Range]:
        """Return the ranges to fetch for a read of [offset, offset + size), within the object.

        Each range is one request. The first ones cover the read; the others follow by urgency.
        `ahead_bytes` limits the bytes ahead of all readers together, and `parts` is the least
        number of requests for them. `hit_stop` is the end of the last read that needed no plan, and
        `read_bytes` is the total read before this read.
        """
        stop = offset + size
        self._parts = parts
        self._read = read_bytes
        self._gaps = self._gaps or read_bytes >= self._size
        self._plans += 1
        self._note_hit(hit_stop)
        self._runs = [run for run in self._runs if self._plans - run.used <= RETIRE_PLANS]
        run = self._run_at(offset, stop) or self._turned(offset, stop)
        if run is not None:
            self._single = 0
            if run is not self._runs[-1]:
                self._jumps.returned()
            return list(self._followed(run, offset, stop, ahead_bytes))
        if self._stride.hit(offset, size):
            self._single = 0
            return self._strided(offset, stop, ahead_bytes)
        if self._runs:
            self._jumps.left(self._runs[-1])
        return self._begun(offset, stop, ahead_bytes)

    def take_random(self, reads: Iterable[Range], *, read_bytes: int = 0) -> None:
        """Note reads that were fetched exactly without a plan, because none is near another one, or
        at the distance of the two before it (`Lane.allow_random`).
        """
        self._read = read_bytes
        if self._gaps or any(run.ahead or run.backward for run in self._runs):
            for start, stop in reads:
                self.plan(start, stop - start, ahead_bytes=0, read_bytes=read_bytes)
            return
        for start, stop in reads:  # as `plan` would find in the end
            self._plans += 1
            self._stride.hit(start, stop - start)
            if self._runs:
                self._jumps.left(self._runs[-1])
            first, last = self._pages(start, stop)
            run = Run(first, last, last, 0, self._plans, last - first, read_bytes)
            self._runs.append(run)
            self._last = run
            self._single += 1
        del self._runs[:-MAX_RUNS]

    @property
    def random(self) -> bool:
        """Whether the last reads were at random places, so that the next one is likely to be."""
        return self._single >= RANDOM_PLANS

    def recent(self) -> list[Range]:
        """Return the ranges of the last reads, the last one at the end."""
        return [self._mirrored(run, run.start, run.cursor) for run in self._runs]

    def expect_gaps(self) -> None:
        """Record that the kernel had pages of the whole object: earlier reads covered all of it."""
        self._gaps = True

    def expect_stop(self, reach_bytes: int) -> None:
        """Note that a reader from the start is expected to stop there."""
        self._reach = min(reach_bytes, self._size)

    def fetched_initial(self, stop: int) -> None:
        """Record that [0, stop) was fetched before any read."""
        self._runs.append(Run(0, 0, min(stop, self._size), 0, self._plans, 0))

    def kept(self) -> list[Range]:
        """Return the ranges that readers may still need."""
        ranges = [self._stride.reach()] if self._stride.ahead else []
        for run in self._runs:
            low = run.cursor - min(JITTER_READS * run.largest, run.length)
            high = max(run.fetched, run.cursor + run.slack)
            ranges.append(self._mirrored(run, low, high))
        return ranges

    def forget_ahead(self, hit_stop: int) -> None:
        """Record that nothing beyond the reads is fetched any more: read-ahead starts again slowly.

        `hit_stop` is as for `plan`.
        """
        self._note_hit(hit_stop)
        self._stride = Stride()
        for run in self._runs:
            run.fetched, run.ahead = run.cursor, 0

    def slow_down(self) -> None:
        """Halve the parts: a request took too long for its size."""
        self._part = min(self._part, max(self._part // 2, 32 * PAGE_BYTES))
        for run in self._runs:
            run.ahead //= 2
            run.fetched = run.cursor

    def speed_up(self) -> None:
        """Double the parts, up to the full size: requests are fast enough again."""
        self._part = min(2 * self._part, self._largest_part)

    @property
    def slowed(self) -> bool:
        """Whether parts are below full size."""
        return self._part < self._largest_part

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert len(self._runs) <= MAX_RUNS
        for run in self._runs:
            assert 0 <= run.start <= run.cursor <= run.fetched <= self._size, run
            assert run.ahead >= 0, run

    # --- kinds of reads ---

    def _begun(self, offset: int, stop: int, ahead_bytes: int) -> list[Range]:
        """Plan a read outside of all runs and strides."""
        start, stop = self._pages(offset, stop)
        fetched = stop
        if start == 0 and stop >= LARGE_READ_BYTES:
            end = self._reach if stop <= self._reach else self._size
            fetched = min(stop + min(FIRST_AHEAD_BYTES, ahead_bytes), end)
        elif self._jumps.usual:
            length = min(self._jumps.usual_length, stop - start + ahead_bytes)
            fetched = min(max(start + length, stop), self._size)
        if len(self._runs) == MAX_RUNS:
            del self._runs[0]
        self._last = Run(
            start, stop, fetched, fetched - stop, self._plans, stop - start, self._read
        )
        self._runs.append(self._last)
        self._single = self._single + 1 if fetched == stop else 0
        part = min(max((fetched - start) // 4, FIRST_AHEAD_BYTES), self._part)
        read = [(start, stop)] if stop - start <= self._part else _cut(start, stop, self._part)
        return [*read, *_cut(stop, fetched, part)]

    def _strided(self, offset: int, stop: int, ahead_bytes: int) -> list[Range]:
        """Plan a read at the stride's distance from the previous one."""
        stride = self._stride
        wanted = min(stride.earned(), ahead_bytes // (stop - offset))
        ranges = []
        for piece in range(wanted + 1):
            start = offset + piece * stride.distance
            end = start + stop - offset
            if start < 0 or start >= self._size:
                break
            stride.ahead = max(stride.ahead, piece)
            ranges.append(self._pages(start, end))
        return ranges

    def _followed(self, run: Run, offset: int, stop: int, ahead_bytes: int) -> Iterator[Range]:
        """Plan a read that belongs to a run."""
        begin, end = self._mirrored(run, offset, stop)
        run.used = self._plans
        run.largest = max(run.largest, end - begin)
        if self._last is run and run.leaps(begin, self._skips(run)):
            self._jumps.left(run)
            run.start = run.cursor = begin
            run.before = self._read
        self._last = run
        swept = run.cursor
        if end > run.cursor:
            looks = run.length == 0 and end - begin < LARGE_READ_BYTES
            run.cursor = end
            run.ahead = 0 if looks else self._earned(run, ahead_bytes)
        self._absorb(run, swept)
        # Use powers of two: pieces end at multiples, so other sizes would not align with the next.
        parts = self._parts if run.ahead <= FIRST_SHARE_BYTES else self._parts * 3 // 2
        share = max(run.ahead // parts, FIRST_AHEAD_BYTES)
        part = min(1 << (share.bit_length() - 1), self._part)
        ahead = run.ahead if part == self._part else min(run.ahead, MAX_PARTS * part)
        run.fetched = self._extended(run, ahead, part)
        first, last = self._mirrored(run, begin, max(end, run.fetched))
        pieces = list(_cut(first, last, part))
        # A backward reader reaches the last piece first.
        yield from reversed(pieces) if run.backward else pieces

    def _pages(self, start: int, stop: int) -> Range:
        """Return the range in whole pages, except for the object's last page."""
        return start - start % PAGE_BYTES, min(stop + -stop % PAGE_BYTES, self._size)

    # --- distances ---

    def _earned(self, run: Run, ahead_bytes: int) -> int:
        """Return how many bytes to read ahead of a run that has just advanced."""
        readers = sum(
            self._plans - each.used < ACTIVE_PLANS
            for each in self._runs
            if each.ahead and each.cursor < self._size  # others have reached the end
        )
        from_start = run.start == 0 and not run.backward
        # The kernel may have served the reads before its first one.
        from_start = from_start or (self._gaps and not self._jumps.usual)
        if from_start and readers <= 1:
            earned = self._size
        elif self._jumps.usual:
            usual = self._jumps.usual_length
            long = run.length > 4 * max(usual, FIRST_AHEAD_BYTES)
            share = 4 if long else 8
            earned = usual - run.length if run.length <= usual else run.length // share
        else:
            part = 4 if readers <= FEW_READERS else 8
            earned = max(run.length // part, min(run.length, MIN_AHEAD_BYTES))
        wanted = max(2 * run.ahead, FIRST_AHEAD_BYTES)
        return max(min(wanted, earned, ahead_bytes // max(readers, 1)), 0)

    def _extended(self, run: Run, ahead: int, part: int) -> int:
        """Return the position up to which to fetch: whole steps, or the end of the object.

        Fetching exactly up to cursor + ahead at each plan would produce ever smaller pieces (2,760
        requests for 4 GiB instead of 519). A step is a part, or half of the window if that is
        smaller, so at least half of the window is always there. Steps end at their own multiples,
        so whole parts match those in which most objects were uploaded, and S3 has checksums of
        these.
        """
        fetched = max(run.fetched, run.cursor)
        wanted = run.cursor + ahead
        limit = self._limit(run)
        if wanted >= limit:
            return max(fetched, limit)
        half = max(ahead // 2, MIN_AHEAD_BYTES // 2)
        step = part if half >= part else 1 << (half.bit_length() - 1)
        if run.backward:  # align in the object, not from its end
            return max(fetched, wanted - (wanted - self._size) % step)
        return max(fetched, wanted - wanted % step)

    def _limit(self, run: Run) -> int:
        """Return where another reader has begun (all beyond is read), or the object ends.

        A reader from the start ends where it is expected to stop, until it has read on.
        """
        expected = run.start == 0 and not run.backward and run.cursor <= self._reach
        return min(
            (
                other.start
                for other in self._runs
                if other.backward == run.backward
                and other.start >= run.cursor
                and other.length >= FIRST_AHEAD_BYTES
            ),
            default=self._reach if expected else self._size,
        )

    def _useful(self, run: Run) -> int:
        """Return how many of the bytes that a run has passed were read."""
        return min(self._read - run.before, run.length)

    def _skips(self, run: Run) -> int:
        """Return how many bytes a run may skip now: in total a quarter more than it has read."""
        if not self._gaps:
            return 0
        useful = self._useful(run)
        return max(useful + useful // 4 - (run.length - useful), 0)

    # --- choice of a run ---

    def _note_hit(self, stop: int) -> None:
        """Advance the run whose bytes were read without a plan."""
        if stop == self._hit_stop:
            return
        self._hit_stop = stop
        self._last = None
        for run in self._runs:
            # For a backward read this is the wrong end.
            if not run.backward and run.cursor <= stop <= run.fetched:
                self._last = run
                run.cursor, run.used = stop, self._plans

    def _mirrored(self, run: Run, start: int, stop: int) -> Range:
        """Convert a range to the run's direction, or back."""
        return (self._size - stop, self._size - start) if run.backward else (start, stop)

    def _run_at(self, offset: int, stop: int) -> Run | None:
        near = []
        for run in self._runs:
            begin = self._mirrored(run, offset, stop)[0]
            if run.holds(begin, self._skips(run)):
                near.append((abs(run.cursor - begin), run))
        return min(near, key=lambda pair: pair[0])[1] if near else None

    def _turned(self, offset: int, stop: int) -> Run | None:
        """Return the run of one read that begins where this read ends: a backward run."""
        for run in reversed(self._runs):
            if run.ahead or run.backward or not run.length:
                continue
            if abs(run.start - stop) < PAGE_BYTES:
                run.start, run.cursor = self._size - run.cursor, self._size - run.start
                run.fetched = run.cursor
                run.backward = True
                return run
        return None

    def _absorb(self, run: Run, swept: int) -> None:
        """Forget runs that this one has passed: they were its own reads, out of order."""
        low, high = swept - run.slack, run.cursor + run.slack
        self._runs = [
            other
            for other in self._runs
            if other is not run
            and not (other.backward == run.backward and low <= other.cursor <= high)
        ]
        self._runs.append(run)  # the most recently used is last


def _cut(start: int, stop: int, part: int) -> Iterator[Range]:
    """Split [start, stop) at multiples of `part`."""
    while start < stop:
        end = min(start - start % part + part, stop)
        yield start, end
        start = end
