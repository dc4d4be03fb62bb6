"""All operations by two mounts and an S3 client, compared with a model (`model`).

The mounts have `--metadata-ttl 0`, so that the model says exactly what each operation returns.
With `--staged-writes` programs keep files open while they change them, and change them anywhere.
Without it each file is written in one step; other tests keep them open (`test_two_mounts`).
"""

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as LocalPath
from typing import ClassVar, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mountpoint.mount.control import ask
from tests.conftest import Store
from tests.mount.model import CHANGED, Handle, Path, Refused, Side
from tests.mount.mounting import Mount, mounted
from tests.mount.test_ctl import own_socket
from tests.soak import FACTOR, count_cases, examples
from tests.unit.write_model import ABSENT

pytestmark = pytest.mark.mount

OPTIONS = [
    *("--metadata-ttl", "0", "--prefix", "model/"),
    *("--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"),
]
FILES = [b"a", b"b", b"d/a", b"d/b", b"e/a", b"d/e/a"]
DIRECTORIES = [b"d", b"e", b"d/e"]
#: The last two have several parts of a read, or of the blocks of a staged file.
SIZES = [0, 1, 5, 4096, 5000, 200_000, 3 << 20]
T = TypeVar("T")
U = TypeVar("U")
#: Differs in each object, so that no version returns.
NUMBERS = itertools.count(1)
SIDES = st.integers(0, 1)
#: One of what exists, or of all (`Mounts.path`).
PICKS = st.integers(0, 63)
FLAGS = [0, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_APPEND, os.O_TRUNC]


