"""Renaming. S3 has no such thing but on directory buckets: the server copies, then the source goes.

A file that is being written is renamed for free: nothing of it is in the bucket yet. Only when
parts of it have been sent is it completed under its old key, copied and deleted there, when it is
closed (`fs/writes/streamed`).

A directory is renamed by moving all that is below it, several objects at a time. If that fails in
the middle some objects have been moved: the error says so, and each is in one of the two places.
A file that is staged follows its object, so that it is uploaded to where that is.

What is still under way is waited for, under both names and below them: a program's last close, say,
which the kernel tells of after the program has gone on. What comes meanwhile waits for the rename
(`fs/writes/key_locks`).
"""

from collections.abc import Callable
from typing import Any, Protocol

from mountpoint.config import ChangeConfig
from mountpoint.copy.objects import Copies
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
from mountpoint.fs.handles import unchanged
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.names import Names
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.tree import Entry, check_new
from mountpoint.s3.client import NEW, Condition, ObjectInfo

TAKEN = "there is something of this name"


class Writing(Protocol):
    """The files that are being written: `StreamedWrites` or `StagedWrites`."""

    def await_end(self, writer: Any, *, replaced: bool) -> None:
        """Wait for a file that is closed now, if it has to be there before it is renamed."""

    def displace(self, writer: Any, move: Callable[[], None]) -> None:
        """Have `move` give another file the name of one that is being written."""

    def rename_open(self, writer: Any, parent: Inode, name: bytes, condition: Condition) -> bool:
        """Rename a file that is being written; False: it is there now."""

    def check_movable(self, writer: Any) -> None:
        """Raise NotPermitted if a file is written in a way that its directory has to stay."""

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Note that an object has moved, alone or with its directory: that may fail for others."""

    def moved(self, writer: Any) -> None:
        """Take what a renamed directory has made of the name of a file that is being written."""


class Renames:
    """Renames of one mount. Thread-safe; no lock is held while waiting.

    `changed` is called with directory, name, and what is there now (None: nothing, or nobody
    knows), after S3 has done it. `writing` has the files that are being written.
    """

    def __init__(
        self,
        copies: Copies,
        key_locks: KeyLocks,
        directories: Directories,
        writing: Writing,
        names: Names,
        listings: ListingCache,
        inodes: InodeTable,
        local: OverlayNames,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._copies = copies
        self._key_locks = key_locks
        self._directories = directories
        self._writing = writing
        self._names = names
        self._listings = listings
        self._inodes = inodes
        self._local = local
        self._config = config
        self._changed = changed

    def rename(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        """Rename a file or directory; what has the new name is replaced, where that is allowed.

        What is replaced stays as it is until the other one has its name.
        """
        if not (self._config.allow_rename or self._copies.renames):
            raise NotImplementedHere(
                "S3 cannot rename",
                "mount with --allow-rename to allow it, by copying and deleting",
            )
        check_new(to.key, new_name)

        def keys() -> list[bytes]:
            files = [parent.key + name, to.key + new_name]
            return files + [each + b"/" for each in files]

        def move() -> None:
            self._move(parent, name, to, new_name, replace=replace)

        for directory, each in ((parent, name), (to, new_name)):
            writer = self._local.file(directory.key, each)
            if writer is not None:
                self._writing.await_end(writer, replaced=directory is to and each == new_name)
        with self._key_locks.alone(keys):
            displaced = self._local.file(to.key, new_name)
            if displaced is None:
                move()
            elif replace:
                self._writing.displace(displaced, move)
            else:
                raise EntryExists(TAKEN)

    def _move(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, *, replace: bool
    ) -> None:
        target, look = self._names.target(to, new_name)
        if target is not None and not replace:
            raise EntryExists(TAKEN)
        writer = self._local.file(parent.key, name)
        if writer is not None:
            condition = self._condition(target)
            if self._writing.rename_open(writer, to, new_name, condition):
                return
        entry = self._names.find(parent.key, name)[0]
        if entry.is_directory:
            self._directory(parent, entry, to, new_name, target)
        else:
            self._file(parent, entry, to, new_name, target, look=look)
            self._listings.gone(parent.key, name)

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
        """Rename a file. `look` False: it is known that there is nothing of the new name."""
        assert entry.info is not None
        condition = self._condition(target)
        try:
            info = self._copies.move(entry.info, to.key + name, condition=condition, look=look)
        except (PreconditionFailed, NotFound):
            # The kernel looks both up again, and is to find what is there now.
            self._changed(to.key, name, None)
            self._changed(parent.key, entry.name, None)
            raise
        self._local.keep(parent.key)
        inode = self._inodes.find(parent, entry)
        if inode is not None:
            self._inodes.moved(inode, to, name)
            self._inodes.became(inode, info, 0.0)
        self._writing.object_moved(entry.info, info)
        self._changed(to.key, name, info)
        self._changed(parent.key, entry.name, None)

    def _directory(
        self, parent: Inode, entry: Entry, to: Inode, name: bytes, target: Entry | None
    ) -> None:
        """Rename a directory, and all that is in it."""
        if not self._config.allow_rename:
            raise NotPermitted(
                "directories are renamed object by object", "mount with --allow-rename to allow it"
            )
        old, new = parent.key + entry.name + b"/", to.key + name + b"/"
        marker = False
        if target is not None:
            if not target.is_directory:
                raise NotADirectory()
            marker = self._directories.check_replaceable(new)
        for writer in self._local.writers():
            if writer.inode.key.startswith(old):
                self._writing.check_movable(writer)
        try:
            moved = self._writing.object_moved
            self._copies.move_all(old, new, marker=marker, moved=moved)
        finally:
            self._listings.forget_below(old)
            self._listings.forget_below(new)
        inode = self._inodes.find(parent, entry)
        if inode is not None:
            self._inodes.moved(inode, to, name)
        self._local.move_directory(old, new)
        for writer in self._local.writers():
            self._writing.moved(writer)
        self._local.keep(new)
        self._local.keep(parent.key)
        self._changed(to.key, name, None)
        self._changed(parent.key, entry.name, None)

    def _condition(self, target: Entry | None) -> Condition:
        """Return the condition for what takes the place of `target`."""
        if target is None:
            return NEW
        if target.info is None:
            raise IsADirectory()
        if not self._config.allow_overwrite:
            raise NotReplaceable("there is a file", "mount with --allow-overwrite to allow it")
        return unchanged(target.info)
