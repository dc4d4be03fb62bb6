"""The data cache on real mounts: what survives a restart, what is shared, and what goes wrong."""

import contextlib
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.cache.directory import FORMAT, NAME
from tests.conftest import Store
from tests.disks import disk_in_memory
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, refuse
from tests.mount.caches import blocks, forget_pages
from tests.mount.mounting import Mount, eventually, mounted, run, store_options

pytestmark = pytest.mark.mount

MIB = 1 << 20
SIZE = 9 * MIB + 12_345
SMALL = 50


@pytest.fixture(scope="module")
def body(store: Store) -> bytes:
    """The bytes of the object `cache/large`, and of small ones."""
    body = random.Random(19).randbytes(SIZE)
    store.put("cache/large", body)
    for number in range(SMALL):
        store.put(f"cache/small/{number:03}", body[number * 1000 :][:50_000])
    return body


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A directory for a cache."""
    return tmp_path / "cache"


def options(cache: Path, *others: str) -> list[str]:
    """Return the options of a mount with this cache."""
    return ["--prefix", "cache/", "--debug", "--cache", str(cache), *others]


def size_of(cache: Path) -> int:
    """Return the bytes of all blocks."""
    total = 0
    for path in blocks(cache):
        with contextlib.suppress(FileNotFoundError):  # it may go away
            total += path.stat().st_size
    return total


def small_blocks(cache: Path) -> list[Path]:
    """Return the files of all small blocks."""
    return sorted((cache / NAME / FORMAT).glob("*-*/??/*.d/*"))


def fill(mount: Mount, cache: Path, body: bytes) -> None:
    """Read the large file, and wait until the cache has all of it."""
    assert (mount.path / "large").read_bytes() == body
    eventually(lambda: len(blocks(cache)) == 10)


def test_a_restart_keeps_it(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """After a restart a file is read without a GET; one HEAD shows that it is the newest."""
    with mounted(store, folder, *options(cache)) as mount:
        fill(mount, cache, body)
        before = mount.counters()
        assert before["cache_bytes_written"] == SIZE
    with mounted(store, folder, *options(cache, "--metadata-ttl", "minimal")) as mount:
        assert (mount.path / "large").read_bytes() == body
        after = mount.counters()
        assert (after["gets"], after["heads"]) == (0, 1)
        assert after["cache_bytes_read"] == SIZE
        assert after["cache_bytes_written"] == 0


def test_small_files_need_no_request(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """With the ttl of a cache, cached files are opened and read without any request for them."""
    with mounted(store, folder, *options(cache)) as mount:
        for path in sorted((mount.path / "small").iterdir()):
            path.read_bytes()
        eventually(lambda: len(blocks(cache)) == SMALL)
    with mounted(store, folder, *options(cache)) as mount:
        for number, path in enumerate(sorted((mount.path / "small").iterdir())):
            assert path.read_bytes() == body[number * 1000 :][:50_000]
        after = mount.counters()
        assert (after["gets"], after["heads"]) == (0, 0)


def test_two_mounts_share_it(
    store: Store, tmp_path_factory: pytest.TempPathFactory, cache: Path, body: bytes
) -> None:
    """What one mount has read, another mount of the bucket reads from disk."""
    first, second = (tmp_path_factory.mktemp("shared") for _ in range(2))
    with (
        mounted(store, first, *options(cache)) as one,
        mounted(store, second, "--debug", "--cache", str(cache)) as other,
    ):
        fill(one, cache, body)
        assert (other.path / "cache/large").read_bytes() == body
        # Its open asks no one: the ttl of a cache is 60 s, and a listing has shown the version.
        assert other.counters()["gets"] == 0


def test_random_reads(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """Random reads come from the disk, also those that the lane answers itself."""
    with mounted(store, folder, *options(cache)) as mount:
        fill(mount, cache, body)
        path = mount.path / "large"
        forget_pages(path)
        places = [page * 4096 for page in range(SIZE // 4096)]
        random.Random(4).shuffle(places)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        before = mount.counters()["gets"]
        try:
            buffer = mmap.mmap(-1, 4096)
            for offset in places[:600]:
                assert os.preadv(descriptor, [buffer], offset) == 4096
                assert buffer[:] == body[offset:][:4096]
        finally:
            os.close(descriptor)
        after = mount.counters()
        assert after["gets"] == before
        assert after["cache_hits"] >= 600


@pytest.mark.parametrize("extra", [[], ["--no-native"]], ids=["native", "python"])
def test_random_reads_are_kept(
    store: Store, folder: Path, cache: Path, body: bytes, extra: list[str]
) -> None:
    """Each place is fetched once, with 64 KiB around it; later reads there come from disk."""
    source = random.Random(5)
    # One page of each small block: within a second these might be fetched twice.
    places = [unit * 16 + source.randrange(16) for unit in range(SIZE // 65536)]
    source.shuffle(places)

    def read(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            buffer = mmap.mmap(-1, 4096)
            for page in places:
                assert os.preadv(descriptor, [buffer], page * 4096) == 4096
                assert buffer[:] == body[page * 4096 :][:4096]
        finally:
            os.close(descriptor)

    wanted = len(places)
    with mounted(store, folder, *options(cache), *extra) as mount:
        read(mount.path / "large")
        assert mount.counters()["gets"] <= wanted + 2
        eventually(lambda: len(small_blocks(cache)) >= wanted)
    with mounted(store, folder, *options(cache), *extra) as mount:
        read(mount.path / "large")
        assert mount.counters()["gets"] == 0


def test_jumps_are_kept(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """Pieces like the columns of a Parquet file come from disk the second time."""
    places = [(SIZE - 65_000, 65_000), *((3 * MIB + n * 900_001, 300_000) for n in range(6))]
    for again in (False, True):
        with mounted(store, folder, *options(cache)) as mount:
            with (mount.path / "large").open("rb", buffering=0) as file:
                for offset, size in places:
                    assert os.pread(file.fileno(), size, offset) == body[offset:][:size]
            if again:
                assert mount.counters()["gets"] == 0


def test_a_new_version(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """A replaced object is read as it is now, and both versions stay apart."""
    key = "cache/replaced"
    store.put(key, body)
    with mounted(store, folder, *options(cache, "--metadata-ttl", "minimal")) as mount:
        path = mount.path / "replaced"
        assert path.read_bytes() == body
        eventually(lambda: len(blocks(cache)) == 10)
        store.put(key, body[::-1])
        eventually(lambda: path.read_bytes() == body[::-1])
        eventually(lambda: len(blocks(cache)) == 20)
        store.put(key, body)
        gets = mount.counters()["gets"]
        eventually(lambda: path.read_bytes() == body)
        assert mount.counters()["gets"] == gets


def damage(path: Path, how: str) -> None:
    """Damage a block's file."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 3] ^= 1
    elif how == "zeros":
        content[4096:8192] = bytes(4096)
    elif how == "cut":
        del content[-100:]
    elif how == "empty":
        content.clear()
    elif how == "trailer":
        content[-30] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "zeros", "cut", "empty", "trailer"])
