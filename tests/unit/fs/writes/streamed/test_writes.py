"""Changes of the bucket without a kernel: files, directories, deletions."""

import concurrent.futures
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from mountpoint.config import MIB, WriteConfig
from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    BadArgument,
    BadHandle,
    DirectoryNotEmpty,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    NotPermitted,
    NotSequential,
    OperationError,
    S3Error,
    StaleInode,
    TooLarge,
    WriterKilled,
)
from mountpoint.fs.inodes import ROOT
from mountpoint.fs.writes.streamed import lifecycle
from mountpoint.fs.writes.streamed import open as write_opener
from mountpoint.fs.writes.streamed import writes as streamed_writes
from mountpoint.fs.writes.streamed.content import StreamedContent
from mountpoint.fs.writes.streamed.writer import StreamedWriter
from mountpoint.s3.client import ALWAYS, Body, Condition, PutOptions, Written
from tests.unit.fake_client import Fault, Request
from tests.unit.mounted import Mounted, mounted

OVERWRITE = os.O_WRONLY | os.O_TRUNC
OPENER, CHILD = 100, 101
PART = WriteConfig().part_size_bytes


def is_there(world: Mounted, path: bytes) -> bool:
    """Whether a lookup succeeds."""
    try:
        world.look(path)
    except NoSuchEntry:
        return False
    return True


def writes(world: Mounted) -> list[str]:
    """Return the kinds of all requests that changed the bucket, in order."""
    asked = [request.kind for request in world.client.requests]
    return [kind for kind in asked if kind not in ("head", "list", "get")]


# --- New files ---


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART])
def test_a_new_file(size: int) -> None:
    """A closed file exists with all its bytes, and keeps its inode number."""
    data = os.urandom(size)
    with mounted() as world:
        handle = world.create(b"a")
        number = world.look(b"a").inode
        for offset in range(0, size, MIB):
            world.fs.write(handle, offset, data[offset : offset + MIB])
        assert world.client.keys() == []
        world.close(handle)
        assert world.client.content(b"a") == data
        found = world.look(b"a")
        assert (found.inode, found.size_bytes) == (number, size)
        assert world.fs.getattr(number).size_bytes == size
        assert world.read_file(number) == data
        assert world.budget.held_bytes == 0 or size <= PART  # the prefetched initial range


def test_requests_of_a_small_file() -> None:
    """A small file is one PUT, and its existence is known without a request."""
    with mounted() as world:
        world.write_file(b"a", b"content")
        world.look(b"a")
        assert [request.kind for request in world.client.requests] == ["put_object"]


def test_attributes_while_it_is_written() -> None:
    """Size and time grow with the writes, and the kernel must ask each time."""
    with mounted() as world:
        handle, attributes = world.fs.create(ROOT, b"a", os.O_WRONLY, OPENER)
        assert (attributes.size_bytes, attributes.ttl_s) == (0, 0.0)
        assert stat.S_ISREG(attributes.mode)
        world.pass_s(5)
        world.fs.write(handle, 0, b"12345")
        for found in (world.look(b"a"), world.fs.getattr(attributes.inode)):
            assert (found.inode, found.size_bytes, found.ttl_s) == (attributes.inode, 5, 0.0)
        assert world.names() == [b"a"]
        assert world.client.count("put_object") == 0


def test_a_listing_names_each_file_once() -> None:
    """Files being written are listed once, after those in the bucket."""
    with mounted({b"b": b"", b"d/x": b""}, allow_overwrite=True) as world:
        number = world.look(b"b").inode
        over = world.fs.open(number, OVERWRITE)
        new = world.create(b"a")
        assert world.names() == [b"b", b"d", b"a"]
        lines = {line.name: line.inode for line in world.lines(ROOT)}
        assert lines[b"b"] == number
        assert lines[b"a"] == world.look(b"a").inode
        world.close(new)
        assert world.names() == [b"a", b"b", b"d"]
        world.close(over)


def test_a_listing_that_was_begun_before() -> None:
    """A file that is uploaded between opendir and readdir is listed once."""
    with mounted({b"b": b""}) as world:
        new = world.create(b"a")
        handle = world.fs.opendir(ROOT)
        world.close(new)
        names = [line.name for line in world.fs.readdir(handle, 2)]
        assert names == [b"a", b"b"]
        assert world.fs.readdir(handle, 4) == []


def test_positions_behind_the_listing() -> None:
    """readdir continues from any position, also among local entries."""
    with mounted({b"m": b""}) as world:
        for name in (b"z", b"a"):
            world.create(name)
        handle = world.fs.opendir(ROOT)
        names = [line.name for line in world.lines(ROOT)]
        assert names == [b".", b"..", b"m", b"a", b"z"]
        for position in range(6):
            rest: list[bytes] = []
            while some := world.fs.readdir(handle, position + len(rest)):
                rest += [line.name for line in some]
            assert rest == names[position:]


