"""Modes, owners and times that programs set, without a kernel: refused, ignored, or kept."""

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from mountpoint import errors
from mountpoint.config import WriteConfig
from mountpoint.errors import (
    AccessDenied,
    NoSuchEntry,
    NotPermitted,
    StaleInode,
    TransportFault,
)
from mountpoint.fs.inodes import ROOT
from mountpoint.fs.posix_metadata import FileAttributes
from tests.unit.fake_client import Fault, Request
from tests.unit.mounted import GID, MOUNTED_AT_NS, UID, Mounted, mounted

PART = WriteConfig().part_size_bytes
KEPT = {"mode": "33152", "uid": "5", "gid": "6", "mtime": "7.000000008"}
MTIME_NS = 7_000_000_008
SHOWN = (0o600, 5, 6, MTIME_NS)


def shown(world: Mounted, path: bytes) -> tuple[int, int, int, int]:
    """Return a file's mode, owners and time from a lookup."""
    found = world.look(path)
    assert stat.S_ISREG(found.mode)
    return stat.S_IMODE(found.mode), found.uid, found.gid, found.mtime_ns


def change(world: Mounted, path: bytes, **attributes: Any) -> None:
    """Set attributes by name."""
    world.fs.set_attributes(
        world.look(path).inode, size_bytes=None, **{"mtime_ns": None, **attributes}
    )


def create(world: Mounted, name: bytes, **attributes: Any) -> Any:
    """Create a file for user 5, with the given permissions."""
    given = FileAttributes(**{"mode": 0o600, "uid": 5, "gid": 6, **attributes})
    return world.fs.create(ROOT, name, os.O_WRONLY, 0, given)[0]


def kinds(world: Mounted) -> list[str]:
    """Return the kinds of all requests, in order."""
    return [request.kind for request in world.client.requests]


def metadata(world: Mounted, key: bytes) -> dict[str, str]:
    """Return the metadata of an object."""
    return dict(world.client.options(key).metadata)


# --- Shown attributes ---


@pytest.mark.parametrize("how", ["refuse", "ignore"])
def test_not_shown_unless_kept(how: str) -> None:
    """A mount that does not keep attributes ignores those in an object's metadata."""
    with mounted(attributes=how) as world:
        info = world.client.put(b"a", b"1", metadata=KEPT)
        expected = (0o644, UID, GID, info.mtime_ns)
        assert shown(world, b"a") == expected
        assert world.read_file(world.look(b"a").inode) == b"1"
        world.pass_s(5)
        assert shown(world, b"a") == expected
        assert world.client.count("head") == 0


def test_shown_where_they_are_kept() -> None:
    """A file has mode, owners and time from the metadata; st_ctime is the object's time."""
    with mounted(attributes="keep") as world:
        info = world.client.put(b"a", b"1", metadata=KEPT)
        assert shown(world, b"a") == SHOWN
        assert world.look(b"a").ctime_ns == info.mtime_ns
        number = world.look(b"a").inode
        assert world.read_file(number) == b"1"
        assert shown(world, b"a") == SHOWN
        found = world.fs.getattr(number)
        assert (stat.S_IMODE(found.mode), found.uid, found.gid, found.mtime_ns) == SHOWN


def test_attributes_not_kept_are_those_of_the_mount() -> None:
    """Missing or malformed metadata give the mount's own attributes."""
    with mounted({b"b": b"1"}, attributes="keep") as world:
        info = world.client.put(b"a", b"1", metadata={"uid": "5", "mode": "x", "mtime": "-"})
        assert shown(world, b"a") == (0o644, 5, GID, info.mtime_ns)
        assert shown(world, b"b") == (0o644, UID, GID, info.mtime_ns)


def test_one_head_for_each_file_and_ttl() -> None:
    """Listed files cost one HEAD per ttl, directories none."""
    with mounted({b"d/x": b""}, attributes="keep") as world:
        for name in (b"a", b"b", b"c"):
            world.client.put(name, b"1", metadata=KEPT)
        assert world.names() == [b"a", b"b", b"c", b"d"]
        for _ in range(3):
            for name in (b"a", b"b", b"c"):
                assert shown(world, name) == SHOWN
                world.fs.getattr(world.look(name).inode)
        world.look(b"d")
        assert kinds(world) == ["list", "head", "head", "head"]
        world.pass_s(2)
        assert shown(world, b"a") == SHOWN
        assert world.client.count("head") == 4


