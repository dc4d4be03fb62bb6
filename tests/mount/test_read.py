"""Reads through a real mount from a real server: every byte, in every way."""

import concurrent.futures
import errno
import hashlib
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, errno_of

pytestmark = pytest.mark.mount

PART = 8 << 20
SIZES = [0, 1, 4095, 4096, 4097, 128 << 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1]
SIZES += [PART - 1, PART, PART + 1, 3 * PART + 12345, 100 << 20]


def content(size: int) -> bytes:
    """Return bytes that differ from page to page."""
    return random.Random(size).randbytes(size)


@pytest.fixture(scope="module")
def files(store: Store) -> dict[int, bytes]:
    """Objects `read/SIZE`."""
    bodies = {size: content(size) for size in SIZES}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: store.put(f"read/{size}", bodies[size]), SIZES))
    return bodies


def path_of(mount: Mount, size: int) -> Path:
    return mount.path / "read" / str(size)


@pytest.mark.parametrize("size", SIZES)
def test_whole_file(mount: Mount, files: dict[int, bytes], size: int) -> None:
    """A file of any size has the bytes that were put."""
    path = path_of(mount, size)
    assert path.stat().st_size == size
    assert path.read_bytes() == files[size]


@pytest.mark.parametrize("size", SIZES)
def test_boundaries(mount: Mount, files: dict[int, bytes], size: int) -> None:
    """Reads at, around and across every boundary give the right bytes, also past the end."""
    edges = {
        0,
        1,
        4095,
        4096,
        1 << 20,
        PART - 1,
        PART,
        PART + 1,
        2 * PART,
        size - 1,
        size,
        size + 1,
    }
    with open(path_of(mount, size), "rb", buffering=0) as file:
        for offset in sorted(edge for edge in edges if 0 <= edge <= size + 1):
            for length in (1, 2, 4096, 65537):
                assert os.pread(file.fileno(), length, offset) == files[size][offset:][:length]


def test_random_offsets(mount: Mount, files: dict[int, bytes]) -> None:
    """Random reads of random lengths give the right bytes."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    source, size = random.Random(seed), 100 << 20
    with open(path_of(mount, size), "rb", buffering=0) as file:
        for _ in range(300):
            offset, length = source.randrange(size), source.choice([1, 4096, 100_000, 1 << 20])
            assert os.pread(file.fileno(), length, offset) == files[size][offset : offset + length]


def test_sixteen_readers(mount: Mount, files: dict[int, bytes]) -> None:
    """Sixteen programs that read the same and different files in parallel get the right bytes."""
    sizes = [3 * PART + 12345, 100 << 20, PART + 1, 1 << 20] * 4
    programs = [
        subprocess.Popen(["sha256sum", path_of(mount, size)], stdout=subprocess.PIPE, text=True)
        for size in sizes
    ]
    for size, program in zip(sizes, programs, strict=True):
        output = program.communicate(timeout=100)[0]
        assert output.split()[0] == hashlib.sha256(files[size]).hexdigest()


def test_threads_on_one_descriptor(mount: Mount, files: dict[int, bytes]) -> None:
    """Threads that read different regions through one descriptor get the right bytes."""
    size = 100 << 20
    with open(path_of(mount, size), "rb", buffering=0) as file:

        def region(start: int) -> bool:
            stop = start + (5 << 20)
            got = b"".join(
                os.pread(file.fileno(), 1 << 18, at) for at in range(start, stop, 1 << 18)
            )
            return got == files[size][start:stop]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(region, range(0, size - (5 << 20), 9 << 20)))


def test_mmap(mount: Mount, files: dict[int, bytes]) -> None:
    """A mapped file has the right bytes, in order and at random."""
    size = 3 * PART + 12345
    with (
        open(path_of(mount, size), "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view,
    ):
        assert view[size - 10 :] == files[size][-10:]
        assert view[PART - 5 : PART + 5] == files[size][PART - 5 : PART + 5]
        assert hashlib.sha256(view).digest() == hashlib.sha256(files[size]).digest()


def test_a_writable_mapping(mount: Mount, files: dict[int, bytes]) -> None:
    """A file opened for both but only read cannot be mapped for shared writing."""
    size = 3 * PART + 12345
    path = path_of(mount, size)
    with open(path, "rb") as reader, open(path, "r+b") as file:
        assert errno_of(lambda: mmap.mmap(file.fileno(), 0)) == errno.ENODEV
        assert file.read() == files[size]
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        with private:
            private[:4] = b"mine"
            assert private[4:] == files[size][4:]
        assert reader.read() == files[size]
    assert path.read_bytes() == files[size]


@pytest.mark.parametrize("size", [4097, PART + 1, 3 * PART + 12345])
def test_direct(mount: Mount, files: dict[int, bytes], size: int) -> None:
    """O_DIRECT reads, which go past the page cache, give the right bytes up to the end."""
    buffer = mmap.mmap(-1, 1 << 20)
    fd = os.open(path_of(mount, size), os.O_RDONLY | os.O_DIRECT)
    got = hashlib.sha256()
    try:
        while count := os.readv(fd, [buffer]):
            got.update(buffer[:count])
    finally:
        os.close(fd)
    assert got.digest() == hashlib.sha256(files[size]).digest()


def test_sendfile(mount: Mount, files: dict[int, bytes], folder: Path) -> None:
    """sendfile(2), as cp and web servers use it, copies the right bytes."""
    size = PART + 1
    copy = folder / "copy"
    with open(path_of(mount, size), "rb") as source, open(copy, "wb") as target:
        sent = 0
        while sent < size:
            sent += os.sendfile(target.fileno(), source.fileno(), sent, size - sent)
    assert copy.read_bytes() == files[size]


def test_backwards_and_strides(mount: Mount, files: dict[int, bytes]) -> None:
    """Backward reads and strides give the right bytes."""
    size, step = 3 * PART + 12345, 300_001
    with open(path_of(mount, size), "rb", buffering=0) as file:
        for offset in [*range(size - step, 0, -step), *range(0, size, 3 * step)]:
            assert os.pread(file.fileno(), step, offset) == files[size][offset : offset + step]


def test_programs(mount: Mount, files: dict[int, bytes], folder: Path) -> None:
    """cp, tail, dd and another interpreter read the bytes that were put."""
    size = PART - 1
    subprocess.run(["cp", path_of(mount, size), folder / "cp"], check=True, timeout=60)
    assert (folder / "cp").read_bytes() == files[size]
    tail = subprocess.run(
        ["tail", "-c", "1000", path_of(mount, size)], check=True, capture_output=True, timeout=60
    )
    assert tail.stdout == files[size][-1000:]
    dd = subprocess.run(
        ["dd", f"if={path_of(mount, size)}", "bs=1M", "skip=3", "count=2", "status=none"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert dd.stdout == files[size][3 << 20 : 5 << 20]
    code = "import sys; sys.stdout.write(str(len(open(sys.argv[1], 'rb').read())))"
    python = subprocess.run(
        [sys.executable, "-c", code, path_of(mount, size)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert python.stdout == str(size)
