"""A file system that goes on with what another one has noted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mountpoint.errors import BadHandle, NoSuchEntry, PreconditionFailed, StaleInode, WriterKilled
from mountpoint.fs.inodes import ROOT
from mountpoint.fs.session.log import SessionLog, new_log
from tests.unit.mounted import Mounted, mounted

MIB = 1 << 20
DATA = bytes(range(256)) * 4096 * 3  # 3 MiB


@contextmanager
def world() -> Iterator[tuple[Mounted, int]]:
    """A file system with a log, and the log's descriptor."""
    file = new_log()
    objects = {b"d/e/file": DATA, b"d/empty": b"", b"top": b"1"}
    try:
        log = SessionLog(file, lambda file: None)
        with mounted(objects, session=log, allow_overwrite=True, allow_rename=True) as it:
            yield it, file
    finally:
        os.close(file)


def follower(dead: Mounted, file: int) -> Mounted:
    """Return the file system of the next process. It shares the bucket and the clock."""
    log = SessionLog(file, lambda file: None)
    return Mounted(dead.client, dead.clock, {"session": log, "allow_overwrite": True})


def test_directories_keep_their_numbers() -> None:
    """Directories that the kernel holds go on; a file that is not open is looked up again."""
    with world() as (dead, file):
        directory, inode = dead.look(b"d/e").inode, dead.look(b"d/e/file").inode
        forgotten = dead.look(b"d").inode
        live = follower(dead, file)
        assert live.fs.getattr(directory).inode == directory
        assert live.fs.lookup(directory, b"file").inode == inode
        with pytest.raises(StaleInode):
            live.fs.getattr(dead.look(b"top").inode)
        live.fs.forget(directory, 1)
        live.fs.forget(forgotten, 3)
        with pytest.raises(StaleInode):
            live.fs.getattr(directory)


def test_open_files_stay_open() -> None:
    """They have the same handle, inode and version; new handles have other numbers."""
    with world() as (dead, file):
        inode = dead.look(b"d/e/file").inode
        closed = dead.fs.open(inode, os.O_RDONLY)
        handle = dead.fs.open(inode, os.O_RDONLY)
        empty = dead.fs.open(dead.look(b"d/empty").inode, os.O_RDONLY)
        dead.fs.release(closed)
        live = follower(dead, file)
        requests = len(dead.client.requests)
        assert live.fs.getattr(inode).size_bytes == len(DATA)
        assert len(dead.client.requests) == requests
        assert bytes(live.fs.read(handle, MIB, 1000)) == DATA[MIB : MIB + 1000]
        assert bytes(live.fs.read(empty, 0, 1000)) == b""
        assert live.fs.open(live.look(b"d/e/file").inode, os.O_RDONLY) > max(handle, empty)
        live.fs.release(handle)
        again = follower(live, file)
        assert again.fs.inode_of_file(handle) is None
        assert again.fs.inode_of_file(empty) is not None


def test_another_version_is_never_read() -> None:
    """A version that was replaced meanwhile cannot be read any more."""
    with world() as (dead, file):
        handle = dead.fs.open(dead.look(b"d/e/file").inode, os.O_RDONLY)
        dead.client.put(b"d/e/file", b"other" * MIB)
        live = follower(dead, file)
        with pytest.raises(PreconditionFailed):
            live.fs.read(handle, 2 * MIB, 1000)


def test_listings_go_on() -> None:
    """An open directory goes on at its position."""
    with world() as (dead, file):
        for number in range(300):
            dead.client.put(b"many/%03d" % number, b"")
        handle = dead.fs.opendir(dead.look(b"many").inode, 7)
        first = dead.fs.readdir(handle, 0)
        live = follower(dead, file)
        names = [line.name for line in first]
        while some := live.fs.readdir(handle, len(names)):
            names += [line.name for line in some]
        assert names[2:] == [b"%03d" % number for number in range(300)]
        live.fs.releasedir(handle)


