"""A process that is killed at a random moment leaves a cache that is right."""

import os
import random
import select
import signal
import time
from pathlib import Path

import pytest

from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.eviction import Evictor
from tests.soak import count_cases, seeds
from tests.unit.cache.objects import files_of, sum_of
from tests.unit.cache.processes import churn, objects

MIB = 1 << 20
LIMIT = 6 * MIB
#: What the threads of one process may be writing.
IN_FLIGHT = 3 * MIB


def start(path: str, seed: int) -> int:
    """Start a process that works on the cache, and wait until it does; return its id.

    A fork is enough: this process has no threads of the cache.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            churn(path, seed, LIMIT, lambda: os.write(writer, b"begun"))
        finally:
            os._exit(1)
    os.close(writer)
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 5) == b"begun"
    os.close(reader)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_kills(tmp_path: Path, seed: int) -> None:
    """After each kill all blocks are right, the total is not too low, and others go on."""
    drawn = random.Random(seed)
    path = str(tmp_path / "cache")
    directory = CacheDirectory.open(path)
    expected = {each.identity: each for each in objects(directory)}
    seen = 0
    for each in range(40):  # a soak has more seeds
        count_cases(1)
        pids = [start(path, drawn.randrange(1 << 30)) for _ in range(drawn.choice([1, 1, 2]))]
        time.sleep(drawn.choice([0.001, 0.01, 0.1]) * drawn.random())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL, f"round {each} of seed {seed}"
        problems = [directory.check(file) for file in files_of(directory)]
        assert problems == [None] * len(problems), f"round {each} of seed {seed}"
        total = sum_of(directory)
        assert not directory.is_counted or directory.used_bytes >= total, f"round {each}"
        assert total <= LIMIT + len(pids) * IN_FLIGHT
        seen += len(problems)
        for file in files_of(directory)[:3]:
            identity = directory.identity(file)
            assert identity is not None
            cached = expected[identity]
            result, data = cached.read()
            assert result != -2
            assert data in (None, cached.data)
    assert seen
    # A new process makes room, and the total is right again.
    evictor = Evictor(CacheDirectory.open(path), MIB)
    for _ in range(3):
        assert evictor.reserve(MIB // 2)
        evictor.release(MIB // 2)
    directory.remove_abandoned(0)
    assert os.listdir(Path(path, "mount-s3-cache/v1/tmp")) == []
    assert sum_of(directory) <= directory.used_bytes <= MIB // 2
