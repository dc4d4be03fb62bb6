"""Block files on a real disk: what is read of them, whatever has happened to them."""

import contextlib
import ctypes
import gc
import mmap
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint._fastpath import Part
from mountpoint.cache.blocks import _format
from mountpoint.cache.blocks._files import (
    BAD,
    FOUND,
    MISSING,
    CachedVersion,
    Store,
    hold_first,
)
from mountpoint.cache.blocks._format import BLOCK_BYTES, MAGIC, SMALL_BYTES, crc32c_of
from mountpoint.cache.blocks._lanes import lane_source
from mountpoint.cache.directory import CacheDirectory
from mountpoint.native import _blocks, _lane
from tests.soak import examples, rounds, seeds
from tests.unit.cache.objects import Cached, content
from tests.unit.native.building import probe

UNIT = 16384
SIZES = [1, UNIT - 1, UNIT, UNIT + 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]
SMALL = 3 * UNIT + 777
LARGE = 2 * BLOCK_BYTES + 5 * UNIT + 123


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """An object of three blocks, all written."""
    directory = CacheDirectory.open(str(tmp_path_factory.mktemp("large")))
    cached = Cached.of(directory, content(LARGE))
    cached.write()
    return cached


@pytest.fixture
def small(directory: CacheDirectory) -> Cached:
    """An object of one small block."""
    cached = Cached.of(directory, content(SMALL))
    cached.write()
    return cached


# --- right files ---


@pytest.mark.parametrize("size", SIZES)
def test_sizes(directory: CacheDirectory, size: int) -> None:
    """Objects of all sizes are read as they were written."""
    cached = Cached.of(directory, content(size))
    cached.write()
    assert cached.read() == (FOUND, cached.data)
    for index in range(cached.blocks):
        assert os.stat(cached.path(index)).st_size == cached.version.file_bytes(index)
        assert os.stat(cached.path(index)).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.join(directory.path, "mount-s3-cache/v1/tmp")) == []


@settings(max_examples=examples(200))
@given(st.data())
def test_ranges(large: Cached, data: st.DataObject) -> None:
    """Any range has the object's bytes, read by one version after others, or alone."""
    near = st.sampled_from([0, UNIT, BLOCK_BYTES, 2 * BLOCK_BYTES, LARGE]).flatmap(
        lambda place: st.integers(max(place - 3, 0), min(place + 3, LARGE))
    )
    places = st.lists(near | st.integers(0, LARGE), min_size=2, max_size=2, unique=True)
    version = large.version
    for _ in range(3):
        start, stop = sorted(data.draw(places))
        part = Part(start, stop, "")
        assert version.read(start, stop, part) == FOUND
        assert part.data is not None
        assert bytes(part.data) == large.data[start:stop]


def test_what_is_held(directory: CacheDirectory) -> None:
    """Ranges are cut where the blocks that are there begin and end."""
    cached = Cached.of(directory, content(5 * BLOCK_BYTES + 9))
    cached.write(1, 2, 5)
    version = cached.version
    assert [version.holds(index) for index in range(6)] == [False, True, True, False, False, True]
    assert version.held_until(5, len(cached.data)) == (False, BLOCK_BYTES)
    assert version.held_until(BLOCK_BYTES, len(cached.data)) == (True, 3 * BLOCK_BYTES)
    assert version.held_until(BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 1) == (True, 2 * BLOCK_BYTES + 1)
    assert version.held_until(5 * BLOCK_BYTES, len(cached.data)) == (True, len(cached.data))
    assert cached.read(0, BLOCK_BYTES) == (MISSING, None)
    assert cached.read(BLOCK_BYTES, 3 * BLOCK_BYTES + 1) == (MISSING, None)


def test_expected_blocks(directory: CacheDirectory) -> None:
    """The kernel reads a block that is expected, before a program needs it."""
    cached = Cached.of(directory, content(SMALL))
    assert not cached.version.expect(0)
    cached.write()
    with out_of_memory(cached) as file:
        assert cached.version.expect(0)
        wait_for_the_disk(file)


def test_expected_sources(directory: CacheDirectory) -> None:
    """The kernel reads the first block of each source that has one; others are no error."""
    one = Cached.of(directory, content(SMALL))
    large = Cached.of(directory, content(2 * BLOCK_BYTES), key=b"large")
    missing = Cached.of(directory, content(SMALL), key=b"missing")
    one.write()
    large.write()
    _lane.expect_all([])
    with out_of_memory(one) as first, out_of_memory(large) as second:
        sources = [lane_source(each.version, None) for each in (missing, one, large)]
        other = probe().Source(lambda *_: pytest.fail("it has no bytes to expect"))
        _lane.expect_all([_lane.LaneSource(), other, *sources, lane_source(one.version, other)])
        for file in (first, second):
            wait_for_the_disk(file)
    assert directory.store.counts() == (0, 0, 0, 0, 0)  # to expect a block is no read
    assert one.read() == (FOUND, one.data)
    assert missing.read() == (MISSING, None)


