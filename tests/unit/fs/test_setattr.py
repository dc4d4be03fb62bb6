"""Kept attributes of files that are continued, renamed, or staged."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    NotPermitted,
    PreconditionFailed,
    StaleInode,
)
from mountpoint.fs.inodes import ROOT
from mountpoint.staging.area import StagingArea
from tests.unit.fake_client import Fault
from tests.unit.fs.test_attributes import (
    KEPT,
    MTIME_NS,
    PART,
    SHOWN,
    between,
    change,
    create,
    kinds,
    metadata,
    shown,
)
from tests.unit.fs.writes.streamed.test_writes import APPEND
from tests.unit.fs.writes.test_rename import rename
from tests.unit.mounted import GID, UID, Mounted, mounted

#: A file with metadata of another program.
THEIRS = KEPT | {"author": "me"}


def timeless(found: dict[str, str]) -> dict[str, str]:
    """Return metadata without the time."""
    return {name: text for name, text in found.items() if name != "mtime"}


# --- Appending, and writing on ---


@pytest.mark.parametrize("size", [3, PART + 5])
def test_appending(size: int) -> None:
    """A file that is appended to keeps mode, owners and all else; its time is new."""
    with mounted(attributes="keep", allow_append=True) as world:
        world.client.put(b"a", bytes(size), metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, APPEND)
        assert shown(world, b"a") == SHOWN
        world.fs.write(handle, size, b"more")
        world.close(handle)
        assert world.client.content(b"a") == bytes(size) + b"more"
        assert timeless(metadata(world, b"a")) == timeless(THEIRS)
        assert metadata(world, b"a").get("mtime") != KEPT["mtime"]
        assert shown(world, b"a")[:3] == SHOWN[:3]
        assert world.client.count("copy_object") == 0


def test_appending_where_nothing_is_kept() -> None:
    """Without keep, other programs' metadata stay unchanged."""
    with mounted(allow_append=True) as world:
        world.client.put(b"a", b"1", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, APPEND)
        change(world, b"a", mode=0o777, mtime_ns=5)
        world.fs.write(handle, 1, b"2")
        world.close(handle)
        assert metadata(world, b"a") == THEIRS
        assert shown(world, b"a")[:3] == (0o644, UID, GID)


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_attributes_set_while_appending(when: str) -> None:
    """New attributes go with the upload; without a write they cost a copy of the object."""
    with mounted(attributes="keep", allow_append=True) as world:
        world.client.put(b"a", b"1", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, APPEND)
        if when == "before":
            change(world, b"a", mode=0o640, mtime_ns=9)
        world.fs.write(handle, 1, b"2")
        if when == "between":
            change(world, b"a", mode=0o640, mtime_ns=9)
        world.close(handle)
        if when == "after":
            change(world, b"a", mode=0o640, mtime_ns=9)
        assert shown(world, b"a")[:3] == (0o640, 5, 6)
        assert (shown(world, b"a")[3] == 9) == (when != "before")
        assert metadata(world, b"a")["author"] == "me"
        assert world.client.count("copy_object") == (when == "after")
        assert world.client.content(b"a") == b"12"


def test_opened_for_appending_only_to_be_set() -> None:
    """If only attributes are set, nothing is uploaded: `touch`."""
    with mounted(attributes="keep", allow_append=True) as world:
        world.client.put(b"a", b"1", metadata=THEIRS)
        number = world.look(b"a").inode
        handle = world.fs.open(number, APPEND)
        change(world, b"a", mode=0o640, mtime_ns=9)
        assert shown(world, b"a") == (0o640, 5, 6, 9)
        world.close(handle)
        assert shown(world, b"a") == (0o640, 5, 6, 9)
        assert not {"put_object", "create_upload"} & set(kinds(world))
        assert world.look(b"a").inode == number
        assert world.read_file(number) == b"1"


