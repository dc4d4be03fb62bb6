"""A mount whose process was killed, and how to remove it.

Every operation on it fails with ENOTCONN, until somebody unmounts it. So the next mount on its
directory does that, if it was a mount of this program and user. Others are left alone: one that
works, one that only hangs, and those of other programs.
"""

import os
import subprocess

from mountpoint.errors import DISCONNECTED, MountError
from mountpoint.mount.preflight import ANSWER_S
from mountpoint.system import kernel
from mountpoint.system.mounts import MountInfo, failure, mounts

#: How long the kernel may take to unmount.
UNMOUNT_S = 10.0
#: The programs that unmount, the first one that works: root's, and the users'.
PROGRAMS = (("umount", "-l"), ("fusermount", "-uz"))


def mount_at(directory: str) -> MountInfo | None:
    """Return the mount of this program that is mounted on a directory. Does not ask the mount."""
    at = [each for each in mounts() if each.directory == directory]
    # The last one hides the others.
    return at[-1] if at and at[-1].kind == kernel.TYPE else None


def is_dead(directory: str) -> bool:
    """Whether a dead mount of this program and user is mounted on a directory."""
    at = mount_at(directory)
    if at is None or f"user_id={os.geteuid()}" not in at.options:
        return False
    error = failure(directory, ANSWER_S)
    return error is not None and error.errno == DISCONNECTED


def remove(directory: str) -> bool:
    """Unmount a dead mount on a directory; return whether there was one.

    Programs that still use it keep their descriptors, which do not work. Raises MountError.
    """
    if not is_dead(directory):
        return False
    unmount(directory)
    return True


def unmount(directory: str) -> None:
    """Unmount a mount that nobody serves. Does not ask the mount. Raises MountError."""
    said = ""
    for program in PROGRAMS:
        try:
            done = subprocess.run(
                [*program, "--", directory],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=UNMOUNT_S,
                check=False,
            )
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0:
            return
        said = done.stderr.strip()
    raise MountError(
        f"a dead mount is on '{directory}', and cannot be unmounted: {said}",
        f"unmount it: umount -l {directory}",
    )
