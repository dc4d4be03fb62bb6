"""Renames without a kernel: files, directories, and files that are being written."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mountpoint.config import MIB
from mountpoint.copy.objects import Copies
from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    DirectoryNotEmpty,
    EntryExists,
    IsADirectory,
    NoSuchEntry,
    NotADirectory,
    NotFound,
    NotImplementedHere,
    NotPermitted,
    PreconditionFailed,
    Superseded,
)
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.s3.client import ObjectInfo
from tests.unit.fake_client import SAFE_S, Fault, Request
from tests.unit.fs.writes.streamed.test_writes import OPENER, OVERWRITE, PART, is_there, writes
from tests.unit.mounted import Mounted, mounted


def rename(world: Mounted, old: bytes, new: bytes) -> None:
    """Rename as the kernel does, which has looked up both names."""

    def place(path: bytes) -> tuple[InodeNumber, bytes]:
        directory, _, name = path.rpartition(b"/")
        is_there(world, path)
        return world.look(directory).inode if directory else ROOT, name

    world.fs.rename(*place(old), *place(new))


def test_it_needs_an_option() -> None:
    """Without --allow-rename nothing can be renamed."""
    with mounted({b"a": b"1"}) as world:
        new = world.create(b"new")
        for name in (b"a", b"new"):
            with pytest.raises(NotImplementedHere) as caught:
                rename(world, name, b"b")
            assert "--allow-rename" in caught.value.hint
        world.close(new)
        assert world.client.keys() == [b"a", b"new"]


# --- Files ---


def test_a_file() -> None:
    """The object is copied, and deleted once the copy has been seen; the inode moves along."""
    with mounted({b"a": b"content", b"d/x": b""}, allow_rename=True) as world:
        number = world.look(b"a").inode
        rename(world, b"a", b"d/b")
        assert world.client.keys() == [b"d/b", b"d/x"]
        assert not is_there(world, b"a")
        assert world.look(b"d/b").inode == number
        assert world.read_file(number) == b"content"
        assert world.names() == [b"d"]
        assert world.names(world.look(b"d").inode) == [b"b", b"x"]
        world.pass_s(5)
        assert world.look(b"d/b").inode == number


@pytest.mark.parametrize("path", [b"a", b"d", b"new"])
def test_to_its_own_name(path: bytes) -> None:
    """Nothing happens to files, directories, and files that are being written."""
    with mounted({b"a": b"content", b"d/x": b""}, allow_rename=True) as world:
        new = world.create(b"new")
        rename(world, path, path)
        with pytest.raises(EntryExists):
            world.fs.rename(ROOT, path, ROOT, path, replace=False)
        with pytest.raises(NoSuchEntry):
            world.fs.rename(ROOT, b"no", ROOT, b"no", replace=True)
        world.fs.write(new, 0, b"written")
        world.close(new)
        assert world.client.keys() == [b"a", b"d/x", b"new"]
        assert world.client.content(b"new") == b"written"
        assert world.client.content(b"a") == b"content"


def test_opened_for_writing_during_the_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that comes then waits, and has the file under its new name."""
    move = Copies.move
    options = {"allow_rename": True, "allow_overwrite": True}
    with mounted({b"a": b"content"}, **options) as world, ThreadPoolExecutor() as pool:
        opening = []

        def move_slowly(*args: Any, **options: Any) -> ObjectInfo:
            moved = move(*args, **options)
            opening.append(pool.submit(world.fs.open, number, OVERWRITE))
            with pytest.raises(TimeoutError):
                opening[0].result(0.05)
            return moved

        monkeypatch.setattr(Copies, "move", move_slowly)
        number = world.look(b"a").inode
        rename(world, b"a", b"b")
        writer = opening[0].result(SAFE_S)
        assert not is_there(world, b"a")
        world.fs.write(writer, 0, b"new")
        world.close(writer)
        assert world.client.keys() == [b"b"]
        assert world.client.content(b"b") == b"new"
        assert world.fs._local.writers() == []
        assert not world.fs._local._files
        world.close(world.create(b"a"))


