"""Small files fetched ahead of their opens, where programs read a directory file by file.

With a metadata ttl the version of a file is known before it is opened: a listing has named
it. So the next files can be on their way while this one is read, each by GETs of that very
version (If-Match), and the open that comes takes them as its stream's first parts.

A *walk* is one reader that opens files in the order of their names; several may go through
one directory. Each open belongs to the walk that expects it; one that nobody expects begins
a walk, which expects the very next file. From its third open on a walk is believed: it
expects the next few files, because threads that share the work come out of order, and has a
*window*: half as many files as it has opened, up to `MOST_FILES`. Only files that `open`
would fetch whole are fetched (`history` knows what was read of the last ones).

What is fetched in vain is bounded: a walk ends with no more than half of what it has
opened, two files in a row that are passed over halve the window, and a walk that has passed
over more than a quarter of what it opened gets nothing until it has opened more. What is
not taken goes when the walk has gone on without it, or when nobody opens anything for a
while (`sweep`); when memory is short nothing is fetched.

It does not know which files follow which (whoever calls does), and it waits for nothing.
What has failed is no part of the answer: where the version is not there any more, the open
is told so.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from mountpoint._fastpath import Part
from mountpoint.config import ReadConfig
from mountpoint.errors import NotFound, PreconditionFailed
from mountpoint.metrics.counters import Counters
from mountpoint.read.history import Expectation, parts_of
from mountpoint.read.whole_checksum import WholeChecksum
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget, Lease

#: Returns so many of the files that come next, fewer where no more are known.
Following = Callable[[int], list[ObjectInfo]]

#: Files ahead of one walk. 16 at 20 ms each are 800 files per second, twice what one reader opens.
MOST_FILES = 16
#: What all walks together may have ahead, in bytes and files.
MOST_BYTES = 16 << 20
MOST_FILES_IN_ALL = 64
#: The opens in a row that are believed to be a walk. Where 16 threads open 2,000 files in any
#: order, two are followed by their next ones every other second, three hardly ever.
FIRST_OPENS = 3
#: The first window.
FEW_FILES = 2
#: From then on an open may be so many places beyond the last one, ...
NEAR_FILES = 4
#: ... and come so many opens later than others that were behind it.
LATE_OPENS = 16
#: Walks that are remembered; a few KB each.
MOST_WALKS = 32


class Fetched:
    """A file that has been asked for, and its checksum, if it comes in several parts.

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
        """Stop what is under way."""
        for part in self.parts:
            part.cancel()
        if self.whole is not None:
            self.whole.give_up()


