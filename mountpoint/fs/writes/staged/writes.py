"""Changing files with --staged-writes: first on a local disk, in any order (`staging`).

Takes the place of `streamed` for each file that is opened for writing. All handles of such a file
share one `StagedWriter` from the first open to the last close, so that each sees the others'
writes; the kernel caches no pages of it meanwhile. The file is uploaded when its opener closes it,
by fsync(2), and with the last close.

If an upload fails, the file stays: it still reads as it was written, and the next close or fsync
tries again. If a process is killed, its writes since the last fsync or close are discarded, as
after a power failure: the file is again as it was then, even if that upload had failed. If several
processes have changed it since, the last of them decides.
"""

import os
import threading
import time
from collections.abc import Mapping

import structlog

from mountpoint.errors import NO_OPTION, BadHandle, NotPermitted, OperationError, Superseded
from mountpoint.fs.inodes import ROOT, Inode, InodeNumber
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fs.session.log import Fields, SessionLog, bytes_of, version_of
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.open_flags import appends, check_flags, file_exists
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.staged.writer import RECORD, StagedHandle, StagedWriter
from mountpoint.listing import tree
from mountpoint.s3.client import ALWAYS, NEW, Condition, ObjectInfo
from mountpoint.staging.area import StagingArea
from mountpoint.staging.sending import Sent
from mountpoint.staging.staged_file import Progress

log = structlog.get_logger(__name__)


