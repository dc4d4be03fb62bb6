"""Which blocks go when room is needed, and when."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mountpoint.cache import eviction
from mountpoint.cache.directory import CachedFile, CacheDirectory, allocated_bytes
from mountpoint.cache.eviction import Evictor, NoRoom
from tests.disks import disk_in_memory
from tests.unit.cache.objects import Cached, content, files_of, sum_of

KIB = 1024
MIB = 1 << 20
#: The bytes of a block of `content(60 * KIB)`: its trailer takes one more page.
ONE = allocated_bytes(60 * KIB + 200)


def fill(directory: CacheDirectory, count: int, *, first: int = 0) -> list[Cached]:
    """Write the blocks of small objects, each used a second after the one before."""
    if not directory.is_counted:
        directory.recount()
    now_s = int(time.time())
    written = []
    for number in range(first, first + count):
        cached = Cached.of(directory, content(60 * KIB), key=b"%d" % number)
        cached.write()
        used_s = now_s - 10_000 + number
        os.utime(cached.path(), (used_s, used_s))
        written.append(cached)
    return written


def left(written: list[Cached]) -> list[int]:
    """Return the numbers of the objects whose blocks are there."""
    return [number for number, each in enumerate(written) if os.path.exists(each.path())]


def test_room(directory: CacheDirectory) -> None:
    """Nothing is removed as long as there is room, to the byte."""
    written = fill(directory, 10)
    assert directory.used_bytes == 10 * ONE
    evictor = Evictor(directory, 11 * ONE)
    assert evictor.reserve(ONE)
    assert left(written) == list(range(10))
    evictor.release(ONE)
    assert evictor.reserve(ONE)
    assert left(written) == list(range(10))
    assert evictor.reserve(1)
    assert len(left(written)) < 10


def test_the_oldest_go_first(directory: CacheDirectory) -> None:
    """In a cache of few blocks, exactly those go that were not used for the longest time."""
    written = fill(directory, 40)
    for number in (0, 7, 21):
        assert written[number].read()[0] == 0  # which sets the time
    evictor = Evictor(directory, 40 * ONE)
    assert evictor.reserve(5 * ONE)
    # One more than necessary.
    assert left(written) == [0, *range(7, 40)]
    assert evictor.evicted == 6
    assert directory.used_bytes == sum_of(directory) == 34 * ONE
    assert evictor.reserve(5 * ONE)
    assert left(written) == [0, 7, *range(13, 40)]


def test_slack(directory: CacheDirectory) -> None:
    """A little more goes than is necessary, so that not each block begins a search."""
    written = fill(directory, 200)
    assert Evictor(directory, 200 * ONE).reserve(ONE)
    assert left(written) == list(range(5, 200))


def test_large_caches(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more blocks than are looked at, about the oldest go."""
    monkeypatch.setattr(eviction, "SAMPLE", 50)
    written = fill(directory, 300)
    evictor = Evictor(directory, 300 * ONE)
    for _ in range(10):
        assert evictor.reserve(4 * ONE)
        evictor.release(4 * ONE)
        monkeypatch.setattr(evictor, "max_bytes", directory.used_bytes)
    gone = sorted(set(range(300)) - set(left(written)))
    assert len(gone) >= 40
    assert sum(gone) / len(gone) < 100
    assert len(left(written[200:])) > 90


