"""Open files for writing: alone, or together with other writers.

A file that is being written has one upload. Several programs can share it if each of them only
appends, or while nothing has been written: such files serve as locks. They share the inode, so the
kernel knows one size of the file, and a lock on it (flock) works between them. A program that
cannot share the upload waits briefly for its end.

A file that has been uploaded and is still open can be read through its handles, as far as it is in
S3. So its inode has no other readers. A writer that finds readers gets another inode (`readers`).
"""

import os

from mountpoint.errors import (
    NO_OPTION,
    BadHandle,
    NotFound,
    NotPermitted,
    StaleInode,
    Superseded,
)
from mountpoint.fs.inodes import Inode, PageState
from mountpoint.fs.writes.context import WriteContext, unchanged
from mountpoint.fs.writes.open_flags import (
    allows,
    appends,
    changes,
    check_flags,
    file_exists,
    may_write,
    takes_turns,
)
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.readers import BEING_READ, BEING_READ_HINT
from mountpoint.fs.writes.streamed.files import StreamedFiles
from mountpoint.fs.writes.streamed.handle import StreamedHandle
from mountpoint.fs.writes.streamed.lifecycle import ANY_ORDER, BEING_WRITTEN, SETTLE_S
from mountpoint.fs.writes.streamed.writer import StreamedWriter
from mountpoint.s3.client import ALWAYS, ObjectInfo

#: How long a program that appends, or reads and writes, waits for another writer of the file.
TURN_S = 3.0


