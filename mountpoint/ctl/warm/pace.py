"""Read no faster than the mount can write to a cache: it drops what its queue cannot take."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mountpoint.ctl.warm.state import Queue

MIB = 1 << 20
#: A part of 8 MiB is queued when its first byte is read, so half of the queue is left for those.
USED_SHARE = 2
MAX_CHUNK_BYTES = 8 * MIB
#: Chunks that may be in flight, or queued, if all are of full size.
CHUNKS = 4
#: Seconds until a full queue is looked at again.
LOOK_S = 0.02


class Pace:
    """Admits reads while the mount's queue has room. Thread-safe.

    What was read counts as queued until `queue` has been asked again. A queue for nothing, as a
    mount without that cache has it, admits all.
    """

    def __init__(self, queue: Callable[[], Queue], stopping: threading.Event) -> None:
        # dependencies
        self._queue = queue
        self._stopping = stopping
        # constants
        self._room_bytes = -(-queue().limit_bytes // USED_SHARE)
        share = self._room_bytes // CHUNKS
        self.chunk_bytes = min(max(share - share % MIB, MIB), MAX_CHUNK_BYTES)
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._reading_bytes = 0
        self._queued_bytes = 0
        self._looking = False  # a thread asks for the queue

    @contextmanager
    def reading(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is room for a read, which takes place inside. Raises MountError."""
        with self._changed:
            while not (self._stopping.is_set() or self._has_room(size_bytes)):
                if self._queued_bytes and not self._looking:
                    self._look()
                if not self._has_room(size_bytes):
                    self._changed.wait(LOOK_S)
            self._reading_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._reading_bytes -= size_bytes
                self._queued_bytes += size_bytes
                self._changed.notify()

    def _has_room(self, size_bytes: int) -> bool:
        held_bytes = self._reading_bytes + self._queued_bytes
        return not (held_bytes and self._room_bytes) or held_bytes + size_bytes <= self._room_bytes

    def _look(self) -> None:
        """Ask for the queue (lock held, but not meanwhile)."""
        self._looking, before = True, self._queued_bytes
        self._changed.release()
        try:
            queued_bytes = self._queue().queued_bytes
        finally:
            self._changed.acquire()
            self._looking = False
        self._queued_bytes += queued_bytes - before
        self._changed.notify_all()
