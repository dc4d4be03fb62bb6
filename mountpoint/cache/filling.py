"""Write blocks to the cache behind the readers' backs.

A reader offers the bytes of a part (`Filler.offer`), which only queues them: a view of the memory
in which they arrived. Threads write them. If the queue is full, because the disk is slower than S3,
blocks are dropped: a reader never waits for the cache.
"""

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass

import structlog

from mountpoint.cache._files import CachedVersion
from mountpoint.cache.directory import CacheDirectory, allocated_bytes
from mountpoint.cache.eviction import Evictor, NoRoom
from mountpoint.cache.health import Health
from mountpoint.errors import MountError
from mountpoint.metrics.counters import Counters

log = structlog.get_logger(__name__)

THREADS = 2
#: Readers go first (setpriority(2)).
NICE = 10


@dataclass(frozen=True, slots=True)
class Block:
    """A block to be written, by its number (`_files`)."""

    version: CachedVersion
    number: int
    data: memoryview | bytes | bytearray


class Filler:
    """The queue of blocks to be written, of at most `queue_bytes`, and the threads that write."""

    def __init__(
        self,
        directory: CacheDirectory,
        evictor: Evictor,
        health: Health,
        counters: Counters,
        *,
        queue_bytes: int,
    ) -> None:
        # dependencies
        self._directory = directory
        self._evictor = evictor
        self._health = health
        self._counters = counters
        # constants
        self._max_bytes = queue_bytes
        # mutable
        self._counting = threading.Lock()  # the other threads wait for the one that counts
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._queue: deque[Block] = deque()
        self._held_bytes = 0  # of blocks in the queue, and of those being written
        self._threads: list[threading.Thread] = []
        self._closed = False

    def offer(self, block: Block) -> None:
        """Queue a block, or drop it if there is no room."""
        size = len(block.data)
        with self._changed:
            queued = self._held_bytes + size <= self._max_bytes and not self._closed
            if queued:
                self._held_bytes += size
                self._queue.append(block)
                if len(self._threads) < THREADS:
                    self._start()
                self._changed.notify()
        if not queued:
            self._counters.add("cache_dropped")

    def close(self) -> None:
        """Drop what is queued, and end the threads, which may be writing one more block each."""
        with self._changed:
            self._closed = True
            self._held_bytes -= sum(len(block.data) for block in self._queue)
            self._queue.clear()
            self._changed.notify_all()

    @property
    def held_bytes(self) -> int:
        """The bytes of blocks in the queue, and of those being written."""
        return self._held_bytes

    def wait(self, timeout_s: float) -> bool:
        """Wait until the queue is empty; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held_bytes, timeout_s)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="cache writes", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                block = self._queue.popleft()
            try:
                if self._health.usable and not block.version.dropped:
                    self._write(block)
            except NoRoom as error:
                self._counters.add("cache_dropped")
                self._health.failed(0, why=str(error))
            except OSError as error:
                self._failed(error)
            except Exception:
                log.exception("a block could not be written to the cache")
            size = len(block.data)
            del block  # before the queue has room: it holds memory
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()

    def _write(self, block: Block) -> None:
        """Write a block, unless it is there. Raises OSError."""
        version = block.version
        if version.holds(block.number):
            return
        size_bytes = allocated_bytes(version.file_bytes(block.number))
        if not (self._counted() and self._evictor.reserve(size_bytes)):
            self._counters.add("cache_dropped")
            return
        try:
            temporary = self._directory.temporary()
            problem = version.write(block.number, block.data, temporary)
            if not problem:
                problem = self._directory.publish(version, block.number, temporary, size_bytes)
            if problem:
                raise OSError(problem, os.strerror(problem))
        except FileExistsError:  # another process was faster
            return
        finally:
            self._evictor.release(size_bytes)
        if version.dropped:  # meanwhile
            version.remove(block.number)
        self._counters.add("cache_bytes_written", len(block.data))
        self._health.succeeded()

    def _counted(self) -> bool:
        """Whether the total is known, after counting if that is necessary. Raises OSError."""
        if self._directory.is_counted:
            return True
        with self._counting, self._directory.evicting() as alone:
            if alone and not self._directory.is_counted:
                self._directory.recount()
        return self._directory.is_counted

    def _failed(self, error: OSError) -> None:
        self._health.failed(error.errno or 0)
        if isinstance(error, FileNotFoundError):
            with contextlib.suppress(MountError, OSError):
                self._directory.reopen()
