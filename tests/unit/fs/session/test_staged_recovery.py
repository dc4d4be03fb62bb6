"""Staged files go on in a file system that follows another one, whose process has died."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.errors import (
    AccessDenied,
    NoSuchEntry,
    NotFound,
    PreconditionFailed,
    StagingFull,
    WriterKilled,
)
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.staging.area import StagingArea
from tests.unit.fake_client import Fault
from tests.unit.fs.writes.test_staged_names import kept
from tests.unit.mounted import Mounted, mounted

MIB = 1 << 20
OLD = bytes(range(256)) * 4096 * 3  # 3 MiB
FIRST, SECOND = 11, 12
OPTIONS: dict[str, Any] = {"allow_overwrite": True, "allow_rename": True, "allow_delete": True}


class Kept:
    """A mount with staged writes whose process can die. Its files are in `path`."""

    def __init__(self, path: Path, first: Mounted, area: StagingArea, log: int) -> None:
        self.path = path
        self.now = first
        self.area = area
        self._log = log

    def die(self) -> None:
        """Let the process die, and another one go on."""
        name, dead = self.area.path.name, self.now
        os.close(self.area._lock_fd)
        self.area = StagingArea(str(self.path), "bucket", 64 * MIB, name=name)
        assert self.area.path.name == name
        log = SessionLog(self._log, lambda file: None)
        options = {"session": log, "staging": self.area, **OPTIONS}
        self.now = Mounted(dead.client, dead.clock, options)

    def open(self, name: bytes, flags: int = os.O_RDWR, process: int = FIRST) -> HandleNumber:
        """Open a file."""
        return self.now.fs.open(self.now.look(name).inode, flags, process)

    def content(self, name: bytes) -> bytes:
        """The object of a file."""
        return self.now.client.contents()[name]


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Kept]:
    file = new_log()
    area = StagingArea(str(tmp_path), "bucket", 64 * MIB)
    log = SessionLog(file, lambda file: None)
    with mounted({b"old": OLD}, session=log, staging=area, **OPTIONS) as first:
        kept_mount = Kept(tmp_path, first, area, file)
        try:
            yield kept_mount
        finally:
            kept_mount.area.close()
            os.close(file)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file(it: Kept) -> None:
    """It has what was written, under its name, number and handle; its close uploads it."""
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 5, b"later")
    number = it.now.look(b"new").inode
    it.die()
    assert it.now.look(b"new").inode == number
    assert it.now.names() == [b"new", b"old"] or it.now.names() == [b"old", b"new"]
    assert it.now.fs.getattr(number).size_bytes == 10
    assert bytes(it.now.fs.read(handle, 0, 100)) == bytes(5) + b"later"
    it.now.fs.write(handle, 0, b"first")
    it.die()  # what was taken over once is taken over again
    it.now.close(handle, FIRST)
    assert it.content(b"new") == b"firstlater"
    assert kept(it.path) == []


def test_a_new_file_without_a_write(it: Kept) -> None:
    """It is still to be made, empty."""
    handle = it.now.create(b"new", FIRST)
    it.die()
    it.now.close(handle, FIRST)
    assert it.content(b"new") == b""


def test_a_changed_file(it: Kept) -> None:
    """Changes are where they were; the rest comes from the version that was opened."""
    handle = it.open(b"old")
    it.now.fs.read(handle, 0, 100)  # fetches a block that the journal does not name
    it.now.fs.write(handle, MIB + 10, b"changed")
    it.now.fs.set_attributes(
        it.now.look(b"old").inode, size_bytes=2 * MIB, mtime_ns=None, handle=handle
    )
    expected = OLD[: MIB + 10] + b"changed" + OLD[MIB + 17 : 2 * MIB]
    used_bytes = it.area.used_bytes
    it.die()
    assert 0 < it.area.used_bytes <= used_bytes
    assert bytes(it.now.fs.read(handle, MIB, 100)) == expected[MIB : MIB + 100]
    it.now.close(handle, FIRST)
    assert it.content(b"old") == expected
    assert it.area.used_bytes == 0


def test_another_version_is_never_mixed_in(it: Kept) -> None:
    """If the object was replaced meanwhile, missing bytes cannot be read, nor the file uploaded."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.client.put(b"old", b"x" * len(OLD))
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 7)) == b"changed"
    with pytest.raises(PreconditionFailed):
        it.now.fs.read(handle, MIB, 100)
    with pytest.raises(PreconditionFailed):
        it.now.fs.flush(handle, FIRST, killed=False)
    assert it.content(b"old") == b"x" * len(OLD)
    with pytest.raises(PreconditionFailed):
        it.now.fs.release(handle)
    it.area.close()
    (left,) = it.path.rglob("*.json")
    for each in left.parent.iterdir():
        each.unlink()
    left.parent.rmdir()
    it.area = StagingArea(str(it.path), "bucket", 64 * MIB)


