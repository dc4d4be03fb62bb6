"""The file of a block in the cache.

A file that ends in "crc" gets the right checksum of what precedes it as its trailer.
"""

import functools
import struct
import tempfile
from pathlib import Path

from mountpoint.cache.blocks._files import FOUND
from mountpoint.cache.blocks._format import MAGIC, crc32c_of
from mountpoint.cache.directory import CacheDirectory
from tests.unit.cache.objects import Cached, content


@functools.cache
def block() -> tuple[tempfile.TemporaryDirectory[str], Cached]:
    """Return an object of one block in a cache, and the folder, which goes when we end."""
    folder = tempfile.TemporaryDirectory(prefix="mount-s3-fuzz-")
    return folder, Cached.of(CacheDirectory.open(folder.name), content(100))


def read(data: bytes) -> None:
    """Check and read the file: the right bytes, or none."""
    _, cached = block()
    if data.endswith(b"crc"):
        trailer = data[:-3]
        size = len(trailer) + 16
        data = trailer + struct.pack("<II", crc32c_of(trailer), size) + MAGIC
    path = Path(cached.path())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (file,) = cached.directory.files()
    problem = cached.directory.check(file)
    cached.directory.identity(file)
    result, found = cached.read()
    assert (found == cached.data) if result == FOUND else (found is None)
    assert result == FOUND or problem