def test_damaged_blocks(store: Store, folder: Path, cache: Path, body: bytes, how: str) -> None:
    """A damaged block is noticed, fetched again, and replaced; the reader notices nothing."""
    with mounted(store, folder, *options(cache)) as mount:
        fill(mount, cache, body)
        damaged = random.Random(how).choice(blocks(cache)[:-1])
        damage(damaged, how)
        path = mount.path / "large"
        forget_pages(path)
        assert path.read_bytes() == body
        counters = mount.counters()
        assert counters["cache_bad_blocks"] == 1
        assert "a damaged block was removed from the cache" in mount.log
        eventually(lambda: len(blocks(cache)) == 10)
        forget_pages(path)
        gets = mount.counters()["gets"]
        assert path.read_bytes() == body
        assert mount.counters()["gets"] == gets


def test_blocks_with_each_others_names(
    store: Store, folder: Path, cache: Path, body: bytes
) -> None:
    """Files that were renamed are not taken for what their names say."""
    with mounted(store, folder, *options(cache)) as mount:
        fill(mount, cache, body)
        one, other = blocks(cache)[2:4]
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        path = mount.path / "large"
        forget_pages(path)
        assert path.read_bytes() == body
        assert mount.counters()["cache_bad_blocks"] == 2


def test_the_limit(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """The cache stays below its limit, keeps what was used last, and reads go on."""
    for number in range(4):
        store.put(f"cache/many/{number}", body[number:])
    limit = 16 * MIB
    with mounted(store, folder, *options(cache, "--max-cache-size", "16")) as mount:
        for number in range(4):
            assert (mount.path / f"many/{number}").read_bytes() == body[number:]
            assert size_of(cache) <= limit
        counters = mount.counters()
        assert counters["cache_evictions"] > 0
        assert counters["cache_bytes_written"] > 0
        usage = cache / NAME / FORMAT / "usage"
        # Blocks that are being written count, too.
        eventually(lambda: int.from_bytes(usage.read_bytes(), "little") <= limit)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB in memory."""
    with disk_in_memory(tmp_path / "small disk", "8m") as path:
        yield path


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_disk_that_is_too_small(
    store: Store, folder: Path, small_disk: Path, body: bytes
) -> None:
    """A share of the disk stays free, and reads go on from S3."""
    with mounted(store, folder, *options(small_disk)) as mount:
        for _ in range(2):
            path = mount.path / "large"
            forget_pages(path)
            assert path.read_bytes() == body
        found = os.statvfs(small_disk)
        assert found.f_bavail >= found.f_blocks // 20 - 1
        assert 0 < len(blocks(small_disk)) < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_disk_that_goes_away(store: Store, folder: Path, small_disk: Path, body: bytes) -> None:
    """The directory is unmounted, and others' files fill it: one warning, and the right bytes."""
    with mounted(store, folder, *options(small_disk)) as mount:
        assert (mount.path / "small/000").read_bytes() == body[:50_000]
        eventually(lambda: len(blocks(small_disk)) == 1)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        for number in range(1, 20):
            path = mount.path / f"small/{number:03}"
            assert path.read_bytes() == body[number * 1000 :][:50_000]
        eventually(lambda: "the cache is not used for writing at the moment" in mount.log)
        assert mount.log.count("the cache is not used") == 1


def test_bad_directories(store: Store, folder: Path, cache: Path) -> None:
    """A directory that cannot be a cache ends the start with a message that says why."""

    def start(*arguments: str) -> tuple[int, str]:
        mnt = folder / "mnt"
        mnt.mkdir(exist_ok=True)
        done = run(store.bucket, mnt, *store_options(store), *arguments, env=store.environment)
        return done.returncode, done.stderr

    code, message = start("--cache", str(folder / "mnt"))
    assert (code, "is in the directory of the mount" in message) == (1, True)
    code, message = start("--cache", str(folder / "no/such"))
    assert (code, "cannot be used: No such file or directory" in message) == (1, True)
    (cache / NAME).mkdir(parents=True, mode=0o755)
    code, message = start("--cache", str(cache))
    assert (code, "can be entered by others" in message) == (1, True)
    (cache / NAME).rmdir()
    (cache / NAME).symlink_to(folder)
    code, message = start("--cache", str(cache))
    assert (code, "cannot be used" in message) == (1, True)
    code, message = start("--max-cache-size", "100")
    assert (code, "--max-cache-size is given without --cache" in message) == (1, True)


def test_an_unknown_format(store: Store, folder: Path, cache: Path) -> None:
    """Files of another version of the program are left alone, and the log says so."""
    (cache / NAME / "v9").mkdir(parents=True)
    (cache / NAME / "v9/file").write_bytes(b"theirs")
    (cache / NAME).chmod(0o700)
    with mounted(store, folder, *options(cache)) as mount:
        assert "the cache directory has files in another format" in mount.log
    assert (cache / NAME / "v9/file").read_bytes() == b"theirs"


def test_permissions(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """Nobody else can enter the cache, and no part of a key is in a path."""
    with mounted(store, folder, *options(cache)) as mount:
        (mount.path / "small/000").read_bytes()
        eventually(lambda: len(blocks(cache)) == 1)
    for path in [cache / NAME, *(cache / NAME).rglob("*")]:
        allowed = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == allowed, path
        assert "small" not in path.name


def test_a_store_that_has_gone(store: Store, folder: Path, cache: Path, body: bytes) -> None:
    """Within the ttl cached files are read although the store does not answer."""
    everything = options(cache, "--metadata-ttl", "600")
    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *everything, endpoint_url=proxy.url) as mount,
    ):
        fill(mount, cache, body)
        path = mount.path / "large"
        forget_pages(path)
        proxy.before.append(lambda exchange: exchange.refuse(503, "SlowDown"))
        assert path.read_bytes() == body


