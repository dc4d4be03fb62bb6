"""A file that could not be uploaded survives later programs that open it and are killed."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mountpoint.errors import AccessDenied, Interrupted, StagingFull, StaleInode, WriterKilled
from mountpoint.fs.handles import HandleNumber
from mountpoint.staging import recovery
from tests.unit.fake_client import Fault, Request
from tests.unit.fs.test_setattr import staged
from tests.unit.fs.writes.streamed.test_writes import is_there
from tests.unit.fs.writes.test_staged_names import kept
from tests.unit.mounted import Mounted
from tests.unit.staging_world import KEY, MIB, World, data_of
from tests.unit.waiting import until

REFUSED = Fault(error=AccessDenied("no", status=403))
FIRST, SECOND, THIRD = 11, 12, 13


def open_file(world: Mounted, process: int, flags: int = os.O_RDWR) -> HandleNumber:
    """Open the file `a` for a process."""
    return world.fs.open(world.look(b"a").inode, flags, process)


def kill(world: Mounted, handle: HandleNumber, process: int) -> None:
    """Close a file as the kernel does for a killed process."""
    world.fs.flush(handle, process, killed=True)
    world.fs.release(handle)


def keep(world: Mounted, handle: HandleNumber, process: int) -> None:
    """Close a file whose upload fails."""
    world.client.inject("put_object", REFUSED, REFUSED)
    with pytest.raises(AccessDenied):
        world.fs.flush(handle, process, killed=False)
    with pytest.raises(AccessDenied):
        world.fs.release(handle)
    world.client.inject("put_object")


@pytest.fixture(params=["new", "changed"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount with a kept file `a`, "LATER": a new file, or one that replaces another."""
    with staged(tmp_path) as world:
        if request.param == "changed":
            world.client.put(b"a", b"EARLIER"[:5])
            handle = open_file(world, FIRST)
        else:
            handle = world.create(b"a", FIRST)
        world.fs.write(handle, 0, b"LATER")
        keep(world, handle, FIRST)
        assert kept(tmp_path) == [b"LATER"]
        yield world


def check_stays(world: Mounted, path: Path) -> None:
    """Check that the kept file is unchanged, and that the next close uploads it."""
    assert kept(path) == [b"LATER"]
    (described,) = path.rglob("*.json")
    assert json.loads(described.read_text())["size"] == 5
    handle = open_file(world, THIRD)
    assert world.fs.read(handle, 0, 10) == b"LATER"
    world.close(handle, THIRD)
    assert world.client.contents() == {b"a": b"LATER"}
    assert kept(path) == []
    assert world.fs._local.writers() == []


def test_killed_without_a_write(world: Mounted, tmp_path: Path) -> None:
    """This close uploads it like any other, or the file stays."""
    world.client.inject("put_object", REFUSED)
    handle = open_file(world, SECOND)
    with pytest.raises(AccessDenied):
        kill(world, handle, SECOND)
    check_stays(world, tmp_path)


@pytest.mark.parametrize("how", ["write", "append", "cut", "anew", "anew and write", "in open"])
def test_killed_after_a_change(world: Mounted, tmp_path: Path, how: str) -> None:
    """The killed process's changes are reverted."""
    anew = os.O_TRUNC if how.startswith("anew") or how == "in open" else 0
    handle = open_file(world, SECOND, os.O_RDWR | anew)
    if how in ("write", "anew and write"):
        world.fs.write(handle, 1, b"xyz")
    elif how == "append":
        world.fs.write(handle, 5, b"xyz")
    elif how == "cut":
        number = world.look(b"a").inode
        world.fs.set_attributes(number, size_bytes=2, mtime_ns=None, handle=handle)
    assert b"LATER" in kept(tmp_path)
    if how != "in open":
        world.fs.flush(handle, SECOND, killed=True)
    with pytest.raises(WriterKilled):
        world.fs.release(handle)
    check_stays(world, tmp_path)


