"""The memory of a mount: bounded, whatever programs do, and given back."""

import contextlib
import itertools
import os
import random
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.measure import Process
from tests.conftest import Store
from tests.mount.control_group import ControlGroup, control_group
from tests.mount.mounting import Mount, content, eventually, mounted
from tests.random_bytes import random_bytes
from tests.soak import SEED, rounds

MIB = 1 << 20
FILES = 40
#: One part and the beginning of the next one.
SIZE = 9 * MIB
#: 64 MiB for files, 48 for the CRT's requests in flight, 32 for requests, and the program itself.
#: Parts of all files would be 320 MiB, and as much again in flight.
MAX_BYTES = 320 * MIB


def test_many_files_written_in_turn(store: Store, folder: Path) -> None:
    """A program that writes many files in turn succeeds, and the mount stays small."""
    block = os.urandom(MIB)
    names = [f"{number}" for number in range(FILES)]
    options = ["--memory-target", "64", "--prefix", "memory/", "--debug"]
    with mounted(store, folder, *options) as mount:
        files = [(mount.path / name).open("wb", buffering=0) for name in names]
        for _ in range(SIZE // MIB):
            for number, file in enumerate(files):
                assert file.write(bytes([number]) + block[1:]) == MIB
        for file in files:
            file.close()
        assert Process(mount.pid).peak_rss_bytes() < MAX_BYTES
        if os.geteuid() == 0:  # other users may not look
            targets = map(os.readlink, Path(f"/proc/{mount.pid}/fd").iterdir())
            removed = [target for target in targets if target.endswith("(deleted)")]
            assert [target for target in removed if not target.startswith("/memfd:")] == []
        assert mount.log.count("written data waits in temporary files") == 1
        assert "--memory-target" not in mount.log
    for number, name in list(enumerate(names))[::8]:
        assert content(store, f"memory/{name}") == (bytes([number]) + block[1:]) * (SIZE // MIB)


LIMIT_BYTES = 256 * MIB
READERS = 8
LARGE = {f"large-{number}": random_bytes(number, 48 * MIB) for number in range(4)}
SMALL = {f"small-{number}": random_bytes(number, 20_000) for number in range(500)}
HANDLES = 10_000


@pytest.fixture(scope="module")
def group() -> Iterator[ControlGroup]:
    """The control group of `small`."""
    with control_group("memory", LIMIT_BYTES) as it:
        yield it


@pytest.fixture(scope="module")
def small(
    store: Store, group: ControlGroup, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount in a container of 256 MiB, with files to read."""
    store.put_all({f"container/{name}": data for name, data in (LARGE | SMALL).items()})
    folder = tmp_path_factory.mktemp("small")
    (folder / "cache").mkdir(mode=0o700)
    options = ["--memory-target", "128", "--prefix", "container/", "--allow-overwrite"]
    options += ["--allow-delete", "--cache", str(folder / "cache")]
    with mounted(store, folder, *options, how=group.run) as it:
        yield it


def descriptors(mount: Mount) -> int:
    """Return how many descriptors the mount's process has."""
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


def in_parallel(work: Callable[[str], None], names: list[str]) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(work, names))


def read_direct(folder: Path) -> None:
    """Read large files past the kernel's page cache, each by two programs."""

    def work(name: str) -> None:
        file = os.open(folder / name, os.O_RDONLY | os.O_DIRECT)
        try:
            for offset in range(0, len(LARGE[name]), MIB):
                assert os.pread(file, MIB, offset) == LARGE[name][offset : offset + MIB]
        finally:
            os.close(file)

    in_parallel(work, [*LARGE, *LARGE])


def read_buffered(folder: Path) -> None:
    """Read large files from start to end."""

    def work(name: str) -> None:
        with (folder / name).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, len(LARGE[name]), MIB):
                assert file.read(MIB) == LARGE[name][offset : offset + MIB]

    in_parallel(work, list(LARGE))


def read_at_random(folder: Path) -> None:
    """Read 4 KiB of large files at random."""

    def work(name: str) -> None:
        drawn = random.Random(SEED)
        file = os.open(folder / name, os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(50):
                offset = drawn.randrange(len(LARGE[name]) - 4096) & ~4095
                assert os.pread(file, 4096, offset) == LARGE[name][offset : offset + 4096]
        finally:
            os.close(file)

    in_parallel(work, [*LARGE, *LARGE])


def read_small_files(folder: Path) -> None:
    """List a directory, and read small files."""
    names = [name for name in os.listdir(folder) if name in SMALL]
    assert len(names) == len(SMALL)

    def work(name: str) -> None:
        assert (folder / name).read_bytes() == SMALL[name]

    in_parallel(work, names)


def write(folder: Path) -> None:
    """Write files of several parts, and remove them."""

    def work(name: str) -> None:
        path = folder / f"written-{name}"
        path.write_bytes(LARGE[name][: 20 * MIB])
        path.unlink()

    in_parallel(work, list(LARGE))


WORKLOADS = [read_direct, read_buffered, read_at_random, read_small_files, write]


def test_a_small_container(small: Mount, group: ControlGroup) -> None:
    """Everything works in 256 MiB, and the kernel kills nothing."""
    for workload in WORKLOADS:
        workload(small.path)
        assert group.refusals == 0, workload.__name__
        assert Process(small.pid).peak_rss_bytes() < LIMIT_BYTES, workload.__name__


def test_ten_thousand_handles(small: Mount, group: ControlGroup) -> None:
    """So many files are open and read at once; their memory comes back when they are closed."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < HANDLES + 1000:
        pytest.skip("the system permits fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    before = descriptors(small)
    files: list[int] = []
    try:
        names = itertools.islice(itertools.cycle([*LARGE, *SMALL]), HANDLES)
        for number, name in enumerate(names):
            files.append(os.open(small.path / name, os.O_RDONLY))
            if number % 10 == 0:
                assert os.pread(files[-1], 4096, 4096) == (LARGE | SMALL)[name][4096:8192]
        assert group.refusals == 0
        assert descriptors(small) < before + 100
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for name, data in LARGE.items():
        assert (small.path / name).read_bytes() == data
    assert group.refusals == 0


def test_nothing_grows(small: Mount) -> None:
    """After many rounds of everything the mount has the memory and descriptors of the first ones.

    The allocator keeps some memory, so a few MiB more say nothing.
    """

    process = Process(small.pid)

    def do_all() -> None:
        for workload in WORKLOADS:
            workload(small.path)

    do_all()
    first_bytes, first = process.rss_bytes(), descriptors(small)
    limit_bytes = first_bytes * 1.1 + 4 * MIB
    for _ in rounds(2):
        do_all()
    with contextlib.suppress(AssertionError):
        # What was read ahead is given back when nobody has read for five seconds.
        eventually(lambda: process.rss_bytes() < limit_bytes)
    last_bytes, last = process.rss_bytes(), descriptors(small)
    print(f"{first_bytes >> 20} MiB and {first} descriptors, later {last_bytes >> 20} and {last}")
    assert last_bytes < limit_bytes
    assert last <= first + 8
