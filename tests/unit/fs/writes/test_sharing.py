"""Files that several programs have open, some for writing, without a kernel."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from mountpoint.config import MIB, WriteConfig
from mountpoint.errors import (
    AccessDenied,
    BadHandle,
    NoSuchEntry,
    NotPermitted,
    NotSequential,
    PreconditionFailed,
    StaleInode,
    Superseded,
    WriterKilled,
)
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT, Inode, InodeNumber
from mountpoint.fs.overlay import Writer
from mountpoint.fs.writes import readers
from mountpoint.fs.writes.streamed import lifecycle
from mountpoint.fs.writes.streamed import open as write_opener
from mountpoint.fs.writes.streamed.lifecycle import Lifecycle
from mountpoint.fs.writes.streamed.writer import StreamedWriter
from mountpoint.fs.writes.streamed.writes import StreamedWrites
from mountpoint.fuse import operations as operations_module
from mountpoint.fuse.operations import Operations
from mountpoint.staging.area import StagingArea
from tests.unit.fake_client import Fault, Request
from tests.unit.mounted import Mounted, mounted

OVERWRITE = os.O_WRONLY | os.O_TRUNC
APPEND = os.O_WRONLY | os.O_APPEND
LOCK = os.O_RDWR | os.O_CREAT | os.O_TRUNC
ONE, TWO = 100, 200
PART = WriteConfig().part_size_bytes
ALL = {"allow_overwrite": True, "allow_append": True, "allow_delete": True}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten waits for events that other threads do not cause."""
    monkeypatch.setattr(write_opener, "SETTLE_S", 0.0)
    monkeypatch.setattr(write_opener, "TURN_S", 0.0)
    monkeypatch.setattr(lifecycle, "SETTLE_S", 0.0)