def test_killed_while_others_read(world: Mounted, tmp_path: Path) -> None:
    """Other programs see the kept content again, and their closes change nothing."""
    idle, reader = open_file(world, THIRD), open_file(world, THIRD, os.O_RDONLY)
    handle = open_file(world, SECOND)
    world.fs.write(handle, 0, b"partial")
    with pytest.raises(WriterKilled):
        kill(world, handle, SECOND)
    for each in (idle, reader):
        assert world.fs.read(each, 0, 10) == b"LATER"
    world.close(reader, THIRD)
    world.client.inject("put_object", REFUSED, REFUSED)
    with pytest.raises(AccessDenied):
        world.fs.flush(idle, THIRD, killed=False)
    with pytest.raises(AccessDenied):
        world.fs.release(idle)
    check_stays(world, tmp_path)


def test_killed_while_others_write(world: Mounted) -> None:
    """If two programs have changed the file, the other one's close decides."""
    other, handle = open_file(world, THIRD), open_file(world, SECOND)
    world.fs.write(other, 5, b"!")
    world.fs.write(handle, 6, b"?")
    with pytest.raises(WriterKilled):
        kill(world, handle, SECOND)
    world.close(other, THIRD)
    assert world.client.contents() == {b"a": b"LATER!?"}


def test_all_that_write_are_killed(world: Mounted, tmp_path: Path) -> None:
    """The last of them reverts all changes."""
    handles = [open_file(world, process) for process in (SECOND, THIRD)]
    for handle in handles:
        world.fs.write(handle, 0, b"partial")
    for handle, process in zip(handles, (SECOND, THIRD), strict=True):
        with pytest.raises(WriterKilled):
            kill(world, handle, process)
    check_stays(world, tmp_path)


@pytest.mark.parametrize("stored", [False, True])
def test_open_while_another_fails_to_upload(tmp_path: Path, stored: bool) -> None:
    """Bytes of a closed program survive the kill of the last one."""
    with staged(tmp_path) as world:
        if stored:
            world.client.put(b"a", b"early")
        first = open_file(world, FIRST) if stored else world.create(b"a", FIRST)
        last = open_file(world, SECOND)
        world.fs.write(first, 0, b"LATER")
        world.client.inject("put_object", REFUSED)
        with pytest.raises(AccessDenied):
            world.fs.flush(first, FIRST, killed=False)
        world.fs.release(first)
        world.fs.write(last, 0, b"partial")
        with pytest.raises(WriterKilled):
            kill(world, last, SECOND)
        check_stays(world, tmp_path)


def test_passed_on_and_closed(tmp_path: Path) -> None:
    """The last close of a handle uploads its changes, even by another process."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"early")
        first, last = open_file(world, FIRST), open_file(world, SECOND)
        world.fs.write(first, 0, b"LATER")
        world.close(first, THIRD)
        world.fs.write(last, 0, b"partial")
        with pytest.raises(WriterKilled):
            kill(world, last, SECOND)
        assert world.client.contents() == {b"a": b"LATER"}
        assert is_there(world, b"a")
        assert kept(tmp_path) == []


def test_killed_while_others_have_it_open(tmp_path: Path) -> None:
    """The others see the last uploaded content again, and continue from it."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"early")
        other, handle = open_file(world, THIRD), open_file(world, SECOND)
        world.fs.write(handle, 0, b"partial")
        with pytest.raises(WriterKilled):
            kill(world, handle, SECOND)
        assert world.fs.read(other, 0, 10) == b"early"
        world.fs.write(other, 5, b"!")
        world.close(other, THIRD)
        assert world.client.contents() == {b"a": b"early!"}


def test_a_new_file_that_others_have_open(tmp_path: Path) -> None:
    """A file that only a killed process has written is not created."""
    with staged(tmp_path) as world:
        handle = world.create(b"a", FIRST)
        world.fs.write(handle, 0, b"partial")
        reader = open_file(world, SECOND, os.O_RDONLY)
        with pytest.raises(WriterKilled):
            kill(world, handle, FIRST)
        world.close(reader, SECOND)
        assert world.client.contents() == {}
        assert not is_there(world, b"a")
        assert world.fs._local.writers() == []


# --- Cutting ---


@pytest.mark.parametrize("size", [0, 2])
def test_truncating_a_kept_file_fails(world: Mounted, tmp_path: Path, size: int) -> None:
    """The kept file is unchanged."""
    world.client.inject("put_object", REFUSED)
    with pytest.raises(AccessDenied):
        world.fs.set_attributes(world.look(b"a").inode, size_bytes=size, mtime_ns=None)
    check_stays(world, tmp_path)


