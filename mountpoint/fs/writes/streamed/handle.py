"""The handle of a streamed file."""

from mountpoint.errors import NO_OPTION, BadHandle, PreconditionFailed
from mountpoint.fs.inodes import Inode
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.streamed.lifecycle import ANY_ORDER
from mountpoint.fs.writes.streamed.writer import StreamedWriter


class StreamedHandle:
    """A handle of a file that is being written; `opener` is the process that opened it.

    Other processes get it by fork(2) or through a socket. When the opener closes it, the upload
    ends (`fs/writes/streamed`). The file has counted it already.
    """

    shared = True
    lane = None

    def __init__(
        self, writer: StreamedWriter, context: WriteContext, opener: int, *, writes: bool
    ) -> None:
        # dependencies
        self._writer = writer
        self._mount = context
        # constants
        self._opener = opener
        self._writes = writes
        # mutable
        self._wrote = False  # something was written through this handle

    @property
    def inode(self) -> Inode:
        """The file's inode."""
        return self._writer.inode

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size) as far as S3 has them.

        Waits briefly for the end of the upload that has them. Raises BadHandle if S3 lacks them.
        """
        writer = self._writer
        while True:
            base, stop = writer.base, min(offset + size, writer.size_bytes)
            if offset >= stop:
                return b""
            if base is None or stop > writer.stored_bytes:
                if writer.removed or self._wrote or not writer.wait_ended():
                    raise BadHandle("a file that is being written cannot be read", ANY_ORDER)
                writer.check()
                continue
            try:
                return self._mount.fetch(base, offset, stop)
            except PreconditionFailed:
                if writer.base is base:
                    raise

    def write(self, offset: int, data: bytes, *, appends: bool) -> int:
        """Write the next bytes of the file; return how many."""
        if not self._writes:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        written = self._writer.write(None if appends else offset, data)
        self._wrote = True
        return written

    def truncate(self, size_bytes: int) -> None:
        """See StreamedWriter."""
        self._writer.truncate(size_bytes)
        self._wrote = True

    def flush(self, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload the file if the process is its opener."""
        self._writer.note_close()
        if self._writes:
            ends = process == self._opener and not killed
            self._writer.flush(ends=ends, wrote=self._wrote, killed=killed)

    def give_up(self, process: int) -> bool:
        """Let the upload fail if it is that of a killed process alone."""
        if self._writes and process == self._opener:
            self._writer.give_up()
        return False

    def fsync(self) -> None:
        """See StreamedWriter."""
        self._writer.fsync()

    def release(self) -> None:
        """See StreamedWriter."""
        self._writer.release()
