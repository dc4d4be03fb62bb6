"""Check whether this machine can mount a FUSE file system.

The tests and the demo call it before they mount, so that the user of a container without the device
sees the reason and the remedy instead of an error from libfuse. It mounts nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

DEVICE = Path("/dev/fuse")
DEVICE_NUMBER = os.makedev(10, 229)  # Linux: Documentation/admin-guide/devices.txt
CAP_SYS_ADMIN = 21  # linux/capability.h


def why_no_fuse() -> str | None:
    """Return None if FUSE works here, or one sentence: what is missing, and what to do."""
    return _device_problem() or _fusermount_problem()


def _device_problem() -> str | None:
    try:
        found = DEVICE.stat()
    except FileNotFoundError:
        if _kernel_knows_fuse():
            return (
                f"{DEVICE} does not exist, though the kernel has FUSE: start the container with "
                f"--device {DEVICE} --cap-add SYS_ADMIN"
            )
        return (
            f"{DEVICE} does not exist and the kernel module fuse is not loaded: "
            "run modprobe fuse as root, on the host if this is a container"
        )
    except OSError as error:
        return f"{DEVICE} cannot be examined: {error.strerror}"
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != DEVICE_NUMBER:
        return f"{DEVICE} is not the FUSE device: remove it, then mknod -m 666 {DEVICE} c 10 229"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _why_not_opened(error)
    return None


def _why_not_opened(error: OSError) -> str:
    match error.errno:
        case errno.EACCES:
            return (
                f"this user may not open {DEVICE}: its mode should be 0666, "
                f"run chmod 666 {DEVICE} as root"
            )
        case errno.EPERM:
            return (
                f"this container may not open {DEVICE}: start it with --device {DEVICE} "
                "--cap-add SYS_ADMIN"
            )
        case errno.ENODEV | errno.ENXIO:
            return f"{DEVICE} has no driver: run modprobe fuse as root, on the host"
        case _:
            return f"{DEVICE} cannot be opened: {error.strerror}"


def _fusermount_problem() -> str | None:
    program = shutil.which("fusermount")
    if program is None:
        return "fusermount was not found: install the package fuse (make setup does)"
    if os.geteuid() == 0:
        if not _has_capability(CAP_SYS_ADMIN):
            return (
                "root may not mount here (no CAP_SYS_ADMIN): start the container with "
                f"--cap-add SYS_ADMIN --device {DEVICE}"
            )
    elif not os.stat(program).st_mode & stat.S_ISUID:
        return f"{program} is not setuid root, so only root can mount: run chmod u+s {program}"
    return None


def _kernel_knows_fuse() -> bool:
    try:
        kinds = Path("/proc/filesystems").read_text().split()
    except OSError:
        return False
    return "fuse" in kinds


def _has_capability(number: int) -> bool:
    """Return whether this process has a capability; True if that is unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return True