@pytest.mark.parametrize("offset", [0, 2, 4, 100])
def test_another_offset(offset: int) -> None:
    """A write at another offset fails, and so does the file."""
    with mounted() as world:
        handle = world.create(b"a")
        world.fs.write(handle, 0, b"123")
        with pytest.raises(NotSequential):
            world.fs.write(handle, offset, b"x")
        assert not is_there(world, b"a")
        with pytest.raises(NotSequential):
            world.close(handle)
        assert world.client.keys() == []
        world.write_file(b"a", b"again")
        assert world.client.content(b"a") == b"again"


def test_fsync() -> None:
    """After fsync the object exists and can be read; the close changes nothing."""
    with mounted() as world:
        handle = world.create(b"a")
        world.fs.write(handle, 0, b"123")
        world.fs.fsync(handle)
        assert world.client.content(b"a") == b"123"
        assert world.read_file(world.look(b"a").inode) == b"123"
        world.close(handle)
        assert writes(world) == ["put_object"]


@pytest.mark.parametrize("size", [3, PART + 5])
def test_going_on_after_fsync(size: int) -> None:
    """A new file continues after fsync, even without --allow-append, and is complete at the end."""
    first, second = os.urandom(size), os.urandom(4)
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, first)
        world.fs.fsync(handle)
        world.fs.write(handle, size, second)
        assert world.client.content(b"a") == first
        world.close(handle, OPENER)
        assert world.client.content(b"a") == first + second
        assert world.client.uploads == {}


# --- Who closes ---


def test_a_duplicate_is_closed_before_anything_is_written() -> None:
    """`dd` and shells duplicate a descriptor, close one, and write to the other."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.flush(handle, OPENER, killed=False)
        world.fs.write(handle, 0, b"123")
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"123"


def test_a_child_closes_inherited_files() -> None:
    """A child's close is not the end: the parent continues to write."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"1")
        world.fs.flush(handle, CHILD, killed=False)
        world.fs.write(handle, 1, b"2")
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"12"


def test_a_child_writes_the_rest() -> None:
    """If the opener closes an empty file and a child writes it, the last close uploads it."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.flush(handle, OPENER, killed=False)
        world.fs.write(handle, 0, b"123")
        world.fs.flush(handle, CHILD, killed=False)
        assert world.client.keys() == []
        world.fs.release(handle)
        assert world.client.content(b"a") == b"123"


@pytest.mark.parametrize("size", [0, 10, PART + 1])
def test_the_writer_is_killed(size: int) -> None:
    """A killed process leaves neither an object nor parts."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        if size:
            world.fs.write(handle, 0, bytes(size))
        with pytest.raises(WriterKilled):
            world.close(handle, OPENER, killed=True)
        assert (world.client.keys(), world.client.uploads) == ([], {})
        assert not is_there(world, b"a")


def test_a_child_is_killed() -> None:
    """The opener decides whether a file is complete."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"123")
        world.fs.flush(handle, CHILD, killed=True)
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"123"


def test_killed_after_the_close() -> None:
    """A closed file exists, whatever happens to the process later."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"123")
        world.fs.flush(handle, OPENER, killed=False)
        world.fs.flush(handle, CHILD, killed=True)
        world.fs.release(handle)
        assert world.client.content(b"a") == b"123"


def test_killed_in_close() -> None:
    """A process that is killed while S3 is silent waits no longer; its upload fails."""
    with mounted() as world, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sent = threading.Event()

        def silent(request: Request) -> Fault | None:
            if request.kind != "put_object":
                return None
            sent.set()
            return Fault(silent=True)

        world.client.script = silent
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"123")
        closing = pool.submit(world.close, handle, OPENER)
        assert sent.wait(10)
        world.fs.give_up(handle, CHILD)  # the opener's upload is not a child's to give up
        assert not closing.done()
        world.fs.give_up(handle, OPENER)
        with pytest.raises(WriterKilled):
            closing.result(timeout=10)
        world.fs.give_up(handle, OPENER)  # it is closed
        assert world.client.keys() == []
        assert not is_there(world, b"a")


def test_killed_beside_others() -> None:
    """An upload that several programs share does not fail with one of them."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        other = world.fs.open(world.look(b"a").inode, os.O_WRONLY, CHILD)
        world.fs.write(handle, 0, b"123")
        world.fs.give_up(handle, OPENER)
        world.close(other, CHILD)
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"123"


# --- While it is written ---


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, OVERWRITE])
def test_opened_by_others(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with written bytes cannot be read or written by others."""
    monkeypatch.setattr(write_opener, "TURN_S", 0.0)
    with mounted(allow_overwrite=True) as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.write(handle, 0, b"1")
        with pytest.raises(NotPermitted) as caught:
            world.fs.open(number, flags, OPENER)
        assert "--staged-writes" in caught.value.hint
        with pytest.raises(BadHandle) as unreadable:
            world.fs.read(handle, 0, 10)
        assert "--staged-writes" in unreadable.value.hint
        world.close(handle, OPENER)
        assert world.read_file(number) == b"1"


