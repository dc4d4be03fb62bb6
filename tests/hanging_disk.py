"""A file system in a process of its own, which passes everything on to another directory.

If the process is stopped (SIGSTOP), every operation on it hangs, like those on a network file
system whose server is away. With a quota, writes fail with EDQUOT when its files have as many
bytes. Run: `python -m tests.hanging_disk SOURCE MOUNTPOINT QUOTA`, 0: without a quota.
"""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import llfuse

F = TypeVar("F", bound=Callable[..., Any])
MOUNT_S = 20.0


def passes(function: F) -> F:
    """Turn an OSError into FUSE's."""

    def wrapper(*args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            raise llfuse.FUSEError(error.errno) from None

    return wrapper  # type: ignore[return-value]


class PassThrough(llfuse.Operations):  # type: ignore[misc]  # llfuse has no types
    """The operations. An inode is known by its latest path."""

    def __init__(self, source: str, quota_bytes: int) -> None:
        super().__init__()
        self._quota_bytes = quota_bytes
        self._paths = {llfuse.ROOT_INODE: os.fsencode(source)}

    def _path(self, parent: int, name: bytes) -> bytes:
        return os.path.join(self._paths[parent], name)

    def _entry(self, path: bytes) -> Any:
        found = os.lstat(path)
        entry = llfuse.EntryAttributes()
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks",
                     "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):  # fmt: skip
            setattr(entry, name, getattr(found, name))
        root = self._paths[llfuse.ROOT_INODE]
        entry.st_ino = llfuse.ROOT_INODE if path == root else found.st_ino
        self._paths[entry.st_ino] = path
        return entry

    @passes
    def lookup(self, parent: int, name: bytes, _ctx: object) -> Any:
        return self._entry(self._path(parent, name))

    @passes
    def getattr(self, inode: int, _ctx: object) -> Any:
        return self._entry(self._paths[inode])

    @passes
    def setattr(self, inode: int, attr: Any, fields: Any, _fh: int | None, _ctx: object) -> Any:
        path = self._paths[inode]
        if fields.update_size:
            os.truncate(path, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            found = os.lstat(path)
            atime = attr.st_atime_ns if fields.update_atime else found.st_atime_ns
            mtime = attr.st_mtime_ns if fields.update_mtime else found.st_mtime_ns
            os.utime(path, ns=(atime, mtime))
        return self._entry(path)

    @passes
    def mkdir(self, parent: int, name: bytes, mode: int, _ctx: object) -> Any:
        os.mkdir(self._path(parent, name), stat.S_IMODE(mode))
        return self._entry(self._path(parent, name))

    @passes
    def rmdir(self, parent: int, name: bytes, _ctx: object) -> None:
        os.rmdir(self._path(parent, name))

    @passes
    def unlink(self, parent: int, name: bytes, _ctx: object) -> None:
        os.unlink(self._path(parent, name))

    @passes
    def rename(self, parent: int, name: bytes, other: int, new: bytes, _ctx: object) -> None:
        before, after = self._path(parent, name), self._path(other, new)
        os.rename(before, after)
        self._entry(after)

    @passes
    def link(self, inode: int, parent: int, name: bytes, _ctx: object) -> Any:
        os.link(self._paths[inode], self._path(parent, name))
        return self._entry(self._path(parent, name))

    @passes
    def opendir(self, inode: int, _ctx: object) -> int:
        return inode

    @passes
    def readdir(self, inode: int, position: int) -> list[Any]:
        names = sorted(os.listdir(self._paths[inode]))
        found = []
        for index, name in enumerate(names[position:], position + 1):
            with contextlib.suppress(FileNotFoundError):
                found.append((name, self._entry(self._path(inode, name)), index))
        return found

    @passes
    def open(self, inode: int, flags: int, _ctx: object) -> int:
        return os.open(self._paths[inode], flags & ~(os.O_CREAT | os.O_DIRECT | os.O_NOATIME))

    @passes
    def create(self, parent: int, name: bytes, mode: int, flags: int, _ctx: object) -> Any:
        path = self._path(parent, name)
        file = os.open(path, flags & ~(os.O_DIRECT | os.O_NOATIME), stat.S_IMODE(mode))
        return file, self._entry(path)

    @passes
    def read(self, file: int, offset: int, size: int) -> bytes:
        return os.pread(file, size, offset)

    @passes
    def write(self, file: int, offset: int, data: bytes) -> int:
        if self._quota_bytes and self._used_bytes() + len(data) > self._quota_bytes:
            raise OSError(errno.EDQUOT, "the quota is exceeded")
        return os.pwrite(file, data, offset)

    def _used_bytes(self) -> int:
        return sum(
            os.lstat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(self._paths[llfuse.ROOT_INODE])
            for name in names
        )

    @passes
    def fsync(self, file: int, _datasync: bool) -> None:
        os.fsync(file)

    @passes
    def release(self, file: int) -> None:
        os.close(file)

    def forget(self, _inodes: list[Any]) -> None:
        pass

    @passes
    def statfs(self, _ctx: object) -> Any:
        found, stats = os.statvfs(self._paths[llfuse.ROOT_INODE]), llfuse.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
                     "f_favail"):  # fmt: skip
            setattr(stats, name, getattr(found, name))
        return stats


class HangingDisk:
    """The file system, mounted at `path`. It can be told to hang."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        self.path = path
        self._process = process

    def hang(self) -> None:
        """Stop to answer."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def hanging_disk(folder: Path, quota_bytes: int = 0) -> Iterator[HangingDisk]:
    """Mount a file system in `folder`; 0: without a quota."""
    source, path = folder / "source", folder / "disk"
    source.mkdir()
    path.mkdir()
    command = [sys.executable, "-m", __name__, str(source), str(path), str(quota_bytes)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        until_s = time.monotonic() + MOUNT_S
        while not os.path.ismount(path):
            assert time.monotonic() < until_s, "it is not mounted"
            assert process.poll() is None, "it has ended"
            time.sleep(0.02)
        yield HangingDisk(path, process)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", path], check=False)


if __name__ == "__main__":
    llfuse.init(PassThrough(sys.argv[1], int(sys.argv[3])), sys.argv[2], {"fsname=hanging"})
    llfuse.main(workers=4)
    llfuse.close()