def test_an_uploaded_file(it: Kept) -> None:
    """After an upload the object is what the file goes on from, and nothing is uploaded again."""
    handle = it.open(b"old", os.O_RDWR | os.O_TRUNC)
    it.now.fs.write(handle, 0, b"first")
    it.now.fs.fsync(handle)
    it.die()
    puts = it.now.client.count("put_object")
    assert bytes(it.now.fs.read(handle, 0, 100)) == b"first"
    it.now.fs.fsync(handle)
    assert it.now.client.count("put_object") == puts
    it.now.fs.write(handle, 5, b" second")
    it.die()
    it.now.close(handle, FIRST)
    assert it.content(b"old") == b"first second"


def test_dead_between_upload_and_its_note(it: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was about to be removed does not count any more."""
    handle = it.open(b"old", os.O_RDWR | os.O_TRUNC)
    it.now.fs.write(handle, 0, b"first")
    with monkeypatch.context() as dying:
        dying.setattr("mountpoint.staging.journal.Journal.remove", lambda journal: None)
        it.now.fs.fsync(handle)
    assert list(it.path.rglob("*.journal")) != []
    it.die()
    it.now.fs.write(handle, 5, b" second")
    it.now.close(handle, FIRST)
    assert it.content(b"old") == b"first second"


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("later", [b"", b" later"])
def test_dead_before_the_answer(
    it: Kept, monkeypatch: pytest.MonkeyPatch, *, new: bool, later: bytes
) -> None:
    """An upload whose answer came too late counts: it is repeated, not refused."""
    handle = it.now.create(b"a", FIRST) if new else it.open(b"old")
    name = b"a" if new else b"old"
    it.now.fs.write(handle, 0, b"first")

    class Died(BaseException):
        pass

    def die(content: object, info: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr("mountpoint.staging.content.Content.became", die)
        with pytest.raises(Died):
            it.now.fs.fsync(handle)
    assert it.content(name).startswith(b"first")
    it.die()
    it.now.fs.write(handle, 5, later)
    it.now.fs.fsync(handle)
    it.now.close(handle, FIRST)
    assert it.content(name) == b"first" + later + (b"" if new else OLD[5 + len(later) :])
    assert kept(it.path) == []


def test_a_renamed_file(it: Kept) -> None:
    """It goes on under its new name."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.fs.rename(ROOT, b"old", ROOT, b"moved")
    it.now.fs.write(handle, 7, b" twice")
    it.die()
    it.now.close(handle, FIRST)
    assert it.content(b"moved") == b"changed twice" + OLD[13:]
    assert b"old" not in it.now.client.contents()


def test_a_failed_upload(it: Kept) -> None:
    """A file that is kept because its upload failed is there, and the next close uploads it."""
    refused = Fault(error=AccessDenied("no", status=403))
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"kept")
    it.now.client.inject("put_object", refused, refused)
    with pytest.raises(AccessDenied):
        it.now.close(handle, FIRST)
    it.now.client.inject("put_object")
    it.die()
    handle = it.open(b"new", process=SECOND)
    assert bytes(it.now.fs.read(handle, 0, 100)) == b"kept"
    it.now.fs.write(handle, 0, b"lost")
    with pytest.raises(WriterKilled):
        it.now.close(handle, SECOND, killed=True)
    handle = it.open(b"new", process=SECOND)
    it.now.close(handle, SECOND)
    assert it.content(b"new") == b"kept"
    assert kept(it.path) == []