WRITABLE = ("--cache-writes", "--allow-overwrite", "--allow-delete")


def test_what_is_written_is_kept(store: Store, folder: Path, cache: Path) -> None:
    """With --cache-writes written files are read from the cache, if half of the queue had room."""
    small, part, large, huge = (random.Random(n).randbytes(n * MIB + 5) for n in (0, 7, 9, 17))
    writable = (*WRITABLE, "--memory-target", "512")
    with mounted(store, folder, *options(cache, *writable)) as mount:
        (mount.path / "written-small").write_bytes(small)
        (mount.path / "written-part").write_bytes(part)
        (mount.path / "written-large").write_bytes(large)
        (mount.path / "written-huge").write_bytes(huge)
        (mount.path / "written-empty").write_bytes(b"")
        eventually(lambda: len(blocks(cache)) == 1 + 8 + 10)
        written_bytes = len(small) + len(part) + len(large)
        assert mount.counters()["cache_bytes_written"] == written_bytes
    with mounted(store, folder, *options(cache, *WRITABLE)) as mount:
        assert (mount.path / "written-part").read_bytes() == part
        assert (mount.path / "written-small").read_bytes() == small
        assert (mount.path / "written-empty").read_bytes() == b""
        assert (mount.path / "written-large").read_bytes() == large
        assert mount.counters()["gets"] == 0
        assert (mount.path / "written-huge").read_bytes() == huge
        assert mount.counters()["gets"] > 0
        (mount.path / "written-small").write_bytes(small + b"more")
        assert (mount.path / "written-small").read_bytes() == small + b"more"
    store.put("cache/written-small", b"by another program")
    with mounted(store, folder, *options(cache, *WRITABLE)) as mount:
        assert (mount.path / "written-small").read_bytes() == b"by another program"


