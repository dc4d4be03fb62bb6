"""Prepared files: which are opened, and how long."""

import queue
import subprocess
import sys
import threading
from typing import Any

import pytest

from mountpoint.native import _blocks, _lane
from mountpoint.native._handles import FIRST_HANDLE, NativeHandles
from mountpoint.native._prepared import MAX_FILES, PreparedFiles
from tests.unit.native.prepared_files import (
    BUCKETS,
    DATA,
    FIELDS,
    MAX_WOKEN,
    SAFE_S,
    SIZE,
    UNTIL_S,
    add,
    opened_file,
    source_of,
)

# --- prepared files ---


def test_open_read_close(probe: Any) -> None:
    """A prepared file is opened, read and closed, each open with a handle of its own."""
    files, handle = opened_file(probe)
    other = files.open(5, 78, 0.0)
    assert (handle, other) == (FIRST_HANDLE, FIRST_HANDLE + 1)
    assert (len(files.handles), files.opens, len(files)) == (2, 2, 1)
    assert bytes(files.handles.read(handle, 100, 200) or b"") == DATA[100:300]
    assert files.handles.close(handle)
    assert not files.handles.close(handle)
    assert bytes(files.handles.read(other, 0, SIZE) or b"") == DATA
    assert files.handles.close(other)
    assert (len(files.handles), files.opens, len(files)) == (0, 2, 1)


def test_a_file_that_is_not_prepared(probe: Any) -> None:
    """Other files, and handles that nobody has opened, are Python's."""
    files = PreparedFiles(NativeHandles())
    assert files.open(5, 1, 0.0) == 0
    assert add(files, 5, source_of(probe))
    for inode in (0, 6, 5 + BUCKETS):
        assert not files.has(inode, 0.0)
        assert files.open(inode, 1, 0.0) == 0
    for handle in (0, 1, FIRST_HANDLE, FIRST_HANDLE + BUCKETS):
        assert not files.handles.close(handle)
        assert files.handles.read(handle, 0, 10) is None
        assert files.handles.take_handle(handle) is None
    assert not files.handles.is_open(5)
    assert files.handles.take(5) == []


def test_inodes_that_share_a_place(probe: Any) -> None:
    """Files are found by their inodes, also where these share a place in the table."""
    files = PreparedFiles(NativeHandles())
    inodes = [5, 5 + BUCKETS, 5 + 2 * BUCKETS, (1 << 64) - BUCKETS + 5]
    for inode in inodes:
        data = b"%d" % inode
        source = source_of(probe, data)
        assert files.add(inode, 0, UNTIL_S, len(data), source, FIELDS, wakes=False)
    for inode in inodes:
        handle = files.open(inode, 1, 0.0)
        assert bytes(files.handles.read(handle, 0, 100) or b"") == b"%d" % inode
        assert files.handles.close(handle)


def test_it_expires(probe: Any) -> None:
    """A file is opened before its time ends; what is open stays open."""
    files, handle = opened_file(probe)
    assert files.has(5, UNTIL_S - 0.001)
    assert not files.has(5, UNTIL_S)
    assert files.open(5, 1, UNTIL_S) == 0
    assert files.handles.read(handle, 0, 1) == DATA[:1]
    assert files.handles.close(handle)


def test_generations(probe: Any) -> None:
    """Only files of the present generation are opened, and none is added for an earlier one."""
    files, handle = opened_file(probe)
    before = files.generation
    files.forget_all()
    assert files.generation == before + 1
    assert not files.has(5, 0.0)
    assert files.open(5, 1, 0.0) == 0
    assert not files.add(6, before, UNTIL_S, SIZE, source_of(probe), FIELDS, wakes=False)
    assert not files.add(5, before, UNTIL_S, SIZE, source_of(probe), FIELDS, wakes=False)
    assert not files.has(6, 0.0)
    assert files.handles.read(handle, 0, 1) == DATA[:1]
    assert add(files, 5, source_of(probe))
    assert files.has(5, 0.0)


def test_prepared_again(probe: Any) -> None:
    """A new version takes the place of the one before; what is open keeps the old one."""
    files, old = opened_file(probe)
    assert files.add(5, 0, 20.0, 3, source_of(probe, b"new"), FIELDS, wakes=False)
    assert len(files) == 1
    new = files.open(5, 1, UNTIL_S)
    assert bytes(files.handles.read(old, 0, SIZE) or b"") == DATA
    assert bytes(files.handles.read(new, 0, SIZE) or b"") == b"new"


