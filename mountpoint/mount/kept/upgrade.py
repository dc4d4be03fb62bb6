"""Hand a mount over to the installed version of mount-s3, while programs use it.

The worker of that version is prepared first: if it cannot reach S3, nothing has changed. Then this
process waits for a moment in which no file is being streamed to S3 and no operation changes
anything, lets new requests wait, and has itself killed. The kernel sends those requests to the next
worker.

A restart of the service is the same without that worker: systemd has the mount until it has started
the next keeper.
"""

import contextlib
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from mountpoint.errors import MountError
from mountpoint.fs.filesystem import FileSystem
from mountpoint.fuse import binding
from mountpoint.metrics.recorder import Meters
from mountpoint.mount.kept.link import Link

log = structlog.get_logger(__name__)

#: Operations that the next worker could not repeat, or whose result it would not know.
CHANGES = (
    "create",
    "flush",
    "fsync",
    "mkdir",
    "mknod",
    "open",
    "release",
    "rename",
    "rmdir",
    "setattr",
    "unlink",
    "write",
)
#: How long to wait for a moment without changes, in seconds. Others cannot use the control socket.
QUIET_S = 5.0
#: The same for a restart of the service, which waits for nothing else.
LEAVE_S = 30.0
#: How long requests may wait for operations in progress.
HOLD_S = 0.5
POLL_S = 0.002


class Upgrade:
    """Hands over the mount of this process."""

    def __init__(self, link: Link, filesystem: FileSystem, meters: Meters) -> None:
        # dependencies
        self._link = link
        self._filesystem = filesystem
        self._meters = meters

    def run(self) -> NoReturn:
        """Hand the mount over; this process is killed.

        Raises MountError if that is not possible. Then the mount is as before.
        """
        if not binding.repeats():
            raise MountError(
                "the kernel cannot repeat requests for another process",
                "it needs Linux 6.9; unmount and mount again",
            )
        self._link.prepare_upgrade()
        try:
            self._wait_until_quiet(QUIET_S)
            self._link.hand_over()
        except BaseException:
            binding.hold(False)
            self._link.cancel_upgrade()
            raise

    def leave(self) -> None:
        """Leave the mount to the next keeper; this process is killed.

        Files that are still being streamed then are lost with it.
        """
        with contextlib.suppress(MountError):
            self._wait_until_quiet(LEAVE_S)
        log.info("the mount is left to the service manager")
        binding.hold(True)
        try:
            self._link.hand_over()
        except MountError as error:
            binding.hold(False)
            log.warning("the mount could not be left", reason=error.what)

    def _wait_until_quiet(self, patience_s: float) -> None:
        """Return while requests wait, and nothing is being changed. Raises MountError."""
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            if not _eventually(lambda: not self._filesystem.needs_process(), until_s):
                break
            binding.hold(True)
            if _eventually(self._is_quiet, time.monotonic() + HOLD_S):
                return
            binding.hold(False)
        raise MountError(
            "files are being written, or changed, all the time",
            "try again when the programs that write have finished",
        )

    def _is_quiet(self) -> bool:
        operations = self._meters.operations
        changes = (operations[name].under_way for name in CHANGES if name in operations)
        return not any(changes) and not self._filesystem.needs_process()


def _eventually(condition: Callable[[], bool], until_s: float) -> bool:
    """Wait until the condition holds; return whether it did before that time."""
    while not condition():
        if time.monotonic() >= until_s:
            return False
        time.sleep(POLL_S)
    return True
