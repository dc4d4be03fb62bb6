"""Operations of several threads on one file system, in many orders, without a kernel.

In the end the tables have what the threads still hold, and nothing else.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from mountpoint.errors import (
    Interrupted,
    NoSuchEntry,
    NotPermitted,
    OperationError,
    WriterKilled,
)
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fs.writes.key_locks import KeyLocks
from tests.unit.interleaving import Interleaving, explore
from tests.unit.mounted import Mounted, mounted
from tests.unit.stepped import answering, waiting_in_python

NAMES = [b"a", b"b"]
OPTIONS = {"allow_overwrite": True, "allow_delete": True, "allow_rename": True}


class Kernel:
    """The locks that the kernel holds during a call, and its counts of lookups."""

    def __init__(self) -> None:
        self.root = threading.Lock()  # to create, remove or rename; not to look a name up again
        self.known: Counter[InodeNumber] = Counter()
        self.used: Counter[InodeNumber] = Counter()  # by calls under way: these are not forgotten
        self._contents: dict[InodeNumber, threading.Lock] = {}

    def content(self, number: InodeNumber) -> threading.Lock:
        """Return the lock that a write, and the end of a name, take."""
        return self._contents.setdefault(number, threading.Lock())


class Program:
    """A program that does a few things, as the kernel passes them on."""

    def __init__(self, world: Mounted, it: Interleaving, kernel: Kernel) -> None:
        self.fs, self.kernel = world.fs, kernel
        actions = [self.look, self.forget, self.read, self.write, self.unlink, self.rename]
        self.plan = [(it.random.choice(actions), it.random.choice(NAMES)) for _ in range(3)]

    def __call__(self) -> None:
        for action, name in self.plan:
            with contextlib.suppress(OperationError):
                action(name)

    @contextlib.contextmanager
    def found(self, name: bytes) -> Iterator[InodeNumber]:
        number = self.fs.lookup(ROOT, name).inode
        self.kernel.known[number] += 1
        self.kernel.used[number] += 1
        try:
            yield number
        finally:
            self.kernel.used[number] -= 1

    def look(self, name: bytes) -> None:
        with self.found(name) as number:
            assert self.fs.getattr(number).inode == number

    def forget(self, name: bytes) -> None:
        with self.found(name) as number:
            pass
        if not self.kernel.used[number]:
            self.fs.forget(number, self.kernel.known.pop(number, 0))

    def read(self, name: bytes) -> None:
        with self.found(name) as number:
            handle = self.fs.open(number, os.O_RDONLY)
            try:
                self.fs.read(handle, 0, 100)
            finally:
                self.fs.release(handle)

    def write(self, name: bytes) -> None:
        with self.kernel.root:
            handle, made = self.fs.create(ROOT, name, os.O_WRONLY, 1)
            self.kernel.known[made.inode] += 1
            self.kernel.used[made.inode] += 1
        try:
            with self.kernel.content(made.inode):
                self.fs.write(handle, 0, b"12345")
            self.fs.flush(handle, 1, killed=False)
        finally:
            self.fs.release(handle)
            self.kernel.used[made.inode] -= 1

    def unlink(self, name: bytes) -> None:
        with self.kernel.root, self.found(name) as number, self.kernel.content(number):
            self.fs.unlink(ROOT, name)

    def rename(self, name: bytes) -> None:
        new = NAMES[1 - NAMES.index(name)]
        with self.kernel.root, contextlib.ExitStack() as stack:
            numbers = {stack.enter_context(self.found(name))}
            with contextlib.suppress(NoSuchEntry):
                numbers.add(stack.enter_context(self.found(new)))
            for number in sorted(numbers):
                stack.enter_context(self.kernel.content(number))
            self.fs.rename(ROOT, name, ROOT, new)


def test_operations() -> None:
    """No thread waits for another without need; nothing is left that nobody holds."""

    def run(it: Interleaving) -> None:
        with (
            mounted({b"a": b"1234"}, stepped=True, **OPTIONS) as world,
            pytest.MonkeyPatch.context() as patch,
        ):
            waiting_in_python(patch, it)
            kernel = Kernel()
            programs = [Program(world, it, kernel) for _ in range(3)]
            it.run(*programs, servers=[answering(world.client, it)] * 2)
            table = world.fs._inodes
            table.check()
            del table._inodes[ROOT]
            assert {each.number: each.lookups for each in table._inodes.values()} == +kernel.known
            assert not any(each.opens for each in table._inodes.values())
            assert world.fs.open_files() == 0
            assert world.fs._local.writers() == []
            assert not world.fs._readers._counts
            assert world.budget.held_bytes == 0
            assert it.waited_s == 0, "a thread has waited for a deadline"

    explore(run, 60)


def test_a_rename_to_a_file_that_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename does not wait for a close that waits for the rename."""
    alone = KeyLocks.alone

    def run(it: Interleaving) -> None:
        with mounted({b"b": b"1234"}, stepped=True, **OPTIONS) as world:
            fs, begun = world.fs, threading.Event()

            def locked(
                locks: KeyLocks, keys: Callable[[], list[bytes]]
            ) -> AbstractContextManager[None]:
                begun.set()
                return alone(locks, keys)

            monkeypatch.setattr(KeyLocks, "alone", locked)
            handle, _ = fs.create(ROOT, b"a", os.O_WRONLY, 1)
            fs.write(handle, 0, b"12345")

            def close() -> None:
                begun.wait()
                fs.flush(handle, 1, killed=False)
                fs.release(handle)

            def rename() -> None:
                fs.lookup(ROOT, b"b")
                with contextlib.suppress(NotPermitted):  # the close has not begun
                    fs.rename(ROOT, b"b", ROOT, b"a")

            it.run(close, rename, servers=[answering(world.client, it)])
            assert it.waited_s == 0

    explore(run, 100)