class StagedWrites:
    """The staged writes of one mount, in `area`. Thread-safe; no lock is held while waiting.

    The methods raise NotPermitted for changes that no option allows, other domain errors, and
    S3Errors.
    """

    def __init__(self, context: WriteContext, area: StagingArea, part_bytes: int) -> None:
        # dependencies
        self._mount = context
        self._area = area
        self._proof = WriteProof(context.client, context.uploads, context.retry_policy)
        # constants
        self._part_bytes = part_bytes
        # mutable
        self._joining = threading.Lock()  # to join a file, and to be the last to leave it

    def create(
        self, parent: Inode, name: bytes, flags: int, process: int, attributes: FileAttributes
    ) -> StagedHandle:
        """See WriteBackend."""
        check_flags(flags)
        tree.check_new(parent.key, name)
        self._proof.require(parent.key + name, NEW)
        mount = self._mount
        inode = mount.inodes.create(parent, name, time.time_ns())
        try:
            kept = mount.attribute_store.of_new(attributes)
            with mount.key_locks.shared(lambda: inode.key):
                writer = self._new_writer(inode, None, NEW, kept, new=True)
                with self._joining:
                    if not writer.take_name():
                        raise NotPermitted(
                            "the file is being written",
                            f"{NO_OPTION}another program has just created it",
                        )
                    writer.note()
                    return writer.join(flags | os.O_RDWR | os.O_TRUNC, process)
        except BaseException:
            mount.inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> StagedHandle | None:
        """See WriteBackend."""
        check_flags(flags)
        if flags & os.O_TRUNC:
            self._check_allowed()
        handle = self._join(inode, flags, process)
        if handle is not None:
            if flags & os.O_TRUNC:
                try:
                    handle.writer.truncate(0)
                except OperationError:
                    handle.writer.leave(handle)
                    raise
            return handle
        if not flags & (os.O_ACCMODE | os.O_TRUNC):
            return None
        if flags & os.O_ACCMODE == os.O_RDWR and not self._allows(flags):
            return None  # many programs ask for both and only read
        self._check_allowed(flags)
        with self._mount.key_locks.shared(lambda: inode.key):
            return self._stage(inode, flags, process)

    def is_written(self, inode: Inode) -> bool:
        """See WriteBackend."""
        return self._mount.local.writer(inode) is not None

    def take_over(self, inode: Inode, process: int | None, offset: int | None) -> StagedHandle:
        """Refuse: a file that may be changed is staged already when it is opened with O_RDWR."""
        if process is None:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        raise file_exists()

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """See WriteBackend and StagedWriter.truncate_alone."""
        self._mount.inodes.opened(inode)
        try:
            handle = self._open_to_truncate(inode, size_bytes)
            if handle is not None:
                handle.writer.truncate_alone(handle, size_bytes)
        finally:
            self._mount.inodes.released(inode)

    def set_attributes(self, inode: Inode, attributes: FileAttributes) -> None:
        """See WriteBackend."""
        with self._mount.key_locks.shared(lambda: inode.key):
            self._mount.attribute_store.set(inode, attributes)

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """See WriteBackend."""
        directory, slash, name = source.key.rpartition(b"/")
        writer = self._mount.local.file(directory + slash, name)
        if isinstance(writer, StagedWriter):
            writer.object_moved(source, copy)

    def object_deleted(self, key: bytes) -> None:
        """Do nothing: a file that is open has no other object than its own."""

    def recover(
        self, session: SessionLog, directories: Mapping[int, Inode]
    ) -> dict[InodeNumber, StagedWriter]:
        """Go on with the files of another process of this mount; return them by number.

        What cannot go on is kept on the disk. `directories` are those of the session by number.
        """
        writers = {}
        opened = {fields["inode"] for fields in session.records("handle").values()}
        for number, fields in session.records(RECORD).items():
            data, journaled, failed, sent = fields["progress"]
            progress = Progress(data, journaled, failed, None if sent is None else Sent(*sent))
            parent = directories.get(fields["parent"])
            goes_on = progress.journaled or number in opened
            if fields["removed"]:
                parent = parent or directories[ROOT]  # its directory may have been removed, too
                goes_on = progress.journaled and number in opened
            writer = None
            if parent is not None and goes_on:
                writer = self._recover(InodeNumber(number), parent, fields, progress)
            if writer is None:
                session.drop(RECORD, number)
            else:
                writers[writer.inode.number] = writer
        self._area.clear({writer.file.path for writer in writers.values()})
        return writers

    def _recover(
        self, number: InodeNumber, parent: Inode, fields: Fields, progress: Progress
    ) -> StagedWriter | None:
        mount, base = self._mount, version_of(fields["base"])
        inode = mount.inodes.restore_file(number, parent, bytes_of(fields["name"]), base)
        new: bool = fields["new"]
        kept = FileAttributes(*fields["kept"])
        writer = self._new_writer(inode, base, NEW if new else ALWAYS, kept, new=new)
        try:
            removed: bool = fields["removed"]
            writer.go_on(bytes_of(fields["key"]), progress, fields["set_ns"], removed=removed)
        except (OSError, ValueError, OperationError) as error:
            writer.discard()
            log.warning("a staged file cannot go on", key=inode.key, reason=str(error))
            return None
        return writer

    # --- inside ---

    def _join(self, inode: Inode, flags: int, process: int) -> StagedHandle | None:
        """Open another handle of a file that is open."""
        with self._joining:
            writer = self._mount.local.writer(inode)
            return writer.join(flags, process) if isinstance(writer, StagedWriter) else None

    def _open_to_truncate(self, inode: Inode, size_bytes: int) -> StagedHandle | None:
        """Return a handle; None if the file has that size already."""
        handle = self._join(inode, os.O_WRONLY, 0)
        if handle is not None:
            return handle
        if inode.info is not None and inode.info.size_bytes == size_bytes:
            return None
        self._check_allowed()
        with self._mount.key_locks.shared(lambda: inode.key):
            return self._stage(inode, os.O_WRONLY if size_bytes else os.O_WRONLY | os.O_TRUNC, 0)

    def _stage(self, inode: Inode, flags: int, process: int) -> StagedHandle:
        self._proof.require(inode.key, ALWAYS)
        mount, readers = self._mount, self._mount.readers
        base, kept = None, mount.attribute_store.of_replaced(inode)
        if not flags & os.O_TRUNC:
            base = mount.newest(inode)
            kept = mount.attribute_store.of_base(base)
        if readers.are_there(inode):
            # Only now that this is the newest version: the kernel looks up again only once.
            readers.leave(inode)
        writer = self._new_writer(inode, base, ALWAYS, kept, new=False)
        with self._joining:
            added = writer.take_name()
            if added and not readers.are_there(inode):
                readers.arrived(inode)
                writer.note()
                return writer.join(flags, process)
            if added:
                writer.leave_name()  # a reader came first and saw no writer
            other = mount.local.file(inode.directory, inode.name)
            joined = None
            if isinstance(other, StagedWriter) and other.inode is inode:
                joined = other.join(flags, process)
        writer.discard()
        if joined is not None:
            return joined
        if added:
            readers.leave(inode)
        raise Superseded("the file is open, and has a new inode")

    def _new_writer(
        self,
        inode: Inode,
        base: ObjectInfo | None,
        condition: Condition,
        kept: FileAttributes,
        *,
        new: bool,
    ) -> StagedWriter:
        return StagedWriter(
            inode,
            self._mount,
            self._area,
            self._joining,
            base=base,
            condition=condition,
            kept=kept,
            new=new,
            part_bytes=self._part_bytes,
        )

    def _allows(self, flags: int) -> bool:
        config = self._mount.config
        return config.allow_overwrite or (config.allow_append and appends(flags))

    def _check_allowed(self, flags: int = 0) -> None:
        if not self._allows(flags):
            raise file_exists()
