"""The bytes of one open object: turn reads into ranged GETs.

A read whose bytes are here is one call into `_fastpath`. Otherwise, and once for each part that a
reader reaches, the stream asks its `Window` for the ranges to fetch and takes memory from the
budget. It sends ranged GETs for the bytes that no part covers yet. Each GET has If-Match, so all
bytes belong to one version of the object.

The waiting reader does all the work that takes time. It wakes when its part has arrived, has
failed, or has been silent for too long. In the last two cases it sends a new request and waits
again, until the total time is used up; open and reads share that total while no data comes
(`Allowance`). So a part that was fetched ahead and failed costs nothing until a reader needs it,
and no extra thread has to watch for it.

A part that takes several times as long as others of its size is requested a second time, and the
first answer counts (`_hedged`).

A range whose bytes do not match their checksum is fetched again completely, not only the bytes that
a reader needs. S3 has checksums for whole objects and for parts as they were uploaded; other ranges
would come without one.

If parts come without checksums, a file that is read completely is compared with the checksum of the
whole object at its end (`whole_checksum`). If that does not match, the read that reached the end
fails, and so do all later ones.

With a data cache, ranges that it has come from there (`_issue_gaps`), but for the one by which
`open` asks S3 whether the version is the newest. Each other part is offered to the cache when a
reader reaches it (`_note`). If the disk is late, the range is requested from S3 as well. With a
shared cache, a whole small object that the disk lacks is requested from there first. Reads of a
small file on disk come here only if that fails: the lane reads it itself (`use_disk`).

Parts behind the reader are dropped at the next plan. Bytes that were fetched exactly for a random
read are dropped once that read is answered: they are in the kernel's page cache. An idle stream
gives back all its memory (`rest`).
"""

import functools
import threading
from collections.abc import Callable

from mountpoint._fastpath import Assembly, Part, PartMap, slice_of
from mountpoint.cache.cached_object import WIDENED_BYTES, CachedObject
from mountpoint.cache.shared.cache import SharedCache
from mountpoint.config import MIB, ReadConfig
from mountpoint.errors import BadHandle, ChecksumMismatch, FileDamaged, S3Error, Stalled
from mountpoint.native._lane import Lane
from mountpoint.read.history import INITIAL_BYTES, parts_of
from mountpoint.read.patterns import PAGE_BYTES, Range
from mountpoint.read.readahead import Window
from mountpoint.read.whole_checksum import WholeChecksum
from mountpoint.s3.client import ByteSource, ObjectInfo
from mountpoint.s3.retry import Allowance, Attempts, RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.transfer.stats import TransferStats

Bytes = bytes | memoryview | Assembly

#: The initial range if memory is short: a program may open thousands of files.
MIN_INITIAL_BYTES = PAGE_BYTES
#: `open` waits for the whole object up to this size, which takes 1.5 ms longer at most. The first
#: read then waits for nothing: a thread is woken once per file, not twice.
SMALL_BYTES = 128 * 1024

#: A reader that has come this far from the start is likely to read to the end, so S3 is asked for
#: the whole object's checksum. So is it if a smaller object is completely on its way.
ASK_BYTES = 2 * MIB

#: The slowest link that does not count as a stall. The client delivers a part's bytes only when all
#: of them are there, so silence is allowed for as long as they may take.
SLOWEST_BYTES_PER_S = MIB

#: How many reads at random places the lane may fetch before the stream looks again, and for how
#: many seconds: keys are renewed minutes before they expire.
RANDOM_READS = 256
RANDOM_S = 5.0

#: Seconds that a range from the cache may take.
MAX_CACHE_S = 1.0

RETRIES_FAILED = "all retries failed; --read-timeout sets how long the mount retries"

#: Parts are smaller after a stall. They grow again after this many in a row that took a tenth of
#: the time allowed.
TIMELY_PARTS = 8
TIMELY_SHARE = 0.1


