"""Prepared files: what is opened, read, closed, logged and taken."""

import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

import pytest

from mountpoint.native import _blocks, _lane
from mountpoint.native._prepared import FIRST_HANDLE, MAX_FILES, OpenedFile, PreparedFiles
from tests.unit.native.prepared_files import (
    BUCKETS,
    DATA,
    FIELDS,
    MAX_WOKEN,
    SAFE_S,
    SIZE,
    UNTIL_S,
    add,
    mapped,
    opened_file,
    source_of,
    text_of,
)

# --- prepared files ---


def test_open_read_close(probe: Any) -> None:
    """A prepared file is opened, read and closed, each open with a handle of its own."""
    files, handle = opened_file(probe)
    other = files.open(5, 78, 0.0)
    assert (handle, other) == (FIRST_HANDLE, FIRST_HANDLE + 1)
    assert (files.opened, files.opens, len(files)) == (2, 2, 1)
    assert bytes(files.read(handle, 100, 200) or b"") == DATA[100:300]
    assert files.close(handle)
    assert not files.close(handle)
    assert bytes(files.read(other, 0, SIZE) or b"") == DATA
    assert files.close(other)
    assert (files.opened, files.opens, len(files)) == (0, 2, 1)


def test_a_file_that_is_not_prepared(probe: Any) -> None:
    """Other files, and handles that nobody has opened, are Python's."""
    files = PreparedFiles()
    assert files.open(5, 1, 0.0) == 0
    assert add(files, 5, source_of(probe))
    for inode in (0, 6, 5 + BUCKETS):
        assert not files.has(inode, 0.0)
        assert files.open(inode, 1, 0.0) == 0
    for handle in (0, 1, FIRST_HANDLE, FIRST_HANDLE + BUCKETS):
        assert not files.close(handle)
        assert files.read(handle, 0, 10) is None
        assert files.take_handle(handle) is None
    assert not files.is_open(5)
    assert files.take(5) == []


def test_inodes_that_share_a_place(probe: Any) -> None:
    """Files are found by their inodes, also where these share a place in the table."""
    files = PreparedFiles()
    inodes = [5, 5 + BUCKETS, 5 + 2 * BUCKETS, (1 << 64) - BUCKETS + 5]
    for inode in inodes:
        data = b"%d" % inode
        source = source_of(probe, data)
        assert files.add(inode, 0, UNTIL_S, len(data), source, FIELDS, wakes=False)
    for inode in inodes:
        handle = files.open(inode, 1, 0.0)
        assert bytes(files.read(handle, 0, 100) or b"") == b"%d" % inode
        assert files.close(handle)


def test_it_expires(probe: Any) -> None:
    """A file is opened before its time ends; what is open stays open."""
    files, handle = opened_file(probe)
    assert files.has(5, UNTIL_S - 0.001)
    assert not files.has(5, UNTIL_S)
    assert files.open(5, 1, UNTIL_S) == 0
    assert files.read(handle, 0, 1) == DATA[:1]
    assert files.close(handle)


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
    assert files.read(handle, 0, 1) == DATA[:1]
    assert add(files, 5, source_of(probe))
    assert files.has(5, 0.0)


def test_prepared_again(probe: Any) -> None:
    """A new version takes the place of the one before; what is open keeps the old one."""
    files, old = opened_file(probe)
    assert files.add(5, 0, 20.0, 3, source_of(probe, b"new"), FIELDS, wakes=False)
    assert len(files) == 1
    new = files.open(5, 1, UNTIL_S)
    assert bytes(files.read(old, 0, SIZE) or b"") == DATA
    assert bytes(files.read(new, 0, SIZE) or b"") == b"new"


def test_the_oldest_go(probe: Any) -> None:
    """Of more than MAX_FILES those go that were prepared first."""
    files, source = PreparedFiles(), source_of(probe)
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
    files, source = PreparedFiles(), source_of(probe)
    for size_bytes, its in [(0, source), (-1, source), (1, _lane.LaneSource())]:
        with pytest.raises(ValueError, match="not a source of bytes"):
            files.add(5, 0, UNTIL_S, size_bytes, its, FIELDS, wakes=False)
    with pytest.raises(TypeError):
        PreparedFiles(b"no log")  # type: ignore[arg-type]
    assert len(files) == 0


def test_how_many_were_opened(probe: Any) -> None:
    """The first open of each file counts as `used`, each one as an open."""
    files, source = PreparedFiles(), source_of(probe)
    for inode in range(1, 5):
        assert add(files, inode, source)
    counts = []
    for inode in (3, 1, 3, 3, 4):
        files.open(inode, 1, 0.0)
        counts.append((files.opens, files.used))
    assert counts == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3)]