def test_all_handles_of_a_file(it: Kept) -> None:
    """Every program sees the writes of the others; the last close removes the local file."""
    first, second = it.open(b"old"), it.open(b"old", os.O_WRONLY, SECOND)
    reading = it.open(b"old", os.O_RDONLY, SECOND)
    it.now.fs.write(first, 0, b"1")
    it.die()
    it.now.fs.write(second, 1, b"2")
    assert bytes(it.now.fs.read(reading, 0, 3)) == b"12" + OLD[2:3]
    it.now.close(first, FIRST)
    it.now.close(second, SECOND)
    assert len(kept(it.path)) == 1
    it.now.close(reading, SECOND)
    assert it.content(b"old") == b"12" + OLD[2:]
    assert kept(it.path) == []


def test_a_killed_program(it: Kept) -> None:
    """What a program wrote is discarded if the program, too, is killed."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.die()
    with pytest.raises(WriterKilled):
        it.now.close(handle, FIRST, killed=True)
    assert it.content(b"old") == OLD


# --- Files that are removed while they are open ---


def check_gone(it: Kept, handle: HandleNumber, name: bytes) -> None:
    """Close the last handle of a removed file: nothing is left of it, and nothing was uploaded."""
    uploads = it.now.client.count("put_object")
    it.now.fs.fsync(handle)
    it.now.close(handle, FIRST)
    assert it.now.client.count("put_object") == uploads
    assert kept(it.path) == []
    assert it.area.used_bytes == 0
    assert it.now.fs._local.writers() == []
    assert name not in it.now.client.contents()
    it.die()
    assert it.now.fs.open_files() == 0


@pytest.mark.parametrize("new", [True, False])
def test_a_removed_file(it: Kept, *, new: bool) -> None:
    """A file without a name goes on as long as it is open, also with what it was read before."""
    name = b"new" if new else b"old"
    handle = it.now.create(name, FIRST) if new else it.open(name)
    start = MIB - 5
    expected = bytearray(b"" if new else OLD[:MIB])
    it.now.fs.read(handle, 0, 100)  # fetches the first block, which no object has later
    it.now.fs.write(handle, start, b"changed")
    expected[start:] = b"changed"
    if new:
        expected = bytearray(start) + b"changed"
    inode = it.now.fs.file(handle).inode.number
    it.now.fs.unlink(ROOT, name)
    assert not it.now.fs.needs_process()
    it.die()
    assert bytes(it.now.fs.read(handle, 0, MIB)) == expected[:MIB]
    it.now.fs.write(handle, 2, b"again")
    expected[2:7] = b"again"
    it.die()  # what was taken over once is taken over again
    assert bytes(it.now.fs.read(handle, 0, MIB)) == expected[:MIB]
    it.now.fs.set_attributes(inode, size_bytes=100, mtime_ns=None, handle=handle)
    it.die()
    assert bytes(it.now.fs.read(handle, 0, MIB)) == expected[:100]
    shown = it.now.fs.getattr(inode)
    assert (shown.size_bytes, shown.links) == (100, 0)
    with pytest.raises(NoSuchEntry):
        it.now.look(name)
    assert it.now.fs.being_written() == []
    assert 0 < it.area.used_bytes <= MIB + 4096
    check_gone(it, handle, name)


def test_a_removed_file_that_was_only_read(it: Kept) -> None:
    """It has no journal before; it has what was fetched, and can be written."""
    handle = it.open(b"old")
    it.now.fs.read(handle, 0, 100)
    it.now.fs.unlink(ROOT, b"old")
    it.die()
    it.now.fs.write(handle, 5, b"new")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 100)) == OLD[:5] + b"new" + OLD[8:100]
    with pytest.raises(NotFound):
        it.now.fs.read(handle, 2 * MIB, 100)
    check_gone(it, handle, b"old")


def test_a_replaced_file(it: Kept) -> None:
    """A file that another one has replaced goes on, and does not replace that one in turn."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.write_file(b"other", b"replacement")
    it.now.fs.rename(ROOT, b"other", ROOT, b"old")
    it.now.fs.write(handle, 7, b"!")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 8)) == b"changed!"
    it.now.close(handle, FIRST)
    assert it.content(b"old") == b"replacement"
    assert kept(it.path) == []


