"""A file system over the fake client, with a clock that tests set: a mount without a kernel."""

import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.directory import CacheDirectory
from mountpoint.config import ChangeConfig, FileSystemConfig, ReadConfig, WriteConfig
from mountpoint.fs import filesystem, prepared, resolver
from mountpoint.fs import open as opener
from mountpoint.fs.attributes import Attributes
from mountpoint.fs.directories import DirectoryEntry
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fs.writes import reopen
from mountpoint.fs.writes.streamed import attributes as streamed_attributes
from mountpoint.fs.writes.streamed import writer as streamed_writer
from mountpoint.fs.writes.streamed import writes as streamed_writes
from mountpoint.listing import batch_lookup, directory, prefetch, single_lookup
from mountpoint.listing.cache import ListingCache
from mountpoint.metrics.counters import Counters
from mountpoint.mount import build
from mountpoint.mount.build import build_filesystem
from mountpoint.native._handles import NativeHandles
from mountpoint.native._prepared import PreparedFiles
from mountpoint.read.streams import Streams
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.uploads import Uploads
from tests.unit.fake_client import SAFE_S, FakeClient

UID, GID = 1000, 100
CHANGES = [field.name for field in dataclasses.fields(ChangeConfig)]
MOUNTED_AT_NS = 1_600_000_000_000_000_000


class Mounted:
    """A file system, its bucket, its clock, and the actions of programs."""

    def __init__(self, client: FakeClient, clock: SimpleNamespace, options: dict[str, Any]) -> None:
        self.client = client
        self.clock = clock
        self.stopping = threading.Event()
        total_s = options.pop("total_s", SAFE_S)
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=total_s, stopping=self.stopping)
        self.counters = Counters()
        read = ReadConfig(memory_bytes=options.pop("memory_bytes", 256 << 20))
        session = options.pop("session", None)
        journal = None if session is None else session.journal
        #: The files that are opened without the interpreter: `world.fs.preparer` prepares them.
        self.prepared = PreparedFiles(NativeHandles(journal, options.pop("held_bytes", 0)))
        #: The inodes of which the kernel was made to drop damaged pages.
        self.damaged: list[int] = []
        directory = options.pop("cache", None)
        self.cache = None if directory is None else self._cache(directory)
        self.streams = Streams(client, read, retry_policy, self.counters, self.cache)
        self.budget = self.streams.budget
        write = options.pop("write", WriteConfig())
        self.uploads = Uploads(client, write, self.budget, retry_policy)
        self.uploads.may_write = not options.pop("unproven", False)
        change = {name: options.pop(name) for name in CHANGES if name in options}
        staging = options.pop("staging", None)
        #: The number of the request that is being served.
        self.request = 0
        #: Whether the program still waits for its answer.
        self.awaited = True
        self.fs = build_filesystem(
            client,
            prefix=options.pop("prefix", b""),
            config=FileSystemConfig(UID, GID, **options),
            change=ChangeConfig(**change),
            write=write,
            staging=staging,
            streams=self.streams,
            uploads=self.uploads,
            retry_policy=retry_policy,
            on_damage=self.damaged.append,
            session=session,
            request=lambda: self.request,
            claim=lambda: self.awaited,
            prepared=self.prepared,
        )

    def _cache(self, directory: str) -> BlockCache:
        return BlockCache(
            CacheDirectory.open(directory),
            "s3.test",
            "bucket",
            self.counters,
            max_bytes=None,
            queue_bytes=64 << 20,
            on_failure=self.prepared.forget_all,
        )

    def pass_s(self, seconds: float) -> None:
        """Advance the clock."""
        self.clock.now_s += seconds

    def look(self, path: bytes) -> Attributes:
        """Look up every name of a path, from the root down."""
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

    def create(self, path: bytes, process: int = 0) -> HandleNumber:
        """Create a file for a process."""
        directory, _, name = path.rpartition(b"/")
        parent = self.look(directory).inode if directory else ROOT
        return self.fs.create(parent, name, os.O_WRONLY, process)[0]

    def close(self, handle: HandleNumber, process: int = 0, *, killed: bool = False) -> None:
        """Close the only descriptor of a file."""
        try:
            self.fs.flush(handle, process, killed=killed)
        finally:
            self.fs.release(handle)

    def write_file(self, path: bytes, data: bytes, step: int = 1 << 20) -> None:
        """Write a new file from start to end."""
        handle = self.create(path)
        for offset in range(0, len(data), step):
            self.fs.write(handle, offset, data[offset : offset + step])
        self.close(handle)

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
def mounted(objects: Mapping[bytes, bytes] | None = None, /, **options: Any) -> Iterator[Mounted]:
    """Create a bucket and its file system.

    The options are those of FileSystemConfig, ChangeConfig and FakeClient, `prefix`, `total_s`,
    `memory_bytes`, `write` (a WriteConfig), `cache` (a directory for the data cache),
    `held_bytes` (see NativeHandles), and `unproven`: the first open for writing checks the
    permission.
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
        patch.setattr(prepared, "time", clock)
        patch.setattr(resolver, "time", clock)
        patch.setattr(opener, "time", clock)
        patch.setattr(build, "time", clock)
        patch.setattr(streamed_attributes, "time", clock)
        patch.setattr(streamed_writer, "time", clock)
        patch.setattr(streamed_writes, "time", clock)
        patch.setattr(reopen, "time", clock)
        patch.setattr(prefetch, "time", clock)
        patch.setattr(directory, "time", clock)
        patch.setattr(single_lookup, "time", clock)
        patch.setattr(batch_lookup, "time", clock)
        patch.setattr(
            build, "ListingCache", functools.partial(ListingCache, clock=lambda: clock.now_s)
        )
        with for_client.pop("client_class", FakeClient)(objects, **for_client) as client:
            world = Mounted(client, clock, options)
            yield world
            if world.cache is not None:
                world.cache.close()
