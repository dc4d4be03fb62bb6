"""The streamed files of a mount, by inode and by key."""

import weakref

from mountpoint.fs.inodes import Inode
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.streamed.lifecycle import Turns
from mountpoint.fs.writes.streamed.writer import StreamedWriter


class StreamedFiles:
    """The files of a mount that are being written, or uploaded and still open. Thread-safe.

    A new `StreamedWriter` gets `turns` and `note_uploaded`.
    """

    def __init__(self, context: WriteContext) -> None:
        # dependencies
        self._mount = context
        self.turns = Turns(context.retry_policy.stopping)
        # mutable; each use is one step of the interpreter
        self._uploaded: weakref.WeakValueDictionary[bytes, StreamedWriter]  # by key
        self._uploaded = weakref.WeakValueDictionary()

    def note_uploaded(self, writer: StreamedWriter, key: bytes) -> None:
        """Remember a file that has been uploaded to a key, as long as it is open."""
        self._uploaded[key] = writer

    def pop_uploaded(self, key: bytes) -> StreamedWriter | None:
        """Forget and return a file that has been uploaded to a key, if it is open."""
        return self._uploaded.pop(key, None)

    def uploaded(self, key: bytes) -> StreamedWriter | None:
        """Return a file that has been uploaded to a key, if it is open."""
        return self._uploaded.get(key)

    def being_written(self, inode: Inode) -> StreamedWriter | None:
        """Return an inode's file that is being written."""
        writer = self._mount.local.writer(inode)
        return writer if isinstance(writer, StreamedWriter) else None

    def find(self, inode: Inode) -> StreamedWriter | None:
        """Return an inode's file that is being written, or is open for writing after its upload."""
        writer = self._mount.local.writer(inode)
        if isinstance(writer, StreamedWriter):
            return writer
        if not self._uploaded:  # the usual case
            return None
        uploaded = self._uploaded.get(inode.key)
        found = uploaded is not None and uploaded.inode is inode and uploaded.is_open
        return uploaded if found else None
