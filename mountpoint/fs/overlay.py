"""What is in this mount's tree and not, or not yet, in the bucket.

* Files that are being written: their objects come to be when they are closed. Until then what is
  in the bucket under their names, if anything, is not to be seen here.
* Directories that were made here. S3 has none: one is there when a key is below it. So one that
  is made, or whose last file is deleted here, is remembered until it is removed or the mount
  ends. All directories above it exist with it.
"""

import threading
from collections.abc import Callable

from mountpoint.fs.handles import StagedWriter, WriteHandle
from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.listing.tree import Entry

#: Who writes a file.
Writer = WriteHandle | StagedWriter


class OverlayNames:
    """Files and directories by the prefix that they are in. Thread-safe; no method waits.

    `root` is the prefix of the root directory, which is always there.
    """

    def __init__(self, root: bytes) -> None:
        # constants
        self._root = root
        # mutable, guarded by _lock; read in single steps of the interpreter without it
        self._lock = threading.Lock()
        self._files: dict[bytes, dict[bytes, Writer]] = {}  # by directory and name
        self._writers: dict[InodeNumber, Writer] = {}
        self._directories: dict[bytes, set[bytes]] = {}  # names, by what they are in

    # --- files ---

    def file(self, directory: bytes, name: bytes) -> Writer | None:
        """Return who writes the file of this name."""
        files = self._files.get(directory)
        return files.get(name) if files else None

    def writer(self, inode: Inode) -> Writer | None:
        """Return who writes an inode's file."""
        return self._writers.get(inode.number)

    def add(self, writer: Writer) -> bool:
        """Add a file that is being written; False if somebody writes it already."""
        inode = writer.inode
        with self._lock:
            files = self._files.setdefault(inode.directory, {})
            if inode.name in files:
                return False
            files[inode.name] = writer
            self._writers[inode.number] = writer
            return True

    def discard(self, writer: Writer) -> bool:
        """Forget a file that is no longer being written; False if that was done before."""
        with self._lock:
            if self._writers.get(writer.inode.number) is not writer:
                return False
            del self._writers[writer.inode.number]
            self._forget_name(writer)
            return True

    def forget_name(self, writer: Writer) -> None:
        """Forget what a file is called that is being written: it has been removed."""
        with self._lock:
            self._forget_name(writer)

    def rename(self, writer: Writer, move: Callable[[], None]) -> None:
        """Follow a file that is being written to the name that `move` gives its inode.

        It takes the place of another file of that name. Under one of the two names it is there
        all the time.
        """
        with self._lock:
            inode = writer.inode
            before = self._place(writer, inode.name)
            move()
            if before is not None:
                self._files.setdefault(inode.directory, {})[inode.name] = writer
                if before != (inode.directory, inode.name):
                    self._drop(*before)

    def _forget_name(self, writer: Writer) -> None:
        place = self._place(writer, writer.inode.name)
        if place is not None:
            self._drop(*place)

    def _place(self, writer: Writer, name: bytes) -> tuple[bytes, bytes] | None:
        # Its directory may have been renamed since.
        for directory, files in self._files.items():
            if files.get(name) is writer:
                return directory, name
        return None

    def _drop(self, directory: bytes, name: bytes) -> None:
        files = self._files[directory]
        del files[name]
        if not files:
            del self._files[directory]

    def writers(self) -> list[Writer]:
        """Return who writes anything."""
        with self._lock:
            return list(self._writers.values())

    # --- directories ---

    def is_directory(self, prefix: bytes) -> bool:
        """Whether a directory has been made here."""
        names = self._directories.get(_above(prefix))
        return names is not None and _name(prefix) in names

    def keep(self, prefix: bytes) -> None:
        """Remember a directory, and all above it up to the root."""
        with self._lock:
            while len(prefix) > len(self._root):
                names = self._directories.setdefault(_above(prefix), set())
                if _name(prefix) in names:
                    return
                names.add(_name(prefix))
                prefix = _above(prefix)

    def drop(self, prefix: bytes) -> None:
        """Forget a directory, and all below it."""
        with self._lock:
            names = self._directories.get(_above(prefix), set())
            names.discard(_name(prefix))
            if not names:
                self._directories.pop(_above(prefix), None)
            for each in [each for each in self._directories if each.startswith(prefix)]:
                del self._directories[each]

    # --- both ---

    def move_directory(self, prefix: bytes, new_prefix: bytes) -> None:
        """Give all that is in a directory the names that it has below another one."""
        with self._lock:
            for table in (self._directories, self._files):
                for each in [each for each in table if each.startswith(prefix)]:
                    moved = new_prefix + each[len(prefix) :]
                    table[moved] = table.pop(each)  # type: ignore[assignment]
        self.drop(prefix)

    def entries(self, directory: bytes) -> list[Entry]:
        """Return what is in a directory, in the order of the names."""
        with self._lock:
            names = self._directories.get(directory, ())
            entries = [Entry(name, None) for name in names]
            for name, writer in self._files.get(directory, {}).items():
                if name not in names:
                    entries.append(Entry(name, writer.inode.info))
        return sorted(entries, key=lambda entry: entry.name)

    def is_empty(self, directory: bytes) -> bool:
        """Whether there is nothing in a directory but what the bucket has."""
        return directory not in self._directories and directory not in self._files


def _above(prefix: bytes) -> bytes:
    return prefix[: prefix.rfind(b"/", 0, -1) + 1]


def _name(prefix: bytes) -> bytes:
    return prefix[len(_above(prefix)) : -1]
