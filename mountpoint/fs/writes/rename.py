"""Rename files and directories.

Only directory buckets can rename. Elsewhere the server copies the object, then the source is
deleted.

A file that is being written is renamed at no cost while none of it is in the bucket. Once parts of
it have been sent, it is completed under its old key when it is closed, then copied and deleted
there (`fs/writes/streamed`).

A directory is renamed by moving each object below it, several at a time. If that fails midway, some
objects have been moved. The error says so, and each object is in one of the two places. A staged
file follows its object, so that it is uploaded to the right key.

A rename waits for changes under way on both names and below them, such as a program's last close:
the kernel reports it after the program has gone on. Changes that begin later wait for the rename
(`fs/writes/key_locks`).

The kernel gives the inode that it knows the new name, without a lookup. That may be an earlier
version, or an inode that is no version any more. So these get the new name here, too: what programs
write through them must not go to the old key.
"""

from mountpoint.errors import (
    EntryExists,
    IsADirectory,
    NotADirectory,
    NotFound,
    NotImplementedHere,
    NotPermitted,
    NotReplaceable,
    PreconditionFailed,
)
from mountpoint.fs.directories import Directories
from mountpoint.fs.inodes import Inode
from mountpoint.fs.overlay import Writer
from mountpoint.fs.resolver import Resolver
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.context import WriteContext, unchanged
from mountpoint.listing.tree import Entry, check_new
from mountpoint.s3.client import NEW, Condition

TAKEN = "this name already exists"


class Renamer:
    """Renames the files and directories of one mount. Thread-safe; no lock is held while waiting.

    `backend` has the files that are open for writing.
    """

    def __init__(
        self,
        context: WriteContext,
        resolver: Resolver,
        directories: Directories,
        backend: WriteBackend,
    ) -> None:
        # dependencies
        self._mount = context
        self._resolver = resolver
        self._directories = directories
        self._backend = backend

    def rename(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        """Rename a file or directory; replace the target if `replace` and the options allow it.

        The target stays as it is until the other file has its name. Raises NotImplementedHere where
        renaming is not allowed, EntryExists, IsADirectory, NotADirectory, DirectoryNotEmpty,
        NotPermitted, NotReplaceable, and S3Errors.
        """
        if not (self._mount.config.allow_rename or self._mount.copies.renames):
            raise NotImplementedHere(
                "S3 cannot rename",
                "mount with --allow-rename to permit it, by copying and deleting",
            )
        check_new(to.key, new_name)
        if parent.key + name == to.key + new_name:
            # The kernel itself does nothing, unless the file was replaced between its two lookups.
            if self._mount.local.file(parent.key, name) is None:
                self._resolver.resolve(parent, name, attributes=False)
            if not replace:
                raise EntryExists(TAKEN)
            return

        def keys() -> list[bytes]:
            files = [parent.key + name, to.key + new_name]
            return files + [each + b"/" for each in files]

        def move() -> None:
            self._move(parent, name, to, new_name, replace=replace)

        def closing() -> list[Writer]:
            files = [(parent, name, False), (to, new_name, True)]
            writers = [(self._mount.local.file(at.key, each), new) for at, each, new in files]
            return [each for each, new in writers if each and each.is_closing(replaced=new)]

        for last in (False, True):
            for writer in closing():
                writer.await_end()
            with self._mount.key_locks.alone(keys):
                if not last and closing():
                    continue  # a close has come first, and needs the keys
                displaced = self._mount.local.file(to.key, new_name)
                if displaced is None:
                    move()
                elif replace:
                    displaced.displace(move)
                else:
                    raise EntryExists(TAKEN)
                return

    def _move(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        target, look = self._resolver.resolve_target(to, new_name)
        if target is not None and not replace:
            raise EntryExists(TAKEN)
        writer = self._mount.local.file(parent.key, name)
        if writer is not None and writer.rename(to, new_name, self._condition(target)):
            self._mount.inodes.move_others(parent, name, to, new_name, versions=False)
            self._mount.local.add_directory(parent.key)
            return
        entry = self._resolver.resolve(parent, name, attributes=False)[0]
        if entry.is_directory:
            self._directory(parent, entry, to, new_name, target)
        else:
            self._file(parent, entry, to, new_name, target, look=look)
            self._mount.caches.record_removed(parent.key, name)

    def _file(
        self,
        parent: Inode,
        entry: Entry,
        to: Inode,
        name: bytes,
        target: Entry | None,
        *,
        look: bool,
    ) -> None:
        """Rename a file. `look` False: nothing has the new name, so S3 need not be asked."""
        assert entry.info is not None
        mount, condition = self._mount, self._condition(target)
        try:
            info = mount.copies.move(entry.info, to.key + name, condition=condition, look=look)
        except (PreconditionFailed, NotFound):
            # The kernel looks both names up again, and must find their present entries.
            mount.caches.changed(to.key, name, None)
            mount.caches.changed(parent.key, entry.name, None)
            raise
        mount.local.add_directory(parent.key)
        inode = mount.inodes.find(parent, entry)
        if inode is not None:
            mount.inodes.moved(inode, to, name)
            mount.inodes.became(inode, info, 0.0)
        # If it has no inode, the kernel knows an earlier version.
        mount.inodes.move_others(parent, entry.name, to, name, versions=inode is None)
        self._backend.object_moved(entry.info, info)
        mount.caches.changed(to.key, name, info)
        mount.caches.changed(parent.key, entry.name, None)

    def _directory(
        self, parent: Inode, entry: Entry, to: Inode, name: bytes, target: Entry | None
    ) -> None:
        """Rename a directory with all objects below it."""
        mount = self._mount
        if not mount.config.allow_rename:
            raise NotPermitted(
                "a directory is renamed object by object", "mount with --allow-rename to permit it"
            )
        old, new = parent.key + entry.name + b"/", to.key + name + b"/"
        if target is not None:
            if not target.is_directory:
                raise NotADirectory()
            self._directories.check_replaceable(new)
        for writer in mount.local.writers():
            if writer.inode.key.startswith(old):
                writer.check_movable()
        try:
            mount.copies.move_all(old, new, moved=self._backend.object_moved)
        finally:
            mount.caches.discard_below(old)
            mount.caches.discard_below(new)
        inode = mount.inodes.find(parent, entry)
        if target is not None:
            mount.inodes.removed(to, name)
        if inode is not None:
            mount.inodes.moved(inode, to, name)
        mount.local.move_directory(old, new)
        for writer in mount.local.writers():
            writer.directory_moved()
        mount.local.add_directory(new)
        mount.local.add_directory(parent.key)
        mount.caches.changed(to.key, name, None)
        mount.caches.changed(parent.key, entry.name, None)

    def _condition(self, target: Entry | None) -> Condition:
        """Return the condition on the object that the rename replaces, `target`."""
        if target is None:
            return NEW
        if target.info is None:
            raise IsADirectory()
        if not self._mount.config.allow_overwrite:
            raise NotReplaceable(
                "a file has the new name", "mount with --allow-overwrite to permit it"
            )
        return unchanged(target.info)
