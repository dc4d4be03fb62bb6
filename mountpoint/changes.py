"""Changing files: new ones, overwriting, appending, deleting.

A new object is there when its file is closed, whole, or never. Which close is the last one
nobody is told: descriptors are duplicated (dup, `dd`, a shell's redirection) and inherited
(fork), and each of them is closed. As with the reference it is a close by the process that
opened the file, once something has been written; what is left then (empty files, files that
somebody else has gone on writing) is uploaded when the last descriptor is gone, which no
program waits for. If it was not the last one and more is written, what is there is the beginning
of another upload. fsync(2) always ends the upload. A process that is killed closes its files as
well: then nothing comes into being, for nobody knows whether they were complete.

Appending is such another upload from the start: the server copies what is there, what is written
comes behind it, and all of it takes the old object's place when the file is closed.

Without an option nothing is replaced and nothing deleted, not even by a race: a new file's
upload has the condition that there is still no object of that name.
"""

import mimetypes
import os
import time
import weakref
from collections.abc import Callable

from mountpoint import tree
from mountpoint.config import ChangeConfig
from mountpoint.errors import (
    BadHandle,
    IsADirectory,
    NotPermitted,
    NotSequential,
    OperationError,
    WriterKilled,
)
from mountpoint.handles import WriteHandle, check_flags, unchanged
from mountpoint.heads import newest
from mountpoint.inodes import Inode, InodeTable
from mountpoint.keeping import Keeping
from mountpoint.key_locks import KeyLocks
from mountpoint.local import LocalNames, Writer
from mountpoint.s3.client import ALWAYS, NEW, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.kept import NOTHING, FileAttributes, formatted
from mountpoint.s3.retry import Patience
from mountpoint.tree import Entry
from mountpoint.writing.copies import Copies
from mountpoint.writing.sequential import Sequential
from mountpoint.writing.uploads import Uploads

#: How long somebody waits for a file that has been closed to be there (`touch a; cat a`), and for
#: who has closed it to be gone (`cat a; echo > a`). The kernel tells us of the last close a moment
#: after the program has gone on, and the next program's open may overtake it.
SETTLE_S = 1.0


