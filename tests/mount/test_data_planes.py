"""Reads on each data plane: native with the lane, native without it, and Python's."""

import concurrent.futures
import errno
import json
import mmap
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Store
from tests.mount.caches import forget_pages
from tests.mount.mounting import Mount, errno_of, mounted
from tests.mount.test_ctl import done

pytestmark = pytest.mark.mount

PART = 8 << 20
SIZE = 5 * PART + 12_345
PLANES = {"native": [], "no lane": ["--no-channel"], "python": ["--no-native"]}


def piece(data: bytes, offset: int, size: int) -> bytes:
    """Return a range of the data. `data[offset:][:size]` would copy all that follows."""
    return data[offset : offset + size]


@pytest.fixture(scope="module")
def body(store: Store) -> bytes:
    """The bytes of the object `planes/large`."""
    body = random.Random(18).randbytes(SIZE)
    store.put("planes/large", body)
    for number in range(30):
        store.put(f"planes/small/{number}", piece(body, number * 1000, 100_000))
    return body


@pytest.fixture(scope="module", params=PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    """The name of a data plane."""
    return str(request.param)


@pytest.fixture(scope="module")
def on_plane(store: Store, tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Mount]:
    """A mount on that plane."""
    options = ["--prefix", "planes/", "--debug", *PLANES[plane]]
    with mounted(store, tmp_path_factory.mktemp("plane"), *options) as it:
        yield it


def stats(mount: Mount) -> dict[str, Any]:
    """Return the mount's own numbers."""
    found: dict[str, Any] = json.loads(done("stats", mount.path, "--once", "--json"))
    return found


def read_directly(path: Path, offset: int, size: int) -> bytes:
    """Read with O_DIRECT: each read comes to the mount as it is."""
    buffer = mmap.mmap(-1, size)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return buffer[: os.preadv(descriptor, [buffer], offset)]
    finally:
        os.close(descriptor)


def test_status(on_plane: Mount, plane: str) -> None:
    """The status says which plane is in use, and why."""
    status = json.loads(done("status", on_plane.path, "--json"))[0]
    assert status["data_plane"] == ("python (--no-native)" if plane == "python" else "native")


def test_every_way_of_reading(on_plane: Mount, body: bytes) -> None:
    """Sequential, backward, in pieces, mapped, with O_DIRECT: the same bytes."""
    path = on_plane.path / "large"
    forget_pages(path)
    assert path.read_bytes() == body
    forget_pages(path)
    with path.open("rb", buffering=0) as file:
        for offset in range(SIZE - SIZE % 300_000, -1, -300_000):
            assert os.pread(file.fileno(), 300_000, offset) == piece(body, offset, 300_000)
    forget_pages(path)
    with path.open("rb") as large, mmap.mmap(large.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == body
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        offsets = range(0, SIZE, 1 << 20)
        pieces = pool.map(lambda offset: read_directly(path, offset, 1 << 20), offsets)
        assert b"".join(pieces) == body


def test_random_reads_by_many_threads(on_plane: Mount, body: bytes) -> None:
    """Threads read at random places of one handle; the bytes are right."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    descriptor = os.open(on_plane.path / "large", os.O_RDONLY | os.O_DIRECT)

    def read(number: int) -> bool:
        source = random.Random(seed + number)
        buffer = mmap.mmap(-1, 64 << 10)
        for _ in range(40):
            size = source.choice([4096, 8192, 64 << 10])
            offset = source.randrange(SIZE // 4096) * 4096
            with memoryview(buffer)[:size] as into:
                done = os.preadv(descriptor, [into], offset)
            if buffer[:done] != piece(body, offset, size):
                return False
        return True

    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))
    finally:
        os.close(descriptor)


def test_small_files(on_plane: Mount, body: bytes) -> None:
    """Small files by several threads have their bytes, twice."""
    paths = [on_plane.path / "small" / str(number) for number in range(30)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            read = list(pool.map(Path.read_bytes, paths))
            assert read == [piece(body, number * 1000, 100_000) for number in range(30)]


def test_replaced_while_open(on_plane: Mount, store: Store, plane: str) -> None:
    """An open file is one version: its bytes, or ESTALE, and never bytes of the next one."""
    old, new = (random.Random(seed).randbytes(3 * PART) for seed in (1, 2))
    key = f"replaced {plane}"
    store.put(f"planes/{key}", old)
    descriptor = os.open(on_plane.path / key, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    try:
        places = [page * 4096 for page in range(1, 6000, 97)]
        random.Random(3).shuffle(places)
        for offset in places[:30]:  # at random places: the lane fetches them itself
            os.preadv(descriptor, [buffer], offset)
            assert buffer[:] == piece(old, offset, 4096)
        store.put(f"planes/{key}", new)
        failed = set()
        for offset in places[30:]:
            failed.add(errno_of(partial(os.preadv, descriptor, [buffer], offset)))
        assert failed <= {errno.ESTALE}
    finally:
        os.close(descriptor)


def test_reads_in_the_lane(on_plane: Mount, plane: str, body: bytes) -> None:
    """Of a sequential read Python sees one read for each part; of random ones, few."""
    path = on_plane.path / "large"

    def reads() -> tuple[int, int]:
        found = stats(on_plane)["meters"]
        return found["operations"]["read"]["us"]["count"], found["reads_in_lane"]

    before = reads()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 128 << 10)
    while os.readv(descriptor, [buffer]):
        pass
    os.close(descriptor)
    after = reads()
    all_reads, in_lane = (late - early for early, late in zip(before, after, strict=True))
    assert all_reads >= SIZE // (128 << 10)
    if plane != "native":
        assert in_lane == 0
        return
    # Each part, and each tenth of a second: then the thread may run another program.
    assert all_reads - in_lane <= 2 * (SIZE // PART + 1) + 20
    before = after
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    source = random.Random(7)
    with memoryview(buffer)[:4096] as page:
        for _ in range(2000):
            os.preadv(descriptor, [page], source.randrange(SIZE // 4096) * 4096)
    os.close(descriptor)
    all_reads, in_lane = (late - early for early, late in zip(before, reads(), strict=True))
    # Those near one of the last 64 are Python's: of this file's 10,000 pages that is one in ten.
    assert all_reads - in_lane <= all_reads // 4