@pytest.mark.parametrize("why", ["it was read", "a write failed", "others have replaced it"])
def test_known_by_an_old_inode(why: str) -> None:
    """What is written after the rename is in the renamed file, also if the kernel looks up nothing.

    It keeps the inode of a file that it has renamed. A writer has left that inode to readers, and
    has not looked the name up again; or a write through it has failed; or a listing has shown
    another version since the kernel's lookup.
    """
    options = {"allow_rename": True, "allow_overwrite": True, "allow_append": True}
    with mounted({b"a": b"content"}, ttl_s=60.0, **options) as world:
        number = world.look(b"a").inode
        if why == "it was read":
            world.read_file(number)
            with pytest.raises(Superseded):
                world.fs.open(number, os.O_WRONLY | os.O_APPEND)
        elif why == "others have replaced it":
            world.client.put(b"a", b"theirs")
            assert world.names() == [b"a"]
        else:
            writer = world.fs.open(number, OVERWRITE)
            world.fs.write(writer, 0, b"lost")
            world.client.inject("put_object", Fault(error=AccessDenied("no")))
            with pytest.raises(AccessDenied):
                world.close(writer)
        world.fs.rename(ROOT, b"a", ROOT, b"b")
        writer = world.fs.open(number, OVERWRITE)
        world.fs.write(writer, 0, b"new")
        world.close(writer)
        assert world.client.contents() == {b"b": b"new"}
        assert world.look(b"b").inode == number
        world.fs._inodes.check()


def test_requests_of_a_rename() -> None:
    """Names that were just looked up are not checked again: copy, look, look, delete."""
    with mounted({b"a": b"1"}, allow_rename=True) as world:
        world.look(b"a")
        is_there(world, b"b")
        before = world.client.count()
        world.fs.rename(ROOT, b"a", ROOT, b"b")
        asked = [request.kind for request in world.client.requests[before:]]
        assert asked == ["copy_object", "head", "head", "delete_object"]


def test_the_directory_stays() -> None:
    """A directory whose last file was moved away exists until it is removed."""
    with mounted({b"d/a": b"1"}, allow_rename=True) as world:
        rename(world, b"d/a", b"a")
        world.pass_s(5)
        assert world.names() == [b"a", b"d"]
        world.fs.rmdir(ROOT, b"d")
        assert world.names() == [b"a"]


def test_to_a_name_that_is_taken() -> None:
    """A file can be replaced if overwriting is allowed, a directory never."""
    objects = {b"a": b"1", b"b": b"2", b"d/x": b""}
    for allowed in (False, True):
        with mounted(objects, allow_rename=True, allow_overwrite=allowed) as world:
            with pytest.raises(IsADirectory):
                rename(world, b"a", b"d")
            if allowed:
                rename(world, b"a", b"b")
                assert world.read_file(world.look(b"b").inode) == b"1"
                assert world.client.keys() == [b"b", b"d/x"]
            else:
                with pytest.raises(EntryExists):
                    rename(world, b"a", b"b")
                assert world.client.keys() == [b"a", b"b", b"d/x"]


def test_without_replacing() -> None:
    """renameat2(RENAME_NOREPLACE) needs a free name."""
    with mounted({b"a": b"1", b"b": b"2"}, allow_rename=True, allow_overwrite=True) as world:
        world.create(b"new")
        for taken in (b"b", b"new"):
            with pytest.raises(EntryExists):
                world.fs.rename(ROOT, b"a", ROOT, taken, replace=False)
        world.fs.rename(ROOT, b"a", ROOT, b"c", replace=False)
        assert world.client.keys() == [b"b", b"c"]


