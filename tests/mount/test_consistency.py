"""The consistency contract on a real mount, while another client changes the bucket."""

import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, mounted
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

OLD = partial(random_bytes, 1, 40 << 20)
NEW = partial(random_bytes, 2, 40 << 20)


@pytest.fixture(scope="module")
def mount(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """The store's bucket, mounted below `changing/`."""
    store.put("changing/always", b"x")
    with mounted(
        store, tmp_path_factory.mktemp("changing"), "--debug", "--prefix", "changing/"
    ) as it:
        yield it


def read_on(file: BinaryIO) -> tuple[bytes, int | None]:
    """Read to the end; return the bytes, and the errno of the failure."""
    got = b""
    try:
        while chunk := file.read(1 << 20):
            got += chunk
    except OSError as error:
        return got, error.errno
    return got, None


def test_replaced_before_open(mount: Mount, store: Store) -> None:
    """Open finds the newest object, even if its name was looked up a moment ago."""
    path = mount.path / "replaced"
    for generation in range(5):
        body = f"generation {generation}".encode() * (generation + 1)
        store.put("changing/replaced", body)
        assert path.read_bytes() == body
        path.stat()


def test_same_size_replaced(mount: Mount, store: Store) -> None:
    """A replacement of the same size is not mistaken for the cached version."""
    path = mount.path / "same-size"
    for body in (b"a" * 5000, b"b" * 5000, b"a" * 5000):
        store.put("changing/same-size", body)
        assert path.read_bytes() == body


def test_replaced_while_open(mount: Mount, store: Store) -> None:
    """A reader sees one version to the end: old bytes, or ESTALE, but never a mixture."""
    store.put("changing/open", OLD())
    got = b""
    with open(mount.path / "open", "rb", buffering=0) as file:
        got += file.read(1 << 20)
        store.put("changing/open", NEW())
        rest, error = read_on(file)
        got += rest
        assert error in (None, errno.ESTALE)
        assert OLD().startswith(got)
        assert error is not None or got == OLD()
        assert os.fstat(file.fileno()).st_size == len(OLD())
    assert (mount.path / "open").read_bytes() == NEW()


def test_deleted_while_open(mount: Mount, store: Store) -> None:
    """After the object is deleted a reader gets old bytes, or ENOENT or ESTALE."""
    store.put("changing/deleted", OLD())
    got = b""
    with open(mount.path / "deleted", "rb", buffering=0) as file:
        got += file.read(1 << 20)
        store.delete("changing/deleted")
        rest, error = read_on(file)
        got += rest
        assert error in (None, errno.ENOENT, errno.ESTALE)
        assert OLD().startswith(got)
        assert error is not None or got == OLD()
    with pytest.raises(FileNotFoundError):
        (mount.path / "deleted").read_bytes()


def test_new_object_is_visible(mount: Mount, store: Store) -> None:
    """A new object can be opened and is listed immediately, even after ENOENT."""
    path = mount.path / "fresh"
    with pytest.raises(FileNotFoundError):
        path.stat()
    store.put("changing/fresh", b"now")
    assert path.read_bytes() == b"now"
    assert "fresh" in os.listdir(mount.path)
    store.delete("changing/fresh")
    assert "fresh" not in os.listdir(mount.path)


def test_attributes_are_a_second_old_at_most(mount: Mount, store: Store) -> None:
    """stat shows a new size once a second has passed."""
    path = mount.path / "growing"
    store.put("changing/growing", b"1")
    os.listdir(mount.path)
    assert path.stat().st_size == 1
    store.put("changing/growing", b"22")
    time.sleep(1.1)
    assert path.stat().st_size == 2


def test_directory_and_file_change_places(mount: Mount, store: Store) -> None:
    """If a file's name becomes a directory, or the reverse, it shows within a second."""
    path: Path = mount.path / "either"
    store.put("changing/either", b"file")
    assert path.read_bytes() == b"file"
    store.delete("changing/either")
    store.put("changing/either/inside", b"x")
    time.sleep(1.1)
    assert [entry.name for entry in path.iterdir()] == ["inside"]
    store.delete("changing/either/inside")
    store.delete("changing/either/")  # this store keeps empty folders
    store.put("changing/either", b"file again")
    time.sleep(1.1)
    assert path.read_bytes() == b"file again"


def test_unchanged_file_is_read_again_from_the_cache(mount: Mount, store: Store) -> None:
    """An unchanged object keeps its inode number, so that the kernel keeps its pages."""
    path = mount.path / "kept"
    store.put("changing/kept", OLD())
    first = path.stat().st_ino
    assert path.read_bytes() == OLD()
    time.sleep(1.1)
    assert path.read_bytes() == OLD()
    assert path.stat().st_ino == first
    store.put("changing/kept", NEW())
    time.sleep(1.1)
    assert path.stat().st_ino != first