@pytest.mark.parametrize("size", [3, PART + 5])
@pytest.mark.parametrize("by", ["name", "number"])
def test_set_between_two_uploads(size: int, by: str) -> None:
    """Attributes set after fsync stay when the file is continued, by name or descriptor."""
    with mounted(attributes="keep", allow_append=True) as world:
        handle = create(world, b"a")
        number = world.look(b"a").inode
        for step in range(2):
            world.fs.write(handle, step * size, bytes(size))
            world.fs.fsync(handle)
            where = world.look(b"a").inode if by == "name" else number
            mode = 0o640 + step
            world.fs.set_attributes(where, size_bytes=None, mtime_ns=None, mode=mode)
            assert stat.S_IMODE(world.fs.getattr(number).mode) == mode or by == "name"
            assert shown(world, b"a")[:3] == (mode, 5, 6)
        world.fs.write(handle, 2 * size, b"end")
        world.close(handle)
        assert world.client.content(b"a") == bytes(2 * size) + b"end"
        assert shown(world, b"a")[:3] == (0o641, 5, 6)
        assert metadata(world, b"a")["mode"] == str(stat.S_IFREG | 0o641)
        world.fs._inodes.check()


def test_others_set_it_between_two_uploads() -> None:
    """Attributes that another mount has set on the same version stay as well."""
    with mounted(attributes="keep", allow_append=True) as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, b"1")
        world.fs.fsync(handle)
        world.client.put(b"a", b"1", metadata=THEIRS | {"uid": "9"})
        world.fs.write(handle, 1, b"2")
        world.close(handle)
        assert timeless(metadata(world, b"a")) == timeless(THEIRS | {"uid": "9"})


# --- Renaming ---


def test_a_renamed_file() -> None:
    """A renamed file keeps its attributes without additional requests."""
    with mounted(attributes="keep", allow_rename=True) as world:
        world.client.put(b"a", b"1", metadata=THEIRS)
        number = world.look(b"a").inode
        rename(world, b"a", b"b")
        count = world.client.count()
        assert shown(world, b"b") == SHOWN
        assert world.client.count() == count
        assert world.look(b"b").inode == number
        assert metadata(world, b"b") == THEIRS
        change(world, b"b", mode=0o640)
        assert metadata(world, b"b")["mode"] == "33184"


def test_a_renamed_directory() -> None:
    """Files in a renamed directory keep their attributes."""
    with mounted(attributes="keep", allow_rename=True) as world:
        world.client.put(b"d/a", b"1", metadata=THEIRS)
        world.look(b"d/a")
        rename(world, b"d", b"e")
        assert shown(world, b"e/a") == SHOWN
        assert metadata(world, b"e/a") == THEIRS


@pytest.mark.parametrize("size", [3, PART + 5])
def test_renamed_while_it_is_written(size: int) -> None:
    """Attributes set before and after the rename are kept: `rsync`."""
    with mounted(attributes="keep", allow_rename=True) as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(size))
        change(world, b"a", mode=0o640)
        rename(world, b"a", b"b")
        change(world, b"b", mtime_ns=MTIME_NS)
        assert shown(world, b"b") == (0o640, *SHOWN[1:])
        world.close(handle)
        assert world.client.keys() == [b"b"]
        assert shown(world, b"b") == (0o640, *SHOWN[1:])
        assert metadata(world, b"b") == KEPT | {"mode": "33184"}
        assert world.client.content(b"b") == bytes(size)


def test_set_while_it_is_completed() -> None:
    """Attributes set just after the end of the upload are not lost."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 5))
        change(world, b"a", mode=0o604)
        number = world.look(b"a").inode

        def act() -> None:
            world.fs.set_attributes(number, size_bytes=None, mtime_ns=None, mode=0o640)

        between(world, "copy_object", act)
        world.close(handle)
        assert shown(world, b"a")[0] == 0o640
        assert metadata(world, b"a")["mode"] == "33184"


def test_completed_by_two() -> None:
    """If two threads end an upload, one copies the object, and the other waits."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 5))
        change(world, b"a", mode=0o640)
        found: list[int] = []

        def sync() -> None:
            world.fs.fsync(handle)
            found.append(shown(world, b"a")[0])

        other = threading.Thread(target=sync)
        between(world, "copy_object", other.start)
        world.fs.flush(handle, 0, killed=False)
        other.join()
        world.fs.release(handle)
        assert found == [0o640]
        assert world.client.count("copy_object") == 1


