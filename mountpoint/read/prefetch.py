"""Fetch small files ahead of their opens, if programs read a directory file by file.

With a metadata ttl, a listing has named the version of a file before it is opened. So the next
files can be fetched while this one is read, by GETs of exactly that version (If-Match). The next
open then takes them as its stream's first parts.

A *walk* is one reader that opens files in the order of their names; several may go through one
directory. Each open belongs to the walk that expects it. An unexpected one starts a new walk, which
expects exactly the next file. From its third open on, a walk is trusted. It then expects the next
few files, because threads that share the work open them out of order. It also has a *window*: half
as many files as it has opened, up to `MAX_FILES`. Only files that `open` would fetch whole are
fetched (`history` knows how much was read of the last ones).

Wasted fetches are bounded. A walk that ends wastes at most half as many files as it has opened. Two
files in a row that are skipped halve the window. A walk that has skipped more than a quarter of its
opens gets no more files until it has opened more. Files that are not taken are dropped once the
walk has passed them, or when there are no opens for a while (`sweep`). Nothing is fetched while
memory is short.

Once a walk is trusted, the next files are looked up for many opens at once. Files that the data
cache has are not fetched; its disk begins to read them.

This module does not know the order of files (the caller does), and never waits. A failed fetch is
not used; but if the version no longer exists, the open gets that error.
"""

import functools
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from mountpoint._fastpath import Part
from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.shared.cache import SharedCache
from mountpoint.config import ReadConfig
from mountpoint.errors import NotFound, PreconditionFailed
from mountpoint.metrics.counters import Counters
from mountpoint.read.history import ReadHistory, parts_of
from mountpoint.read.whole_checksum import WholeChecksum
from mountpoint.s3.client import ByteSource, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget, Lease

#: Returns up to this many of the next files, fewer if no more are known.
Following = Callable[[int], list[ObjectInfo]]

#: Files ahead of one walk. 16 at 20 ms each are 800 files per second, twice the rate of one reader.
MAX_FILES = 16
#: The limits for all walks together, in bytes and files.
MAX_BYTES = 16 << 20
MAX_FILES_IN_ALL = 64
#: Consecutive opens that make a walk. If 16 threads open 2,000 files in random order, two opens in
#: sequence happen every other second, three hardly ever.
FIRST_OPENS = 3
#: The first window.
FEW_FILES = 2
#: A trusted walk expects files up to this many positions after the last one opened.
NEAR_FILES = 4
#: A skipped file may still be opened up to this many opens later.
LATE_OPENS = 16
#: Walks that are remembered; a few KB each.
MAX_WALKS = 32


class Fetched:
    """A file being fetched, and its checksum, if it comes in several parts.

    `passed` counts the opens beyond it.
    """

    __slots__ = ("info", "lease", "parts", "passed", "whole")

    def __init__(self, info: ObjectInfo, whole: WholeChecksum | None, lease: Lease) -> None:
        self.info = info
        self.whole = whole
        self.lease = lease
        self.parts: list[Part] = []
        self.passed = 0

    def cancel(self) -> None:
        """Cancel its requests."""
        for part in self.parts:
            part.cancel()
        if self.whole is not None:
            self.whole.give_up()


