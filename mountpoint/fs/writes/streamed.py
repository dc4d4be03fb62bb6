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

import functools
import os
import time
from collections.abc import Callable

from mountpoint.config import MIB, ChangeConfig
from mountpoint.copy.objects import Copies, same
from mountpoint.errors import (
    NO_OPTION,
    BadHandle,
    IsADirectory,
    NotPermitted,
    NotSequential,
    OperationError,
    PreconditionFailed,
    WriterKilled,
)
from mountpoint.fs.handles import ReadHandle, StreamedHandle, WriteHandle, check_flags
from mountpoint.fs.inodes import Inode, InodeTable, Paged
from mountpoint.fs.overlay import OverlayNames, Writer
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes, formatted
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.open import (
    ANY_ORDER,
    BEING_WRITTEN,
    LOOK_S,
    SETTLE_S,
    WriteOpener,
    may_write,
)
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.readers import BEING_READ, BEING_READ_HINT, Readers
from mountpoint.listing import tree
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import NEW, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.sequential import Sequential
from mountpoint.upload.source import fetch
from mountpoint.upload.uploads import Uploads

#: truncate(2) by name extends a file to this size at most, because it waits for the upload.
MOST_LENGTHENED_BYTES = 8 * MIB


class StreamedWrites:
    """The streamed changes of one mount. Thread-safe; no lock is held while waiting.

    `changed` is called after S3 has made a change, with the directory, the name, and the new
    object (None: there is none). The methods raise domain errors that say why a change is not
    possible, and S3Errors.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        key_locks: KeyLocks,
        uploads: Uploads,
        copies: Copies,
        inodes: InodeTable,
        local: OverlayNames,
        readers: Readers,
        attribute_store: AttributeStore,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._key_locks = key_locks
        self._uploads = uploads
        self._proof = WriteProof(client, uploads, retry_policy)
        self._copies = copies
        self._inodes = inodes
        self._local = local
        self._readers = readers
        self._attribute_store = attribute_store
        self._config = config
        self._changed = changed
        self._opener = WriteOpener(
            client, retry_policy, self._proof, local, readers, attribute_store, config, self._begin
        )

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = NOTHING,
    ) -> StreamedHandle:
        """Create a file. Its inode counts one lookup and one open."""
        check_flags(flags)
        tree.check_new(parent.key, name)
        self._proof.require(parent.key + name, NEW)
        inode = self._inodes.create(parent, name, time.time_ns())
        try:
            kept = self._attribute_store.of_new(attributes)
            appends = bool(flags & os.O_APPEND)
            handle = WriteHandle(inode, self._begin, condition=NEW, kept=kept, appends=appends)
            opened = StreamedHandle(handle, process, writes=may_write(flags))
            self._add(handle)
            return opened
        except BaseException:
            self._inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> StreamedHandle | None:
        """See WriteOpener."""
        return self._opener.open(inode, flags, process)

    def is_written(self, inode: Inode) -> bool:
        """See WriteOpener."""
        return self._opener.is_written(inode)

    def take_over(self, reading: ReadHandle, offset: int | None) -> StreamedHandle:
        """See WriteOpener."""
        return self._opener.take_over(reading, offset)

    # --- while it is open ---

    def read(self, opened: StreamedHandle, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size) as far as S3 has them.

        Waits briefly for the end of the upload that has them. Raises BadHandle if S3 lacks them.
        """
        handle = opened.file
        while True:
            base, stop = handle.base, min(offset + size, handle.size_bytes)
            if offset >= stop:
                return b""
            if base is None or stop > handle.stored_bytes:
                if handle.removed or opened.wrote or not handle.settled.wait(SETTLE_S):
                    raise BadHandle("a file that is being written cannot be read", ANY_ORDER)
                handle.check()
                continue
            try:
                start = functools.partial(fetch, self._client, base, offset, stop)
                return self._retry_policy.ask(start).answer()
            except PreconditionFailed:
                if handle.base is base:
                    raise

    def write(self, opened: StreamedHandle, offset: int, data: bytes) -> int:
        """Write the next bytes of a file; return how many."""
        handle = opened.file
        if not opened.writes:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        self._await_upload(handle)
        if handle.discards(offset, len(data)):
            return len(data)
        handle.check()
        if handle.opens > 1 and offset not in (handle.written_bytes, handle.size_bytes):
            # Keep what other handles have written.
            raise NotSequential(
                f"a write at {offset}, but the next byte to write is {handle.written_bytes}"
            )
        if handle.settled.is_set():
            self._go_on(handle)
        try:
            written = handle.write(offset, data)
        except OperationError as error:
            if handle.discards(offset, len(data)):
                return len(data)
            self._lost(handle, error)
            raise
        opened.wrote = True
        return written

    def flush(self, opened: StreamedHandle, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload the file if the process is its opener."""
        handle = opened.file
        handle.flushed = True
        if handle.removed or not opened.writes:
            return
        handle.killed = killed
        try:
            handle.check()
        except OperationError as error:
            self._lost(handle, error)
            raise
        if process == opened.opener and not killed:
            handle.closing = True
            upload = handle.upload
            if upload is None:
                due = self._attribute_store.left(handle) is not None
            else:
                # A size that was set by name is no handle's own write: any close uploads it.
                due = handle.size_bytes > 0 and (opened.wrote or not upload.size_bytes)
            if due:
                self._finish(handle)

    def sync(self, opened: StreamedHandle) -> None:
        """Upload a file; return when all that was written is in S3."""
        handle = opened.file
        handle.check()
        if handle.upload is not None or self._attribute_store.left(handle):
            self._finish(handle)

    def release(self, opened: StreamedHandle) -> None:
        """Close a handle. The last close ends the upload."""
        handle = opened.file
        with handle.settling:
            handle.opens -= 1
            if handle.opens:
                return
        if handle.removed:
            self._local.discard(handle)
            return
        handle.closing = True
        upload = handle.upload
        try:
            if handle.settled.is_set():
                return
            # A process that is killed inside open(2) gets no descriptor, so it never closes one.
            never_had = upload is not None and not handle.flushed and not handle.size_bytes
            if upload is not None and (handle.killed or never_had):
                error = WriterKilled("the process that wrote the file was killed")
                self._lost(handle, error)
                raise error
            self._finish(handle)
        finally:
            if upload is not None:
                upload.abort()

    def truncate(self, inode: Inode, size_bytes: int, opened: StreamedHandle | None = None) -> None:
        """Give a file another size, where a new upload can do that.

        `opened`: the handle of ftruncate; None: by name. Raises NotPermitted.
        """
        handle = self._local.writer(inode) if opened is None else opened.file
        if isinstance(handle, WriteHandle):
            self._cut(handle, size_bytes)
            if opened is not None:
                opened.wrote = True
            return
        known_bytes = 0 if inode.info is None else inode.info.size_bytes
        if size_bytes == known_bytes and size_bytes:
            return
        if size_bytes and not known_bytes < size_bytes <= MOST_LENGTHENED_BYTES:
            raise NotPermitted(
                "S3 stores whole objects: a file cannot be shortened or lengthened",
                "mount with --staged-writes DIR to permit it",
            )
        self._inodes.opened(inode)
        try:
            beside = self._opener.open_file(inode)
            flags = os.O_WRONLY if size_bytes else os.O_WRONLY | os.O_TRUNC
            anew = self._opener.change(inode, flags, 0, beside=beside)
            if anew is None:
                raise NotPermitted(BEING_WRITTEN, ANY_ORDER)
            try:
                if size_bytes:
                    self._cut(anew.file, size_bytes)
                self.sync(anew)
            finally:
                self.release(anew)
        finally:
            self._inodes.released(inode)

    def _cut(self, handle: WriteHandle, size_bytes: int) -> None:
        """Give another size to a file that is being written."""
        if handle.removed:
            handle.resize(size_bytes)
            return
        self._await_upload(handle)
        if size_bytes == handle.size_bytes:
            return
        stored = handle.replaces and handle.base is not None
        if not size_bytes and stored and not self._config.allow_overwrite:
            raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")
        if 0 < size_bytes < handle.written_bytes:
            raise NotPermitted(
                "a file that is being written can be truncated only to zero bytes", ANY_ORDER
            )
        if handle.settled.is_set():
            self._go_on(handle)
        if size_bytes:
            handle.set_size(size_bytes)
        else:
            handle.restart()

    def _await_upload(self, handle: WriteHandle) -> None:
        """Wait while an upload is being completed, before the next one."""
        while handle.finishing and not handle.settled.wait(LOOK_S):
            handle.check()

    def set_attributes(self, inode: Inode, attributes: FileAttributes) -> None:
        """Set mode, owners or time of an existing file or directory."""
        with self._key_locks.shared(lambda: inode.key):
            self._attribute_store.set(inode, attributes, self._opener.settled.get(inode.key))

    def set_open(self, writer: Writer, attributes: FileAttributes) -> bool:
        """Set them of a file that is being written; False: it is complete now."""
        assert isinstance(writer, WriteHandle)
        if writer.removed:
            return True
        with writer.settling:
            if writer.settled.is_set():
                return False
            self._attribute_store.note(writer, attributes)
            return True

    def unlink(self, parent: Inode, entry: Entry) -> None:
        """Delete an object."""
        info = entry.info
        if info is None:
            raise IsADirectory()
        if not self._config.allow_delete:
            raise NotPermitted(
                "deleting files is not permitted", "mount with --allow-delete to permit it"
            )
        self._retry_policy.ask(lambda: self._client.delete_object(info.key)).answer()
        self._remove_open(info.key)
        self._local.keep(parent.key)
        self._changed(parent.key, entry.name, None)

    def check_unwritten(self, writer: Writer) -> None:
        """Raise NotPermitted for a file that is being written; wait if it is being closed."""
        assert isinstance(writer, WriteHandle)
        self._opener.await_end(writer, 0.0)

    def await_end(self, writer: Writer, *, replaced: bool) -> None:
        """Wait for a file that is being closed, if its object must exist before the rename.

        `replaced`: another file takes its name. Its end needs its key, which the rename will hold.
        """
        assert isinstance(writer, WriteHandle)
        ends = writer.closing or writer.finishing
        if ends and (replaced or writer.replaces or writer.base is not None):
            writer.settled.wait(SETTLE_S)

    def unlink_open(self, writer: Writer) -> bool:
        """Remove the name of a file that is being written; False: it is complete now.

        Its handles go on without an error, and the upload is aborted. It counts as a delete only if
        there is an object to remove. Raises NotPermitted, and S3Errors.
        """
        assert isinstance(writer, WriteHandle)
        inode, stored = writer.inode, writer.replaces or writer.base is not None
        if stored and not self._config.allow_delete:
            raise NotPermitted(
                "deleting files is not permitted", "mount with --allow-delete to permit it"
            )
        # While this thread holds the key alone, no upload of it is being completed.
        with self._key_locks.alone(lambda: [inode.key]):
            if writer.settled.is_set():
                return False
            if stored:
                self._retry_policy.ask(lambda: self._client.delete_object(inode.key)).answer()
            with writer.settling:
                begun = writer.remove()
            self._local.forget_name(writer)
            self._local.keep(inode.directory)
            self._changed(inode.directory, inode.name, None)
        if begun is not None:
            begun.abort()
        return True

    def displace(self, writer: Writer, move: Callable[[], None]) -> None:
        """Call `move`, which gives another file this name, once this one is no longer written."""
        self.check_unwritten(writer)
        move()

    def rename_open(self, writer: Writer, parent: Inode, name: bytes, condition: Condition) -> bool:
        """Rename a file that is being written, if it is new; False: it is complete now."""
        assert isinstance(writer, WriteHandle)
        with writer.settling:
            if not writer.replaces and writer.base is None and not writer.settled.is_set():
                self._local.rename(writer, lambda: self._inodes.moved(writer.inode, parent, name))
                writer.condition = condition
                self._rename_upload(writer)
                return True
        self.check_unwritten(writer)
        return False

    def check_movable(self, writer: Writer) -> None:
        """Raise NotPermitted for a file whose beginning is in S3 under its present name."""
        assert isinstance(writer, WriteHandle)
        if writer.base is not None or self._config.incremental_upload:
            self.check_unwritten(writer)

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Make an open file that is in S3 follow its object to its new key."""
        handle = self._opener.settled.pop(source.key, None)
        if handle is None:
            return
        with handle.settling:
            base = handle.base
            if handle.settled.is_set() and base is not None and same(base.etag, source.etag):
                handle.moved(copy)
                self._opener.settled[copy.key] = handle

    def moved(self, writer: Writer) -> None:
        """Take the new name of a file that is being written, after its directory was renamed."""
        assert isinstance(writer, WriteHandle)
        self._rename_upload(writer)

    def _rename_upload(self, handle: WriteHandle) -> None:
        """Give an upload its file's new key. Parts that were sent are moved at the end."""
        if handle.upload is not None:
            handle.upload.rename(handle.inode.key, handle.condition)

    # --- inside ---

    def _remove_open(self, key: bytes) -> None:
        """Let the handles of a file whose object has been deleted go on."""
        handle = self._opener.settled.pop(key, None)
        if handle is not None:
            with handle.settling:
                if handle.settled.is_set():
                    handle.remove()

    def _begin(
        self, handle: WriteHandle, base: ObjectInfo | None
    ) -> tuple[Sequential, FileAttributes]:
        """Return an upload under the file's present name, and the attributes that it carries."""
        key, condition = handle.inode.key, handle.condition
        if self._config.incremental_upload:
            metadata = formatted(handle.kept) if base is None else {}
            appending = self._uploads.appending(
                key, base=base, condition=condition, metadata=metadata
            )
            return appending, handle.kept
        if base is not None:
            options = self._copies.options_of(base)
            options, told = self._attribute_store.on_base(handle, options, None)
            upload = self._uploads.upload(
                key, condition=condition, options=options, known_bytes=base.size_bytes
            )
            return upload, told
        metadata = formatted(handle.kept)
        upload = self._uploads.upload(key, condition=condition, metadata=metadata)
        return upload, handle.kept

    def _add(self, handle: WriteHandle) -> None:
        if not self._local.add(handle):
            if handle.upload is not None:
                handle.upload.abort()
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)

    def _go_on(self, handle: WriteHandle) -> None:
        """Start writing again to a file whose upload has ended."""
        if self._readers.are_there(handle.inode):
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        with handle.settling:
            if not handle.settled.is_set():
                return  # another thread was faster
            self._add(handle)
            handle.closing = handle.finishing = False
            handle.settled.clear()

    def _finish(self, handle: WriteHandle) -> None:
        """Complete the upload of a file, under its name and with its attributes."""
        with self._key_locks.shared(lambda: handle.inode.key):
            self._complete(handle)

    def _complete(self, handle: WriteHandle) -> None:
        with handle.settling:
            if handle.removed:
                return
            handle.finishing = True
            upload, info = handle.upload, handle.base
        refused: OperationError | None = None
        try:
            if upload is not None:
                upload.rename(handle.inode.key, handle.condition)
                self._attribute_store.finishing(handle, upload)
                info = handle.finish(upload)
                if not handle.claim(upload):  # another thread does the rest, or has done it
                    while handle.upload is upload and not handle.settled.wait(SETTLE_S):
                        pass
                    handle.check()
                    return
            assert info is not None
            while not self._settle(handle, upload, info):
                if upload is not None and info.key != handle.inode.key:
                    info = self._copies.move(info, handle.inode.key, condition=handle.condition)
                    continue
                try:
                    info = self._attribute_store.finished(handle, info)
                except OperationError as error:
                    refused = error  # the object exists all the same
        except OperationError as error:
            self._lost(handle, error)
            raise
        if upload is not None:
            upload.abort()  # only releases resources: all of it is in S3
        if refused is not None:
            raise refused

    def _settle(self, handle: WriteHandle, upload: Sequential | None, info: ObjectInfo) -> bool:
        """Note that the upload is complete; False if its name or attributes have yet to change."""
        inode = handle.inode
        with handle.settling:
            if upload is not handle.upload:
                return True  # another thread has done so
            if upload is not None and info.key != inode.key:
                return False
            if self._attribute_store.left(handle):
                return False
            if upload is not None or info is not handle.base:
                # Listed before it is no longer a file being written: it is visible all the time.
                self._changed(inode.directory, inode.name, info)
                # The kernel has no pages of the file that was appended to, or not its last one.
                paged = Paged.NOT if handle.appends else Paged.SOME
                self._inodes.became(inode, info, 0.0, paged=paged)
                handle.stored(info)
            self._opener.settled[info.key] = handle
            self._local.discard(handle)
            handle.finishing = False
            handle.settled.set()
            return True

    def _lost(self, handle: WriteHandle, error: OperationError) -> None:
        """Note that a file's upload has failed for good."""
        inode = handle.inode
        with handle.settling:
            handle.fail(error)
            if self._local.discard(handle):
                self._inodes.disown(inode)
                self._changed(inode.directory, inode.name, None)
            handle.settled.set()
