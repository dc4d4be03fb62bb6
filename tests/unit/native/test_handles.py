"""Handles without an object in Python: what is read, closed, logged and taken."""

import json
import os
from typing import Any

import pytest

from mountpoint.native import _blocks, _lane
from mountpoint.native._handles import FIRST_HANDLE, NativeHandles, OpenedFile
from mountpoint.native._prepared import PreparedFiles
from tests.unit.native.prepared_files import (
    BUCKETS,
    DATA,
    SIZE,
    UNTIL_S,
    add,
    mapped,
    opened_file,
    source_of,
    text_of,
)

# --- reads, closes, and what Python takes ---


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
    data = files.handles.read(handle, offset, size)
    assert data is not None
    assert bytes(data) == DATA[offset:][:count]
    assert len(data) == count
    assert files.handles.close(handle)
    assert files.handles.read(handle, offset, size) is None
    assert files.handles.take_read_bytes() == count


def test_a_source_that_fails(probe: Any) -> None:
    """The read is Python's, and so are all later ones of this handle; its end is still known."""
    files, broken = PreparedFiles(NativeHandles()), [True]
    assert add(files, 5, source_of(probe, broken=broken))
    handle, other = files.open(5, 1, 0.0), files.open(5, 2, 0.0)
    assert files.handles.read(handle, 0, 10) is None
    broken.clear()
    assert files.handles.read(handle, 0, 10) is None
    assert files.handles.read(handle, SIZE, 10) == b""
    assert files.handles.read(other, 0, 10) == DATA[:10]
    assert files.handles.close(handle)
    assert files.handles.close(other)
    assert files.handles.take_read_bytes() == 10


def test_the_bytes_that_were_read(probe: Any) -> None:
    """Reads are counted once, when their handle is closed or taken."""
    files, handle = opened_file(probe)
    other, third = files.open(5, 1, 0.0), files.open(5, 2, 0.0)
    for each in (handle, other, other, third):
        assert files.handles.read(each, 0, 100) is not None
    assert files.handles.take_read_bytes() == 0
    assert files.handles.close(handle)
    assert files.handles.take_read_bytes() == 100
    for opened in (files.handles.take_handle(other), *files.handles.take(5)):
        assert opened is not None
        _lane.unregister(opened.handle)
    assert files.handles.take_read_bytes() == 300
    assert files.handles.take_read_bytes() == 0


def test_where_handles_begin(probe: Any) -> None:
    """Handles are numbered on from those of another process, and never back."""
    files, first = opened_file(probe)
    files.handles.number_from(FIRST_HANDLE + BUCKETS)
    second = files.open(5, 1, 0.0)
    assert (first, second) == (FIRST_HANDLE, FIRST_HANDLE + BUCKETS)
    assert files.handles.close(first)
    assert files.handles.read(second, 0, 1) == DATA[:1]
    assert files.handles.close(second)
    files.handles.number_from(5)
    third = files.open(5, 1, 0.0)
    assert third == FIRST_HANDLE + BUCKETS + 1
    assert files.handles.close(third)


def test_take(probe: Any) -> None:
    """Taken handles are Python's; their lanes stay registered until Python has others."""
    files, first = opened_file(probe)
    assert add(files, 5 + BUCKETS, source_of(probe))
    second, other = files.open(5, 1, 0.0), files.open(5 + BUCKETS, 1, 0.0)
    assert (files.handles.is_open(5), files.handles.is_open(6)) == (True, False)
    assert sorted(files.handles.take(5)) == [OpenedFile(first, 5, b""), OpenedFile(second, 5, b"")]
    assert not files.handles.is_open(5)
    assert files.handles.is_open(5 + BUCKETS)
    assert files.handles.take_handle(other) == OpenedFile(other, 5 + BUCKETS, b"")
    assert files.handles.take_handle(other) is None
    assert files.handles.take(5) == []
    for handle in (first, second, other):
        assert not files.handles.close(handle)
        assert files.handles.read(handle, 0, 1) is None
        lane = probe.lane_named(handle)
        assert probe.lane_refs(lane) == 2  # the registry's, and ours
        probe.lane_drop(lane)
        _lane.unregister(handle)
    assert len(files.handles) == 0


@pytest.mark.parametrize("end", ["close", "take", "take_handle", "delete"])
def test_nothing_is_left(probe: Any, end: str) -> None:
    """Blocks, handles and sources are given back, whatever becomes of an open file."""
    before = _lane.registered(), probe.sources(), _blocks.held_bytes()[0]
    journal, file = mapped()
    files, handle = opened_file(probe, journal)
    data = files.handles.read(handle, 0, SIZE)
    assert (_lane.registered(), probe.sources()) == (before[0] + 1, before[1] + 1)
    assert _blocks.held_bytes()[0] > before[2]
    assert add(files, 5, source_of(probe))  # the open file alone has its source
    if end == "close":
        assert files.handles.close(handle)
    elif end != "delete":
        taken = files.handles.take(5) if end == "take" else [files.handles.take_handle(handle)]
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
    assert sorted(files.handles.text().splitlines(keepends=True)) == lines
    assert files.handles.close(other)
    assert files.handles.take_handle(third) == OpenedFile(third, 5, lines[2])
    assert files.handles.text() == lines[0]
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
    assert files.handles.text() == b""
    assert files.handles.close(handle)
    assert files.handles.text() == b""


def test_long_fields(probe: Any) -> None:
    """Fields of any length, also none, stand in the line as they are."""
    journal, file = mapped()
    files = PreparedFiles(NativeHandles(journal))
    for length in (0, 1, 63, 64, 65, 5000):
        fields = b"x" * length
        assert files.add(5, 0, UNTIL_S, SIZE, source_of(probe), fields, wakes=False)
        handle = files.open(5, 3, 0.0)
        assert files.handles.text() == b'["handle",%d,%s3}]\n' % (handle, fields)
        assert files.handles.close(handle)
    assert len(text_of(file).splitlines()) == 12


@pytest.mark.parametrize("how", ["full", "sealed"])
def test_no_room_in_the_log(probe: Any, how: str) -> None:
    """Without room in the log nothing is opened or closed, and nothing is left behind."""
    journal, file = mapped()
    files, handle = opened_file(probe, journal)
    opened = files.handles.text()
    if how == "sealed":
        journal.seal()
    while journal.append(b"x"):
        pass
    before = _lane.registered(), probe.sources()
    for _ in range(3):
        assert files.open(5, 1, 0.0) == 0
        assert not files.handles.close(handle)
    assert (len(files.handles), files.opens, files.used) == (1, 1, 1)
    assert (_lane.registered(), probe.sources()) == before
    assert files.handles.text() == opened
    assert files.handles.read(handle, 0, 10) == DATA[:10]
    journal.map(file, 0)
    assert files.open(5, 1, 0.0) == handle + 1
    assert files.handles.close(handle)
    os.close(file)
