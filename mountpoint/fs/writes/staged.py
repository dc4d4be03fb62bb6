"""Changing files with --staged-writes: on a local disk first, in any order (`staging`).

In the place of `streamed`, for everything that is opened to be written. All that have such a file
open share one `StagedWriter`, from the first open to the last close, so that each sees what the
others write; the kernel keeps no pages of it meanwhile. It is uploaded when its opener closes it,
by fsync(2), and with the last close.

What could not be uploaded stays: the file is still seen as it was written, and the next close or
fsync tries again. A process that is killed has written nothing since the last fsync or close, as
after a power failure: the file is again what was uploaded then, or could not be. Where several
processes have changed it since, the last of them decides.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from mountpoint.config import ChangeConfig, WriteConfig
from mountpoint.copy.objects import Copies, same
from mountpoint.errors import (
    NO_OPTION,
    BadHandle,
    NotPermitted,
    OperationError,
    Superseded,
    WriterKilled,
)
from mountpoint.fs.handles import ReadHandle, StagedHandle, StagedWriter, check_flags, unchanged
from mountpoint.fs.heads import newest
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.readers import Readers
from mountpoint.listing import tree
from mountpoint.s3.client import ALWAYS, NEW, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire.posix_metadata import NOTHING, FileAttributes
from mountpoint.staging.area import StagingArea
from mountpoint.staging.staged_file import StagedFile
from mountpoint.upload.source import fetch
from mountpoint.upload.upload import Upload
from mountpoint.upload.uploads import Uploads


class StagedWrites:
    """Changes of one mount's files through `area`. Thread-safe; no lock is held while waiting.

    `changed` is called with directory, name, and what is there now (None: nothing), after S3
    has done it.
    """

    def __init__(
        self,
        area: StagingArea,
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
        write: WriteConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._area = area
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
        self._changed = changed
        # constants
        self._config = config
        self._part_bytes = write.part_size_bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()  # of who joins a file, and who is the last to leave it

    # --- opening ---

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = NOTHING,
    ) -> StagedHandle:
        """Begin a new file. Its inode counts one lookup and one open."""
        check_flags(flags)
        tree.check_new(parent.key, name)
        self._proof.require(parent.key + name, NEW)
        inode = self._inodes.create(parent, name, time.time_ns())
        try:
            kept = self._attribute_store.of_new(attributes)
            with self._key_locks.shared(lambda: inode.key):
                writer = self._writer(inode, None, NEW, kept, new=True)
                with self._lock:
                    if not self._local.add(writer):
                        raise NotPermitted(
                            "the file is being written",
                            f"{NO_OPTION}another program has just made it",
                        )
                    return self._join(writer, flags | os.O_RDWR | os.O_TRUNC, process)
        except BaseException:
            self._inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> StagedHandle | None:
        """Open a file that is to be changed, or that others change; None: it is only read."""
        check_flags(flags)
        if flags & os.O_TRUNC:
            self._check_allowed()
        with self._lock:
            writer = self._local.writer(inode)
            if isinstance(writer, StagedWriter):
                handle = self._join(writer, flags, process)
        if isinstance(writer, StagedWriter):
            if flags & os.O_TRUNC:
                try:
                    writer.truncate(0)
                except OperationError:
                    self._part(handle)
                    raise
            return handle
        if not flags & (os.O_ACCMODE | os.O_TRUNC):
            return None
        if flags & os.O_ACCMODE == os.O_RDWR and not self._allows(flags):
            return None  # many programs that ask for both only read
        self._check_allowed(flags)
        with self._key_locks.shared(lambda: inode.key):
            return self._stage(inode, flags, process)

    def is_written(self, inode: Inode) -> bool:
        """Whether an inode is open for somebody who may write."""
        return isinstance(self._local.writer(inode), StagedWriter)

    def take_over(self, reading: ReadHandle, offset: int | None) -> StagedHandle:
        """Refuse: what may be changed is staged when it is opened to be read and written."""
        if reading.writer is None:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        raise NotPermitted("the file exists", "mount with --allow-overwrite to allow it")

    def _stage(self, inode: Inode, flags: int, process: int) -> StagedHandle:
        self._proof.require(inode.key, ALWAYS)
        base, kept = None, self._attribute_store.of_replaced(inode)
        if not flags & os.O_TRUNC:
            base = newest(self._client, self._retry_policy, inode)
            kept = self._attribute_store.of_base(base)
        if self._readers.are_there(inode):
            # Now that it is the newest version: the kernel looks again only once.
            self._readers.leave(inode)
        writer = self._writer(inode, base, ALWAYS, kept, new=False)
        with self._lock:
            added = self._local.add(writer)
            if added and not self._readers.are_there(inode):
                self._readers.arrived(inode)
                return self._join(writer, flags, process)
            if added:
                self._local.discard(writer)  # a reader came meanwhile, and did not see it
            other = self._local.file(inode.directory, inode.name)
            joined = None
            if isinstance(other, StagedWriter) and other.inode is inode:
                joined = self._join(other, flags, process)
        writer.file.unlink(lambda: None)
        writer.file.close()
        if joined is not None:
            return joined
        if added:
            self._readers.leave(inode)
        raise Superseded("the file is open, and has another inode")

    def _writer(
        self,
        inode: Inode,
        base: ObjectInfo | None,
        condition: Condition,
        kept: FileAttributes,
        *,
        new: bool,
    ) -> StagedWriter:
        writer: StagedWriter
        file = StagedFile(
            self._area,
            inode.key,
            base,
            fetch=self._fetch,
            begin=lambda key, base: self._begin(writer, condition, key, base),
            part_bytes=self._part_bytes,
            stopping=self._retry_policy.stopping,
        )
        writer = StagedWriter(inode, file, new=new, kept=self._attribute_store.of_staged(kept))
        return writer

    def _fetch(self, info: ObjectInfo, start: int, stop: int) -> bytes:
        return self._retry_policy.ask(lambda: fetch(self._client, info, start, stop)).answer()

    def _begin(
        self, writer: StagedWriter, first: Condition, key: bytes, base: ObjectInfo | None
    ) -> Upload:
        size_bytes = writer.file.size_bytes
        if base is None:
            metadata = self._attribute_store.metadata(writer)
            return self._uploads.upload(
                key, condition=first, metadata=metadata, known_bytes=size_bytes
            )
        options, _ = self._attribute_store.on_base(
            writer, self._copies.options_of(base), writer.mtime_ns
        )
        return self._uploads.upload(
            key, condition=unchanged(base), options=options, known_bytes=size_bytes
        )

    def _join(self, writer: StagedWriter, flags: int, process: int) -> StagedHandle:
        """Add a handle (lock held)."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        handle = StagedHandle(writer, process, writes=writes, changed=bool(flags & os.O_TRUNC))
        writer.handles.add(handle)
        return handle

    def _allows(self, flags: int) -> bool:
        appends = bool(flags & os.O_APPEND) and not flags & os.O_TRUNC
        return self._config.allow_overwrite or (appends and self._config.allow_append)

    def _check_allowed(self, flags: int = 0) -> None:
        if not self._allows(flags):
            raise NotPermitted("the file exists", "mount with --allow-overwrite to allow it")

    # --- while it is open ---

    def read(self, handle: StagedHandle, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return handle.writer.file.read(offset, size)

    def write(self, handle: StagedHandle, offset: int, data: bytes) -> int:
        """Write at any offset; return how many bytes."""
        if not handle.writes:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        return handle.write(offset, data)

    def flush(self, handle: StagedHandle, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload what was written if it is the opener."""
        if not handle.writes:
            return
        handle.flushed, handle.killed = True, killed
        kept = handle.writer.file.failed and not handle.changed
        if process == handle.opener and not killed and (handle.wrote or kept):
            self._upload(handle.writer)

    def sync(self, handle: StagedHandle) -> None:
        """Upload a file; what was written is in S3 when this returns."""
        self._upload(handle.writer)

    def release(self, handle: StagedHandle) -> None:
        """Close a handle; with the last one the file leaves the disk, once it is in S3."""
        with self._key_locks.shared(lambda: handle.inode.key):
            self._release(handle)

    def _release(self, handle: StagedHandle) -> None:
        writer = handle.writer
        if handle.changed and handle.is_lost and writer.file.dirty:
            self._give_up(handle)
            raise WriterKilled("the process that wrote the file was killed")
        with self._lock:
            writer.handles.discard(handle)
            last = not writer.handles
        if handle.changed or (last and writer.file.failed):
            self._store(writer)
        if not last:
            return
        if writer.file.dirty and not writer.file.failed:
            self._drop(writer)  # all who have changed it were killed
            return
        while not self._leave(writer, complete=True):
            try:
                self._keep(writer)
            except OperationError:
                self._leave(writer)  # it is there, whatever became of its attributes
                raise

    def truncate(self, inode: Inode, size_bytes: int, opened: StagedHandle | None = None) -> None:
        """Give a file another size. `opened`: through that handle; else by its name.

        By its name it is uploaded at once, unless others are writing it; if that fails it is as
        before.
        """
        if opened is not None:
            opened.truncate(size_bytes)
            return
        self._inodes.opened(inode)
        try:
            handle = self._open_to_truncate(inode, size_bytes)
            if handle is None:
                return
            with self._key_locks.shared(lambda: inode.key):
                try:
                    handle.truncate(size_bytes)
                    if not self._is_changed(handle.writer, but=handle):
                        self._store(handle.writer, keep=False)
                except OperationError:
                    self._give_up(handle)
                    raise
                self._release(handle)
        finally:
            self._inodes.released(inode)

    def _open_to_truncate(self, inode: Inode, size_bytes: int) -> StagedHandle | None:
        """Return a handle; None if the file has that size."""
        with self._lock:
            writer = self._local.writer(inode)
            if isinstance(writer, StagedWriter):
                return self._join(writer, os.O_WRONLY, 0)
        if inode.info is not None and inode.info.size_bytes == size_bytes:
            return None
        self._check_allowed()
        with self._key_locks.shared(lambda: inode.key):
            return self._stage(inode, os.O_WRONLY if size_bytes else os.O_WRONLY | os.O_TRUNC, 0)

    def set_open(self, writer: StagedWriter, attributes: FileAttributes) -> bool:
        """Set mode, owners or time of a file that is open; False: it has been closed meanwhile."""
        with self._lock:
            if self._local.writer(writer.inode) is not writer:
                return False
            self._attribute_store.note_staged(writer, attributes)
            return True

    # --- names ---

    def unlink_open(self, writer: StagedWriter) -> bool:
        """Remove a file that is open, for whom it goes on; False: it has been closed meanwhile."""
        stored, inode = writer.is_stored, writer.inode
        if stored and not self._config.allow_delete:
            raise NotPermitted("files may not be deleted", "mount with --allow-delete to allow it")

        def delete() -> None:
            if stored:
                key = writer.file.key
                self._retry_policy.ask(lambda: self._client.delete_object(key)).answer()

        with self._key_locks.alone(lambda: [inode.key]):
            if not self._orphan(writer, delete):
                return False
            self._local.keep(inode.directory)
            self._changed(inode.directory, inode.name, None)
            return True

    def await_end(self, writer: StagedWriter, *, replaced: bool) -> None:
        """Nothing: what is staged can be renamed and replaced at any time."""

    def displace(self, writer: StagedWriter, move: Callable[[], None]) -> None:
        """Have `move` give another file the name of one that is open.

        Until that has succeeded the open file keeps its name and all that was written to it.
        """
        if not self._config.allow_overwrite:
            raise NotPermitted("the file exists", "mount with --allow-overwrite to allow it")
        if not self._orphan(writer, move):
            move()

    def rename_open(
        self, writer: StagedWriter, parent: Inode, name: bytes, condition: Condition
    ) -> bool:
        """Rename a file that is open; False: it has been closed meanwhile."""
        file, inode = writer.file, writer.inode
        directory, old = inode.directory, inode.name
        key = parent.key + name
        try:
            # StagedFile knows neither of an object that it replaces under its new name, nor of
            # one that is to leave its old name.
            if condition != NEW or (writer.is_stored and file.base is None):
                file.sync()
            if file.key != key:  # it is there if half of its directory has been renamed before
                file.move(key, lambda base: self._copies.move(base, key, condition=condition))
        except BadHandle:
            return False
        self._local.rename(writer, lambda: self._inodes.moved(inode, parent, name))
        self._changed(parent.key, name, file.base)
        self._changed(directory, old, None)
        return True

    def check_movable(self, writer: StagedWriter) -> None:
        """Nothing: what is staged can be renamed at any time."""

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Have a file follow its object, which its directory takes along."""
        directory, slash, name = source.key.rpartition(b"/")
        writer = self._local.file(directory + slash, name)
        if isinstance(writer, StagedWriter) and writer.file.key == source.key:
            self._follow(writer, copy.key, source, copy)

    def moved(self, writer: StagedWriter) -> None:
        """Take what a renamed directory has made of the key of an open file."""
        if writer.file.key != writer.inode.key:
            self._follow(writer, writer.inode.key)

    def _follow(
        self,
        writer: StagedWriter,
        key: bytes,
        source: ObjectInfo | None = None,
        copy: ObjectInfo | None = None,
    ) -> None:
        """Give a file another key; its base is `copy` then, if that is a copy of its base."""

        def moved(base: ObjectInfo) -> ObjectInfo:
            if source is not None and copy is not None and same(source.etag, base.etag):
                return copy
            return replace(base, key=key)  # others have replaced it: uploading will say so

        writer.file.move(key, moved)

    def check_unwritten(self, writer: StagedWriter) -> None:
        """Nothing: what is staged can be read, removed and renamed at any time."""

    # --- inside ---

    def _upload(self, writer: StagedWriter) -> None:
        with self._key_locks.shared(lambda: writer.inode.key):
            self._store(writer)
            self._keep(writer)

    def _keep(self, writer: StagedWriter) -> None:
        """Have the object keep what was set since it was uploaded."""
        inode = writer.inode
        if self._local.writer(inode) is writer:
            info = self._attribute_store.finish_staged(writer)
            if info is not None:
                self._tell(info)

    def _store(self, writer: StagedWriter, *, keep: bool = True) -> None:
        """Upload what has changed. From now on nobody's end takes that back."""
        if not writer.file.dirty:
            return
        with self._lock:
            changed = [each for each in writer.handles if each.changed]
            for each in changed:
                each.changed = False
        try:
            info = writer.file.sync(keep=keep)
        except OperationError:
            for each in () if keep else changed:
                each.changed = True
            raise
        if info is not None:
            self._tell(info)

    def _tell(self, info: ObjectInfo) -> None:
        """Say what is there now: not under the inode's name if half of a directory has moved."""
        directory, slash, name = info.key.rpartition(b"/")
        self._changed(directory + slash, name, info)

    def _orphan(self, writer: StagedWriter, delete: Callable[[], None]) -> bool:
        """Take the name from a file, once `delete` is done; False: it has been closed meanwhile."""
        try:
            writer.file.unlink(delete)
        except BadHandle:
            return False
        self._local.forget_name(writer)
        self._leave(writer)
        return True

    def _is_changed(self, writer: StagedWriter, *, but: StagedHandle) -> bool:
        """Whether anybody else has changed a file since uploading it was tried."""
        with self._lock:
            return any(each.changed for each in writer.handles if each is not but)

    def _give_up(self, handle: StagedHandle) -> None:
        """Close a handle, and take back what was changed through it, if nobody else has since."""
        writer = handle.writer
        back = self._is_changed(writer, but=handle) or writer.file.revert()
        self._part(handle)
        if not back:
            self._drop(writer)

    def _part(self, handle: StagedHandle) -> None:
        """Close a handle of which nothing is to be uploaded."""
        with self._lock:
            handle.writer.handles.discard(handle)
        self._leave(handle.writer)

    def _drop(self, writer: StagedWriter) -> None:
        """Let nothing become of a file, if nobody has it open."""
        with self._lock:
            if not writer.handles:
                writer.file.unlink(lambda: None)
                self._close(writer)

    def _leave(self, writer: StagedWriter, *, complete: bool = False) -> bool:
        """Let go of a file that nobody has open; False, if `complete`: something is to be kept."""
        with self._lock:
            if writer.handles:
                return True
            named = self._local.writer(writer.inode) is writer
            if complete and named and self._attribute_store.is_left(writer):
                return False
            self._close(writer)
            return True

    def _close(self, writer: StagedWriter) -> None:
        """Let go of a file that is in S3, or is not to be (lock held)."""
        if not writer.file.close():
            return
        inode, info = writer.inode, writer.file.base
        same_key = info is not None and info.key == inode.key
        if info is not None and same_key and writer.new:
            self._inodes.became(inode, info, 0.0)
        elif info is None or not same_key or not self._readers.became(inode, info):
            self._inodes.disown(inode, info)  # the kernel may have pages of an earlier version
        self._local.discard(writer)
