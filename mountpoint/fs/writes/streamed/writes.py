"""Changing files by streaming them to S3: create, overwrite, append, delete.

A new object appears whole when its file is closed, or never. FUSE does not say which close is the
last: descriptors are duplicated (dup, `dd`, a shell's redirection) and inherited (fork), and each
of them is closed. As in mountpoint-s3, the upload ends with a close by the process that opened the
file, once something has been written. The rest (empty files, files that another process has gone on
writing) is uploaded when the last descriptor is gone, and no program waits for that. If the close
was not the last and more is written, the object is the beginning of another upload. fsync(2) ends
the upload in the same way. A process that is killed closes its files as well. Then no object is
made, because the file may be incomplete.

Appending starts such another upload at once: the server copies the object, the new bytes follow,
and the result replaces the old object when the file is closed.

Without an option nothing is replaced or deleted, not even by a race: the upload of a new file has
the condition that no object of its name exists.
"""

import os
import time

from mountpoint.config import MIB
from mountpoint.errors import NotPermitted, StaleInode
from mountpoint.fs.inodes import Inode
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.open_flags import check_flags, may_write
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.streamed.files import StreamedFiles
from mountpoint.fs.writes.streamed.handle import StreamedHandle
from mountpoint.fs.writes.streamed.lifecycle import ANY_ORDER, BEING_WRITTEN
from mountpoint.fs.writes.streamed.open import TURN_S, WriteOpener
from mountpoint.fs.writes.streamed.writer import StreamedWriter
from mountpoint.listing import tree
from mountpoint.s3.client import NEW, ObjectInfo

#: truncate(2) by name extends a file to this size at most, because it waits for the upload.
MAX_LENGTHENED_BYTES = 8 * MIB


class StreamedWrites:
    """The streamed changes of one mount. Thread-safe; no lock is held while waiting.

    The methods raise domain errors that say why a change is not possible, and S3Errors.
    """

    def __init__(self, context: WriteContext) -> None:
        # dependencies
        self._mount = context
        self._files = StreamedFiles(context)
        self._proof = WriteProof(context.client, context.uploads, context.retry_policy)
        self._opener = WriteOpener(context, self._files, self._proof)

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes,
    ) -> StreamedHandle:
        """See WriteBackend."""
        check_flags(flags)
        tree.check_new(parent.key, name)
        self._proof.require(parent.key + name, NEW)
        mount, writes = self._mount, may_write(flags)
        inode = mount.inodes.create(parent, name, time.time_ns())
        try:
            writer = StreamedWriter(
                inode,
                mount,
                self._files.turns,
                self._files.note_uploaded,
                condition=NEW,
                kept=mount.attribute_store.of_new(attributes),
                writes=writes,
                appends=bool(flags & os.O_APPEND),
            )
            with mount.key_locks.shared(lambda: inode.key):
                writer.add_name()
            return StreamedHandle(writer, mount, process, writes=writes)
        except BaseException:
            mount.inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> StreamedHandle | None:
        """See WriteOpener."""
        return self._opener.open(inode, flags, process)

    def is_written(self, inode: Inode) -> bool:
        """See WriteBackend."""
        return self._files.find(inode) is not None

    def take_over(self, inode: Inode, process: int | None, offset: int | None) -> StreamedHandle:
        """See WriteOpener."""
        return self._opener.take_over(inode, process, offset)

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """Give a file another size, where a new upload can do that. Raises NotPermitted."""
        while (writer := self._files.being_written(inode)) is not None:
            if writer.hold():
                try:
                    writer.truncate(size_bytes)
                finally:
                    writer.release()
                return
            if writer.removed:
                raise StaleInode("the file was removed")
            writer.wait_turn(TURN_S)  # nothing would upload a change after its last close
        known_bytes = 0 if inode.info is None else inode.info.size_bytes
        if size_bytes == known_bytes and size_bytes:
            return
        if size_bytes and not known_bytes < size_bytes <= MAX_LENGTHENED_BYTES:
            raise NotPermitted(
                "S3 stores whole objects: a file cannot be shortened or lengthened",
                "mount with --staged-writes DIR to permit it",
            )
        self._mount.inodes.opened(inode)
        try:
            beside = self._files.find(inode)
            flags = os.O_WRONLY if size_bytes else os.O_WRONLY | os.O_TRUNC
            opened = self._opener.change(inode, flags, 0, beside=beside)
            if opened is None:
                raise NotPermitted(BEING_WRITTEN, ANY_ORDER)
            try:
                if size_bytes:
                    opened.truncate(size_bytes)
                opened.fsync()
            finally:
                opened.release()
        finally:
            self._mount.inodes.released(inode)

    def set_attributes(self, inode: Inode, attributes: FileAttributes) -> None:
        """See WriteBackend."""
        with self._mount.key_locks.shared(lambda: inode.key):
            writer = self._files.uploaded(inode.key)
            base = writer.base if writer is not None and writer.inode is inode else None
            change = self._mount.attribute_store.set(inode, attributes, base)
            if writer is not None and change is not None:
                writer.attributes_set(*change)

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """See WriteBackend."""
        writer = self._files.pop_uploaded(source.key)
        if writer is not None and writer.object_moved(source, copy):
            self._files.note_uploaded(writer, copy.key)

    def object_deleted(self, key: bytes) -> None:
        """See WriteBackend."""
        writer = self._files.pop_uploaded(key)
        if writer is not None:
            writer.object_deleted()
