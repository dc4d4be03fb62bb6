"""What a small file costs: the calls of Python, which are most of its CPU."""

import os
import sys
from collections import Counter
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import mountpoint
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fuse.operations import Operations
from tests.unit.fake_client import SAFE_S
from tests.unit.mounted import mounted

PACKAGE = str(Path(mountpoint.__file__).parent)
CTX = SimpleNamespace(pid=7, uid=0, gid=0)
FILES = 40
#: Calls of this package's functions per file. The client has about 40 more. An open of a file that
#: was not read completely, or another way through the code, may take a few more.
CALLS = {"lookup": 28, "open": 72, "release": 30}
#: The same with a data cache that has the files, and a ttl: no request is sent. Reading ahead is
#: more when the files are opened in the order of their names.
CACHED_CALLS = {"lookup": 36, "open": 132, "release": 31}


def test_calls() -> None:
    """Lookup, open and release of a file of 100 KB, whose directory has been listed and read."""
    each = calls()
    assert all(each[name] <= CALLS[name] for name in CALLS), each


def test_calls_with_a_data_cache(tmp_path: Path) -> None:
    """The same with a data cache that has all files."""
    options = {"cache": str(tmp_path), "ttl_s": 300.0, "asks_on_open": False}
    each = calls(**options)
    each = calls(**options)
    assert all(each[name] <= CACHED_CALLS[name] for name in CALLS), each


def calls(**options: Any) -> dict[str, float]:
    """Return the calls per file of each operation."""
    counts: Counter[str] = Counter()
    running = ""

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            counts[running] += 1

    objects = {b"d/%02d" % number: bytes(100_000) for number in range(FILES)}
    with mounted(objects, **options) as world:
        operations = Operations(world.fs, lambda: None)

        def call(name: str, *args: Any) -> Any:
            nonlocal running
            running = name
            sys.setprofile(count)
            try:
                return getattr(operations, name)(*args)
            finally:
                sys.setprofile(None)

        directory = InodeNumber(operations.lookup(ROOT, b"d", CTX).st_ino)
        world.names(directory)
        for number in range(FILES):
            inode = call("lookup", directory, b"%02d" % number, CTX).st_ino
            handle = call("open", inode, os.O_RDONLY, CTX)
            assert len(operations.read(handle, 0, 131_072)) == 100_000
            call("release", handle)
            if number < FILES // 2:  # until then it learns how the directory is read
                counts.clear()
        assert world.cache is None or world.cache.wait(SAFE_S)
    return {name: counts[name] / (FILES // 2) for name in CALLS}
