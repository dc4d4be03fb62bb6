"""A mount whose cache fails in every way: its reads are right, and go on."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.cache.directory import CacheDirectory
from tests.conftest import Store
from tests.disks import disk_in_memory
from tests.hanging_disk import hanging_disk
from tests.mount.caches import blocks, forget_pages
from tests.mount.mounting import eventually, mounted

pytestmark = pytest.mark.mount

MIB = 1 << 20
FILES = 60
BODY = random.Random(23).randbytes(3 * MIB)
#: Both data planes, and both ways to the kernel.
WAYS = [["--no-native"], ["--no-channel"]]


def body_of(number: int) -> bytes:
    """Return the bytes of a file: most are small."""
    return BODY[number * 1000 :] if number % 10 == 0 else BODY[number * 1000 :][:40_000]


@pytest.fixture(scope="module", autouse=True)
def _objects(store: Store) -> None:
    for number in range(FILES):
        store.put(f"faults/{number:03}", body_of(number))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 50 MB in memory."""
    with disk_in_memory(tmp_path / "disk", "50m") as path:
        yield path


def options(cache: Path, *others: str) -> list[str]:
    return ["--prefix", "faults/", "--debug", "--cache", str(cache), *others]


def read_all(path: Path, seed: int) -> None:
    """Read all files, in some order; they must be right."""
    numbers = list(range(FILES))
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        file = path / f"{number:03}"
        assert file.read_bytes() == body_of(number), number
        forget_pages(file)


def check(cache: Path) -> None:
    """Check that all blocks are right."""
    directory = CacheDirectory.open(str(cache))
    found = [directory.check(file) for file in directory.files()]
    assert found == [None] * len(found)


@pytest.mark.parametrize("way", WAYS, ids=["no native", "no channel"])
def test_it_is_removed(store: Store, folder: Path, way: list[str]) -> None:
    """Someone removes the directory while it is used: one warning, and right bytes."""
    cache = folder / "cache"
    with mounted(store, folder, *options(cache, *way)) as mount:
        read_all(mount.path, 1)
        eventually(lambda: len(blocks(cache)) >= FILES)
        eventually(lambda: _removed(cache))  # the last blocks may just be written
        read_all(mount.path, 2)
        read_all(mount.path, 3)
        assert mount.log.count("the cache is not used") == 1
        assert "No such file or directory" in mount.log


def _removed(path: Path) -> bool:
    """Remove a directory; return whether nobody has written to it meanwhile."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
    return not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_small_disk_that_others_fill(store: Store, folder: Path, small_disk: Path) -> None:
    """A share of a small disk stays free; when others fill it, reads go on."""
    with mounted(store, folder, *options(small_disk)) as mount:
        read_all(mount.path, 1)
        free = os.statvfs(small_disk).f_bavail * 4096
        with contextlib.suppress(OSError):  # the cache may still be writing
            (small_disk / "theirs").write_bytes(bytes(free - 4096))
        for seed in range(3):
            read_all(mount.path, seed)
    check(small_disk)


def test_kill(store: Store, folder: Path) -> None:
    """After `kill -9` under load a new mount reads right bytes; no block is damaged."""
    cache = folder / "cache"
    for each in range(2):
        (inner := folder / f"{each}").mkdir()
        with mounted(
            store, inner, "--no-keep-alive", *options(cache, "--max-cache-size", "16")
        ) as mount:
            threads = [
                threading.Thread(target=_read_until_it_ends, args=(mount.path, seed))
                for seed in range(4)
            ]
            for thread in threads:
                thread.start()
            eventually(lambda: len(blocks(cache)) > 5)
            os.kill(mount.pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
        check(cache)
    (inner := folder / "last").mkdir()
    with mounted(store, inner, *options(cache)) as mount:
        read_all(mount.path, 1)
        assert mount.counters()["cache_bad_blocks"] == 0


def _read_until_it_ends(path: Path, seed: int) -> None:
    try:
        while True:
            read_all(path, seed)
    except OSError:
        pass


def test_many_readers_and_a_small_limit(store: Store, folder: Path) -> None:
    """Threads read many files with room for a few of them."""
    cache = folder / "cache"
    wrong: list[BaseException] = []

    def read(path: Path, seed: int) -> None:
        try:
            read_all(path, seed)
        except BaseException as error:
            wrong.append(error)

    with mounted(store, folder, *options(cache, "--max-cache-size", "16")) as mount:
        threads = [threading.Thread(target=read, args=(mount.path, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert mount.counters()["cache_bad_blocks"] == 0
    check(cache)
    assert sum(path.stat().st_blocks * 512 for path in blocks(cache)) <= 16 * MIB


def test_a_quota(store: Store, folder: Path, tmp_path: Path) -> None:
    """Where the user may store no more, reads go on, and one line of the log says so."""
    with (
        hanging_disk(tmp_path, 2 * MIB) as disk,
        mounted(store, folder, *options(tmp_path / "disk", "--metadata-ttl", "300")) as mount,
    ):
        for seed in range(3):
            read_all(mount.path, seed)
        assert mount.log.count("the cache is not used") == 1
        assert "Disk quota exceeded" in mount.log
        eventually(lambda: len(blocks(disk.path)) > 0)
        check(disk.path)


def test_a_disk_that_hangs(store: Store, folder: Path, tmp_path: Path) -> None:
    """Reads of all kinds go on from S3 within seconds, and use the disk again when it answers."""
    cold = options(tmp_path / "disk", "--metadata-ttl", "300")
    with hanging_disk(tmp_path) as disk:
        with mounted(store, folder, *cold) as mount:
            read_all(mount.path, 1)
            eventually(lambda: len(blocks(disk.path)) >= FILES)
        with mounted(store, folder, *cold) as mount:
            read_all(mount.path, 2)
            gets = mount.counters()["gets"]
            assert gets < FILES // 2
            disk.hang()
            try:
                began_s = time.monotonic()
                for number in range(FILES):
                    forget_pages(mount.path / f"{number:03}")
                read_all(mount.path, 3)
                with (mount.path / "000").open("rb", buffering=0) as file:
                    forget_pages(mount.path / "000")
                    for offset in range(0, 2 * MIB, 300_000):
                        assert os.pread(file.fileno(), 4096, offset) == BODY[offset : offset + 4096]
                assert time.monotonic() - began_s < 20
                assert "is taking too long" in mount.log
            finally:
                disk.go_on()
            assert mount.counters()["gets"] > gets


def test_the_end_with_a_disk_that_hangs(store: Store, folder: Path, tmp_path: Path) -> None:
    """The mount is unmounted at once; its process ends when the disk lets go of it."""
    with (
        hanging_disk(tmp_path) as disk,
        mounted(store, folder, *options(tmp_path / "disk")) as mount,
    ):
        read_all(mount.path, 1)
        disk.hang()
        try:
            (mount.path / "059").read_bytes()
            os.kill(mount.pid, signal.SIGTERM)
            eventually(lambda: not mount.is_mounted())
        finally:
            disk.go_on()
        eventually(mount.has_ended)