def test_many_expected_sources(small: Cached) -> None:
    """Of very many sources some are expected; no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    _lane.expect_all([lane_source(small.version, None) for _ in range(1000)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_sources(small: Cached) -> None:
    """What is no source is refused."""
    with pytest.raises(TypeError):
        _lane.expect_all([lane_source(small.version, None), "text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _lane.expect_all(None)  # type: ignore[arg-type]


def test_the_first_blocks(directory: CacheDirectory) -> None:
    """Of many versions those are told that have their first block, in the order of the list."""
    one = Cached.of(directory, content(SMALL))
    second_only = Cached.of(directory, content(2 * BLOCK_BYTES), key=b"second")
    missing = Cached.of(directory, content(SMALL), key=b"missing")
    in_small_blocks = Cached.of(directory, content(BLOCK_BYTES), key=b"small")
    one.write()
    second_only.write(1)
    number, temporary = _format.SMALL, directory.temporary()
    data = content(BLOCK_BYTES)[:SMALL_BYTES]
    assert in_small_blocks.version.write(number, data, temporary) == 0
    assert in_small_blocks.version.publish(number, temporary) == 0
    versions = [each.version for each in (second_only, one, missing, in_small_blocks, one)]
    assert hold_first([]) == []
    assert hold_first(versions) == [False, True, False, False, True]
    assert hold_first(versions * 300) == [False, True, False, False, True] * 300
    second_only.write(0)
    assert one.version.remove(0)
    assert hold_first(versions) == [True, False, False, False, False]
    assert directory.store.counts() == (0, 0, 0, 0, 0)  # to look is no read


def test_wrong_versions(small: Cached) -> None:
    """What is no version is refused."""
    with pytest.raises(TypeError):
        hold_first([small.version, "text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        hold_first(None)  # type: ignore[arg-type]


@contextlib.contextmanager
def out_of_memory(cached: Cached) -> Iterator[int]:
    """Let the kernel drop the pages of a first block; yield a descriptor of its file."""
    with open(cached.path(0), "rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_in_memory(file.fileno(), os.stat(file.fileno()).st_size):
            pytest.skip("the files are in memory (tmpfs)")
        yield file.fileno()


def wait_for_the_disk(file: int) -> None:
    """Wait until the kernel has read a file."""
    size = os.stat(file).st_size
    until_s = time.monotonic() + 20.0
    while not is_in_memory(file, size):
        assert time.monotonic() < until_s, "the disk was not asked"
        time.sleep(0.001)


def is_in_memory(file: int, size: int) -> bool:
    """Whether a file can be read without the disk. To try a read would start one."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        begin = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(ctypes.byref(begin), ctypes.c_size_t(size), pages)
        del begin  # a mapping that is in use cannot be closed
        assert failed == 0, os.strerror(ctypes.get_errno())
    return all(page[0] & 1 for page in pages)


def test_wrong_arguments(small: Cached) -> None:
    """Ranges and blocks that the object does not have are refused."""
    version = small.version
    part = Part(0, SMALL + 1, "")
    for start, stop in [(-1, 5), (5, 5), (0, SMALL + 1)]:
        with pytest.raises(ValueError, match="not a range"):
            version.read(start, stop, part)
    for index, data in [(-1, b"x"), (1, b"x"), (0, b"x"), (0, b"")]:
        with pytest.raises(ValueError, match="not block"):
            version.write(index, data, b"tmp/x")
    store = small.directory.store
    for path in (b"a/b", b"a/b/c/d", b"a/b/\0", b"a/b/" + b"c" * 600):
        with pytest.raises(ValueError, match="not the path"):
            CachedVersion(store, path, b"identity", 5)
    with pytest.raises(ValueError, match="an identity of 4097 bytes"):
        CachedVersion(store, b"a/b/c", b"i" * 4097, 5)


def test_an_arrival_that_has_ended(small: Cached) -> None:
    """A part that has its bytes, or has failed, is left as it is."""
    part = Part(0, SMALL, "")
    part.fail(OSError("ended"))
    assert small.version.read(0, SMALL, part) == FOUND
    assert part.failed
    assert not part.ready


