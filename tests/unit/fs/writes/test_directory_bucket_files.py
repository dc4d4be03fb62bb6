"""Files of a directory bucket: they grow in the bucket, and a rename is one request."""

import os
from collections.abc import Iterator

import pytest

from mountpoint.errors import EntryExists, NotPermitted, PreconditionFailed
from mountpoint.fs.inodes import ROOT
from tests.unit.fake_client import FakeClient
from tests.unit.fs.writes.streamed.test_writes import OPENER, OVERWRITE, PART, writes
from tests.unit.fs.writes.test_rename import rename
from tests.unit.mounted import Mounted, mounted


class Express(FakeClient):
    """A directory bucket."""

    is_directory = True


@pytest.fixture
def world() -> Iterator[Mounted]:
    objects = {b"a": b"earlier", b"b": b""}
    with mounted(objects, client_class=Express, incremental_upload=True) as world:
        yield world


def test_a_new_file_grows(world: Mounted) -> None:
    """Each fsync stores the bytes written so far, and more can follow."""
    handle = world.create(b"new", OPENER)
    world.fs.write(handle, 0, b"12")
    assert world.client.keys() == [b"a", b"b"]
    for expected in (b"12", b"1234"):
        world.fs.fsync(handle)
        assert world.client.content(b"new") == expected
        world.fs.write(handle, len(expected), b"34")
    world.close(handle, OPENER)
    assert world.client.content(b"new") == b"123434"
    assert world.read_file(world.look(b"new").inode) == b"123434"
    assert writes(world) == ["put_object", "append_object", "append_object"]


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_an_object_grows(world: Mounted, flags: int) -> None:
    """New bytes follow the existing ones, in one request."""
    handle = world.fs.open(world.look(b"a").inode, flags, OPENER)
    world.fs.write(handle, 7, b" and later")
    world.close(handle, OPENER)
    assert world.client.content(b"a") == b"earlier and later"
    assert writes(world) == ["append_object"]


def test_parts_are_there_at_once(world: Mounted) -> None:
    """A large file grows part by part, and uploaded parts stay."""
    handle = world.create(b"new", OPENER)
    world.fs.write(handle, 0, bytes(2 * PART))
    world.client.quiet()
    assert world.client.info(b"new").size_bytes >= PART
    with pytest.raises(Exception, match="killed"):
        world.close(handle, OPENER, killed=True)
    assert world.client.info(b"new").size_bytes >= PART


def test_overwriting() -> None:
    """A truncated file is replaced by the new bytes, if it is still the same version."""
    options = {"incremental_upload": True, "allow_overwrite": True}
    with mounted({b"a": b"earlier"}, client_class=Express, **options) as world:
        handle = world.fs.open(world.look(b"a").inode, OVERWRITE, OPENER)
        world.fs.write(handle, 0, b"later")
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"later"
        handle = world.fs.open(world.look(b"a").inode, OVERWRITE, OPENER)
        world.client.put(b"a", b"theirs")
        world.fs.write(handle, 0, b"mine")
        with pytest.raises(PreconditionFailed):
            world.close(handle, OPENER)
        assert world.client.content(b"a") == b"theirs"


def test_a_rename_is_one_request(world: Mounted) -> None:
    """S3 renames the object, and HEAD shows the result; this needs no option."""
    number = world.look(b"a").inode
    rename(world, b"a", b"c")
    assert writes(world) == ["rename_object"]
    assert world.client.keys() == [b"b", b"c"]
    assert world.read_file(number) == b"earlier"


def test_renames_that_need_options(world: Mounted) -> None:
    """Replacing a file and renaming a directory need options, as elsewhere."""
    with pytest.raises(EntryExists):
        rename(world, b"a", b"b")
    world.fs.mkdir(ROOT, b"d")
    with pytest.raises(NotPermitted):
        rename(world, b"d", b"e")
    assert world.client.keys() == [b"a", b"b"]