# --- Staged ---


@contextmanager
def staged(path: Path, **options: Any) -> Iterator[Mounted]:
    """A mount with staged writes."""
    area = StagingArea(str(path), "bucket", 64 << 20)
    options = {"attributes": "keep", "allow_overwrite": True, "allow_rename": True, **options}
    try:
        with mounted(staging=area, **options) as world:
            yield world
    finally:
        area.close()


def test_a_new_staged_file(tmp_path: Path) -> None:
    """All attributes go with the upload, including the time of the last write."""
    with staged(tmp_path) as world:
        for name, attributes in ((b"a", {"mtime_ns": MTIME_NS}), (b"b", {})):
            handle = create(world, name, mode=0o644)
            world.fs.write(handle, 3, b"123")
            change(world, name, mode=0o600, **attributes)
            expected = shown(world, name)
            assert expected[:3] == SHOWN[:3]
            world.close(handle)
            assert shown(world, name) == expected
            assert metadata(world, name)["mode"] == "33152"
            assert world.fs.getattr(world.look(name).inode).mtime_ns == expected[3]
        assert metadata(world, b"a") == KEPT
        assert kinds(world).count("put_object") == 2
        assert world.client.count("copy_object") == 0


@pytest.mark.parametrize("how", ["refuse", "ignore"])
def test_a_staged_file_where_nothing_is_kept(tmp_path: Path, how: str) -> None:
    """Attributes are accepted without effect, except for the time while the file is open."""
    with staged(tmp_path, attributes=how) as world:
        world.client.put(b"a", b"1", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        before = (0o644, UID, GID, world.client.info(b"a").mtime_ns)
        assert shown(world, b"a") == before
        world.fs.write(handle, 1, b"2")
        change(world, b"a", mode=0o777, uid=9, mtime_ns=5)
        assert shown(world, b"a") == (0o644, UID, GID, 5)
        world.close(handle)
        assert metadata(world, b"a") == THEIRS
        assert shown(world, b"a")[:3] == (0o644, UID, GID)


def test_a_staged_file_that_is_changed(tmp_path: Path) -> None:
    """The file keeps mode, owners and all else; its time is new after a write."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        assert shown(world, b"a") == SHOWN
        world.fs.write(handle, 1, b"x")
        written = shown(world, b"a")
        assert (written[:3], written[3] > MTIME_NS) == (SHOWN[:3], True)
        world.fs.fsync(handle)
        assert shown(world, b"a") == written
        world.close(handle)
        assert shown(world, b"a") == written
        assert timeless(metadata(world, b"a")) == timeless(THEIRS)
        assert world.client.content(b"a") == b"1x3"


def test_only_attributes_of_a_staged_file(tmp_path: Path) -> None:
    """Without a write the server copies the object, once, at the close."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        change(world, b"a", mode=0o640)
        change(world, b"a", mtime_ns=9)
        assert shown(world, b"a") == (0o640, 5, 6, 9)
        assert world.client.count("copy_object") == 0
        world.close(handle)
        assert world.client.count("copy_object") == 1
        assert world.client.count("put_object") == 0
        assert shown(world, b"a") == (0o640, 5, 6, 9)
        expected = THEIRS | {"mode": "33184", "mtime": "0.000000009"}
        assert metadata(world, b"a") == expected
        assert world.fs._local.writers() == []


def test_a_staged_file_after_fsync(tmp_path: Path) -> None:
    """Attributes set between fsync and close are kept, also with later writes."""
    with staged(tmp_path) as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 5))
        world.fs.fsync(handle)
        change(world, b"a", mode=0o640)
        world.fs.fsync(handle)
        assert metadata(world, b"a")["mode"] == "33184"
        world.fs.write(handle, 0, b"x")
        change(world, b"a", uid=9)
        world.close(handle)
        assert shown(world, b"a")[:3] == (0o640, 9, 6)
        assert world.client.content(b"a") == b"x" + bytes(PART + 4)