class _Walk:
    """One reader of files in order.

    Invariant: `expected` are the next few keys, those of `fetched`, and a few that were skipped.
    """

    __slots__ = ("expected", "fetched", "in_vain", "last", "limit", "opens", "passed", "sweeps")

    def __init__(self) -> None:
        self.last = b""  # the furthest key that was opened
        self.opens = 0
        self.passed = 0  # files that were fetched and not opened
        self.in_vain = 0  # of these, since the last that was opened
        self.limit = MOST_FILES
        self.sweeps = 0  # since the last open
        self.expected: deque[bytes] = deque()
        self.fetched: dict[bytes, Fetched] = {}

    @property
    def window(self) -> int:
        """How many files to have ahead."""
        if self.opens < FIRST_OPENS or self.passed > FEW_FILES + self.opens // 4:
            return 0
        return min(max(self.opens // 2, FEW_FILES), self.limit)

    @property
    def near(self) -> int:
        """How many of the next files to expect."""
        return NEAR_FILES if self.opens >= FIRST_OPENS else 1

    def took(self) -> None:
        """Note that a file was opened that had been fetched."""
        self.in_vain = 0
        self.limit = min(self.limit + 1, MOST_FILES)

    def passed_over(self) -> None:
        """Note that a file was fetched for nothing."""
        self.passed += 1
        self.in_vain += 1
        if self.in_vain % 2 == 0:
            self.limit = max(self.limit // 2, 1)


class Ahead:
    """What is fetched ahead of opens. Thread-safe; nothing waits."""

    def __init__(
        self,
        client: ObjectClient,
        config: ReadConfig,
        budget: Budget,
        counters: Counters,
        expectation: Expectation,
        retry_policy: RetryPolicy,
    ) -> None:
        # dependencies
        self._client = client
        self._budget = budget
        self._counters = counters
        self._expectation = expectation
        # constants
        self._part_bytes = config.part_size_bytes
        self._wait_s = retry_policy.once_s
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._walks: OrderedDict[_Walk, None] = OrderedDict()  # the last used last
        self._walk_of: dict[bytes, _Walk] = {}  # who expects or has fetched a key
        self._files = 0
        self._bytes = 0

    def opened(self, info: ObjectInfo, following: Following) -> Fetched | None:
        """Note an open, fetch what comes next, and return what had been fetched of this file.

        That is all of it, arriving, and its memory is the caller's to take; or None. Raises
        PreconditionFailed or NotFound when fetching has shown that this version is not there.
        """
        dropped: list[Fetched] = []
        with self._lock:
            walk = self._walk_of.pop(info.key, None) or _Walk()
            self._walks[walk] = None
            self._walks.move_to_end(walk)
            walk.opens += 1
            walk.sweeps = 0
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
                self._go_on(walk, following(max(walk.window, walk.near)), dropped)
            while len(self._walks) > MOST_WALKS:
                self._forget(next(iter(self._walks)), dropped)
        self._cancel(dropped)
        return None if found is None else self._checked(found)

    def sweep(self, sweeps: int) -> None:
        """Let go of what walks have ahead that have not moved for this many sweeps."""
        dropped: list[Fetched] = []
        with self._lock:
            for walk in self._walks:
                walk.sweeps += 1
                if walk.sweeps >= sweeps:
                    for fetched in list(walk.fetched.values()):
                        self._pass_over(walk, fetched, dropped)
        self._cancel(dropped)

    @property
    def held_files(self) -> int:
        """How many files are there, or on their way, that nobody has opened."""
        return self._files

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            held = [each for walk in self._walks for each in walk.fetched.values()]
            assert self._files == len(held) <= MOST_FILES_IN_ALL
            assert self._bytes == sum(each.info.size_bytes for each in held) <= MOST_BYTES
            for walk in self._walks:
                assert len(walk.fetched) <= MOST_FILES + LATE_OPENS
                assert len(walk.expected) <= NEAR_FILES + LATE_OPENS
            for key, walk in self._walk_of.items():
                assert walk in self._walks
                assert key in walk.expected or key in walk.fetched

    # --- inside (lock held, but for the last two) ---

    def _go_on(self, walk: _Walk, coming: list[ObjectInfo], dropped: list[Fetched]) -> None:
        """Move a walk on to where `coming` is what follows."""
        skipped = [each for each in walk.fetched.values() if each.info.key < walk.last]
        for place, fetched in enumerate(skipped, 1):
            fetched.passed += 1
            # Who jumps again and again skips more than can come late.
            if fetched.passed > LATE_OPENS or place <= len(skipped) - LATE_OPENS:
                self._pass_over(walk, fetched, dropped)
        for info in coming[: walk.near]:
            if info.key not in walk.expected:
                if len(walk.expected) == NEAR_FILES + LATE_OPENS:
                    self._forget_key(walk, walk.expected.popleft())
                walk.expected.append(info.key)
                self._walk_of.setdefault(info.key, walk)
        wanted = walk.window
        for info in coming:
            if wanted <= 0 or (info.key not in walk.fetched and not self._fetch(walk, info)):
                break
            wanted -= info.key in walk.fetched

    def _fetch(self, walk: _Walk, info: ObjectInfo) -> bool:
        """Fetch a file if it is one of those; False if nothing can be fetched now."""
        size = info.size_bytes
        if size == 0 or self._expectation.head_bytes(info.key, size) < size:
            return True
        if self._walk_of.setdefault(info.key, walk) is not walk:
            return True  # it is another one's
        if self._files >= MOST_FILES_IN_ALL or self._bytes + size > MOST_BYTES:
            return False
        lease = self._budget.lease()
        if not lease.try_take(size):
            return False
        ranges = parts_of(size, self._part_bytes)
        several = self._client.verifies and len(ranges) > 1
        whole = WholeChecksum(self._client, info, self._wait_s) if several else None
        summing = None if whole is None else whole.sums
        fetched = Fetched(info, whole, lease)
        if whole is not None:
            whole.ask()
        for start, stop in ranges:
            part = Part(start, stop, info.etag, ahead=True, summing=summing)
            part.attach(
                self._client.get(
                    info.key, start, stop, part, if_match=info.etag, whole=stop - start == size
                )
            )
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
        """Let a key be nobody's that a walk no longer expects, or no longer has."""
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
            fetched.cancel()

    def _checked(self, fetched: Fetched) -> Fetched | None:
        """Return it; None if a part has failed."""
        error = next((part.error for part in fetched.parts if part.failed), None)
        if error is None:
            return fetched
        self._cancel([fetched])
        if isinstance(error, PreconditionFailed | NotFound):
            raise error
        return None


def _same_version(one: ObjectInfo, other: ObjectInfo) -> bool:
    return one.etag == other.etag and one.size_bytes == other.size_bytes
