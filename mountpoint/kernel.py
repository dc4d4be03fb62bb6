"""What the kernel says of mounts, and lets be set for one. From /proc and /sys only.

Nothing here touches a mount itself: a process that waits on its own mount may hang for good
(see `signals`).
"""

import os
from pathlib import Path

#: How far the kernel reads ahead in a buffered file. Read-ahead from S3 is ours
#: (`window`); the kernel's has to cover only the way between the two, and its reads are as
#: large as this, up to the channel's 1 MiB.
READ_AHEAD_KB = 1024


def mount_points() -> dict[str, str]:
    """Return all mount points that this process sees, with their devices as "major:minor".

    The last one mounted counts where there are several (proc_pid_mountinfo(5)).
    """
    # Bytes: of what str takes for a space or the end of a line, only four are escaped there.
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split(b" ") for line in file]
    return {_unescaped(line[4]): line[2].decode("ascii") for line in lines}


def raise_read_ahead(directory: str) -> None:
    """Raise the read-ahead of what is mounted on `directory`.

    Only after the kernel has had the answer to INIT, which may lower it again. Raises
    OSError where that is not allowed (it is root's, and /sys is read-only in containers).
    """
    device = mount_points().get(os.path.realpath(directory))
    if device is None:
        raise FileNotFoundError(f"nothing is mounted on {directory}")
    Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KB), "ascii")


def _unescaped(field: bytes) -> str:
    for code in (b"040", b"011", b"012", b"134"):  # space, tab, newline, backslash
        field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(field)