def test_changes_by_others_are_seen() -> None:
    """Attributes are at most as old as the ttl, also those of a known inode."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        number = world.look(b"a").inode
        world.client.put(b"a", b"1", metadata=KEPT | {"mode": "33188"})
        world.pass_s(2)
        assert stat.S_IMODE(world.fs.getattr(number).mode) == 0o644
        world.client.put(b"a", b"1")
        world.pass_s(2)
        assert stat.S_IMODE(world.fs.getattr(number).mode) == 0o644
        assert world.fs.getattr(number).uid == UID


def test_gone_since_it_was_listed() -> None:
    """If HEAD does not find a listed file, it is looked up once more."""
    with mounted({b"a": b"1", b"b": b"1"}, attributes="keep") as world:
        world.names()
        world.client.delete(b"a")
        with pytest.raises(NoSuchEntry):
            world.look(b"a")
        world.client.delete(b"b")
        world.client.put(b"b/c", b"")
        assert stat.S_ISDIR(world.look(b"b").mode)


def test_replaced_since_it_was_listed() -> None:
    """If HEAD shows a newer version than the listing, that is shown."""
    with mounted({b"a": b"1"}, attributes="keep") as world:
        world.names()
        world.client.put(b"a", b"123", metadata=KEPT)
        found = world.look(b"a")
        assert (found.size_bytes, found.uid) == (3, 5)
        assert world.read_file(found.inode) == b"123"


def test_head_is_not_allowed() -> None:
    """If HEAD is refused, the lookup is an error, and shows no other attributes."""
    with mounted({b"a": b"1"}, attributes="keep") as world:
        world.names()
        world.client.inject("head", Fault(error=AccessDenied("no", status=403)))
        with pytest.raises(AccessDenied):
            world.look(b"a")
        assert shown(world, b"a")[1] == UID


# --- Files that are written ---


@pytest.mark.parametrize("size", [0, 5, PART, PART + 1])
def test_a_new_file(size: int) -> None:
    """Mode and owners go with the upload at no extra cost, and so does the time of a small file."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        assert shown(world, b"a") == (0o600, 5, 6, MOUNTED_AT_NS)
        world.fs.write(handle, 0, bytes(size))
        world.close(handle)
        assert not {"copy_object", "get"} & set(kinds(world))
        expected = {"mode": "33152", "uid": "5", "gid": "6"}
        if size <= PART:
            assert kinds(world) == ["put_object"]
            expected["mtime"] = "1600000000"
        assert metadata(world, b"a") == expected
        assert shown(world, b"a")[:3] == (0o600, 5, 6)
        world.pass_s(5)
        assert shown(world, b"a")[:3] == (0o600, 5, 6)


@pytest.mark.parametrize("how", ["refuse", "ignore"])
def test_a_new_file_where_nothing_is_kept(how: str) -> None:
    """Without keep, attributes of a file being written are accepted; only its time shows."""
    with mounted(attributes=how) as world:
        handle = create(world, b"a")
        change(world, b"a", mode=0o777, uid=9, gid=9, mtime_ns=5)
        assert shown(world, b"a") == (0o644, UID, GID, 5)
        world.close(handle)
        assert metadata(world, b"a") == {}
        assert shown(world, b"a") == (0o644, UID, GID, world.client.info(b"a").mtime_ns)
        assert kinds(world) == ["put_object"]


def test_set_before_the_first_request() -> None:
    """Attributes set before the first request cost nothing: `cp -p` of a small file."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a", mode=0o644, uid=0, gid=0)
        world.fs.write(handle, 0, b"123")
        change(world, b"a", mtime_ns=MTIME_NS)
        change(world, b"a", uid=5, gid=6)
        change(world, b"a", mode=0o600)
        assert shown(world, b"a") == SHOWN
        world.close(handle)
        assert kinds(world) == ["put_object"]
        assert metadata(world, b"a") == KEPT
        assert shown(world, b"a") == SHOWN


def test_set_when_parts_have_been_sent() -> None:
    """Attributes set after the first request cost one copy of the object, for all of them."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a", mode=0o644)
        world.fs.write(handle, 0, bytes(PART + 1))
        change(world, b"a", mode=0o600)
        change(world, b"a", mtime_ns=MTIME_NS)
        assert shown(world, b"a") == SHOWN
        number = world.look(b"a").inode
        world.close(handle)
        assert world.client.count("copy_object") == 1
        assert metadata(world, b"a") == KEPT
        assert world.look(b"a").inode == number
        assert shown(world, b"a") == SHOWN
        assert world.read_file(number) == bytes(PART + 1)
        world.pass_s(5)
        assert shown(world, b"a") == SHOWN


