"""Delete files."""

from mountpoint.errors import IsADirectory
from mountpoint.fs.inodes import Inode
from mountpoint.fs.names import Names
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.context import WriteContext


class Remover:
    """Deletes the files of one mount. Thread-safe; no lock is held while waiting.

    `backend` has the files that are open for writing.
    """

    def __init__(self, context: WriteContext, names: Names, backend: WriteBackend) -> None:
        # dependencies
        self._mount = context
        self._names = names
        self._backend = backend

    def unlink(self, parent: Inode, name: bytes) -> None:
        """Delete a file. Raises IsADirectory, NoSuchEntry, NotPermitted, and S3Errors."""
        mount = self._mount
        writer = mount.local.file(parent.key, name)
        if writer is not None and writer.unlink():
            return
        with mount.key_locks.alone(lambda: [parent.key + name]):
            info = self._names.find(parent.key, name)[0].info
            if info is None:
                raise IsADirectory()
            mount.check_may_delete()
            mount.delete(info.key)
            self._backend.object_deleted(info.key)
            mount.local.keep(parent.key)
            mount.caches.changed(parent.key, name, None)
            mount.caches.gone(parent.key, name)
