"""What changes the bucket: new files, overwriting, deleting, directories.

A new object is there when its file is closed, whole, or never. Which close is the last one
nobody is told: descriptors are duplicated (dup, `dd`, a shell's redirection) and inherited
(fork), and each of them is closed. As with the reference it is a close by the process that
opened the file, once something has been written; what is left then (empty files, files that
somebody else has gone on writing) is uploaded when the last descriptor is gone, which no
program waits for. fsync(2) always ends the upload. A process that is killed closes its files as
well: then nothing comes into being, for nobody knows whether they were complete.

Without an option nothing is replaced and nothing deleted, not even by a race: a new file's
upload has the condition that there is still no object of that name.
"""

import functools
import mimetypes
import os
import time
from collections.abc import Callable

import structlog

from mountpoint import tree
from mountpoint.config import ChangeConfig
from mountpoint.errors import (
    BadArgument,
    DirectoryNotEmpty,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotPermitted,
    OperationError,
    Stalled,
    WriterKilled,
)
from mountpoint.handles import WriteHandle
from mountpoint.inodes import Inode, InodeTable
from mountpoint.local import LocalNames
from mountpoint.s3.client import ALWAYS, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import Patience
from mountpoint.tree import Entry
from mountpoint.writing.upload import Upload
from mountpoint.writing.uploads import Uploads

log = structlog.get_logger(__name__)

#: How long somebody waits for a file that has been closed to be there: `touch a; cat a`. The
#: kernel tells us of the last close a moment after the program has gone on.
SETTLE_S = 1.0

#: Nothing is in S3 before the end, so no single write can be made to be.
SYNC_FLAGS = os.O_SYNC | os.O_DSYNC