def test_an_empty_file_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`touch a; cat a`: an open between close and upload waits."""
    monkeypatch.setattr(lifecycle, "SETTLE_S", 60.0)
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.flush(handle, OPENER, killed=False)
        release = threading.Timer(0.05, world.fs.release, [handle])
        release.start()
        assert world.read_file(number) == b""
        release.join()


# --- Failures ---


def put_fails(request: Request) -> Fault | None:
    return Fault(error=AccessDenied()) if request.kind == "put_object" else None


def part_fails(request: Request) -> Fault | None:
    return Fault(error=AccessDenied()) if request.kind == "upload_part" else None


def complete_fails(request: Request) -> Fault | None:
    return Fault(error=AccessDenied()) if request.kind == "complete_upload" else None


@pytest.mark.parametrize(
    ("script", "size"), [(put_fails, 10), (part_fails, 2 * PART), (complete_fails, 2 * PART)]
)
def test_an_upload_that_fails(script: Callable[[Request], Fault | None], size: int) -> None:
    """The close fails, also the second time, and neither object nor parts exist."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.client.script = script
        world.fs.write(handle, 0, bytes(size))
        for _ in range(2):
            with pytest.raises(S3Error):
                world.fs.flush(handle, OPENER, killed=False)
        world.client.script = None
        assert not is_there(world, b"a")
        world.fs.release(handle)
        with pytest.raises(NoSuchEntry):
            world.fs.getattr(number)
        assert (world.client.keys(), world.client.uploads) == ([], {})
        assert world.budget.held_bytes == 0


def test_an_overwrite_that_fails() -> None:
    """The earlier version exists under another number: the kernel has pages of the failed one."""
    with mounted({b"a": b"earlier"}, allow_overwrite=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, OVERWRITE, OPENER)
        world.fs.write(handle, 0, b"later")
        world.client.script = put_fails
        with pytest.raises(AccessDenied):
            world.fs.flush(handle, OPENER, killed=False)
        world.fs.release(handle)
        world.client.script = None
        with pytest.raises(StaleInode):
            world.fs.getattr(number)
        found = world.look(b"a")
        assert found.inode != number
        assert world.read_file(found.inode) == b"earlier"


def test_somebody_else_creates_it() -> None:
    """If two writers create a name, the second close fails, and replaces nothing."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"mine")
        world.client.put(b"a", b"theirs")
        with pytest.raises(AlreadyExists):
            world.fs.flush(handle, OPENER, killed=False)
        world.fs.release(handle)
        assert world.read_file(world.look(b"a").inode) == b"theirs"
        (put,) = [each for each in world.client.requests if each.kind == "put_object"]
        assert put.condition == Condition(absent=True)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(flag: int) -> None:
    """O_SYNC is refused, because it could not be honoured."""
    with mounted() as world, pytest.raises(BadArgument):
        world.fs.create(ROOT, b"a", os.O_WRONLY | flag, OPENER)


@pytest.mark.parametrize(
    ("name", "error"), [(b"n" * 256, NameTooLong), (b"n" * 21, NameTooLong), (b"\xff", BadArgument)]
)
def test_names_that_s3_cannot_have(name: bytes, error: type[OperationError]) -> None:
    """A key has at most 1,024 bytes of UTF-8; longer ones are refused at creation."""
    prefix = b"p" * 250 + b"/"
    with mounted({prefix * 4 + b"a": b""}, prefix=prefix * 4) as world:
        for make in (world.fs.mkdir, lambda parent, name: world.fs.create(parent, name, 1, 0)):
            with pytest.raises(error):
                make(ROOT, name)
        assert world.names() == [b"a"]


# --- Overwriting ---


def test_overwriting_needs_an_option() -> None:
    """Without --allow-overwrite an existing file cannot be opened for writing."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        for flags in (os.O_WRONLY, OVERWRITE, os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(NotPermitted, match="exists") as caught:
                world.fs.open(number, flags)
            assert "--allow-overwrite" in caught.value.hint
        with pytest.raises(NotPermitted):
            world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)
        assert world.client.content(b"a") == b"1"


def test_overwriting() -> None:
    """The new version replaces the old one at the close, with the same number."""
    with mounted({b"a": b"earlier"}, allow_overwrite=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, OVERWRITE, OPENER)
        assert world.look(b"a").size_bytes == 0
        world.fs.write(handle, 0, b"later")
        assert world.client.content(b"a") == b"earlier"
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"later"
        found = world.look(b"a")
        assert (found.inode, found.size_bytes) == (number, 5)
        assert world.read_file(number) == b"later"
        world.pass_s(5)
        assert world.look(b"a").inode == number