@pytest.mark.parametrize("size", [0, 2])
def test_cutting_fails(tmp_path: Path, size: int) -> None:
    """If the upload with another size fails, the file has its old size."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"early")
        for reader in (False, True):
            handle = open_file(world, SECOND, os.O_RDWR) if reader else None
            world.client.inject("put_object", REFUSED)
            with pytest.raises(AccessDenied):
                world.fs.set_attributes(world.look(b"a").inode, size_bytes=size, mtime_ns=None)
            assert world.look(b"a").size_bytes == 5
            if handle is not None:
                assert world.fs.read(handle, 0, 10) == b"early"
                world.close(handle, SECOND)
        assert world.client.contents() == {b"a": b"early"}
        assert kept(tmp_path) == []
        world.fs.set_attributes(world.look(b"a").inode, size_bytes=size, mtime_ns=None)
        assert world.client.contents() == {b"a": b"early"[:size]}


def test_opening_anew_fails(
    world: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept file is unchanged, and can be opened, uploaded and closed."""

    def full(*args: object, **more: object) -> None:
        raise StagingFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr("mountpoint.staging.staged_file.Journal.rewrite", full)
        with pytest.raises(StagingFull):
            open_file(world, SECOND, os.O_RDWR | os.O_TRUNC)
    check_stays(world, tmp_path)


# --- On the disk ---


def test_a_mount_that_dies_leaves_both(tmp_path: Path) -> None:
    """The next mount describes both the kept file and the later changes."""
    world = World(tmp_path)
    file = world.file(world.bucket.put(data_of(3 * MIB)))
    file.write(0, b"kept")
    world.bucket.failure = AccessDenied("no")
    with pytest.raises(AccessDenied):
        file.sync()
    file.truncate(MIB)
    file.write(5, b"since")
    os.close(world.area._lock_fd)  # as at the end of the process
    recovery.clear(tmp_path, "bucket")
    left = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("*.json"))]
    assert [(each["size"], each["complete"], each["key"]) for each in left] == [
        (3 * MIB, True, KEY.decode()), (MIB, True, KEY.decode()),
    ]  # fmt: skip
    data = [path.read_bytes() for path in sorted(tmp_path.rglob("*.data"))]
    assert data[0] == b"kept" + data_of(3 * MIB)[4:]
    assert data[1] == b"kept" + data_of(MIB)[4:5] + b"since" + data_of(MIB)[10:]


def test_the_end_of_the_mount_keeps_both(tmp_path: Path) -> None:
    """Without a kill, nothing is uploaded and both are kept."""
    world = World(tmp_path)
    file = world.file()
    file.write(0, b"kept")
    world.bucket.failure = AccessDenied("no")
    with pytest.raises(AccessDenied):
        file.sync()
    file.write(0, b"since")
    file.move(b"dir/moved", lambda base: base)
    world.area.close()
    assert kept(tmp_path) == [b"kept", b"since"]
    left = [json.loads(path.read_text())["key"] for path in tmp_path.rglob("*.json")]
    assert left == ["dir/moved"] * 2


@pytest.mark.parametrize("copies", [True, False])
def test_a_copy_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    """A kept file and its copy both count; without room for the copy there are no changes."""
    if not copies:
        monkeypatch.setattr(os, "copy_file_range", no_copy)
    world = World(tmp_path, 20 * MIB)
    file = world.file()
    file.write(9 * MIB, data_of(MIB))
    file.write(0, data_of(8 * MIB))
    world.bucket.failure = AccessDenied("no")
    with pytest.raises(AccessDenied):
        file.sync()
    file.write(0, b"x")
    assert world.area.used_bytes == 18 * MIB
    assert file.read(0, 16 * MIB) == b"x" + data_of(8 * MIB)[1:] + bytes(MIB) + data_of(MIB)
    assert file.revert()
    assert world.area.used_bytes == 9 * MIB
    file.write(8 * MIB, data_of(MIB))
    with pytest.raises(AccessDenied):
        file.sync()
    assert world.area.used_bytes == 10 * MIB
    file.revert()
    file.write(0, b"x")
    with pytest.raises(StagingFull):
        file.write(30 * MIB, b"x")
    file.revert()
    world.area.limit_bytes = 19 * MIB
    with pytest.raises(StagingFull):
        file.write(0, b"x")
    file.truncate(0)
    assert file.revert()
    assert file.read(0, 8 * MIB) == data_of(8 * MIB)
    world.area.close()


