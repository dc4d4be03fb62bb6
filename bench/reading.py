"""An open file of the mount: every read is checked, counted and timed."""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.objects import MIB, check
from bench.patterns import PAGE_BYTES, Piece

#: The largest read of all workloads.
BUFFER_BYTES = MIB


@dataclass
class Work:
    """What a workload did. `latencies_s` is empty if single latencies mean nothing."""

    read_bytes: int = 0
    operations: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def __iadd__(self, other: "Work") -> Self:
        self.read_bytes += other.read_bytes
        self.operations += other.operations
        self.latencies_s += other.latencies_s
        return self

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Count the body of the `with` as one operation, and record its duration."""
        start_s = time.perf_counter()
        yield
        self.latencies_s.append(time.perf_counter() - start_s)
        self.operations += 1


class Source:
    """An open file. Its reads are added to `work`, so only one thread may use it."""

    def __init__(self, key: str, descriptor: int, work: Work) -> None:
        self._key = key
        self._descriptor = descriptor
        self._work = work

    def with_work(self, work: Work) -> "Source":
        """Return another object for the same descriptor, for another thread."""
        return Source(self._key, self._descriptor, work)

    def read(self, piece: Piece) -> None:
        """Read one piece and check its ends. Raises WrongBytes."""
        offset, size = piece
        buffer = _buffer()
        count = os.preadv(self._descriptor, [buffer[:size]], offset)
        check(self._key, offset, size, buffer[:count])
        self._work.read_bytes += size

    def read_all(self, order: Iterable[Piece]) -> None:
        """Read pieces in order."""
        for piece in order:
            self.read(piece)

    def time_each(self, order: Iterable[Piece]) -> None:
        """Read pieces in order, each as one operation."""
        for piece in order:
            with self._work.operation():
                self.read(piece)

    def mapped(self) -> "Mapped":
        """Map the file into memory."""
        return Mapped(self._key, mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ), self._work)


class Mapped:
    """A mapped file. Touching a page reads the whole page."""

    def __init__(self, key: str, memory: mmap.mmap, work: Work) -> None:
        self._key = key
        self._memory = memory
        self._work = work

    def touch(self, piece: Piece) -> None:
        """Touch each page of a piece, in order, and check its ends. Raises WrongBytes."""
        offset, size = piece
        memory = self._memory
        for at in range(offset, offset + size, PAGE_BYTES):
            memory[at]
        with memoryview(memory) as view, view[offset : offset + size] as part:
            check(self._key, offset, size, part)
        self._work.read_bytes += size


@contextlib.contextmanager
def opened(folder: Path, key: str, work: Work, *, flags: int = 0) -> Iterator[Source]:
    """Open an object's file."""
    descriptor = os.open(folder / key, os.O_RDONLY | flags)
    try:
        yield Source(key, descriptor, work)
    finally:
        os.close(descriptor)


_of_thread = threading.local()


def _buffer() -> memoryview:
    """Return this thread's buffer. It consists of whole pages, which O_DIRECT requires.

    The mapping is private: a forked process gets a copy of it.
    """
    if not hasattr(_of_thread, "buffer"):
        _of_thread.buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE))
    buffer: memoryview = _of_thread.buffer
    return buffer
