"""Read ranges from the cache into parts; if that fails, request them from S3."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._files import BAD, FOUND, MISSING, CachedVersion
from mountpoint.cache.health import Health
from mountpoint.s3.client import Transfer

log = structlog.get_logger(__name__)

#: Threads that read. On a local disk four fill the bandwidth.
THREADS = 4

T = TypeVar("T")


class PartRead:
    """A part that a cache is to deliver; a `Transfer`.

    `instead` requests it from S3; it is called at most once.
    """

    def __init__(self, part: Part, instead: Callable[[], Transfer]) -> None:
        # dependencies
        self._instead = instead
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._part: Part | None = part  # until it has ended, or S3 was asked

    def give_up(self) -> None:
        """Request the part from S3, unless that was done or the part has ended."""
        part = self._take()
        if part is None:
            return
        self._stop()
        if part.ready or part.failed:
            return
        part.cached = False
        try:
            part.attach(self._instead())
        except Exception as error:  # the reader, which may be another thread, learns of it
            part.fail(error)

    def cancel(self) -> None:
        """Let nothing follow. The part has ended."""
        self._take()
        self._stop()

    def _stop(self) -> None:
        """Stop what would deliver the part."""

    def _take(self) -> Part | None:
        with self._lock:
            part, self._part = self._part, None
        return part


class CacheRead(PartRead):
    """A part that is read from disk."""

    def __init__(
        self, health: Health, version: CachedVersion, part: Part, instead: Callable[[], Transfer]
    ) -> None:
        super().__init__(part, instead)
        # dependencies
        self._health = health
        self._version = version

    def run(self) -> None:
        """Read the range; called by one thread."""
        part = self._part
        if part is None:
            return
        self._health.begin(self)
        try:
            result = self._version.read(part.start, part.stop, part)
        finally:
            self._health.end(self)
        if result == FOUND:
            if self._take() is not None:
                part.settled(None)
            self._health.succeeded()
            return
        if result == BAD:
            log.warning("a damaged block was removed from the cache", start=part.start)
        elif result != MISSING:
            self._health.failed(result)
        self.give_up()


class Lookup(Generic[T]):
    """A question to the disk that a thread of the cache asks, because the disk may hang."""

    def __init__(self, ask: Callable[[], T]) -> None:
        # dependencies
        self._ask = ask
        # mutable
        self._answered = threading.Event()
        self._answer: T | None = None

    def run(self) -> None:
        """Ask; called by one thread."""
        try:
            self._answer = self._ask()
        finally:
            self._answered.set()

    def give_up(self) -> None:
        """Let the answer be None."""
        self._answered.set()

    def answer(self, within_s: float) -> T | None:
        """Wait for the answer; None if there is none in time."""
        self._answered.wait(within_s)
        return self._answer


class Readers:
    """Threads that run reads and lookups, in the order in which they were added."""

    def __init__(self) -> None:
        # mutable
        self._queue: queue.SimpleQueue[CacheRead | Lookup[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def add(self, read: CacheRead | Lookup[Any]) -> None:
        """Run a read or lookup soon."""
        with self._lock:
            if len(self._threads) < THREADS:
                thread = threading.Thread(target=self._run, name="cache reads", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(read)

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._queue.put(None)

    def _run(self) -> None:
        while (read := self._queue.get()) is not None:
            try:
                read.run()
            except Exception:
                log.exception("a range could not be read from the cache")
                read.give_up()
            del read
