"""Write blocks to the cache directory behind the readers' backs.

A reader offers the bytes of a part (`Filler.offer`), which only queues them: a view of the memory
in which they arrived. If the queue is full, because the disk is slower than S3, they are dropped.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mountpoint.cache.blocks._files import CachedVersion
from mountpoint.cache.blocks._format import BLOCK_BYTES
from mountpoint.cache.directory import CacheDirectory, allocated_bytes
from mountpoint.cache.eviction import Evictor, NoRoom
from mountpoint.cache.health import Health
from mountpoint.cache.write_queue import WriteQueue
from mountpoint.errors import MountError
from mountpoint.metrics.counters import Counters

THREADS = 2

#: The bytes of an object, in order.
Pieces = Sequence[bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True)
class Block:
    """A block to be written, by its number (`blocks`)."""

    version: CachedVersion
    number: int
    data: memoryview | bytes | bytearray


def blocks_of(pieces: Pieces) -> Iterator[bytes]:
    """Yield the bytes of one block after another. They are copies: views would hold all pieces."""
    views: list[memoryview] = []
    room = BLOCK_BYTES
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            views.append(rest[:room])
            room, rest = room - len(views[-1]), rest[room:]
            if not room:
                yield b"".join(views)
                views, room = [], BLOCK_BYTES
    if views:
        yield b"".join(views)


class Filler:
    """Writes blocks, of which at most `queue_bytes` wait."""

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
        # mutable
        self._counting = threading.Lock()  # the other threads wait for the one that counts
        self._queue: WriteQueue[Block] = WriteQueue(
            self._fill, name="cache writes", threads=THREADS, max_bytes=queue_bytes
        )

    def offer(self, block: Block) -> bool:
        """Queue a block, or drop it if there is no room; return whether it was queued."""
        queued = self._queue.offer(block)
        if not queued:
            self._counters.add("cache_dropped")
        return queued

    def take_room(self, size_bytes: int) -> bool:
        """See WriteQueue. None is taken while the directory cannot be used."""
        return self._health.usable and self._queue.take_room(size_bytes)

    def give_room(self, size_bytes: int) -> None:
        """See WriteQueue."""
        self._queue.give_room(size_bytes)

    def close(self) -> None:
        """See WriteQueue."""
        self._queue.close()

    @property
    def held_bytes(self) -> int:
        """See WriteQueue."""
        return self._queue.held_bytes

    def wait(self, timeout_s: float) -> bool:
        """See WriteQueue."""
        return self._queue.wait(timeout_s)

    def _fill(self, block: Block) -> None:
        """Write a block, if the directory can be used."""
        try:
            if self._health.usable and not block.version.dropped:
                self._write(block)
        except NoRoom as error:
            self._counters.add("cache_dropped")
            self._health.failed(0, why=str(error))
        except OSError as error:
            self._failed(error)

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
