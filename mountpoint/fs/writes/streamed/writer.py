"""A file that is streamed to S3: what its handles and its names do with it.

While it is OPEN or UPLOADING (`lifecycle`), its name leads to it (`overlay`). Afterwards its name
leads to its object. Programs that still have it open find it in `StreamedFiles`.

A new file may be renamed after parts of it were sent. Then its upload ends under the old key, and
its object is moved. Threads that end the same upload (fsync and close) do so together: one of them
completes it.
"""

import os
import time
from collections.abc import Callable

from mountpoint.errors import (
    NotPermitted,
    NotSequential,
    OperationError,
    UploadEnding,
    WriterKilled,
)
from mountpoint.fs.inodes import Inode, PageState
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.open_flags import allows, appends, changes, file_exists, may_write
from mountpoint.fs.writes.readers import BEING_READ, BEING_READ_HINT
from mountpoint.fs.writes.streamed.attributes import StreamedAttributes
from mountpoint.fs.writes.streamed.content import StreamedContent
from mountpoint.fs.writes.streamed.lifecycle import (
    ANY_ORDER,
    BEING_WRITTEN,
    Lifecycle,
    State,
    Turns,
)
from mountpoint.s3.client import Condition, ObjectInfo, same_etag
from mountpoint.upload.sequential import SequentialUpload

KILLED = "the process that wrote the file was killed"