# --- damaged files ---


def damages(size: int, drawn: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield what becomes of a file of `size` bytes: a name, and the file's bytes XORed with it."""
    places = {*drawn.sample(range(size), min(size, examples(100))), *range(size - 300, size)}
    for place in sorted(places):
        yield f"bit of byte {place}", bytes(place) + bytes([1 << drawn.randrange(8)])


@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_flipped_bits(small: Cached, seed: int) -> None:
    """A flipped bit is found by each read of its unit, and by each in the trailer."""
    path, drawn = Path(small.path()), random.Random(seed)
    right = path.read_bytes()
    for name, flipped in damages(len(right), drawn):
        place = len(flipped) - 1
        path.write_bytes(right[:place] + bytes([right[place] ^ flipped[-1]]) + right[place + 1 :])
        (file,) = small.directory.files()
        assert small.directory.check(file), name
        assert small.read() == (BAD, None), name
        assert not path.exists()
        assert small.read() == (MISSING, None), name
    assert small.directory.store.counts()[3] == len(list(damages(len(right), random.Random(seed))))


@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_damaged_units(directory: CacheDirectory, seed: int) -> None:
    """Reads of other units are right; those of the damaged unit are not answered."""
    drawn = random.Random(seed)
    cached = Cached.of(directory, content(BLOCK_BYTES))
    cached.write()
    path = Path(cached.path())
    right = path.read_bytes()
    for _ in rounds(40):
        unit, bit = drawn.randrange(64), drawn.randrange(8 * UNIT)
        damaged = bytearray(right)
        damaged[unit * UNIT + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        start, stop = sorted(drawn.sample(range(BLOCK_BYTES + 1), 2))
        touches = start < (unit + 1) * UNIT and unit * UNIT < stop
        expected = (BAD, None) if touches else (FOUND, cached.data[start:stop])
        assert cached.read(start, stop) == expected, (unit, start, stop)


@pytest.mark.parametrize("size", [SMALL, BLOCK_BYTES])
def test_cut_files(directory: CacheDirectory, size: int) -> None:
    """A file that was cut anywhere is bad, for every range."""
    cached = Cached.of(directory, content(size))
    cached.write()
    path = Path(cached.path())
    right = path.read_bytes()
    lengths = random.sample(range(len(right)), examples(60))
    for length in {0, 1, 7, 8, 16, 32, size - 1, size, size + 1, len(right) - 1, *lengths}:
        path.write_bytes(right[:length])
        (file,) = directory.files()
        assert directory.check(file), length
        assert cached.read(0, 1) == (BAD, None), length


def test_zeros(small: Cached) -> None:
    """Ranges of zeros, as after a power cut, are bad."""
    path = Path(small.path())
    right = path.read_bytes()
    for low, high in [(0, len(right)), (0, 4096), (4096, len(right)), (SMALL, len(right))]:
        path.write_bytes(right[:low] + bytes(high - low) + right[high:])
        assert small.read() == (BAD, None)


def test_trailing_bytes(small: Cached) -> None:
    """Bytes after the trailer do no harm; `check` names them."""
    with open(small.path(), "ab") as file:
        file.write(b"more")
    assert small.read() == (FOUND, small.data)
    (found,) = small.directory.files()
    assert small.directory.check(found)


def test_the_magic_alone(small: Cached) -> None:
    """A file that is too short for a trailer, but ends like one, is bad."""
    for content_ in (MAGIC, bytes(5) + MAGIC, bytes(8) + MAGIC, bytes(40) + MAGIC):
        Path(small.path()).write_bytes(content_)
        (file,) = small.directory.files()
        assert small.directory.check(file)
        assert small.read() == (BAD, None)


def test_names_that_collide(directory: CacheDirectory) -> None:
    """Another version's block under this name, or another block of this one, is not read."""
    one = Cached.of(directory, content(2 * BLOCK_BYTES))
    fields: list[dict[str, Any]] = [
        {"endpoint": "other"},
        {"bucket": "other"},
        {"etag": '"2"'},
        {"key": b"kez"},
    ]
    for changed in fields:
        other = replace(one, identity=replace(one.identity, **changed), data=one.data[::-1])
        other.write(0)
        one.write(0)
        os.rename(other.path(), one.path())
        assert one.read(0, 100) == (BAD, None), changed
    one.write(0, 1)
    os.rename(one.path(1), one.path(0))
    assert one.read(0, 100) == (BAD, None)
    # The checksums that are remembered are those of the right block.
    one.write()
    version = one.version
    assert version.read(0, 100, Part(0, 100, "")) == FOUND
    os.rename(one.path(1), one.path(0))
    assert version.read(0, 100, Part(0, 100, "")) == BAD
    assert version.read(0, 100, Part(0, 100, "")) == MISSING


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "link to a block", "loop", "device"])
def test_no_files(small: Cached, kind: str) -> None:
    """What is not a regular file is bad: no read waits for it or follows it."""
    path = Path(small.path())
    if kind == "link to a block":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as it:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket is short
            it.bind(path.name)
            os.chdir(here)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("makes a device")
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # zeros
    assert small.read() == (BAD, None)
    assert not path.is_symlink()
    assert not path.exists()
    small.write()
    assert small.read() == (FOUND, small.data)