def some_bytes(size: int) -> bytes:
    """Return bytes that no other file has."""
    number = b"%d." % next(NUMBERS)
    return (number * (size // len(number) + 1))[: max(size, len(number))] if size else b""


class Program:
    """The open files of one mount: those of the model, and their descriptors."""

    def __init__(self, mount: Mount, socket: LocalPath, part: str, side: Side) -> None:
        self.mount, self.socket, self.side = mount, socket, side
        self.root = os.fsencode(mount.path / part) + b"/"
        self.open: list[tuple[Handle, int]] = []

    def settle(self) -> None:
        """Wait until the mount has learnt of each close: the kernel reports it afterwards."""
        expected = len(self.open), set(self.side.files)
        until_s = time.monotonic() + 10.0
        while (found := self._open_files()) != expected:
            assert time.monotonic() < until_s, (found, expected)
            time.sleep(0.001)

    def _open_files(self) -> tuple[int, set[Path]]:
        status = ask(self.socket, "status")
        paths = {os.fsencode(each["path"]) for each in status["being_written"]}
        part = b"/" + self.root.split(b"/")[-2] + b"/"
        own = {each.removeprefix(part) for each in paths if each.startswith(part)}
        return status["open_files"], own


class Mounts(RuleBasedStateMachine):
    """What programs do through two mounts, and an S3 client beside them."""

    store: ClassVar[Store]
    mounts: ClassVar[list[tuple[Mount, LocalPath]]]
    staged: ClassVar[bool]
    examples: ClassVar[int]  # in `make test`
    parts = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        part = f"{os.getpid()}-{next(self.parts)}"
        self.prefix = f"model/{part}/"
        self.client = self.store.client()
        self.objects: dict[Path, bytes] = {}
        self.programs = [
            Program(mount, socket, part, Side(self.objects, self.staged))
            for mount, socket in self.mounts
        ]
        self.put(b"always", b"!")  # so that the directory exists

    def put(self, path: Path, data: bytes) -> None:
        self.client.put_object(Bucket=self.store.bucket, Key=self.prefix + path.decode(), Body=data)
        self.objects[path] = data

    def teardown(self) -> None:
        for program in self.programs:
            self.drop(program)
        found = self.client.list_objects_v2(Bucket=self.store.bucket, Prefix=self.prefix)
        stored = {}
        for key in [each["Key"] for each in found.get("Contents", [])]:
            body = self.client.get_object(Bucket=self.store.bucket, Key=key)["Body"]
            stored[key.removeprefix(self.prefix).encode()] = body.read()
            self.store.delete(key)
        assert stored == self.objects

    def drop(self, it: Program) -> None:
        """Close all files, and remove those that could not be uploaded."""
        try:
            while it.open:
                self.end(it, *it.open[0])
            for path in list(it.side.files):
                self.compare(partial(it.side.unlink, path), partial(os.unlink, it.root + path))
        finally:
            for _, descriptor in it.open:
                with contextlib.suppress(OSError):
                    os.close(descriptor)  # another one would hide what has failed

    def compare(self, predict: Callable[[], T], act: Callable[[], U]) -> tuple[T, U] | None:
        """Do something, and compare its error with the model's; return both results, or None."""
        numbers: tuple[int, ...] = ()
        try:
            expected = predict()
        except Refused as refused:
            numbers = refused.numbers
        try:
            found = act()
        except OSError as error:
            if error.errno in numbers:
                return None
            raise
        assert not numbers, ("no error, but", [errno.errorcode[each] for each in numbers])
        return expected, found

    def path(self, it: Program, pick: int) -> Path:
        """Return a path: of three, two are there, if anything is, and often open."""
        side, some = it.side, [*FILES, *DIRECTORIES]
        there = sorted({*side.objects, *side.files, *side.directories} - {b"always"})
        there += [*side.files, *side.files]
        there += [each for each in DIRECTORIES if side.state(each) is None]
        return there[pick // 3 % len(there)] if there and pick % 3 else some[pick % len(some)]

    @initialize()
    def begin_with_something(self) -> None:
        for path in (b"a", b"d/a", b"e/a"):
            self.put(path, some_bytes(5000))

    # --- others ---

    @rule(path=st.sampled_from(FILES), size=st.sampled_from(SIZES))
    def somebody_else_puts(self, path: Path, size: int) -> None:
        self.put(path, some_bytes(max(size, 1)))

    @rule(path=st.sampled_from(FILES))
    def somebody_else_deletes(self, path: Path) -> None:
        self.client.delete_object(Bucket=self.store.bucket, Key=self.prefix + path.decode())
        self.objects.pop(path, None)

    # --- names ---

    @rule(number=SIDES, pick=PICKS)
    def stat(self, number: int, pick: int) -> None:
        it = self.programs[number]
        self.look(it, self.path(it, pick))

    def look(self, it: Program, *paths: Path) -> None:
        """Compare attributes, also after each change."""
        for path in paths:
            found = self.compare(partial(it.side.look, path), partial(os.lstat, it.root + path))
            if found:
                state, status = found
                assert stat.S_ISDIR(status.st_mode) == (state is None)
                assert state is None or status.st_size == len(state)

    @rule(number=SIDES, path=st.sampled_from([b"", *DIRECTORIES, b"a"]))
    def list(self, number: int, path: Path) -> None:
        it = self.programs[number]

        def act() -> set[bytes]:
            # A thread that lists several directories may get listings made in advance.
            with ThreadPoolExecutor(1) as pool:
                return set(pool.submit(os.listdir, it.root + path).result())

        found = self.compare(lambda: it.side.list(path), act)
        if found:
            assert found[0] == found[1]

    @rule(number=SIDES, path=st.sampled_from(DIRECTORIES))
    def mkdir(self, number: int, path: Path) -> None:
        it = self.programs[number]
        self.compare(lambda: it.side.mkdir(path), lambda: os.mkdir(it.root + path))

    @rule(number=SIDES, pick=PICKS)
    def rmdir(self, number: int, pick: int) -> None:
        it = self.programs[number]
        path = self.path(it, pick)
        self.compare(lambda: it.side.rmdir(path), lambda: os.rmdir(it.root + path))

    @rule(number=SIDES, pick=PICKS)
    def unlink(self, number: int, pick: int) -> None:
        it = self.programs[number]
        path = self.path(it, pick)
        self.compare(lambda: it.side.unlink(path), lambda: os.unlink(it.root + path))
        self.look(it, path)

    @rule(number=SIDES, pick=PICKS, to=PICKS)
    def rename(self, number: int, pick: int, to: int) -> None:
        it = self.programs[number]
        self._rename(it, self.path(it, pick), to)

    def _rename(self, it: Program, old: Path, to: int) -> None:
        alike = DIRECTORIES if it.side.state(old) is None else [*FILES, b"c", b"d/c"]
        new = alike[to // 2 % len(alike)] if to % 4 else self.path(it, to // 4)
        if new.startswith(old + b"/") or old.startswith(new + b"/"):
            return  # the kernel refuses
        if it.side.state(new) == ABSENT and (new in DIRECTORIES) != (it.side.state(old) is None):
            return  # a file of the other mount would hide behind a directory
        self.compare(
            lambda: it.side.rename(old, new), lambda: os.rename(it.root + old, it.root + new)
        )
        self.look(it, old, new)

    @rule(number=SIDES, pick=PICKS, to=PICKS)
    @precondition(lambda self: self.staged)
    def rename_open(self, number: int, pick: int, to: int) -> None:
        if paths := sorted(self.programs[number].side.files):
            self._rename(self.programs[number], paths[pick % len(paths)], to)

    # --- files ---

    @rule(number=SIDES, pick=PICKS)
    def open_to_read(self, number: int, pick: int) -> None:
        it = self.programs[number]
        path = self.path(it, pick)
        self.open(it, path, os.O_RDONLY)

    @rule(
        number=SIDES,
        pick=PICKS,
        mode=st.sampled_from([os.O_WRONLY, os.O_RDWR]),
        flags=st.sampled_from(FLAGS),
    )
    @precondition(lambda self: self.staged)
    def open_to_write(self, number: int, pick: int, mode: int, flags: int) -> None:
        it = self.programs[number]
        path = self.path(it, pick)
        self.open(it, path, mode | (flags & ~os.O_CREAT if path in DIRECTORIES else flags))

    def open(self, it: Program, path: Path, flags: int) -> tuple[Handle, int] | None:
        opened = self.compare(
            lambda: it.side.open(
                path,
                writes=flags & os.O_ACCMODE != os.O_RDONLY,
                empties=bool(flags & os.O_TRUNC),
                creates=bool(flags & os.O_CREAT),
                appends=bool(flags & os.O_APPEND),
            ),
            lambda: open_file(it.root + path, flags),
        )
        if opened:
            handle, descriptor = opened
            it.open.append((handle, descriptor))
        return opened

    @rule(number=SIDES, index=st.integers(0, 5), offset=st.sampled_from(SIZES))
    def read(self, number: int, index: int, offset: int) -> None:
        it = self.programs[number]
        if not it.open:
            return
        handle, descriptor = it.open[index % len(it.open)]
        if handle.file is not None and not self.readable(descriptor):
            return
        data, lost = it.side.content(handle)
        expected = data[offset : offset + (1 << 20)]
        try:
            found = os.pread(descriptor, 1 << 20, offset)
            if lost and 0 < len(found) < len(expected):
                # The kernel had some of the pages; the next read has the error.
                assert expected.startswith(found)
                found += os.pread(descriptor, len(expected) - len(found), offset + len(found))
        except OSError as error:
            if not lost or error.errno not in CHANGED:
                raise
        else:
            assert found == expected
            assert os.fstat(descriptor).st_size == len(data)

    @staticmethod
    def readable(descriptor: int) -> bool:
        text = LocalPath(f"/proc/self/fdinfo/{descriptor}").read_text()
        return int(text.split("flags:")[1].split()[0], 8) & os.O_ACCMODE != os.O_WRONLY

    @rule(
        number=SIDES,
        index=st.integers(0, 5),
        offset=st.sampled_from(SIZES),
        size=st.sampled_from(SIZES),
    )
    def write(self, number: int, index: int, offset: int, size: int) -> None:
        it = self.programs[number]
        if writing := [each for each in it.open if each[0].writes]:
            handle, descriptor = writing[index % len(writing)]
            data = some_bytes(max(size, 1))
            it.side.write(handle, offset, data)
            assert os.pwrite(descriptor, data, offset) == len(data)

    @rule(number=SIDES, index=st.integers(0, 5), size=st.sampled_from(SIZES))
    def truncate_open(self, number: int, index: int, size: int) -> None:
        it = self.programs[number]
        if writing := [each for each in it.open if each[0].writes]:
            handle, descriptor = writing[index % len(writing)]
            it.side.truncate_open(handle, size)
            os.ftruncate(descriptor, size)

    @rule(number=SIDES, pick=PICKS, size=st.sampled_from(SIZES[:-1]))
    def truncate(self, number: int, pick: int, size: int) -> None:
        it = self.programs[number]
        path = self.path(it, pick)
        self.compare(
            lambda: it.side.truncate(path, size), lambda: os.truncate(it.root + path, size)
        )

    @rule(number=SIDES, index=st.integers(0, 5))
    def fsync(self, number: int, index: int) -> None:
        it = self.programs[number]
        if it.open:
            handle, descriptor = it.open[index % len(it.open)]
            self.compare(lambda: it.side.fsync(handle), lambda: os.fsync(descriptor))

    @rule(number=SIDES, index=st.integers(0, 5))
    def close(self, number: int, index: int) -> None:
        it = self.programs[number]
        if it.open:
            self.end(it, *it.open[index % len(it.open)])

    def end(self, it: Program, handle: Handle, descriptor: int) -> None:
        """Close a file, with an fsync before: the close of an empty file does not wait."""
        if handle.changed and not handle.wrote:
            self.compare(lambda: it.side.fsync(handle), lambda: os.fsync(descriptor))
        it.open.remove((handle, descriptor))
        closed = self.compare(lambda: it.side.close(handle), lambda: os.close(descriptor))
        it.settle()
        if closed is None:
            time.sleep(0.02)  # the last close tries once more, which shows nowhere
        self.look(it, handle.path)

    @rule(
        number=SIDES, path=st.sampled_from(FILES), size=st.sampled_from(SIZES), adds=st.booleans()
    )
    def write_file(self, number: int, path: Path, size: int, adds: bool) -> None:
        it = self.programs[number]
        opened = self.open(
            it, path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if adds else os.O_TRUNC)
        )
        if opened:
            handle, descriptor = opened
            for data in (some_bytes(size), some_bytes(1)):
                it.side.write(handle, len(it.side.content(handle)[0]), data)
                assert os.write(descriptor, data) == len(data)
            self.end(it, handle, descriptor)


def open_file(path: bytes, flags: int) -> int:
    """Open a file, and no directory."""
    descriptor = os.open(path, flags, 0o644)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "a directory")
    return descriptor


def run(machine: type[Mounts], store: Store, folders: list[LocalPath], *options: str) -> None:
    """Mount the bucket in each folder, and run the machine."""
    first, second = folders
    machine.store = store
    count_cases(examples(machine.examples))
    with (
        mounted(store, first, *OPTIONS, *options) as one,
        mounted(store, second, *OPTIONS, *options) as two,
    ):
        machine.mounts = [(each, own_socket(each)) for each in (one, two)]
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples(machine.examples),
                stateful_step_count=40,
                deadline=None,
                # The same examples in each `make test`: new ones belong to `make soak`.
                derandomize=FACTOR <= 1,
                print_blob=FACTOR > 1,
                # On real mounts, looking for a shorter example takes longer than a test may.
                phases=(Phase.explicit, Phase.generate),
            ),
        )


class StagedMounts(Mounts):
    """Files are changed in any order."""

    staged = True
    examples = 20


class StreamedMounts(Mounts):
    """Files are written from start to end."""

    staged = False
    examples = 10


@pytest.fixture
def folders(tmp_path: LocalPath) -> list[LocalPath]:
    """Two folders to mount in."""
    for name in ("one", "two", "stage"):
        (tmp_path / name).mkdir()
    return [tmp_path / "one", tmp_path / "two"]


def test_staged(flat_store: Store, folders: list[LocalPath]) -> None:
    """Two mounts with files that are staged."""
    stage = str(folders[0].parent / "stage")
    run(StagedMounts, flat_store, folders, "--staged-writes", stage)


def test_streamed(flat_store: Store, folders: list[LocalPath]) -> None:
    """Two mounts with files that are streamed."""
    run(StreamedMounts, flat_store, folders)