def test_somebody_else_takes_the_name() -> None:
    """An object created between lookup and copy is not replaced."""
    with mounted({b"a": b"1"}, allow_rename=True, allow_overwrite=True) as world:
        world.look(b"a")
        is_there(world, b"b")
        world.client.put(b"b", b"theirs")
        with pytest.raises(AlreadyExists):
            world.fs.rename(ROOT, b"a", ROOT, b"b")
        assert world.client.content(b"b") == b"theirs"
        assert world.read_file(world.look(b"a").inode) == b"1"


@pytest.mark.parametrize("changed", [b"a", b"b"])
@pytest.mark.parametrize("now", [b"3", None])
def test_rename_of_a_file_changed_by_others(changed: bytes, now: bytes | None) -> None:
    """A rename of a changed file makes the kernel look up again, and then works."""
    options = {"allow_rename": True, "allow_overwrite": True}
    with mounted({b"a": b"1", b"b": b"2"}, **options) as world:
        world.names()
        if now is None:
            world.client.delete(changed)
        else:
            world.client.put(changed, now)
        expected = NoSuchEntry if (changed, now) == (b"a", None) else PreconditionFailed
        with pytest.raises((expected, NotFound)):
            rename(world, b"a", b"b")
        if (changed, now) == (b"a", None):
            assert not is_there(world, b"a")
            return
        rename(world, b"a", b"b")
        assert world.client.contents() == {b"b": now if changed == b"a" else b"1"}


def test_a_failure() -> None:
    """If the copy fails, everything is unchanged."""
    with mounted({b"a": b"1"}, allow_rename=True) as world:
        world.client.inject("copy_object", Fault(error=AccessDenied()))
        with pytest.raises(AccessDenied):
            rename(world, b"a", b"b")
        assert world.client.keys() == [b"a"]
        assert world.read_file(world.look(b"a").inode) == b"1"
        assert not is_there(world, b"b")


# --- Files that are being written ---


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_that_is_written(size: int) -> None:
    """The file is renamed without a request, and is created only under its new name."""
    with mounted({b"d/x": b""}, allow_rename=True) as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.write(handle, 0, bytes(size))
        rename(world, b"a", b"d/b")
        assert writes(world) == []
        assert not is_there(world, b"a")
        assert world.look(b"d/b").inode == number
        world.fs.write(handle, size, b"more")
        world.close(handle, OPENER)
        assert world.client.content(b"d/b") == bytes(size) + b"more"
        assert world.client.keys() == [b"d/b", b"d/x"]
        assert writes(world) == ["put_object"]


def test_a_large_file_that_is_written() -> None:
    """If S3 has parts of it, it is completed, and then moved by the server."""
    data = os.urandom(2 * PART + 1)
    with mounted(allow_rename=True) as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.write(handle, 0, data)
        rename(world, b"a", b"b")
        world.close(handle, OPENER)
        assert world.client.keys() == [b"b"]
        assert world.client.content(b"b") == data
        assert world.look(b"b").inode == number
        assert world.client.uploads == {}


def test_saving_as_editors_do() -> None:
    """A file written beside and renamed over the earlier version: the name always exists."""
    with mounted({b"a": b"earlier"}, allow_rename=True, allow_overwrite=True) as world:
        for closed in (True, False):
            handle = world.create(b"a.tmp", OPENER)
            world.fs.write(handle, 0, b"later %d" % closed)
            if closed:
                world.close(handle, OPENER)
            rename(world, b"a.tmp", b"a")
            if not closed:
                world.close(handle, OPENER)
            assert world.read_file(world.look(b"a").inode) == b"later %d" % closed
            assert world.client.keys() == [b"a"]


def test_renames_refused_while_files_are_written() -> None:
    """A file that replaces another cannot be renamed, and a file being written not replaced."""
    options = {"allow_rename": True, "allow_overwrite": True}
    with mounted({b"a": b"1", b"b": b"2"}, **options) as world:
        handle = world.fs.open(world.look(b"a").inode, OVERWRITE, OPENER)
        for old, new in ((b"a", b"c"), (b"b", b"a")):
            with pytest.raises(NotPermitted):
                rename(world, old, new)
        world.close(handle, OPENER)
        rename(world, b"a", b"c")
        assert world.client.keys() == [b"b", b"c"]