class WriteOpener:
    """Opens the files of a mount for writing. Thread-safe; no lock is held while waiting.

    The methods raise NotPermitted for what no option allows or other programs prevent, StaleInode,
    and S3Errors.
    """

    def __init__(self, context: WriteContext, files: StreamedFiles, proof: WriteProof) -> None:
        # dependencies
        self._mount = context
        self._files = files
        self._proof = proof

    def open(self, inode: Inode, flags: int, process: int) -> StreamedHandle | None:
        """Open a file that is to be written, or is being written; None: it is only read.

        O_RDWR alone opens it for reading, as in mountpoint-s3: many programs ask for both and
        only read.
        """
        while True:
            writer = self._files.find(inode)
            if writer is not None:
                writer.wait_closed()
                if not self._is_newest(writer):
                    continue
                writes = writer.join(flags)
                if writes is not None:
                    return StreamedHandle(writer, self._mount, process, writes=writes)
                if not writer.ended:
                    writer.wait_turn(TURN_S if takes_turns(flags) else 0.0)
                    continue
            if not changes(flags):
                return None
            opened = self.change(inode, flags, process, beside=writer)
            if opened is not None:
                return opened

    def take_over(self, inode: Inode, process: int | None, offset: int | None) -> StreamedHandle:
        """Start to write a file that `process` has opened with O_RDWR and only read so far.

        `offset` is where the write begins, which must be the end of the file. None: truncate the
        file to zero bytes and write it again. Raises BadHandle, NotPermitted, and what `change`
        raises.
        """
        if process is None:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        size_bytes = inode.info.size_bytes if inode.info is not None else 0
        if offset not in (None, size_bytes):
            raise BadHandle(f"a write at {offset} in a file of {size_bytes} bytes", ANY_ORDER)
        flags = os.O_WRONLY | (os.O_TRUNC if offset is None else os.O_APPEND)
        if not size_bytes and not allows(self._mount.config, flags):
            flags ^= os.O_TRUNC | os.O_APPEND  # makes no difference for an empty file
        if not self._mount.readers.is_only(inode, SETTLE_S):
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        opened = self.change(inode, flags, process, reads=True)
        if opened is None:
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)
        return opened

    def _is_newest(self, writer: StreamedWriter) -> bool:
        """Whether the object that a writer has uploaded is still the newest version.

        Returns False if this mount has changed it in the meantime. If another client has replaced
        or deleted it, raises StaleInode or NotFound, and NotPermitted while the file is open for
        appending.
        """
        base = writer.uploaded
        if base is None or writer.removed:
            return True
        try:
            self._mount.newest(writer.inode)
        except (StaleInode, NotFound):
            if writer.uploaded is not base or self._files.find(writer.inode) is not writer:
                return False
            if writer.ended:
                raise
            # A new lookup finds the same inode, because the name leads to what is being written.
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER) from None
        return True

    def change(
        self,
        inode: Inode,
        flags: int,
        process: int,
        *,
        reads: bool = False,
        beside: StreamedWriter | None = None,
    ) -> StreamedHandle | None:
        """Begin to write a file from its start, or at its end; None if another writer came first.

        `reads`: the caller has it open for reading, and no other program has. `beside`: a writer
        that has it open after its upload and cannot be joined. Raises Superseded if the kernel has
        to find another inode for the writer.
        """
        # A rename of the file ends before, or finds the writer.
        with self._mount.key_locks.shared(lambda: inode.key):
            return self._change(inode, flags, process, reads=reads, beside=beside)

    def _change(
        self,
        inode: Inode,
        flags: int,
        process: int,
        *,
        reads: bool,
        beside: StreamedWriter | None,
    ) -> StreamedHandle | None:
        check_flags(flags)
        base, condition, known = None, ALWAYS, inode.info
        if not allows(self._mount.config, flags):
            adds = flags & os.O_APPEND and not flags & os.O_TRUNC
            raise file_exists("--allow-append" if adds else "--allow-overwrite")
        if not flags & os.O_TRUNC:
            # The program writes at the end; or it cuts the file to nothing next, as `sort -o` does.
            try:
                base = self._mount.newest(inode)
            except (StaleInode, NotFound):
                if self._mount.local.writer(inode) is not None or _is_another(inode.info, known):
                    return None
                raise
            condition = unchanged(base)
        elif known is not None and (reads or self._mount.config.incremental_upload):
            # It must replace the version that it read, and a late part must replace no other.
            condition = unchanged(known)
        self._proof.require(inode.key, condition)
        if not reads:
            # Only now that this is the newest version: the kernel looks up again only once. It
            # drops the pages of a file that is cut to nothing, and of no other.
            other = self._files.find(inode)
            if other is not None and other is not beside:
                return None
            if other is not None or self._is_read(inode, base):
                self._mount.readers.leave(inode)
        store, writes = self._mount.attribute_store, may_write(flags)
        writer = StreamedWriter(
            inode,
            self._mount,
            self._files.turns,
            self._files.note_uploaded,
            condition=condition,
            kept=store.of_replaced(inode) if base is None else store.of_base(base),
            writes=writes,
            base=base,
            replaces=True,
            appends=appends(flags) and not reads,
        )
        local = self._mount.local
        if not local.add_file(writer):
            writer.abort()
            first = local.file(inode.directory, inode.name)
            if first is not None and first.inode is not inode:
                raise Superseded("the file is being written, and has a new inode")
            return None
        if base is not None and _is_another(inode.info, base):  # written here in the meantime
            local.remove_file(writer)
            return None
        if not reads and self._is_read(inode, base):
            # A reader came first and saw no writer.
            local.remove_file(writer)
            writer.abort()
            self._mount.readers.leave(inode)
        if reads and not self._mount.readers.is_only(inode, 0.0):
            local.remove_file(writer)
            writer.abort()
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        self._mount.readers.arrived(inode)
        return StreamedHandle(writer, self._mount, process, writes=writes)

    def _is_read(self, inode: Inode, base: ObjectInfo | None) -> bool:
        """Whether an inode has readers; or the kernel pages of `base`, to which the writer adds."""
        there = self._mount.readers.are_there(inode)  # it also learns what was read
        return there or (base is not None and inode.paged is not PageState.NOT)


def _is_another(info: ObjectInfo | None, known: ObjectInfo | None) -> bool:
    return (info and info.etag) != (known and known.etag)