def test_a_directory_in_place_of_a_file(small: Cached) -> None:
    """A directory is bad, and stays."""
    os.unlink(small.path())
    os.mkdir(small.path())
    assert small.read() == (BAD, None)
    assert small.put(0) != 0
    assert small.directory.store.counts()[3] == 1


def test_errors_are_no_damage(small: Cached) -> None:
    """A file that cannot be opened for another reason is kept."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        result, _ = small.read()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.strerror(result) == "Too many open files"
    assert small.read() == (FOUND, small.data)


# --- writing ---


def test_missing_directories(small: Cached) -> None:
    """The directories of a block are made, also if someone removes them."""
    shutil.rmtree(Path(small.path()).parents[1])
    assert small.read() == (MISSING, None)
    small.write()
    assert small.read() == (FOUND, small.data)
    for folder in list(Path(small.path()).parents)[:2]:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_full_disk(tmp_path: Path) -> None:
    """A write that fails leaves no file, and says why; earlier blocks stay right."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system of its own")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        directory = CacheDirectory.open(str(tmp_path))
        cached = Cached.of(directory, content(6 * BLOCK_BYTES))
        cached.write(0)
        results = {cached.put(index) for index in range(1, 6)}
        assert {os.strerror(result) for result in results} == {"No space left on device"}
        assert os.listdir(tmp_path / "mount-s3-cache/v1/tmp") == []
        assert cached.read(0, BLOCK_BYTES) == (FOUND, cached.block(0))
        assert [file.path for file in directory.files()] == [f"{cached.identity.path}.0"]
        del directory, cached
        gc.collect()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


TOO_LARGE = """
import os, resource, sys
from mountpoint.cache.blocks._lanes import lane_source
from mountpoint.cache.directory import CacheDirectory
from tests.unit.cache.objects import Cached, content
directory = CacheDirectory.open(sys.argv[1])
cached = Cached.of(directory, content(600_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
print(os.strerror(cached.version.write(0, cached.data, directory.temporary())))
"""


def test_a_file_that_gets_too_large(tmp_path: Path) -> None:
    """A write that stops in the middle leaves nothing."""
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert list(CacheDirectory.open(str(tmp_path)).files()) == []
    assert os.listdir(tmp_path / "mount-s3-cache/v1/tmp") == []


def test_a_temporary_name_that_is_taken(small: Cached) -> None:
    """A file of another writer is never written into."""
    taken = small.directory.temporary()
    path = Path(small.directory.path, "mount-s3-cache/v1", taken.decode())
    path.write_bytes(b"theirs")
    assert os.strerror(small.version.write(0, small.data, taken)) == "File exists"
    assert path.read_bytes() == b"theirs"


# --- times ---


def times_of(cached: Cached) -> tuple[float, float]:
    found = os.stat(cached.path())
    return found.st_atime, found.st_mtime


@pytest.mark.parametrize(
    ("age_s", "touched"),
    [(0, False), (200, False), (-200, False), (400, True), (86400, True), (-86400, True)],
)
def test_the_time_of_the_last_use(small: Cached, age_s: float, touched: bool) -> None:
    """A read sets the time of last access, unless it is nearly right; the time of change stays.

    A file server's clock may be ahead: not each read sets a time again then.
    """
    now_s = time.time()
    before = now_s - age_s
    os.utime(small.path(), (before, before - 7))
    assert small.read(0, 1)[0] == FOUND
    used_s, changed_s = times_of(small)
    assert changed_s == pytest.approx(before - 7, abs=0.001)
    if touched:
        assert used_s == pytest.approx(now_s, abs=30)
    else:
        assert used_s == pytest.approx(before, abs=0.001)


def test_a_bad_read_is_no_use(directory: CacheDirectory) -> None:
    """Reads of missing blocks leave no file and no time."""
    cached = Cached.of(directory, content(2 * BLOCK_BYTES))
    cached.write(0)
    os.utime(cached.path(0), (5, 5))
    assert cached.read(BLOCK_BYTES, BLOCK_BYTES + 1) == (MISSING, None)
    assert times_of(cached) == (5, 5)


