"""The handle of a file that is open for reading, and what a mount learns from it."""

from collections.abc import Callable
from dataclasses import dataclass

from mountpoint.errors import FileDamaged, NotFound, PreconditionFailed
from mountpoint.fs.caches import Caches
from mountpoint.fs.handles import HandleTable, OpenFile
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable, PageState
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.readers import Readers
from mountpoint.native._lane import Lane
from mountpoint.native._prepared import PreparedFiles
from mountpoint.read.stream import SMALL_BYTES, Bytes, ReadStream
from mountpoint.s3.client import ObjectInfo

#: The kernel always reads larger files ahead. With reads of 4 KiB, each a round trip through the
#: kernel, they would be read at 150 MB/s instead of 600.
MAX_LOOKED_AT = 64 << 20


@dataclass(frozen=True, slots=True)
class ReadContext:
    """The parts of one mount that files which are open for reading need.

    `files` has all open files, and `prepared` those that are opened without the interpreter.
    `on_damage` is called with the inode of a file of which the kernel may hold pages that differ
    from S3's bytes.
    """

    inodes: InodeTable
    files: HandleTable[OpenFile]
    readers: Readers
    caches: Caches
    backend: WriteBackend
    prepared: PreparedFiles
    on_damage: Callable[[InodeNumber], None]


class ReadHandle:
    """A file that is open for reading. `stream` is None for an empty object.

    `version` is what is read. `from_disk`: the data cache may have all of it, and is asked first.
    `writer` is the process that opened the file, if it did so for writing too (O_RDWR); else None.
    With its first write another handle takes this one's number.
    """

    shared = False

    def __init__(
        self,
        inode: Inode,
        stream: ReadStream | None,
        context: ReadContext,
        *,
        version: ObjectInfo,
        writer: int | None = None,
    ) -> None:
        # dependencies
        self.inode = inode
        self._stream = stream
        self._mount = context
        # constants
        self.version = version
        self.writer = writer
        self.from_disk = stream is not None and stream.from_disk
        # mutable
        self._damaged = False  # bytes of it did not match S3's checksum

    @property
    def small(self) -> bool:
        """Whether the file is small enough for an open to fetch all of it."""
        stream = self._stream
        return stream is not None and stream.size_bytes <= SMALL_BYTES

    @property
    def looked_at(self) -> bool:
        """Whether the program is likely to read little of the file, and the file is not large."""
        stream = self._stream
        return stream is not None and stream.looked_at and stream.size_bytes <= MAX_LOOKED_AT

    @property
    def lane(self) -> Lane | None:
        """See OpenFile."""
        return None if self._stream is None else self._stream.lane

    def read_exactly(self) -> None:
        """Note that the kernel reads little more of the file than programs ask for."""
        if self._stream is not None:
            self._stream.exact = True

    @property
    def paged(self) -> PageState:
        """How much of the file the kernel may have cached through this handle."""
        stream = self._stream
        read_bytes = 0 if stream is None else stream.read_bytes
        if stream is None or read_bytes == 0:
            return PageState.NOT
        return PageState.ALL if read_bytes >= stream.size_bytes else PageState.SOME

    def read(self, offset: int, size: int) -> Bytes:
        """See OpenFile. Raises FileDamaged if bytes do not match S3's checksum."""
        if self._stream is None:
            return b""
        try:
            return self._stream.read(offset, size)
        except (PreconditionFailed, NotFound):
            self._mount.caches.disbelieve(self.inode)
            raise
        except FileDamaged:
            if not self._damaged:
                self._damaged = True
                self._disown()
            raise

    def write(self, offset: int, data: bytes, *, appends: bool) -> int:
        """See OpenFile and WriteBackend.take_over."""
        return self._take_over(offset).write(offset, data, appends=appends)

    def truncate(self, size_bytes: int) -> None:
        """See OpenFile. The file is opened for writing if it is cut to nothing."""
        info = self.inode.info
        if info is not None and info.size_bytes == size_bytes:
            return
        if size_bytes:
            self._mount.backend.truncate(self.inode, size_bytes)
        else:
            self._take_over(None)

    def flush(self, process: int, *, killed: bool) -> None:
        """Do nothing: nothing was written."""

    def give_up(self, process: int) -> bool:
        """Do nothing: there is no upload."""
        return False

    def fsync(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Cancel the requests in flight."""
        if self._stream is not None:
            self._stream.close()

    def release(self) -> None:
        """See OpenFile."""
        if self._stream is not None:
            self._stream.close()
            self.inode.paged = max(self.inode.paged, self.paged)
        self._mount.readers.end(self.inode)

    def _take_over(self, offset: int | None) -> OpenFile:
        """Open the file for writing; the new handle takes this one's number.

        See WriteBackend. The kernel serializes writes and truncations of an inode.
        """
        handle = self._mount.backend.take_over(self.inode, self.writer, offset)
        self._mount.files.replace(self, handle)
        self.close()
        self._mount.readers.end(self.inode)
        return handle

    def _disown(self) -> None:
        """Let the inode be no version any more, and the kernel drop its pages."""
        inode = self.inode
        self._mount.readers.adopt(inode)
        self._mount.inodes.disown(inode, inode.info)
        self._mount.prepared.forget_all()
        self._mount.on_damage(inode.number)
