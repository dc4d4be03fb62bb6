"""llfuse, over a wider channel to the kernel where that works. The only importer of llfuse.

`_channel` has to be loaded before llfuse and with global symbols, so that llfuse finds our
`fuse_session_receive_buf` and not libfuse's (see there).
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL)
try:
    from mountpoint.fuse import _channel
finally:
    sys.setdlopenflags(_flags)

import llfuse  # noqa: E402  # after _channel

from mountpoint.errors import MountError  # noqa: E402

__all__ = [
    "Receivers",
    "drop_pages",
    "forget_name",
    "forget_pages",
    "go_direct",
    "is_wide",
    "library_version",
    "llfuse",
    "rename_flags",
    "request_pid",
    "take",
    "widen",
]

_channel.resolve(llfuse.__file__)

# llfuse looks its global lock up at every operation and holds it meanwhile. Nothing here needs it:
# `Operations` are thread-safe. To take and to give it, and again around each operation, cost
# four hand-overs of the interpreter's lock. `lock_released` has no meaning any more.
llfuse.lock = contextlib.nullcontext()

#: As long as a stream keeps its memory when nobody reads.
IDLE_S = 5.0


def library_version() -> str:
    """Return the version of libfuse that llfuse uses, such as "2.9"."""
    # By llfuse's own handle, so that a bundled libfuse is found, too.
    major, minor = divmod(ctypes.CDLL(llfuse.__file__).fuse_version(), 10)
    return f"{major}.{minor}"


def widen(wanted: bool) -> None:
    """Say, before mounting, whether to negotiate what libfuse cannot."""
    _channel.want(wanted)


def take(descriptor: int) -> None:
    """Have llfuse serve /dev/fuse, mounted already, instead of mounting. It is closed at the end.

    The directory that llfuse is told means nothing from then on. Raises MountError where llfuse
    does not come to `_channel` to mount.
    """
    if not _channel.take(descriptor):
        raise MountError(
            "a mounted descriptor cannot be taken: libfuse is not a library of its own here",
            "build llfuse against libfuse 2.9 as a shared library, or mount on a directory",
        )


def is_wide() -> bool:
    """Whether the kernel offers it and gets it: 1 MiB at a time. Known when llfuse calls `init`."""
    return _channel.negotiated()


def is_over() -> bool:
    """Whether the kernel has ended the mount: no answer to a read is of use any more."""
    return _channel.is_over()


def request_pid() -> int:
    """Return who asks for the operation that this thread serves; 0 where that is unknown.

    It is the number of a thread (`system/procfs`). For operations that llfuse gives no `ctx`.
    """
    return _channel.request_pid()


def rename_flags() -> int:
    """Return the flags of renameat2(2) for the rename that this thread serves.

    Always 0 without the channel: then the kernel refuses others by itself.
    """
    return _channel.rename_flags()


def go_direct() -> None:
    """Let the kernel keep no pages of the file whose opening this thread serves.

    It has no effect without the channel; then all that have the file open share its pages.
    """
    _channel.go_direct()


def forget_name(directory: int, name: bytes) -> None:
    """Let the kernel look a name up again, in the directory of this inode.

    It may wait for a lookup that is served: for threads that serve none. That the kernel does not
    know the name is no error.
    """
    with contextlib.suppress(OSError):
        llfuse.invalidate_entry(directory, name)


def forget_pages(inode: int) -> None:
    """Let the kernel forget the pages of a file, soon: a thread of its own does it.

    The kernel waits for the reads of these pages that are served.
    """

    def forget() -> None:
        with contextlib.suppress(OSError):
            llfuse.invalidate_inode(inode)

    threading.Thread(target=forget, name="forget", daemon=True).start()


def drop_pages(inode: int) -> bool:
    """Have the kernel forget pages and attributes of a file that nobody has open; False if not.

    It waits for reads of that file: there must be none. Without the channel it cannot be done.
    """
    return _channel.drop_pages(inode)


class Receivers:
    """The memory with which llfuse's threads take requests: 1 MiB each, once it was written to.

    The kernel has them take turns, so every thread's fills. `nudge` interrupts those that wait
    for a request (`signals.nudge_workers`): only they themselves may return theirs.
    """

    def __init__(self, nudge: Callable[[], None], *, idle_s: float = IDLE_S) -> None:
        # dependencies
        self._nudge = nudge
        # constants
        self._idle_ns = round(idle_s * 1e9)
        # mutable, of the one thread that sweeps
        self._returned_ns = 0

    def sweep(self) -> None:
        """Return it to the system when nothing large has come for a while."""
        last_ns = _channel.last_large()
        if last_ns > self._returned_ns and time.monotonic_ns() - last_ns >= self._idle_ns:
            self._returned_ns = last_ns
            _channel.return_memory(last_ns)
            self._nudge()