# --- Directories ---


def test_a_directory() -> None:
    """Everything below the directory moves, with its marker and local state."""
    objects = {b"d/": b"", b"d/a": b"1", b"d/e/b": b"2", b"dd": b"3"}
    with mounted(objects, allow_rename=True) as world:
        number, inner = world.look(b"d").inode, world.look(b"d/e").inode
        world.fs.mkdir(number, b"made")
        assert world.names(number) == [b"a", b"e", b"made"]
        rename(world, b"d", b"new")
        assert world.client.keys() == [b"dd", b"new/", b"new/a", b"new/e/b"]
        assert not is_there(world, b"d")
        assert world.names() == [b"dd", b"new"]
        for path in (b"new/a", b"new/e/b"):
            assert world.read_file(world.look(path).inode) == objects[path.replace(b"new", b"d")]
        assert world.names(number) == [b"a", b"e", b"made"]
        assert world.names(inner) == [b"b"]
        world.fs.mkdir(ROOT, b"d")
        # Before the new directory is listed, which would correct what is remembered of the old one.
        assert not is_there(world, b"d/a")
        assert world.names(world.look(b"d").inode) == []
        world.fs._inodes.check()


def test_two_renames_to_a_name_that_was_absent() -> None:
    """The second one replaces the file of the first, without a time to live, too."""
    options = {"allow_rename": True, "allow_delete": True, "allow_overwrite": True, "ttl_s": 0.0}
    with mounted({b"a": b"1", b"c": b"22"}, **options) as world:
        assert not is_there(world, b"b")
        rename(world, b"a", b"b")
        rename(world, b"c", b"b")
        assert world.client.keys() == [b"b"]
        assert world.read_file(world.look(b"b").inode) == b"22"


def test_a_rename_to_a_name_that_others_have_made() -> None:
    """A name that was absent, and was found since, is replaced."""
    options = {"allow_rename": True, "allow_delete": True, "allow_overwrite": True, "ttl_s": 0.0}
    with mounted({b"a": b"1"}, **options) as world:
        assert not is_there(world, b"b")
        world.client.put(b"b", b"22")
        assert is_there(world, b"b")
        rename(world, b"a", b"b")
        assert world.client.contents() == {b"b": b"1"}


def test_renamed_again() -> None:
    """Known inodes below a renamed directory have the new names, for further renames too."""
    objects = {b"d/e/a": b"1", b"d/e/b": b"2"}
    with mounted(objects, allow_rename=True, allow_delete=True) as world:
        inner, file = world.look(b"d/e").inode, world.look(b"d/e/a").inode
        rename(world, b"d", b"new")
        rename(world, b"new/e", b"new/f")
        assert world.names(inner) == [b"a", b"b"]
        rename(world, b"new/f/a", b"new/f/c")
        assert world.read_file(file) == b"1"
        for name in (b"b", b"c"):
            world.fs.unlink(inner, name)
        world.fs.rmdir(world.look(b"new").inode, b"f")
        world.fs._inodes.check()


def test_a_directory_in_which_a_file_is_written() -> None:
    """The file is created in the renamed directory."""
    with mounted({b"d/a": b"1"}, allow_rename=True) as world:
        small, large = world.create(b"d/small", OPENER), world.create(b"d/large", OPENER)
        world.fs.write(small, 0, b"123")
        world.fs.write(large, 0, bytes(2 * PART))
        rename(world, b"d", b"new")
        assert world.look(b"new/small").size_bytes == 3
        world.close(small, OPENER)
        world.close(large, OPENER)
        assert world.client.keys() == [b"new/a", b"new/large", b"new/small"]
        assert world.client.uploads == {}


