"""Renames and removals of staged files: failures lose nothing."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mountpoint.errors import AccessDenied, DirectoryNotEmpty, NotPermitted, PreconditionFailed
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT
from tests.unit.fake_client import Fault, Request
from tests.unit.fs.test_setattr import staged
from tests.unit.fs.writes.streamed.test_writes import APPEND, OPENER, is_there
from tests.unit.fs.writes.test_rename import rename
from tests.unit.mounted import Mounted, mounted

REFUSED = Fault(error=AccessDenied("no", status=403))


def write(world: Mounted, path: bytes, data: bytes) -> HandleNumber:
    """Open a file that may exist, replace its content, and leave it open."""
    if is_there(world, path):
        handle = world.fs.open(world.look(path).inode, os.O_RDWR | os.O_TRUNC, OPENER)
    else:
        handle = world.create(path, OPENER)
    world.fs.write(handle, 0, data)
    return handle


def refuse_changes(request: Request) -> Fault | None:
    """Refuse all changes of objects."""
    return None if request.kind in ("get", "head", "list") else REFUSED


def kept(path: Path) -> list[bytes]:
    """Return the contents of the files in a staging directory."""
    return sorted(each.read_bytes() for each in path.rglob("*.data"))


def test_a_rename_that_uploads(tmp_path: Path) -> None:
    """What a rename has uploaded is no change of an open handle: a truncation by name counts."""
    with staged(tmp_path) as world:
        world.client.put(b"b", b"earlier")
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"12345")
        world.fs.rename(ROOT, b"a", ROOT, b"b")
        assert world.client.contents() == {b"b": b"12345"}
        number = world.look(b"b").inode
        world.fs.set_attributes(number, size_bytes=2, mtime_ns=None)
        assert world.client.contents() == {b"b": b"12"}
        world.close(handle, OPENER)


@pytest.mark.parametrize("source", ["stored", "open", "written anew"])
@pytest.mark.parametrize("target", ["new", "opened", "written anew", "kept"])
def test_a_rename_that_fails(tmp_path: Path, source: str, target: str) -> None:
    """The target keeps all its writes, and is uploaded at its close."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"source")
        if target != "new":
            world.client.put(b"b", b"earlier")
        if source != "stored":
            flags = os.O_RDWR | (os.O_TRUNC if source == "written anew" else 0)
            opened = world.fs.open(world.look(b"a").inode, flags)
            world.fs.write(opened, 0, b"SOURCE")
        if target == "opened":
            handle = world.fs.open(world.look(b"b").inode, os.O_RDWR, OPENER)
            world.fs.write(handle, 0, b"LATER")
        else:
            handle = write(world, b"b", b"LATER")
        if target == "kept":
            world.client.inject("put_object", REFUSED)
            with pytest.raises(AccessDenied):
                world.fs.flush(handle, OPENER, killed=False)
        expected = b"LATERer" if target == "opened" else b"LATER"
        world.client.script = refuse_changes
        with pytest.raises(AccessDenied):
            rename(world, b"a", b"b")
        world.client.script = None
        assert world.fs.read(handle, 0, 10) == expected
        assert world.look(b"b").size_bytes == len(expected)
        world.close(handle, OPENER)
        assert world.client.content(b"b") == expected
        if source != "stored":
            world.close(opened)
        assert world.client.content(b"a").upper() == b"SOURCE"


@pytest.mark.parametrize("source", ["stored", "open"])
def test_a_pending_upload_does_not_replace_a_renamed_file(tmp_path: Path, source: str) -> None:
    """A program that has the replaced file open continues, and no object results."""
    with staged(tmp_path) as world:
        world.client.put(b"b", b"earlier")
        handle = write(world, b"b", b"LATER")
        number = world.look(b"b").inode
        opened = write(world, b"a", b"renamed")
        if source == "stored":
            world.close(opened, OPENER)
        rename(world, b"a", b"b")
        world.fs.write(handle, 5, b"!")
        world.fs.fsync(handle)
        world.fs.set_attributes(number, size_bytes=None, mtime_ns=None, mode=0o600)
        assert world.fs.read(handle, 0, 10) == b"LATER!"
        assert world.look(b"b").inode != number
        world.close(handle, OPENER)
        if source == "open":
            world.close(opened, OPENER)
        assert world.client.contents() == {b"b": b"renamed"}
        assert world.fs._local.writers() == []
        assert kept(tmp_path) == []


