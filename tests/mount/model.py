"""Reference model of a bucket that programs change through several mounts, and others beside them.

It says what each operation returns: bytes, names, or errors. It is exact for mounts with
`--metadata-ttl 0`, if operations follow one another, and no two objects ever have the same content.
There are no inodes, requests, caches or locks here. A mount has, besides the bucket, directories
that were made or emptied there, and files that programs have opened to change them.
"""

import errno
from dataclasses import dataclass, field

from tests.unit.write_model import ABSENT, State, ancestors, children, parent_of, state_of

Path = bytes
#: Another writer has replaced or deleted the object.
CHANGED = (errno.ESTALE, errno.ENOENT)


class Refused(Exception):
    """The operation fails with one of these numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(*(errno.errorcode[each] for each in numbers))
        self.numbers = numbers


@dataclass(eq=False)
class File:
    """A file that programs have opened to change it; all of them share it.

    `base` is the version of the object that it changes. Without one, the file replaces any object,
    or is `new`: then there must be none. `path` is None after its removal.
    """

    path: Path | None
    data: bytes
    base: bytes | None = None
    new: bool = False
    failed: bool = False
    handles: list["Handle"] = field(default_factory=list)

    @property
    def dirty(self) -> bool:
        """Whether it has yet to be uploaded as it is now."""
        return self.base is None or self.data != self.base

    @property
    def stored(self) -> bool:
        """Whether there is an object under its name, as far as the mount knows."""
        return self.base is not None or not self.new


@dataclass(eq=False)
class Handle:
    """An open file: a shared one (`file`), or one version of an object, `data`, at `path`."""

    path: Path
    data: bytes = b""
    file: File | None = None
    writes: bool = False
    appends: bool = False
    changed: bool = False  # since the last upload
    wrote: bool = False


@dataclass
class Side:
    """What one mount has besides the bucket."""

    objects: dict[Path, bytes]
    staged: bool
    directories: set[Path] = field(default_factory=set)
    files: dict[Path, File] = field(default_factory=dict)

    # --- names ---

    def state(self, path: Path) -> State:
        """Return what a path is: a directory (None), the bytes of a file, or ABSENT."""
        if path in self.files:
            return self.files[path].data
        if path in self.directories or any(is_in(each, path) for each in self.files):
            return None
        return state_of(self.objects, path)

    def look(self, path: Path) -> State:
        """Return what a path is. Raises Refused if it is nothing, or below a file."""
        for each in [*reversed(ancestors(path)), path]:
            state = self.state(each)
            if state == ABSENT:
                raise Refused(errno.ENOENT)
            if state is not None and each != path:
                raise Refused(errno.ENOTDIR)
        return self.state(path)

    def parent(self, path: Path) -> State:
        """Return what a path is whose directory must exist; ABSENT for a free name."""
        if (above := parent_of(path)) and self.look(above) is not None:
            raise Refused(errno.ENOTDIR)
        return self.state(path)

    def list(self, path: Path) -> set[Path]:
        """Return the names in a directory."""
        if path and self.look(path) is not None:
            raise Refused(errno.ENOTDIR)
        local = dict.fromkeys([*self.directories, *self.files], b"")
        return {*children(self.objects, path), *children(local, path)}

    def keep(self, path: Path) -> None:
        """Note that a directory exists here, with those above it."""
        if path:
            self.directories |= {path, *ancestors(path)}

    def mkdir(self, path: Path) -> None:
        """Create a directory."""
        if self.parent(path) != ABSENT:
            raise Refused(errno.EEXIST)
        self.keep(path)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        if self.look(path) is not None:
            raise Refused(errno.ENOTDIR)
        if self.list(path):
            raise Refused(errno.ENOTEMPTY)
        self.directories.discard(path)
        self.keep(parent_of(path))

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        if self.look(path) is None:
            raise Refused(errno.EISDIR)
        file = self.files.pop(path, None)
        if file is None or file.stored:
            self.objects.pop(path, None)
        if file is not None:
            file.path = None
        self.keep(parent_of(path))

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or a directory."""
        state, target = self.look(old), self.parent(new)
        if old == new:
            return
        if target not in (ABSENT, None) and state is None:
            raise Refused(errno.ENOTDIR)
        if target is None and state is not None:
            raise Refused(errno.EISDIR)
        if target is None and self.list(new):
            raise Refused(errno.ENOTEMPTY)
        if state is None:
            self._rename_directory(old, new)
        else:
            self._rename_file(old, new)
        self.keep(parent_of(old))

    def _rename_file(self, old: Path, new: Path) -> None:
        file, displaced = self.files.get(old), self.files.get(new)
        if file is not None:
            if new in self.objects or (file.stored and file.base is None):
                self.upload(file)
            if file.base is not None and self.objects.get(old) != file.base:
                raise Refused(*CHANGED)
            file.path = new
            self.files[new] = self.files.pop(old)
        if file is None or file.base is not None:
            self.objects[new] = self.objects.pop(old)
        if displaced is not None:
            displaced.path = None
            if file is None:
                del self.files[new]

    def _rename_directory(self, old: Path, new: Path) -> None:
        def moved(path: Path) -> Path:
            return new + path[len(old) :] if path == old or is_in(path, old) else path

        for path in [each for each in self.objects if is_in(each, old)]:
            self.objects[moved(path)] = self.objects.pop(path)
        for path in [each for each in self.files if is_in(each, old)]:
            file = self.files.pop(path)
            file.path = moved(path)
            self.files[file.path] = file
        self.directories = {moved(each) for each in self.directories}
        self.keep(new)

    # --- files ---

    def open(
        self, path: Path, *, writes: bool = False, empties: bool = False, creates: bool = False,
        appends: bool = False,
    ) -> Handle:  # fmt: skip
        """Open a file; `creates` it if there is none, and makes it empty if `empties`."""
        state = self.parent(path) if creates else self.look(path)
        if state is None:
            raise Refused(errno.EISDIR)
        file = self.files.get(path)
        new = state == ABSENT
        if not writes and file is None:
            assert isinstance(state, bytes)
            return Handle(path, state)
        if file is None:
            base = None if new or empties else self.objects[path]
            file = File(path, base or b"", base, new=new)
            self.files[path] = file
        elif empties:
            file.data = b""
        handle = Handle(path, b"", file, writes, appends, changed=new or empties)
        file.handles.append(handle)
        return handle

    def content(self, handle: Handle) -> tuple[bytes, bool]:
        """Return the bytes of an open file, and whether those that were not fetched are lost."""
        file = handle.file
        if file is None:
            return handle.data, self.objects.get(handle.path) != handle.data
        lost = file.base is not None and self.objects.get(file.path or b"") != file.base
        return file.data, lost

    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        """Write at any offset, or at the end."""
        file = handle.file
        assert file is not None
        offset = len(file.data) if handle.appends else offset
        start = file.data[:offset].ljust(offset, b"\0")
        self._change(handle, start + data + file.data[offset + len(data) :])

    def truncate_open(self, handle: Handle, size: int) -> None:
        """Give an open file another size."""
        assert handle.file is not None
        self._change(handle, handle.file.data[:size].ljust(size, b"\0"))

    def _change(self, handle: Handle, data: bytes) -> None:
        file = handle.file
        assert file is not None
        file.data = data
        handle.changed = handle.wrote = True

    def truncate(self, path: Path, size: int) -> None:
        """Give a file another size by its name. It is uploaded, unless others have changed it."""
        state = self.look(path)
        if state is None:
            raise Refused(errno.EISDIR)
        assert isinstance(state, bytes)
        file = self.files.get(path)
        if file is None:
            if 0 < size < len(state) and not self.staged:
                raise Refused(errno.EPERM)
            if len(state) != size:
                self.objects[path] = state[:size].ljust(size, b"\0")
            return
        before = file.data, file.failed
        handle = self.open(path, writes=True)
        self.truncate_open(handle, size)
        file.handles.remove(handle)
        if any(each.changed for each in file.handles):
            return
        try:
            self.upload(file)
        except Refused:
            file.data, file.failed = before
            raise

    def fsync(self, handle: Handle) -> None:
        """Upload what has changed."""
        if handle.file is not None:
            self.upload(handle.file)

    def close(self, handle: Handle) -> None:
        """Close a file. The close of a changed file uploads it."""
        file = handle.file
        if file is None:
            return
        try:
            if handle.writes and (handle.wrote or (file.failed and not handle.changed)):
                self.upload(file)
        finally:
            file.handles.remove(handle)
            if not file.handles and not file.failed and file.path is not None:
                del self.files[file.path]

    def upload(self, file: File) -> None:
        """Upload a file that has changed."""
        if file.path is None or not file.dirty:
            file.failed = False
            return
        for handle in file.handles:
            handle.changed = False
        there = self.objects.get(file.path)
        if file.base is not None and there != file.base:
            file.failed = True
            raise Refused(*CHANGED)
        if file.base is None and file.new and there is not None:
            file.failed = True
            raise Refused(errno.EEXIST)
        self.objects[file.path] = file.base = file.data
        file.failed = False


def is_in(path: Path, directory: Path) -> bool:
    """Whether a path is below a directory."""
    return path.startswith(directory + b"/")