FOREIGN = """
import os, sys
from mountpoint.cache.blocks._lanes import lane_source
from mountpoint.cache.directory import CacheDirectory
from tests.unit.cache.objects import Cached, content
os.setgid(65534)
os.setuid(65534)
cached = Cached.of(CacheDirectory.open(sys.argv[1]), content(5000))
print(cached.read() == (0, cached.data))
"""


def test_a_file_that_refuses_o_noatime(public_path: Path) -> None:
    """A block that the user may read, but does not own, is read."""
    if os.geteuid() != 0:
        pytest.skip("changes owners")
    directory = CacheDirectory.open(str(public_path))
    cached = Cached.of(directory, content(5000))
    cached.write()
    for path in [public_path, *public_path.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.chown(cached.path(), 0, 65534)
    os.chmod(cached.path(), 0o640)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, public_path], capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr


# --- leaks ---


def test_nothing_is_left(tmp_path: Path) -> None:
    """No descriptor and no memory remains, after reads and writes of every outcome."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    held = _blocks.held_bytes()[0]
    directory = CacheDirectory.open(str(tmp_path))
    cached = Cached.of(directory, content(LARGE))
    cached.write(0, 2)
    for _ in range(20):
        cached.write(1)
        assert cached.read()[0] == FOUND
        Path(cached.path(1)).write_bytes(b"")
        assert cached.read()[0] == BAD
        assert cached.read()[0] == MISSING
        assert cached.version.write(0, cached.block(0), b"no/such") != 0
        source = lane_source(cached.version, None)
        del source
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del directory, cached
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert _blocks.held_bytes()[0] == held


def test_a_version_keeps_its_store_open(tmp_path: Path) -> None:
    """A version and a source outlive the directory."""
    directory = CacheDirectory.open(str(tmp_path))
    cached = Cached.of(directory, content(5000))
    cached.write()
    version = cached.version
    del directory, cached
    gc.collect()
    part = Part(0, 5000, "")
    assert version.read(0, 5000, part) == FOUND
    assert part.data is not None
    assert bytes(part.data) == content(5000)


def test_the_descriptor_is_not_inherited(directory: CacheDirectory) -> None:
    """Programs that the mount starts do not have the cache open."""
    assert isinstance(directory.store, Store)
    assert not os.get_inheritable(directory.store.directory)


# --- reads in a lane ---


def test_a_lane_source(small: Cached) -> None:
    """The lane's reads come from the cache, and otherwise from the other source."""
    it = probe()
    asked = []

    def fetch(start: int, stop: int, *_: object) -> int:
        asked.append((start, stop))
        block: int = it.filled(small.data[start:stop])
        return block

    other = it.Source(fetch)
    cached = small.version
    both, alone = lane_source(cached, other), lane_source(cached, None)
    for source in (both, alone):
        assert it.fetch(source, 100, 200) == small.data[100:200]
    assert asked == []
    os.truncate(small.path(), 1000)
    assert it.fetch(both, 100, 200) == small.data[100:200]
    assert asked == [(0, SMALL)]
    assert it.fetch(alone, 100, 200) is None
    assert small.directory.store.counts()[3] == 1
    ((version, number, data),) = small.directory.store.take()
    assert (number, bytes(data)) == (_format.SMALL, small.data)
    assert version.write(number, data, b"tmp/small") == 0
    assert version.publish(number, b"tmp/small") == 0
    assert it.fetch(alone, 100, 200) == small.data[100:200]
    assert small.directory.store.take() == []


# --- checksums ---


@given(st.binary(max_size=200), st.integers(0, 9))
def test_crc32c(data: bytes, cut: int) -> None:
    """The processor and the table have the same results, wherever the bytes begin."""
    piece = memoryview(data)[cut:]
    assert crc32c_of(piece) == crc32c_of(piece, by_table=True)


@pytest.mark.parametrize("by_table", [False, True])
def test_known_checksums(by_table: bool) -> None:
    """The values of RFC 3720, and one of many bytes."""
    assert crc32c_of(b"", by_table) == 0
    assert crc32c_of(b"123456789", by_table) == 0xE3069283
    assert crc32c_of(bytes(32), by_table) == 0x8A9136AA
    assert crc32c_of(b"\xff" * 32, by_table) == 0x62A8AB43
    assert crc32c_of(bytes(range(32)), by_table) == 0x46DD794E