def no_copy(*args: object) -> int:
    """Act as a kernel that cannot copy between these files."""
    raise OSError(95, "Operation not supported")


def test_forgotten_by_the_kernel(world: Mounted, tmp_path: Path) -> None:
    """The file is still found by its name after the kernel has dropped all that it knew of it."""
    number = world.look(b"a").inode
    world.fs.forget(number, 1000)
    assert world.fs.getattr(number).size_bytes == 5
    check_stays(world, tmp_path)
    world.fs.forget(number, 1000)
    with pytest.raises(StaleInode):
        world.fs.getattr(number)


@pytest.mark.parametrize("waits", ["close", "fsync"])
@pytest.mark.parametrize("fails", [False, True])
def test_killed_while_it_waits(tmp_path: Path, waits: str, fails: bool) -> None:
    """The process ends at once. The upload goes on, and the file is in the bucket, or kept."""
    sent, goes_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Fault | None:
        if request.kind != "put_object":
            return None
        sent.set()
        assert goes_on.wait(20)
        return REFUSED if fails else None

    with staged(tmp_path) as world, ThreadPoolExecutor(2) as pool:
        handle = world.create(b"a", FIRST)
        world.fs.write(handle, 0, b"123")
        world.client.script = slow
        if waits == "close":
            waiting = pool.submit(world.fs.flush, handle, FIRST, killed=False)
        else:
            waiting = pool.submit(world.fs.fsync, handle)
        assert sent.wait(20)
        assert world.fs.give_up(handle, FIRST)
        # What the kernel does next for a process that is being killed.
        if waits == "fsync":
            world.fs.flush(handle, FIRST, killed=True)
        released = pool.submit(world.fs.release, handle)
        until(lambda: len(world.fs._files) == 0)
        goes_on.set()
        errors = [waiting.exception(20), released.exception(20)]
        assert [type(each) for each in errors] == [AccessDenied if fails else type(None)] * 2
        assert world.client.contents() == ({} if fails else {b"a": b"123"})
        assert kept(tmp_path) == ([b"123"] if fails else [])
        assert len(world.fs._local.writers()) == int(fails)


@pytest.mark.parametrize("change", ["write", "cut"])
def test_killed_while_others_upload(tmp_path: Path, change: str) -> None:
    """The process ends at once, and its change is not made; the upload goes on with the others'."""
    sent, goes_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Fault | None:
        if request.kind == "put_object":
            sent.set()
            assert goes_on.wait(20)
        return None

    with staged(tmp_path) as world, ThreadPoolExecutor(2) as pool:
        first = world.create(b"a", FIRST)
        number = world.look(b"a").inode
        world.fs.write(first, 0, b"123")
        second = world.fs.open(number, os.O_RDWR, SECOND)
        world.client.script = slow
        syncing = pool.submit(world.fs.fsync, first)
        assert sent.wait(20)
        actions: dict[str, Callable[[], object]] = {
            "write": lambda: world.fs.write(second, 1, b"killed"),
            "cut": lambda: world.fs.set_attributes(
                number, size_bytes=1, mtime_ns=None, handle=second
            ),
        }
        waiting = pool.submit(actions[change])
        until(lambda: waiting.running())
        assert world.fs.give_up(second, SECOND)
        world.awaited = False
        world.close(second, SECOND, killed=True)
        goes_on.set()
        assert isinstance(waiting.exception(20), Interrupted)
        assert syncing.exception(20) is None
        world.awaited = True
        assert world.client.contents() == {b"a": b"123"}
        world.fs.write(first, 3, b"456")
        world.close(first, FIRST)
        assert world.client.contents() == {b"a": b"123456"}


def test_killed_in_a_truncation_by_name(tmp_path: Path) -> None:
    """It has no descriptor that the kernel closes: it goes on, with its upload."""
    with staged(tmp_path) as world:
        world.client.put(b"a", b"12345")
        world.awaited = False
        world.fs.set_attributes(world.look(b"a").inode, size_bytes=2, mtime_ns=None)
        assert world.client.contents() == {b"a": b"12"}
        assert kept(tmp_path) == []
