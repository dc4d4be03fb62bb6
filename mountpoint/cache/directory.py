"""The cache directory, which any number of mounts of one user use at once.

```
DIR/mount-s3-cache/         0700, of the user who mounts
    v1/                     blocks in this format
        BUCKET-HASH/XX/DIGEST.INDEX
        BUCKET-HASH/XX/DIGEST.d/INDEX   small blocks
        tmp/                blocks that are being written
        usage               the bytes of all blocks: 8 bytes, under flock
        counted             its mtime is the time of the last count of all blocks
        evicting            under flock while a process removes blocks
```

Nothing here is read when a mount starts, however many blocks there are. The total is kept in
`usage`: a block is added just before it gets its name, and subtracted after it was removed. So the
total is too high, never too low, if the process is killed between, or if a damaged block is
removed, which is not subtracted. Whoever evicts counts the blocks once a day, or if there are fewer
than the total says, and corrects it.

The time of last access (atime) of a file is the last use of the block, within minutes; `blocks`
sets it. The time of change (mtime) is when it was written.
"""

import contextlib
import fcntl
import itertools
import os
import random
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from mountpoint.cache.blocks._files import CachedVersion, Store
from mountpoint.cache.blocks._format import (
    BLOCK_BYTES,
    MAGIC,
    SMALL,
    SMALL_BYTES,
    crc32c_of,
    is_block,
)
from mountpoint.cache.identity import Identity
from mountpoint.errors import MountError
from mountpoint.system.mounts import file_system, is_below

log = structlog.get_logger(__name__)

NAME = "mount-s3-cache"
FORMAT = "v1"
TEMPORARY = "tmp"
#: Directories of small blocks.
SMALL_SUFFIX = ".d"
#: Files are counted in whole pages, as file systems allocate them.
PAGE_BYTES = 4096
#: While the blocks are counted for the first time, `usage` has this and what was added meanwhile.
UNKNOWN_BYTES = 1 << 60
#: A file that has been written for so long belongs to a process that was killed.
ABANDONED_S = 3600.0

#: File systems whose answers come from another machine or process: the beginnings of their types.
REMOTE = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "ocfs2",
    "smb",
    "virtiofs",
)

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class CachedFile:
    """The file of one block. `path` is within the directory; times are nanoseconds since 1970."""

    path: str
    allocated_bytes: int
    used_ns: int
    made_ns: int

    @property
    def bucket(self) -> str:
        """The bucket's directory."""
        return self.path.partition("/")[0]


def allocated_bytes(size_bytes: int) -> int:
    """Return the bytes on disk of a file."""
    return size_bytes + -size_bytes % PAGE_BYTES


