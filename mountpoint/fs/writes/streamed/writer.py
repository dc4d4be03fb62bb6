"""A file that is streamed to S3: its states, and the steps between them.

    OPEN -> UPLOADING -> SETTLED -> OPEN ...     closed or fsync'ed, and perhaps written again
    OPEN, UPLOADING -> FAILED                    unuploaded writes are discarded, later ones fail
    OPEN, SETTLED -> REMOVED                     it has lost its name: writes are discarded

While a file is OPEN or UPLOADING, its name leads to it (`overlay`). Afterwards its name leads to
its object. Programs that still have it open find it in `StreamedFiles`.

The object of a file has its name as long as the file is OPEN or SETTLED. While it is UPLOADING, a
rename may overtake the upload, which then ends under its old key, and the object is moved. Threads
that end the same upload (fsync and close) do so together: one of them completes it.
"""

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from enum import Enum

from mountpoint.copy.objects import same
from mountpoint.errors import (
    Interrupted,
    NotPermitted,
    NotSequential,
    OperationError,
    WriterKilled,
)
from mountpoint.fs.inodes import Inode, Paged
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fs.writes.context import WriteContext, unchanged
from mountpoint.fs.writes.open_flags import allows, appends, changes, may_write
from mountpoint.fs.writes.readers import BEING_READ, BEING_READ_HINT
from mountpoint.fs.writes.streamed.attributes import StreamedAttributes
from mountpoint.fs.writes.streamed.content import StreamedContent
from mountpoint.s3.client import Condition, ObjectInfo
from mountpoint.upload.sequential import Sequential

#: How long to wait for the object of a file that has been closed (`touch a; cat a`), or for the end
#: of a handle that has been closed (`cat a; echo > a`). The kernel reports the last close shortly
#: after the program has gone on, and the next program's open may overtake it.
SETTLE_S = 1.0
#: How many threads may wait so. The writer's own requests need one that does not.
MOST_WAITING = 4
#: How often a waiting thread checks whether the mount is going away.
LOOK_S = 0.25
#: How long an empty file is expected to be closed for good, once one descriptor of it has been
#: closed. Shells close one of two, and keep the other.
SOON_S = 0.2

BEING_WRITTEN = "the file is being written"
ANY_ORDER = "mount with --staged-writes DIR to read and change files while they are being written"


class State(Enum):
    """The states of a streamed file."""

    OPEN = "open"
    UPLOADING = "uploading"
    SETTLED = "settled"
    FAILED = "failed"
    REMOVED = "removed"


#: States in which nothing is left to upload, or never will be.
_ENDED = frozenset({State.SETTLED, State.FAILED, State.REMOVED})