class _Walk:
    """One reader that opens files in order.

    Invariant: `expected` holds the next few keys, those of `fetched`, and a few skipped ones.
    """

    __slots__ = (
        "ahead",
        "cached",
        "expected",
        "fetched",
        "last",
        "limit",
        "opens",
        "passed",
        "sweeps",
        "unused",
    )

    def __init__(self) -> None:
        self.last = b""  # the furthest key opened
        self.opens = 0
        self.passed = 0  # fetched files that were not opened
        self.unused = 0  # of these, since a fetched file was opened
        self.limit = MAX_FILES
        self.sweeps = 0  # since the last open
        self.expected: deque[bytes] = deque()
        self.fetched: dict[bytes, Fetched] = {}
        self.cached: set[bytes] = set()  # keys of files that the data cache has
        self.ahead: deque[ObjectInfo] = deque()  # the files that follow `last`, as far as known

    @property
    def window(self) -> int:
        """The number of files to have ahead."""
        if self.opens < FIRST_OPENS or self.passed > FEW_FILES + self.opens // 4:
            return 0
        return min(max(self.opens // 2, FEW_FILES), self.limit)

    @property
    def near(self) -> int:
        """The number of next files to expect."""
        return NEAR_FILES if self.opens >= FIRST_OPENS else 1

    def coming(self, following: Following) -> list[ObjectInfo]:
        """Return the next files. For a trusted walk they are looked up for many opens at once."""
        wanted = max(self.window, self.near)
        while self.ahead and self.ahead[0].key <= self.last:
            self.ahead.popleft()
        if len(self.ahead) < wanted:
            self.ahead = deque(following(wanted if self.opens < FIRST_OPENS else 2 * wanted))
        return list(itertools.islice(self.ahead, wanted))

    def took(self) -> None:
        """Record that a fetched file was opened."""
        self.unused = 0
        self.limit = min(self.limit + 1, MAX_FILES)

    def passed_over(self) -> None:
        """Record that a fetched file was not read."""
        self.passed += 1
        self.unused += 1
        if self.unused % 2 == 0:
            self.limit = max(self.limit // 2, 1)


class FilePrefetcher:
    """The files fetched ahead of opens. Thread-safe; nothing waits."""

    def __init__(
        self,
        source: ByteSource,
        config: ReadConfig,
        budget: Budget,
        counters: Counters,
        history: ReadHistory,
        retry_policy: RetryPolicy,
        cache: BlockCache | None = None,
        shared: SharedCache | None = None,
    ) -> None:
        # dependencies
        self._source = source
        self._cache = cache
        self._shared = shared
        self._budget = budget
        self._counters = counters
        self._history = history
        # constants
        self._part_bytes = config.part_size_bytes
        self._wait_s = retry_policy.once_s
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._walks: OrderedDict[_Walk, None] = OrderedDict()  # the last used last
        self._walk_of: dict[bytes, _Walk] = {}  # the walk that expects or has fetched a key
        self._files = 0
        self._bytes = 0

    def opened(self, info: ObjectInfo, following: Following) -> Fetched | None:
        """Record an open, fetch the next files, and return this file if it was fetched ahead.

        The result holds the whole file, perhaps still arriving, and the caller must take over its
        memory. None if it was not fetched. Raises PreconditionFailed or NotFound if the fetch has
        shown that this version does not exist.
        """
        dropped: list[Fetched] = []
        with self._lock:
            walk = self._walk_of.pop(info.key, None) or _Walk()
            self._walks[walk] = None
            self._walks.move_to_end(walk)
            walk.opens += 1
            walk.sweeps = 0
            walk.cached.discard(info.key)
            found = walk.fetched.pop(info.key, None)
            if found is not None:
                self._release(found)
                if _same_version(found.info, info):
                    walk.took()
                else:
                    dropped.append(found)
                    found = None
            if info.key > walk.last:
                walk.last = info.key
                self._go_on(walk, walk.coming(following), dropped)
            while len(self._walks) > MAX_WALKS:
                self._forget(next(iter(self._walks)), dropped)
        self._cancel(dropped)
        return None if found is None else self._checked(found)

    def sweep(self, sweeps: int) -> None:
        """Drop the files of walks without an open during this many sweeps."""
        dropped: list[Fetched] = []
        with self._lock:
            for walk in self._walks:
                walk.sweeps += 1
                if walk.sweeps >= sweeps:
                    walk.ahead.clear()
                    for fetched in list(walk.fetched.values()):
                        self._pass_over(walk, fetched, dropped)
        self._cancel(dropped)

    @property
    def held_files(self) -> int:
        """The number of fetched files, perhaps still arriving, that were not opened."""
        return self._files

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            held = [each for walk in self._walks for each in walk.fetched.values()]
            assert self._files == len(held) <= MAX_FILES_IN_ALL
            assert self._bytes == sum(each.info.size_bytes for each in held) <= MAX_BYTES
            for walk in self._walks:
                assert len(walk.fetched) <= MAX_FILES + LATE_OPENS
                assert len(walk.expected) <= NEAR_FILES + LATE_OPENS
            for key, walk in self._walk_of.items():
                assert walk in self._walks
                assert key in walk.expected or key in walk.fetched

    # --- internal (lock held, except in the last two) ---

    def _go_on(self, walk: _Walk, coming: list[ObjectInfo], dropped: list[Fetched]) -> None:
        """Advance a walk; `coming` are the files that follow."""
        skipped = [each for each in walk.fetched.values() if each.info.key < walk.last]
        for position, fetched in enumerate(skipped, 1):
            fetched.passed += 1
            # A reader that jumps repeatedly skips more files than can come late.
            if fetched.passed > LATE_OPENS or position <= len(skipped) - LATE_OPENS:
                self._pass_over(walk, fetched, dropped)
        for info in coming[: walk.near]:
            if info.key not in walk.expected:
                if len(walk.expected) == NEAR_FILES + LATE_OPENS:
                    self._forget_key(walk, walk.expected.popleft())
                walk.expected.append(info.key)
                self._walk_of.setdefault(info.key, walk)
        wanted = walk.window
        for info in coming:
            if wanted <= 0:
                break
            there = info.key in walk.fetched or info.key in walk.cached
            if not there and not self._fetch(walk, info):
                break
            wanted -= info.key in walk.fetched or info.key in walk.cached

    def _fetch(self, walk: _Walk, info: ObjectInfo) -> bool:
        """Fetch a file if `open` would fetch it whole; False if nothing can be fetched now."""
        size = info.size_bytes
        if size == 0 or self._history.initial_bytes(info.key, size) < size:
            return True
        if self._walk_of.setdefault(info.key, walk) is not walk:
            return True  # another walk has it
        if self._cache is not None and self._cache.expect(info):
            if len(walk.cached) >= MAX_FILES + LATE_OPENS:
                walk.cached.clear()
            walk.cached.add(info.key)
            return True
        if self._files >= MAX_FILES_IN_ALL or self._bytes + size > MAX_BYTES:
            return False
        lease = self._budget.lease()
        if not lease.try_take(size):
            return False
        ranges = parts_of(size, self._part_bytes)
        several = self._source.verifies and len(ranges) > 1
        whole = WholeChecksum(self._source, info, self._wait_s) if several else None
        summing = None if whole is None else whole.sums
        fetched = Fetched(info, whole, lease)
        if whole is not None:
            whole.ask()
        for start, stop in ranges:
            part = Part(start, stop, info.etag, ahead=True, summing=summing)
            request = functools.partial(self._source.get, info, start, stop, part)
            if self._shared is None:
                part.attach(request())
            else:
                self._shared.get(info, part, request)
            fetched.parts.append(part)
        walk.fetched[info.key] = fetched
        self._files += 1
        self._bytes += size
        self._counters.add("bytes_prefetched", size)
        return True

    def _pass_over(self, walk: _Walk, fetched: Fetched, dropped: list[Fetched]) -> None:
        del walk.fetched[fetched.info.key]
        self._forget_key(walk, fetched.info.key)
        self._release(fetched)
        walk.passed_over()
        dropped.append(fetched)

    def _forget(self, walk: _Walk, dropped: list[Fetched]) -> None:
        for fetched in list(walk.fetched.values()):
            self._pass_over(walk, fetched, dropped)
        while walk.expected:
            self._forget_key(walk, walk.expected.popleft())
        del self._walks[walk]

    def _forget_key(self, walk: _Walk, key: bytes) -> None:
        """Release a key that a walk no longer expects or has fetched."""
        known = key in walk.fetched or key in walk.expected
        if not known and self._walk_of.get(key) is walk:
            del self._walk_of[key]

    def _release(self, fetched: Fetched) -> None:
        self._files -= 1
        self._bytes -= fetched.info.size_bytes
        fetched.lease.give(fetched.info.size_bytes)

    def _cancel(self, dropped: list[Fetched]) -> None:
        for fetched in dropped:
            self._counters.add("bytes_prefetched_in_vain", fetched.info.size_bytes)
            if all(part.ready for part in fetched.parts):
                self._keep(fetched)
            fetched.cancel()

    def _keep(self, fetched: Fetched) -> None:
        """Offer a file that was not opened to the caches."""
        if self._cache is not None:
            self._cache.keep(fetched.info, fetched.parts)
        if self._shared is not None:
            for part in fetched.parts:
                self._shared.arrived(fetched.info, part)

    def _checked(self, fetched: Fetched) -> Fetched | None:
        """Return the file; None if one of its parts has failed."""
        error = next((part.error for part in fetched.parts if part.failed), None)
        if error is None:
            return fetched
        self._cancel([fetched])
        if isinstance(error, PreconditionFailed | NotFound):
            raise error
        return None


def _same_version(one: ObjectInfo, other: ObjectInfo) -> bool:
    return one.etag == other.etag and one.size_bytes == other.size_bytes