class ReadStream:
    """The bytes of `info`'s version of an object; `open` fetches the first `initial_bytes`.

    `on_begin` is called with the stream at its first read, and returns where a reader from the
    start is expected to stop, None if at the end; `looked_at` is whether little of it is likely to
    be read. `on_close` is called with the stream when it is closed. `shares`: the shared cache
    lacks this small object, so that its whole is to come as one part, from the disk or from S3.

    Thread-safe. `_lock` guards the plan and the requests; it is never held while waiting.
    """

    def __init__(
        self,
        source: ByteSource,
        info: ObjectInfo,
        *,
        initial_bytes: int,
        looked_at: bool = False,
        cached: CachedObject | None = None,
        shared: SharedCache | None = None,
        shares: bool = False,
        config: ReadConfig,
        budget: Budget,
        stats: TransferStats,
        retry_policy: RetryPolicy,
        on_begin: Callable[["ReadStream"], int | None],
        on_close: Callable[["ReadStream"], None],
    ) -> None:
        # dependencies
        self._source = source
        self._cached = cached
        self._shared = shared
        self._config = config
        self._stats = stats
        self._retry_policy = retry_policy
        self._allowance = Allowance(retry_policy)
        self._on_begin = on_begin
        self._on_close = on_close
        # constants
        self.key = info.key
        self.size_bytes = info.size_bytes
        self._info = info
        self._initial_bytes = initial_bytes
        self.looked_at = looked_at
        self.shares = shares
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._lease = budget.lease()
        self._planning: Window | None = None  # `_window`, made by the first use
        self._fetched_initial_bytes = 0  # what it has to know then
        self._closed = False
        self._begun = False  # a read has been planned
        self._initial_due = False  # the first read fetches the initial range
        self.from_disk = False  # the lane reads the whole of a small file from the data cache
        # If it was not fetched, the kernel may have served the reads.
        self.initial_fetched = False
        self._initial_read = False  # a reader has used the initial range
        self.exact = False  # the kernel hardly enlarges the programs' reads
        self._waiting = 0  # calls that wait for parts
        self._waiting_bytes = 0  # the bytes that these calls read
        self._timely = 0  # parts in a row that came in time
        self._rests = 0  # consecutive calls of `rest` without a read between them
        self._rested_at_bytes = 0  # `read_bytes` at the last of these calls
        self._counted_bytes = 0  # the share of `read_bytes` that has been counted
        # Ranges that came at least once with a wrong checksum.
        self._mismatched: set[tuple[int, int]] = set()
        # mutable, guarded by the GIL
        self._parts = PartMap(info.size_bytes)
        self._whole: WholeChecksum | None = None  # set with the first part that is not the object
        self._damage = ""  # the reason why all reads fail

    def open(self) -> ObjectInfo:
        """Fetch the initial range of the object and return its current description from S3.

        This checks the version and fetches the first data in one round trip. Raises
        PreconditionFailed if the version is no longer the newest, and NotFound if the object is
        gone. The object must not be empty.
        """
        attempts = self._allowance.begin()
        with self._lock:
            self._waiting += 1
            initial = self._issue_initial(cached=False, fresh=True)
        small = initial.stop == self.size_bytes <= SMALL_BYTES
        try:
            while True:
                if small:
                    soon_s = self._stats.late_s(initial.stop)
                    initial.wait(min(soon_s, self._time_for(initial, attempts)))
                if not initial.ready:
                    initial.wait_for_headers(self._time_for(initial, attempts))
                info = initial.info
                if info is None or initial.failed:
                    self._replace_failed(initial, attempts)
                    info = initial.info
                # The answer also counts if it came just before the part was given up.
                if info is not None and not initial.failed:
                    if small and initial.ready:
                        self._parts.touch(initial)  # nothing to plan
                        self._note(initial, waited=True)
                    if initial.ready:
                        self._allowance.succeeded()
                    else:
                        self._allowance.failed(attempts, used_up=False)
                    return info
                with self._lock:
                    self._lease.take(initial.stop)
                    initial = self._issue(0, initial.stop, ahead=True, fresh=True)
        finally:
            with self._lock:
                self._waiting -= 1

    def open_unasked(self, *, paged: bool = False) -> None:
        """Instead of `open`: let the first read fetch the initial range, unless the data cache has
        the whole of a small file, or `paged`: the kernel may have this file's bytes.
        """
        if paged and not self.shares:
            self.use_disk()
            return
        self._initial_due = True
        if self._initial_bytes == self.size_bytes:
            self.initial_fetched = self.use_disk()

    def use_disk(self) -> bool:
        """Let the lane read a small file from the data cache, without plans; return whether it may.

        Each read is exactly what was asked for. Where that fails, reads come here.
        """
        source = None
        if self._cached is not None and not self.shares:
            source = self._cached.whole_source()
        if source is not None:
            self._parts.allow_whole(source)
            self.from_disk = True
        return self.from_disk

    @property
    def begins_in_cache(self) -> bool:
        """Whether the data cache has what `open` would fetch, so that HEAD is enough."""
        return self._cached is not None and self._has(0, self._initial_bytes)

    def expect_gaps(self) -> None:
        """Record that the kernel had pages of the whole object, and may have lost some."""
        self._window.expect_gaps()

    def adopt(self, parts: list[Part], whole: WholeChecksum | None) -> None:
        """Instead of `open`: take over the whole object, which was fetched ahead.

        `whole` is its checksum, if that was requested, too.
        """
        with self._lock:
            self._whole = whole
            self._lease.take(self.size_bytes)
            for part in parts:
                self._parts.insert(part)
            self._initial_bytes = self.size_bytes
            self.initial_fetched = True
            self._fetched_initial(self.size_bytes)

    def read(self, offset: int, size: int) -> Bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the object.

        The result is a buffer that does not change. Raises PreconditionFailed or NotFound if the
        object was replaced or deleted, other S3Errors if S3 does not deliver within `timeout_s`,
        FileDamaged for a wrong checksum, and Interrupted when the mount goes away.
        """
        stop = min(offset + size, self.size_bytes)
        if offset >= stop:
            return b""
        view = self._parts.ready(offset, stop) or self._parts.read_whole(offset, stop)
        return self._fetch(offset, stop) if view is None else view

    @property
    def _window(self) -> Window:
        """The plan. A small file that is fetched by `open` never needs one."""
        if self._planning is None:
            self._planning = Window(self.size_bytes, part_bytes=self._config.part_size_bytes)
            if self._fetched_initial_bytes:
                self._planning.fetched_initial(self._fetched_initial_bytes)
        return self._planning

    def _fetched_initial(self, stop: int) -> None:
        if self._planning is None:
            self._fetched_initial_bytes = stop
        else:
            self._planning.fetched_initial(stop)

    @property
    def read_bytes(self) -> int:
        """The bytes read so far."""
        return self._parts.read_bytes

    @property
    def lane(self) -> Lane:
        """Where reads find the bytes that are here, without the interpreter."""
        return self._parts

    @property
    def held_bytes(self) -> int:
        """The bytes of memory that it holds."""
        return self._lease.held_bytes

    @property
    def initial_read(self) -> bool:
        """Whether a reader has used the bytes that `open` fetched."""
        if self._initial_bytes == self.size_bytes:
            return self.read_bytes > 0
        return self._initial_read

    def rest(self, sweeps: int) -> None:
        """Give all memory back if this is the `sweeps`-th call without a read between them."""
        with self._lock:
            read_bytes = self._parts.read_bytes
            if self._waiting or read_bytes != self._rested_at_bytes:
                self._rests, self._rested_at_bytes = 0, read_bytes
                return
            self._rests += 1
            if self._rests < sweeps or self._closed:
                return
            self._window.forget_ahead(self._parts.hit_stop)
            parts = self._clear()
        for part in parts:
            part.cancel()
        if self._cached is not None:
            self._cached.flush()

    def close(self) -> None:
        """Cancel requests in flight and give all memory back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._count_read()
            parts = self._clear()
        for part in parts:
            part.cancel()
        if self._cached is not None:
            self._cached.flush()
        if self._whole is not None:
            self._whole.give_up()
        self._on_close(self)

    def _count_read(self) -> None:
        """Count the bytes read since the last call (lock held)."""
        read_bytes = self._parts.read_bytes
        self._stats.read(read_bytes - self._counted_bytes)
        self._counted_bytes = read_bytes
        waits = self._parts.take_waits()
        if waits:
            self._stats.waited(waits)

    def _clear(self) -> list[Part]:
        """Remove all parts and return them (lock held)."""
        self._lease.give(self._lease.held_bytes)
        return self._parts.clear()

    def _fetch(self, offset: int, stop: int) -> Bytes:
        if self._damage:
            raise FileDamaged(self._damage)
        attempts = self._allowance.begin()
        with self._lock:
            self._waiting += 1
            self._catch_up()
            parts = self._cover(offset, stop, plan=True)
            self._waiting_bytes += stop - offset
        if not all(part.ready for part in parts):
            self._stats.waited()
        try:
            while (late := self._wait(parts, attempts)) is not None:
                self._replace_failed(late, attempts)
                with self._lock:
                    parts = self._cover(offset, stop, plan=False)
            self._allowance.succeeded()
            self._check_whole()
            return slice_of(parts, offset, stop)
        finally:
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= stop - offset
                self._parts.note_read(stop - offset)
                self._count_read()
                reached = stop if self._cached is None else self._cached.widened(0, stop)[1]
                self._drop([part for part in parts if not part.ahead and part.stop <= reached])
                if self._window.random:
                    self._allow_random()

    def _catch_up(self) -> None:
        """Plan the reads at random places that the lane has fetched itself (lock held)."""
        taken = self._parts.take_random()
        if not taken:
            return
        ranges = [(start, stop) for start, stop, _ in taken]
        self._window.take_random(ranges, read_bytes=self._parts.read_bytes)
        for start, stop, duration_s in taken:
            # With a cache the disk may have delivered it.
            if duration_s and self._cached is None:
                self._stats.arrived(stop - start, duration_s, waited=True)

    def _allow_random(self) -> None:
        """Let the lane fetch the next reads at random places itself (lock held)."""
        comparing = self._whole is not None and self._whole.comparing
        source = None
        if not (self._closed or comparing or self._window.slowed):
            source = self._source.lane_source(self._info)
            if self._cached is not None:
                source = self._cached.lane_source(source)
        if source is not None:
            recent = self._window.recent()
            first, last = recent[-1]
            late_s = min(self._stats.late_s(last - first), self._config.stall_s)
            self._parts.allow_random(source, recent, RANDOM_READS, RANDOM_S, late_s)

    def _check_whole(self) -> None:
        """Raise FileDamaged if the whole object was read and does not match its checksum."""
        name = None if self._whole is None else self._whole.check()
        if name is None:
            return
        with self._lock:
            self._damage = f"the file does not match its {name} checksum: it was changed in transit"
            parts = self._clear()
        for part in parts:
            part.cancel()
        if self._cached is not None:
            self._cached.drop()
        raise FileDamaged(self._damage)

    def _issue_initial(self, *, cached: bool, fresh: bool = False) -> Part:
        """Send the first GETs, as far as memory allows; return the first part (lock held).

        `cached`: the data cache has that one. `fresh`: that one asks S3.
        """
        self.initial_fetched = True
        stop = self._initial_bytes
        for less in (INITIAL_BYTES, MIN_INITIAL_BYTES):
            if self._lease.try_take(stop):
                break
            stop = min(stop, less)
        else:
            self._lease.take(stop)
        self._fetched_initial(stop)
        first, *others = parts_of(stop, self._config.part_size_bytes)
        part = self._issue(*first, ahead=True, cached=cached, fresh=fresh)
        if others and stop == self.size_bytes and self._whole is not None:
            self._whole.ask()  # before the other parts, so that the answer comes first
        for start, end in others:
            self._issue(start, end, ahead=True, cached=self._has(start, end))
        return part

    def _cover(self, offset: int, stop: int, *, plan: bool) -> list[Part]:
        """Return parts that cover [offset, stop), after sending missing GETs (lock held)."""
        if self._closed:
            raise BadHandle("the file has been closed")
        if self._initial_due:
            self._initial_due = False
            if offset < self._initial_bytes:
                self._issue_initial(cached=self.begins_in_cache)
        self._initial_read = self._initial_read or offset < self._initial_bytes
        todo: list[Range] = [(offset, stop)]
        if plan:
            if not self._begun:
                self._begun = True
                reach = self._on_begin(self)
                if reach is not None:
                    self._window.expect_stop(reach)
            todo = self._window.plan(
                offset,
                stop - offset,
                ahead_bytes=self._lease.share_bytes,
                parts=self._lease.parts,
                hit_stop=self._parts.hit_stop,
                read_bytes=self._parts.read_bytes + self._waiting_bytes,
            )
            self._drop_behind(offset, stop)
            # A part that failed before this read is no answer to it.
            self._drop([part for part in self._parts.covering(offset, stop) if part.failed])
        first, last = min(start for start, _ in todo), max(end for _, end in todo)
        self._issue_mismatched(first, last)
        self._issue_gaps(todo, offset, stop)
        if self._whole is not None and not self._whole.asked:
            self._ask_whole(self._whole, offset)
        parts = self._parts.covering(offset, stop)
        for part in parts:
            self._parts.touch(part)
        return parts

    def _ask_whole(self, whole: WholeChecksum, offset: int) -> None:
        """Request the object's checksum if a reader is likely to reach its end (lock held)."""
        front = whole.front
        if front >= ASK_BYTES or (
            offset <= front
            and not self._parts.gaps(front, self.size_bytes)
            and len(self._parts) > 1
        ):
            whole.ask()

    def _issue_gaps(self, ranges: list[Range], offset: int, stop: int) -> None:
        """Send GETs for the missing bytes of `ranges`; a read of [offset, stop) needs some of them.

        When memory runs out, only the bytes that the read needs are still fetched (lock held).
        """
        room = True
        page_bytes = PAGE_BYTES
        if self._cached is not None:
            ranges = [self._cached.widened(*each) for each in ranges]
            page_bytes = WIDENED_BYTES
        # One after another: widened ranges overlap, and the next one has only what is left.
        gaps = (gap for each in ranges for gap in self._parts.gaps(*each))
        for start, end, cached in (each for gap in gaps for each in self._split(*gap)):
            waiting = start < stop and offset < end
            if not (waiting or room):
                continue
            exactly = waiting and offset - page_bytes < start and end < stop + page_bytes
            room = self._lease.try_take(end - start)
            if room:
                self._issue(start, end, ahead=not exactly, cached=cached)
            elif waiting:
                start, end = max(start, offset), min(end, stop)
                self._lease.take(end - start)
                self._issue(start, end, ahead=False, cached=cached)
                room = exactly

    def _issue_mismatched(self, first: int, last: int) -> None:
        """Fetch again the mismatched ranges that [first, last) touches, completely (lock held).

        Memory does not limit this: smaller pieces could not be compared.
        """
        for start, stop in self._mismatched:
            touches = start < last and first < stop
            if touches and self._parts.gaps(start, stop) == [(start, stop)]:
                self._lease.take(stop - start)
                self._issue(start, stop, ahead=True)

    def _split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Cut a range where the data cache has some of it: (start, stop, cached) each."""
        return [(start, stop, False)] if self._cached is None else self._cached.split(start, stop)

    def _has(self, start: int, stop: int) -> bool:
        """Whether the data cache has the whole range."""
        return all(cached for _, _, cached in self._split(start, stop))

    def _issue(
        self, start: int, stop: int, *, ahead: bool, cached: bool = False, fresh: bool = False
    ) -> Part:
        """Send one ranged GET, or read from the cache; its memory has been taken (lock held).

        `fresh`: the source is asked.
        """
        if self._whole is None and stop - start < self.size_bytes and self._source.verifies:
            self._whole = WholeChecksum(self._source, self._info, self._retry_policy.once_s)
        if cached and self._whole is not None:
            self._whole.give_up()
        summing = None if self._whole is None else self._whole.sums
        part = Part(start, stop, self._info.etag, ahead=ahead, summing=summing)
        self._parts.insert(part)
        request = functools.partial(self._source.get, self._info, start, stop, part)
        if cached and self._cached is not None:
            self._cached.read(part, request)
        elif self._shared is not None and not fresh:
            self._shared.get(self._info, part, request)
        else:
            part.attach(request())
        return part

    def _wait(self, parts: list[Part], attempts: Attempts) -> Part | None:
        """Wait for all parts; return the first that failed or was silent for too long."""
        for part in parts:
            waited = not part.ready
            if waited and part.cached:
                self._wait_for_cache(part)
            if waited:
                late_s = self._stats.late_s(part.stop - part.start) - part.age_s()
                if late_s < self._time_for(part, attempts) and not part.wait(late_s):
                    self._hedged(part, attempts)
                else:
                    part.wait(self._time_for(part, attempts))
                if not part.ready:
                    return part
            self._note(part, waited=waited)
        return None

    def _wait_for_cache(self, part: Part) -> None:
        """Wait for a part from the cache; if it is late, request it from S3."""
        if not part.wait(MAX_CACHE_S - part.age_s()) and self._cached is not None:
            self._cached.late(part)

    def _hedged(self, part: Part, attempts: Attempts) -> None:
        """Wait for a late part, with a second request if that is allowed."""
        size = part.stop - part.start
        hedge = None
        with self._lock:
            if not self._closed and part.claim_hedge() and self._lease.try_take(size):
                if self._stats.hedge():
                    hedge = Part(part.start, part.stop, part.etag)
                    hedge.serve(part)
                    hedge.attach(self._source.get(self._info, part.start, part.stop, hedge))
                else:
                    self._lease.give(size)
        part.wait(self._time_for(part, attempts))
        if hedge is not None:
            hedge.cancel()
            with self._lock:
                if not self._closed:  # `close` has given all memory back
                    self._lease.give(size)
            self._stats.hedged(won=part.overtaken)

    def _note(self, part: Part, *, waited: bool) -> None:
        """Record once how long a part took, and enlarge parts again after a stall."""
        if not part.claim_note():
            return
        size, duration_s = part.stop - part.start, part.duration_s()
        if self._cached is not None:
            self._cached.arrived(part)
        if self._shared is not None:
            self._shared.arrived(self._info, part)
        if part.cached:
            return
        if self._whole is not None:
            self._whole.add(part)
        self._stats.arrived(size, duration_s, waited=waited)
        if self._planning is not None and self._planning.slowed:
            timely = duration_s < TIMELY_SHARE * self._allowed_s(part)
            self._timely = self._timely + 1 if timely else 0
            if self._timely >= TIMELY_PARTS:
                self._timely = 0
                with self._lock:
                    self._planning.speed_up()

    def _time_for(self, part: Part, attempts: Attempts) -> float:
        """Seconds that this part may still take."""
        return max(min(self._allowed_s(part) - part.age_s(), attempts.left_s()), 0.0)

    def _allowed_s(self, part: Part) -> float:
        """Seconds that one try of this part may take."""
        return self._config.stall_s + (part.stop - part.start) / SLOWEST_BYTES_PER_S

    def _replace_failed(self, part: Part, attempts: Attempts) -> None:
        """Remove a failed part before a new try, or raise its error if there is none."""
        stalled = not part.failed
        missing = f"{part.stop - part.start} bytes did not arrive within {part.age_s():.1f} s"
        part.cancel(Stalled(missing))
        error = part.error
        if error is None:  # it became ready while it was being given up
            return
        with self._lock:
            self._drop([part])
            if stalled:
                self._window.slow_down()
        if not isinstance(error, S3Error):
            raise error
        if not attempts.again(error):
            # A try that the deadline cut short says less than the answer before it.
            if stalled and attempts.answer is not None and part.age_s() < self._allowed_s(part):
                error = attempts.answer
            if error.retryable:
                self._allowance.failed(attempts, used_up=True)
                error.hint = error.hint or RETRIES_FAILED
            raise error

    def _drop_behind(self, offset: int, stop: int) -> None:
        """Drop parts that no reader is near; [offset, stop) is being read (lock held)."""
        wanted = self._parts.covering(offset, stop)
        kept = self._window.kept()
        passed = [
            part
            for part in self._parts
            if not any(low < part.stop and part.start < high for low, high in kept)
        ]
        passed = [part for part in passed if part not in wanted]
        # A reader may be waiting for a touched part that has not ended yet.
        passed = [part for part in passed if part.ready or part.failed or not part.touched]
        self._drop(passed)
        for part in passed:
            part.cancel()

    def _drop(self, parts: list[Part]) -> None:
        for part in parts:
            if self._parts.remove(part):
                self._lease.give(part.stop - part.start)
            if isinstance(part.error, ChecksumMismatch):
                self._mismatched.add((part.start, part.stop))
