"""Locks of keys, and their purpose: renames of directories during other changes."""

import functools
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mountpoint.errors import Interrupted
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fs.writes import key_locks
from mountpoint.fs.writes.key_locks import KeyLocks, _meet
from tests.unit.fake_client import Fault, Request
from tests.unit.fs.test_setattr import staged
from tests.unit.fs.writes.streamed.test_writes import OPENER
from tests.unit.fs.writes.test_rename import rename
from tests.unit.interleaving import Interleaving, explore
from tests.unit.mounted import Mounted, mounted
from tests.unit.waiting import until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A few threads."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


# --- The locks ---


@pytest.mark.parametrize("wanted", [b"d/", b"d/a", b"d/a/"])
def test_a_rename_waits_for_changes_under_way(pool: ThreadPoolExecutor, wanted: bytes) -> None:
    """A rename waits for all changes of its key, and of keys below."""
    locks = KeyLocks(threading.Event())
    done: list[str] = []

    def take() -> None:
        with locks.alone(lambda: [wanted]):
            done.append("renamed")

    with locks.shared(lambda: b"d/a"), locks.shared(lambda: b"d/a/b"):
        renaming = pool.submit(take)
        until(lambda: locks._alone)
        done.append("changed")
    renaming.result()
    assert done == ["changed", "renamed"]


def test_others_do_not_wait() -> None:
    """Changes of one key, and of keys elsewhere, do not block each other."""
    locks = KeyLocks(threading.Event())
    with (
        locks.shared(lambda: b"d/a"),
        locks.shared(lambda: b"d/a"),
        locks.shared(lambda: b"d/b"),
        locks.alone(lambda: [b"dd/", b"d/aa", b"e"]),
        locks.shared(lambda: b"d/a"),
        locks.alone(lambda: [b"f/"]),
        locks.shared(lambda: b"f"),
    ):
        pass
    assert not locks._alone
    assert not locks._shared


def test_interleavings() -> None:
    """In any order a rename is alone with its keys, and no thread misses the end of another."""

    def run(it: Interleaving) -> None:
        locks, held, alone = KeyLocks(threading.Event()), Counter[bytes](), Counter[bytes]()
        keys = [b"d/", b"d/a", b"d/b", b"e"]

        def share(key: bytes) -> None:
            with locks.shared(lambda: key):
                held[key] += 1
                it.wait_until(lambda: True)
                assert not any(_meet(key, each) for each in +alone)
                held[key] -= 1

        def rename(key: bytes, other: bytes) -> None:
            with locks.alone(lambda: [key, other]):
                assert not any(_meet(key, each) for each in (+held) + (+alone))
                alone[key] += 1
                it.wait_until(lambda: True)
                alone[key] -= 1

        draw = it.random.choice
        renames = [functools.partial(rename, draw(keys), draw(keys)) for _ in range(2)]
        changes = [functools.partial(share, draw(keys)) for _ in range(2)]
        it.run(*renames, *changes)
        assert not locks._alone
        assert not locks._shared
        assert it.waited_s == 0, "a thread has waited for its next look"

    explore(run)


def test_later_changes_wait(pool: ThreadPoolExecutor) -> None:
    """A later change waits, and then uses the key after the rename."""
    locks = KeyLocks(threading.Event())
    key = b"d/a"

    def change() -> bytes:
        with locks.shared(lambda: key):
            (held,) = locks._shared
            return held

    with locks.alone(lambda: [b"d/", b"e/"]):
        changing = pool.submit(change)
        also = pool.submit(take_alone, locks, b"e/x")
        time.sleep(0.01)
        key = b"e/a"
    assert changing.result() == b"e/a"
    assert also.result()


def take_alone(locks: KeyLocks, key: bytes) -> bool:
    """Hold a key; return whether no one else holds it."""
    with locks.alone(lambda: [key]):
        return len(locks._alone) == 1


def test_the_end_of_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits beyond the end of the mount."""
    monkeypatch.setattr(key_locks, "LOOK_S", 0.01)
    stopping = threading.Event()
    locks = KeyLocks(stopping)
    stopping.set()
    with locks.shared(lambda: b"a"), pytest.raises(Interrupted), locks.alone(lambda: [b"a"]):
        pass
    assert not locks._alone
    with locks.alone(lambda: [b"a"]), pytest.raises(Interrupted), locks.shared(lambda: b"a"):
        pass


# --- In a mount ---


OPTIONS = {
    "allow_rename": True,
    "allow_delete": True,
    "allow_overwrite": True,
    "keep_directories": True,
    "attributes": "keep",
}
MODE = {"mode": str(stat.S_IFREG | 0o604)}


@pytest.fixture(params=["streamed", "staged"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount with all permissions, and a directory with one file."""
    with staged(tmp_path, **OPTIONS) if request.param == "staged" else mounted(**OPTIONS) as world:
        world.client.put(b"d/b", b"other")
        yield world


def set_mode(world: Mounted, path: bytes) -> None:
    """Change the mode of a file."""
    set_mode_of(world, world.look(path).inode)


def rename_during(
    world: Mounted, kind: str, pool: ThreadPoolExecutor, old: bytes = b"d", new: bytes = b"e"
) -> "list[Future[None]]":
    """Rename something while the next request of a kind is in flight in `d`.

    The request is answered when the rename waits, or has ended.
    """
    renaming: list[Future[None]] = []

    def script(request: Request) -> Fault | None:
        if request.kind == kind and request.key.startswith(b"d/") and not renaming:
            renaming.append(pool.submit(rename, world, old, new))
            until(lambda: renaming[0].done() or world.fs._renamer._mount.key_locks._alone)
        return None

    world.client.script = script
    return renaming


