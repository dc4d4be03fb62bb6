"""A mount of files in memory that records the kernel's requests.

    python -m tests.mount.recorder DIRECTORY wide|narrow

One line of JSON per request goes to standard output, the first when the mount serves.
"""

import errno
import itertools
import json
import signal
import stat
import sys
import threading
from typing import Any

from mountpoint.fuse import binding
from mountpoint.fuse.binding import llfuse
from mountpoint.mount import signals
from mountpoint.system import memory, procfs

#: The program's options for libfuse that concern writes.
OPTIONS = {"fsname=recorder", "default_permissions", "big_writes", "atomic_o_trunc"}

WORKERS = 16
#: Memory of large writes is freed after this many seconds without one.
IDLE_S = 2.0
#: The longest wait of one fsync for another, in seconds.
PAIR_S = 10.0


class Files(llfuse.Operations):  # type: ignore[misc]  # llfuse has no types
    """Files in one directory. Handles are inode numbers."""

    def __init__(self) -> None:
        super().__init__()
        # mutable, each change one step of the interpreter
        self._numbers: dict[bytes, int] = {}
        self._next = itertools.count(llfuse.ROOT_INODE + 1)
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._bodies: dict[int, bytearray] = {}
        # mutable, with its own lock
        self._pair = threading.Barrier(2, timeout=PAIR_S)

    def init(self) -> None:
        """Report that requests are being served."""
        _record("init", wide=binding.is_wide())

    def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """Find a file."""
        if name not in self._numbers:
            raise llfuse.FUSEError(errno.ENOENT)
        return self._attributes(self._numbers[name])

    def getattr(self, inode: int, ctx: Any) -> Any:
        """Return the attributes of a file or of the directory."""
        return self._attributes(inode)

    def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        """Change nothing."""
        _record("setattr")
        return self._attributes(inode)

    def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        """Create an empty file."""
        number = self._numbers[name] = next(self._next)
        self._bodies[number] = bytearray()
        _record("create", pid=ctx.pid)
        return number, self._attributes(number)

    def open(self, inode: int, flags: int, ctx: Any) -> int:
        """Open a file; O_TRUNC empties it."""
        _record("open", flags=flags, pid=ctx.pid)
        return inode

    def read(self, fh: int, off: int, size: int) -> bytes:
        """Return bytes of a file."""
        with self._lock:
            return bytes(self._bodies[fh][off : off + size])

    def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write to a file. Other threads may write at the same time, and may overtake this one."""
        _record("write", off=off, size=len(buf))
        threading.Event().wait(0.001)
        with self._lock:
            body = self._bodies[fh]
            body.extend(bytes(max(0, off + len(buf) - len(body))))
            body[off : off + len(buf)] = buf
        return len(buf)

    def fsync(self, fh: int, datasync: bool) -> None:
        """Wait for a second fsync; fail if none comes."""
        try:
            self._pair.wait()
        except threading.BrokenBarrierError:
            raise llfuse.FUSEError(errno.ETIMEDOUT) from None

    def rename(self, parent: int, name: bytes, to: int, new_name: bytes, ctx: Any) -> None:
        """Rename a file."""
        _record("rename", flags=binding.rename_flags(), old=name.decode(), new=new_name.decode())
        self._numbers[new_name] = self._numbers.pop(name)

    def flush(self, fh: int) -> None:
        """Record that a descriptor was closed."""
        _record("flush")

    def release(self, fh: int) -> None:
        """Record that the last descriptor was closed."""
        _record("release")

    def _attributes(self, inode: int) -> Any:
        entry = llfuse.EntryAttributes()
        entry.st_ino = inode
        entry.st_nlink = 1
        if inode == llfuse.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
        else:
            entry.st_mode = stat.S_IFREG | 0o644
            entry.st_size = len(self._bodies[inode])
        return entry


def _record(request: str, **more: object) -> None:
    asker = binding.request_pid()
    line = {"request": request, "asker": asker, "process": procfs.process_of(asker), **more}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(directory: str, channel: str) -> None:
    """Serve until unmounted."""
    binding.widen(channel == "wide")
    stopping = threading.Event()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a nudge may come late
    receivers = binding.Receivers(signals.nudge_workers, idle_s=IDLE_S)
    memory.start_sweeping([receivers.sweep], stopping)
    llfuse.init(Files(), directory, OPTIONS)
    llfuse.main(workers=WORKERS)
    stopping.set()
    llfuse.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