def test_a_removed_file_in_a_removed_directory(it: Kept) -> None:
    """Programs remove the directory of their temporary files, too."""
    directory = it.now.fs.mkdir(ROOT, b"made").inode
    handle = it.now.create(b"made/file", FIRST)
    it.now.fs.write(handle, 0, b"temporary")
    it.now.fs.unlink(directory, b"file")
    it.now.fs.rmdir(ROOT, b"made")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 100)) == b"temporary"
    assert b"made" not in it.now.names()
    check_gone(it, handle, b"made/file")


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_another_file_of_the_same_name(it: Kept, where: str) -> None:
    """It is not mixed up with the one that was removed, even if an equal object was put there."""
    removed = it.open(b"old")
    it.now.fs.write(removed, 0, b"removed")
    it.now.fs.unlink(ROOT, b"old")
    if where == "here":
        handle = it.now.create(b"old", FIRST)
        it.now.fs.write(handle, 0, b"another")
    else:
        it.now.client.put(b"old", OLD)
    for _ in range(2):
        look = it.now.look(b"old")
        assert look.inode != it.now.fs.file(removed).inode.number
        assert look.size_bytes == (7 if where == "here" else len(OLD))
        it.die()
    assert bytes(it.now.fs.read(removed, 0, 7)) == b"removed"
    it.now.close(removed, FIRST)
    if where == "here":
        assert bytes(it.now.fs.read(handle, 0, 100)) == b"another"
        it.now.close(handle, FIRST)
        assert it.content(b"old") == b"another"
    else:
        assert it.content(b"old") == OLD


def test_a_removed_file_whose_upload_had_failed(it: Kept) -> None:
    """It goes on as it is; the version that was set aside is gone with its name."""
    refused = Fault(error=AccessDenied("no", status=403))
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"failed")
    it.now.client.inject("put_object", refused, refused)
    with pytest.raises(AccessDenied):
        it.now.fs.fsync(handle)
    it.now.client.inject("put_object")
    it.now.fs.write(handle, 0, b"FAILED")
    assert kept(it.path) == [b"FAILED", b"failed"]
    it.now.fs.unlink(ROOT, b"new")
    assert kept(it.path) == [b"FAILED"]
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 100)) == b"FAILED"
    check_gone(it, handle, b"new")


def test_dead_before_a_removal_is_in_the_journal(it: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is gone, and the file's earlier journal, with its key, does not bring it back."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")

    class Died(BaseException):
        pass

    def die(file: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr("mountpoint.staging.staged_file.StagedFile._write_journal", die)
        with pytest.raises(Died):
            it.now.fs.unlink(ROOT, b"old")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 7)) == b"changed"
    it.now.fs.write(handle, 7, b"!")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 8)) == b"changed!"
    check_gone(it, handle, b"old")


def test_a_removal_without_room_for_its_journal(it: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The removal succeeds, and the file can be written; it does not survive the process."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")

    def full(*_: object, **__: object) -> None:
        raise StagingFull("no space")

    with monkeypatch.context() as writing:
        writing.setattr("mountpoint.staging.journal.Journal.rewrite", full)
        it.now.fs.unlink(ROOT, b"old")
        it.now.fs.write(handle, 7, b"!")
    assert bytes(it.now.fs.read(handle, 0, 8)) == b"changed!"
    assert it.now.fs.needs_process()
    it.die()
    with pytest.raises(WriterKilled):
        it.now.fs.read(handle, 0, 10)
    assert kept(it.path) == []
    it.now.fs.release(handle)