def close(world: Mounted) -> None:
    """Write a new file, and close it."""
    world.write_file(b"d/a", b"written")


def sync(world: Mounted) -> None:
    """Write a new file, and sync it."""
    handle = world.create(b"d/a", OPENER)
    world.fs.write(handle, 0, b"written")
    world.fs.fsync(handle)
    world.close(handle, OPENER)


def change_mode(world: Mounted) -> None:
    """Change the mode of an existing file."""
    world.client.put(b"d/a", b"written")
    set_mode(world, b"d/a")


def cut(world: Mounted) -> None:
    """Truncate a file to zero bytes."""
    world.client.put(b"d/a", b"written")
    number = world.look(b"d/a").inode
    world.fs.set_attributes(number, size_bytes=0, mtime_ns=None)


def remove(world: Mounted) -> None:
    """Delete a file."""
    world.client.put(b"d/a", b"written")
    world.fs.unlink(world.look(b"d").inode, b"a")


def move(world: Mounted) -> None:
    """Rename a file."""
    world.client.put(b"d/c", b"written")
    rename(world, b"d/c", b"d/a")


def make(world: Mounted) -> None:
    """Create a directory."""
    world.fs.mkdir(world.look(b"d").inode, b"a")


@pytest.mark.parametrize(
    ("act", "kind", "expected"),
    [
        (close, "put_object", {b"e/a": b"written"}),
        (sync, "put_object", {b"e/a": b"written"}),
        (change_mode, "copy_object", {b"e/a": b"written"}),
        (cut, "put_object", {b"e/a": b""}),
        (remove, "delete_object", {}),
        (move, "copy_object", {b"e/a": b"written"}),
        (move, "delete_object", {b"e/a": b"written"}),
        (make, "put_object", {b"e/a/": b""}),
    ],
)
def test_a_directory_is_renamed_meanwhile(
    world: Mounted,
    pool: ThreadPoolExecutor,
    act: Callable[[Mounted], None],
    kind: str,
    expected: dict[bytes, bytes],
) -> None:
    """The change in progress finishes, and then everything is renamed."""
    renaming = rename_during(world, kind, pool)
    act(world)
    renaming[0].result()
    assert world.client.contents() == {b"e/b": b"other", **expected}
    if act is change_mode:
        assert world.client.options(b"e/a").metadata == MODE
    assert world.fs._local.writers() == []


@pytest.mark.parametrize("file", [False, True])
def test_set_after_the_last_close(world: Mounted, pool: ThreadPoolExecutor, file: bool) -> None:
    """Attributes set while an empty file is uploaded are kept, also if its directory is renamed.

    The kernel reports the last close after the program has gone on.
    """
    if file:
        world.client.put(b"e/other", b"")
    handle = world.create(b"d/a", OPENER)
    world.fs.flush(handle, OPENER, killed=False)
    renaming: list[list[Future[None]]] = []

    def script(request: Request) -> Fault | None:
        if request.kind == "put_object":
            set_mode(world, b"d/a")
            names = (b"d/a", b"e/a") if file else (b"d", b"e")
            renaming.append(rename_during(world, "copy_object", pool, *names))
        return None

    world.client.script = script
    world.fs.release(handle)
    renaming[0][0].result()
    other = {b"d/b": b"other", b"e/other": b""} if file else {b"e/b": b"other"}
    assert world.client.contents() == {b"e/a": b"", **other}
    assert world.client.options(b"e/a").metadata["mode"] == MODE["mode"]
    assert stat.S_IMODE(world.look(b"e/a").mode) == 0o604


@pytest.mark.parametrize("act", [close, remove, change_mode, move])
def test_begun_while_a_directory_is_renamed(
    world: Mounted, pool: ThreadPoolExecutor, act: Callable[[Mounted], None]
) -> None:
    """The change happens under the new name, or finds nothing any more."""
    world.client.put(b"d/a", b"written")
    number = world.look(b"d/a").inode
    acting: list[Future[None]] = []
    acts: dict[Callable[[Mounted], None], Callable[[], None]] = {
        close: lambda: world.close(handle, OPENER),
        remove: lambda: world.fs.unlink(directory, b"a"),
        change_mode: lambda: set_mode_of(world, number),
        move: lambda: world.fs.rename(directory, b"a", ROOT, b"moved"),
    }
    directory = world.look(b"d").inode
    if act is close:
        handle = world.fs.open(number, os.O_WRONLY | os.O_TRUNC, OPENER)
        world.fs.write(handle, 0, b"WRITTEN")

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and request.key == b"e/b" and not acting:
            acting.append(pool.submit(acts[act]))
        return None

    world.client.script = script
    rename(world, b"d", b"e")
    acting[0].result()
    expected: dict[Callable[[Mounted], None], dict[bytes, bytes]] = {
        close: {b"e/a": b"WRITTEN"},
        remove: {},
        change_mode: {b"e/a": b"written"},
        move: {b"moved": b"written"},
    }
    assert world.client.contents() == {b"e/b": b"other", **expected[act]}
    if act is change_mode:
        assert world.client.options(b"e/a").metadata == MODE


def set_mode_of(world: Mounted, number: InodeNumber) -> None:
    """Change the mode of an inode."""
    world.fs.set_attributes(number, size_bytes=None, mtime_ns=None, mode=0o604)