def test_an_inode_that_is_gone(probe: Any) -> None:
    """Its file is not opened any more, and what follows under its number is another file."""
    files = PreparedFiles()
    add(files, 5, source_of(probe))
    files.forget(5)
    files.forget(6)
    assert files.open(5, 1, 0.0) == 0
    assert len(files) == 0
    add(files, 5, source_of(probe))
    assert files.close(files.open(5, 1, 0.0))
    assert files.take_opened() == [5]
    files.forget(5)
    add(files, 5, source_of(probe))
    assert files.close(files.open(5, 1, 0.0))
    assert files.take_opened() == [5]


def test_a_pause(probe: Any) -> None:
    """No file is opened meanwhile; those that are open go on."""
    files, handle = opened_file(probe)
    files.pause(True)
    assert files.open(5, 1, 0.0) == 0
    assert bytes(files.read(handle, 0, 10) or b"") == DATA[:10]
    files.pause(False)
    assert files.close(files.open(5, 1, 0.0))
    assert files.close(handle)


# --- the thread that prepares ---


def test_waking(probe: Any) -> None:
    """`wait` returns the inodes for which it was woken, and those of files that wake it."""
    files, source = PreparedFiles(), source_of(probe)
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
    files = PreparedFiles()
    for inode in range(100):
        files.wake(inode)
    assert files.wait(0.0) == list(range(MAX_WOKEN))
    files.wake(7)
    assert files.wait(0.0) == [7]


ENDLESS = """
import threading
from mountpoint.native._prepared import PreparedFiles
files = PreparedFiles()
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
    files = PreparedFiles()
    files.end()
    assert files.wait(1e6) == []
    files.wake(5)
    assert files.wait(1e6) == [5]
    assert files.wait(1e6) == []


def test_a_waiting_thread_is_woken(probe: Any) -> None:
    """Each `wake`, each open that wakes, and the end wake the thread that waits."""
    files, source = PreparedFiles(), source_of(probe)
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


# --- opened files ---


@pytest.mark.parametrize(
    ("offset", "size", "count"),
    [
        (0, 10, 10),
        (SIZE - 10, 10, 10),
        (SIZE - 10, 1000, 10),
        (0, 1 << 40, SIZE),
        (SIZE, 10, 0),
        (SIZE + 1, 10, 0),
        (1 << 62, 10, 0),
        (5, 0, 0),
        (5, -1, 0),
    ],
)
def test_ranges(probe: Any, offset: int, size: int, count: int) -> None:
    """A read has its bytes, fewer at the end of the file, and none behind it."""
    files, handle = opened_file(probe)
    data = files.read(handle, offset, size)
    assert data is not None
    assert bytes(data) == DATA[offset:][:count]
    assert len(data) == count
    assert files.close(handle)
    assert files.read(handle, offset, size) is None
    assert files.take_read_bytes() == count


def test_a_source_that_fails(probe: Any) -> None:
    """The read is Python's, and so are all later ones of this handle; its end is still known."""
    files, broken = PreparedFiles(), [True]
    assert add(files, 5, source_of(probe, broken=broken))
    handle, other = files.open(5, 1, 0.0), files.open(5, 2, 0.0)
    assert files.read(handle, 0, 10) is None
    broken.clear()
    assert files.read(handle, 0, 10) is None
    assert files.read(handle, SIZE, 10) == b""
    assert files.read(other, 0, 10) == DATA[:10]
    assert files.close(handle)
    assert files.close(other)
    assert files.take_read_bytes() == 10


def test_the_bytes_that_were_read(probe: Any) -> None:
    """Reads are counted once, when their handle is closed or taken."""
    files, handle = opened_file(probe)
    other, third = files.open(5, 1, 0.0), files.open(5, 2, 0.0)
    for each in (handle, other, other, third):
        assert files.read(each, 0, 100) is not None
    assert files.take_read_bytes() == 0
    assert files.close(handle)
    assert files.take_read_bytes() == 100
    for opened in (files.take_handle(other), *files.take(5)):
        assert opened is not None
        _lane.unregister(opened.handle)
    assert files.take_read_bytes() == 300
    assert files.take_read_bytes() == 0


def test_where_handles_begin(probe: Any) -> None:
    """Handles are numbered on from those of another process, and never back."""
    files, first = opened_file(probe)
    files.number_from(FIRST_HANDLE + BUCKETS)
    second = files.open(5, 1, 0.0)
    assert (first, second) == (FIRST_HANDLE, FIRST_HANDLE + BUCKETS)
    assert files.close(first)
    assert files.read(second, 0, 1) == DATA[:1]
    assert files.close(second)
    files.number_from(5)
    third = files.open(5, 1, 0.0)
    assert third == FIRST_HANDLE + BUCKETS + 1
    assert files.close(third)