def test_one_large_folder(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a large object are in one folder: only some of them are looked at."""
    monkeypatch.setattr(eviction, "SAMPLE", 50)
    directory.recount()
    (folder := Path(directory.path, "mount-s3-cache/v1/a-bucket/ab")).mkdir(parents=True)
    for number in range(500):
        (folder / f"x.{number}").write_bytes(b"x")
    looked: list[CachedFile] = []
    found = directory.files

    def files(of: str | None = None) -> object:
        for each in found(of):
            looked.append(each)
            yield each

    monkeypatch.setattr(directory, "files", files)
    evictor = Evictor(directory, 16 * MIB)
    assert evictor._remove_oldest(4096) == 4096
    assert len(looked) <= 52


def test_blocks_used_meanwhile(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that a reader uses after the look is kept."""
    written = fill(directory, 10)
    evictor = Evictor(directory, 10 * ONE)
    listed = directory.remove_unused

    def remove_unused(file: CachedFile) -> bool:
        if os.path.exists(written[0].path()):
            assert written[0].read()[0] == 0
        return listed(file)

    monkeypatch.setattr(directory, "remove_unused", remove_unused)
    assert evictor.reserve(2 * ONE)
    assert left(written) == [0, *range(4, 10)]


@pytest.mark.parametrize(
    ("ahead_s", "order"),
    [(60, "last"), (100_000, "first")],
    ids=["a server's clock", "a clock that was set back"],
)
def test_times_in_the_future(directory: CacheDirectory, ahead_s: float, order: str) -> None:
    """A file server's clock may be ahead a little; times far ahead say nothing."""
    written = fill(directory, 10)
    ahead = time.time() + ahead_s
    os.utime(written[9].path(), (ahead, ahead))
    assert Evictor(directory, 10 * ONE).reserve(ONE)
    assert left(written) == (list(range(2, 10)) if order == "last" else list(range(1, 9)))


def test_another_process_evicts(directory: CacheDirectory) -> None:
    """While another process removes blocks, there is no room, and nothing is counted."""
    written = fill(directory, 10)
    evictor = Evictor(directory, 10 * ONE)
    with CacheDirectory.open(directory.path).evicting() as alone:
        assert alone
        assert not evictor.reserve(ONE)
    assert left(written) == list(range(10))
    assert evictor.reserve(ONE)


def test_a_total_that_is_too_high(directory: CacheDirectory) -> None:
    """A total that says more than there is, after kills, does not keep the cache from filling."""
    fill(directory, 3)
    usage = Path(directory.path, "mount-s3-cache/v1/usage")
    usage.write_bytes((1 << 40).to_bytes(8, "little"))
    evictor = Evictor(directory, 10 * ONE)
    assert evictor.reserve(ONE)
    assert directory.used_bytes == sum_of(directory)


def test_a_count_each_day(directory: CacheDirectory) -> None:
    """The total is corrected a day after the last count, whatever the clock does."""
    fill(directory, 10)
    path = Path(directory.path, "mount-s3-cache/v1")
    for apart_s in (-100_000, 100_000):
        (path / "usage").write_bytes((directory.used_bytes + 3 * ONE).to_bytes(8, "little"))
        os.utime(path / "counted", (0, time.time() + apart_s))
        assert Evictor(directory, directory.used_bytes).reserve(ONE)
        assert directory.used_bytes == sum_of(directory)
        assert abs(directory.counted_at_s - time.time()) < 60


def test_too_large_a_block(directory: CacheDirectory) -> None:
    """A block that is larger than the limit has no room, and gives nothing back twice."""
    fill(directory, 3)
    evictor = Evictor(directory, 5 * ONE)
    with pytest.raises(NoRoom):
        evictor.reserve(6 * ONE)
    assert evictor.reserve(5 * ONE)
    with pytest.raises(NoRoom):
        evictor.reserve(1)
    evictor.release(5 * ONE)
    assert evictor.reserve(5 * ONE)


def test_threads_of_one_process(directory: CacheDirectory) -> None:
    """Blocks that are being written count: threads together stay within the limit."""
    directory.recount()
    evictor = Evictor(directory, 10 * ONE)
    reserved: list[int] = []
    sums: list[int] = []

    def count() -> None:
        # While no thread writes or removes a block: a look at a folder that changes counts the
        # block that went, and the one that came in its place.
        sums.append(sum_of(directory) + sum(reserved))
        reserved.clear()

    together = threading.Barrier(4, count, timeout=30)

    def write(number: int) -> None:
        for each in range(20):
            cached = Cached.of(directory, content(60 * KIB), key=b"%d %d" % (number, each))
            fits = evictor.reserve(ONE)
            if fits:
                reserved.append(ONE)
            together.wait()
            if fits:
                cached.write()
                evictor.release(ONE)
            together.wait()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 40
    assert 5 * ONE <= max(sums) <= 10 * ONE


@pytest.mark.slow
def test_processes(directory: CacheDirectory) -> None:
    """Several processes stay within the limit, but for what each is writing."""
    limit = 4 * MIB
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.unit.cache.processes",
                directory.path,
                seed,
                "2",
                f"{limit}",
            ]
        )
        for seed in "123"
    ]
    highest = 0
    while any(process.poll() is None for process in processes):
        highest = max(highest, sum_of(directory))
        time.sleep(0.01)
    assert [process.wait() for process in processes] == [0, 0, 0]
    # Two threads in each process write a block of up to 1 MiB and its trailer.
    assert limit / 2 < highest <= limit + 6 * (MIB + 8 * KIB)
    assert all(directory.check(file) is None for file in files_of(directory))
    assert directory.used_bytes >= sum_of(directory)
    evictor = Evictor(directory, limit)
    assert evictor.reserve(MIB)
    assert sum_of(directory) <= limit


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_share_of_the_disk_stays_free(tmp_path: Path) -> None:
    """Without a limit a twentieth of the disk stays free, also if others fill it."""
    with disk_in_memory(tmp_path, "10m"):
        directory = CacheDirectory.open(str(tmp_path))
        evictor = Evictor(directory, None)
        for number in range(300):
            cached = Cached.of(directory, content(60 * KIB), key=b"%d" % number)
            assert evictor.reserve(ONE), number
            cached.write()
            evictor.release(ONE)
            assert free(tmp_path) >= -8192  # `usage` and a directory
        assert evictor.evicted > 100
        (tmp_path / "theirs").write_bytes(bytes(free(tmp_path)))
        assert evictor.reserve(5 * ONE)
        assert free(tmp_path) >= 5 * ONE
        evictor.release(5 * ONE)
        (tmp_path / "more").write_bytes(bytes(free(tmp_path) + 300 * KIB))
        for file in files_of(directory):
            directory.remove(file)
        (tmp_path / "most").write_bytes(bytes(free(tmp_path) + 300 * KIB))
        with pytest.raises(NoRoom):
            evictor.reserve(ONE)


def free(path: Path) -> int:
    """Return the free bytes of a disk but for a twentieth."""
    found = os.statvfs(path)
    return (found.f_bavail - found.f_blocks // 20) * found.f_frsize