def test_cut_to_nothing_once_it_is_open() -> None:
    """`sort -o` and `truncate -s 0` open a file first, and truncate it then."""
    with mounted({b"a": b"earlier", b"b": b"1"}, allow_overwrite=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_WRONLY, OPENER)
        assert world.look(b"a").size_bytes == 7
        world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)
        world.fs.write(handle, 0, b"later")
        world.close(handle, OPENER)
        assert world.client.content(b"a") == b"later"
        handle = world.fs.open(world.look(b"b").inode, os.O_WRONLY, OPENER)
        world.fs.set_attributes(world.look(b"b").inode, size_bytes=0, mtime_ns=None)
        world.close(handle, OPENER)
        assert world.client.content(b"b") == b""


def test_writing_into_the_middle() -> None:
    """An existing object cannot be changed in place, and stays unchanged."""
    with mounted({b"a": b"earlier"}, allow_overwrite=True) as world:
        handle = world.fs.open(world.look(b"a").inode, os.O_WRONLY, OPENER)
        with pytest.raises(NotSequential):
            world.fs.write(handle, 0, b"x")
        with pytest.raises(NotSequential):
            world.close(handle, OPENER)
        assert world.read_file(world.look(b"a").inode) == b"earlier"


def test_opened_to_read_and_write() -> None:
    """O_RDWR without truncation can read; a write fails."""
    with mounted({b"a": b"1"}) as world:
        handle = world.fs.open(world.look(b"a").inode, os.O_RDWR)
        assert bytes(world.fs.read(handle, 0, 10)) == b"1"
        with pytest.raises(BadHandle) as caught:
            world.fs.write(handle, 0, b"2")
        assert "--staged-writes" in caught.value.hint
        for change in (
            lambda: world.fs.write(handle, 1, b"2"),
            lambda: world.fs.set_attributes(
                world.look(b"a").inode, size_bytes=0, mtime_ns=None, handle=handle
            ),
        ):
            with pytest.raises(NotPermitted, match="exists"):
                change()
        world.fs.flush(handle, OPENER, killed=False)
        world.fs.fsync(handle)
        world.fs.release(handle)
        assert world.client.count("put_object") == 0


# --- Attributes and sizes ---


def test_times_of_a_file_that_is_written() -> None:
    """`touch` sets the time of its new file; later S3 has its own."""
    with mounted() as world:
        handle = world.create(b"a")
        number = world.look(b"a").inode
        found = world.fs.set_attributes(number, size_bytes=None, mtime_ns=5)
        assert found.mtime_ns == 5
        assert world.look(b"a").mtime_ns == 5
        world.close(handle)
        assert world.look(b"a").mtime_ns == world.client.info(b"a").mtime_ns


def test_attributes_cannot_be_changed() -> None:
    """Times, modes and owners of objects and directories cannot be changed."""
    with mounted({b"d/a": b"1"}) as world:
        for path in (b"d", b"d/a"):
            number = world.look(path).inode
            with pytest.raises(NotPermitted):
                world.fs.set_attributes(number, size_bytes=None, mtime_ns=5)


@pytest.mark.parametrize("written", [0, 5, PART, 2 * PART + 1])
def test_a_size_beyond_the_written_bytes(written: int) -> None:
    """The size shows immediately, can decrease again, and is filled with zeros at the end."""
    size = 3 * PART + 7
    data = os.urandom(written)
    with mounted(memory_bytes=64 * MIB) as world:
        handle = world.create(b"a")
        number = world.look(b"a").inode
        world.fs.set_attributes(number, size_bytes=size + 9, mtime_ns=None)
        for offset in range(0, written, MIB):
            world.fs.write(handle, offset, data[offset : offset + MIB])
        assert world.look(b"a").size_bytes == size + 9
        assert world.fs.set_attributes(number, size_bytes=size, mtime_ns=None).size_bytes == size
        world.close(handle)
        assert world.client.content(b"a") == data + bytes(size - written)
        assert world.look(b"a").size_bytes == size


def test_a_size_that_is_reached() -> None:
    """As safetensors writes: the final size first, then all bytes, without extra zeros."""
    data = os.urandom(2 * MIB + 1)
    with mounted() as world:
        handle = world.create(b"a")
        number = world.look(b"a").inode
        world.fs.set_attributes(number, size_bytes=len(data), mtime_ns=None)
        for offset in range(0, len(data), MIB):
            world.fs.write(handle, offset, data[offset : offset + MIB])
        world.close(handle)
        assert world.client.content(b"a") == data