class StreamedWriter:
    """A file that is written as one upload after another: what its `StreamedHandle`s share.

    It is made with its first handle, which can write if `writes`. `replaces`: there is an object of
    this name. `appends`: each write goes to the end (O_APPEND). `condition` is that of the first
    upload. `on_settled` is called with the file and its object's key when S3 has all of it.
    Thread-safe; no lock is held while waiting.
    """

    def __init__(
        self,
        inode: Inode,
        context: WriteContext,
        turns: Turns,
        on_settled: "Callable[[StreamedWriter, bytes], None]",
        *,
        condition: Condition,
        kept: FileAttributes,
        writes: bool,
        base: ObjectInfo | None = None,
        replaces: bool = False,
        appends: bool = False,
    ) -> None:
        # dependencies
        self.inode = inode
        self._mount = context
        self._on_settled = on_settled
        # constants
        self._replaces = replaces
        self._appends = appends
        # mutable, guarded by the lock of _life; most are read without it, in single steps
        self._life = Lifecycle(turns)
        self._opens = 1  # its handles
        self._writers = int(writes)  # how many handles have been able to write it
        self._flushed = False  # a descriptor has been closed, so the process had one
        self._killed = False  # the process that closed a descriptor last was being killed
        self._removed_bytes = 0  # its size after it was removed
        self._claimed: SequentialUpload | None = None  # the upload that a thread completes
        self._attributes = StreamedAttributes(context.attribute_store, kept, base)
        self._content = StreamedContent(
            inode, context, self._attributes, self._life.lock, base=base, condition=condition
        )

    # --- what it is ---

    @property
    def size_bytes(self) -> int:
        """The file's size: what was written, or the size that was set if that is larger."""
        return self._removed_bytes if self.removed else self._content.size_bytes

    @property
    def stored_bytes(self) -> int:
        """How many bytes from the file's beginning `base` has."""
        return self._content.stored_bytes

    @property
    def pending_bytes(self) -> int:
        """How many bytes of the file S3 does not have."""
        return self._content.pending_bytes

    @property
    def base(self) -> ObjectInfo | None:
        """The object that there is; None: there is none, or it is replaced."""
        return self._content.base

    @property
    def mtime_ns(self) -> int:
        """The time of the last write, or the time that was set after it."""
        return self._attributes.mtime_ns

    @property
    def kept(self) -> FileAttributes:
        """The attributes that the object is to keep."""
        return self._attributes.kept

    @property
    def _is_stored(self) -> bool:
        """Whether there is an object under its key."""
        return self._replaces or self._content.base is not None

    @property
    def uploaded(self) -> ObjectInfo | None:
        """The object that has all that was written; None: there is none yet."""
        return self._content.base if self._content.upload is None else None

    @property
    def removed(self) -> bool:
        """Whether it has no name any more."""
        return self._life.removed

    @property
    def survives(self) -> bool:
        """See Writer: parts are on their way, which only this process knows."""
        return False

    @property
    def ended(self) -> bool:
        """Whether nothing is left to upload, or never will be."""
        return self._life.ended

    @property
    def is_open(self) -> bool:
        """Whether it has handles."""
        return self._opens > 0

    def check(self) -> None:
        """Raise the error that the file has failed with, if any."""
        upload = self._content.upload
        if upload is not None:
            try:
                upload.check()
            except OperationError:
                if upload is self._content.upload:  # not given up for another one
                    raise
        if self._life.failure is not None:
            raise self._life.failure

    # --- its handles ---

    def join(self, flags: int) -> bool | None:
        """Count another handle; return whether it can write. None: the file cannot be shared."""
        with self._life.lock:
            writes = self._shared_with(flags)
            if writes is not None:
                self._opens += 1
                self._writers += writes
            return writes

    def hold(self) -> bool:
        """Count a handle more for a change by name, until `release`; False if there is none."""
        with self._life.lock:
            if not self._opens:
                return False
            self._opens += 1
            return True

    def _shared_with(self, flags: int) -> bool | None:
        writes, config = may_write(flags), self._mount.config
        if self.removed:
            return writes
        if not self._opens:
            return None
        if appends(flags) and self._appends and allows(config, flags):
            return True
        if self.ended or self._content.upload is None:  # all of it can be read
            return None if changes(flags) else writes and allows(config, os.O_APPEND)
        # A reader must not take it for an empty file, unless it stays empty: a lock (flock(1)).
        may = writes or not self._writers
        if not changes(flags) and (self._replaces or not may):
            return None
        if self.size_bytes or self._life.state is State.UPLOADING:
            return None
        return writes

    def write(self, offset: int | None, data: bytes) -> int:
        """Write the next bytes; return how many. Writing goes on if the upload has ended.

        `offset` None: at the end of the file.
        Raises NotSequential, NotPermitted if the file is being read, and what uploads raise.
        """
        while True:
            try:
                return self._write(offset, data)
            except UploadEnding:  # another program has closed the file at this moment
                pass

    def _write(self, offset: int | None, data: bytes) -> int:
        """Do the same. Raises UploadEnding if another thread begins to complete the upload."""
        ended = not self._life.takes_writes
        if ended:
            self._await_upload()
        if offset is None:
            offset = self.size_bytes
        if ended and self._discards(offset, len(data)):
            return len(data)
        self.check()
        content = self._content
        if self._opens > 1 and offset not in (content.written_bytes, content.size_bytes):
            # Keep what other handles have written.
            raise NotSequential(
                f"a write at {offset}, but the next byte to write is {content.written_bytes}"
            )
        if not self._life.takes_writes:
            self._reopen()
        try:
            written = content.write(offset, data)
        except UploadEnding:
            raise
        except OperationError as error:
            if self._discards(offset, len(data)):
                return len(data)
            self.fail(error)
            raise
        self._attributes.mtime_ns = time.time_ns()
        return written

    def truncate(self, size_bytes: int) -> None:
        """Give the file another size. Raises NotPermitted for one below what was written."""
        while not self._truncate(size_bytes):
            pass  # another program has closed the file at this moment

    def _truncate(self, size_bytes: int) -> bool:
        """Do the same; False if another thread begins to complete the upload."""
        if self.removed:
            self._removed_bytes = size_bytes
            return True
        self._await_upload()
        content = self._content
        if size_bytes == self.size_bytes:
            return True
        stored = self._replaces and content.base is not None
        if not size_bytes and stored and not self._mount.config.allow_overwrite:
            raise file_exists()
        if 0 < size_bytes < content.written_bytes:
            raise NotPermitted(
                "a file that is being written can be truncated only to zero bytes", ANY_ORDER
            )
        if not self._life.takes_writes:
            self._reopen()
        if size_bytes:
            content.set_size(size_bytes)
        else:
            with self._life.lock:
                if not self._life.takes_writes:
                    return False
                self._attributes.forget_time()
                begun = content.restart()
            if begun is not None:
                begun.abort()
        self._attributes.mtime_ns = time.time_ns()
        return True

    def flush(self, *, ends: bool, wrote: bool, killed: bool) -> None:
        """Note that a process closes a descriptor of a handle that can write.

        The upload ends if `ends` (its opener closes it) and there is something to upload: `wrote`
        says whether that handle has written. `killed`: the process is being killed.
        """
        if self.removed:
            return
        self._killed = killed
        try:
            self.check()
        except OperationError as error:
            self.fail(error)
            raise
        if not ends:
            return
        self._life.close()
        upload = self._content.upload
        if upload is None:
            due = self._attributes.left() is not None
        else:
            # A size that was set by name is no handle's own write: any close uploads it.
            due = self.size_bytes > 0 and (wrote or not upload.size_bytes)
        if due:
            self.finish()

    def note_close(self) -> None:
        """Note that a process closes a descriptor, so it had one."""
        self._flushed = True

    def fsync(self) -> None:
        """Upload what S3 lacks; return when it has all that was written."""
        self.check()
        if self._content.upload is not None or self._attributes.left():
            self.finish()

    def give_up(self) -> None:
        """Fail, because the process that waits for the upload is being killed. Does not wait.

        If other programs have the file open, they need the upload.
        """
        if self._opens == 1 and not self.ended:
            self.fail(WriterKilled(KILLED))

    def release(self) -> None:
        """Close a handle. The last one ends the upload."""
        with self._life.lock:
            self._opens -= 1
            if self._opens:
                return
            removed = self.removed
        if removed:
            self._mount.local.remove_file(self)
            return
        self._life.close()
        upload = self._content.upload
        try:
            if self.ended:
                return
            # A process that is killed inside open(2) gets no descriptor, so it never closes one.
            never_had = not self._flushed and not self.size_bytes
            if upload is not None and (self._killed or never_had):
                error = WriterKilled(KILLED)
                self.fail(error)
                raise error
            self.finish()
        finally:
            if upload is not None:
                upload.abort()

    def abort(self) -> None:
        """Abort the upload of a file that could not be opened after all."""
        self._content.abort()

    # --- waiting ---

    def wait_ended(self) -> bool:
        """Wait briefly until nothing is left to upload; return whether that is so."""
        return self._life.wait_ended()

    def wait_turn(self, within_s: float) -> None:
        """Wait for the end of the upload. Raises NotPermitted if it does not end in time."""
        self._life.wait_turn(within_s)

    def wait_closed(self) -> None:
        """Wait very briefly for an empty file of which a descriptor has been closed."""
        if not self.size_bytes:
            self._life.wait_closed()

    def _await_upload(self) -> None:
        """Wait while an upload is being completed, before the next one."""
        while self._life.wait_uploaded():
            self.check()

    # --- Writer ---

    def set_attributes(self, attributes: FileAttributes) -> bool:
        """See Writer. Raises NotPermitted if they can no longer be kept."""
        if self.removed:
            return True
        with self._life.lock:
            if self.ended:
                return False
            self._attributes.note(attributes, self._content.upload, self.size_bytes)
            return True

    def unlink(self) -> bool:
        """See Writer. It counts as a delete only if there is an object to remove."""
        mount, inode, stored = self._mount, self.inode, self._is_stored
        if stored:
            mount.check_may_delete()
        # While this thread holds the key alone, no upload of it is being completed.
        with mount.key_locks.alone(lambda: [inode.key]):
            if self.ended:
                return False
            if stored:
                mount.delete(inode.key)
            with self._life.lock:
                begun, opens = self._remove(), self._opens
            if opens:
                mount.local.remove_name(self)
            else:  # its last close has not seen that
                mount.local.remove_file(self)
            mount.local.add_directory(inode.directory)
            mount.caches.changed(inode.directory, inode.name, None)
        if begun is not None:
            begun.abort()
        return True

    def is_closing(self, *, replaced: bool) -> bool:
        """See Writer. The end of a replaced file needs its key, which the rename will hold."""
        return self._life.ending and not self.ended and (replaced or self._is_stored)

    def await_end(self) -> None:
        """See Writer."""
        self.wait_ended()

    def displace(self, move: Callable[[], None]) -> None:
        """See Writer. The end of the file would wait for the caller's lock on its key."""
        self._life.check_ended()
        move()

    def rename(self, parent: Inode, name: bytes, condition: Condition) -> bool:
        """See Writer. Only a new file can be renamed while it is being written."""
        with self._life.lock:
            if not self._is_stored and not self.ended:
                mount = self._mount
                mount.local.rename_file(self, lambda: mount.inodes.moved(self.inode, parent, name))
                self._content.condition = condition
                self._content.rename_upload()
                return True
        self._life.check_ended()
        return False

    def check_movable(self) -> None:
        """See Writer. The beginning of the file may be in S3 under its present name."""
        if self._content.base is not None or self._mount.config.incremental_upload:
            self._life.check_ended()

    def directory_moved(self) -> None:
        """See Writer."""
        self._content.rename_upload()

    # --- what becomes of its object after the upload ---

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> bool:
        """Take over `copy` if it was made of this file's object; return whether it was."""
        with self._life.lock:
            base = self._content.base
            follows = self.ended and base is not None and same_etag(base.etag, source.etag)
            if follows:
                self._content.based_on(copy)
            return follows

    def object_deleted(self) -> None:
        """Let the handles of a file whose object has been deleted go on."""
        with self._life.lock:
            if self.ended:
                self._remove()

    def attributes_set(self, before: ObjectInfo, info: ObjectInfo) -> None:
        """Note that the object has other attributes, if it was `before`. Its bytes are the same."""
        base = self._content.base
        if base is not None and base.etag == before.etag:
            self._content.based_on(info)
            self._attributes.became(info)

    # --- its end ---

    def finish(self) -> None:
        """Complete the upload of the file, under its name and with its attributes."""
        with self._mount.key_locks.shared(lambda: self.inode.key):
            self._complete()

    def _complete(self) -> None:
        content = self._content
        with self._life.lock:
            if self.removed:
                return
            self._life.begin_upload()
            upload, info = content.upload, content.base
        refused: OperationError | None = None
        try:
            if upload is not None:
                upload.rename(self.inode.key, content.condition)
                with self._life.lock:
                    if upload is content.upload:
                        self._attributes.send_with(upload)
                info = content.finish(upload)
                if not self._claim(upload):  # another thread does the rest, or has done it
                    while content.upload is upload and not self.wait_ended():
                        pass
                    self.check()
                    return
            assert info is not None
            while not self._settle(upload, info):
                if upload is not None and info.key != self.inode.key:
                    copies = self._mount.copies
                    info = copies.move(info, self.inode.key, condition=content.condition)
                    continue
                try:
                    info = self._attributes.added(info)
                except OperationError as error:
                    refused = error  # the object exists all the same
        except OperationError as error:
            self.fail(error)
            raise
        if upload is not None:
            upload.abort()  # only releases resources: all of it is in S3
        if refused is not None:
            raise refused

    def _claim(self, upload: SequentialUpload) -> bool:
        """Whether the caller is the one that has to complete this upload."""
        with self._life.lock:
            if upload is not self._content.upload or upload is self._claimed:
                return False
            self._claimed = upload
            return True

    def _settle(self, upload: SequentialUpload | None, info: ObjectInfo) -> bool:
        """Note that the upload is complete; False if its name or attributes have yet to change."""
        mount, content, inode = self._mount, self._content, self.inode
        with self._life.lock:
            if upload is not content.upload:
                return True  # another thread has done so
            if upload is not None and info.key != inode.key:
                return False
            if self._attributes.left():
                return False
            if upload is not None or info is not content.base:
                # Listed before it is no longer a file being written: it is visible all the time.
                mount.caches.changed(inode.directory, inode.name, info)
                # The kernel has no pages of the file that was appended to, or not its last one.
                paged = PageState.NOT if self._appends else PageState.SOME
                mount.inodes.became(inode, info, 0.0, paged=paged)
                content.stored(info)
            self._on_settled(self, info.key)
            mount.local.remove_file(self)
            self._life.settle()
            return True

    def fail(self, error: Exception) -> None:
        """Discard unuploaded writes and reject later ones: the upload has failed for good."""
        inode = self.inode
        with self._life.lock:
            upload = self._content.upload
            if upload is not None:
                upload.fail(error)
            if self._mount.local.remove_file(self):
                self._mount.inodes.disown(inode)
                self._mount.caches.changed(inode.directory, inode.name, None)
            self._life.fail(error)

    def _reopen(self) -> None:
        """Start writing again to a file whose upload has ended."""
        if self._mount.readers.are_there(self.inode):
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        with self._life.lock:
            if self.removed or not self.ended:
                return  # another thread was faster
            self.add_name()
            self._life.reopen()

    def add_name(self) -> None:
        """Make the file's name lead to it. Raises NotPermitted if another one is written there."""
        if not self._mount.local.add_file(self):
            self._content.abort()
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)

    def _remove(self) -> SequentialUpload | None:
        """Discard the file without an error; return the upload to abort (lock held)."""
        self._removed_bytes = self.size_bytes
        self._life.remove()
        return self._content.discard()

    def _discards(self, offset: int, size_bytes: int) -> bool:
        """Whether the file has been removed. A write to it then changes its size only."""
        if self.removed:
            self._removed_bytes = max(self._removed_bytes, offset + size_bytes)
        return self.removed