class CacheDirectory:
    """The directory at `path`, by its descriptor. Use `open`. Thread-safe."""

    def __init__(self, path: str, descriptor: int) -> None:
        # constants
        self.path = path
        self._descriptor = descriptor
        self._writer = secrets.token_hex(8)  # several hosts may share the directory
        self.store = Store(descriptor)  # it closes the descriptor
        # mutable
        self._numbers = itertools.count()

    @classmethod
    def open(cls, path: str, *, create: bool = True) -> "CacheDirectory":
        """Open the cache in the directory `path`; with `create`, what is missing is created.

        Raises MountError if it cannot be used, is not of this user alone, or is missing.
        """
        path = os.path.abspath(path)
        return cls(path, cls._open(path, create=create))

    @property
    def is_remote(self) -> bool:
        """Whether another process or machine answers for the directory, and may stop to do so."""
        with contextlib.suppress(OSError):
            return file_system(self.path).startswith(REMOTE)
        return True

    def reopen(self) -> None:
        """Create what someone has removed of the directory. Raises MountError."""
        descriptor = self._open(self.path, create=True)
        # In one step, under the number that reads are using.
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)

    @staticmethod
    def _open(path: str, *, create: bool) -> int:
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in (NAME, FORMAT):
                    inner = _own_directory(descriptor, name, path, create=create)
                    if name == FORMAT:
                        _name_other_formats(descriptor, path)
                    os.close(descriptor)
                    descriptor = inner
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(TEMPORARY, 0o700, dir_fd=descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise MountError(
                f"the cache directory '{path}' cannot be used: {reason}",
                "--cache takes a directory in which this user can write",
            ) from error
        return descriptor

    # --- usage ---

    @property
    def used_bytes(self) -> int:
        """The bytes of all blocks; 0 if the total is not known. Raises OSError."""
        return self._read_usage() or 0

    @property
    def is_counted(self) -> bool:
        """Whether the total is known. Raises OSError."""
        return self._read_usage() is not None

    def _read_usage(self) -> int | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open("usage", flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        try:
            total = _total(file)
        finally:
            os.close(file)
        return total if total is not None and total < UNKNOWN_BYTES else None

    def publish(
        self, version: CachedVersion, number: int, temporary: bytes, size_bytes: int
    ) -> int:
        """Give a written block its name, and add it to the total; return 0 or an errno.

        Raises OSError.
        """
        with self._locked_usage() as file:
            _add(file, size_bytes)
            problem = version.publish(number, temporary)
            if problem:
                _add(file, -size_bytes)
            return problem

    @property
    def counted_at_s(self) -> float:
        """The time of the last count, in seconds since 1970. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat("counted", dir_fd=self._descriptor, follow_symlinks=False).st_mtime
        return 0.0

    def recount(self) -> int:
        """Set the usage to the sum of all files, and return it. Raises OSError.

        Nobody else may remove blocks meanwhile (`evicting`).
        """
        with self._locked_usage() as file:
            before = _total(file)
            if before is None:
                before = UNKNOWN_BYTES
                os.pwrite(file, struct.pack("<q", before), 0)
        counted = sum(file.allocated_bytes for file in self.files())
        with self._locked_usage() as file:
            # What others have added meanwhile may be counted twice.
            total = counted + max((_total(file) or 0) - before, 0)
            os.pwrite(file, struct.pack("<q", total), 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open("counted", flags, 0o600, dir_fd=self._descriptor))
        os.utime("counted", dir_fd=self._descriptor, follow_symlinks=False)
        return total

    @contextlib.contextmanager
    def _locked_usage(self) -> Iterator[int]:
        # A descriptor of its own for each use: the lock belongs to it, not to the process.
        file = os.open(
            "usage",
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=self._descriptor,
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def free_bytes(self) -> tuple[int, int]:
        """Return the free bytes of the disk, and its size. Raises OSError."""
        found = os.fstatvfs(self._descriptor)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    @contextlib.contextmanager
    def evicting(self, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process is the one that removes or counts blocks, while it does so."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open("evicting", flags, 0o600, dir_fd=self._descriptor)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(file)

    # --- files ---

    def folders(self) -> list[str]:
        """Return the directories that have blocks: BUCKET-HASH/XX. Raises OSError."""
        found = []
        for bucket in _names(self._descriptor, "."):
            if bucket != TEMPORARY and "-" in bucket:
                found += [
                    f"{bucket}/{name}"
                    for name in _names(self._descriptor, bucket)
                    if len(name) == 2
                ]
        return found

    def files(self, folder: str | None = None) -> Iterator[CachedFile]:
        """Yield the files in one folder in random order, or all. Those that go away meanwhile are
        left out.
        """
        if folder is None:
            for each in self.folders():
                yield from self.files(each)
            return
        for path in self._paths(folder):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(path, dir_fd=self._descriptor, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield CachedFile(
                        path, allocated_bytes(found.st_size), found.st_atime_ns, found.st_mtime_ns
                    )

    def _paths(self, folder: str) -> Iterator[str]:
        names = _names(self._descriptor, folder)
        random.shuffle(names)
        for name in names:
            if not name.endswith(SMALL_SUFFIX):
                yield f"{folder}/{name}"
                continue
            inner = _names(self._descriptor, f"{folder}/{name}")
            yield from (f"{folder}/{name}/{each}" for each in inner)
            if not inner:  # all were removed
                with contextlib.suppress(OSError):
                    os.rmdir(f"{folder}/{name}", dir_fd=self._descriptor)

    def identity(self, file: CachedFile) -> Identity | None:
        """Return the identity in a block's trailer; None if it is damaged. Raises OSError."""
        found = self._trailer(file)
        return None if isinstance(found, str) else found[0]

    def check(self, file: CachedFile) -> str | None:
        """Return what is wrong with a block; None if it is right or gone. Raises OSError."""
        try:
            found = self._trailer(file)
            if isinstance(found, str):
                return found
            identity, number, size, content = found
        except FileNotFoundError:
            return None
        index, full_bytes = number & ~SMALL, SMALL_BYTES if number & SMALL else BLOCK_BYTES
        suffix = f"{SMALL_SUFFIX}/{index}" if number & SMALL else f".{index}"
        if identity.path + suffix != file.path:
            return "it has the name of another block"
        if not 0 < size == min(identity.size_bytes - index * full_bytes, full_bytes):
            return "it has another size than its object"
        if not is_block(identity.text, number, size, content):
            return "its bytes do not match their checksum"
        return None

    def remove(self, file: CachedFile) -> bool:
        """Remove a block; return whether it was there. Raises OSError."""
        with self._locked_usage() as usage:
            try:
                os.unlink(file.path, dir_fd=self._descriptor)
            except FileNotFoundError:
                return False
            _add(usage, -file.allocated_bytes)
        return True

    def remove_unused(self, file: CachedFile) -> bool:
        """Remove a block, unless it was used since `file` was made. Raises OSError."""
        try:
            found = os.stat(file.path, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_atime_ns == file.used_ns and self.remove(file)

    def clear(self) -> tuple[int, int]:
        """Remove all blocks; return their number and bytes. Raises OSError."""
        removed = removed_bytes = 0
        with self.evicting(wait=True):
            for file in self.files():
                if self.remove(file):
                    removed += 1
                    removed_bytes += file.allocated_bytes
            self.remove_abandoned(0.0)
            self.recount()
        return removed, removed_bytes

    def temporary(self) -> bytes:
        """Return a new name for a file that is being written."""
        return f"{TEMPORARY}/{self._writer}-{os.getpid()}-{next(self._numbers)}".encode()

    def remove_abandoned(self, older_s: float = ABANDONED_S) -> None:
        """Remove what killed processes were writing. Raises OSError."""
        oldest_s = time.time() - older_s
        for name in _names(self._descriptor, TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                path = f"{TEMPORARY}/{name}"
                if (
                    os.stat(path, dir_fd=self._descriptor, follow_symlinks=False).st_mtime
                    <= oldest_s
                ):
                    os.unlink(path, dir_fd=self._descriptor)

    # --- inside ---

    def _trailer(self, file: CachedFile) -> "tuple[Identity, int, int, bytes] | str":
        """Return a block's identity, number, size and file, or what is wrong with its trailer."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:  # a look is no use
            descriptor = os.open(file.path, flags | os.O_NOATIME, dir_fd=self._descriptor)
        except PermissionError:  # some file systems refuse it
            descriptor = os.open(file.path, flags, dir_fd=self._descriptor)
        with os.fdopen(descriptor, "rb") as stream:
            content = stream.read(2 * BLOCK_BYTES)
        if len(content) < 16 or content[-8:] != MAGIC:
            return "it has no trailer"
        crc, size = struct.unpack("<II", content[-16:-8])
        trailer = content[max(len(content) - size, 0) :]
        if len(trailer) != size or size < 32 or crc32c_of(trailer[:-16]) != crc:
            return "its trailer is damaged"
        (length,) = struct.unpack_from("<I", trailer)
        if length + 32 > size:
            return "its trailer is damaged"
        index, block_bytes = struct.unpack_from("<QI", trailer, 4 + length)
        if len(content) - size != block_bytes:
            return "it has another size than its trailer says"
        try:
            identity = Identity.parse(trailer[4 : 4 + length])
        except ValueError:
            return "its trailer has no identity"
        return identity, index, block_bytes, content


def check_writable(path: str) -> None:
    """Raise MountError unless a mount could use the cache in `path`. Creates nothing."""
    parent = path if os.path.lexists(path) else os.path.dirname(path)
    if os.path.lexists(os.path.join(path, NAME)):
        CacheDirectory.open(path, create=False)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise MountError(
            f"the cache directory '{path}' cannot be used: '{parent}' is not a directory in which "
            "this user can write",
            "--cache takes a directory in which this user can write",
        )


def check_directory(path: str, mount_point: str) -> None:
    """Raise MountError if the cache would be in the mount itself."""
    if is_below(path, mount_point):
        raise MountError(
            f"the cache directory '{path}' is in the directory of the mount",
            "--cache takes a directory outside of it",
        )


def _own_directory(parent: int, name: str, path: str, *, create: bool) -> int:
    """Open a directory that only this user can enter; with `create`, it may be missing."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
    try:
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        _check_own(os.stat(name, dir_fd=parent, follow_symlinks=False), path)
        raise
    try:
        _check_own(os.fstat(descriptor), path)
    except MountError:
        os.close(descriptor)
        raise
    return descriptor


def _check_own(found: os.stat_result, path: str) -> None:
    """Raise MountError unless only this user can enter a directory of the cache in `path`."""
    if found.st_uid != os.geteuid():
        problem = f"belongs to another user ({found.st_uid})"
        hint = "give another directory to --cache: each user has a cache of their own"
    elif found.st_mode & 0o077:
        problem = "can be entered by others"
        hint = "give another directory to --cache, or remove its directory mount-s3-cache"
    else:
        return
    raise MountError(f"the cache in '{path}' {problem}", hint)


def _name_other_formats(descriptor: int, path: str) -> None:
    others = [name for name in _names(descriptor, ".") if name != FORMAT]
    if others:
        log.warning(
            "the cache directory has files in another format: they are left alone",
            directory=path,
            files=", ".join(sorted(others)),
        )


def _names(descriptor: int, path: str) -> list[str]:
    """Return the names in a directory; none if it is gone."""
    try:
        inner = os.open(path, OPEN_DIRECTORY, dir_fd=descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return os.listdir(inner)
    finally:
        os.close(inner)


def _total(file: int) -> int | None:
    """Return the total in `usage`; None if it has none."""
    data = os.pread(file, 8, 0)
    total = struct.unpack("<q", data)[0] if len(data) == 8 else -1
    return total if 0 <= total < 2 * UNKNOWN_BYTES else None


def _add(file: int, delta_bytes: int) -> None:
    total = _total(file)
    if total is not None:
        os.pwrite(file, struct.pack("<q", max(total + delta_bytes, 0)), 0)