def test_a_staged_file_whose_attributes_are_refused(tmp_path: Path) -> None:
    """The close fails, the object is unchanged, and the file is no longer staged."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        change(world, b"a", mode=0o640)
        world.client.inject("copy_object", Fault(error=AccessDenied("no", status=403)))
        world.fs.flush(handle, 0, killed=False)
        with pytest.raises(AccessDenied):
            world.fs.release(handle)
        assert world.fs._local.writers() == []
        assert shown(world, b"a") == SHOWN


def test_set_while_a_staged_file_is_closed(tmp_path: Path) -> None:
    """Attributes set between the last close and the release are not lost: `shutil`."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDWR)
        change(world, b"a", mode=0o640)
        between(world, "copy_object", lambda: change(world, b"a", uid=9, mtime_ns=8))
        world.close(handle)
        assert shown(world, b"a") == (0o640, 9, 6, 8)
        assert metadata(world, b"a")["uid"] == "9"
        assert world.fs._local.writers() == []


def test_a_time_that_metadata_cannot_keep(tmp_path: Path) -> None:
    """A time before 1970 becomes 1970, and the close succeeds."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        change(world, b"a", mtime_ns=-5)
        world.close(handle)
        assert metadata(world, b"a")["mtime"] == "0"
        assert world.client.count("copy_object") == 1


def test_a_staged_file_that_is_renamed(tmp_path: Path) -> None:
    """The renamed file has the attributes set before and after the rename."""
    with staged(tmp_path) as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, b"123")
        world.fs.fsync(handle)
        change(world, b"a", mode=0o640)
        rename(world, b"a", b"b")
        change(world, b"b", mtime_ns=MTIME_NS)
        world.close(handle)
        assert shown(world, b"b") == (0o640, *SHOWN[1:])
        assert metadata(world, b"b") == KEPT | {"mode": "33184"}
        assert world.client.keys() == [b"b"]


def test_a_staged_file_that_is_there(tmp_path: Path) -> None:
    """With staged writes, attributes of closed files are set as without, or refused."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        change(world, b"a", mode=0o640)
        assert metadata(world, b"a") == THEIRS | {"mode": "33184"}
    with staged(tmp_path, attributes="refuse") as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        with pytest.raises(NotPermitted):
            change(world, b"a", mode=0o640)


def test_replaced_while_it_is_staged(tmp_path: Path) -> None:
    """A replaced file keeps mode and owners, and nothing else."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"123", metadata=THEIRS)
        handle = world.fs.open(world.look(b"a").inode, os.O_WRONLY | os.O_TRUNC)
        world.fs.write(handle, 0, b"x")
        world.close(handle)
        assert timeless(metadata(world, b"a")) == timeless(KEPT)
        assert world.client.content(b"a") == b"x"


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    """If another client creates the name first, the staged file stays here, with its attributes."""
    with staged(tmp_path) as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, b"mine")
        world.client.put(b"a", b"theirs")
        change(world, b"a", mode=0o640)
        with pytest.raises(AlreadyExists):
            world.fs.flush(handle, 0, killed=False)
        assert shown(world, b"a")[0] == 0o640
        assert metadata(world, b"a") == {}
        assert world.fs.lookup(ROOT, b"a").size_bytes == 4


@pytest.mark.parametrize("size_bytes", [None, 5])
def test_attributes_set_of_files_changed_by_others(size_bytes: int | None, tmp_path: Path) -> None:
    """Setting attributes of an outdated version makes the kernel look up again, and then works."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"1")
        world.names()
        number = world.look(b"a").inode
        world.client.put(b"a", b"23")
        mode = 0o600 if size_bytes is None else None
        with pytest.raises((PreconditionFailed, StaleInode)):
            world.fs.set_attributes(number, size_bytes=size_bytes, mtime_ns=None, mode=mode)
        number = world.look(b"a").inode
        world.fs.set_attributes(number, size_bytes=size_bytes, mtime_ns=None, mode=mode)
        assert world.client.content(b"a") == (b"23" if size_bytes is None else b"23\0\0\0")
