"""Delete files."""

from mountpoint.errors import IsADirectory
from mountpoint.fs.inodes import Inode
from mountpoint.fs.resolver import Resolver
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.context import WriteContext


class Remover:
    """Deletes the files of one mount. Thread-safe; no lock is held while waiting.

    `backend` has the files that are open for writing.
    """

    def __init__(self, context: WriteContext, resolver: Resolver, backend: WriteBackend) -> None:
        # dependencies
        self._mount = context
        self._resolver = resolver
        self._backend = backend

    def unlink(self, parent: Inode, name: bytes) -> None:
        """Delete a file. Raises IsADirectory, NoSuchEntry, NotPermitted, and S3Errors."""
        mount = self._mount
        writer = mount.local.file(parent.key, name)
        if writer is not None and writer.unlink():
            return
        with mount.key_locks.alone(lambda: [parent.key + name]):
            info = self._resolver.resolve(parent, name, attributes=False)[0].info
            if info is None:
                raise IsADirectory()
            mount.check_may_delete()
            mount.delete(info.key)
            self._backend.object_deleted(info.key)
            mount.local.add_directory(parent.key)
            mount.caches.changed(parent.key, name, None)
            mount.caches.record_removed(parent.key, name)
