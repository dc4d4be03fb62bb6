"""Prepared files for tests: sources of their bytes, and a log of what is opened."""

import os
from typing import Any

from mountpoint.native._handles import NativeHandles
from mountpoint.native._journal import Journal
from mountpoint.native._prepared import PreparedFiles

#: Large enough that its blocks are counted (`held_bytes`).
SIZE = 100_000
DATA = os.urandom(SIZE)
#: The last moment at which a file may be opened, unless a test says otherwise.
UNTIL_S = 10.0
FIELDS = b'{"name":"file","request":'
#: Handles, and inodes, with this distance share a place in the tables.
BUCKETS = 4096
#: The inodes after which files are to be prepared, at most.
MAX_WOKEN = 64
#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0


def source_of(probe: Any, data: bytes = DATA, broken: list[bool] | None = None) -> Any:
    """Return a source of these bytes; it fails while `broken` holds anything."""

    def fetch(start: int, stop: int, thread: int, timeout_s: float) -> int:
        assert 0 <= start < stop <= len(data)
        block: int = 0 if broken else probe.filled(data[start:stop])
        return block

    return probe.Source(fetch)


def add(
    files: PreparedFiles, inode: int, source: Any, until_s: float = UNTIL_S, **how: Any
) -> bool:
    """Prepare a file of the present generation."""
    wakes = how.pop("wakes", False)
    return files.add(inode, files.generation, until_s, SIZE, source, FIELDS, wakes=wakes)


def opened_file(probe: Any, journal: Journal | None = None) -> tuple[PreparedFiles, int]:
    """Return files of which one, with inode 5, is open; and its handle."""
    files = PreparedFiles(NativeHandles(journal))
    assert add(files, 5, source_of(probe))
    handle = files.open(5, 77, 0.0)
    assert handle
    return files, handle


def mapped(size: int = 1 << 16) -> tuple[Journal, int]:
    """Return a log, and the descriptor of its memory."""
    file = os.memfd_create("journal")
    os.ftruncate(file, size)
    journal = Journal()
    journal.map(file, 0)
    return journal, file


def text_of(file: int) -> bytes:
    """Return the log, and close it."""
    try:
        return os.pread(file, os.fstat(file).st_size, 0).rstrip(b"\0")
    finally:
        os.close(file)
