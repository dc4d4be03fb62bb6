"""A bucket in memory and a staging area on disk, for tests of staged files."""

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from mountpoint.errors import NotFound, PreconditionFailed
from mountpoint.s3.client import ObjectInfo
from mountpoint.staging.area import StagingArea
from mountpoint.staging.staged_file import StagedFile
from tests.unit.fake_client import MTIME_NS, etag_of

MIB = 1 << 20
KEY = b"dir/file"


class Bucket:
    """Objects, with the two functions that a staged file needs."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.fetched: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []  # of all uploads
        self.copied: list[tuple[int, int]] = []
        self.aborted = 0
        self.failure: Exception | None = None  # of the next uploads, at their end
        self.fetch_failure: Exception | None = None
        self.on_fetch: Callable[[], None] = lambda: None
        self.on_fetched: Callable[[], None] = lambda: None  # called before the answer is delivered
        self.on_send: Callable[[], None] = lambda: None

    def info(self, key: bytes = KEY) -> ObjectInfo:
        """Return the object's description. Raises NotFound."""
        if key not in self.objects:
            raise NotFound("no such key")
        data = self.objects[key]
        return ObjectInfo(key, len(data), MTIME_NS, etag_of(data))

    def put(self, data: bytes, key: bytes = KEY) -> ObjectInfo:
        """Put an object."""
        self.objects[key] = data
        return self.info(key)

    def version(self, info: ObjectInfo) -> bytes:
        """Return the bytes of this version. Raises PreconditionFailed if it is gone."""
        if self.info(info.key).etag != info.etag:
            raise PreconditionFailed("another version")
        return self.objects[info.key]

    def fetch(self, info: ObjectInfo, start: int, stop: int) -> bytes:
        """See StagedFile."""
        self.fetched.append((start, stop))
        self.on_fetch()
        if self.fetch_failure is not None:
            raise self.fetch_failure
        data = self.version(info)[start:stop]
        self.on_fetched()
        return data

    def begin(self, key: bytes, base: ObjectInfo | None) -> "Sink":
        """See StagedFile."""
        return Sink(self, key, base)


class Sink:
    """An upload that joins its pieces."""

    def __init__(self, bucket: Bucket, key: bytes, base: ObjectInfo | None) -> None:
        self.bucket = bucket
        self.key = key
        self.base = base
        self.data = bytearray()
        self.equal_bytes: int | None = None

    def write(self, offset: int, data: bytes) -> int:
        """See Sink."""
        assert offset == len(self.data)
        self.bucket.on_send()
        self.bucket.sent.append((offset, offset + len(data)))
        self.data += data
        return len(data)

    def copy(self, source: ObjectInfo, start: int, stop: int, *, last: bool = False) -> None:
        """See Sink."""
        assert start == len(self.data)
        self.bucket.copied.append((start, stop))
        self.data += self.bucket.version(source)[start:stop]

    def finish(self) -> ObjectInfo:
        """See Sink."""
        if self.bucket.failure is not None:
            raise self.bucket.failure
        if self.base is not None:
            self.bucket.version(self.base)
        return self.bucket.put(bytes(self.data), self.key)

    def abort(self, until_s: float | None = None) -> None:
        """See Sink."""
        self.bucket.aborted += 1


class World:
    """A bucket and an area in `directory`."""

    def __init__(self, directory: Path, limit_bytes: int = 256 * MIB) -> None:
        self.bucket = Bucket()
        self.area = StagingArea(str(directory), "bucket", limit_bytes)
        self.stopping = threading.Event()

    def file(self, base: ObjectInfo | None = None, key: bytes = KEY) -> StagedFile:
        """Return a file of the area."""
        return StagedFile(
            self.area,
            key,
            base,
            fetch=self.bucket.fetch,
            begin=self.bucket.begin,
            part_bytes=8 * MIB,
            stopping=self.stopping,
        )

    def names(self) -> list[str]:
        """Return the names of the files in the mount's directory."""
        return sorted(path.name for path in self.area.path.iterdir())


@functools.lru_cache(16)
def data_of(size: int, salt: int = 0) -> bytes:
    """Return bytes without two equal blocks; a shorter result is a prefix of a longer one."""
    return hashlib.shake_128(b"%d" % salt).digest(size)
