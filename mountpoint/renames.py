"""Renaming. S3 has no such thing but on directory buckets: the server copies, then the source goes.

A file that is being written is renamed for free: nothing of it is in the bucket yet. Only when
parts of it have been sent is it completed under its old key, copied and deleted there, when it is
closed (`changes`).

A directory is renamed by moving all that is below it, several objects at a time. If that fails in
the middle some objects have been moved: the error says so, and each is in one of the two places.
"""

from collections.abc import Callable
from typing import Any

from mountpoint.config import ChangeConfig
from mountpoint.directories import Directories
from mountpoint.errors import (
    IsADirectory,
    NotADirectory,
    NotFound,
    NotImplementedHere,
    NotPermitted,
    NotReplaceable,
    PreconditionFailed,
)
from mountpoint.handles import unchanged
from mountpoint.inodes import Inode, InodeTable
from mountpoint.local import LocalNames
from mountpoint.s3.client import NEW, Condition, ObjectInfo
from mountpoint.tree import Entry, check_new
from mountpoint.writing.copies import Copies


class Renames:
    """Renames of one mount. Thread-safe; no lock is held while waiting.

    `changed` is called with directory, name, and what is there now (None: nothing, or nobody
    knows), after S3 has done it; `forget` with the prefix of a directory that is another one now;
    `moved` with who writes a file, which may be below another directory now.
    """

    def __init__(
        self,
        copies: Copies,
        directories: Directories,
        inodes: InodeTable,
        local: LocalNames,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
        forget: Callable[[bytes], None],
        moved: Callable[[Any], None],
    ) -> None:
        # dependencies
        self._copies = copies
        self._directories = directories
        self._inodes = inodes
        self._local = local
        self._config = config
        self._changed = changed
        self._forget = forget
        self._moved = moved

    def check(self, parent: Inode, name: bytes) -> None:
        """Raise unless things may be renamed, and to this."""
        if not (self._config.allow_rename or self._copies.renames):
            raise NotImplementedHere(
                "S3 cannot rename",
                "mount with --allow-rename to allow it, by copying and deleting",
            )
        check_new(parent.key, name)

    def file(
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
        condition = self.condition(target)
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
        self._changed(to.key, name, info)
        self._changed(parent.key, entry.name, None)

    def directory(
        self, parent: Inode, entry: Entry, to: Inode, name: bytes, target: Entry | None
    ) -> None:
        """Rename a directory, and all that is in it."""
        if not self._config.allow_rename:
            raise NotPermitted(
                "directories are renamed object by object", "mount with --allow-rename to allow it"
            )
        old, new = parent.key + entry.name + b"/", to.key + name + b"/"
        if target is not None:
            if not target.is_directory:
                raise NotADirectory()
            if self._directories.check_empty(new):
                self._directories.remove(to, target)
        try:
            self._copies.move_all(old, new)
        finally:
            self._forget(old)
            self._forget(new)
        inode = self._inodes.find(parent, entry)
        if inode is not None:
            self._inodes.moved(inode, to, name)
        self._local.move_directory(old, new)
        for writer in self._local.writers():
            self._moved(writer)
        self._local.keep(new)
        self._local.keep(parent.key)
        self._changed(to.key, name, None)
        self._changed(parent.key, entry.name, None)

    def condition(self, target: Entry | None) -> Condition:
        """Return the condition for what takes the place of `target`."""
        if target is None:
            return NEW
        if target.info is None:
            raise IsADirectory()
        if not self._config.allow_overwrite:
            raise NotReplaceable("there is a file", "mount with --allow-overwrite to allow it")
        return unchanged(target.info)
