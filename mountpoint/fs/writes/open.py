"""Open files for writing: alone, or together with other writers.

A file that is being written has one upload. Several programs can share it if each of them only
appends, or while nothing has been written: such files serve as locks. They share the inode, so the
kernel knows one size of the file, and a lock on it (flock) works between them. A program that
cannot share the upload waits briefly for its end.

A file that has been uploaded and is still open can be read through its handles, as far as it is in
S3. So its inode has no other readers. A writer that finds readers gets another inode (`readers`).
"""

import math
import os
import threading
import weakref

from mountpoint.config import ChangeConfig
from mountpoint.errors import (
    NO_OPTION,
    BadHandle,
    Interrupted,
    NotFound,
    NotPermitted,
    StaleInode,
    Superseded,
)
from mountpoint.fs.handles import (
    Begin,
    ReadHandle,
    StreamedHandle,
    WriteHandle,
    check_flags,
    unchanged,
)
from mountpoint.fs.heads import newest
from mountpoint.fs.inodes import Inode
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.probe import WriteProof
from mountpoint.fs.writes.readers import BEING_READ, BEING_READ_HINT, Readers
from mountpoint.s3.client import ALWAYS, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

#: How long to wait for the object of a file that has been closed (`touch a; cat a`), or for the end
#: of a handle that has been closed (`cat a; echo > a`). The kernel reports the last close shortly
#: after the program has gone on, and the next program's open may overtake it.
SETTLE_S = 1.0
#: How long a program that appends, or reads and writes, waits for another writer of the file.
TURN_S = 3.0
#: How many threads may wait so. The writer's own requests need one that does not.
MOST_WAITING = 4
#: How often a waiting thread checks whether the mount is going away.
LOOK_S = 0.25
#: How long an empty file is expected to be closed for good, once one descriptor of it has been
#: closed. Shells close one of two, and keep the other.
SOON_S = 0.2

BEING_WRITTEN = "the file is being written"
ANY_ORDER = "mount with --staged-writes DIR to read and change files while they are being written"


