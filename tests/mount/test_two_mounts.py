"""Two mounts of a bucket and another writer, compared with a model, through the kernel.

This does the same as `tests/unit/fs/writes/test_write_model.py`, but with system calls, a real
server and real time, so it includes the kernel's caches of names, attributes and pages. The age of
cached answers is measured, with `SLACK_S` for the kernel's ticks. A seed determines the steps.
Because of the timing no failure repeats exactly, so the steps are printed, and cases are not
shrunk.
"""

import errno
import functools
import os
import random
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import Store
from tests.mount.mounting import mounted
from tests.soak import seeds
from tests.unit.write_model import ABSENT, Bucket, View, ancestors, parent_of
from tests.unit.write_model import Path as Name

pytestmark = pytest.mark.mount

OPTIONS = ["--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"]
TTL_S, SLACK_S = 1.0, 0.1
#: A walk may be listed ahead, and its listings used this long.
WALK_S = 0.5
PATHS = [b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a"]
#: Some contents are equal: a version that returns has its old ETag.
PIECES = [b"x", b"y", b"xx", b"x" * 5000, b"y" * 5000]
#: More seeds find more. Each takes two or three seconds, mostly waiting.
SEEDS = seeds(fixed=3, drawn=1)
STEPS = 40

REFUSED = {errno.EPERM, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ENOENT}


T = TypeVar("T")


@dataclass
class Writer:
    """A descriptor for writing; `data` is the content that S3 will have."""

    path: Name
    file: int
    data: bytes
    surely_new: bool
    maybe_new: bool
    appends: bool
    expects: bytes | None = None  # the object that must still exist at the close
    lost: bool = False  # no object will result


@dataclass
class Reader:
    """A descriptor for reading, and the bytes read."""

    path: Name
    file: int
    data: bytes


@dataclass
class Side:
    """One mount, and the model's view of it."""

    folder: bytes
    view: View
    writers: list[Writer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)


class TwoMounts:
    """The actions of programs on two mounts, and their expected results."""

    def __init__(self, store: Store, folders: list[Path], seed: int) -> None:
        self.random = random.Random(seed)
        self.drawn: list[str] = []  # of this step
        name = f"{seed}-{time.time_ns()}"
        self.client, self.name = store.client(), store.bucket
        self.prefix = f"two/{name}/".encode()
        self.bucket = Bucket()
        self.sides = [
            Side(os.fsencode(folder / name) + b"/", View(self.bucket)) for folder in folders
        ]
        self.put(b"always", b"!")  # so that the directory exists

    def step(self) -> None:
        """Do one step, and print it."""
        actions = [
            self.time_passes,
            self.somebody_else_puts,
            self.somebody_else_deletes,
            self.stat,
            self.list_directory,
            self.walk,
            self.read,
            self.read_on,
            self.open_to_write,
            self.write_file,
            self.write_some,
            self.stat_what_is_written,
            self.close_one,
            self.truncate,
            self.unlink,
            self.mkdir,
            self.rmdir,
            self.rename,
        ]
        weights = [
            2 if each in (self.write_file, self.read, self.rename) else 1 for each in actions
        ]
        (action,) = self.random.choices(actions, weights)
        number = self.random.randrange(2)
        self.drawn = []
        began_s = time.monotonic()
        try:
            action(self.sides[number])
        finally:
            print(f"{began_s:.3f} {time.monotonic():.3f}", number, action.__name__, *self.drawn)
        assert self.contents() == self.bucket.now

    def draw(self, choices: Sequence[T]) -> T:
        """Choose, and record the choice."""
        chosen = self.random.choice(choices)
        self.drawn.append(f"{chosen!r:.12}")
        return chosen

    def end(self) -> None:
        """Close all files, and check the result."""
        for side in self.sides:
            for writer in list(side.writers):
                self.close(side, writer)
        assert self.contents() == self.bucket.now

    def drop(self) -> None:
        """Close everything."""
        for side in self.sides:
            for file in [each.file for each in side.readers]:
                attempt(functools.partial(os.close, file))
            for file in [each.file for each in side.writers]:
                attempt(functools.partial(os.close, file))

    # --- the bucket ---

    def put(self, path: Name, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=(self.prefix + path).decode(), Body=data)
        self.bucket.put(path, data, time.monotonic())

    def contents(self) -> dict[bytes, bytes]:
        """Return the contents of the bucket."""
        answer = self.client.list_objects_v2(Bucket=self.name, Prefix=self.prefix.decode())
        keys = [each["Key"] for each in answer.get("Contents", [])]
        return {
            key.encode().removeprefix(self.prefix): self.client.get_object(
                Bucket=self.name, Key=key
            )["Body"].read()
            for key in keys
        }

    # --- possible answers for a path ---

    def may_be(self, side: Side, path: Name, before_s: float) -> list[Any]:
        """Return the possible states of a path for a mount, in a call that began then."""
        return side.view.may_be(path, before_s - TTL_S - SLACK_S)

    def check_refusal(self, side: Side, path: Name, number: int | None, before_s: float) -> None:
        """Check an errno about the state of a path, or of a path above it."""
        above = ancestors(path)
        if number == errno.ENOENT:
            absent = [each for each in [path, *above] if side.view.may_be_absent(each, before_s)]
            assert absent, (path, "is said to be absent")
        elif number == errno.ENOTDIR:
            files = [each for each in above if is_file(self.may_be(side, each, before_s))]
            assert files, (path, "is said to be below a file")
        elif number == errno.EISDIR:
            assert None in self.may_be(side, path, before_s), (path, "is said to be a directory")
        elif number == errno.EPERM:
            assert path in side.view.writing, (path, "is said to be in use")
        else:
            raise AssertionError((path, errno.errorcode.get(number or 0, number)))

    def try_to(
        self, side: Side, path: Name, action: Callable[[bytes], Any], *also: int
    ) -> tuple[Any, int]:
        """Act on a path; return the result, and an errno if it is one of `also`."""
        before_s = time.monotonic()
        result, number = attempt(lambda: action(side.folder + path))
        if number and number not in also:
            self.check_refusal(side, path, number, before_s)
        return result, number

    # --- rules: time, others ---

    def time_passes(self, it: Side) -> None:
        time.sleep(self.draw([0.3, 1.2]))

    def somebody_else_puts(self, it: Side) -> None:
        self.put(self.draw(PATHS), self.draw([b"", *PIECES]))

    def somebody_else_deletes(self, it: Side) -> None:
        path = self.draw(PATHS)
        self.client.delete_object(Bucket=self.name, Key=(self.prefix + path).decode())
        self.bucket.delete(path, time.monotonic())

    # --- rules: looking ---

    def stat(self, it: Side) -> None:
        path = self.draw(PATHS)
        before_s = time.monotonic()
        found, refused = self.try_to(it, path, os.lstat)
        if refused:
            return
        may_be = self.may_be(it, path, before_s)
        if stat.S_ISDIR(found.st_mode):
            assert None in may_be, (path, "is said to be a directory", may_be)
        else:
            sizes = [len(state) for state in may_be if isinstance(state, bytes)]
            assert found.st_size in sizes, (path, "is said to be a file", found, may_be)

    def list_directory(self, it: Side) -> None:
        """List in a new process:

        a process that lists several directories may get prefetched pages.
        """
        path = self.draw([b"", *PATHS])
        before_s = time.monotonic()
        done = subprocess.run(
            ["ls", "-1A", it.folder + path], capture_output=True, check=False, timeout=60
        )
        if done.returncode == 0 and done.stdout != it.folder + path + b"\n":
            assert set(done.stdout.split()) == set(it.view.names(path)), path
            return
        before = (b"No such file", errno.ENOENT), (b"Not a directory", errno.ENOTDIR)
        numbers = [number for text, number in before if text in done.stderr]
        if done.returncode == 0:
            assert is_file(self.may_be(it, path, before_s)), (path, "is said to be a file")
        else:
            self.check_refusal(it, path, numbers[0] if numbers else None, before_s)

    def walk(self, it: Side) -> None:
        before_s = time.monotonic() - WALK_S
        seen, walked = set(), set()
        for folder, directories, files in os.walk(it.folder):
            below = folder.removeprefix(it.folder)
            walked.add(below)
            seen |= {below + b"/" + n if below else n for n in [*directories, *files]}
        for path in PATHS:
            may_be = self.may_be(it, path, before_s)
            if path in seen:
                assert any(state != ABSENT for state in may_be), (path, "is seen on a walk")
            elif parent_of(path) in walked:
                assert ABSENT in may_be, (path, "is not seen on a walk")

    # --- rules: reading ---

    def read(self, it: Side) -> None:
        path = self.draw(PATHS)
        before_s = time.monotonic()
        file, refused = self.try_to(it, path, lambda name: os.open(name, os.O_RDONLY))
        if refused:
            return
        kept = False
        try:
            if stat.S_ISDIR(os.fstat(file).st_mode):
                assert None in self.may_be(it, path, before_s)
                return
            shared = path in it.view.writing  # nothing is written yet, and later it is read, too
            if shared:
                assert it.view.writing[path] == self.bucket.now.get(path)
            data = os.pread(file, 1 << 20, 0)
            assert data == self.bucket.now.get(path), (path, "is not the newest version")
            kept = self.draw([True, False]) and not shared
            if kept:
                it.readers.append(Reader(path, file, data))
        finally:
            if not kept:
                os.close(file)

    def read_on(self, it: Side) -> None:
        if not it.readers:
            return
        reader = self.random.choice(it.readers)
        self.drawn.append(str(reader.path))
        found, refused = attempt(lambda: os.pread(reader.file, 1 << 20, 0))
        if refused:
            assert refused in (errno.ESTALE, errno.ENOENT)
            assert self.bucket.now.get(reader.path) != reader.data
        else:
            assert found == reader.data, (reader.path, "has changed while it was open")
        if self.draw([True, False]):
            it.readers.remove(reader)
            os.close(reader.file)

    # --- rules: writing ---

    def open_to_write(self, it: Side) -> None:
        path = self.draw(PATHS)
        self.begin(it, path, appends=self.draw([True, False]))

    def write_file(self, it: Side) -> None:
        path = self.draw(PATHS)
        writer = self.begin(it, path, appends=False)
        if writer is not None:
            self.write(it, writer, self.draw([b"", *PIECES]))
            self.close(it, writer)

    def begin(self, side: Side, path: Name, *, appends: bool) -> Writer | None:
        before_s = time.monotonic()
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if appends else os.O_TRUNC)
        # The mount may not know of a recent replacement, but of a deletion: an append sends a
        # request.
        file, refused = self.try_to(side, path, lambda name: os.open(name, flags, 0o644))
        if refused:
            return None
        if path in side.view.writing:  # the two share the file
            assert appends or not side.view.writing[path]
            os.close(file)
            return None
        there = self.bucket.now.get(path)
        was_file = is_file(self.may_be(side, path, before_s))
        appends = appends and there is not None
        data, expects = (there, there) if appends else (b"", None)
        writer = Writer(path, file, data or b"", not was_file, there is None, appends, expects)
        side.view.writing[path] = writer.data
        side.writers.append(writer)
        return writer

    def write(self, side: Side, writer: Writer, data: bytes) -> None:
        written, refused = attempt(lambda: os.write(writer.file, data))
        if refused:
            assert writer.appends, errno.errorcode[refused]
            assert self.bucket.now.get(writer.path) != writer.expects
            writer.lost = True
            side.view.writing.pop(writer.path, None)
            side.view.changed(writer.path, ABSENT, time.monotonic())
            return
        assert written == len(data)
        assert not writer.lost
        writer.data += data
        side.view.writing[writer.path] = writer.data

    def write_some(self, it: Side) -> None:
        writer = self.some_writer(it)
        if writer is not None:
            self.write(it, writer, self.draw(PIECES))

    def close_one(self, it: Side) -> None:
        writer = self.some_writer(it)
        if writer is not None:
            self.close(it, writer)

    def stat_what_is_written(self, it: Side) -> None:
        writer = self.some_writer(it)
        if writer is not None and not writer.lost:
            assert os.fstat(writer.file).st_size == len(writer.data)

    def some_writer(self, it: Side) -> Writer | None:
        if not it.writers:
            return None
        writer = self.random.choice(it.writers)
        self.drawn.append(str(writer.path))
        return writer

    def close(self, side: Side, writer: Writer) -> None:
        """Close a file, with an fsync before:

        the close of an empty file does not wait for its upload.
        """
        _, number = attempt(lambda: os.fsync(writer.file))
        _, also = attempt(lambda: os.close(writer.file))
        number = number or also
        side.writers.remove(writer)
        if writer.lost:
            assert number, (writer.path, "was lost, and its close has not said so")
            return
        del side.view.writing[writer.path]
        there = self.bucket.now.get(writer.path)
        if number:
            conflict = there is not None if writer.expects is None else there != writer.expects
            assert conflict, (writer.path, errno.errorcode[number])
            assert writer.maybe_new or writer.expects is not None
            side.view.changed(writer.path, ABSENT, time.monotonic())
            return
        if not writer.appends or writer.data != writer.expects:
            if writer.expects is not None:
                assert there == writer.expects, (writer.path, "has replaced what others wrote")
            elif writer.surely_new:
                assert there is None, (writer.path, "has replaced what others wrote")
            self.bucket.put(writer.path, writer.data, time.monotonic())
        side.view.changed(writer.path, writer.data, time.monotonic())

    def truncate(self, it: Side) -> None:
        path = self.draw(PATHS)
        _, refused = self.try_to(it, path, lambda name: os.truncate(name, 0))
        if refused:
            return
        if path in it.view.writing:
            (writer,) = [each for each in it.writers if each.path == path and not each.lost]
            writer.data = it.view.writing[path] = b""
            return
        self.bucket.put(path, b"", time.monotonic())
        it.view.changed(path, b"", time.monotonic())

    # --- rules: names ---

    def unlink(self, it: Side) -> None:
        path = self.draw(PATHS)
        _, refused = self.try_to(it, path, os.unlink)
        if refused:
            return
        surely_new = False
        if path in it.view.writing:
            (writer,) = [each for each in it.writers if each.path == path and not each.lost]
            surely_new = writer.surely_new
            assert os.write(writer.file, b"z") == 1  # this write is discarded
            os.close(writer.file)
            it.writers.remove(writer)
            del it.view.writing[path]
        if not surely_new and path not in self.contents():
            self.bucket.delete(path, time.monotonic())
        it.view.keep(parent_of(path))
        it.view.changed(path, ABSENT, time.monotonic())

    def mkdir(self, it: Side) -> None:
        path = self.draw(PATHS)
        before_s = time.monotonic()
        _, refused = self.try_to(it, path, os.mkdir, errno.EEXIST)
        if refused == errno.EEXIST:
            may_be = self.may_be(it, path, before_s)
            assert any(state != ABSENT for state in may_be), (path, "is said to exist")
        elif not refused:
            assert it.view.may_be_absent(path, before_s), path
            it.view.keep(path)

    def rmdir(self, it: Side) -> None:
        path = self.draw(PATHS)
        before_s = time.monotonic()
        _, refused = self.try_to(it, path, os.rmdir, errno.ENOTEMPTY, errno.ENOTDIR)
        if refused == errno.ENOTEMPTY:
            assert it.view.names(path), (path, "is said not to be empty")
        elif refused == errno.ENOTDIR:
            files = [is_file(self.may_be(it, e, before_s)) for e in [path, *ancestors(path)]]
            assert any(files), (path, "is said to be no directory")
        elif not refused:
            assert not it.view.names(path), (path, "was not empty")
            it.view.drop(path)
            it.view.keep(parent_of(path))
            it.view.changed(path, ABSENT, time.monotonic())

    def rename(self, it: Side) -> None:
        old, new = self.draw(PATHS), self.draw([b"c", *PATHS])
        before_s = time.monotonic()
        if old == new or new.startswith(old + b"/") or old.startswith(new + b"/"):
            return  # the kernel refuses
        ends = (old, new)
        if any(is_in(each.path, ends) for each in it.readers):
            return  # open descriptors would continue in a renamed file
        before = dict(self.bucket.now)
        above = {path: self.may_be(it, path, before_s) for path in ends}
        writing = {path for path in it.view.writing if is_in(path, ends)}
        _, refused = attempt(lambda: os.rename(it.folder + old, it.folder + new))
        if refused:
            assert refused in REFUSED, errno.errorcode[refused]
            self.check_nothing_lost(old, new, before)
            if refused == errno.EPERM:
                assert writing or None in above[old], (old, new, "is said to be in use")
            return
        assert new not in writing, "replaced a file that is being written"
        now = self.contents()
        self.check_renamed(old, new, before, now, may_replace=above[new] != [ABSENT])
        self.bucket.history.append((time.monotonic(), now))
        for writer in it.writers:
            if writer.path == old:
                writer.surely_new, writer.expects = new not in before, before.get(new)
        # Another client may have made it a directory just now: then the file has moved, or that.
        was_file = old in writing or (old in before and old not in now)
        self.renamed_here(it, old, new, is_directory=None in above[old] and not was_file)

    def check_nothing_lost(self, old: Name, new: Name, before: dict[bytes, bytes]) -> None:
        """Check that a failed rename has lost and replaced nothing."""
        now = self.contents()
        for key, data in before.items():
            places = [key]
            if key == old or key.startswith(old + b"/"):
                places.append(new + key[len(old) :])
            assert data in [now.get(each) for each in places], (key, "is lost")
        if now != before:
            self.bucket.history.append((time.monotonic(), now))

    def check_renamed(
        self,
        old: Name,
        new: Name,
        before: dict[bytes, bytes],
        now: dict[bytes, bytes],
        *,
        may_replace: bool,
    ) -> None:
        """Check that everything has its new name, and nothing else has changed."""
        moved = {key: data for key, data in before.items() if now.get(key) != data}
        for key, data in moved.items():
            if is_in(key, (new,)):
                assert may_replace, (key, "was replaced")
                continue
            assert is_in(key, (old,)), (key, "is lost")
            assert now.get(new + key[len(old) :]) == data, (key, "has not arrived")
        for key in now.keys() - before.keys():
            assert is_in(key, (new,)), (key, "has come from nowhere")
            assert before[old + key[len(new) :]] == now[key]

    def renamed_here(self, side: Side, old: Name, new: Name, *, is_directory: bool) -> None:
        """Apply a rename to the mount's local state in the model."""
        view, now_s = side.view, time.monotonic()

        def moved(path: Name) -> Name:
            return new + path[len(old) :] if is_in(path, (old,)) else path

        for writer in side.writers:
            writer.path = moved(writer.path)
        view.writing = {moved(path): data for path, data in view.writing.items()}
        view.directories = {moved(path) for path in view.directories}
        view.keep(parent_of(old))
        if is_directory:
            view.keep(new)
        for path in [b"c", *PATHS]:
            if is_in(path, (old, new)):
                view.changed(path, self.bucket.now.get(path, ABSENT), now_s)


def attempt(action: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of an action, and its errno: 0 for success."""
    try:
        return action(), 0
    except OSError as error:
        return None, error.errno or -1


def is_file(states: list[Any]) -> bool:
    """Whether a state may be a file."""
    return any(isinstance(state, bytes) for state in states)


def is_in(path: Name, places: tuple[Name, ...]) -> bool:
    """Whether a path is one of these, or below one."""
    return any(path == place or path.startswith(place + b"/") for place in places)


@pytest.fixture(scope="module")
def folders(flat_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two mounts of the bucket."""
    flat_store.put("two/always")
    where = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    with (
        mounted(flat_store, where[0], "--prefix", "two/", *OPTIONS) as first,
        mounted(flat_store, where[1], "--prefix", "two/", *OPTIONS) as second,
    ):
        yield [first.path, second.path]


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_two_mounts(flat_store: Store, folders: list[Path], seed: int) -> None:
    """All mounts see the right contents; nothing is lost or mixed up."""
    it = TwoMounts(flat_store, folders, seed)
    try:
        for _ in range(STEPS):
            it.step()
        it.end()
    finally:
        it.drop()