def test_the_oldest_go(probe: Any) -> None:
    """Of more than MAX_FILES those go that were prepared first."""
    files, source = PreparedFiles(NativeHandles()), source_of(probe)
    for inode in range(1, MAX_FILES + 1):
        assert add(files, inode, source)
    assert add(files, 1, source)  # now the newest
    assert len(files) == MAX_FILES
    for inode in (MAX_FILES + 1, MAX_FILES + 2):
        assert add(files, inode, source)
    assert len(files) == MAX_FILES
    missing = [inode for inode in range(1, MAX_FILES + 3) if not files.has(inode, 0.0)]
    assert missing == [2, 3]


def test_wrong_arguments(probe: Any) -> None:
    """What has no bytes, or no source of them, is not prepared."""
    files, source = PreparedFiles(NativeHandles()), source_of(probe)
    for size_bytes, its in [(0, source), (-1, source), (1, _lane.LaneSource())]:
        with pytest.raises(ValueError, match="not a source of bytes"):
            files.add(5, 0, UNTIL_S, size_bytes, its, FIELDS, wakes=False)
    with pytest.raises(TypeError):
        PreparedFiles(b"no log")  # type: ignore[arg-type]
    assert len(files) == 0


def test_how_many_were_opened(probe: Any) -> None:
    """The first open of each file counts as `used`, each one as an open."""
    files, source = PreparedFiles(NativeHandles()), source_of(probe)
    for inode in range(1, 5):
        assert add(files, inode, source)
    counts = []
    for inode in (3, 1, 3, 3, 4):
        files.open(inode, 1, 0.0)
        counts.append((files.opens, files.used))
    assert counts == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3)]


def test_an_inode_that_is_gone(probe: Any) -> None:
    """Its file is not opened any more, and what follows under its number is another file."""
    files = PreparedFiles(NativeHandles())
    add(files, 5, source_of(probe))
    files.forget(5)
    files.forget(6)
    assert files.open(5, 1, 0.0) == 0
    assert len(files) == 0
    add(files, 5, source_of(probe))
    assert files.handles.close(files.open(5, 1, 0.0))
    assert files.take_opened() == [5]
    files.forget(5)
    add(files, 5, source_of(probe))
    assert files.handles.close(files.open(5, 1, 0.0))
    assert files.take_opened() == [5]


def test_a_pause(probe: Any) -> None:
    """No file is opened meanwhile; those that are open go on."""
    files, handle = opened_file(probe)
    files.pause(True)
    assert files.open(5, 1, 0.0) == 0
    assert bytes(files.handles.read(handle, 0, 10) or b"") == DATA[:10]
    files.pause(False)
    assert files.handles.close(files.open(5, 1, 0.0))
    assert files.handles.close(handle)


# --- the thread that prepares ---


def test_waking(probe: Any) -> None:
    """`wait` returns the inodes for which it was woken, and those of files that wake it."""
    files, source = PreparedFiles(NativeHandles()), source_of(probe)
    assert files.wait(0.0) == files.wait(-1.0) == []
    assert add(files, 5, source, wakes=True)
    assert add(files, 6, source)
    files.wake(9)
    for inode in (6, 5, 5):
        assert files.open(inode, 1, 0.0)
    assert files.wait(SAFE_S) == [9, 5, 5]
    assert files.wait(0.0) == []


def test_a_full_queue() -> None:
    """Of too many inodes the first ones stay; after that there is room again."""
    files = PreparedFiles(NativeHandles())
    for inode in range(100):
        files.wake(inode)
    assert files.wait(0.0) == list(range(MAX_WOKEN))
    files.wake(7)
    assert files.wait(0.0) == [7]


ENDLESS = """
import threading
from mountpoint.native._handles import NativeHandles
from mountpoint.native._prepared import PreparedFiles
files = PreparedFiles(NativeHandles())
waiting = threading.Thread(target=lambda: print(files.wait(float("inf"))))
waiting.start()
files.wake(5)
waiting.join()
"""