def test_a_time_that_was_set_before_the_last_write() -> None:
    """A write after the time was set changes the time; a large file then has the object's."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        change(world, b"a", mtime_ns=MTIME_NS)
        world.fs.write(handle, 0, bytes(PART + 1))
        world.close(handle)
        assert world.client.count("copy_object") == 0
        assert shown(world, b"a")[3] == world.client.info(b"a").mtime_ns


def test_the_copy_at_the_end_fails() -> None:
    """If the copy at the end fails, so does the close, and the object has all its bytes."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 1))
        change(world, b"a", mode=0o777)
        world.client.inject("copy_object", Fault(error=AccessDenied("no", status=403)))
        with pytest.raises(AccessDenied):
            world.fs.flush(handle, 0, killed=False)
        world.fs.release(handle)
        assert world.client.content(b"a") == bytes(PART + 1)
        assert shown(world, b"a")[0] == 0o600
        assert world.read_file(world.look(b"a").inode) == bytes(PART + 1)


def test_too_large_to_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that can no longer be kept are refused, and the file is uploaded."""
    monkeypatch.setattr("mountpoint.copy.metadata.MAX_COPY_BYTES", PART)
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 1))
        with pytest.raises(NotPermitted, match="5 GiB"):
            change(world, b"a", mode=0o777)
        world.close(handle)
        assert shown(world, b"a")[0] == 0o600
        with pytest.raises(NotPermitted, match="5 GiB"):
            change(world, b"a", mode=0o777)


def test_a_file_that_is_replaced() -> None:
    """A replaced file keeps its mode and owners, and has a new time."""
    with mounted(attributes="keep", allow_overwrite=True) as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        handle = world.fs.open(world.look(b"a").inode, os.O_WRONLY | os.O_TRUNC)
        world.fs.write(handle, 0, b"22")
        assert shown(world, b"a") == (*SHOWN[:3], MOUNTED_AT_NS)
        world.close(handle)
        assert metadata(world, b"a") == KEPT | {"mtime": "1600000000"}


def test_begun_anew() -> None:
    """A file that is truncated while it is written keeps its attributes."""
    with mounted(attributes="keep") as world:
        handle = create(world, b"a")
        world.fs.write(handle, 0, bytes(PART + 1))
        number = world.look(b"a").inode
        change(world, b"a", mode=0o640)
        world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)
        world.fs.write(handle, 0, b"1")
        world.close(handle)
        assert metadata(world, b"a")["mode"] == "33184"
        assert world.client.count("copy_object") == 0


# --- Files that are there ---

SETTINGS: dict[str, dict[str, int]] = {
    "chmod": {"mode": 0o640},
    "chown": {"uid": 8},
    "chgrp": {"gid": 8},
    "touch": {"mtime_ns": 8},
    "only atime": {},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_refused(setting: str) -> None:
    """By default attributes of existing files cannot be changed, and the error has a hint."""
    with mounted({b"d/a": b"1"}) as world:
        for path in (b"d", b"d/a"):
            with pytest.raises(NotPermitted) as caught:
                change(world, path, **SETTINGS[setting])
            assert "--attributes ignore" in caught.value.hint
        assert "copy_object" not in kinds(world)


@pytest.mark.parametrize("setting", SETTINGS)
def test_ignored(setting: str) -> None:
    """Attributes are accepted without effect and without a request."""
    with mounted({b"d/a": b"1"}, attributes="ignore") as world:
        before = shown(world, b"d/a")
        count = world.client.count()
        for path in (b"d", b"d/a"):
            change(world, path, **SETTINGS[setting])
        assert shown(world, b"d/a") == before
        assert world.client.count() == count


@pytest.mark.parametrize("setting", SETTINGS)
def test_kept(setting: str) -> None:
    """The object is copied with the new attributes, and everything else stays."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT | {"author": "me"}, storage_class="STANDARD_IA")
        number = world.look(b"a").inode
        count = world.client.count()
        change(world, b"a", **SETTINGS[setting])
        wanted = FileAttributes(0o600, 5, 6, MTIME_NS).updated(FileAttributes(**SETTINGS[setting]))
        assert shown(world, b"a") == (wanted.mode, wanted.uid, wanted.gid, wanted.mtime_ns)
        assert world.look(b"a").inode == number
        assert metadata(world, b"a")["author"] == "me"
        assert world.client.info(b"a").storage_class == "STANDARD_IA"
        assert kinds(world)[count:] == (["head", "copy_object"] if SETTINGS[setting] else [])
        world.pass_s(5)
        assert shown(world, b"a")[:3] == (wanted.mode, wanted.uid, wanted.gid)
        assert world.read_file(number) == b"1"