def test_an_upload_waits_for_the_rename(tmp_path: Path) -> None:
    """Bytes written while another file takes the name are in neither object."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"renamed")
        handle = write(world, b"b", b"LATER")
        syncing = threading.Thread(target=world.fs.fsync, args=[handle])

        def sync(request: Request) -> Fault | None:
            if request.kind == "copy_object":
                syncing.start()
            return None

        world.client.script = sync
        rename(world, b"a", b"b")
        syncing.join()
        assert world.client.count("put_object") == 0
        world.close(handle, OPENER)
        assert world.client.contents() == {b"b": b"renamed"}


def test_a_file_that_is_written_anew_leaves_its_name(tmp_path: Path) -> None:
    """The replaced object does not return under the old name."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"earlier")
        handle = write(world, b"a", b"LATER")
        rename(world, b"a", b"b")
        assert not is_there(world, b"a")
        world.close(handle, OPENER)
        assert world.client.contents() == {b"b": b"LATER"}


def test_removing_that_fails(tmp_path: Path) -> None:
    """The file is unchanged, with all its writes."""
    with staged(tmp_path, allow_delete=True) as world:
        world.client.put(b"a", b"earlier")
        handle = write(world, b"a", b"LATER")
        world.client.inject("delete_object", REFUSED)
        with pytest.raises(AccessDenied):
            world.fs.unlink(ROOT, b"a")
        assert world.look(b"a").size_bytes == 5
        world.close(handle, OPENER)
        assert world.client.contents() == {b"a": b"LATER"}


def test_attributes_of_a_removed_file(tmp_path: Path) -> None:
    """Attributes of a removed file have no effect, and its close succeeds."""
    with staged(tmp_path, allow_delete=True) as world:
        world.client.put(b"a", b"1")
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR, OPENER)
        number = world.look(b"a").inode
        world.fs.unlink(ROOT, b"a")
        world.client.put(b"a", b"1")
        world.fs.set_attributes(number, size_bytes=None, mtime_ns=None, mode=0o600)
        world.close(handle, OPENER)
        assert world.client.options(b"a").metadata == {}


# --- Directories ---


def fail(*keys: bytes) -> Callable[[Request], Fault | None]:
    """Refuse copies to these keys."""
    return lambda request: (
        REFUSED if request.kind == "copy_object" and request.key in keys else None
    )


def test_a_directory_with_staged_files(tmp_path: Path) -> None:
    """They move without their own requests, including removed ones."""
    with staged(tmp_path, allow_delete=True) as world:
        for name in (b"d/a", b"d/gone", b"d/other"):
            world.client.put(name, b"earlier")
        handles = {name: world.fs.open(world.look(name).inode, os.O_RDWR, OPENER)
                   for name in (b"d/a", b"d/gone")}  # fmt: skip
        handles[b"d/new"] = write(world, b"d/new", b"LATER")
        for handle in handles.values():
            world.fs.write(handle, 0, b"LATER")
        world.fs.unlink(world.look(b"d").inode, b"gone")
        rename(world, b"d", b"e")
        before = world.client.count("head")
        assert world.fs.read(handles[b"d/a"], 0, 10) == b"LATERer"
        for handle in handles.values():
            world.close(handle, OPENER)
        assert world.client.contents() == {
            b"e/a": b"LATERer", b"e/new": b"LATER", b"e/other": b"earlier",
        }  # fmt: skip
        assert world.client.count("head") - before <= 1


def test_a_directory_that_is_renamed_by_half(tmp_path: Path) -> None:
    """A staged file follows its object, and the rest can be renamed later."""
    with staged(tmp_path) as world:
        names = (b"d/a", b"d/b")
        for name in names:
            world.client.put(name, b"earlier")
        handles = [world.fs.open(world.look(name).inode, os.O_RDWR, OPENER) for name in names]
        new = write(world, b"d/new", b"LATER")
        world.client.script = fail(b"e/b")
        with pytest.raises(AccessDenied, match="d/b"):
            rename(world, b"d", b"e")
        world.client.script = None
        moved = b"e/a" in world.client.contents()  # both may have been in progress
        for handle in handles:
            world.fs.write(handle, 0, b"LATER")
            world.close(handle, OPENER)
        world.close(new, OPENER)
        where = b"e/a" if moved else b"d/a"
        assert world.client.contents() == {
            where: b"LATERer", b"d/b": b"LATERer", b"d/new": b"LATER",
        }  # fmt: skip
        for name, data in world.client.contents().items():
            assert world.read_file(world.look(name).inode) == data


