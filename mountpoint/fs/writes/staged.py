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
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.readers import Readers
from mountpoint.listing import tree
from mountpoint.s3.client import ALWAYS, NEW, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.area import StagingArea
from mountpoint.staging.staged_file import StagedFile
from mountpoint.upload.source import fetch
from mountpoint.upload.upload import Upload
from mountpoint.upload.uploads import Uploads


class StagedWrites:
    """The staged writes of one mount, in `area`. Thread-safe; no lock is held while waiting.

    `changed` is called after S3 has made a change, with the directory, the name, and the new
    object (None: there is none). The methods raise NotPermitted for changes that no option allows,
    other domain errors, and S3Errors.
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
        self._lock = threading.Lock()  # for joining a file, and for being the last to leave it

    # --- opening ---

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = NOTHING,
    ) -> StagedHandle:
        """Create a file. Its inode counts one lookup and one open."""
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
                            f"{NO_OPTION}another program has just created it",
                        )
                    return self._join(writer, flags | os.O_RDWR | os.O_TRUNC, process)
        except BaseException:
            self._inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> StagedHandle | None:
        """Open a file that is to be changed, or is being changed; None: it is only read."""
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
            return None  # many programs ask for both and only read
        self._check_allowed(flags)
        with self._key_locks.shared(lambda: inode.key):
            return self._stage(inode, flags, process)

    def is_written(self, inode: Inode) -> bool:
        """Whether an inode is open for writing."""
        return isinstance(self._local.writer(inode), StagedWriter)

    def take_over(self, reading: ReadHandle, offset: int | None) -> StagedHandle:
        """Refuse: a file that may be changed is staged already when it is opened with O_RDWR."""
        if reading.writer is None:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")

    def _stage(self, inode: Inode, flags: int, process: int) -> StagedHandle:
        self._proof.require(inode.key, ALWAYS)
        base, kept = None, self._attribute_store.of_replaced(inode)
        if not flags & os.O_TRUNC:
            base = newest(self._client, self._retry_policy, inode)
            kept = self._attribute_store.of_base(base)
        if self._readers.are_there(inode):
            # Only now that this is the newest version: the kernel looks up again only once.
            self._readers.leave(inode)
        writer = self._writer(inode, base, ALWAYS, kept, new=False)
        with self._lock:
            added = self._local.add(writer)
            if added and not self._readers.are_there(inode):
                self._readers.arrived(inode)
                return self._join(writer, flags, process)
            if added:
                self._local.discard(writer)  # a reader came first and saw no writer
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
        raise Superseded("the file is open, and has a new inode")

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
            raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")

    # --- while it is open ---

    def read(self, handle: StagedHandle, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return handle.writer.file.read(offset, size)

    def write(self, handle: StagedHandle, offset: int, data: bytes) -> int:
        """Write at any offset; return the number of bytes."""
        if not handle.writes:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        return handle.write(offset, data)

    def flush(self, handle: StagedHandle, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload the file if the process is its opener."""
        if not handle.writes:
            return
        handle.flushed, handle.killed = True, killed
        kept = handle.writer.file.failed and not handle.changed
        if process == handle.opener and not killed and (handle.wrote or kept):
            self._upload(handle.writer)

    def sync(self, handle: StagedHandle) -> None:
        """Upload a file; return when all that was written is in S3."""
        self._upload(handle.writer)

    def release(self, handle: StagedHandle) -> None:
        """Close a handle. The last close also removes the file from the disk, once it is in S3."""
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
            self._drop(writer)  # every process that changed it was killed
            return
        while not self._leave(writer, complete=True):
            try:
                self._keep(writer)
            except OperationError:
                self._leave(writer)  # the object exists, whatever became of its attributes
                raise

    def truncate(self, inode: Inode, size_bytes: int, opened: StagedHandle | None = None) -> None:
        """Give a file another size. `opened`: the handle of ftruncate; None: by name.

        By name the file is uploaded at once, unless other programs are writing it. If that fails,
        the file is as before.
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
        """Return a handle; None if the file has that size already."""
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
        """Set mode, owners or time of an open file; False: it was closed in the meantime."""
        with self._lock:
            if self._local.writer(writer.inode) is not writer:
                return False
            self._attribute_store.note_staged(writer, attributes)
            return True

    # --- names ---

    def unlink_open(self, writer: StagedWriter) -> bool:
        """Remove the name of an open file; its handles go on working.

        Returns False if it was closed in the meantime. Raises NotPermitted, and S3Errors.
        """
        stored, inode = writer.is_stored, writer.inode
        if stored and not self._config.allow_delete:
            raise NotPermitted(
                "deleting files is not permitted", "mount with --allow-delete to permit it"
            )

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
        """Do nothing: a staged file can be renamed and replaced at any time."""

    def displace(self, writer: StagedWriter, move: Callable[[], None]) -> None:
        """Call `move`, which gives another file the name of an open one.

        If it fails, the open file keeps its name and its content. Raises NotPermitted.
        """
        if not self._config.allow_overwrite:
            raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")
        if not self._orphan(writer, move):
            move()

    def rename_open(
        self, writer: StagedWriter, parent: Inode, name: bytes, condition: Condition
    ) -> bool:
        """Rename an open file; False: it was closed in the meantime."""
        file, inode = writer.file, writer.inode
        directory, old = inode.directory, inode.name
        key = parent.key + name
        try:
            # StagedFile does not know of an object that it replaces under its new name, nor of one
            # that has to leave its old name.
            if condition != NEW or (writer.is_stored and file.base is None):
                file.sync()
            if file.key != key:  # equal if an earlier rename of its directory failed midway
                file.move(key, lambda base: self._copies.move(base, key, condition=condition))
        except BadHandle:
            return False
        self._local.rename(writer, lambda: self._inodes.moved(inode, parent, name))
        self._changed(parent.key, name, file.base)
        self._changed(directory, old, None)
        return True

    def check_movable(self, writer: StagedWriter) -> None:
        """Do nothing: a staged file can be renamed at any time."""

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Make a file follow its object, which is renamed with its directory."""
        directory, slash, name = source.key.rpartition(b"/")
        writer = self._local.file(directory + slash, name)
        if isinstance(writer, StagedWriter) and writer.file.key == source.key:
            self._follow(writer, copy.key, source, copy)

    def moved(self, writer: StagedWriter) -> None:
        """Take an open file's new key, after its directory was renamed."""
        if writer.file.key != writer.inode.key:
            self._follow(writer, writer.inode.key)

    def _follow(
        self,
        writer: StagedWriter,
        key: bytes,
        source: ObjectInfo | None = None,
        copy: ObjectInfo | None = None,
    ) -> None:
        """Give a file another key. Its base becomes `copy` if that is a copy of its base."""

        def moved(base: ObjectInfo) -> ObjectInfo:
            if source is not None and copy is not None and same(source.etag, base.etag):
                return copy
            return replace(base, key=key)  # others have replaced it: the upload will report that

        writer.file.move(key, moved)

    def check_unwritten(self, writer: StagedWriter) -> None:
        """Do nothing: a staged file can be read, removed and renamed at any time."""

    # --- inside ---

    def _upload(self, writer: StagedWriter) -> None:
        with self._key_locks.shared(lambda: writer.inode.key):
            self._store(writer)
            self._keep(writer)

    def _keep(self, writer: StagedWriter) -> None:
        """Give the object the attributes that were set since its upload."""
        inode = writer.inode
        if self._local.writer(inode) is writer:
            info = self._attribute_store.finish_staged(writer)
            if info is not None:
                self._tell(info)

    def _store(self, writer: StagedWriter, *, keep: bool = True) -> None:
        """Upload what has changed. After this, a killed process no longer discards it."""
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
        """Report the new object by its own key: a failed rename may have left the inode another."""
        directory, slash, name = info.key.rpartition(b"/")
        self._changed(directory + slash, name, info)

    def _orphan(self, writer: StagedWriter, delete: Callable[[], None]) -> bool:
        """Remove a file's name once `delete` has returned; False: it was closed in the meantime."""
        try:
            writer.file.unlink(delete)
        except BadHandle:
            return False
        self._local.forget_name(writer)
        self._leave(writer)
        return True

    def _is_changed(self, writer: StagedWriter, *, but: StagedHandle) -> bool:
        """Whether other handles have changed a file since the last try to upload it."""
        with self._lock:
            return any(each.changed for each in writer.handles if each is not but)

    def _give_up(self, handle: StagedHandle) -> None:
        """Close a handle; revert its changes unless others have changed the file since."""
        writer = handle.writer
        back = self._is_changed(writer, but=handle) or writer.file.revert()
        self._part(handle)
        if not back:
            self._drop(writer)

    def _part(self, handle: StagedHandle) -> None:
        """Close a handle that leaves nothing to upload."""
        with self._lock:
            handle.writer.handles.discard(handle)
        self._leave(handle.writer)

    def _drop(self, writer: StagedWriter) -> None:
        """Discard a file if no handle is left."""
        with self._lock:
            if not writer.handles:
                writer.file.unlink(lambda: None)
                self._close(writer)

    def _leave(self, writer: StagedWriter, *, complete: bool = False) -> bool:
        """Let go of a file that has no handles.

        Returns False if `complete` is set and its object has yet to get attributes.
        """
        with self._lock:
            if writer.handles:
                return True
            named = self._local.writer(writer.inode) is writer
            if complete and named and self._attribute_store.is_left(writer):
                return False
            self._close(writer)
            return True

    def _close(self, writer: StagedWriter) -> None:
        """Let go of a file that is in S3, or was discarded (lock held)."""
        if not writer.file.close():
            return
        inode, info = writer.inode, writer.file.base
        same_key = info is not None and info.key == inode.key
        if info is not None and same_key and writer.new:
            self._inodes.became(inode, info, 0.0)
        elif info is None or not same_key or not self._readers.became(inode, info):
            self._inodes.disown(inode, info)  # the kernel may have pages of an earlier version
        self._local.discard(writer)
