"""The mounts that this process sees, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

import os
import re
import threading
from typing import NamedTuple

from mountpoint.errors import ABORTED

#: A space, tab, line feed or backslash, as the kernel escapes it.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """A mount.

    Its device as "major:minor", the directory of the file system that is its root, its mount point,
    and the file system's type and options.
    """

    device: str
    root: str
    directory: str
    kind: str
    options: tuple[str, ...]


def mounts(path: str = "/proc/self/mountinfo") -> list[MountInfo]:
    """Return all mounts, in the order in which they were made. Raises OSError."""
    found = []
    # Read bytes: in text, more characters than these four count as a space or a line end.
    with open(path, "rb") as file:
        for line in file:
            fields, _, behind = line.rstrip(b"\n").partition(b" - ")
            _, _, device, root, directory, *_ = fields.split(b" ")
            kind, _, options = behind.split(b" ", 2)
            found.append(
                MountInfo(
                    device.decode("ascii"),
                    _text(root),
                    _text(directory),
                    _text(kind),
                    tuple(_text(options).split(",")),
                )
            )
    return found


def failure(directory: str, within_s: float) -> OSError | None:
    """Return the error with which a mounted file system answers; None if it works.

    TimeoutError if it does not answer in time: then its process hangs, and so does a thread here.
    """
    # The kernel passes statfs(2) on, while it may answer stat(2) from its cache.
    found: list[OSError | None] = []

    def look() -> None:
        try:
            os.statvfs(directory)
            found.append(None)
        except OSError as error:
            if error.errno == ABORTED:  # its process has just gone
                look()
            else:
                found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(within_s)
    return found[0] if found else TimeoutError(0, "it hangs")


def real_path(path: str) -> str:
    """Return a path without symbolic links. A mount point at its end is not asked: it may hang.

    ".." is resolved after symbolic links, as the kernel does it. Raises FileNotFoundError for a
    relative path if the current directory is gone.
    """
    parent, name = os.path.split(path.rstrip("/"))
    if name not in ("", ".", ".."):
        found = os.path.join(os.path.realpath(parent), name)
        if any(each.directory == found for each in mounts()):  # so it is no symbolic link
            return found
    return os.path.realpath(path)


def file_system(path: str) -> str:
    """Return the type of the file system that a path is on, such as "ext4"; "" if it is not known.

    Raises OSError.
    """
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((each.kind for each in mounts() if each.device == wanted), "")


def is_below(path: str, directory: str) -> bool:
    """Whether a path is a directory, or below it, after symbolic links."""
    real = os.path.realpath(directory)
    return os.path.commonpath([os.path.realpath(path), real]) == real


def _text(field: bytes) -> str:
    plain = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)