def test_others_replace_the_renamed_file(tmp_path: Path) -> None:
    """A staged file takes neither another client's bytes nor their place."""
    with staged(tmp_path) as world:
        world.client.put(b"d/a", b"earlier")
        handle = world.fs.open(world.look(b"d/a").inode, os.O_RDWR, OPENER)
        world.fs.write(handle, 0, b"LATER")
        world.client.put(b"d/a", b"theirs!")
        rename(world, b"d", b"e")
        with pytest.raises(PreconditionFailed):
            world.fs.fsync(handle)
        assert world.client.contents() == {b"e/a": b"theirs!"}


def test_the_marker_of_a_replaced_directory() -> None:
    """A directory that cannot replace an empty one leaves it there."""
    with mounted(allow_rename=True, keep_directories=True) as world:
        for name in (b"d", b"empty"):
            world.fs.mkdir(ROOT, name)
        world.write_file(b"d/a", b"1")
        world.client.script = fail(b"empty/", b"empty/a")
        with pytest.raises(AccessDenied):
            rename(world, b"d", b"empty")
        assert world.client.keys() == [b"d/", b"d/a", b"empty/"]
        world.client.script = None
        rename(world, b"d", b"empty")
        assert world.client.keys() == [b"empty/", b"empty/a"]


def test_a_directory_in_which_a_file_is_appended_to() -> None:
    """The directory stays, because S3 has the file's beginning under its old name."""
    with mounted({b"d/a": b"1"}, allow_rename=True, allow_append=True) as world:
        handle = world.fs.open(world.look(b"d/a").inode, APPEND, OPENER)
        world.fs.write(handle, 1, b"2")
        with pytest.raises(NotPermitted):
            rename(world, b"d", b"e")
        world.close(handle, OPENER)
        rename(world, b"d", b"e")
        assert world.client.contents() == {b"e/a": b"12"}


def test_others_empty_its_directory(tmp_path: Path) -> None:
    """A file that is being written, or was not uploaded, keeps its directory."""
    with staged(tmp_path, allow_delete=True) as world:
        world.client.put(b"a/d/other", b"1")
        handle = world.create(b"a/d/file")
        world.fs.write(handle, 0, b"12")
        world.client.delete(b"a/d/other")
        world.pass_s(10)
        assert world.look(b"a/d/file").size_bytes == 2
        assert (world.names(), world.names(world.look(b"a").inode)) == ([b"a"], [b"d"])
        with pytest.raises(DirectoryNotEmpty):
            world.fs.rmdir(ROOT, b"a")
        world.fs.unlink(world.look(b"a/d").inode, b"file")
        world.fs.release(handle)


def test_the_last_file_of_a_directory_is_renamed(tmp_path: Path) -> None:
    """The directory stays, as after the renaming of a file that is not open."""
    with staged(tmp_path) as world:
        world.client.put(b"d/file", b"1")
        handle = world.fs.open(world.look(b"d/file").inode, os.O_RDWR, OPENER)
        world.fs.rename(world.look(b"d").inode, b"file", ROOT, b"file")
        world.pass_s(10)
        assert world.client.keys() == [b"file"]
        assert sorted(world.names()) == [b"d", b"file"]
        assert world.names(world.look(b"d").inode) == []
        world.fs.release(handle)


def test_a_truncation_by_name_of_a_file_that_is_written(tmp_path: Path) -> None:
    """It uploads nothing that another program has not finished: the close of that one does."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"earlier")
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDWR, OPENER)
        world.fs.write(handle, 0, b"half")
        world.fs.set_attributes(number, size_bytes=2, mtime_ns=None)
        assert world.client.content(b"a") == b"earlier"
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"ha"
