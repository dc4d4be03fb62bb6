"""What the kernel says of mounts, and lets be set for one. From /proc and /sys only.

Nothing here touches a mount itself: a process that waits on its own mount may hang for good
(see `mount/signals`).
"""

import os
from pathlib import Path
from typing import NamedTuple

import structlog

from mountpoint.system.mounts import mounts

log = structlog.get_logger(__name__)

#: How far the kernel reads ahead in a buffered file. Read-ahead from S3 is ours (`read/readahead`);
#: the kernel's covers the way between the two. Of 128, 256, 512 and 1024 KiB each was some 10 %
#: faster for one sequential reader, and a random read of 1 MiB is one request only with the last.
READ_AHEAD_KB = 1024
#: But what the program leaves unread has been fetched for nothing. A Parquet reader's bytes were
#: 1.30, 1.38, 1.55 and 1.88 times what it read, a zip reader's 2.7 to 5 times. So in files of
#: the formats that are read in pieces the kernel keeps to its default.
PIECES_READ_AHEAD_KB = 128
READ_IN_PIECES = frozenset(
    b"7z arrow avro bgz db duckdb feather h5 hdf hdf5 ipc jar lance nc npz orc parquet pq sqlite"
    b" sqlite3 tif tiff vortex whl xlsx zarr zip".split()
)

#: Where programs only look at the files of a directory: of a read of 4 KiB the kernel then makes no
#: more, of a larger one twice as much. Otherwise it makes 16 KiB of 4, and 1 MiB of 300.
LOOK_READ_AHEAD_KB = 4


def mount_points() -> dict[str, str]:
    """Return all mount points that this process sees, with their devices as "major:minor".

    The last one mounted counts where there are several (proc_pid_mountinfo(5)). autofs is none:
    there nothing is mounted yet, and who asked for it waits for us (x-systemd.automount).
    """
    return {each.directory: each.device for each in mounts() if each.kind != "autofs"}


def knows(kind: str) -> bool:
    """Whether the kernel has file systems of this type."""
    with open("/proc/filesystems", encoding="ascii") as file:
        return any(line.split()[-1:] == [kind] for line in file)


class Mounted(NamedTuple):
    """A FUSE mount: where, and whose."""

    directory: str
    uid: int


def fuse_mounts(kind: str) -> list[Mounted]:
    """Return all mounts of a type, such as fuse.mount-s3, that this process sees."""
    found = []
    for each in mounts():
        options = dict(option.partition("=")[::2] for option in each.options)
        if each.kind == kind and "user_id" in options:
            found.append(Mounted(each.directory, int(options["user_id"])))
    return found


class ReadAhead:
    """The kernel's read-ahead for what is mounted on `directory`, by the kind of file.

    There is one setting for the mount, and a file takes what it is when it is opened: so it is
    set before each open is answered, where it has to change. Two opens at the same time may
    get each other's: that costs speed or bytes, and nothing else. Not before the kernel has had
    the answer to INIT, which would lower it again.
    """

    def __init__(self, directory: str) -> None:
        # constants
        self._directory = directory
        # mutable; every change is one step of the interpreter
        self._setting: Path | None = None
        self._kb = 0
        self._refused = False

    def set_for(self, key: bytes, looked_at: bool = False) -> bool:
        """Set it for a file that is being opened, of which only a little may be read.

        Return whether the kernel then reads little more than programs do. Only root may set it, and
        /sys is read-only in many containers: then it stays as it is.
        """
        _, dot, suffix = key.rpartition(b".")
        pieces = dot and suffix.lower() in READ_IN_PIECES
        kb = PIECES_READ_AHEAD_KB if pieces else READ_AHEAD_KB
        if looked_at:
            kb = LOOK_READ_AHEAD_KB
        if self._refused:
            return False
        if kb == self._kb:
            return looked_at
        try:
            if self._setting is None:
                device = mount_points()[os.path.realpath(self._directory)]
                self._setting = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
            self._setting.write_text(str(kb), "ascii")
            self._kb = kb
        except (OSError, KeyError) as error:
            self._refused = True
            log.debug("read-ahead stays as it is: buffered reads may be slower", reason=str(error))
            return False
        return looked_at