def test_written_files_are_lost() -> None:
    """Every operation of their handles fails, also if the file was first opened for reading."""
    with world() as (dead, file):
        handle = dead.create(b"d/new")
        dead.fs.write(handle, 0, b"12345")
        both = dead.fs.open(dead.look(b"top").inode, os.O_RDWR, 9)
        top = dead.look(b"top").inode
        dead.fs.set_attributes(top, size_bytes=0, mtime_ns=None, handle=both)
        dead.fs.write(both, 0, b"2")
        live = follower(dead, file)
        for each in (handle, both):
            with pytest.raises(WriterKilled):
                live.fs.write(each, 5, b"6")
            with pytest.raises(WriterKilled):
                live.fs.fsync(each)
            with pytest.raises(WriterKilled):
                live.fs.flush(each, 9, killed=False)
            live.fs.release(each)
        with pytest.raises(NoSuchEntry):
            live.look(b"d/new")
        assert live.read_file(live.look(b"top").inode) == b"1"
        assert follower(live, file).fs.open_files() == 0


def test_names_of_new_files_do_not_mix() -> None:
    """A file that is being written has another identity than one whose writer has died."""
    with world() as (dead, file):
        lost = dead.create(b"d/new")
        live = follower(dead, file)
        handle = live.create(b"d/new")
        first, second = live.fs.inode_of_file(lost), live.fs.inode_of_file(handle)
        assert first is not None
        assert second is not None
        assert first.number != second.number
        live.fs.write(handle, 0, b"content")
        live.close(handle)
        assert live.read_file(live.look(b"d/new").inode) == b"content"


def test_created_directories() -> None:
    """They exist without objects, as long as they are not removed."""
    with world() as (dead, file):
        made = dead.fs.mkdir(ROOT, b"made").inode
        dead.fs.mkdir(made, b"below")
        dead.fs.mkdir(ROOT, b"gone")
        dead.fs.rmdir(ROOT, b"gone")
        dead.fs.rename(ROOT, b"made", ROOT, b"moved")
        live = follower(dead, file)
        assert live.names() == [b"d", b"top", b"moved"]
        assert live.names(live.look(b"moved").inode) == [b"below"]
        assert live.fs.path_of(made) == "/moved/"


def test_a_renamed_directory_keeps_its_open_files() -> None:
    """The files below have their new names in log lines, and their version."""
    with world() as (dead, file):
        handle = dead.fs.open(dead.look(b"d/e/file").inode, os.O_RDONLY)
        d = dead.look(b"d").inode
        dead.fs.rename(d, b"e", d, b"f")
        live = follower(dead, file)
        assert live.fs.path_of_handle(handle) == "/d/f/file"


def test_a_file_opened_for_a_request_that_comes_again() -> None:
    """The kernel knows nothing of its handle, so that is closed; others stay."""
    with world() as (dead, file):
        inode = dead.look(b"d/e/file").inode
        dead.request = 5
        answered = dead.fs.open(inode, os.O_RDONLY)
        dead.request = 6
        unknown = dead.fs.open(inode, os.O_RDONLY)
        live = follower(dead, file)
        assert live.fs.opened_before(7) is None
        assert live.fs.open_files() == 2
        assert live.fs.opened_before(6) is None
        assert live.fs.inode_of_file(unknown) is None
        assert live.fs.inode_of_file(answered) is not None
        assert live.fs.getattr(inode).inode == inode  # the kernel knows it from a lookup
        assert live.fs.opened_before(6) is None  # a second time
        assert follower(live, file).fs.open_files() == 1


def test_a_file_created_for_a_request_that_comes_again() -> None:
    """It is lost, and so is its inode, which the kernel does not know."""
    with world() as (dead, file):
        dead.request = 5
        handle = dead.create(b"d/new")
        inode = dead.fs.inode_of_file(handle)
        assert inode is not None
        live = follower(dead, file)
        assert live.fs.opened_before(5, creates=True) is None
        assert live.fs.open_files() == 0
        with pytest.raises(StaleInode):
            live.fs.getattr(inode.number)
        live.write_file(b"d/new", b"again")
        assert live.client.contents()[b"d/new"] == b"again"


def test_a_directory_opened_for_a_request_that_comes_again() -> None:
    """It is closed."""
    with world() as (dead, file):
        inode = dead.look(b"d").inode
        dead.request = 5
        unknown = dead.fs.opendir(inode, 7)
        dead.request = 6
        answered = dead.fs.opendir(inode, 7)
        live = follower(dead, file)
        live.fs.close_unknown_directory(5)
        live.fs.close_unknown_directory(5)
        live.fs.close_unknown_directory(7)
        with pytest.raises(BadHandle):
            live.fs.readdir(unknown, 0)
        assert len(live.fs.readdir(answered, 0)) == 4