@pytest.mark.parametrize("part", ["*.journal", "*.data"])
def test_a_removed_file_whose_local_file_is_gone(it: Kept, part: str) -> None:
    """Its handles fail, rather than to read or write something else."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.fs.unlink(ROOT, b"old")
    for each in it.path.rglob(part):
        each.unlink()
    it.die()
    with pytest.raises(WriterKilled):
        it.now.fs.read(handle, 0, 10)
    it.now.fs.release(handle)
    for each in it.path.rglob("*.journal"):
        each.unlink()


def test_a_removed_file_without_handles(it: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process dies within the last close, the next one removes what is left."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.fs.unlink(ROOT, b"old")
    with monkeypatch.context() as dying:
        dying.setattr("mountpoint.fs.writes.staged.writer.StagedWriter._close", lambda writer: None)
        it.now.close(handle, FIRST)
    assert len(kept(it.path)) == 1
    it.die()
    assert kept(it.path) == []
    assert it.now.fs._local.writers() == []


def test_nobody_goes_on_with_a_removed_file(it: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """If all processes have died, the next mount removes it, and does not speak of it."""
    handle = it.open(b"old")
    it.now.fs.write(handle, 0, b"changed")
    it.now.fs.unlink(ROOT, b"old")
    os.close(it.area._lock_fd)
    it.area = StagingArea(str(it.path), "bucket", 64 * MIB)
    assert kept(it.path) == []
    assert [each.name for each in it.path.iterdir()] == [it.area.path.name]
    assert "was not uploaded" not in caplog.text


def test_a_removed_file_and_a_request_that_comes_again(it: Kept) -> None:
    """A file may be removed before the kernel has the answer to its open."""
    it.now.request = 5
    handle = it.now.create(b"new", FIRST)
    it.now.fs.unlink(ROOT, b"new")
    it.die()
    found = it.now.fs.opened_before(5, creates=True)
    assert found is not None
    assert found[0] == handle
    check_gone(it, handle, b"new")


def test_attributes(it: Kept) -> None:
    """A time that was set stays; the next write replaces it."""
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"1")
    number = it.now.look(b"new").inode
    it.now.fs.set_attributes(number, size_bytes=None, mtime_ns=5_000_000_000)
    it.die()
    assert it.now.fs.getattr(number).mtime_ns == 5_000_000_000
    it.now.fs.write(handle, 0, b"2")
    it.die()
    assert it.now.fs.getattr(number).mtime_ns > 5_000_000_000
    it.now.close(handle, FIRST)


@pytest.mark.parametrize("cut", [b"w 0 5", b"w 0"])
def test_a_line_that_was_cut(it: Kept, cut: bytes) -> None:
    """A write that did not return does not count, and does not spoil those that follow."""
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"abc")
    (journal,) = it.path.rglob("*.journal")
    with journal.open("ab") as file:
        file.write(cut)
    (data,) = it.path.rglob("*.data")
    with data.open("ab") as file:
        file.write(b"de")
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 100)) == b"abc"
    it.now.fs.write(handle, 3, b"xyz")
    it.die()
    it.now.close(handle, FIRST)
    assert it.content(b"new") == b"abcxyz"


def test_a_file_that_cannot_go_on(it: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """If its journal makes no sense, its handles fail; the file itself is left on the disk."""
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"abc")
    (journal,) = it.path.rglob("*.journal")
    with journal.open("ab") as file:
        file.write(b"z 0 5;\n")
    it.die()
    with pytest.raises(WriterKilled):
        it.now.fs.read(handle, 0, 10)
    assert kept(it.path) == [b"abc"]
    assert journal.exists()
    journal.unlink()
    it.die()
    assert kept(it.path) == []
    with pytest.raises(WriterKilled):
        it.now.fs.flush(handle, FIRST, killed=False)
    it.now.fs.release(handle)


def test_a_full_disk(it: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on takes no space: the files are there, though nothing more can be written."""
    handle = it.now.create(b"new", FIRST)
    it.now.fs.write(handle, 0, b"abc")
    monkeypatch.setattr("mountpoint.staging.area.MIN_LIMIT_BYTES", 1 << 60)
    monkeypatch.setattr("mountpoint.staging.area.StagingArea.try_take", lambda area, size: False)
    it.die()
    assert bytes(it.now.fs.read(handle, 0, 10)) == b"abc"
    it.now.close(handle, FIRST)
    assert it.content(b"new") == b"abc"


@pytest.mark.parametrize("creates", [True, False], ids=["create", "open"])
def test_a_request_that_comes_again(it: Kept, *, creates: bool) -> None:
    """The file is there, and its handle is the answer: creating it again would fail."""
    it.now.request = 5
    handle = it.now.create(b"new", FIRST) if creates else it.open(b"old")
    it.die()
    found = it.now.fs.opened_before(5, creates=creates)
    assert found is not None
    assert found[0] == handle
    assert found[1].inode == it.now.fs.file(handle).inode.number
    it.now.fs.write(handle, 0, b"content")
    it.now.close(handle, FIRST)
    assert it.content(b"new" if creates else b"old").startswith(b"content")
    assert it.now.fs.open_files() == 0
