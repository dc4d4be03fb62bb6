"""Operations of several threads on one file system, in many orders, without a kernel.

In the end the tables have what the threads still hold, and nothing else.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from mountpoint.errors import NoSuchEntry, NotPermitted, WriterKilled
from mountpoint.fs.inodes import ROOT
from mountpoint.fs.writes.key_locks import KeyLocks
from tests.unit.fake_client import FakeClient
from tests.unit.interleaving import Interleaving, Server, explore
from tests.unit.mounted import mounted

NAMES = [b"a", b"b"]
OPTIONS = {"allow_overwrite": True, "allow_delete": True, "allow_rename": True}


def answering(client: FakeClient, it: Interleaving) -> Server:
    """Return a server that answers the requests of a stepped client."""

    def step() -> None:
        client.step(last_first=it.random.random() < 0.3)

    return (lambda: bool(client._waiting)), step


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
