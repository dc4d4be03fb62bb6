"""Import llfuse, with a wider channel to the kernel where possible. No other module imports it.

`_channel` must be loaded before llfuse and with global symbols, so that llfuse finds our
`fuse_session_receive_buf` in place of libfuse's (see `_channel`).
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
    from mountpoint.fuse import _callers, _channel, _opens, _reads, _survival
finally:
    sys.setdlopenflags(_flags)

import llfuse  # noqa: E402  # after _channel

from mountpoint.errors import MountError  # noqa: E402
from mountpoint.metrics.recorder import Meters  # noqa: E402
from mountpoint.native._prepared import PreparedFiles  # noqa: E402
from mountpoint.system.procfs import is_ending, process_of  # noqa: E402

__all__ = [
    "KEPT_BYTES",
    "KilledPrograms",
    "Receivers",
    "appends",
    "claim",
    "device",
    "drop_pages",
    "forget_name",
    "forget_pages",
    "go_direct",
    "hold",
    "is_abandoned",
    "is_kept",
    "is_repeated",
    "is_wide",
    "keep",
    "library_version",
    "listing_room",
    "llfuse",
    "opens_in_lane",
    "reads_in_lane",
    "rename_flags",
    "repeats",
    "request_number",
    "request_pid",
    "serve_lane",
    "serve_opens",
    "set_listed",
    "take",
    "widen",
]

_channel.resolve(llfuse.__file__)

# llfuse holds its global lock during each operation. Nothing here needs that: `Operations` are
# thread-safe. Taking and releasing the lock around each operation cost four hand-overs of the
# interpreter's lock. `lock_released` no longer has a meaning.
llfuse.lock = contextlib.nullcontext()

#: Whether the kernel gets the answer that this thread is about to give; False: see `_callers`. Then
#: what the kernel would give back later has to be given back at once, and a file must not be
#: changed, which the program may have closed by now. Called for each file.
claim = _callers.claim

#: As long as a stream keeps its memory without reads, in seconds.
IDLE_S = 5.0


def library_version() -> str:
    """Return the version of libfuse that llfuse uses, such as "2.9"."""
    # Through llfuse's own handle, so that a bundled libfuse is found too.
    major, minor = divmod(ctypes.CDLL(llfuse.__file__).fuse_version(), 10)
    return f"{major}.{minor}"


def widen(wanted: bool, *, attributes: bool = False) -> None:
    """Set before mounting whether to negotiate with the kernel what libfuse cannot.

    `attributes`: among that, listings with the attributes of their entries.
    """
    _channel.want(wanted)
    _channel.want_attributes(attributes)


def serve_lane(meters: Meters) -> None:
    """Set before mounting that reads whose bytes are here need no interpreter; `meters` count them.

    It has an effect with the channel of our own only (`widen`).
    """
    _reads.serve_lane(meters.operation("read"), meters.read_bytes, meters.programs.readers)


def serve_opens(files: PreparedFiles, meters: Meters) -> None:
    """Set before mounting the files that are opened without the interpreter; `meters` count that.

    It has an effect with the channel of our own only (`widen`).
    """
    _opens.serve_opens(
        files, meters.operation("open"), meters.operation("flush"), meters.operation("release")
    )


def reads_in_lane() -> int:
    """Return the number of reads that were answered without the interpreter."""
    return _reads.reads_in_lane()


def opens_in_lane() -> int:
    """Return the number of files that were opened without the interpreter."""
    return _opens.opens_in_lane()


def take(descriptor: int) -> None:
    """Make llfuse serve a mounted descriptor of /dev/fuse. It is closed at the end.

    The directory that llfuse is given then has no meaning. Raises MountError where llfuse does not
    call `_channel` to mount.
    """
    if not _channel.take(descriptor):
        raise MountError(
            "a mounted descriptor cannot be used: llfuse was not built with a shared libfuse",
            "build llfuse with libfuse 2.9 as a shared library, or mount on a directory",
        )


#: The size of the memory for `keep`.
KEPT_BYTES = _survival.KEPT_BYTES


def keep(memory: int, *, resume: bool, writes: bool) -> None:
    """Set before mounting that another process can go on with the mount (`_survival`).

    `memory` is a descriptor of KEPT_BYTES that outlives this process. `resume`: go on with what a
    dead process has kept there. `writes`: writes can go on, too, which takes 1 MiB of memory for
    each thread. Raises MountError if it is of another version.
    """
    if writes:
        _channel.let_writes_survive()
    try:
        _survival.keep(memory, resume)
    except (OSError, ValueError) as error:
        raise MountError(f"the mount cannot be taken over: {error}") from error


def device() -> int:
    """Return the descriptor of /dev/fuse; -1 before mounting."""
    return _channel.device()


def is_kept() -> bool:
    """Whether another process could go on with the mount. Known when llfuse calls `init`."""
    return _survival.has_init()


def repeats() -> bool:
    """Whether the kernel sends again what a dead process had taken; otherwise it fails with EIO."""
    return _survival.repeats()


def hold(yes: bool) -> None:
    """Let requests wait that come from now on, or no longer (to hand the mount over)."""
    _survival.hold(yes)


def is_repeated() -> bool:
    """Whether a process that has died may have carried out the request that this thread serves."""
    return _channel.is_repeated_request()


def request_number() -> int:
    """Return the number of the request that this thread serves; 0 if it is not known.

    If the request is repeated for another process of the mount, that one gets the same number.
    """
    return _channel.request_number()


def is_abandoned() -> bool:
    """Whether the program that sent the request has been killed, and waits no longer."""
    return _callers.is_abandoned()


def is_wide() -> bool:
    """Whether the kernel sends 1 MiB at a time. Known when llfuse calls `init`."""
    return _channel.negotiated()


def is_over() -> bool:
    """Whether the kernel has ended the mount, so that answers to reads are of no use."""
    return _channel.is_over()


def request_pid() -> int:
    """Return the thread that sent the request that this thread serves; 0 if it is not known.

    It is a thread id (`system/procfs`). For operations that get no `ctx` from llfuse.
    """
    return _channel.request_pid()


def rename_flags() -> int:
    """Return the renameat2(2) flags of the rename that this thread serves.

    Always 0 without the channel: then the kernel itself refuses flags.
    """
    return _channel.rename_flags()


def appends() -> bool:
    """Whether the program that writes has opened the file with O_APPEND. Known for a write only.

    Always False where llfuse does not call `_channel`.
    """
    return _channel.appends()


def listing_room() -> int:
    """Return how many bytes fit into the listing with attributes that this thread answers.

    0 for a listing without attributes.
    """
    return _channel.listing_room()


def set_listed(attributes: bytes) -> None:
    """Set the attributes of all entries that this thread answers (`entries`)."""
    _channel.set_listed(attributes)


def go_direct() -> None:
    """Make the kernel cache no pages of the file whose open this thread serves.

    Without the channel it has no effect; then all programs that have the file open share its pages.
    """
    _channel.go_direct()


def forget_name(directory: int, name: bytes) -> None:
    """Make the kernel look up a name again, in the directory of this inode.

    It may wait for a lookup in progress, so threads that serve a request must not call it. A name
    that the kernel does not know is no error.
    """
    with contextlib.suppress(OSError):
        llfuse.invalidate_entry(directory, name)


def forget_pages(inode: int) -> None:
    """Make the kernel forget a file's pages, soon, on a thread of its own.

    The kernel waits for the reads of these pages that are in progress.
    """

    def forget() -> None:
        with contextlib.suppress(OSError):
            llfuse.invalidate_inode(inode)

    threading.Thread(target=forget, name="forget", daemon=True).start()


def drop_pages(inode: int) -> bool:
    """Make the kernel forget pages and attributes of a file that is not open; False if it did not.

    It waits for reads of that file, so there must be none. Without the channel it is not possible.
    """
    return _channel.drop_pages(inode)


class Receivers:
    """The memory into which llfuse's threads receive requests: up to 1 MiB each.

    The kernel gives requests to the threads in turn, so the memory of each thread fills. Only a
    thread itself can return its memory. So `nudge` (`signals.nudge_workers`) interrupts those that
    wait for a request.
    """

    def __init__(self, nudge: Callable[[], None], *, idle_s: float = IDLE_S) -> None:
        # dependencies
        self._nudge = nudge
        # constants
        self._idle_ns = round(idle_s * 1e9)
        # mutable, used by the thread that sweeps only
        self._returned_ns = 0

    def sweep(self) -> None:
        """Return the memory to the system after some time without large requests."""
        last_ns = _channel.last_large()
        if last_ns > self._returned_ns and time.monotonic_ns() - last_ns >= self._idle_ns:
            self._returned_ns = last_ns
            _channel.return_memory(last_ns)
            self._nudge()


class KilledPrograms:
    """Ends the waits of programs that are killed while S3 is silent (`_callers`).

    `give_up` is called with a file's handle and the process that waits in a write, or for the
    upload. It returns whether the process need not wait.
    """

    def __init__(self, give_up: Callable[[int, int], bool]) -> None:
        # dependencies
        self._give_up = give_up
        # mutable, used by the thread that sweeps only
        self._seen: set[int] = set()  # requests that were in progress at the last sweep

    def sweep(self) -> None:
        """End the waits for requests of killed programs. Most requests take less than a sweep."""
        waiting = _callers.waiting()
        for request, thread, handle in waiting:
            if request not in self._seen:
                continue
            ending, killed = is_ending(thread)
            if handle:
                # A file is uploaded if its program ends otherwise, even with an error.
                ending = killed and self._give_up(handle, process_of(thread))
            if ending:
                _callers.abandon(_channel.device(), request)
        self._seen = {request for request, *_ in waiting}
