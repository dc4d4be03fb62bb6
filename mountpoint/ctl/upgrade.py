"""`mount-s3ctl upgrade`: replace the process of a mount by one of the installed version.

The mount itself does it, if it has a keeper (`mount/kept/upgrade`). This waits until no file is
being streamed to S3, asks the mount to do it, and waits for the process that follows.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from mountpoint.ctl import mounts
from mountpoint.ctl.mounts import Mount, MountEnded
from mountpoint.ctl.progress import Progress, still_written
from mountpoint.errors import MountError

POLL_S = 0.2
#: The longest time in seconds that the new process takes to answer.
FOLLOW_S = 30.0


def upgrade(mount: Mount, timeout_s: float, progress: Progress) -> Mount:
    """Upgrade a mount; return it with its new process.

    Raises MountError if it cannot be upgraded, and if files are written for longer than `timeout_s`
    seconds.
    """
    try:
        _wait_for_writers(mount, timeout_s, progress)
    finally:
        progress.leave()
    with contextlib.suppress(MountEnded):  # the process that was to answer has handed over
        mount.ask("upgrade")
    return _follower(mount.status)


def _wait_for_writers(mount: Mount, timeout_s: float, progress: Progress) -> None:
    until_s = time.monotonic() + timeout_s
    while writing := [
        each for each in mount.ask("status")["being_written"] if not each.get("survives")
    ]:
        progress.show(writing)
        if time.monotonic() > until_s:
            raise still_written(mount.directory, writing)
        time.sleep(POLL_S)
    progress.done()


def _follower(before: Mapping[str, Any]) -> Mount:
    until_s = time.monotonic() + FOLLOW_S
    while time.monotonic() < until_s:
        for each in mounts.answering(os.environ):
            status = each.status
            if status["directory"] == before["directory"] and status["pid"] != before["pid"]:
                return each
        time.sleep(POLL_S)
    raise MountError(
        f"the process that follows at '{before['directory']}' does not answer", "its log says why"
    )