class StreamedWriter:
    """A file that is written as one upload after another: what its `StreamedHandle`s share.

    It is made with its first handle, which can write if `writes`. `replaces`: there is an object of
    this name. `appends`: each write goes to the end (O_APPEND). `condition` is that of the next
    upload. Thread-safe; no lock is held while waiting.
    """

    def __init__(
        self,
        inode: Inode,
        files: "StreamedFiles",
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
        self._files = files
        self._mount = files.context
        # constants
        self.replaces = replaces
        self.appends = appends
        # mutable, guarded by _lock; most are read without it, in single steps of the interpreter
        self._lock = threading.Lock()
        self._state = State.OPEN
        self._ended = threading.Event()  # set in the states of _ENDED
        self._failure: Exception | None = None
        self._condition = condition
        self._opens = 1  # its handles
        self._writers = int(writes)  # how many handles have been able to write it
        self._closing = False  # its opener has closed a descriptor of it
        self._flushed = False  # a descriptor has been closed, so the process had one
        self._killed = False  # the process that closed a descriptor last was being killed
        self._removed_bytes = 0  # its size after it was removed
        self._claimed: Sequential | None = None  # the upload that a thread completes
        self._attributes = StreamedAttributes(self._mount.attribute_store, kept, base)
        self._content = StreamedContent(base, self._begin)

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
    def is_stored(self) -> bool:
        """Whether there is an object under its key."""
        return self.replaces or self._content.base is not None

    @property
    def uploaded(self) -> ObjectInfo | None:
        """The object that has all that was written; None: there is none yet."""
        return self._content.base if self._content.upload is None else None

    @property
    def removed(self) -> bool:
        """Whether it has no name any more."""
        return self._state is State.REMOVED

    @property
    def ended(self) -> bool:
        """Whether nothing is left to upload, or never will be."""
        return self._state in _ENDED

    @property
    def is_open(self) -> bool:
        """Whether it has handles."""
        return self._opens > 0

    def check(self) -> None:
        """Raise the error that the file has failed with, if any."""
        upload = self._content.upload
        if upload is not None:
            upload.check()
        if self._failure is not None:
            raise self._failure

    # --- its handles ---

    def join(self, flags: int) -> bool | None:
        """Count another handle; return whether it can write. None: the file cannot be shared."""
        with self._lock:
            writes = self._shared_with(flags)
            if writes is not None:
                self._opens += 1
                self._writers += writes
            return writes

    def _shared_with(self, flags: int) -> bool | None:
        writes, config = may_write(flags), self._mount.config
        if self.removed:
            return writes
        if not self._opens:
            return None
        if appends(flags) and self.appends and allows(config, flags):
            return True
        if self.ended or self._content.upload is None:  # all of it can be read
            return None if changes(flags) else writes and allows(config, os.O_APPEND)
        # A reader must not take it for an empty file, unless it stays empty: a lock (flock(1)).
        may = writes or not self._writers
        if not changes(flags) and (self.replaces or not may):
            return None
        if self.size_bytes or self._state is State.UPLOADING:
            return None
        return writes

    def write(self, offset: int, data: bytes) -> int:
        """Write the next bytes; return how many. Writing goes on if the upload has ended.

        Raises NotSequential, NotPermitted if the file is being read, and what uploads raise.
        """
        if self._state is not State.OPEN:
            self._await_upload()
            if self._discards(offset, len(data)):
                return len(data)
        self.check()
        content = self._content
        if self._opens > 1 and offset not in (content.written_bytes, content.size_bytes):
            # Keep what other handles have written.
            raise NotSequential(
                f"a write at {offset}, but the next byte to write is {content.written_bytes}"
            )
        if self._state is not State.OPEN:
            self._reopen()
        try:
            written = content.write(offset, data)
        except OperationError as error:
            if self._discards(offset, len(data)):
                return len(data)
            self.fail(error)
            raise
        self._attributes.mtime_ns = time.time_ns()
        return written

    def truncate(self, size_bytes: int) -> None:
        """Give the file another size. Raises NotPermitted for one below what was written."""
        if self.removed:
            self._removed_bytes = size_bytes
            return
        self._await_upload()
        content = self._content
        if size_bytes == self.size_bytes:
            return
        stored = self.replaces and content.base is not None
        if not size_bytes and stored and not self._mount.config.allow_overwrite:
            raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")
        if 0 < size_bytes < content.written_bytes:
            raise NotPermitted(
                "a file that is being written can be truncated only to zero bytes", ANY_ORDER
            )
        if self._state is not State.OPEN:
            self._reopen()
        if not size_bytes:
            self._attributes.forget_time()
            content.restart()
        else:
            content.set_size(size_bytes)
        self._attributes.written()

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
        self._closing = True
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

    def release(self) -> None:
        """Close a handle. The last one ends the upload."""
        with self._lock:
            self._opens -= 1
            if self._opens:
                return
        if self.removed:
            self._mount.local.discard(self)
            return
        self._closing = True
        upload = self._content.upload
        try:
            if self.ended:
                return
            # A process that is killed inside open(2) gets no descriptor, so it never closes one.
            never_had = not self._flushed and not self.size_bytes
            if upload is not None and (self._killed or never_had):
                error = WriterKilled("the process that wrote the file was killed")
                self.fail(error)
                raise error
            self.finish()
        finally:
            if upload is not None:
                upload.abort()

    def abort(self) -> None:
        """Abort the upload of a file that could not be opened after all."""
        upload = self._content.upload
        if upload is not None:
            upload.abort()

    # --- waiting ---

    def wait_ended(self) -> bool:
        """Wait briefly until nothing is left to upload; return whether that is so."""
        return self._ended.wait(SETTLE_S)

    def wait_closed_soon(self) -> None:
        """Wait briefly for an empty file of which a descriptor has been closed."""
        if self._closing and not self.size_bytes:
            self._ended.wait(min(SOON_S, SETTLE_S))

    def wait_turn(self, within_s: float = 0.0) -> None:
        """Wait for the end of the upload. Raises NotPermitted if it does not end in time."""
        if self._is_ending:
            within_s = max(within_s, SETTLE_S)
        waiting = self._files.waiting
        if waiting.acquire(blocking=False):
            try:
                for _ in range(math.ceil(within_s / LOOK_S)):
                    if self._ended.wait(LOOK_S):
                        return
                    if self._mount.retry_policy.stopping.is_set():
                        raise Interrupted("the mount is ending")
            finally:
                waiting.release()
        if not self.ended:
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)

    @property
    def _is_ending(self) -> bool:
        return self._closing or self._state is State.UPLOADING

    def _await_upload(self) -> None:
        """Wait while an upload is being completed, before the next one."""
        while self._state is State.UPLOADING and not self._ended.wait(LOOK_S):
            self.check()

    # --- Writer ---

    def set_attributes(self, attributes: FileAttributes) -> bool:
        """See Writer. Raises NotPermitted if they can no longer be kept."""
        if self.removed:
            return True
        with self._lock:
            if self.ended:
                return False
            self._attributes.note(attributes, self._content.upload, self.size_bytes)
            return True

    def unlink(self) -> bool:
        """See Writer. It counts as a delete only if there is an object to remove."""
        mount, inode, stored = self._mount, self.inode, self.is_stored
        if stored:
            mount.check_may_delete()
        # While this thread holds the key alone, no upload of it is being completed.
        with mount.key_locks.alone(lambda: [inode.key]):
            if self.ended:
                return False
            if stored:
                mount.delete(inode.key)
            with self._lock:
                begun = self._remove()
            mount.local.forget_name(self)
            mount.local.keep(inode.directory)
            mount.caches.changed(inode.directory, inode.name, None)
        if begun is not None:
            begun.abort()
        return True

    def await_end(self, *, replaced: bool) -> None:
        """See Writer. The end of a replaced file needs its key, which the rename will hold."""
        if self._is_ending and (replaced or self.is_stored):
            self.wait_ended()

    def displace(self, move: Callable[[], None]) -> None:
        """See Writer. Waits if the file is being closed."""
        self.wait_turn()
        move()

    def rename(self, parent: Inode, name: bytes, condition: Condition) -> bool:
        """See Writer. Only a new file can be renamed while it is being written."""
        with self._lock:
            if not self.is_stored and not self.ended:
                mount = self._mount
                mount.local.rename(self, lambda: mount.inodes.moved(self.inode, parent, name))
                self._condition = condition
                self._rename_upload()
                return True
        self.wait_turn()
        return False

    def check_movable(self) -> None:
        """See Writer. The beginning of the file may be in S3 under its present name."""
        if self._content.base is not None or self._mount.config.incremental_upload:
            self.wait_turn()

    def directory_moved(self) -> None:
        """See Writer."""
        self._rename_upload()

    def _rename_upload(self) -> None:
        """Give the upload the file's new key. Parts that were sent are moved at the end."""
        upload = self._content.upload
        if upload is not None:
            upload.rename(self.inode.key, self._condition)

    # --- what becomes of its object after the upload ---

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> bool:
        """Take over `copy` if it was made of this file's object; return whether it was."""
        with self._lock:
            base = self._content.base
            follows = self.ended and base is not None and same(base.etag, source.etag)
            if follows:
                self._based_on(copy)
            return follows

    def object_deleted(self) -> None:
        """Let the handles of a file whose object has been deleted go on."""
        with self._lock:
            if self.ended:
                self._remove()

    def attributes_set(self, before: ObjectInfo, info: ObjectInfo) -> None:
        """Note that the object has other attributes, if it was `before`. Its bytes are the same."""
        base = self._content.base
        if base is not None and base.etag == before.etag:
            self._based_on(info)
            self._attributes.became(info)

    def _based_on(self, info: ObjectInfo) -> None:
        self._content.base, self._condition = info, unchanged(info)

    # --- its end ---

    def finish(self) -> None:
        """Complete the upload of the file, under its name and with its attributes."""
        with self._mount.key_locks.shared(lambda: self.inode.key):
            self._complete()

    def _complete(self) -> None:
        content = self._content
        with self._lock:
            if self.removed:
                return
            if self._state is State.OPEN:
                self._become(State.UPLOADING)
            upload, info = content.upload, content.base
        refused: OperationError | None = None
        try:
            if upload is not None:
                upload.rename(self.inode.key, self._condition)
                with self._lock:
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
                    info = copies.move(info, self.inode.key, condition=self._condition)
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

    def _claim(self, upload: Sequential) -> bool:
        """Whether the caller is the one that has to complete this upload."""
        with self._lock:
            if upload is not self._content.upload or upload is self._claimed:
                return False
            self._claimed = upload
            return True

    def _settle(self, upload: Sequential | None, info: ObjectInfo) -> bool:
        """Note that the upload is complete; False if its name or attributes have yet to change."""
        mount, content, inode = self._mount, self._content, self.inode
        with self._lock:
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
                paged = Paged.NOT if self.appends else Paged.SOME
                mount.inodes.became(inode, info, 0.0, paged=paged)
                content.stored(info)
                self._condition = unchanged(info)
            self._files.settled(self, info.key)
            mount.local.discard(self)
            self._become(State.SETTLED)
            return True

    def fail(self, error: Exception) -> None:
        """Discard unuploaded writes and reject later ones: the upload has failed for good."""
        inode = self.inode
        with self._lock:
            self._failure = self._failure or error
            upload = self._content.upload
            if upload is not None:
                upload.fail(error)
            if self._mount.local.discard(self):
                self._mount.inodes.disown(inode)
                self._mount.caches.changed(inode.directory, inode.name, None)
            if not self.removed:
                self._become(State.FAILED)

    # --- its states ---

    def _become(self, state: State) -> None:
        """Change the state (lock held)."""
        self._state = state
        if state in _ENDED:
            self._ended.set()
        else:
            self._ended.clear()

    def _reopen(self) -> None:
        """Start writing again to a file whose upload has ended."""
        if self._mount.readers.are_there(self.inode):
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        with self._lock:
            if self._state not in (State.SETTLED, State.FAILED):
                return  # another thread was faster
            self._files.add(self)
            self._closing = False
            self._become(State.OPEN)

    def _remove(self) -> Sequential | None:
        """Discard the file without an error; return the upload to abort (lock held)."""
        self._removed_bytes = self.size_bytes
        self._become(State.REMOVED)
        return self._content.discard()

    def _discards(self, offset: int, size_bytes: int) -> bool:
        """Whether the file has been removed. A write to it then changes its size only."""
        if self.removed:
            self._removed_bytes = max(self._removed_bytes, offset + size_bytes)
        return self.removed

    def _begin(self, base: ObjectInfo | None) -> Sequential:
        """Return an upload under the file's present name, with its attributes."""
        mount, key, condition = self._mount, self.inode.key, self._condition
        if mount.config.incremental_upload:
            metadata = self._attributes.of_new()
            return mount.uploads.appending(
                key, base=base, condition=condition, metadata=metadata if base is None else {}
            )
        if base is None:
            metadata = self._attributes.of_new()
            return mount.uploads.upload(key, condition=condition, metadata=metadata)
        options = mount.copies.options_of(base)
        with self._lock:
            options = self._attributes.on_base(options)
        return mount.uploads.upload(
            key, condition=condition, options=options, known_bytes=base.size_bytes
        )