@pytest.mark.parametrize("how", ["fsync", "a duplicate is closed"])
@pytest.mark.parametrize("size", [30, 2 * PART + 7])
def test_a_size_that_is_uploaded_before_it_is_reached(size: int, how: str) -> None:
    """After the zeros' upload, writes continue before them, after them, or with a new size."""
    data = os.urandom(size)
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.set_attributes(number, size_bytes=size, mtime_ns=None, handle=handle)
        for start in (0, size // 3, size // 3 * 2):
            stop = min(start + size // 3, size)
            for offset in range(start, stop, MIB):
                world.fs.write(handle, offset, data[offset : min(offset + MIB, stop)])
            if how == "fsync":
                world.fs.fsync(handle)
            else:
                world.fs.flush(handle, OPENER, killed=False)
            assert world.client.content(b"a") == data[:stop] + bytes(size - stop)
            assert world.look(b"a").size_bytes == size
            assert world.fs.read(handle, size - 3, 9) == world.client.content(b"a")[-3:]
        world.close(handle, OPENER)


@pytest.mark.parametrize("then", ["behind", "smaller", "larger"])
def test_zeros_that_were_uploaded(then: str) -> None:
    """Uploaded zeros may stay, or change again."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode

        def resize(size: int) -> None:
            world.fs.set_attributes(number, size_bytes=size, mtime_ns=None, handle=handle)

        world.fs.write(handle, 0, b"12")
        resize(5)
        world.fs.fsync(handle)
        if then == "behind":
            world.fs.write(handle, 5, b"678")
        else:
            resize(4 if then == "smaller" else 7)
            world.fs.write(handle, 2, b"3")
        world.close(handle, OPENER)
        expected = {"behind": b"12\0\0\x00678", "smaller": b"123\0", "larger": b"123\0\0\0\0"}
        assert world.client.content(b"a") == expected[then]


def test_a_size_can_be_given_up() -> None:
    """A file that is truncated to its written bytes, or to zero, has no zeros."""
    with mounted() as world:
        for name, cut in ((b"a", 3), (b"b", 0)):
            handle = world.create(name)
            number = world.look(name).inode
            world.fs.write(handle, 0, b"123")
            for size in (100, cut):
                world.fs.set_attributes(number, size_bytes=size, mtime_ns=None)
            world.close(handle)
            world.fs.sweep()
        assert world.client.content(b"a") == b"123"
        assert world.client.content(b"b") == b""


def test_zeros_beyond_the_end_set_the_size() -> None:
    """Like glibc's posix_fallocate: a zero at the end of each block, then all bytes in order."""
    with mounted() as world:
        handle = world.create(b"a")
        for offset in (4095, 8191, 9999):
            assert world.fs.write(handle, offset, b"\0") == 1
        assert world.look(b"a").size_bytes == 10_000
        world.fs.write(handle, 0, b"1" * 6000)
        world.close(handle)
        assert world.client.content(b"a") == b"1" * 6000 + bytes(4000)


def test_written_at_the_end_of_the_size_that_was_set() -> None:
    """Appends to a lengthened file come after its zeros."""
    with mounted({b"a": b"123"}, allow_append=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_WRONLY | os.O_APPEND)
        world.fs.set_attributes(number, size_bytes=5, mtime_ns=None)
        world.fs.write(handle, 5, b"45")
        world.close(handle)
        assert world.client.content(b"a") == b"123\0\00045"


def test_a_size_that_no_object_has() -> None:
    """The size is refused when it is set, and the file continues."""
    with mounted() as world:
        handle = world.create(b"a")
        with pytest.raises(TooLarge):
            world.fs.set_attributes(world.look(b"a").inode, size_bytes=1 << 60, mtime_ns=None)
        world.fs.write(handle, 0, b"1")
        world.close(handle)
        assert world.client.content(b"a") == b"1"


def test_truncation_of_a_file_that_is_written() -> None:
    """To zero restarts it, to its size changes nothing, and anything less is refused."""
    with mounted() as world:
        handle = world.create(b"a")
        number = world.look(b"a").inode
        world.fs.write(handle, 0, bytes(2 * PART))
        assert world.fs.set_attributes(number, size_bytes=2 * PART, mtime_ns=None)
        with pytest.raises(NotPermitted):
            world.fs.set_attributes(number, size_bytes=5, mtime_ns=None)
        assert world.fs.set_attributes(number, size_bytes=0, mtime_ns=None).size_bytes == 0
        world.fs.write(handle, 0, b"123")
        world.close(handle)
        assert world.client.content(b"a") == b"123"
        assert world.client.uploads == {}


def test_truncation_while_an_empty_file_is_uploaded() -> None:
    """`touch a; truncate -s 5 a`: the size is uploaded, too, and nothing stays to be written."""
    begun, go_on = threading.Event(), threading.Event()

    def script(request: Request) -> Fault | None:
        if request.kind == "put_object" and not begun.is_set():
            begun.set()
            go_on.wait()
        return None

    with mounted(allow_overwrite=True) as world:
        world.client.script = script
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.flush(handle, OPENER, killed=False)
        release = threading.Thread(target=world.fs.release, args=[handle])
        release.start()
        begun.wait()
        threading.Timer(0.05, go_on.set).start()
        try:
            world.fs.set_attributes(number, size_bytes=5, mtime_ns=None)
        except StaleInode:  # the handle is not closed yet: the kernel looks up again
            world.fs.set_attributes(world.look(b"a").inode, size_bytes=5, mtime_ns=None)
        release.join()
        assert world.client.content(b"a") == bytes(5)
        assert world.look(b"a").size_bytes == 5
        assert world.read_file(world.look(b"a").inode) == bytes(5)


def test_truncation_while_the_last_handle_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is set by name while the last handle is closed is uploaded."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        number = world.look(b"a").inode
        world.fs.flush(handle, OPENER, killed=False)
        truncate = StreamedWriter.truncate

        def late(writer: StreamedWriter, size_bytes: int) -> None:
            world.fs.release(handle)
            truncate(writer, size_bytes)

        monkeypatch.setattr(StreamedWriter, "truncate", late)
        world.fs.set_attributes(number, size_bytes=5, mtime_ns=None)
        assert world.client.content(b"a") == bytes(5)
        assert world.read_file(number) == bytes(5)


def test_truncation_of_an_existing_file() -> None:
    """An object that may be overwritten can be truncated to zero, and extended by a few MiB."""
    with mounted({b"a": b"123", b"b": b""}, allow_overwrite=True) as world:
        assert world.read_file(world.look(b"a").inode) == b"123"
        for name, size in ((b"a", 5), (b"b", streamed_writes.MAX_LENGTHENED_BYTES)):
            before = world.client.content(name)
            try:
                world.fs.set_attributes(world.look(name).inode, size_bytes=size, mtime_ns=None)
            except StaleInode:  # the kernel has pages of it
                world.fs.set_attributes(world.look(name).inode, size_bytes=size, mtime_ns=None)
            assert world.client.content(name) == before + bytes(size - len(before))
            assert world.look(name).size_bytes == size
            assert world.read_file(world.look(name).inode) == world.client.content(name)
        world.client.put(b"a", b"123")
        world.pass_s(5)
        number = world.look(b"a").inode
        assert world.fs.set_attributes(number, size_bytes=3, mtime_ns=None).size_bytes == 3
        for size in (2, streamed_writes.MAX_LENGTHENED_BYTES + 1):
            with pytest.raises(NotPermitted):
                world.fs.set_attributes(number, size_bytes=size, mtime_ns=None)
        assert world.client.content(b"a") == b"123"
        assert world.fs.set_attributes(number, size_bytes=0, mtime_ns=None).size_bytes == 0
        assert world.client.content(b"a") == b""


@pytest.mark.parametrize(("on", "expected"), [(True, "image/png"), (False, None)])
def test_content_types(on: bool, expected: str | None) -> None:
    """With --infer-content-type the content type follows the name."""
    with mounted(write=WriteConfig(content_types=on)) as world:
        seen: list[str | None] = []
        put = world.client.put_object

        def record(
            key: bytes, body: Body, options: PutOptions, condition: Condition = ALWAYS
        ) -> "Future[Written]":
            seen.append(options.content_type)
            return put(key, body, options, condition)

        world.client.put_object = record  # type: ignore[method-assign]
        world.write_file(b"a.png", b"1")
        assert seen == [expected]


# --- Deleting ---


def test_deleting_needs_an_option() -> None:
    """Without --allow-delete nothing is deleted, and the error names the option."""
    with mounted({b"a": b"1"}) as world:
        with pytest.raises(NotPermitted) as caught:
            world.fs.unlink(ROOT, b"a")
        assert "--allow-delete" in caught.value.hint
        assert world.client.keys() == [b"a"]


def test_deleting() -> None:
    """A deleted file disappears immediately from lookups and listings."""
    with mounted({b"a": b"1", b"b": b"2"}, allow_delete=True) as world:
        assert world.names() == [b"a", b"b"]
        reader = world.fs.open(world.look(b"a").inode, os.O_RDONLY)
        world.fs.unlink(ROOT, b"a")
        assert world.client.keys() == [b"b"]
        assert not is_there(world, b"a")
        assert world.names() == [b"b"]
        world.fs.release(reader)
        world.write_file(b"a", b"new")
        assert world.read_file(world.look(b"a").inode) == b"new"


def test_deleting_at_the_moment_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a file that loses its name at that moment succeeds, as a later one would."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        write = StreamedContent.write

        def late(content: StreamedContent, offset: int, data: bytes) -> int:
            world.fs.unlink(ROOT, b"a")
            return write(content, offset, data)

        monkeypatch.setattr(StreamedContent, "write", late)
        assert world.fs.write(handle, 0, b"123") == 3
        world.close(handle, OPENER)
        assert world.client.keys() == []


def test_deleting_something_other_than_a_file() -> None:
    """Directories are not deleted as files, and missing names not at all."""
    with mounted({b"d/a": b"1"}, allow_delete=True) as world:
        with pytest.raises(IsADirectory):
            world.fs.unlink(ROOT, b"d")
        with pytest.raises(NoSuchEntry):
            world.fs.unlink(ROOT, b"none")
        assert writes(world) == []


def test_a_directory_stays_when_its_last_file_is_deleted() -> None:
    """`rm d/*` leaves an empty directory, which `rmdir` removes."""
    with mounted({b"d/e/a": b"1"}, allow_delete=True) as world:
        directory = world.look(b"d/e").inode
        world.fs.unlink(directory, b"a")
        world.pass_s(60)
        assert (world.names(), world.names(world.look(b"d").inode)) == ([b"d"], [b"e"])
        world.write_file(b"d/e/new", b"")
        world.fs.unlink(directory, b"new")
        world.fs.rmdir(world.look(b"d").inode, b"e")
        world.fs.rmdir(ROOT, b"d")
        assert world.names() == []
        assert not is_there(world, b"d")


# --- Directories ---


def test_a_new_directory() -> None:
    """A new directory exists here immediately, and in S3 with its first uploaded file."""
    with mounted({b"z": b""}) as world:
        made = world.fs.mkdir(ROOT, b"d")
        assert stat.S_ISDIR(made.mode)
        inner = world.fs.mkdir(made.inode, b"e")
        world.pass_s(60)
        assert world.look(b"d/e").inode == inner.inode
        assert (world.names(), world.names(made.inode), world.names(inner.inode)) == (
            [b"z", b"d"],
            [b"e"],
            [],
        )
        assert writes(world) == []
        world.write_file(b"d/e/a", b"1")
        assert world.client.keys() == [b"d/e/a", b"z"]
        assert world.names() == [b"d", b"z"]


def test_removing_directories() -> None:
    """Only empty directories are removed, here and in the bucket."""
    with mounted({b"d/a": b"1", b"m/": b""}) as world:
        world.fs.mkdir(world.look(b"d").inode, b"e")
        world.create(b"d/e/new")
        for parent, name in ((ROOT, b"d"), (world.look(b"d").inode, b"e")):
            with pytest.raises(DirectoryNotEmpty):
                world.fs.rmdir(parent, name)
        with pytest.raises(NotPermitted, match="marker"):
            world.fs.rmdir(ROOT, b"m")
        with pytest.raises(NotADirectory):
            world.fs.rmdir(world.look(b"d").inode, b"a")
        with pytest.raises(NoSuchEntry):
            world.fs.rmdir(ROOT, b"none")
        assert world.client.keys() == [b"d/a", b"m/"]


def test_removing_a_directory_that_somebody_else_has_filled() -> None:
    """A local directory is not removed if other clients have put something in it."""
    with mounted() as world:
        world.fs.mkdir(ROOT, b"d")
        world.client.put(b"d/theirs", b"")
        with pytest.raises(DirectoryNotEmpty):
            world.fs.rmdir(ROOT, b"d")
        assert world.names(world.look(b"d").inode) == [b"theirs"]


def test_nothing_is_left() -> None:
    """At the end no memory, uploads or inodes are held."""
    with mounted(allow_delete=True, allow_overwrite=True) as world:
        fs = world.fs
        world.write_file(b"a", b"1" * (PART + 1))
        number = world.look(b"a").inode
        world.close(fs.open(number, OVERWRITE))
        fs.forget(number, 10)
        fs._inodes.check()
        assert len(fs._inodes) == 1
        assert (world.client.uploads, world.budget.held_bytes) == ({}, 0)
        assert fs._local.writers() == []


# --- Writing on ---

APPEND = os.O_WRONLY | os.O_APPEND


@pytest.mark.parametrize("size", [0, 3, PART + 5])
def test_appending(size: int) -> None:
    """The old object stays until the close, and is then the beginning of the new one."""
    earlier = os.urandom(size)
    with mounted({b"a": earlier}, allow_append=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, APPEND, OPENER)
        assert world.look(b"a").size_bytes == size
        world.fs.write(handle, size, b"more")
        assert world.look(b"a").size_bytes == size + 4
        assert world.client.content(b"a") == earlier
        world.close(handle, OPENER)
        assert world.client.content(b"a") == earlier + b"more"
        assert world.look(b"a").inode == number  # the kernel has no pages of it
        assert world.read_file(number) == earlier + b"more"
        assert world.client.uploads == {}


def test_appending_to_a_file_that_was_read() -> None:
    """The kernel may have the last page of the file, so the appended file has another inode."""
    with mounted({b"a": b"1"}, allow_append=True) as world:
        number = world.look(b"a").inode
        world.read_file(number)
        with pytest.raises(StaleInode):
            world.fs.open(number, APPEND, OPENER)
        later = world.look(b"a").inode
        assert later != number
        handle = world.fs.open(later, APPEND, OPENER)
        world.fs.write(handle, 1, b"2")
        world.close(handle, OPENER)
        assert world.look(b"a").inode == later
        assert world.read_file(later) == b"12"


def test_appending_nothing() -> None:
    """A file that is opened for appending and closed is unchanged."""
    with mounted({b"a": b"1"}, allow_append=True) as world:
        handle = world.fs.open(world.look(b"a").inode, APPEND, OPENER)
        world.close(handle, OPENER)
        assert writes(world) == []
        assert world.read_file(world.look(b"a").inode) == b"1"


def test_appending_needs_an_option() -> None:
    """Without --allow-append a file cannot be appended to, and the error names the option."""
    with mounted({b"a": b"1"}, allow_overwrite=True) as world:
        number = world.look(b"a").inode
        for flags in (APPEND, os.O_RDWR | os.O_APPEND):
            with pytest.raises(NotPermitted) as caught:
                world.fs.open(number, flags)
            assert "--allow-append" in caught.value.hint


def test_appending_to_a_changed_object() -> None:
    """The kernel has the size of its last lookup, so it must look up again."""
    with mounted({b"a": b"1"}, allow_append=True) as world:
        number = world.look(b"a").inode
        world.client.put(b"a", b"12")
        with pytest.raises(StaleInode):
            world.fs.open(number, APPEND)
        world.pass_s(2)
        handle = world.fs.open(world.look(b"a").inode, APPEND, OPENER)
        world.fs.write(handle, 2, b"3")
        world.client.put(b"a", b"somebody else's")
        with pytest.raises(S3Error):
            world.fs.flush(handle, OPENER, killed=False)
        assert world.client.content(b"a") == b"somebody else's"


@pytest.mark.parametrize("flags", [os.O_RDONLY, APPEND])
@pytest.mark.parametrize("now", [b"2", None])
def test_sharing_what_is_appended_to_a_changed_object(now: bytes | None, flags: int) -> None:
    """EPERM: a new lookup finds the file that is being written, so ESTALE would reach programs."""
    with mounted({b"a": b"1"}, allow_append=True) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, APPEND, OPENER)
        other = world.fs.open(number, flags, OPENER)
        world.close(other, OPENER)
        if now is None:
            world.client.delete(b"a")
        else:
            world.client.put(b"a", now)
        with pytest.raises(NotPermitted, match="is being written"):
            world.fs.open(number, flags, OPENER)
        assert world.look(b"a").inode == number
        world.close(handle, OPENER)
        assert writes(world) == []


@pytest.mark.parametrize("size", [3, PART + 5])
def test_a_duplicate_goes_on_after_a_close(size: int) -> None:
    """`exec 5>a; echo 1 >&5; echo 2 >&5`: each echo closes a duplicate, and nothing is lost."""
    first, second = os.urandom(size), os.urandom(4)
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, first)
        world.fs.flush(handle, OPENER, killed=False)
        assert world.client.content(b"a") == first
        world.fs.write(handle, size, second)
        world.fs.flush(handle, OPENER, killed=False)
        world.close(handle, OPENER)
        assert world.client.content(b"a") == first + second
        assert world.client.uploads == {}


