"""Two mounts of a bucket change and read it, compared with a model (`write_model`)."""

import os
import stat
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mountpoint.config import WriteConfig
from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    DirectoryNotEmpty,
    IsADirectory,
    NoSuchEntry,
    NotFound,
    NotPermitted,
    OperationError,
    PreconditionFailed,
    StaleInode,
    Superseded,
    WriterKilled,
)
from mountpoint.fs.attributes import Attributes
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fs.writes.streamed import lifecycle
from mountpoint.fs.writes.streamed import open as write_opener
from tests.soak import examples
from tests.unit.fake_client import Fault, Request
from tests.unit.mounted import Mounted, mounted
from tests.unit.write_model import ABSENT, Bucket, Path, View, ancestors, parent_of

OVERWRITE = os.O_WRONLY | os.O_TRUNC
OPENER, CHILD = 100, 101
#: So few paths that they meet often, also as a file for one mount and a directory for the other.
PATHS = [b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a", b"a/a/b"]
#: The first part of a file; larger files are multipart uploads.
PART_BYTES = 8
#: Some contents are equal: a version that returns has its old ETag.
PIECES = [b"x", b"y", b"x" * PART_BYTES, b"y" * (2 * PART_BYTES + 1)]


@dataclass
class Writer:
    """An open file that is being written; `data` is the content that S3 will have."""

    path: Path
    handle: HandleNumber
    number: InodeNumber
    new: bool
    data: bytes = b""
    settled: bool = False  # it is in S3
    base: bytes | None = None  # the object in S3 when writing continued
    lost: bool = False  # there will be no object
    closed: bool = False  # one of its descriptors was closed
    killed: bool = False  # the last process that closed a descriptor was being killed
    removed: bool = False  # discarded without an error

    @property
    def pending(self) -> bool:
        """Whether it may still become an object."""
        return not (self.settled or self.lost or self.removed)


@dataclass
class Reader:
    """An open file that is being read, and its possible contents."""

    path: Path
    handle: HandleNumber
    number: InodeNumber
    may_be: list[bytes]
    etag: str


@dataclass
class Side:
    """One mount: the program, the model's view of it, and the state of a kernel."""

    world: Mounted
    view: View
    writers: list[Writer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    lookups: Counter[InodeNumber] = field(default_factory=Counter)
    last: dict[Path, InodeNumber] = field(default_factory=dict)  # of files

    def open_numbers(self) -> set[InodeNumber]:
        """Return the inodes that have an open handle."""
        return {each.number for each in self.writers} | {each.number for each in self.readers}


class Mounts(RuleBasedStateMachine):
    """The actions of programs on two mounts, and their expected results."""

    ttl_s = 1.0
    negative_ttl_s = 0.0
    asks_on_open = True
    #: How long listings ahead of a walker may be used; one process does all listings.
    walk_s = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.processes = 1000
        options: dict[str, Any] = {
            "allow_overwrite": True,
            "allow_delete": True,
            "allow_rename": True,
            "ttl_s": self.ttl_s,
            "negative_ttl_s": self.negative_ttl_s,
            "asks_on_open": self.asks_on_open,
        }
        config = WriteConfig()
        object.__setattr__(config, "part_size_bytes", PART_BYTES)  # below S3's limit
        options["write"] = config
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(write_opener, "SETTLE_S", 0.0)
        patch.setattr(write_opener, "TURN_S", 0.0)
        patch.setattr(lifecycle, "SETTLE_S", 0.0)
        first = self.stack.enter_context(mounted(**options))
        second = Mounted(first.client, first.clock, dict(options))
        self.client, self.clock = first.client, first.clock
        self.bucket = Bucket()
        self.sides = [Side(world, View(self.bucket)) for world in (first, second)]

    def teardown(self) -> None:
        try:
            for side in self.sides:
                for writer in list(side.writers):
                    self.release(side, writer, fault=None)
                for reader in list(side.readers):
                    side.world.fs.release(reader.handle)
                assert side.world.fs._local.writers() == []
                assert side.world.uploads._open == set()
            self.bucket_is_as_it_should_be()
            assert self.client.uploads == {}
        finally:
            self.stack.close()

    # --- what the kernel does first ---

    @property
    def now_s(self) -> float:
        return float(self.clock.now_s)

    def look(self, side: Side, path: Path) -> Attributes | None:
        """Look a path up as the kernel does; check each answer. None: it does not exist."""
        number, done, found = ROOT, b"", None
        for name in path.split(b"/"):
            done = done + b"/" + name if done else name
            try:
                found = side.world.fs.lookup(number, name)
            except NoSuchEntry as error:
                since_s = self.now_s
                if self.negative_ttl_s:
                    since_s += error.ttl_s - self.negative_ttl_s
                # With a ttl, a name that was removed here may be another client's unseen directory.
                made, at_s = side.view.made.get(done, (None, 0.0))
                removed = self.negative_ttl_s > 0 and made == ABSENT and at_s >= since_s - 1e-6
                may_be = removed or side.view.may_be_absent(done, since_s)
                assert may_be, (done, "is said to be absent")
                return None
            side.lookups[found.inode] += 1
            self.check(side, done, found)
            if not stat.S_ISDIR(found.mode):
                if done != path:
                    return None
                side.last[path] = found.inode
            else:
                side.last.pop(done, None)  # by this name the kernel now finds the directory
            number = found.inode
        return found

    def check(self, side: Side, path: Path, found: Attributes) -> None:
        """Check the answer for a path, until the kernel's cached answer expires."""
        assert 0 <= found.ttl_s <= self.ttl_s
        may_be = side.view.may_be(path, self.now_s + found.ttl_s - self.ttl_s)
        if stat.S_ISDIR(found.mode):
            assert None in may_be, (path, "is said to be a directory", may_be)
        else:
            sizes = [len(state) for state in may_be if isinstance(state, bytes)]
            assert found.size_bytes in sizes, (path, "is said to be a file", found, may_be)

    def directory(self, side: Side, path: Path) -> InodeNumber | None:
        """Return the inode of a path that is a directory, or None."""
        if not path:
            return ROOT
        found = self.look(side, path)
        return found.inode if found is not None and stat.S_ISDIR(found.mode) else None

    def file(self, side: Side, path: Path) -> InodeNumber | None:
        """Return the inode of a path that is a file, or None."""
        found = self.look(side, path)
        return found.inode if found is not None and stat.S_ISREG(found.mode) else None

    # --- rules: time, others, the kernel's memory ---

    @rule(seconds=st.sampled_from([0.1, 0.45, 0.95, 1.5, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(key=st.sampled_from(PATHS), data=st.sampled_from([b"", *PIECES]))
    def somebody_else_puts(self, key: Path, data: bytes) -> None:
        self.client.put(key, data)
        self.bucket.put(key, data, self.now_s)

    @rule(key=st.sampled_from(PATHS))
    def somebody_else_deletes(self, key: Path) -> None:
        if key in self.bucket.now:
            self.client.delete(key)
            self.bucket.delete(key, self.now_s)

    @rule(side=st.integers(0, 1))
    def the_kernel_forgets(self, side: int) -> None:
        it = self.sides[side]
        for number, count in it.lookups.items():
            it.world.fs.forget(number, count)
        it.lookups.clear()
        it.last.clear()

    # --- rules: looking ---

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def stat(self, side: int, path: Path) -> None:
        self.look(self.sides[side], path)

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def stat_again(self, side: int, path: Path) -> None:
        it = self.sides[side]
        number = it.last.get(path)
        if number is None or (number in it.open_numbers() and path not in it.view.writing):
            return
        try:
            found = it.world.fs.getattr(number)
        except (StaleInode, NoSuchEntry):
            return
        if number == it.last.get(path) and (path not in it.view.writing or found.ttl_s == 0.0):
            self.check(it, path, found)

    @rule(side=st.integers(0, 1), path=st.sampled_from([b"", *PATHS]))
    def list_directory(self, side: int, path: Path) -> None:
        it = self.sides[side]
        number = self.directory(it, path)
        if number is None:
            return
        self.processes += 1
        lines = it.world.lines(number, self.processes)[2:]
        found = {line.name: stat.S_ISDIR(line.mode) for line in lines}
        assert len(found) == len(lines), "a name is listed twice"
        expected = it.view.names(path)
        assert set(found) == set(expected)
        below = {name: path + b"/" + name if path else name for name in found}
        for name, is_directory in found.items():
            # A local directory, and a file of the same name in the bucket: a lookup shows the
            # directory, a listing one of the two.
            only_here = below[name] in it.view.directories
            assert is_directory == expected[name] or only_here, name

    @rule(side=st.integers(0, 1))
    def walk(self, side: int) -> None:
        it = self.sides[side]
        todo = [(b"", ROOT)]
        while todo:
            path, number = todo.pop(0)
            found = set()
            for line in it.world.lines(number, CHILD)[2:]:
                below = path + b"/" + line.name if path else line.name
                found.add(below)
                since_s = self.now_s - self.walk_s
                may_be = it.view.may_be(below, since_s)
                assert any(state != ABSENT for state in may_be), (below, "is listed")
                if stat.S_ISDIR(line.mode) and (inner := self.directory(it, below)) is not None:
                    todo.append((below, inner))
            for each in PATHS:
                if parent_of(each) == path and each not in found:
                    may_be = it.view.may_be(each, self.now_s - self.walk_s)
                    assert ABSENT in may_be, (each, "is not listed")

    # --- rules: reading ---

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS), at_once=st.booleans())
    def open_to_read(self, side: int, path: Path, at_once: bool) -> None:
        it = self.sides[side]
        handle = None
        for last in (False, True):  # the kernel looks up again once
            number = self.file(it, path)
            if number is None:
                return
            try:
                handle = it.world.fs.open(number, os.O_RDONLY, OPENER)
                break
            except NotPermitted:
                assert path in it.view.writing
                return
            except NoSuchEntry:
                assert path not in self.bucket.now
                return
            except StaleInode:
                assert not last
        assert handle is not None
        assert number is not None
        assert path not in it.view.writing
        may_be: list[bytes | str | None] = [self.bucket.now.get(path, ABSENT)]
        if not self.asks_on_open:
            may_be = it.view.may_be(path, self.now_s - self.ttl_s)
        contents = [each for each in may_be if isinstance(each, bytes)]
        etag = self.client.info(path).etag if path in self.bucket.now else ""
        reader = Reader(path, handle, number, contents, etag)
        shared = any(each.number == number for each in it.writers)
        if at_once or shared:
            self.read(it, reader)
        if shared:  # a later read would include later writes
            it.world.fs.release(reader.handle)
        else:
            it.readers.append(reader)

    @precondition(lambda self: any(side.readers for side in self.sides))
    @rule(data=st.data(), close=st.booleans())
    def read_on(self, data: st.DataObject, close: bool) -> None:
        it = data.draw(st.sampled_from([side for side in self.sides if side.readers]))
        reader = data.draw(st.sampled_from(it.readers))
        self.read(it, reader)
        if close:
            it.world.fs.release(reader.handle)
            it.readers.remove(reader)

    def read(self, side: Side, reader: Reader) -> None:
        try:
            found = bytes(side.world.fs.read(reader.handle, 0, 1 << 20))
        except (PreconditionFailed, NotFound):
            now = self.client.info(reader.path).etag if reader.path in self.bucket.now else ""
            assert now != reader.etag or not self.asks_on_open
        else:
            assert found in reader.may_be, (reader.path, found, reader.may_be)
            reader.may_be = [found]  # one version to the end

    # --- rules: writing ---

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS), data=st.sampled_from(PIECES))
    def write_file(self, side: int, path: Path, data: bytes) -> None:
        it = self.sides[side]
        writer = self.begin(it, path)
        if writer is not None:
            self.write_some(it, writer, data)
            self.flush(it, writer, OPENER, False, None)
            self.release(it, writer, None)

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def open_to_write(self, side: int, path: Path) -> None:
        self.begin(self.sides[side], path)

    def begin(self, side: Side, path: Path) -> Writer | None:
        fs = side.world.fs
        found = self.look(side, path)
        if found is None:
            parent = self.directory(side, parent_of(path))
            if parent is None:
                return None
            handle, attributes = fs.create(parent, path.rpartition(b"/")[2], os.O_WRONLY, OPENER)
            side.lookups[attributes.inode] += 1
            number = attributes.inode
        elif stat.S_ISDIR(found.mode):
            return None
        else:
            number = found.inode
            try:
                handle = fs.open(number, OVERWRITE, OPENER)
            except NotPermitted:
                assert side.view.writing[path]
                return None
            except StaleInode:
                assert number in side.open_numbers()
                again = self.look(side, path)  # as the kernel does
                if again is None:
                    assert path not in self.bucket.now
                    return None
                assert again.inode != number
                number = again.inode
                handle = fs.open(number, OVERWRITE, OPENER)
            if path in side.view.writing:
                assert not side.view.writing[path]  # the two share the file
                fs.release(handle)
                return None
        writer = Writer(path, handle, number, found is None)
        side.view.writing[path] = b""
        side.writers.append(writer)
        return writer

    def draw(self, data: st.DataObject) -> tuple[Side, Writer]:
        side = data.draw(st.sampled_from([side for side in self.sides if side.writers]))
        return side, data.draw(st.sampled_from(side.writers))

    some_writer = precondition(lambda self: any(side.writers for side in self.sides))

    @some_writer
    @rule(data=st.data(), piece=st.sampled_from(PIECES))
    def write(self, data: st.DataObject, piece: bytes) -> None:
        self.write_some(*self.draw(data), piece)

    def write_some(self, side: Side, writer: Writer, piece: bytes) -> None:
        if writer.settled:
            self.go_on(side, writer, piece)
            return
        if writer.removed:
            assert side.world.fs.write(writer.handle, 0, piece) == len(piece)
            return
        try:
            written = side.world.fs.write(writer.handle, len(writer.data), piece)
        except OperationError:
            assert not writer.pending
        else:
            assert writer.pending
            assert written == len(piece)
            writer.data += piece
            side.view.writing[writer.path] = writer.data

    def go_on(self, side: Side, writer: Writer, piece: bytes) -> None:
        """Write to a descriptor after another one of the file was closed."""
        try:
            side.world.fs.write(writer.handle, len(writer.data), piece)
        except NotPermitted:
            pass  # others read or write it
        except OperationError:
            writer.settled, writer.lost = False, True
        else:
            assert self.bucket.now.get(writer.path) == writer.data
            writer.settled, writer.new, writer.base = False, False, writer.data
            writer.data += piece
            side.view.writing[writer.path] = writer.data

    @some_writer
    @rule(data=st.data(), offset=st.integers(1, 20))
    def write_elsewhere(self, data: st.DataObject, offset: int) -> None:
        side, writer = self.draw(data)
        if writer.removed:
            return
        with pytest.raises(OperationError) as caught:
            side.world.fs.write(writer.handle, len(writer.data) + offset, b"z")
        if writer.settled and caught.type is not NotPermitted:
            writer.settled, writer.lost = False, True
        self.lose(side, writer)

    @some_writer
    @rule(data=st.data())
    def begin_anew(self, data: st.DataObject) -> None:
        side, writer = self.draw(data)
        if writer.pending:
            side.world.fs.set_attributes(writer.number, size_bytes=0, mtime_ns=None)
            writer.data = side.view.writing[writer.path] = b""

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS), size=st.sampled_from([0, 1, 8, 30]))
    def truncate(self, side: int, path: Path, size: int) -> None:
        it = self.sides[side]
        number = self.file(it, path)
        if number is None:
            return
        known = it.world.fs.getattr(number).size_bytes
        writing = path in it.view.writing
        in_use = number in it.open_numbers()
        try:
            try:
                it.world.fs.set_attributes(number, size_bytes=size, mtime_ns=None)
            except Superseded:
                assert in_use or size > known  # the kernel may have pages of a file that grows
                number = self.file(it, path)  # as the kernel does
                assert number is not None
                it.world.fs.set_attributes(number, size_bytes=size, mtime_ns=None)
        except NotPermitted:
            assert writing or 0 < size < known
            # Only unwritten bytes can be cut off; written ones are not zeros.
            assert not writing or it.view.writing[path][size:].strip(b"\0")
        except StaleInode:
            assert size >= known  # nothing was done; the kernel looks up again
        except NotFound:
            assert size > known
            assert path not in self.bucket.now
        else:
            assert writing or size == 0 or size >= known
            if writing:
                (writer,) = [each for each in it.writers if each.path == path and each.pending]
                writer.data = writer.data[:size].ljust(size, b"\0")
                it.view.writing[path] = writer.data
            elif size == 0 or size > known:
                data = self.bucket.now[path].ljust(size, b"\0") if size else b""
                self.bucket.put(path, data, self.now_s)
                self.note(it, path, data)

    # --- rules: the end of a file ---

    faults = st.sampled_from([None, None, None, None, "denied", "lost"])

    @some_writer
    @rule(data=st.data(), fault=faults)
    def fsync(self, data: st.DataObject, fault: str | None) -> None:
        side, writer = self.draw(data)
        error = self.finish(side, writer, fault)
        self.expect(error, lambda: side.world.fs.fsync(writer.handle), fault)

    @some_writer
    @rule(data=st.data(), fault=faults, killed=st.booleans(), who=st.sampled_from([OPENER, CHILD]))
    def close_one(self, data: st.DataObject, fault: str | None, killed: bool, who: int) -> None:
        side, writer = self.draw(data)
        self.flush(side, writer, who, killed, fault)

    def flush(self, side: Side, writer: Writer, who: int, killed: bool, fault: str | None) -> None:
        error: type[Exception] | None = None
        if writer.lost:
            error = OperationError
        elif who == OPENER and not killed and writer.data:
            error = self.finish(side, writer, fault)
        writer.closed, writer.killed = True, killed
        self.expect(error, lambda: side.world.fs.flush(writer.handle, who, killed=killed), fault)

    @some_writer
    @rule(data=st.data(), fault=faults)
    def close_the_last(self, data: st.DataObject, fault: str | None) -> None:
        side, writer = self.draw(data)
        self.release(side, writer, fault)

    def release(self, side: Side, writer: Writer, fault: str | None) -> None:
        error: type[Exception] | None = None
        if writer.pending and (writer.killed or not (writer.closed or writer.data)):
            self.lose(side, writer)
            error = WriterKilled
        elif writer.pending:
            error = self.finish(side, writer, fault)
        self.expect(error, lambda: side.world.fs.release(writer.handle), fault)
        side.writers.remove(writer)

    def finish(self, side: Side, writer: Writer, fault: str | None) -> type[Exception] | None:
        """Apply the end of an upload to the model; return its expected error."""
        if not writer.pending:
            return OperationError if writer.lost else None
        if fault == "denied":
            self.lose(side, writer)
            return AccessDenied
        if writer.new and writer.path in self.bucket.now:
            self.lose(side, writer)
            return AlreadyExists
        if writer.base is not None and self.bucket.now.get(writer.path) != writer.base:
            self.lose(side, writer)
            return OperationError
        self.bucket.put(writer.path, writer.data, self.now_s)
        writer.settled = True
        del side.view.writing[writer.path]
        self.note(side, writer.path, writer.data)
        return None

    def lose(self, side: Side, writer: Writer) -> None:
        if writer.pending:
            writer.lost = True
            del side.view.writing[writer.path]
            side.view.changed(writer.path, ABSENT, self.now_s)

    def note(self, side: Side, path: Path, data: bytes) -> None:
        side.view.changed(path, data, self.now_s)

    def expect(self, error: type[Exception] | None, action: Any, fault: str | None) -> None:
        """Do something with one fault; check the error."""
        left = [fault] if fault else []

        def script(request: Request) -> Fault | None:
            if request.kind not in ("put_object", "complete_upload") or not left:
                return None
            return Fault(lost=True) if left.pop() == "lost" else Fault(error=AccessDenied())

        self.client.script = script
        try:
            if error is None:
                action()
            else:
                with pytest.raises(error):
                    action()
        finally:
            self.client.script = None

    # --- rules: names ---

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def unlink(self, side: int, path: Path) -> None:
        it = self.sides[side]
        parent = self.directory(it, parent_of(path))
        if parent is None or self.file(it, path) is None:
            return
        for each in [each for each in it.writers if each.settled and each.path == path]:
            self.release(it, each, None)  # the model does not know which of them fails
        try:
            it.world.fs.unlink(parent, path.rpartition(b"/")[2])
        except NoSuchEntry:
            assert it.view.may_be_absent(path, self.now_s - self.negative_ttl_s)
        except IsADirectory:
            assert None in it.view.may_be(path, self.now_s - self.ttl_s)
        else:
            stored = True
            if path in it.view.writing:
                (writer,) = [each for each in it.writers if each.path == path and each.pending]
                stored = not writer.new or writer.base is not None
                writer.removed = True
                del it.view.writing[path]
            if stored:
                self.bucket.delete(path, self.now_s)
            it.view.keep(parent_of(path))
            it.view.changed(path, ABSENT, self.now_s)
            it.last.pop(path, None)

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def mkdir(self, side: int, path: Path) -> None:
        it = self.sides[side]
        parent = self.directory(it, parent_of(path))
        if parent is None or self.look(it, path) is not None:
            return
        made = it.world.fs.mkdir(parent, path.rpartition(b"/")[2])
        it.lookups[made.inode] += 1
        it.view.keep(path)
        self.check(it, path, made)

    @rule(side=st.integers(0, 1), path=st.sampled_from(PATHS))
    def rmdir(self, side: int, path: Path) -> None:
        it = self.sides[side]
        parent = self.directory(it, parent_of(path))
        if parent is None or self.directory(it, path) is None:
            return
        try:
            it.world.fs.rmdir(parent, path.rpartition(b"/")[2])
        except DirectoryNotEmpty:
            assert it.view.names(path)
        except NoSuchEntry:
            assert it.view.may_be_absent(path, self.now_s - self.negative_ttl_s)
        else:
            assert not it.view.names(path)
            it.view.drop(path)
            it.view.keep(parent_of(path))
            it.view.changed(path, ABSENT, self.now_s)

    @rule(side=st.integers(0, 1), new=st.sampled_from([b"c", *PATHS]), data=st.data())
    def rename(self, side: int, new: Path, data: st.DataObject) -> None:
        it = self.sides[side]
        there = {*self.bucket.now, *it.view.writing, *it.view.directories}
        there.update(above for path in list(there) for above in ancestors(path))
        if not there:
            return
        old = data.draw(st.sampled_from(sorted(there)))
        if old == new or new.startswith(old + b"/") or old.startswith(new + b"/"):
            return  # the kernel refuses
        found, target = self.look(it, old), self.look(it, new)
        parent, to = self.directory(it, parent_of(old)), self.directory(it, parent_of(new))
        if found is None or parent is None or to is None:
            return
        is_directory = stat.S_ISDIR(found.mode)
        if target is not None and stat.S_ISDIR(target.mode) != is_directory:
            return  # the kernel refuses this, too
        writers = [each for each in it.writers if each.pending and each.path == old]
        if any(target is not None or len(each.data) > PART_BYTES for each in writers):
            return  # `test_renames` covers these
        if any(
            not each.pending and (each.path == old or each.path.startswith(old + b"/"))
            for each in it.writers
        ):
            return  # open descriptors would continue in a renamed file
        before = dict(self.bucket.now)
        names = parent, old.rpartition(b"/")[2], to, new.rpartition(b"/")[2]
        try:
            it.world.fs.rename(*names)
        except OperationError:
            assert not (writers and writers[0].new)
            self.renamed_in_part(old, new, before)
        else:
            moved = {}
            if not writers:
                moved = self.renamed(it, old, new, before, target is not None)
            self.renamed_here(it, old, new, is_directory)
            for path, content in moved.items():
                self.note(it, path, content)

    def renamed(
        self, side: Side, old: Path, new: Path, before: dict[bytes, bytes], replaces: bool
    ) -> dict[bytes, bytes]:
        """Apply a rename to the model's bucket; return the moved objects."""
        moved = {key: data for key, data in before.items() if key.startswith(old + b"/")}
        if side.view.may_be(old, self.now_s - self.ttl_s) != [None] and old in before:
            moved = moved if self.client_has(old) else {old: before[old]}
        for key, data in moved.items():
            assert replaces or new + key[len(old) :] not in before, "replaced what was there"
            self.bucket.delete(key, self.now_s)
            self.bucket.put(new + key[len(old) :], data, self.now_s)
        return {new + key[len(old) :]: data for key, data in moved.items()}

    def client_has(self, key: bytes) -> bool:
        """Whether this object exists."""
        return key in self.client.keys()  # noqa: SIM118

    def renamed_in_part(self, old: Path, new: Path, before: dict[bytes, bytes]) -> None:
        """Check that a failed rename has lost and replaced nothing."""
        keys = self.client.keys()
        for key, data in before.items():
            places = [key]
            if key.startswith(old + b"/"):
                places.append(new + key[len(old) :])
            contents = [self.client.content(each) for each in places if each in keys]
            assert data in contents, (key, "is lost")
        now = {key: self.client.content(key) for key in keys}
        self.bucket.history.append((self.now_s, now))

    def renamed_here(self, side: Side, old: Path, new: Path, is_directory: bool) -> None:
        """Apply a rename to the mount's local state in the model."""
        view = side.view

        def moved(path: Path) -> Path:
            below = path == old or path.startswith(old + b"/")
            return new + path[len(old) :] if below else path

        for writer in side.writers:
            if writer.pending:
                writer.path = moved(writer.path)
        view.writing = {moved(path): data for path, data in view.writing.items()}
        view.directories = {moved(path) for path in view.directories}
        view.keep(parent_of(old))
        if is_directory:
            view.keep(new)
        for path in [b"c", *PATHS]:
            if path in (old, new) or path.startswith((old + b"/", new + b"/")):
                side.last.pop(path, None)
                view.changed(path, ABSENT, self.now_s)

    # --- always ---

    @initialize()
    def begin_with_something(self) -> None:
        self.somebody_else_puts(b"b/a", b"x")

    @invariant()
    def bucket_is_as_it_should_be(self) -> None:
        found = dict(zip(keys := self.client.keys(), map(self.client.content, keys), strict=True))
        assert found == self.bucket.now

    @invariant()
    def tables_are_sound(self) -> None:
        for side in self.sides:
            side.world.fs._inodes.check()
            side.world.fs._caches._listings.check()
            pending = {each.path for each in side.writers if each.pending}
            assert pending == set(side.view.writing)


class DefaultTtl(Mounts):
    """`--metadata-ttl minimal`."""


class NoTtl(Mounts):
    """`--metadata-ttl 0`."""

    ttl_s = 0.0


class LongTtl(Mounts):
    """`--metadata-ttl 5`: the age of names, absence and opened versions."""

    ttl_s = 5.0
    negative_ttl_s = 5.0
    asks_on_open = False


def case(machine: type[Mounts]) -> Any:
    """Return the test of a state machine."""
    test = machine.TestCase
    test.settings = settings(
        deadline=None, max_examples=examples(15), stateful_step_count=30, print_blob=True
    )
    return pytest.mark.slow(test)


TestDefaultTtl = case(DefaultTtl)
TestNoTtl = case(NoTtl)
TestLongTtl = case(LongTtl)