def test_take(probe: Any) -> None:
    """Taken handles are Python's; their lanes stay registered until Python has others."""
    files, first = opened_file(probe)
    assert add(files, 5 + BUCKETS, source_of(probe))
    second, other = files.open(5, 1, 0.0), files.open(5 + BUCKETS, 1, 0.0)
    assert (files.is_open(5), files.is_open(6)) == (True, False)
    assert sorted(files.take(5)) == [OpenedFile(first, 5, b""), OpenedFile(second, 5, b"")]
    assert not files.is_open(5)
    assert files.is_open(5 + BUCKETS)
    assert files.take_handle(other) == OpenedFile(other, 5 + BUCKETS, b"")
    assert files.take_handle(other) is None
    assert files.take(5) == []
    for handle in (first, second, other):
        assert not files.close(handle)
        assert files.read(handle, 0, 1) is None
        lane = probe.lane_named(handle)
        assert probe.lane_refs(lane) == 2  # the registry's, and ours
        probe.lane_drop(lane)
        _lane.unregister(handle)
    assert files.opened == 0


@pytest.mark.parametrize("end", ["close", "take", "take_handle", "delete"])
def test_nothing_is_left(probe: Any, end: str) -> None:
    """Blocks, handles and sources are given back, whatever becomes of an open file."""
    before = _lane.registered(), probe.sources(), _blocks.held_bytes()[0]
    journal, file = mapped()
    files, handle = opened_file(probe, journal)
    data = files.read(handle, 0, SIZE)
    assert (_lane.registered(), probe.sources()) == (before[0] + 1, before[1] + 1)
    assert _blocks.held_bytes()[0] > before[2]
    assert add(files, 5, source_of(probe))  # the open file alone has its source
    if end == "close":
        assert files.close(handle)
    elif end != "delete":
        taken = files.take(5) if end == "take" else [files.take_handle(handle)]
        assert [each and each.handle for each in taken] == [handle]
        assert probe.sources() == before[1] + 2
        _lane.unregister(handle)
    if end != "delete":
        assert (_lane.registered(), probe.sources()) == (before[0], before[1] + 1)
    del files
    assert (_lane.registered(), probe.sources()) == before[:2]
    assert data == DATA
    del data
    assert (_lane.registered(), probe.sources(), _blocks.held_bytes()[0]) == before
    assert journal.append(b"the log lives on\n")
    os.close(file)


# --- the log ---


def test_lines(probe: Any) -> None:
    """Each open and each close has its line; `text` has those of what is open, and not taken."""
    journal, file = mapped()
    files, handle = opened_file(probe, journal)
    request = (1 << 64) - 1
    other, third = files.open(5, request, 0.0), files.open(5, 8, 0.0)
    lines = [
        b'["handle",%d,{"name":"file","request":%d}]\n' % each
        for each in ((handle, 77), (other, request), (third, 8))
    ]
    assert sorted(files.text().splitlines(keepends=True)) == lines
    assert files.close(other)
    assert files.take_handle(third) == OpenedFile(third, 5, lines[2])
    assert files.text() == lines[0]
    _lane.unregister(third)
    assert [json.loads(line) for line in text_of(file).splitlines()] == [
        ["handle", handle, {"name": "file", "request": 77}],
        ["handle", other, {"name": "file", "request": request}],
        ["handle", third, {"name": "file", "request": 8}],
        ["handle", other],
    ]


def test_no_log(probe: Any) -> None:
    """Without a log there are no lines."""
    files, handle = opened_file(probe)
    assert files.text() == b""
    assert files.close(handle)
    assert files.text() == b""


def test_long_fields(probe: Any) -> None:
    """Fields of any length, also none, stand in the line as they are."""
    journal, file = mapped()
    files = PreparedFiles(journal)
    for length in (0, 1, 63, 64, 65, 5000):
        fields = b"x" * length
        assert files.add(5, 0, UNTIL_S, SIZE, source_of(probe), fields, wakes=False)
        handle = files.open(5, 3, 0.0)
        assert files.text() == b'["handle",%d,%s3}]\n' % (handle, fields)
        assert files.close(handle)
    assert len(text_of(file).splitlines()) == 12


