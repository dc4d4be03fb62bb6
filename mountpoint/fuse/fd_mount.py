"""`/dev/fd/N` in place of the directory: another process has mounted, and passes /dev/fuse on.

That process opens /dev/fuse, calls mount(2) with `fd=N` among the options, and lets us inherit the
descriptor. So our process needs neither privileges nor fusermount, and does not choose the mount's
options; the process that has mounted also unmounts. The syntax, and the options that are refused
with it, are those of mountpoint-s3 (mountpoint-s3-fs/src/fuse/config.rs).

The kernel shows the state of a descriptor: poll(2) of /dev/fuse returns POLLERR if nothing is
mounted with it, and POLLIN if a request waits. The first request, INIT, waits from mount(2) on
(fs/fuse/dev.c, fs/fuse/inode.c).
"""

import contextlib
import fcntl
import os
import re
import select
import stat

from mountpoint.errors import MountError
from mountpoint.system import kernel

#: Documentation/admin-guide/devices.txt: a misc device.
FUSE_DEVICE = os.makedev(10, 229)

HOW = (
    "open /dev/fuse for reading and writing, mount with fd=N, and start mount-s3 with the "
    "descriptor open as N (docs/containers.md)"
)


def number_of(directory: str) -> int | None:
    """Return N where `directory` is /dev/fd/N, else None."""
    match = re.fullmatch(r"/dev/fd/([0-9]{1,9})", directory, re.ASCII)
    return int(match[1]) if match else None


def claim(number: int) -> str:
    """Claim the descriptor; return where it is mounted, or its name if that is hidden.

    Programs that we start do not inherit it, and it stays open when we go to the background
    (`mount/daemon` closes inheritable descriptors). Raises MountError unless the descriptor has a
    mount that waits to be served.
    """
    name = f"/dev/fd/{number}"
    try:
        what = os.fstat(number)
    except OSError:
        raise MountError(f"'{name}' is not an open descriptor", HOW) from None
    if not stat.S_ISCHR(what.st_mode) or what.st_rdev != FUSE_DEVICE:
        raise MountError(f"'{name}' is not /dev/fuse", HOW)
    if number <= 2:
        raise MountError(
            f"'{name}' is standard input or output", "pass /dev/fuse as descriptor 3 or higher"
        )
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise MountError(f"'{name}' is not open for reading and writing", HOW)
    _check_mounted(number, name)
    os.set_inheritable(number, False)
    os.set_blocking(number, True)  # threads block on it
    return _mount_point(number) or name


def _check_mounted(number: int, name: str) -> None:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    events = poll.poll(0)
    if not events:
        raise MountError(
            f"'{name}' was served before", "each mount-s3 needs its own mount: mount again"
        )
    if events[0][1] & select.POLLERR:
        raise MountError(f"nothing is mounted with '{name}'", HOW)


def _mount_point(number: int) -> str | None:
    """Return the directory if the kernel shows it (Linux 6.18) and this process sees it."""
    with (
        contextlib.suppress(OSError),
        open(f"/proc/self/fdinfo/{number}", encoding="ascii") as file,
    ):
        for line in file:
            if line.startswith("fuse_connection:"):
                device = f"0:{line.split()[1]}"
                points = kernel.mount_points().items()
                return next((point for point, its in points if its == device), None)
    return None