class StreamedFiles:
    """The streamed files of a mount: being written, or uploaded and still open. Thread-safe."""

    def __init__(self, context: WriteContext) -> None:
        # dependencies
        self.context = context
        # mutable
        self.waiting = threading.BoundedSemaphore(MOST_WAITING)  # threads that wait for a turn
        #: Files that are uploaded and still open, by key; each use is one step of the interpreter.
        self._settled: weakref.WeakValueDictionary[bytes, StreamedWriter]
        self._settled = weakref.WeakValueDictionary()

    def add(self, writer: StreamedWriter) -> None:
        """Add a file that is being written. Raises NotPermitted if another one has its name."""
        if not self.context.local.add(writer):
            writer.abort()
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)

    def settled(self, writer: StreamedWriter, key: bytes) -> None:
        """Remember a file that has been uploaded to a key, as long as it is open."""
        self._settled[key] = writer

    def pop(self, key: bytes) -> StreamedWriter | None:
        """Forget and return a file that has been uploaded to a key, if it is open."""
        return self._settled.pop(key, None)

    def uploaded(self, key: bytes) -> StreamedWriter | None:
        """Return a file that has been uploaded to a key, if it is open."""
        return self._settled.get(key)

    def being_written(self, inode: Inode) -> StreamedWriter | None:
        """Return an inode's file that is being written."""
        writer = self.context.local.writer(inode)
        return writer if isinstance(writer, StreamedWriter) else None

    def find(self, inode: Inode) -> StreamedWriter | None:
        """Return an inode's file that is being written, or is open for writing after its upload."""
        writer = self.being_written(inode)
        if writer is not None:
            return writer
        settled = self._settled.get(inode.key)
        found = settled is not None and settled.inode is inode and settled.is_open
        return settled if found else None
