"""A model of prepared files: any order of operations."""

import os
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mountpoint.native import _lane
from mountpoint.native._handles import FIRST_HANDLE, NativeHandles, OpenedFile
from mountpoint.native._prepared import PreparedFiles
from tests.soak import examples
from tests.unit.native import building
from tests.unit.native.prepared_files import (
    BUCKETS,
    FIELDS,
    mapped,
    source_of,
)


@dataclass
class Version:
    """A prepared file of the model; its source fails while `broken` holds anything."""

    inode: int
    generation: int
    until_s: int
    place: int
    wakes: bool
    data: bytes
    broken: list[bool] = field(default_factory=list)
    used: bool = False


@dataclass
class Opened:
    """An open file of the model. `failed`: its lane has no source any more."""

    version: Version
    line: bytes
    failed: bool = False
    read_bytes: int = 0


INODES = st.sampled_from([1, 2, 3, 1 + BUCKETS])
NUMBERS = st.integers(0, 50)
LOG_BYTES = 400


class Prepared(RuleBasedStateMachine):
    """Files that are prepared, opened, read, closed, taken and logged, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = building.probe()
        self.before = _lane.registered(), self.probe.sources()
        self.journal, self.file = mapped(LOG_BYTES)
        self.handles = NativeHandles(self.journal)
        self.files = PreparedFiles(self.handles)
        self.now_s = self.generation = self.places = 0
        self.prepared: dict[int, Version] = {}
        self.opened: dict[int, Opened] = {}
        self.next = FIRST_HANDLE
        self.opens = self.used = self.read_bytes = 0
        self.asked: list[int] = []
        self.log = b""
        self.sealed = False

    def _log(self, line: bytes) -> bool:
        """Append a line to the model's log, if there is room."""
        fits = not self.sealed and len(self.log) + len(line) <= LOG_BYTES
        self.log += line if fits else b""
        return fits

    def _handle(self, number: int) -> int:
        """Return any of the open handles, or one that is not open."""
        handles = [*self.opened, self.next]
        return handles[number % len(handles)]

    def _take(self, handle: int) -> OpenedFile:
        opened = self.opened.pop(handle)
        self.read_bytes += opened.read_bytes
        _lane.unregister(handle)
        return OpenedFile(handle, opened.version.inode, opened.line)

    @rule(inode=INODES, late=st.booleans(), for_s=st.integers(1, 5), wakes=st.booleans())
    def add(self, inode: int, late: bool, for_s: int, wakes: bool) -> None:
        generation = self.generation - (late and self.generation > 0)
        place, until_s = self.places + 1, self.now_s + for_s
        data = b"%d " % place * 5
        version = Version(inode, generation, until_s, place, wakes, data)
        source = source_of(self.probe, data, version.broken)
        added = self.files.add(inode, generation, until_s, len(data), source, FIELDS, wakes=wakes)
        assert added == (generation == self.generation)
        if added:
            self.prepared[inode] = version
            self.places = place

    @rule()
    def forget_all(self) -> None:
        self.files.forget_all()
        self.generation += 1

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(inode=INODES, request=st.integers(0, (1 << 64) - 1))
    def open(self, inode: int, request: int) -> None:
        handle = self.files.open(inode, request, self.now_s)
        version = self.prepared.get(inode)
        line = b'["handle",%d,%s%d}]\n' % (self.next, FIELDS, request)
        if version is None or not self._is_valid(version) or not self._log(line):
            assert handle == 0
            return
        assert handle == self.next
        self.opened[handle] = Opened(version, line)
        self.next += 1
        self.opens += 1
        if not version.used:
            version.used = True
            self.used += 1
        if version.wakes:
            self.asked.append(inode)

    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        handle = self._handle(number)
        closed = handle in self.opened and self._log(b'["handle",%d]\n' % handle)
        assert self.handles.close(handle) == closed
        if closed:
            self.read_bytes += self.opened.pop(handle).read_bytes

    @rule(number=NUMBERS, offset=st.integers(0, 25), size=st.integers(0, 25))
    def read(self, number: int, offset: int, size: int) -> None:
        handle = self._handle(number)
        data = self.handles.read(handle, offset, size)
        opened = self.opened.get(handle)
        if opened is None:
            assert data is None
            return
        expected = opened.version.data[offset : offset + size]
        opened.failed = opened.failed or bool(expected and opened.version.broken)
        if expected and opened.failed:
            assert data is None
        else:
            assert data == expected
            opened.read_bytes += len(expected)

    @rule(number=NUMBERS, fails=st.booleans())
    def fail(self, number: int, fails: bool) -> None:
        """Let the source of an open file fail, or work again."""
        opened = self.opened.get(self._handle(number))
        if opened is not None:
            opened.version.broken[:] = [True] * fails

    @rule(inode=INODES)
    def take(self, inode: int) -> None:
        handles = [each for each, its in self.opened.items() if its.version.inode == inode]
        assert sorted(self.handles.take(inode)) == [self._take(handle) for handle in handles]

    @rule(number=NUMBERS)
    def take_handle(self, number: int) -> None:
        handle = self._handle(number)
        expected = self._take(handle) if handle in self.opened else None
        taken = self.handles.take_handle(handle)
        assert taken == expected

    @rule()
    def take_read_bytes(self) -> None:
        assert self.handles.take_read_bytes() == self.read_bytes
        self.read_bytes = 0

    @rule()
    def wait(self) -> None:
        assert self.files.wait(0.0) == self.asked
        self.asked.clear()

    @rule(ahead=st.sampled_from([1, 2, BUCKETS]))
    def number_from(self, ahead: int) -> None:
        self.next += ahead
        self.handles.number_from(self.next)

    @rule()
    def seal(self) -> None:
        self.journal.seal()
        self.sealed = True

    @precondition(lambda self: self.sealed or len(self.log) > LOG_BYTES // 2)
    @rule()
    def map_again(self) -> None:
        os.ftruncate(self.file, 0)
        os.ftruncate(self.file, LOG_BYTES)
        self.journal.map(self.file, 0)
        self.log, self.sealed = b"", False

    def _is_valid(self, version: Version) -> bool:
        return version.generation == self.generation and self.now_s < version.until_s

    @invariant()
    def counts(self) -> None:
        files = self.files
        assert (len(files), len(self.handles)) == (len(self.prepared), len(self.opened))
        assert (files.opens, files.used) == (self.opens, self.used)
        assert files.generation == self.generation
        for inode in (1, 2, 3, 1 + BUCKETS):
            version = self.prepared.get(inode)
            assert files.has(inode, self.now_s) == (
                version is not None and self._is_valid(version)
            ), inode
            is_open = any(each.version.inode == inode for each in self.opened.values())
            assert self.handles.is_open(inode) == is_open, inode

    @invariant()
    def logged(self) -> None:
        lines = self.handles.text().splitlines(keepends=True)
        assert sorted(lines) == sorted(each.line for each in self.opened.values())
        assert os.pread(self.file, LOG_BYTES, 0).rstrip(b"\0") == self.log

    @invariant()
    def held(self) -> None:
        """Handles are registered while they are open, and sources are there as long as needed."""
        needed = {each.place for each in self.prepared.values()}
        needed |= {each.version.place for each in self.opened.values() if not each.failed}
        assert _lane.registered() == self.before[0] + len(self.opened)
        assert self.probe.sources() == self.before[1] + len(needed)

    def teardown(self) -> None:
        del self.files, self.handles
        assert (_lane.registered(), self.probe.sources()) == self.before
        os.close(self.file)


TestPrepared = Prepared.TestCase
TestPrepared.settings = settings(max_examples=examples(50), stateful_step_count=30, deadline=None)
