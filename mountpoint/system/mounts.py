"""What /proc/self/mountinfo says of the mounts that this process sees (proc_pid_mountinfo(5))."""

import os
import re
from typing import NamedTuple

#: A space, a tab, a line feed or a backslash, as the kernel writes it.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """A mount: its device as "major:minor", the directory of the file system that is its root,
    where it is mounted, the type of the file system and its own options.
    """

    device: str
    root: str
    directory: str
    kind: str
    options: tuple[str, ...]


def mounts(path: str = "/proc/self/mountinfo") -> list[MountInfo]:
    """Return all mounts, in the order in which they were made. Raises OSError."""
    found = []
    # Bytes: str takes more than these four characters for a space or the end of a line.
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


def _text(field: bytes) -> str:
    plain = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)
