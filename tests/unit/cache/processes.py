"""Processes of their own that use a cache directory."""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.eviction import Evictor
from mountpoint.cache.filling import Block, Filler
from mountpoint.cache.health import Health
from mountpoint.metrics.counters import Counters
from tests.unit.cache.objects import Cached, content

MIB = 1 << 20


def filler(directory: CacheDirectory, max_bytes: int | None, queue_bytes: int = 8 * MIB) -> Filler:
    """Return the threads that write blocks, within a limit."""
    health = Health(directory.path, "writing")
    evictor = Evictor(directory, max_bytes)
    return Filler(directory, evictor, health, Counters(), queue_bytes=queue_bytes)


def objects(directory: CacheDirectory, count: int = 40) -> list[Cached]:
    """Return object versions, of small and of large sizes."""
    sizes = (3000, 70_000, MIB + 5000, 200_000)
    return [
        Cached.of(directory, content(sizes[number % 4], number), key=b"%d" % number)
        for number in range(count)
    ]


def work(path: str, seed: int, seconds: float, max_bytes: int) -> None:
    """Write, read, and remove blocks; fail if bytes are wrong."""
    directory = CacheDirectory.open(path)
    drawn = random.Random(seed)
    writes = filler(directory, max_bytes)
    everything = objects(directory)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        cached = drawn.choice(everything)
        number = drawn.randrange(cached.blocks)
        writes.offer(Block(cached.version, number, cached.block(number)))
        cached = drawn.choice(everything)
        start, stop = sorted(drawn.sample(range(len(cached.data) + 1), 2))
        _, found = cached.read(start, stop)
        assert found is None or found == cached.data[start:stop]
        if drawn.random() < 0.02:
            assert writes.wait(60)
    assert writes.wait(60)
    writes.close()
    assert directory.store.counts()[3] == 0, "a damaged block"


def churn(path: str, seed: int, max_bytes: int, begun: Callable[[], object]) -> None:
    """Publish and evict in a loop, until someone kills this process."""
    directory = CacheDirectory.open(path)
    drawn = random.Random(seed)
    everything = objects(directory)
    writes = filler(directory, max_bytes)
    begun()
    while True:
        cached = drawn.choice(everything)
        number = drawn.randrange(cached.blocks)
        if drawn.random() < 0.3:
            cached.version.remove(number)
        writes.offer(Block(cached.version, number, cached.block(number)))
        if drawn.random() < 0.2:
            writes.wait(60)


if __name__ == "__main__":
    work(str(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