def test_a_wait_without_an_end() -> None:
    """An endless wait is woken, too."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS], timeout=20, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[5]\n", done.stderr


def test_the_end() -> None:
    """After the end nobody waits, and what was asked for is still returned."""
    files = PreparedFiles(NativeHandles())
    files.end()
    assert files.wait(1e6) == []
    files.wake(5)
    assert files.wait(1e6) == [5]
    assert files.wait(1e6) == []


def test_a_waiting_thread_is_woken(probe: Any) -> None:
    """Each `wake`, each open that wakes, and the end wake the thread that waits."""
    files, source = PreparedFiles(NativeHandles()), source_of(probe)
    answers: queue.Queue[list[int]] = queue.Queue()

    def work() -> None:
        while True:
            asked = files.wait(1e6)
            answers.put(asked)
            if not asked:
                return

    waiting = threading.Thread(target=work, daemon=True)
    waiting.start()
    for inode in range(1, 101):
        if inode % 2:
            files.wake(inode)
        else:
            assert add(files, inode, source, wakes=True)
            assert files.open(inode, 1, 0.0)
        assert answers.get(timeout=SAFE_S) == [inode], "the thread was not woken"
    files.end()
    assert answers.get(timeout=SAFE_S) == [], "the thread was not woken at the end"
    waiting.join()


# --- opens that fetch ---


def fetching(source: Any) -> PreparedFiles:
    """Return files with one, whose open fetches it."""
    files = PreparedFiles(NativeHandles(max_held_bytes=2 * SIZE))
    assert add_fetching(files, source)
    return files


def add_fetching(files: PreparedFiles, source: Any, inode: int = 5) -> bool:
    generation = files.generation
    return files.add(inode, generation, UNTIL_S, SIZE, source, FIELDS, late_s=7.0)


def test_an_open_that_fetches(probe: Any) -> None:
    """The open fetches all bytes for the thread that opens, and reads find them."""
    fetches = []

    def fetch(start: int, stop: int, thread: int, timeout_s: float) -> int:
        fetches.append((start, stop, thread, timeout_s))
        block: int = probe.filled(DATA[start:stop])
        return block

    files = fetching(probe.Source(fetch))
    handle = files.open(5, 1, 0.0, thread=77)
    for offset in range(0, SIZE, 10_000):
        assert bytes(files.handles.read(handle, offset, 10_000) or b"") == DATA[offset:][:10_000]
    assert fetches == [(0, SIZE, 77, 7.0)]
    assert files.take_opened() == [5]
    assert files.take_opened() == []
    assert files.handles.close(handle)
    assert files.open(5, 1, 0.0) == 0  # it is prepared once


def test_the_bytes_go_once_they_were_read(probe: Any) -> None:
    """They are held until the whole file was read: then the kernel has them."""
    before = _blocks.held_bytes()[0]
    files = fetching(source_of(probe))
    handle = files.open(5, 1, 0.0)
    files.handles.read(handle, SIZE // 2, SIZE)
    assert _blocks.held_bytes()[0] > before
    files.handles.read(handle, 0, SIZE // 2)
    files.handles.read(handle, SIZE // 2, SIZE)
    assert _blocks.held_bytes()[0] == before
    assert bytes(files.handles.read(handle, 10, 10) or b"") == DATA[10:20]  # it is fetched again
    assert files.handles.close(handle)


def test_an_open_whose_fetch_fails(probe: Any) -> None:
    """Then Python opens the file, which is prepared no more."""
    files = fetching(source_of(probe, broken=[True]))
    assert files.open(5, 1, 0.0) == 0
    assert len(files) == len(files.handles) == 0
    assert files.take_opened() == []


@pytest.mark.parametrize("change", ["generation", "another", "gone"])
def test_a_change_during_the_fetch(probe: Any, change: str) -> None:
    """What has changed meanwhile counts: Python opens the file."""
    files = PreparedFiles(NativeHandles(max_held_bytes=SIZE))

    def fetch(start: int, stop: int, thread: int, timeout_s: float) -> int:
        if change == "generation":
            files.forget_all()
        elif change == "another":
            assert add_fetching(files, source_of(probe))
        else:
            for inode in range(100, 100 + MAX_FILES):
                add(files, inode, source_of(probe))
        block: int = probe.filled(DATA[start:stop])
        return block

    assert add_fetching(files, probe.Source(fetch))
    assert files.open(5, 1, 0.0) == 0
    assert len(files.handles) == 0
    files.forget_all()
    assert add_fetching(files, source_of(probe))  # there is room again
    handle = files.open(5, 1, 0.0)
    assert handle
    assert files.handles.close(handle)


def test_room_for_what_was_fetched(probe: Any) -> None:
    """Files that are open hold no more than they may; a close makes room."""
    files = fetching(source_of(probe))
    for inode in (6, 7):
        assert add_fetching(files, source_of(probe), inode)
    first, second = files.open(5, 1, 0.0), files.open(6, 1, 0.0)
    assert first
    assert second
    assert files.open(7, 1, 0.0) == 0
    assert files.handles.close(first)
    third = files.open(7, 1, 0.0)
    assert third
    assert files.handles.close(second)
    assert files.handles.close(third)


def test_inodes_that_nobody_takes(probe: Any) -> None:
    """Python must learn which files were opened so: until it does, it opens the others."""
    files = fetching(source_of(probe))
    count = 0
    while files.open(5, 1, 0.0):
        count += 1
        files.handles.close(FIRST_HANDLE + count - 1)
        assert add_fetching(files, source_of(probe))
    assert files.take_opened() == [5] * count
    assert files.handles.close(files.open(5, 1, 0.0))
