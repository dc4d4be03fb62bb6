"""A file system on the fake client, with a clock that tests set: a mount without a kernel."""

import functools
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint import filesystem
from mountpoint.config import FileSystemConfig, ReadConfig
from mountpoint.filesystem import Attributes, DirectoryEntry, FileSystem
from mountpoint.inodes import ROOT, InodeNumber
from mountpoint.listing import ahead, directory, lookups, siblings
from mountpoint.listing.recent import Listings
from mountpoint.metrics import Counters
from mountpoint.reading.streams import Streams
from mountpoint.s3.retry import Patience
from tests.unit.fake_client import SAFE_S, FakeClient

UID, GID = 1000, 100
MOUNTED_AT_NS = 1_600_000_000_000_000_000


class Mounted:
    """A file system, its bucket, its clock, and what programs do with files."""

    def __init__(self, client: FakeClient, clock: SimpleNamespace, options: dict[str, Any]) -> None:
        self.client = client
        self.clock = clock
        self.stopping = threading.Event()
        total_s = options.pop("total_s", SAFE_S)
        patience = Patience(try_s=SAFE_S, total_s=total_s, stopping=self.stopping)
        self.counters = Counters()
        read = ReadConfig(memory_bytes=options.pop("memory_bytes", 256 << 20))
        self.streams = Streams(client, read, patience, self.counters)
        self.budget = self.streams.budget
        self.fs = FileSystem(
            client,
            prefix=options.pop("prefix", b""),
            config=FileSystemConfig(UID, GID, **options),
            streams=self.streams,
            patience=patience,
        )

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now_s += seconds

    def look(self, path: bytes) -> Attributes:
        """Look every name of a path up, from the root down."""
        attributes = self.fs.getattr(ROOT)
        for name in path.split(b"/"):
            attributes = self.fs.lookup(attributes.inode, name)
        return attributes

    def read_file(self, number: InodeNumber, step: int = 1 << 20) -> bytes:
        """Open a file and read it to the end."""
        handle = self.fs.open(number, os.O_RDONLY)
        try:
            found = b""
            while some := bytes(self.fs.read(handle, len(found), step)):
                found += some
            return found
        finally:
            self.fs.release(handle)

    def lines(self, number: InodeNumber, process: int = 0) -> list[DirectoryEntry]:
        """Open a directory and read it to the end."""
        handle = self.fs.opendir(number, process)
        try:
            lines: list[DirectoryEntry] = []
            while some := self.fs.readdir(handle, lines[-1].next_position if lines else 0):
                lines += some
            return lines
        finally:
            self.fs.releasedir(handle)

    def names(self, number: InodeNumber = ROOT) -> list[bytes]:
        """Return the names in a directory."""
        return [line.name for line in self.lines(number)[2:]]


@contextmanager
def mounted(objects: Mapping[bytes, bytes] | None = None, **options: Any) -> Iterator[Mounted]:
    """Make a bucket and its file system.

    The options are FileSystemConfig's and FakeClient's, `prefix`, `total_s` and `memory_bytes`.
    """
    clock = SimpleNamespace(now_s=1000.0)
    clock.monotonic = lambda: clock.now_s
    clock.time_ns = lambda: MOUNTED_AT_NS
    for_client = {
        name: options.pop(name)
        for name in ("stepped", "chunk_bytes", "page_size", "client_class")
        if name in options
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "time", clock)
        patch.setattr(ahead, "time", clock)
        patch.setattr(directory, "time", clock)
        patch.setattr(lookups, "time", clock)
        patch.setattr(siblings, "time", clock)
        patch.setattr(
            filesystem, "Listings", functools.partial(Listings, clock=lambda: clock.now_s)
        )
        with for_client.pop("client_class", FakeClient)(objects, **for_client) as client:
            yield Mounted(client, clock, options)
