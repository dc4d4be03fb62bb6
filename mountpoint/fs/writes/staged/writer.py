"""An open staged file: its handles, its uploads, and changes of its name."""

import os
import threading
from collections.abc import Callable
from dataclasses import astuple, replace

from mountpoint.copy.metadata import check_size
from mountpoint.errors import NO_OPTION, BadHandle, OperationError, WriterKilled
from mountpoint.fs.inodes import Inode
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes, formatted, parsed
from mountpoint.fs.session.log import fields_of, text_of
from mountpoint.fs.writes.context import WriteContext, unchanged
from mountpoint.fs.writes.open_flags import file_exists, may_write
from mountpoint.s3.client import NEW, Condition, ObjectInfo, same_etag
from mountpoint.staging.area import StagingArea
from mountpoint.staging.staged_file import Progress, StagedFile
from mountpoint.upload.upload import Upload

#: The kind of a staged file's record in the session's log.
RECORD = "staged"


class StagedWriter:
    """A staged file: the state that all its handles share. Thread-safe.

    `base`: the object that is changed; None: the file starts empty. `condition` is that of the
    first upload without a base. `new`: the file was created here, so the kernel has no pages of an
    earlier version. `joining` is held to join a file, and to be the last to leave it.
    """

    def __init__(
        self,
        inode: Inode,
        context: WriteContext,
        area: StagingArea,
        joining: threading.Lock,
        *,
        base: ObjectInfo | None,
        condition: Condition,
        kept: FileAttributes,
        new: bool,
        part_bytes: int,
    ) -> None:
        # dependencies
        self.inode = inode
        self._mount = context
        self.file = StagedFile(
            area,
            inode.key,
            base,
            fetch=context.fetch,
            begin=self._begin,
            part_bytes=part_bytes,
            stopping=context.retry_policy.stopping,
            on_progress=self.note,
        )
        # constants
        self._condition = condition
        self._new = new
        # mutable, guarded by _joining
        self._joining = joining
        self._handles: set[StagedHandle] = set()
        # mutable, guarded by _settling
        self._settling = threading.Lock()
        keeps = context.attribute_store.keeps
        self._kept = kept if keeps else NOTHING  # what the object is to keep, except its time
        self._set_ns: int | None = None  # the time, if it was set after the last write
        self._tried: FileAttributes | None = None  # attributes of the last copy that was tried

    # --- what it is ---

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.file.size_bytes

    @property
    def pending_bytes(self) -> int:
        """How many bytes S3 may lack: all of a changed file, as the close decides what is sent."""
        return self.file.size_bytes if self.file.dirty else 0

    @property
    def mtime_ns(self) -> int:
        """The time of the last write, or the time that was set after it."""
        if self._set_ns is not None:
            return self._set_ns
        kept_ns = None if self.file.dirty else self._stored_attributes.mtime_ns
        return self.file.mtime_ns if kept_ns is None else kept_ns

    @property
    def kept(self) -> FileAttributes:
        """The attributes that the object is to keep, except its time."""
        return self._kept

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more."""
        return self.file.unlinked

    @property
    def survives(self) -> bool:
        """See Writer."""
        in_session = self._mount.session is not None
        return in_session and (not self.removed or self.file.progress.journaled)

    @property
    def _is_stored(self) -> bool:
        """Whether there is an object under its key."""
        return self.file.base is not None or not self._new

    @property
    def _stored_attributes(self) -> FileAttributes:
        """The attributes that the object in S3 has."""
        base, keeps = self.file.base, self._mount.attribute_store.keeps
        return parsed(base.metadata) if base is not None and keeps else NOTHING

    # --- its session ---

    def note(self) -> None:
        """Note the file for another process of this mount, if it is the file of its inode."""
        session = self._mount.session
        if session is None or self._mount.local.writer(self.inode) is not self:
            return
        parent = self.inode.parent or self.inode
        base = self.file.base
        session.note(
            RECORD,
            self.inode.number,
            {
                "parent": parent.number,
                "name": text_of(self.inode.name),
                "key": text_of(self.file.key),
                "base": None if base is None else fields_of(base),
                "new": self._new,
                "removed": self.removed,
                "progress": self.file.progress,
                "kept": astuple(self._kept),
                "set_ns": self._set_ns,
            },
        )

    def go_on(self, key: bytes, progress: Progress, set_ns: int | None, *, removed: bool) -> None:
        """Go on with the file of another process of this mount. Raises as StagedFile."""
        self.file.go_on(key, progress, self._mount.newest_of, removed=removed)
        self._set_ns = set_ns
        if removed:
            self._mount.inodes.disown(self.inode)
        self.take_name()

    # --- its name ---

    def take_name(self) -> bool:
        """Be the file of its name, or of its inode alone if it was removed; False if another is.

        The file holds its inode: one that could not be uploaded is found by its name also when it
        has no handles, and the kernel has forgotten it.
        """
        local = self._mount.local
        if self.removed:
            local.add_removed(self)
        elif not local.add_file(self):
            return False
        self._mount.inodes.opened(self.inode)
        return True

    def leave_name(self) -> None:
        """Be the file of its name no longer."""
        if self._mount.local.remove_file(self):
            self._mount.inodes.released(self.inode)

    # --- its handles ---

    def join_again(self, opener: int, *, writes: bool) -> "StagedHandle":
        """Open a handle that another process of this mount had open. It counts as one that wrote.

        The session does not say through which handles the file was changed.
        """
        handle = StagedHandle(self, opener, writes=writes, changed=writes and self.file.dirty)
        handle.wrote = writes
        self._handles.add(handle)
        return handle

    def join(self, flags: int, process: int) -> "StagedHandle":
        """Open another handle (`joining` held). O_TRUNC counts as a change."""
        changed = bool(flags & os.O_TRUNC)
        handle = StagedHandle(self, process, writes=may_write(flags), changed=changed)
        self._handles.add(handle)
        return handle

    def write(self, offset: int | None, data: bytes) -> int:
        """Write at any offset, or at the end (None); return the number of bytes."""
        written = self.file.write(offset, data, self._mount.claim)
        self._written()
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros, for a program that has it open."""
        self.file.truncate(size_bytes, self._mount.claim)
        self._written()

    def _written(self) -> None:
        if self._set_ns is not None:
            self._set_ns = None
            self.note()

    def upload(self) -> None:
        """Upload what has changed, with its attributes; return when it is in S3."""
        with self._mount.key_locks.shared(lambda: self.inode.key):
            self._store()
            self._add_attributes()

    def release(self, handle: "StagedHandle") -> None:
        """Close a handle. The last close also removes the file from the disk, once it is in S3."""
        with self._mount.key_locks.shared(lambda: self.inode.key):
            self._release(handle)

    def _release(self, handle: "StagedHandle") -> None:
        if handle.changed and handle.is_lost and self.file.dirty:
            self._give_up(handle)
            raise WriterKilled("the process that wrote the file was killed")
        with self._joining:
            self._handles.discard(handle)
            last = not self._handles
        if last:
            self.file.await_upload()  # of a process that was killed while it waited for it
        if handle.changed or (last and self.file.failed):
            self._store()
        if not last:
            return
        if self.file.dirty and not self.file.failed:
            self._drop()  # every process that changed it was killed
            return
        while not self._leave(complete=True):
            try:
                self._add_attributes()
            except OperationError:
                self._leave()  # the object exists, whatever became of its attributes
                raise

    def truncate_alone(self, handle: "StagedHandle", size_bytes: int) -> None:
        """Give the file another size through a handle for that, and close it.

        The file is uploaded at once, unless other programs are writing it. If that fails, the file
        is as before.
        """
        with self._mount.key_locks.shared(lambda: self.inode.key):
            try:
                # Not claimed: the program may be killed while the file is uploaded.
                self.file.truncate(size_bytes)
                self._written()
                handle.wrote = handle.changed = True
                if self._is_changed(but=handle):
                    handle.changed = False  # the others upload it, with what they have written
                else:
                    self._store(keep=False)
            except OperationError:
                self._give_up(handle)
                raise
            self._release(handle)

    def leave(self, handle: "StagedHandle") -> None:
        """Close a handle that leaves nothing to upload."""
        with self._joining:
            self._handles.discard(handle)
        self._leave()

    def discard(self) -> None:
        """Discard a file that could not be opened after all."""
        self.file.unlink(lambda: None)
        self.file.close()

    # --- Writer ---

    def set_attributes(self, attributes: FileAttributes) -> bool:
        """See Writer. Raises NotPermitted if they cannot be kept."""
        with self._joining:
            if self._mount.local.writer(self.inode) is not self:
                return False
            if self._mount.attribute_store.keeps:
                check_size(0 if self.file.dirty else self.size_bytes)
                with self._settling:
                    self._kept = self._kept.updated(replace(attributes, mtime_ns=None))
                    self._tried = None
            if attributes.mtime_ns is not None:
                self._set_ns = attributes.mtime_ns
            self.note()
            return True

    def unlink(self) -> bool:
        """See Writer."""
        mount, stored, inode = self._mount, self._is_stored, self.inode
        if stored:
            mount.check_may_delete()

        def delete() -> None:
            if stored:
                mount.delete(self.file.key)

        with mount.key_locks.alone(lambda: [inode.key]):
            if not self._orphan(delete):
                return False
            mount.local.add_directory(inode.directory)
            mount.caches.changed(inode.directory, inode.name, None)
            return True

    def is_closing(self, *, replaced: bool) -> bool:
        """See Writer: a staged file can be renamed and replaced at any time."""
        return False

    def await_end(self) -> None:
        """Do nothing."""

    def displace(self, move: Callable[[], None]) -> None:
        """See Writer. If `move` fails, the file keeps its name and its content."""
        if not self._mount.config.allow_overwrite:
            raise file_exists()
        if not self._orphan(move):
            move()

    def rename(self, parent: Inode, name: bytes, condition: Condition) -> bool:
        """See Writer."""
        mount, file, inode = self._mount, self.file, self.inode
        directory, old = inode.directory, inode.name
        key = parent.key + name
        try:
            # StagedFile does not know of an object that it replaces under its new name, nor of one
            # that has to leave its old name.
            if condition != NEW or (self._is_stored and file.base is None):
                self._store()
            if file.key != key:  # equal if an earlier rename of its directory failed midway
                file.move(key, lambda base: mount.copies.move(base, key, condition=condition))
        except BadHandle:
            return False
        mount.local.rename_file(self, lambda: mount.inodes.moved(inode, parent, name))
        self.note()
        mount.caches.changed(parent.key, name, file.base)
        mount.caches.changed(directory, old, None)
        return True

    def check_movable(self) -> None:
        """Do nothing: a staged file can be renamed at any time."""

    def directory_moved(self) -> None:
        """See Writer."""
        if self.file.key != self.inode.key:
            self._follow(self.inode.key)

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Take the key of the object, which is renamed with its directory."""
        if self.file.key == source.key:
            self._follow(copy.key, source, copy)

    def _follow(
        self, key: bytes, source: ObjectInfo | None = None, copy: ObjectInfo | None = None
    ) -> None:
        """Give the file another key. Its base becomes `copy` if that is a copy of its base."""

        def moved(base: ObjectInfo) -> ObjectInfo:
            if source is not None and copy is not None and same_etag(source.etag, base.etag):
                return copy
            return replace(base, key=key)  # others have replaced it: the upload will report that

        self.file.move(key, moved)

    # --- its uploads ---

    def _begin(self, key: bytes, base: ObjectInfo | None) -> Upload:
        mount, size_bytes = self._mount, self.file.size_bytes
        if base is None:
            metadata = {}
            if mount.attribute_store.keeps:
                metadata = formatted(replace(self._kept, mtime_ns=self.mtime_ns))
            return mount.uploads.upload(
                key, condition=self._condition, metadata=metadata, known_bytes=size_bytes
            )
        options = mount.copies.options_of(base)
        with self._settling:
            options, _, self._kept = mount.attribute_store.on_base(
                options, self._stored_attributes, self._kept, self.mtime_ns
            )
        return mount.uploads.upload(
            key, condition=unchanged(base), options=options, known_bytes=size_bytes
        )

    def _store(self, *, keep: bool = True) -> None:
        """Upload what has changed. After this, a killed process no longer discards it."""
        if not self.file.dirty:
            return
        with self._joining:
            changed = [each for each in self._handles if each.changed]
            for each in changed:
                each.changed = False
        try:
            info = self.file.sync(keep=keep)
        except OperationError:
            for each in () if keep else changed:
                each.changed = True
            raise
        if info is not None:
            self._tell(info)

    def _add_attributes(self) -> None:
        """Give the object the attributes that were set since its upload.

        This is tried once, whatever it raises: the object itself is complete, and some stores do
        not return the metadata that they were given.
        """
        if self._mount.local.writer(self.inode) is not self or not self._has_attributes_left():
            return
        wanted = self._tried = replace(self._kept, mtime_ns=self._set_ns)
        store = self._mount.attribute_store
        self.file.move(self.file.key, lambda base: store.keep(base, wanted))
        if self.file.base is not None:
            self._tell(self.file.base)

    def _has_attributes_left(self) -> bool:
        """Whether the object has yet to get attributes."""
        wanted = replace(self._kept, mtime_ns=self._set_ns)
        if self.file.base is None or self.file.unlinked or wanted == self._tried:
            return False
        return self._mount.attribute_store.is_more(self._stored_attributes, wanted)

    def _tell(self, info: ObjectInfo) -> None:
        """Report the new object by its own key: a failed rename may have left the inode another."""
        directory, slash, name = info.key.rpartition(b"/")
        self._mount.caches.changed(directory + slash, name, info)

    # --- its end ---

    def _orphan(self, delete: Callable[[], None]) -> bool:
        """Remove the file's name once `delete` has returned; False: it was closed before."""
        try:
            self.file.unlink(delete, survives=self._mount.session is not None)
        except BadHandle:
            return False
        self._mount.local.remove_name(self)
        # An equal object of this name is another file.
        self._mount.inodes.disown(self.inode)
        if not self.survives:
            self._forget()
        self._leave()
        return True

    def _is_changed(self, *, but: "StagedHandle") -> bool:
        """Whether other handles have changed the file since the last try to upload it."""
        with self._joining:
            return any(each.changed for each in self._handles if each is not but)

    def _give_up(self, handle: "StagedHandle") -> None:
        """Close a handle; revert its changes unless others have changed the file since."""
        back = self._is_changed(but=handle) or self.file.revert()
        self.leave(handle)
        if not back:
            self._drop()

    def _drop(self) -> None:
        """Discard the file if no handle is left."""
        with self._joining:
            if not self._handles:
                self.file.unlink(lambda: None)
                self._close()

    def _leave(self, *, complete: bool = False) -> bool:
        """Let go of the file if it has no handles.

        Returns False if `complete` is set and its object has yet to get attributes.
        """
        with self._joining:
            if self._handles:
                return True
            named = self._mount.local.writer(self.inode) is self
            if complete and named and self._has_attributes_left():
                return False
            self._close()
            return True

    def _close(self) -> None:
        """Let go of a file that is in S3, or was discarded (`joining` held)."""
        if not self.file.close():
            return
        mount, inode, info = self._mount, self.inode, self.file.base
        same_key = info is not None and info.key == inode.key
        if info is not None and same_key and self._new and not self.removed:
            mount.inodes.became(inode, info, 0.0)
        elif self.removed or info is None or not same_key or not mount.readers.became(inode, info):
            mount.inodes.disown(inode, info)  # the kernel may have pages of an earlier version
        self.leave_name()
        self._forget()

    def _forget(self) -> None:
        """Have another process of this mount not know of the file."""
        if self._mount.session is not None:
            self._mount.session.drop(RECORD, self.inode.number)


