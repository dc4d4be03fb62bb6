"""A queue of blocks to be written behind the readers' backs, and the threads that write them.

A reader that offers a block never waits: if the queue is full, the block is dropped.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger(__name__)

#: Readers go first (setpriority(2)).
NICE = 10


class Queued(Protocol):
    """A block with its bytes."""

    @property
    def data(self) -> memoryview | bytes | bytearray:
        """The bytes, which stay as they are while the block is queued."""


T = TypeVar("T", bound=Queued)

#: Of the room for blocks, what may be taken for other bytes (`take_room`): for these to become
#: blocks there must be as much left.
TAKEN_SHARE = 2


class WriteQueue(Generic[T]):
    """Blocks of at most `max_bytes`, and at most `threads` threads, which call `write` for each.

    Thread-safe. Threads start as they are needed. What `write` raises is logged.
    """

    def __init__(
        self, write: Callable[[T], None], *, name: str, threads: int, max_bytes: int
    ) -> None:
        # dependencies
        self._write = write
        # constants
        self._name = name
        self._max_threads = threads
        self._max_bytes = max_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._queue: deque[T] = deque()
        self._held_bytes = 0  # of blocks in the queue, and of those being written
        self._taken_bytes = 0  # by `take_room`
        self._idle = 0  # threads without a block
        self._threads = 0
        self._closed = False

    def offer(self, block: T) -> bool:
        """Queue a block; False if there is no room."""
        size = len(block.data)
        with self._changed:
            if self._closed or self._held_bytes + self._taken_bytes + size > self._max_bytes:
                return False
            self._held_bytes += size
            self._queue.append(block)
            if self._idle < len(self._queue) and self._threads < self._max_threads:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._changed.notify_all()
        return True

    def take_room(self, size_bytes: int) -> bool:
        """Take room for bytes that may become blocks; False if there is none, or too much taken."""
        with self._changed:
            taken_bytes = self._taken_bytes + size_bytes
            if taken_bytes > self._max_bytes // TAKEN_SHARE:
                return False
            if self._held_bytes + taken_bytes > self._max_bytes:
                return False
            self._taken_bytes = taken_bytes
        return True

    def give_room(self, size_bytes: int) -> None:
        """Give room back that was taken."""
        with self._changed:
            self._taken_bytes -= size_bytes

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

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._idle -= 1
                if not self._queue:
                    return
                block = self._queue.popleft()
            try:
                self._write(block)
            except Exception:
                log.exception("a block could not be written to the cache")
            size = len(block.data)
            del block  # before the queue has room: it holds memory
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()