def test_going_on_where_somebody_else_was() -> None:
    """Another client's version is not replaced."""
    with mounted() as world:
        handle = world.create(b"a", OPENER)
        world.fs.write(handle, 0, b"1")
        world.fs.flush(handle, OPENER, killed=False)
        world.client.put(b"a", b"theirs")
        with pytest.raises(S3Error):
            world.fs.write(handle, 1, b"2")
        with pytest.raises(S3Error):
            world.close(handle, OPENER)
        assert world.client.content(b"a") == b"theirs"


@pytest.mark.parametrize("now", [b"2", b"23", None])
def test_open_to_append_to_a_changed_object(now: bytes | None) -> None:
    """The kernel looks up again, and finds the present version, or none."""
    with mounted({b"a": b"1"}, allow_append=True) as world:
        world.names()
        number = world.look(b"a").inode
        if now is None:
            world.client.delete(b"a")
        else:
            world.client.put(b"a", now)
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_WRONLY | os.O_APPEND, 1)
        if now is None:
            with pytest.raises(NoSuchEntry):
                world.look(b"a")
            return
        handle = world.fs.open(world.look(b"a").inode, os.O_WRONLY | os.O_APPEND, 1)
        world.fs.write(handle, len(now), b"more")
        world.close(handle, 1)
        assert world.client.content(b"a") == now + b"more"