def test_a_directory_that_was_made_here() -> None:
    """A local directory has nothing in the bucket, so nothing is copied."""
    with mounted(allow_rename=True) as world:
        made = world.fs.mkdir(ROOT, b"d")
        world.fs.mkdir(made.inode, b"e")
        rename(world, b"d", b"new")
        assert world.names() == [b"new"]
        assert world.names(world.look(b"new").inode) == [b"e"]
        assert writes(world) == []


def test_to_a_directory_that_is_there() -> None:
    """An empty directory is replaced, a non-empty one and a file never."""
    with mounted({b"d/a": b"1", b"f": b"", b"x/y": b""}, allow_rename=True) as world:
        world.fs.mkdir(ROOT, b"empty")
        with pytest.raises(DirectoryNotEmpty):
            rename(world, b"d", b"x")
        with pytest.raises(NotADirectory):
            rename(world, b"d", b"f")
        rename(world, b"d", b"empty")
        assert world.names(world.look(b"empty").inode) == [b"a"]
        assert world.client.keys() == [b"empty/a", b"f", b"x/y"]


def test_a_failure_in_the_middle() -> None:
    """Each object is in one of the two places, both are visible, and the rename can be repeated."""
    objects = {b"d/%02d" % number: b"%d" % number for number in range(20)}
    with mounted(objects, allow_rename=True) as world:

        def fail(request: Request) -> Fault | None:
            bad = request.kind == "copy_object" and request.key == b"new/10"
            return Fault(error=AccessDenied("no")) if bad else None

        world.client.script = fail
        with pytest.raises(AccessDenied, match="d/10"):
            rename(world, b"d", b"new")
        world.client.script = None
        for name in (b"%02d" % number for number in range(20)):
            there = [prefix for prefix in (b"d/", b"new/") if is_there(world, prefix + name)]
            assert len(there) == 1, name
            assert world.read_file(world.look(there[0] + name).inode) == b"%d" % int(name)
        with pytest.raises(NoSuchEntry):
            world.look(b"new/10")


# --- Markers ---


def test_markers() -> None:
    """With --keep-directories a directory is an object, which others see and rmdir removes."""
    options = {"keep_directories": True, "allow_delete": True}
    with mounted(**options) as world:
        made = world.fs.mkdir(ROOT, b"d")
        assert world.client.keys() == [b"d/"]
        world.write_file(b"d/a", b"1")
        with pytest.raises(DirectoryNotEmpty):
            world.fs.rmdir(ROOT, b"d")
        world.fs.unlink(made.inode, b"a")
        assert world.client.keys() == [b"d/"]
        world.fs.rmdir(ROOT, b"d")
        assert world.client.keys() == []
        assert world.names() == []


@pytest.mark.parametrize("size", [5, PART + 5])
@pytest.mark.parametrize(("old", "new"), [(b"d", b"e"), (b"d/a", b"d/b"), (b"d/a", b"f/a")])
def test_a_file_that_is_synced_and_still_open(old: bytes, new: bytes, size: int) -> None:
    """The file can be read and continued under its new name."""
    first, second = os.urandom(size), os.urandom(7)
    moved = new if old.endswith(b"a") else new + b"/a"
    with mounted({b"d/x": b"", b"f/x": b""}, allow_rename=True) as world:
        handle = world.create(b"d/a", OPENER)
        for offset in range(0, size, MIB):
            world.fs.write(handle, offset, first[offset : offset + MIB])
        world.fs.fsync(handle)
        rename(world, old, new)
        assert world.fs.read(handle, 0, 10) == first[:10]
        world.fs.write(handle, size, second)
        world.close(handle, OPENER)
        assert world.client.content(moved) == first + second
        assert not is_there(world, b"d/a")
        assert world.read_file(world.look(moved).inode) == first + second
        world.fs._inodes.check()