class WriteOpener:
    """Opens the files of a mount for writing. Thread-safe; no lock is held while waiting.

    `begin` makes the upload of a file. The methods raise NotPermitted for what no option allows or
    other programs prevent, StaleInode, and S3Errors.
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        proof: WriteProof,
        local: OverlayNames,
        readers: Readers,
        attribute_store: AttributeStore,
        config: ChangeConfig,
        begin: Begin,
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._proof = proof
        self._local = local
        self._readers = readers
        self._attribute_store = attribute_store
        self._config = config
        self._begin = begin
        # mutable
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        #: Files that are uploaded and still open, by key; each use is one step of the interpreter.
        self.settled: weakref.WeakValueDictionary[bytes, WriteHandle]
        self.settled = weakref.WeakValueDictionary()

    def open(self, inode: Inode, flags: int, process: int) -> StreamedHandle | None:
        """Open a file that is to be written, or is being written; None: it is only read.

        O_RDWR alone opens it for reading, as in mountpoint-s3: many programs ask for both and
        only read.
        """
        while True:
            handle = self.open_file(inode)
            if handle is not None:
                if handle.closing and not handle.size_bytes:
                    handle.settled.wait(min(SOON_S, SETTLE_S))
                if not self._is_newest(handle):
                    continue
                opened = self._join(handle, flags, process)
                if opened is not None:
                    return opened
                if not handle.settled.is_set():
                    self.await_end(handle, TURN_S if _takes_turns(flags) else 0.0)
                    continue
            if not _changes(flags):
                return None
            opened = self.change(inode, flags, process, beside=handle)
            if opened is not None:
                return opened

    def is_written(self, inode: Inode) -> bool:
        """Whether an inode is open for writing."""
        return self.open_file(inode) is not None

    def take_over(self, reading: ReadHandle, offset: int | None) -> StreamedHandle:
        """Start writing through a handle that was opened with O_RDWR and has only read so far.

        `offset` is where the write begins, which must be the end of the file. None: the file is cut
        to nothing and written anew. Raises BadHandle, NotPermitted, and what `change` raises.
        """
        inode, process = reading.inode, reading.writer
        if process is None:
            raise BadHandle("the file is open for reading", f"{NO_OPTION}open it for writing")
        size_bytes = inode.info.size_bytes if inode.info is not None else 0
        if offset not in (None, size_bytes):
            raise BadHandle(f"a write at {offset} in a file of {size_bytes} bytes", ANY_ORDER)
        flags = os.O_WRONLY | (os.O_TRUNC if offset is None else os.O_APPEND)
        if not size_bytes and not self._allows(flags):
            flags ^= os.O_TRUNC | os.O_APPEND  # makes no difference for an empty file
        if not self._readers.is_only(inode, SETTLE_S):
            raise NotPermitted(BEING_READ, BEING_READ_HINT)
        opened = self.change(inode, flags, process, reads=True)
        if opened is None:
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)
        return opened

    def open_file(self, inode: Inode) -> WriteHandle | None:
        """Return an inode's file that is being written, or is open for writing after its upload."""
        writer = self._local.writer(inode)
        if isinstance(writer, WriteHandle):
            return writer
        settled = self.settled.get(inode.key)
        return settled if settled is not None and settled.inode is inode and settled.opens else None

    def _is_newest(self, handle: WriteHandle) -> bool:
        """Whether the object that the handle has uploaded is still the newest version.

        Returns False if this mount has changed it in the meantime. Raises StaleInode or NotFound if
        somebody else has replaced or deleted it.
        """
        base = handle.base
        if base is None or handle.upload is not None or handle.removed:
            return True
        try:
            newest(self._client, self._retry_policy, handle.inode)
        except (StaleInode, NotFound):
            same = handle.base is base and handle.upload is None
            if same and self.open_file(handle.inode) is handle:
                raise
            return False
        return True

    def _join(self, handle: WriteHandle, flags: int, process: int) -> StreamedHandle | None:
        """Open a file together with its present writers; None if it cannot be shared."""
        writes = may_write(flags)
        with handle.settling:
            if handle.removed:
                return StreamedHandle(handle, process, writes=writes)
            if not handle.opens:
                return None
            if _appends(flags) and handle.appends and self._allows(flags):
                return StreamedHandle(handle, process, writes=True)
            if handle.settled.is_set() or handle.upload is None:  # all of it can be read
                if _changes(flags):
                    return None
                return StreamedHandle(handle, process, writes=writes and self._allows(os.O_APPEND))
            # A reader must not take it for an empty file, unless it stays empty: a lock (flock(1)).
            may = writes or not handle.writers
            if not _changes(flags) and (handle.replaces or not may):
                return None
            if handle.size_bytes or handle.finishing:
                return None
            return StreamedHandle(handle, process, writes=writes)

    def change(
        self,
        inode: Inode,
        flags: int,
        process: int,
        *,
        reads: bool = False,
        beside: WriteHandle | None = None,
    ) -> StreamedHandle | None:
        """Begin to write a file anew, or at its end; None if another writer came first.

        `reads`: the caller has it open for reading, and no other program has. `beside`: a writer
        that has it open after its upload and cannot be joined. Raises Superseded if the kernel has
        to find another inode for the writer.
        """
        check_flags(flags)
        base, condition, known = None, ALWAYS, inode.info
        if not self._allows(flags):
            if flags & os.O_TRUNC:
                raise NotPermitted("the file exists", "mount with --allow-overwrite to permit it")
            option = "--allow-append" if flags & os.O_APPEND else "--allow-overwrite"
            raise NotPermitted("the file exists", f"mount with {option} to permit it")
        if not flags & os.O_TRUNC:
            # The program writes at the end; or it cuts the file to nothing next, as `sort -o` does.
            try:
                base = newest(self._client, self._retry_policy, inode)
            except (StaleInode, NotFound):
                if self._local.writer(inode) is not None or _is_another(inode.info, known):
                    return None
                raise
            condition = unchanged(base)
        elif known is not None and (reads or self._config.incremental_upload):
            # It must replace the version that it read, and a late part must replace no other.
            condition = unchanged(known)
        self._proof.require(inode.key, condition)
        if not reads:
            # Only now that this is the newest version: the kernel looks up again only once. It
            # drops the pages of a file that is cut to nothing, and of no other.
            paged = inode.paged and base is not None
            handle = self.open_file(inode)
            if handle is not None and handle is not beside:
                return None
            if paged or handle is not None or self._readers.are_there(inode):
                self._readers.leave(inode)
        attribute_store = self._attribute_store
        handle = WriteHandle(
            inode,
            self._begin,
            condition=condition,
            kept=attribute_store.of_replaced(inode)
            if base is None
            else attribute_store.of_base(base),
            base=base,
            replaces=True,
            appends=_appends(flags) and not reads,
        )
        opened = StreamedHandle(handle, process, writes=may_write(flags))
        if not self._local.add(handle):
            if handle.upload is not None:
                handle.upload.abort()
            other = self._local.file(inode.directory, inode.name)
            if other is not None and other.inode is not inode:
                raise Superseded("the file is being written, and has a new inode")
            return None
        if base is not None and _is_another(inode.info, base):  # written here in the meantime
            self._local.discard(handle)
            return None
        if not reads and self._readers.are_there(inode):  # a reader came first and saw no writer
            self._local.discard(handle)
            if handle.upload is not None:
                handle.upload.abort()
            self._readers.leave(inode)
        self._readers.arrived(inode)
        return opened

    def _allows(self, flags: int) -> bool:
        """Whether the options allow opening an existing file for writing with these flags."""
        config = self._config
        if flags & os.O_TRUNC:
            return config.allow_overwrite
        if flags & os.O_APPEND:
            return config.allow_append or config.incremental_upload
        return config.allow_overwrite or config.incremental_upload

    def await_end(self, handle: WriteHandle, within_s: float) -> None:
        """Wait for the end of an upload. Raises NotPermitted if it does not end in time."""
        if handle.closing or handle.finishing:
            within_s = max(within_s, SETTLE_S)
        if self._waiting.acquire(blocking=False):
            try:
                for _ in range(math.ceil(within_s / LOOK_S)):
                    if handle.settled.wait(LOOK_S):
                        return
                    if self._retry_policy.stopping.is_set():
                        raise Interrupted("the mount is ending")
            finally:
                self._waiting.release()
        if not handle.settled.is_set():
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)


def may_write(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def _appends(flags: int) -> bool:
    return bool(flags & os.O_APPEND) and not flags & os.O_TRUNC and may_write(flags)


def _changes(flags: int) -> bool:
    """Whether an open with these flags changes the file; O_RDWR alone does not count."""
    return flags & os.O_ACCMODE == os.O_WRONLY or bool(flags & os.O_TRUNC) or _appends(flags)


def _is_another(info: ObjectInfo | None, known: ObjectInfo | None) -> bool:
    return (info and info.etag) != (known and known.etag)


def _takes_turns(flags: int) -> bool:
    return may_write(flags) and not flags & os.O_TRUNC