def test_one_file_by_several_writers() -> None:
    """No object is given up while it is being created: it could appear after that of a later close.

    A close is not failed by what other programs write, or cut, at that moment.
    """
    options = {"allow_overwrite": True, "allow_append": True}

    def run(it: Interleaving) -> None:
        with mounted({b"a": b"1234"}, stepped=True, **options) as world:
            fs, content = world.fs, Kernel().content

            def write(process: int, flags: int) -> None:
                number = fs.lookup(ROOT, b"a").inode
                with content(number):
                    handle = fs.open(number, flags, process)
                try:
                    with content(number):
                        fs.write(handle, fs.getattr(number).size_bytes, b"%d" % process)
                    fs.flush(handle, process, killed=False)
                finally:
                    fs.release(handle)

            def cut() -> None:
                number = fs.lookup(ROOT, b"a").inode
                with content(number):
                    fs.set_attributes(number, size_bytes=0, mtime_ns=None)

            def program(process: int) -> Callable[[], None]:
                actions = [
                    lambda: write(process, os.O_WRONLY | os.O_TRUNC),
                    lambda: write(process, os.O_WRONLY | os.O_APPEND),
                    cut,
                ]
                plan = [it.random.choice(actions) for _ in range(3)]

                def run_plan() -> None:
                    for action in plan:
                        try:
                            action()
                        except Interrupted:
                            raise
                        except OperationError:
                            pass

                return run_plan

            programs = [program(number) for number in range(3)]
            it.run(*programs, servers=[answering(world.client, it)] * 2)
            assert world.client.cancelled == 0
            assert world.fs._local.writers() == []

    explore(run, 300)


def test_a_lookup_while_the_file_is_closed_and_forgotten() -> None:
    """The kernel never gets the number of an inode that is gone."""

    def run(it: Interleaving) -> None:
        with mounted(stepped=True) as world:
            fs, found = world.fs, []
            handle, made = fs.create(ROOT, b"a", os.O_WRONLY, 1)

            def look() -> None:
                with contextlib.suppress(NoSuchEntry):
                    found.append(fs.lookup(ROOT, b"a").inode)

            def close() -> None:
                with contextlib.suppress(WriterKilled):  # it was opened, and never closed
                    fs.release(handle)

            def forget() -> None:
                fs.forget(made.inode, 1)

            it.run(look, close, forget, servers=[answering(world.client, it)])
            assert [fs._inodes.get(number).lookups for number in found] in ([], [1])
            fs._inodes.check()

    explore(run, 100)
