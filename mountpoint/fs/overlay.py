"""Names that exist in this mount and not, or not yet, in the bucket.

* Files that are being written. Their objects appear when the files are closed. Until then such a
  file hides the object of its name, if there is one.
* The directories of these files, also if others have emptied them.
* Directories that were created here. S3 has no directories: one exists as long as a key is below
  it. So a directory that is created here, or whose last file is deleted here, is remembered until
  it is removed or the mount ends, together with all directories above it.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fs.session.log import SessionLog, text_of
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import Condition


class Writer(Protocol):
    """A file that is being written: the state that all its handles share.

    `pending_bytes` of `size_bytes` are not yet in S3. `kept` are the attributes that the object is
    to keep. `removed`: the file has no name any more. `survives`: another process of this mount can
    go on with it (`session`).
    """

    @property
    def inode(self) -> Inode: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def kept(self) -> FileAttributes: ...
    @property
    def removed(self) -> bool: ...
    @property
    def survives(self) -> bool: ...

    def set_attributes(self, attributes: FileAttributes) -> bool:
        """Set mode, owners or time; False: the file is complete or closed now."""

    def unlink(self) -> bool:
        """Remove the file's name; False: the file is complete or closed now.

        Its handles continue to work. Raises NotPermitted, and S3Errors.
        """

    def is_closing(self, *, replaced: bool) -> bool:
        """Whether the file is being closed, and its object must exist before a rename.

        `replaced`: another file takes its name.
        """

    def await_end(self) -> None:
        """Wait briefly for a file that is being closed."""

    def displace(self, move: Callable[[], None]) -> None:
        """Call `move`, which gives another file this name. Raises NotPermitted."""

    def rename(self, parent: Inode, name: bytes, condition: Condition) -> bool:
        """Give the file another name; False: the file is complete or closed now."""

    def check_movable(self) -> None:
        """Raise NotPermitted if the file's directory cannot be renamed now."""

    def directory_moved(self) -> None:
        """Take the file's new key, after its directory was renamed."""