class Changes:
    """Changes of one mount's tree. Thread-safe; no lock is held while waiting.

    `changed` is called with directory, name, and what is there now (None: nothing), after S3
    has done it. Every method raises the domain errors that say why something cannot be, and
    S3Errors.
    """

    def __init__(
        self,
        client: ObjectClient,
        patience: Patience,
        key_locks: KeyLocks,
        uploads: Uploads,
        copies: Copies,
        inodes: InodeTable,
        local: LocalNames,
        keeping: Keeping,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._client = client
        self._patience = patience
        self._key_locks = key_locks
        self._uploads = uploads
        self._copies = copies
        self._inodes = inodes
        self._local = local
        self._keeping = keeping
        self._config = config
        self._changed = changed
        # mutable: files that are uploaded and still open, by key; used in single steps
        self._settled: weakref.WeakValueDictionary[bytes, WriteHandle]
        self._settled = weakref.WeakValueDictionary()

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = NOTHING,
    ) -> WriteHandle:
        """Begin a new file. Its inode counts one lookup and one open."""
        check_flags(flags)
        tree.check_new(parent.key, name)
        inode = self._inodes.create(parent, name, time.time_ns())
        try:
            kept = self._keeping.of_new(attributes)
            return self._add(WriteHandle(inode, process, self._begin, condition=NEW, kept=kept))
        except BaseException:
            self._inodes.uncreate(inode)
            raise

    def open(self, inode: Inode, flags: int, process: int) -> WriteHandle | None:
        """Open a file that is to be written; None: it is only read.

        O_RDWR alone opens it for reading, as with the reference: many programs that ask for
        both only read.
        """
        writer = self._local.writer(inode)
        if writer is not None:
            self.check_unwritten(writer)
        access = flags & os.O_ACCMODE
        appends = access == os.O_RDWR and flags & os.O_APPEND
        if access == os.O_WRONLY or flags & os.O_TRUNC or appends:
            return self._change(inode, flags, process)
        return None

    def _change(self, inode: Inode, flags: int, process: int) -> WriteHandle:
        """Begin to write a file anew, or behind its end. The inode must have been opened."""
        check_flags(flags)
        base, condition = None, ALWAYS
        if not flags & os.O_TRUNC:
            # It goes on at the end; or it is cut to nothing next, as `sort -o` does it.
            if not self._allows(flags):
                option = "--allow-append" if flags & os.O_APPEND else "--allow-overwrite"
                raise NotPermitted("the file exists", f"{option} lets it be written")
            base = newest(self._client, self._patience, inode)
            condition = unchanged(base)
        elif not self._config.allow_overwrite:
            raise NotPermitted("the file exists", "--allow-overwrite lets files be replaced")
        elif self._config.incremental_upload and inode.info is not None:
            condition = unchanged(inode.info)  # or a part that comes late could replace others
        if not self._inodes.is_alone(inode, SETTLE_S):
            raise NotPermitted("the file is being read")
        keeping = self._keeping
        handle = WriteHandle(
            inode,
            process,
            self._begin,
            condition=condition,
            kept=keeping.of_replaced(inode) if base is None else keeping.of_base(base),
            base=base,
            replaces=True,
        )
        return self._add(handle)

    def _allows(self, flags: int) -> bool:
        """Whether a file may be opened to be written that is not cut to nothing."""
        config = self._config
        if flags & os.O_APPEND:
            return config.allow_append or config.incremental_upload
        return config.allow_overwrite or config.incremental_upload

    def read(self, handle: WriteHandle, offset: int, size: int) -> bytes:
        """Refuse: what is being written cannot be read."""
        raise BadHandle("the file is being written: it can be read when it is closed")

    def write(self, handle: WriteHandle, offset: int, data: bytes) -> int:
        """Take the next bytes of a file; return how many."""
        handle.check()
        if handle.settled.is_set():
            self._go_on(handle)
        try:
            return handle.write(offset, data)
        except OperationError as error:
            self._lost(handle, error)
            raise

    def flush(self, handle: WriteHandle, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload what was written if it is the opener."""
        handle.flushed, handle.killed = True, killed
        try:
            handle.check()
        except OperationError as error:
            self._lost(handle, error)
            raise
        if process == handle.opener and not killed:
            handle.closing = True
            if handle.size_bytes if handle.upload is not None else self._keeping.left(handle):
                self._finish(handle)

    def sync(self, handle: WriteHandle) -> None:
        """Upload a file; what was written is in S3 when this returns."""
        handle.final = not (self._config.allow_append or self._config.incremental_upload)
        if handle.upload is not None or self._keeping.left(handle):
            self._finish(handle)

    def release(self, handle: WriteHandle) -> None:
        """End a file that has no descriptor any more."""
        upload = handle.upload
        try:
            if handle.settled.is_set():
                return
            # Who is killed within open(2) never has a descriptor that could be closed.
            never_had = upload is not None and not handle.flushed and not upload.size_bytes
            if upload is not None and (handle.killed or never_had):
                error = WriterKilled("the process that wrote the file was killed")
                self._lost(handle, error)
                raise error
            self._finish(handle)
        finally:
            if upload is not None:
                upload.abort()

    def truncate(self, inode: Inode, size_bytes: int, opened: WriteHandle | None = None) -> None:
        """Give a file another size, where that is what a new upload can bring about."""
        handle = self._local.writer(inode)
        if isinstance(handle, WriteHandle):
            if size_bytes == handle.size_bytes:
                return
            if size_bytes == 0 and (handle.base is None or self._config.allow_overwrite):
                handle.restart()
                return
            raise NotPermitted("a file that is being written can only be cut to nothing")
        if size_bytes == 0:
            self._inodes.opened(inode)
            try:
                self.sync(self._change(inode, os.O_WRONLY | os.O_TRUNC, 0))
            finally:
                self._inodes.released(inode)
            return
        if inode.info is not None and inode.info.size_bytes == size_bytes:
            return
        raise NotPermitted("S3 takes whole objects: a file cannot be cut or lengthened")

    def set_attributes(self, inode: Inode, attributes: FileAttributes) -> None:
        """Set mode, owners or time of a file or directory that is there."""
        with self._key_locks.shared(lambda: inode.key):
            self._keeping.set(inode, attributes, self._settled.get(inode.key))

    def set_open(self, writer: Writer, attributes: FileAttributes) -> bool:
        """Set them of a file that is being written; False: it is there now."""
        assert isinstance(writer, WriteHandle)
        with writer.settling:
            if writer.settled.is_set():
                return False
            self._keeping.note(writer, attributes)
            return True

    def unlink(self, parent: Inode, entry: Entry) -> None:
        """Delete an object."""
        info = entry.info
        if info is None:
            raise IsADirectory()
        if not self._config.allow_delete:
            raise NotPermitted("files may not be deleted", "--allow-delete lets them be")
        self._patience.ask(lambda: self._client.delete_object(info.key)).answer()
        self._local.keep(parent.key)
        self._changed(parent.key, entry.name, None)

    def check_unwritten(self, writer: Writer) -> None:
        """Raise NotPermitted for a file that is being written; wait for one that is closed now."""
        assert isinstance(writer, WriteHandle)
        if not (writer.closing and writer.settled.wait(SETTLE_S)):
            raise NotPermitted("the file is being written")

    def await_end(self, writer: Writer, *, replaced: bool) -> None:
        """Wait for a file that is closed now, if it has to be there before it is renamed.

        `replaced`: another one is to have its name. Its end needs its key, which a rename holds.
        """
        assert isinstance(writer, WriteHandle)
        if writer.closing and (replaced or writer.replaces or writer.base is not None):
            writer.settled.wait(SETTLE_S)

    def unlink_open(self, writer: Writer) -> bool:
        """Whether a file that is being written has been removed: it has to be there first."""
        self.check_unwritten(writer)
        return False

    def displace(self, writer: Writer, move: Callable[[], None]) -> None:
        """Have `move` give another file the name of one that is being written: once it is not."""
        self.check_unwritten(writer)
        move()

    def rename_open(self, writer: Writer, parent: Inode, name: bytes, condition: Condition) -> bool:
        """Rename a file that is being written, if it is new; False: it is there now."""
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
        """Raise NotPermitted for a file of which S3 has the beginning under the name it has."""
        assert isinstance(writer, WriteHandle)
        if writer.base is not None or self._config.incremental_upload:
            self.check_unwritten(writer)

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Nothing: what is being written depends on no object."""

    def moved(self, writer: Writer) -> None:
        """Take what a renamed directory has made of the name of a file that is being written."""
        assert isinstance(writer, WriteHandle)
        self._rename_upload(writer)

    def _rename_upload(self, handle: WriteHandle) -> None:
        """Give an upload the key that its file has now; what has begun is moved at its end."""
        if handle.upload is not None:
            handle.upload.rename(handle.inode.key, handle.condition)

    # --- inside ---

    def _begin(
        self, handle: WriteHandle, base: ObjectInfo | None
    ) -> tuple[Sequential, FileAttributes]:
        """Return an upload of a file, whatever its name is by now, and what that keeps of it."""
        key, condition = handle.inode.key, handle.condition
        if self._config.incremental_upload:
            metadata = formatted(handle.kept) if base is None else {}
            appending = self._uploads.appending(
                key, base=base, condition=condition, metadata=metadata
            )
            return appending, handle.kept
        if base is not None:
            options = self._copies.options_of(base)
            options, told = self._keeping.on_base(handle, options, None)
            return self._uploads.upload(key, condition=condition, options=options), told
        content_type = None
        if self._config.content_types:
            content_type, _ = mimetypes.guess_type(key.decode("utf-8", "replace"), strict=False)
        upload = self._uploads.upload(
            key, condition=condition, content_type=content_type, metadata=formatted(handle.kept)
        )
        return upload, handle.kept

    def _add(self, handle: WriteHandle) -> WriteHandle:
        if not self._local.add(handle):
            if handle.upload is not None:
                handle.upload.abort()
            raise NotPermitted("the file is being written")
        return handle

    def _go_on(self, handle: WriteHandle) -> None:
        """Let a file be written on whose upload has ended."""
        if handle.final:
            raise NotSequential("the file has been uploaded: no more can be written")
        if not self._inodes.is_alone(handle.inode, SETTLE_S):
            raise NotPermitted("the file is being read")
        with handle.settling:
            self._add(handle)
            handle.closing = False
            handle.settled.clear()

    def _finish(self, handle: WriteHandle) -> None:
        """Complete what is being uploaded of a file, under its name and with its attributes."""
        with self._key_locks.shared(lambda: handle.inode.key):
            self._complete(handle)

    def _complete(self, handle: WriteHandle) -> None:
        upload, info = handle.upload, handle.base
        refused: OperationError | None = None
        try:
            if upload is not None:
                upload.rename(handle.inode.key, handle.condition)
                self._keeping.finishing(handle, upload)
                info = upload.finish()
                if not handle.claim(upload):  # somebody else does the rest, or has
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
                    info = self._keeping.finished(handle, info)
                except OperationError as error:
                    refused = error  # it is there all the same
        except OperationError as error:
            self._lost(handle, error)
            raise
        if upload is not None:
            upload.abort()  # nothing: all of it is there
        if refused is not None:
            raise refused

    def _settle(self, handle: WriteHandle, upload: Sequential | None, info: ObjectInfo) -> bool:
        """Note that all is as it is to be; False if its name or its attributes are not."""
        inode = handle.inode
        with handle.settling:
            if upload is not handle.upload:
                return True  # somebody else has
            if upload is not None and info.key != inode.key:
                return False
            if self._keeping.left(handle):
                return False
            if upload is not None or info is not handle.base:
                # Known before it is forgotten that it is being written: it is there all the time.
                self._changed(inode.directory, inode.name, info)
                if handle.base is None or upload is None:
                    self._inodes.became(inode, info, 0.0)
                else:
                    # The kernel may have its last page, with zeros where there is something now.
                    self._inodes.disown(inode, info)
                handle.base, handle.upload = info, None
                handle.condition = unchanged(info)
            self._settled[info.key] = handle
            self._local.discard(handle)
            handle.settled.set()
            return True

    def _lost(self, handle: WriteHandle, error: OperationError) -> None:
        """Note that a file will not come into being."""
        inode = handle.inode
        with handle.settling:
            handle.fail(error)
            if self._local.discard(handle):
                self._inodes.disown(inode)
                self._changed(inode.directory, inode.name, None)
            handle.settled.set()
