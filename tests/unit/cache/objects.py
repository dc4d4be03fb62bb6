"""Objects, and their blocks in a cache directory."""

import functools
import random
from dataclasses import dataclass

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._files import FOUND, CachedVersion
from mountpoint.cache.blocks._format import BLOCK_BYTES
from mountpoint.cache.directory import (
    FORMAT,
    NAME,
    CachedFile,
    CacheDirectory,
    allocated_bytes,
)
from mountpoint.cache.identity import Identity

ENDPOINT, BUCKET = "store:9000", "a-bucket"
#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0


@functools.cache
def content(size: int, seed: int = 0) -> bytes:
    """Return random bytes."""
    return random.Random(f"{size} {seed}").randbytes(size)


@dataclass(frozen=True)
class Cached:
    """One version of an object, with `data`, in a cache directory."""

    directory: CacheDirectory
    identity: Identity
    data: bytes

    @classmethod
    def of(
        cls, directory: CacheDirectory, data: bytes, *, key: bytes = b"key", etag: str = '"1"'
    ) -> "Cached":
        """Return a version that has no blocks yet."""
        return cls(directory, Identity(ENDPOINT, BUCKET, etag, len(data), key), data)

    @property
    def version(self) -> CachedVersion:
        """A new object for its blocks."""
        identity = self.identity
        return CachedVersion(
            self.directory.store, identity.path.encode(), identity.text, identity.size_bytes
        )

    @property
    def blocks(self) -> int:
        """The number of its blocks."""
        return -(-len(self.data) // BLOCK_BYTES)

    def block(self, index: int) -> bytes:
        """Return the bytes of a block."""
        return self.data[index * BLOCK_BYTES :][:BLOCK_BYTES]

    def path(self, index: int = 0) -> str:
        """Return the path of a block's file."""
        return f"{self.directory.path}/{NAME}/{FORMAT}/{self.identity.path}.{index}"

    def write(self, *indexes: int) -> None:
        """Write some blocks, or all."""
        for index in indexes or range(self.blocks):
            assert self.put(index) == 0

    def put(self, index: int) -> int:
        """Write a block, and return 0 or an errno."""
        version, temporary = self.version, self.directory.temporary()
        problem = version.write(index, self.block(index), temporary)
        if problem:
            return problem
        size_bytes = allocated_bytes(version.file_bytes(index))
        return self.directory.publish(version, index, temporary, size_bytes)

    def read(self, start: int = 0, stop: int | None = None) -> tuple[int, bytes | None]:
        """Read a range; return the result, and the bytes if there are some."""
        stop = len(self.data) if stop is None else stop
        part = Part(start, stop, self.identity.etag)
        result = self.version.read(start, stop, part)
        assert part.ready == (result == FOUND)
        return result, None if part.data is None else bytes(part.data)


def files_of(directory: CacheDirectory) -> list[CachedFile]:
    """Return all files of blocks, by their paths."""
    return sorted(directory.files(), key=lambda file: file.path)


def sum_of(directory: CacheDirectory) -> int:
    """Return the bytes of all blocks."""
    return sum(file.allocated_bytes for file in directory.files())