@pytest.fixture(params=["streamed", "staged"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount with a file `a` and all permissions, with streamed or staged writes."""
    staging = None
    if request.param == "staged":
        staging = StagingArea(str(tmp_path), "bucket", 64 * MIB)
    with mounted({b"a": b"earlier"}, staging=staging, **ALL) as world:
        yield world
    if staging is not None:
        staging.close()


def open_as_kernel(world: Mounted, path: bytes, flags: int, process: int) -> HandleNumber:
    """Open a file by name; after ESTALE the kernel looks it up once more."""
    number = world.look(path).inode
    try:
        return world.fs.open(number, flags, process)
    except StaleInode:
        again = world.look(path).inode
        assert again != number
        return world.fs.open(again, flags, process)


def cut_as_kernel(world: Mounted, path: bytes) -> None:
    """Truncate a file to zero bytes, by name."""
    try:
        world.fs.set_attributes(world.look(path).inode, size_bytes=0, mtime_ns=None)
    except StaleInode:
        world.fs.set_attributes(world.look(path).inode, size_bytes=0, mtime_ns=None)


def cut_open(world: Mounted, handle: HandleNumber, number: InodeNumber, size: int = 0) -> None:
    """Truncate a file through a descriptor."""
    world.fs.set_attributes(number, size_bytes=size, mtime_ns=None, handle=handle)


# --- Readers ---


@pytest.mark.parametrize(
    "flags", [OVERWRITE, os.O_RDWR | os.O_TRUNC, APPEND, os.O_RDWR | os.O_APPEND]
)
def test_a_reader_keeps_its_version(world: Mounted, flags: int) -> None:
    """A reader keeps size and bytes of its version to the end; a writer gets another inode."""
    number = world.look(b"a").inode
    reader = world.fs.open(number, os.O_RDONLY)
    writer = open_as_kernel(world, b"a", flags, ONE)
    start = 0 if flags & os.O_TRUNC else 7
    world.fs.write(writer, start, b"later")
    world.close(writer, ONE)
    assert world.client.content(b"a") == (b"later" if flags & os.O_TRUNC else b"earlierlater")
    assert world.fs.getattr(number).size_bytes == 7
    assert bytes(world.fs.read(reader, 0, 100)) == b"earlier"
    world.fs.release(reader)
    world.fs._inodes.check()
    assert world.read_file(world.look(b"a").inode) == world.client.content(b"a")


def test_a_reader_and_a_cut_by_name(world: Mounted) -> None:
    """truncate(2) gets another inode, too."""
    number = world.look(b"a").inode
    reader = world.fs.open(number, os.O_RDONLY)
    cut_as_kernel(world, b"a")
    assert world.client.content(b"a") == b""
    assert world.fs.getattr(number).size_bytes == 7
    assert bytes(world.fs.read(reader, 0, 100)) == b"earlier"


def test_a_reader_of_an_inode_that_was_left(world: Mounted) -> None:
    """A program with only the old inode has to look up again."""
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    open_as_kernel(world, b"a", OVERWRITE, ONE)
    with pytest.raises(StaleInode):
        world.fs.open(number, os.O_RDONLY)


@pytest.mark.parametrize("flags", [OVERWRITE, APPEND])
@pytest.mark.parametrize("closed", [False, True])
def test_readers_of_two_versions(world: Mounted, flags: int, closed: bool) -> None:
    """A writer gets an inode without readers, although the newest version has readers, too.

    The kernel looks up only once. It may know the inode of an earlier version by the name still.
    """
    number = world.look(b"a").inode
    earlier = world.fs.open(number, os.O_RDONLY)
    world.client.put(b"a", b"others'")
    world.pass_s(2.0)
    newest = world.look(b"a").inode
    later = world.fs.open(newest, os.O_RDONLY)
    assert bytes(world.fs.read(later, 0, 100)) == b"others'"
    if closed:
        world.fs.release(later)
    with pytest.raises(StaleInode):
        world.fs.open(number, flags, ONE)
    writer = world.fs.open(world.look(b"a").inode, flags, ONE)
    world.fs.write(writer, 0 if flags & os.O_TRUNC else 7, b"mine")
    world.close(writer, ONE)
    assert world.client.content(b"a") == (b"mine" if flags & os.O_TRUNC else b"others'mine")
    assert bytes(world.fs.read(earlier, 0, 100)) == b"earlier"
    if not closed:
        assert bytes(world.fs.read(later, 0, 100)) == b"others'"
    world.fs._inodes.check()


def test_a_name_that_leads_to_the_same_inode_again(world: Mounted) -> None:
    """A program that opens a name again after ESTALE, without a lookup, has no reference."""
    numbers = [world.look(b"a").inode]
    for content in (b"theirs", b"theirs, later"):
        world.client.put(b"a", content)
        with pytest.raises(StaleInode):
            world.fs.open(numbers[-1], os.O_RDONLY, ONE, thread=ONE)
        if len(numbers) == 1:
            numbers.append(world.fs.lookup(ROOT, b"a", ONE).inode)
    assert len(set(numbers)) == 2
    with pytest.raises(StaleInode):
        world.fs.open(numbers[-1], os.O_RDONLY, ONE, thread=ONE)


def test_a_reader_does_not_end_the_wait_for_a_writer(
    world: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer that looks its name up again is expected, although a reader's open fails."""
    monkeypatch.setattr(readers, "RETURN_S", 0.05)
    monkeypatch.setattr(readers, "CLOSE_S", 0.0)
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    with pytest.raises(Superseded):
        world.fs.open(number, OVERWRITE, ONE)
    with pytest.raises(NotPermitted):
        open_by_reference(world, number, os.O_RDONLY)
    assert b"a" in world.fs._readers.expected
    writer = world.fs.open(world.look(b"a").inode, OVERWRITE, ONE)
    assert not world.fs._readers.expected
    world.close(writer, ONE)


def test_more_readers_than_may_wait_for_a_writer(world: Mounted) -> None:
    """They look the name up again, instead of opening the inode that the writer is to get."""
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    with pytest.raises(Superseded):
        world.fs.open(number, OVERWRITE, ONE)
    world.fs._readers._max_waiting = 0
    number = world.look(b"a").inode
    with pytest.raises(Superseded):
        world.fs.open(number, os.O_RDONLY, TWO)
    assert world.look(b"a").inode == number
    world.close(world.fs.open(number, OVERWRITE, ONE), ONE)
    world.fs.release(world.fs.open(world.look(b"a").inode, os.O_RDONLY, TWO))


def test_appending_after_a_truncation(world: Mounted) -> None:
    """With O_APPEND bytes go to the end, although the kernel does not know the new end yet."""
    appending = open_as_kernel(world, b"a", APPEND, ONE)
    assert world.fs.write(appending, 7, b", one", appends=True) == 5
    world.fs.fsync(appending)
    number = world.look(b"a").inode
    cut_open(world, appending, number)
    assert world.fs.write(appending, 12, b"two", appends=True) == 3
    assert world.fs.write(appending, 15, b", three", appends=True) == 7
    world.close(appending, ONE)
    assert world.client.content(b"a") == b"two, three"


def test_reading_during_a_truncation(world: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the kernel knows the new size it must cache no pages, which would end in zeros."""
    operations = Operations(world.fs, lambda: None)
    direct: list[int] = []
    monkeypatch.setattr(operations_module, "go_direct", lambda: direct.append(1))
    ctx = SimpleNamespace(pid=ONE, uid=0, gid=0)
    number = world.look(b"a").inode
    operations.release(operations.open(number, os.O_RDONLY, ctx))
    assert direct == []
    world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)
    number = world.look(b"a").inode
    operations.release(operations.open(number, os.O_RDONLY, ctx))
    assert direct == [1]
    world.pass_s(2.0)
    world.fs.sweep()
    assert world.fs.resized == {}
    operations.release(operations.open(world.look(b"a").inode, os.O_RDONLY, ctx))
    assert direct == [1]


@pytest.mark.parametrize("refused", ["joined", "failed", "twice", "gone"])
def test_a_writer_that_is_not_expected_any_more(world: Mounted, refused: str) -> None:
    """Readers do not wait for a writer that has joined another one, or has failed."""
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    with pytest.raises(Superseded):
        world.fs.open(number, APPEND, ONE, thread=ONE)
    if refused == "joined":
        other = world.fs.open(world.look(b"a").inode, APPEND, TWO)
        world.fs._readers.expect(world.fs._inodes.get(world.look(b"a").inode))
        world.fs.open(world.look(b"a").inode, APPEND, ONE)
        world.close(other, TWO)
    elif refused == "gone":
        world.fs.unlink(ROOT, b"a")
        with pytest.raises(NoSuchEntry):
            world.fs.lookup(ROOT, b"a", ONE)
    elif refused == "twice":  # the kernel looks up once
        number = world.fs.lookup(ROOT, b"a", ONE).inode
        world.client.put(b"a", b"theirs")
        with pytest.raises(StaleInode):
            world.fs.open(number, APPEND, ONE, thread=ONE)
    else:
        world.client.inject("head", Fault(error=AccessDenied("no", status=403)))
        with pytest.raises(AccessDenied):
            world.fs.open(world.look(b"a").inode, APPEND, ONE)
    assert not world.fs._readers.expected


def open_by_reference(world: Mounted, number: InodeNumber, flags: int) -> HandleNumber:
    """Open a file by its descriptor, as the kernel does: with the same inode, twice."""
    with suppress(StaleInode):
        return world.fs.open(number, flags, ONE, thread=ONE)
    return world.fs.open(number, flags, ONE, thread=ONE)


def test_a_reference_to_a_file_that_is_read(
    world: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write by descriptor is refused with a reason while others read, and works afterwards."""
    monkeypatch.setattr(readers, "RETURN_S", 0.0)
    number = world.look(b"a").inode
    reader = world.fs.open(number, os.O_RDONLY)
    with pytest.raises(NotPermitted, match="being read") as caught:
        open_by_reference(world, number, OVERWRITE)
    assert "/proc/self/fd" in caught.value.hint
    with pytest.raises(Superseded):
        world.fs.open(number, OVERWRITE, TWO, thread=TWO)
    assert bytes(world.fs.read(reader, 0, 100)) == b"earlier"
    world.fs.release(reader)
    writer = open_by_reference(world, number, OVERWRITE)
    world.fs.write(writer, 0, b"later")
    world.close(writer, ONE)
    assert world.client.content(b"a") == b"later"
    reader = open_by_reference(world, number, os.O_RDONLY)
    assert bytes(world.fs.read(reader, 0, 100)) == b"later"
    world.fs._inodes.check()


def test_a_name_that_leads_to_an_old_inode(world: Mounted) -> None:
    """A thread that has looked a name up holds no reference, though it opens an inode again."""
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    for _ in range(2):
        with pytest.raises(Superseded):
            world.fs.open(number, OVERWRITE, ONE, thread=ONE)
        world.fs.lookup(ROOT, b"a", ONE)


@pytest.mark.parametrize("flags", [os.O_RDONLY, OVERWRITE, APPEND])
def test_a_reference_to_an_earlier_version(world: Mounted, flags: int) -> None:
    """The name's present version is opened, and has its attributes."""
    number = world.look(b"a").inode
    world.client.put(b"a", b"theirs, larger")
    handle = open_by_reference(world, number, flags)
    if flags == os.O_RDONLY:
        assert bytes(world.fs.read(handle, 0, 100)) == b"theirs, larger"
        assert world.fs.getattr(number).size_bytes == 14
    else:
        world.fs.write(handle, 14 if flags == APPEND else 0, b", and ours")
    world.close(handle, ONE)
    expected = {os.O_RDONLY: b"theirs, larger", OVERWRITE: b", and ours"}
    assert world.client.content(b"a") == expected.get(flags, b"theirs, larger, and ours")
    world.client.put(b"a", b"theirs again")
    world.pass_s(60)
    with pytest.raises(StaleInode):
        world.fs.getattr(number, TWO)
    assert world.fs.getattr(number, TWO).size_bytes == 12
    world.client.delete(b"a")
    with pytest.raises((StaleInode, NoSuchEntry)):
        open_by_reference(world, number, os.O_RDONLY)
    world.fs._inodes.check()


def test_a_reference_to_a_name_that_others_write(world: Mounted) -> None:
    """An old inode is no way around a writer with another inode."""
    number = world.look(b"a").inode
    reader = world.fs.open(number, os.O_RDONLY)
    writer = open_as_kernel(world, b"a", OVERWRITE, TWO)
    world.fs.release(reader)
    world.fs.write(writer, 0, b"theirs")
    for flags in (os.O_RDONLY, OVERWRITE):
        with pytest.raises(NotPermitted, match="being written"):
            open_by_reference(world, number, flags)
    world.close(writer, TWO)
    reader = open_by_reference(world, number, os.O_RDONLY)
    assert bytes(world.fs.read(reader, 0, 100)) == b"theirs"


@pytest.mark.parametrize("drops", [True, False])
def test_the_inode_of_a_staged_file(tmp_path: Path, drops: bool) -> None:
    """The inode stays if the kernel has no old pages of it; otherwise a new one is used."""
    staging = StagingArea(str(tmp_path), "bucket", 64 * MIB)
    with mounted({b"a": b"earlier"}, staging=staging, **ALL) as world:
        dropped: list[InodeNumber] = []

        def drop(number: InodeNumber) -> bool:
            dropped.append(number)
            return drops

        world.fs._readers._drop_pages = drop
        number = world.look(b"a").inode
        writer = world.fs.open(number, OVERWRITE, ONE)
        world.fs.write(writer, 0, b"later")
        world.close(writer, ONE)
        assert dropped == [number]
        assert (world.look(b"a").inode == number) == drops
        assert world.read_file(world.look(b"a").inode) == b"later"
        world.fs._inodes.check()
    staging.close()


def test_readers_wait_for_a_writer_that_looks_again(
    world: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that opens the new inode before the writer waits for the writer."""
    monkeypatch.setattr(readers, "RETURN_S", 60.0)
    number = world.look(b"a").inode
    world.fs.open(number, os.O_RDONLY)
    with pytest.raises(Superseded):
        world.fs.open(number, OVERWRITE, ONE)
    again = world.look(b"a").inode
    found: list[bytes | str] = []

    def read() -> None:
        try:
            found.append(bytes(world.fs.read(world.fs.open(again, os.O_RDONLY, TWO), 0, 100)))
        except NotPermitted as error:
            found.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    while not world.fs._readers._waiting:
        reader.join(0.001)
    writer = world.fs.open(again, OVERWRITE, ONE)
    reader.join()
    assert found in ([b""], ["the file is being written"])  # staged: all see the writes
    world.close(writer, ONE)


def test_a_reader_that_a_writer_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes after the writer's check does not get changed bytes."""
    with mounted({b"a": b"earlier"}, **ALL) as world:
        number = world.look(b"a").inode
        added = world.fs._local.add_file
        opened: list[HandleNumber] = []

        def add(writer: Writer) -> bool:
            if not opened:
                opened.append(world.fs.open(number, os.O_RDONLY, TWO))
            return added(writer)

        monkeypatch.setattr(world.fs._local, "add_file", add)
        writer = open_as_kernel(world, b"a", OVERWRITE, ONE)
        world.fs.write(writer, 0, b"later")
        world.close(writer, ONE)
        assert bytes(world.fs.read(opened[0], 0, 100)) == b"earlier"
        assert world.client.content(b"a") == b"later"
        assert world.client.uploads == {}


def test_a_writer_that_a_reader_does_not_see(
    world: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader notices a writer that comes after the reader's check."""
    number = world.look(b"a").inode
    begin = world.fs._readers.begin
    opened: list[HandleNumber] = []

    def begin_late(inode: Inode) -> None:
        if not opened:
            opened.append(world.fs.open(number, OVERWRITE, ONE))
        begin(inode)

    monkeypatch.setattr(world.fs._readers, "begin", begin_late)
    if isinstance(world.fs._backend, StreamedWrites):
        with pytest.raises(NotPermitted, match="being written"):
            world.fs.open(number, os.O_RDONLY, TWO)
    else:
        assert bytes(world.fs.read(world.fs.open(number, os.O_RDONLY, TWO), 0, 100)) == b""
    assert not world.fs._readers._counts


def test_replaced_by_others_and_read_here() -> None:
    """The kernel looks up only once, and finds the present version, not just another inode."""
    with mounted({b"a": b"earlier"}, **ALL) as world:
        number = world.look(b"a").inode
        world.fs.open(number, os.O_RDONLY)
        world.client.put(b"a", b"theirs")
        writer = open_as_kernel(world, b"a", APPEND, ONE)
        world.fs.write(writer, 6, b"2")
        world.close(writer, ONE)
        assert world.client.content(b"a") == b"theirs2"


# --- Appending by several ---


@pytest.mark.parametrize("size", [0, 5, PART + 1])
def test_two_append(size: int) -> None:
    """Appends by turns are all in the file, after each of the two closes."""
    earlier = os.urandom(size)
    with mounted({b"a": earlier}, **ALL) as world:
        number = world.look(b"a").inode
        one, two = (world.fs.open(number, APPEND, each) for each in (ONE, TWO))
        world.fs.write(one, size, b"1")
        world.fs.write(two, size + 1, b"2")
        world.close(one, ONE)
        assert world.client.content(b"a") == earlier + b"12"
        world.fs.write(two, size + 2, b"3")
        third = world.fs.open(world.look(b"a").inode, APPEND, 300)
        assert world.look(b"a").size_bytes == size + 3
        world.fs.write(third, size + 3, b"4")
        world.close(two, TWO)
        world.close(third, 300)
        assert world.client.content(b"a") == earlier + b"1234"
        assert world.client.uploads == {}
        assert world.fs._local.writers() == []


def test_one_of_two_is_killed() -> None:
    """The bytes of the closed writer are in the file."""
    with mounted({b"a": b"0"}, **ALL) as world:
        number = world.look(b"a").inode
        one, two = (world.fs.open(number, APPEND, each) for each in (ONE, TWO))
        world.fs.write(one, 1, b"1")
        world.close(one, ONE)
        world.fs.write(two, 2, b"2")
        with pytest.raises(WriterKilled):
            world.close(two, TWO, killed=True)
        assert world.client.content(b"a") == b"01"


def test_writing_waits_for_an_upload_that_ends() -> None:
    """A write during another handle's close waits, and is appended."""
    with mounted({b"a": b"0"}, **ALL) as world:
        number = world.look(b"a").inode
        one, two = (world.fs.open(number, APPEND, each) for each in (ONE, TWO))
        world.fs.write(one, 1, b"1")
        sending, go_on = threading.Event(), threading.Event()
        put = world.client.put_object

        def put_object(*arguments: object) -> object:
            sending.set()
            assert go_on.wait(20)
            return put(*arguments)  # type: ignore[arg-type]

        world.client.put_object = put_object  # type: ignore[method-assign, assignment]
        close = threading.Thread(target=world.close, args=(one, ONE))
        close.start()
        assert sending.wait(20)
        write = threading.Thread(target=world.fs.write, args=(two, 2, b"2"))
        write.start()
        go_on.set()
        write.join()
        close.join()
        world.close(two, TWO)
        assert world.client.content(b"a") == b"012"


def test_an_append_waits_for_a_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append to a file that is being replaced waits for the writer's end."""
    monkeypatch.setattr(write_opener, "TURN_S", 60.0)
    with mounted(**ALL) as world:
        handle = world.create(b"a", ONE)
        world.fs.write(handle, 0, b"1")
        number = world.look(b"a").inode
        close = threading.Timer(0.05, world.close, [handle, ONE])
        close.start()
        append = open_as_kernel(world, b"a", APPEND, TWO)
        close.join()
        assert world.look(b"a").inode != number or not world.fs._inodes.get(number).paged
        world.fs.write(append, 1, b"2")
        world.close(append, TWO)
        assert world.client.content(b"a") == b"12"


def test_appending_to_an_object_replaced_by_others() -> None:
    """A locally open file that others replaced is not joined: the kernel looks up again."""
    with mounted({b"a": b"0"}, **ALL) as world:
        number = world.look(b"a").inode
        one = world.fs.open(number, APPEND, ONE)
        world.fs.write(one, 1, b"1")
        world.fs.fsync(one)
        world.client.put(b"a", b"theirs")
        for flags in (APPEND, os.O_RDONLY):
            with pytest.raises(StaleInode):
                world.fs.open(number, flags, TWO)
        two = world.fs.open(world.look(b"a").inode, APPEND, TWO)
        world.fs.write(two, 6, b"2")
        world.close(two, TWO)
        assert world.client.content(b"a") == b"theirs2"
        with pytest.raises(PreconditionFailed):
            world.fs.write(one, 2, b"lost")


@pytest.mark.parametrize("refused", [False, True])
def test_others_append_while_s3_is_asked(refused: bool) -> None:
    """A version that another program of this mount has just made is appended to."""
    with mounted({b"a": b"0"}, **ALL) as world:
        number = world.look(b"a").inode
        head = world.client.head
        asked: list[bytes] = []

        def head_late(key: bytes) -> object:
            asked.append(key)
            answer = None if refused else head(key)
            if len(asked) == 1:
                one = world.fs.open(number, APPEND, ONE)
                world.fs.write(one, 1, b"1")
                world.close(one, ONE)
            return answer or head(key)

        world.client.head = head_late  # type: ignore[method-assign, assignment]
        two = world.fs.open(number, APPEND, TWO)
        world.fs.write(two, 2, b"2")
        world.close(two, TWO)
        assert world.client.content(b"a") == b"012"


def test_fsync_reports_an_error_of_a_write() -> None:
    """fsync reports the error while the file is open, even if S3 has the old object."""
    with mounted() as world:
        handle = world.create(b"a", ONE)
        world.fs.fsync(handle)
        with pytest.raises(NotSequential):
            world.fs.write(handle, 1, b"x")
        with pytest.raises(NotSequential):
            world.fs.fsync(handle)
        world.fs.release(handle)
        assert world.client.content(b"a") == b""


# --- Locks ---


@pytest.mark.parametrize("flags", [LOCK, os.O_RDWR, os.O_WRONLY, OVERWRITE, APPEND])
def test_a_new_file_is_opened_twice(flags: int) -> None:
    """While nothing is written, a second open for writing shares the inode."""
    with mounted() as world:
        one, found = world.fs.create(ROOT, b"a", LOCK, ONE)
        two = world.fs.open(found.inode, flags, TWO)
        assert bytes(world.fs.read(two, 0, 100)) == b""
        assert world.look(b"a").inode == found.inode
        world.close(one, ONE)
        assert world.client.keys() == []
        world.close(two, TWO)
        assert world.client.content(b"a") == b""


def test_reading_a_new_file() -> None:
    """Reading a new file is refused, unless it stays empty: flock(1)."""
    with mounted() as world:
        world.create(b"a", ONE)
        with pytest.raises(NotPermitted):
            world.fs.open(world.look(b"a").inode, os.O_RDONLY, TWO)
        lock, found = world.fs.create(ROOT, b"lock", os.O_RDONLY, ONE)
        other = world.fs.open(found.inode, os.O_RDONLY, TWO)
        world.fs.release(other)
        world.close(lock, ONE)
        assert world.client.content(b"lock") == b""


def test_a_write_that_would_harm_others() -> None:
    """If two programs share a file, a write elsewhere is refused, and the file continues."""
    with mounted() as world:
        one, found = world.fs.create(ROOT, b"a", LOCK, ONE)
        two = world.fs.open(found.inode, LOCK, TWO)
        world.fs.write(one, 0, b"123")
        with pytest.raises(NotSequential):
            world.fs.write(two, 0, b"4")
        world.close(two, TWO)
        assert world.client.keys() == []
        world.close(one, ONE)
        assert world.client.content(b"a") == b"123"


# --- Reading files that are open for writing ---


def test_reading_synced_bytes() -> None:
    """Bytes in S3 can be read through any descriptor; a read waits for an upload in progress."""
    with mounted(**ALL) as world:
        handle, found = world.fs.create(ROOT, b"a", os.O_RDWR, ONE)
        world.fs.write(handle, 0, b"1234")
        world.fs.fsync(handle)
        reader = world.fs.open(found.inode, os.O_RDONLY, TWO)
        for each in (handle, reader):
            assert bytes(world.fs.read(each, 1, 100)) == b"234"
            assert bytes(world.fs.read(each, 4, 100)) == b""
        world.fs.write(handle, 4, b"56")
        for each in (handle, reader):
            assert bytes(world.fs.read(each, 1, 2)) == b"23"
            with pytest.raises(BadHandle):
                world.fs.read(each, 3, 3)
        world.close(handle, ONE)
        assert bytes(world.fs.read(reader, 0, 100)) == b"123456"
        world.fs.release(reader)


def test_cut_to_nothing_after_a_sync() -> None:
    """A synced file that its writer truncates starts again."""
    with mounted() as world:
        handle, found = world.fs.create(ROOT, b"a", os.O_RDWR, ONE)
        world.fs.write(handle, 0, b"1234")
        world.fs.fsync(handle)
        cut_open(world, handle, found.inode)
        world.fs.write(handle, 0, b"5")
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"5"


# --- Opened to be read and written ---


def test_read_and_written_anew() -> None:
    """PHP's `r+`, Samba, `copytruncate`: one descriptor reads the content and replaces it."""
    with mounted({b"a": b"earlier"}, **ALL) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDWR, ONE)
        assert bytes(world.fs.read(handle, 0, 100)) == b"earlier"
        cut_open(world, handle, number)
        assert world.look(b"a").size_bytes == 0
        world.fs.write(handle, 0, b"later")
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"later"
        assert world.look(b"a").inode == number
        world.fs._inodes.check()


def test_read_and_replaced_by_others_meanwhile() -> None:
    """A version that was not read is not replaced."""
    with mounted({b"a": b"earlier"}, **ALL) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDWR, ONE)
        world.client.put(b"a", b"theirs")
        cut_open(world, handle, number)
        world.fs.write(handle, 0, b"later")
        with pytest.raises(PreconditionFailed):
            world.close(handle, ONE)
        assert world.client.content(b"a") == b"theirs"


def test_not_while_others_read_it() -> None:
    """A descriptor keeps its inode: it is not truncated while others read it."""
    with mounted({b"a": b"earlier"}, **ALL) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDWR, ONE)
        reader = world.fs.open(number, os.O_RDONLY, TWO)
        for change in (
            lambda: cut_open(world, handle, number),
            lambda: world.fs.write(handle, 7, b"x"),
        ):
            with pytest.raises(NotPermitted, match="being read") as caught:
                change()
            assert "--staged-writes" in caught.value.hint
        world.fs.release(reader)
        world.fs.write(handle, 7, b"x")
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"earlierx"


def test_cut_to_the_size_that_it_has() -> None:
    """Truncation to the present size changes nothing, and needs no option."""
    with mounted({b"a": b"123", b"b": b""}) as world:
        for name, size in ((b"a", 3), (b"b", 0)):
            number = world.look(name).inode
            handle = world.fs.open(number, os.O_RDWR, ONE)
            cut_open(world, handle, number, size)
            world.close(handle, ONE)
        assert world.client.count("put_object") == 0


@pytest.mark.parametrize("option", ["allow_append", "allow_overwrite"])
def test_an_empty_file_that_is_read_and_written(option: str) -> None:
    """Overwriting an empty file and appending to it are the same."""
    with mounted({b"a": b""}, **{option: True}) as world:
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR, ONE)
        world.fs.write(handle, 0, b"1")
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"1"


# --- Removed while it is written ---


@pytest.mark.parametrize("size", [0, 3, 2 * PART])
def test_removing_a_new_file(size: int) -> None:
    """No object is created, no option is needed, and open descriptors work without errors."""
    with mounted() as world:
        handle = world.create(b"a", ONE)
        number = world.look(b"a").inode
        if size:
            world.fs.write(handle, 0, bytes(size))
        world.fs.unlink(ROOT, b"a")
        assert world.fs.getattr(number).links == 0
        assert world.fs.being_written() == []
        world.fs.set_attributes(number, size_bytes=None, mtime_ns=5, mode=0o600)
        with pytest.raises(NoSuchEntry):
            world.look(b"a")
        assert world.names() == []
        world.fs.write(handle, size, b"more")
        assert world.fs.getattr(number).size_bytes == size + 4
        cut_open(world, handle, number, 2)
        assert world.fs.getattr(number).size_bytes == 2
        world.write_file(b"a", b"another")
        world.fs.fsync(handle)
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"another"
        assert (world.client.uploads, world.fs._local.writers()) == ({}, [])
        world.fs._inodes.check()


def test_removing_a_file_that_replaces_another() -> None:
    """This deletes an object, and needs the option."""
    for allowed in (False, True):
        with mounted({b"a": b"1"}, allow_overwrite=True, allow_delete=allowed) as world:
            handle = world.fs.open(world.look(b"a").inode, OVERWRITE, ONE)
            world.fs.write(handle, 0, b"2")
            if allowed:
                world.fs.unlink(ROOT, b"a")
            else:
                with pytest.raises(NotPermitted) as caught:
                    world.fs.unlink(ROOT, b"a")
                assert "--allow-delete" in caught.value.hint
            world.close(handle, ONE)
            assert world.client.keys() == ([] if allowed else [b"a"])


def test_removed_while_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last close and the removal each think that the other one ends the file: one does."""
    close = Lifecycle.close
    with mounted({}, **ALL) as world:
        fs = world.fs

        def close_and_unlink(life: Lifecycle) -> None:
            monkeypatch.setattr(Lifecycle, "close", close)
            close(life)
            fs.unlink(ROOT, b"new")

        handle = world.create(b"new")
        world.fs.write(handle, 0, b"written")
        monkeypatch.setattr(Lifecycle, "close", close_and_unlink)
        world.fs.release(handle)
        assert world.fs._local.writers() == []
        assert world.client.keys() == []
        world.close(world.create(b"new"))
        assert world.client.keys() == [b"new"]


def test_changing_the_size_of_a_removed_file() -> None:
    """There is nothing to change once all programs have closed it."""
    with mounted({}, **ALL) as world:
        handle = world.create(b"new")
        number = world.look(b"new").inode
        world.fs.unlink(ROOT, b"new")
        writer = world.fs._local.writer(world.fs._inodes.get(number))
        world.fs.release(handle)
        assert isinstance(writer, StreamedWriter)
        world.fs._local.add_removed(writer)  # as before its last close
        with pytest.raises(StaleInode):
            world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)


def test_a_removal_that_fails() -> None:
    """After a failed removal the file is created."""
    with mounted({b"a": b"1"}, **ALL) as world:
        handle = world.fs.open(world.look(b"a").inode, OVERWRITE, ONE)
        world.fs.write(handle, 0, b"2")

        def refuse(request: Request) -> Fault | None:
            return Fault(error=PreconditionFailed()) if request.kind == "delete_object" else None

        world.client.script = refuse
        with pytest.raises(PreconditionFailed):
            world.fs.unlink(ROOT, b"a")
        world.client.script = None
        world.close(handle, ONE)
        assert world.client.content(b"a") == b"2"


def test_removed_after_a_sync() -> None:
    """Writes after the deletion are discarded without an error."""
    with mounted(**ALL) as world:
        handle = world.create(b"a", ONE)
        world.fs.write(handle, 0, b"1")
        world.fs.fsync(handle)
        world.fs.unlink(ROOT, b"a")
        world.fs.write(handle, 1, b"2")
        world.close(handle, ONE)
        assert world.client.keys() == []


ENDS: list[Callable[[Mounted, HandleNumber], None]] = [
    lambda world, handle: world.close(handle, ONE),
    lambda world, handle: world.fs.fsync(handle),
]


@pytest.mark.parametrize("end", ENDS)
def test_a_removal_waits_for_an_upload_that_ends(
    end: Callable[[Mounted, HandleNumber], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that is just ending is waited for, and its object removed."""
    monkeypatch.setattr(lifecycle, "SETTLE_S", 60.0)
    with mounted(**ALL) as world:
        handle = world.create(b"a", ONE)
        world.fs.write(handle, 0, b"1")
        sending, go_on = threading.Event(), threading.Event()
        put = world.client.put_object

        def put_object(*arguments: object) -> object:
            sending.set()
            assert go_on.wait(20)
            return put(*arguments)  # type: ignore[arg-type]

        world.client.put_object = put_object  # type: ignore[method-assign, assignment]
        ending = threading.Thread(target=end, args=(world, handle))
        ending.start()
        assert sending.wait(20)
        removal = threading.Thread(target=world.fs.unlink, args=(ROOT, b"a"))
        removal.start()
        go_on.set()
        ending.join()
        removal.join()
        assert world.client.keys() == []