def test_unchanged_attributes_send_no_request() -> None:
    """Attributes that are already kept send no request: `rsync -a`, the second time."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        world.look(b"a")
        count = world.client.count()
        change(world, b"a", mode=0o600, uid=5, gid=6, mtime_ns=MTIME_NS)
        assert world.client.count() == count


def test_directories_keep_nothing() -> None:
    """A directory is not an object: its attributes are accepted without effect."""
    with mounted({b"d/a": b"1"}, attributes="keep") as world:
        before = world.look(b"d")
        change(world, b"d", mode=0o700, uid=9, mtime_ns=5)
        assert world.look(b"d").mode == before.mode
        assert "copy_object" not in kinds(world)


def test_replaced_by_somebody_else() -> None:
    """Attributes are set only on the expected version: otherwise the kernel looks up again."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        number = world.look(b"a").inode
        world.client.put(b"a", b"theirs")
        with pytest.raises(StaleInode):
            world.fs.set_attributes(number, size_bytes=None, mtime_ns=None, mode=0o640)
        assert metadata(world, b"a") == {}
        change(world, b"a", mode=0o640)
        assert metadata(world, b"a") == {"mode": "33184"}
        assert world.client.content(b"a") == b"theirs"


def between(world: Mounted, kind: str, act: Callable[[], object]) -> None:
    """Call a function just before the next request of a kind is answered."""
    done: list[bool] = []

    def script(request: Request) -> Fault | None:
        if request.kind == kind and not done:
            done.append(True)
            act()
        return None

    world.client.script = script


def test_replaced_between_look_and_copy() -> None:
    """Another client's new version stays."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        world.look(b"a")
        between(world, "copy_object", lambda: world.client.put(b"a", b"theirs"))
        with pytest.raises(StaleInode):
            change(world, b"a", mode=0o640)
        assert world.client.content(b"a") == b"theirs"
        assert metadata(world, b"a") == {}


def test_a_store_without_conditions() -> None:
    """If copies support no conditions, they are sent without; the store is asked once."""
    with mounted(attributes="keep") as world:
        world.client.knows_conditions = False
        world.client.put(b"a", b"1")
        change(world, b"a", mode=0o640)
        change(world, b"a", mode=0o600)
        assert metadata(world, b"a")["mode"] == "33152"
        assert world.client.count("copy_object") == 3


@pytest.mark.parametrize("parts", [False, True])
def test_a_lost_answer(parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy whose answer was lost is found, even with another ETag."""
    with mounted(attributes="keep") as world:
        data = bytes(PART + 1 if parts else 1)
        world.write_file(b"a", data)
        world.client.inject("copy_object", Fault(lost=True, error=TransportFault("lost")))
        change(world, b"a", mode=0o640)
        assert shown(world, b"a")[0] == 0o640
        assert metadata(world, b"a")["mode"] == "33184"
        assert world.client.content(b"a") == data


def test_a_file_copied_from_parts_stays_open() -> None:
    """The inode number stays if the copy has another ETag, and the file can be opened."""
    with mounted(attributes="keep") as world:
        world.write_file(b"a", bytes(PART + 1))
        number, etag = world.look(b"a").inode, world.client.info(b"a").etag
        change(world, b"a", mode=0o640)
        assert world.client.info(b"a").etag != etag
        assert world.look(b"a").inode == number
        world.pass_s(5)
        assert world.look(b"a").inode == number
        assert world.read_file(number) == bytes(PART + 1)
        world.fs._inodes.check()


def test_nothing_is_set_when_s3_does_not_let_us() -> None:
    """After an error everything is unchanged."""
    with mounted(attributes="keep") as world:
        world.client.put(b"a", b"1", metadata=KEPT)
        world.look(b"a")
        world.client.inject("copy_object", Fault(error=AccessDenied("no", status=403)))
        with pytest.raises(errors.AccessDenied):
            change(world, b"a", mode=0o640)
        assert shown(world, b"a") == SHOWN