@pytest.mark.parametrize("how", ["full", "sealed"])
def test_no_room_in_the_log(probe: Any, how: str) -> None:
    """Without room in the log nothing is opened or closed, and nothing is left behind."""
    journal, file = mapped()
    files, handle = opened_file(probe, journal)
    opened = files.text()
    if how == "sealed":
        journal.seal()
    while journal.append(b"x"):
        pass
    before = _lane.registered(), probe.sources()
    for _ in range(3):
        assert files.open(5, 1, 0.0) == 0
        assert not files.close(handle)
    assert (files.opened, files.opens, files.used) == (1, 1, 1)
    assert (_lane.registered(), probe.sources()) == before
    assert files.text() == opened
    assert files.read(handle, 0, 10) == DATA[:10]
    journal.map(file, 0)
    assert files.open(5, 1, 0.0) == handle + 1
    assert files.close(handle)
    os.close(file)


# --- opens that fetch ---


def fetching(probe: Any, source: Any, **options: Any) -> PreparedFiles:
    """Return files with one, whose open fetches it."""
    files = PreparedFiles(**{"max_held_bytes": 2 * SIZE} | options)
    assert add_fetching(files, source)
    return files


def add_fetching(files: PreparedFiles, source: Any, inode: int = 5) -> bool:
    generation = files.generation
    return files.add(inode, generation, UNTIL_S, SIZE, source, FIELDS, fetches=True, late_s=7.0)


def test_an_open_that_fetches(probe: Any) -> None:
    """The open fetches all bytes for the thread that opens, and reads find them."""
    fetches = []

    def fetch(start: int, stop: int, thread: int, timeout_s: float) -> int:
        fetches.append((start, stop, thread, timeout_s))
        block: int = probe.filled(DATA[start:stop])
        return block

    files = fetching(probe, probe.Source(fetch))
    handle = files.open(5, 1, 0.0, thread=77)
    for offset in range(0, SIZE, 10_000):
        assert bytes(files.read(handle, offset, 10_000) or b"") == DATA[offset:][:10_000]
    assert fetches == [(0, SIZE, 77, 7.0)]
    assert files.take_opened() == [5]
    assert files.take_opened() == []
    assert files.close(handle)
    assert files.open(5, 1, 0.0) == 0  # it is prepared once


def test_the_bytes_go_once_they_were_read(probe: Any) -> None:
    """They are held until the whole file was read: then the kernel has them."""
    before = _blocks.held_bytes()[0]
    files = fetching(probe, source_of(probe))
    handle = files.open(5, 1, 0.0)
    files.read(handle, SIZE // 2, SIZE)
    assert _blocks.held_bytes()[0] > before
    files.read(handle, 0, SIZE // 2)
    files.read(handle, SIZE // 2, SIZE)
    assert _blocks.held_bytes()[0] == before
    assert bytes(files.read(handle, 10, 10) or b"") == DATA[10:20]  # it is fetched again
    assert files.close(handle)


def test_an_open_whose_fetch_fails(probe: Any) -> None:
    """Then Python opens the file, which is prepared no more."""
    files = fetching(probe, source_of(probe, broken=[True]))
    assert files.open(5, 1, 0.0) == 0
    assert len(files) == files.opened == 0
    assert files.take_opened() == []


@pytest.mark.parametrize("change", ["generation", "another", "gone"])
def test_a_change_during_the_fetch(probe: Any, change: str) -> None:
    """What has changed meanwhile counts: Python opens the file."""
    files = PreparedFiles(max_held_bytes=SIZE)

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
    assert files.opened == 0
    files.forget_all()
    assert add_fetching(files, source_of(probe))  # there is room again
    handle = files.open(5, 1, 0.0)
    assert handle
    assert files.close(handle)


def test_room_for_what_was_fetched(probe: Any) -> None:
    """Files that are open hold no more than they may; a close makes room."""
    files = fetching(probe, source_of(probe))
    for inode in (6, 7):
        assert add_fetching(files, source_of(probe), inode)
    first, second = files.open(5, 1, 0.0), files.open(6, 1, 0.0)
    assert first
    assert second
    assert files.open(7, 1, 0.0) == 0
    assert files.close(first)
    third = files.open(7, 1, 0.0)
    assert third
    assert files.close(second)
    assert files.close(third)


def test_inodes_that_nobody_takes(probe: Any) -> None:
    """Python must learn which files were opened so: until it does, it opens the others."""
    files = fetching(probe, source_of(probe))
    count = 0
    while files.open(5, 1, 0.0):
        count += 1
        files.close(FIRST_HANDLE + count - 1)
        assert add_fetching(files, source_of(probe))
    assert files.take_opened() == [5] * count
    assert files.close(files.open(5, 1, 0.0))