class StagedHandle:
    """A handle of a staged file; `opener` is the process that opened it.

    `changed`: the file was changed through this handle, and no upload has been tried since. An open
    that creates the file or cuts it to nothing counts as a change. `wrote`: it was changed through
    this handle at any time since the open.
    """

    shared = True
    lane = None

    def __init__(
        self, writer: StagedWriter, opener: int, *, writes: bool, changed: bool = False
    ) -> None:
        # dependencies
        self.writer = writer
        self.inode = writer.inode
        # constants
        self.opener = opener
        self.writes = writes
        # mutable
        self.changed = changed
        self.wrote = False
        self._flushed = False  # a descriptor has been closed, so the process had one
        self._killed = False  # the process that closed a descriptor last was being killed

    @property
    def is_lost(self) -> bool:
        """Whether to discard what was changed, because the process was killed.

        A process that is killed inside open(2) never gets a descriptor, so it never closes one.
        """
        return self._killed or not (self._flushed or self.wrote)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""
        return self.writer.file.read(offset, size)

    def write(self, offset: int, data: bytes, *, appends: bool) -> int:
        """Write at any offset, or at the end; return the number of bytes."""
        if not self.writes:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        written = self.writer.write(None if appends else offset, data)
        self.wrote = self.changed = True  # after it, or an earlier upload would clear it
        return written

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros."""
        self.writer.truncate(size_bytes)
        self.wrote = self.changed = True

    def flush(self, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload the file if the process is its opener."""
        if not self.writes:
            return
        self._flushed, self._killed = True, killed
        kept = self.writer.file.failed and not self.changed
        if process == self.opener and not killed and (self.wrote or kept):
            self.writer.upload()

    def give_up(self, process: int) -> bool:
        """Let the process end: what was written is on the disk, and its upload goes on.

        A write that waits for an upload finds that nobody waits for it (`WriteContext.claim`).
        """
        return True

    def fsync(self) -> None:
        """Upload the file; return when all that was written is in S3."""
        self.writer.upload()

    def release(self) -> None:
        """See StagedWriter."""
        self.writer.release(self)