def test_what_is_not_written_is_not_kept(store: Store, folder: Path, cache: Path) -> None:
    """An upload that fails leaves no block; without the option none does."""
    with FaultyProxy(store.endpoint_url) as proxy:
        writing = options(cache, *WRITABLE)
        with mounted(store, folder, *writing, endpoint_url=proxy.url) as mount:
            proxy.faults.append(on_writes(refuse(403, "AccessDenied")))
            with pytest.raises(PermissionError):
                (mount.path / "refused").write_bytes(bytes(MIB))
            with pytest.raises(PermissionError):
                (mount.path / "refused-large").write_bytes(bytes(9 * MIB))
            proxy.faults.clear()
            (mount.path / "after").write_bytes(b"12345")
            eventually(lambda: len(blocks(cache)) == 1)
        # At the same endpoint: another one has other blocks.
        with mounted(store, folder, *options(cache), endpoint_url=proxy.url) as mount:
            (mount.path / "unkept").write_bytes(b"12345")
            assert (mount.path / "after").read_bytes() == b"12345"
            assert mount.counters()["gets"] == 0
            assert len(blocks(cache)) == 1


def on_writes(fault: Fault) -> Fault:
    """Return a fault of requests that change the bucket."""

    def filtered(exchange: Exchange) -> None:
        if exchange.is_write:
            fault(exchange)

    return filtered
