"""Directories on a real mount: walks with listings ahead, and positions in a listing."""

import ctypes
import json
import os
import random
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.listing.prefetch import MAX_AGE_S
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import Mount, mounted
from tests.mount.test_ctl import done

pytestmark = pytest.mark.mount

WIDTH, FILES = 6, 5
SIZES = {
    f"{a}/{b}/{c}.txt": 10 * a + b + c
    for a in range(WIDTH)
    for b in range(WIDTH)
    for c in range(FILES)
}
DIRECTORIES = 1 + WIDTH + WIDTH * WIDTH


def walked(store: Store, folder: Path, prefix: str) -> tuple[dict[str, int], int, int]:
    """Return the output of `find` for a tree below `prefix`, and the number of LISTs.

    The last number is how often pages became too old meanwhile: on an idle machine never.
    """
    for name, size in SIZES.items():
        store.put(prefix + name, b"x" * size)
    seen: list[Exchange] = []
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(seen.append)
        with mounted(store, folder, "--prefix", prefix, endpoint_url=proxy.url) as mount:
            seen.clear()
            began_s = time.monotonic()
            out = subprocess.run(
                ["find", ".", "-type", "f", "-printf", "%P %s\n"],
                cwd=mount.path,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            old = int((time.monotonic() - began_s) / MAX_AGE_S)
    found = [line.split() for line in out.splitlines()]
    assert len(found) == len(SIZES)
    return {name: int(size) for name, size in found}, sum(each.is_list for each in seen), old


def test_a_walk(flat_store: Store, folder: Path) -> None:
    """In S3's order, flat pages cover all directories: few LISTs, and correct."""
    sizes, lists, old = walked(flat_store, folder, "walk/flat/")
    assert sizes == SIZES
    assert lists <= 8 + 2 * old


def test_a_walk_in_another_order(store: Store, folder: Path) -> None:
    """A store with real folders is listed correctly, whatever its answer to a flat LIST."""
    sizes, lists, old = walked(store, folder, "walk/folders/")
    assert sizes == SIZES
    assert lists <= DIRECTORIES + 4 + 2 * old


class Directory:
    """opendir(3) and related functions."""

    class Entry(ctypes.Structure):
        """struct dirent, readdir(3)."""

        _fields_ = (
            ("inode", ctypes.c_uint64),
            ("offset", ctypes.c_int64),
            ("length", ctypes.c_ushort),
            ("kind", ctypes.c_ubyte),
            ("name", ctypes.c_char * 256),
        )

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.opendir.restype = ctypes.c_void_p
        self._libc.readdir.restype = ctypes.POINTER(self.Entry)
        self._libc.telldir.restype = ctypes.c_long
        opened = self._libc.opendir(os.fsencode(path))
        assert opened, os.strerror(ctypes.get_errno())
        self._handle = ctypes.c_void_p(opened)

    def read(self) -> Iterator[bytes]:
        """Yield the names from here on, without the dots."""
        while entry := self._libc.readdir(self._handle):
            if entry.contents.name not in (b".", b".."):
                yield entry.contents.name

    def tell(self) -> int:
        return int(self._libc.telldir(self._handle))

    def seek(self, position: int) -> None:
        self._libc.seekdir(self._handle, ctypes.c_long(position))

    def rewind(self) -> None:
        self._libc.rewinddir(self._handle)

    def close(self) -> None:
        self._libc.closedir(self._handle)


def test_positions(flat_store: Store, folder: Path) -> None:
    """Positions are valid while the directory is open; new names are visible after a rewind."""
    names = [b"%04d" % number for number in range(200)]
    for name in names:
        flat_store.put(f"positions/{name.decode()}", b"")
    with mounted(flat_store, folder, "--prefix", "positions/") as mount:
        directory = Directory(mount.path)
        try:
            positions = {}
            for name in directory.read():
                positions[name] = directory.tell()
            assert list(positions) == names
            flat_store.put("positions/0000a", b"")
            order = list(range(len(names) - 1))
            random.Random(1).shuffle(order)
            for index in order[:50]:
                directory.seek(positions[names[index]])
                assert next(directory.read()) == names[index + 1]
            directory.rewind()
            assert list(directory.read()) == [names[0], b"0000a", *names[1:]]
        finally:
            directory.close()


def attributes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the attributes of all entries of a directory, as `ls -l` asks for them."""
    with os.scandir(path) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    return {
        name: (
            *(each.st_ino, each.st_mode, each.st_nlink, each.st_uid, each.st_gid, each.st_size),
            *(each.st_mtime_ns, each.st_ctime_ns, each.st_atime_ns),
            *(each.st_blocks, each.st_blksize),
        )
        for name, each in found.items()
    }


def lookups_of(mount: Mount) -> int:
    """Return how many names were looked up."""
    meters = json.loads(done("stats", mount.path, "--once", "--json"))["meters"]
    lookup = meters["operations"].get("lookup")
    return lookup["us"]["count"] if lookup else 0


@pytest.mark.parametrize(("ttl_s", "looked_up"), [(60, 0), (59, 600)])
def test_files_that_were_listed_before(
    flat_store: Store, folder: Path, ttl_s: int, looked_up: int
) -> None:
    """A program that lists names, and then uses them, looks none up; or those after the 2,000th."""
    prefix = "walk/listed/"
    names = [f"{number:04d}" + "n" * 50 for number in range(2600)]
    with mounted(flat_store, folder, "--prefix", prefix, "--metadata-ttl", str(ttl_s)) as mount:
        flat_store.put_all({prefix + name: b"x" for name in names})
        assert sorted(os.listdir(mount.path)) == names
        assert all((mount.path / name).stat().st_size == 1 for name in names)
        found = lookups_of(mount)
        assert looked_up - 200 <= found <= looked_up + 1  # the kernel asks for many at once


def test_a_listing_brings_the_attributes(flat_store: Store, folder: Path) -> None:
    """`ls -l` looks up few names: the listing has their attributes, the same as lookups give."""
    prefix = "walk/attributes/"
    sizes = {f"{number:03d}" + "n" * (number % 250): number for number in range(300)}
    for name, size in sizes.items():
        flat_store.put(prefix + name, b"x" * size)
    flat_store.put(prefix + "below/file", b"")
    found: list[dict[str, tuple[int, ...]]] = []
    lookups: list[int] = []
    for options in ([], ["--no-channel"]):
        place = folder / str(len(found))
        place.mkdir()
        with mounted(
            flat_store, place, "--prefix", prefix, "--metadata-ttl", "60", *options
        ) as mount:
            found.append(attributes_of(mount.path))
            lookups.append(lookups_of(mount))
    assert {name: each[5] for name, each in found[0].items() if name != "below"} == sizes
    below = [each.pop("below") for each in found]
    assert found[0] == found[1]
    assert [stat.S_ISDIR(each[1]) for each in below] == [True, True]  # times: of each mount
    assert lookups[0] <= 20
    assert lookups[1] >= len(sizes)
