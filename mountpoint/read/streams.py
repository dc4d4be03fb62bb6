"""All open streams of a mount: their common parts, and memory that idle streams give back.

An idle stream keeps the bytes fetched ahead for a while, because the program may be computing.
After `IDLE_SWEEPS` sweeps they are cancelled and dropped; almost at once if other streams are
refused memory. When nothing is left, the memory goes back to the system.
"""

from collections.abc import Callable
from typing import NamedTuple

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.shared.cache import SharedCache
from mountpoint.config import ReadConfig
from mountpoint.metrics.counters import Counters
from mountpoint.native import _blocks
from mountpoint.native._lane import LaneSource
from mountpoint.read.history import ReadHistory
from mountpoint.read.prefetch import FilePrefetcher, Following
from mountpoint.read.stream import SMALL_BYTES, ReadStream
from mountpoint.s3.client import ByteSource, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.memory import give_back
from mountpoint.transfer.memory_budget import Budget
from mountpoint.transfer.stats import TransferStats

#: A stream is idle after this many sweeps without a read.
IDLE_SWEEPS = 5
#: The same, if other streams were refused memory.
PRESSED_SWEEPS = 1
#: So many open files have some MiB of memory, which is worth returning when they are closed.
MANY_OPEN = 1000


class WholeSource(NamedTuple):
    """A source of all bytes of an object, and how long it may take: 0 if it fetches nothing."""

    source: LaneSource
    late_s: float = 0.0


class Streams:
    """Creates the streams of a mount. Thread-safe."""

    def __init__(
        self,
        source: ByteSource,
        config: ReadConfig,
        retry_policy: RetryPolicy,
        counters: Counters | None = None,
        cache: BlockCache | None = None,
        shared: SharedCache | None = None,
    ) -> None:
        # dependencies
        self._source = source
        self._cache = cache
        self._shared = shared
        self._config = config
        self._retry_policy = retry_policy
        self.budget = Budget(
            config.memory_bytes,
            part_bytes=config.part_size_bytes,
            loops=config.event_loops,
            max_ahead_bytes=config.max_ahead_bytes,
        )
        # One reader takes what two event loops bring.
        max_bytes = config.max_ahead_bytes * min(config.event_loops, 2) // config.event_loops
        self._counters = counters = counters or Counters()
        self._stats = TransferStats(
            self.budget,
            counters,
            part_bytes=config.part_size_bytes,
            max_bytes=max_bytes,
        )
        self._history = ReadHistory()
        self.prefetcher = FilePrefetcher(
            source, config, self.budget, counters, self._history, retry_policy, cache, shared
        )
        # mutable
        self._open: set[ReadStream] = set()  # each change is one step of the interpreter
        self._refusals = 0  # of the budget, at the last look
        self._empty_sweeps = 0
        self._most_open = 0

    def stream(self, info: ObjectInfo, opener: int = 0) -> ReadStream:
        """Return a stream of this version of an object, which must not be empty.

        `opener` is the thread that opens it; 0 if that is not known.
        """

        def begin(stream: ReadStream) -> int | None:
            reach_bytes = self._history.reach_bytes(stream.key, opener)
            self._history.used(stream, opener)
            return reach_bytes

        def close(stream: ReadStream) -> None:
            self._history.left(stream, opener)
            self._closed(stream)

        cached = None if self._cache is None else self._cache.object(info)
        initial_bytes = self._history.initial_bytes(info.key, info.size_bytes, opener)
        if cached is not None:
            initial_bytes = cached.widened(0, initial_bytes)[1]
        shares = self._shared is not None and self._shared.wants(info)
        if shares:
            initial_bytes = info.size_bytes
        stream = ReadStream(
            self._source,
            info,
            initial_bytes=initial_bytes,
            looked_at=self._history.is_looked_at(info.key),
            cached=cached,
            shared=self._shared,
            shares=shares,
            config=self._config,
            budget=self.budget,
            stats=self._stats,
            retry_policy=self._retry_policy,
            on_begin=begin,
            on_close=close,
        )
        self._open.add(stream)
        self._history.used(stream, opener)
        return stream

    def unasked(
        self, info: ObjectInfo, following: Following, *, paged: bool, opener: int = 0
    ) -> ReadStream | None:
        """Return a stream of a version that is believed to be the newest; None if it is empty.

        `following` returns the files that may be opened next; some are fetched ahead. `paged` means
        that the kernel may have this file's bytes. Raises PreconditionFailed or NotFound if this
        file was fetched ahead and its version does not exist.
        """
        fetched = self.prefetcher.opened(info, following)
        if info.size_bytes == 0:
            return None
        stream = self.stream(info, opener)
        if fetched is not None:
            stream.adopt(fetched.parts, fetched.whole)
        else:
            stream.open_unasked(paged=paged)
        return stream

    def count_also(self, take_bytes: Callable[[], int]) -> None:
        """Count bytes read without a stream: `take_bytes` returns those since its last call."""
        self._counters.catch_up.append(lambda: self._stats.read(take_bytes()))

    def whole_sources(self, infos: list[ObjectInfo]) -> list[WholeSource | None]:
        """Return a source of all bytes for each small object that the data cache has.

        None also for one of which programs are likely to read little.
        """
        if self._cache is None:
            return [None] * len(infos)
        sources = self._cache.whole_sources(infos)
        return [
            None if source is None or self._history.is_looked_at(info.key) else WholeSource(source)
            for info, source in zip(infos, sources, strict=True)
        ]

    def small_source(self, info: ObjectInfo) -> WholeSource | None:
        """Return a source of all bytes of a small object in S3.

        None if the object is not small, a cache may have it, programs read little of such files, or
        it is not known how long such requests take.
        """
        size_bytes = info.size_bytes
        if self._cache is not None or not 0 < size_bytes <= SMALL_BYTES:
            return None
        if self._shared is not None and self._shared.wants(info):
            return None
        if not self._history.reads_whole(info.key, size_bytes):
            return None
        late_s = self._stats.late_s(size_bytes)
        if late_s > self._config.stall_s:  # not known yet
            return None
        source = self._source.lane_source(info)
        return None if source is None else WholeSource(source, late_s)

    def sweep(self) -> None:
        """Make idle streams give back their memory; called once a second."""
        refusals = self.budget.refusals
        pressed = refusals != self._refusals
        self._refusals = refusals
        for stream in [each for each in self._open.copy() if each.held_bytes]:
            stream.rest(PRESSED_SWEEPS if pressed else IDLE_SWEEPS)
        self.prefetcher.sweep(PRESSED_SWEEPS if pressed else IDLE_SWEEPS)
        self._empty_sweeps = 0 if self.budget.held_bytes else self._empty_sweeps + 1
        if self._empty_sweeps == IDLE_SWEEPS or self._many_closed():
            _blocks.give_back()
            give_back()

    def _many_closed(self) -> bool:
        """Whether most of many open files have been closed since this was last true."""
        count = len(self._open)
        self._most_open = max(self._most_open, count)
        if self._most_open < MANY_OPEN or count > self._most_open // 2:
            return False
        self._most_open = count
        return True

    def end(self) -> None:
        """End all reads: current and later ones fail with Interrupted."""
        self._retry_policy.stopping.set()
        for stream in self._open.copy():
            stream.close()

    def _closed(self, stream: ReadStream) -> None:
        self._open.discard(stream)
        if stream.initial_fetched:
            self._history.closed(
                stream.key,
                stream.size_bytes,
                stream.read_bytes,
                elsewhere=not stream.initial_read,
                exact=stream.exact,
            )