class OverlayNames:
    """Local files and directories by the prefix of their directory. Thread-safe; no method waits.

    `root` is the prefix of the root directory, which always exists. `log` gets the directories.
    `forget_prepared` is called when a name gets a writer (`native._prepared`).
    """

    def __init__(
        self,
        root: bytes,
        log: SessionLog | None = None,
        forget_prepared: Callable[[], None] = lambda: None,
    ) -> None:
        # dependencies
        self._log = log
        self._forget_prepared = forget_prepared
        # constants
        self._root = root
        # mutable, guarded by _lock; read in single steps of the interpreter without it
        self._lock = threading.Lock()
        self._files: dict[bytes, dict[bytes, Writer]] = {}  # by directory and name
        self._writers: dict[InodeNumber, Writer] = {}
        self._directories: dict[bytes, set[bytes]] = {}  # names by the prefix of their parent

    # --- files ---

    def file(self, directory: bytes, name: bytes) -> Writer | None:
        """Return the writer of a file by its name, if it is being written."""
        files = self._files.get(directory)
        return files.get(name) if files else None

    def writer(self, inode: Inode) -> Writer | None:
        """Return the writer of an inode's file, if it is being written."""
        return self._writers.get(inode.number)

    def add_file(self, writer: Writer) -> bool:
        """Add a file that is being written; False if another writer has its name."""
        inode = writer.inode
        with self._lock:
            files = self._files.setdefault(inode.directory, {})
            if inode.name in files:
                return False
            files[inode.name] = writer
            self._writers[inode.number] = writer
        self._forget_prepared()
        return True

    def add_removed(self, writer: Writer) -> None:
        """Add a file that is being written, and has no name any more."""
        with self._lock:
            self._writers[writer.inode.number] = writer

    def remove_file(self, writer: Writer) -> bool:
        """Remove a file that is no longer being written; False if it was removed before."""
        with self._lock:
            if self._writers.get(writer.inode.number) is not writer:
                return False
            del self._writers[writer.inode.number]
            self._remove_name(writer)
            return True

    def remove_name(self, writer: Writer) -> None:
        """Remove the name of a file that is being written, because it was unlinked."""
        with self._lock:
            self._remove_name(writer)

    def rename_file(self, writer: Writer, move: Callable[[], None]) -> None:
        """Give a file that is being written the new name that `move` gives its inode.

        The file replaces another one of that name. At any time it is found under one of its two
        names.
        """
        with self._lock:
            inode = writer.inode
            before = self._location(writer, inode.name)
            move()
            if before is not None:
                self._files.setdefault(inode.directory, {})[inode.name] = writer
                if before != (inode.directory, inode.name):
                    self._remove(*before)
        self._forget_prepared()

    def _remove_name(self, writer: Writer) -> None:
        location = self._location(writer, writer.inode.name)
        if location is not None:
            self._remove(*location)

    def _location(self, writer: Writer, name: bytes) -> tuple[bytes, bytes] | None:
        # Its directory may have been renamed in the meantime.
        for directory, files in self._files.items():
            if files.get(name) is writer:
                return directory, name
        return None

    def _remove(self, directory: bytes, name: bytes) -> None:
        files = self._files[directory]
        del files[name]
        if not files:
            del self._files[directory]

    def writers(self) -> list[Writer]:
        """Return the writers of all files that are being written."""
        with self._lock:
            return list(self._writers.values())

    def has_files_below(self, prefix: bytes) -> bool:
        """Whether a file is being written in a directory, or anywhere below it."""
        return any(each.startswith(prefix) for each in list(self._files))

    # --- directories ---

    def is_directory(self, prefix: bytes) -> bool:
        """Whether a directory was added here."""
        names = self._directories.get(_parent(prefix)) if self._directories else None
        return names is not None and _name(prefix) in names

    def add_directory(self, prefix: bytes) -> None:
        """Add a directory and all directories above it."""
        with self._lock:
            while len(prefix) > len(self._root):
                names = self._directories.setdefault(_parent(prefix), set())
                if _name(prefix) in names:
                    return
                names.add(_name(prefix))
                if self._log is not None:
                    self._log.note("created", text_of(prefix), {})
                prefix = _parent(prefix)

    def remove_directory(self, prefix: bytes) -> None:
        """Remove a directory and all directories below it."""
        with self._lock:
            names = self._directories.get(_parent(prefix), set())
            names.discard(_name(prefix))
            if not names:
                self._directories.pop(_parent(prefix), None)
            removed = [prefix]
            for each in [each for each in self._directories if each.startswith(prefix)]:
                removed += [each + name + b"/" for name in self._directories.pop(each)]
            if self._log is not None:
                for each in removed:
                    self._log.drop("created", text_of(each))

    # --- both ---

    def move_directory(self, prefix: bytes, new_prefix: bytes) -> None:
        """Move the names below one directory to another one."""
        with self._lock:
            for table in (self._directories, self._files):
                for each in [each for each in table if each.startswith(prefix)]:
                    moved = new_prefix + each[len(prefix) :]
                    table[moved] = table.pop(each)  # type: ignore[assignment]
                    if table is self._directories:
                        self._note_moved(each, moved)
        self.remove_directory(prefix)

    def _note_moved(self, parent: bytes, new_parent: bytes) -> None:
        if self._log is not None:
            for name in self._directories[new_parent]:
                self._log.drop("created", text_of(parent + name + b"/"))
                self._log.note("created", text_of(new_parent + name + b"/"), {})

    def entries(self, directory: bytes) -> list[Entry]:
        """Return the local entries of a directory, sorted by name."""
        with self._lock:
            names = set(self._directories.get(directory, ()))
            for each in self._files:
                if each.startswith(directory) and each != directory:
                    names.add(each[len(directory) :].partition(b"/")[0])
            entries = [Entry(name, None) for name in names]
            for name, writer in self._files.get(directory, {}).items():
                if name not in names:
                    entries.append(Entry(name, writer.inode.info))
        return sorted(entries, key=lambda entry: entry.name)

    def is_empty(self, directory: bytes) -> bool:
        """Whether a directory has no local entries. The bucket may have some."""
        return directory not in self._directories and not self.has_files_below(directory)


def _parent(prefix: bytes) -> bytes:
    return prefix[: prefix.rfind(b"/", 0, -1) + 1]


def _name(prefix: bytes) -> bytes:
    return prefix[len(_parent(prefix)) : -1]