#: The condition of what is new.
NEW = Condition(absent=True)


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
        uploads: Uploads,
        inodes: InodeTable,
        local: LocalNames,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._client = client
        self._patience = patience
        self._uploads = uploads
        self._inodes = inodes
        self._local = local
        self._config = config
        self._changed = changed

    # --- files ---

    def create(self, parent: Inode, name: bytes, flags: int, process: int) -> WriteHandle:
        """Begin a new file. Its inode counts one lookup and one open."""
        _check_flags(flags)
        _check_name(parent, name)
        inode = self._inodes.create(parent, name, time.time_ns())
        try:
            handle = self._begin(inode, NEW, process)
        except BaseException:
            self._inodes.forget(inode.number, 1)
            self._inodes.released(inode)
            raise
        return handle

    def overwrite(self, inode: Inode, flags: int, process: int) -> WriteHandle:
        """Begin to write a file anew from its beginning. The inode must have been opened."""
        _check_flags(flags)
        if not self._config.allow_overwrite:
            raise NotPermitted("the file exists", "--allow-overwrite lets files be replaced")
        if not flags & os.O_TRUNC:
            raise NotPermitted(
                "a file can only be written from its beginning", "open it with O_TRUNC"
            )
        if inode.opens > 1:
            raise NotPermitted("the file is being read")
        return self._begin(inode, ALWAYS, process)

    def write(self, handle: WriteHandle, offset: int, data: bytes) -> int:
        """Take the next bytes of a file; return how many."""
        try:
            return handle.write(offset, data)
        except OperationError as error:
            self._lost(handle, error)
            raise

    def flush(self, handle: WriteHandle, process: int, *, killed: bool) -> None:
        """Note that a process closes a descriptor; upload what was written if it is the opener."""
        handle.killed = killed
        try:
            handle.upload.check()
        except OperationError as error:
            self._lost(handle, error)
            raise
        if process != handle.opener or killed:
            return
        handle.closing = True
        if handle.upload.size_bytes:
            self.finish(handle)

    def finish(self, handle: WriteHandle) -> None:
        """Upload a file; the object is there when this returns."""
        try:
            info = handle.upload.finish()
        except OperationError as error:
            self._lost(handle, error)
            raise
        # Known before it is forgotten that it is being written: it is there all the time.
        inode = handle.inode
        if self._local.writer(inode) is handle:
            self._changed(inode.directory, inode.name, info)
            self._inodes.became(inode, info, time.monotonic())
            self._local.discard(handle)
            handle.settled.set()

    def release(self, handle: WriteHandle) -> None:
        """End a file that has no descriptor any more."""
        try:
            if handle.killed and not handle.settled.is_set():
                error = WriterKilled("the process that wrote the file was killed")
                self._lost(handle, error)
                raise error
            if not handle.settled.is_set():
                self.finish(handle)
        finally:
            handle.upload.abort()

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """Give a file another size, where that is what a new upload can bring about."""
        handle = self._local.writer(inode)
        if handle is not None:
            if size_bytes == handle.upload.size_bytes:
                return
            if size_bytes == 0:
                handle.restart()
                return
            raise NotPermitted("a file that is being written can only be cut to nothing")
        if size_bytes == 0:
            self._inodes.opened(inode)
            try:
                self.finish(self.overwrite(inode, os.O_WRONLY | os.O_TRUNC, 0))
            finally:
                self._inodes.released(inode)
            return
        if inode.info is not None and inode.info.size_bytes == size_bytes:
            return
        raise NotPermitted("S3 takes whole objects: a file cannot be cut or lengthened")

    def unlink(self, parent: Inode, entry: Entry) -> None:
        """Delete an object."""
        info = entry.info
        if info is None:
            raise IsADirectory()
        if not self._config.allow_delete:
            raise NotPermitted("files may not be deleted", "--allow-delete lets them be")
        self._patience.ask(lambda: self._client.delete_object(info.key)).answer()
        self._keep(parent)
        self._changed(parent.key, entry.name, None)

    def check_unwritten(self, handle: WriteHandle | None) -> None:
        """Raise NotPermitted for a file that is being written; wait for one that is closed now."""
        if handle is None or (handle.closing and handle.settled.wait(SETTLE_S)):
            return
        raise NotPermitted("the file is being written")

    # --- directories ---

    def mkdir(self, parent: Inode, name: bytes) -> Entry:
        """Make a directory: S3 knows nothing of it until a file is in it."""
        _check_name(parent, name + b"/")
        self._local.keep(parent.key + name + b"/", self._inodes.root.key)
        return Entry(name, None)

    def rmdir(self, parent: Inode, entry: Entry) -> None:
        """Remove a directory in which there is nothing."""
        if not entry.is_directory:
            raise NotADirectory()
        prefix = parent.key + entry.name + b"/"
        below = self._keys_below(prefix)
        if not self._local.is_empty(prefix) or any(key != prefix for key in below):
            raise DirectoryNotEmpty()
        if below:
            raise NotPermitted("there is a directory marker in the bucket")
        self._local.drop(prefix)
        self._keep(parent)
        self._changed(parent.key, entry.name, None)

    def _keys_below(self, prefix: bytes) -> list[bytes]:
        """Return the first keys below a directory, its marker included: two are enough to know."""
        tries = self._patience.begin()
        keys: list[bytes] = []
        token = None
        while True:
            asked = functools.partial(self._client.list, prefix, token=token, max_keys=2, flat=True)
            page = self._patience.ask(asked, tries).answer()
            keys += [info.key for info in page.objects]
            token = page.next_token
            if len(keys) > 1 or token is None:
                return keys
            if tries.left_s() <= 0:
                raise Stalled("the listing has only empty pages")

    # --- inside ---

    def _begin(self, inode: Inode, condition: Condition, process: int) -> WriteHandle:
        def begin() -> Upload:
            key, content_type = inode.key, None
            if self._config.content_types:
                content_type, _ = mimetypes.guess_type(key.decode("utf-8", "replace"), strict=False)
            return self._uploads.upload(key, condition=condition, content_type=content_type)

        handle = WriteHandle(inode, begin, process)
        if not self._local.add(handle):
            handle.upload.abort()
            raise NotPermitted("the file is being written")
        return handle

    def _keep(self, directory: Inode) -> None:
        """Let a directory exist from which something has been taken away."""
        self._local.keep(directory.key, self._inodes.root.key)

    def _lost(self, handle: WriteHandle, error: OperationError) -> None:
        """Note that a file will not come into being."""
        handle.upload.fail(error)
        inode = handle.inode
        if self._local.discard(handle):
            self._inodes.disown(inode)
            self._changed(inode.directory, inode.name, None)
        handle.settled.set()


def _check_flags(flags: int) -> None:
    if flags & SYNC_FLAGS:
        raise BadArgument("O_SYNC and O_DSYNC cannot be had: a file is in S3 when it is closed")


def _check_name(directory: Inode, name: bytes) -> None:
    """Raise NameTooLong or BadArgument unless S3 can have such a key."""
    size = len(directory.key) + len(name)
    if len(name.rstrip(b"/")) > tree.MAX_NAME_BYTES or size > tree.MAX_KEY_BYTES:
        raise NameTooLong(f"{size} bytes; a key has {tree.MAX_KEY_BYTES} at most")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise BadArgument("S3's keys are UTF-8, and this name is not") from None
