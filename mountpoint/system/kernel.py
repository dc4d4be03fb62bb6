"""The kernel's mount points, its FUSE support and its read-ahead setting, from /proc and /sys.

Nothing here accesses a mount itself: a process that waits for its own mount may hang forever (see
`mount/signals`).
"""

from pathlib import Path
from typing import NamedTuple

import structlog

from mountpoint.system.mounts import mounts

log = structlog.get_logger(__name__)

#: The kernel's read-ahead in a buffered file. Read-ahead from S3 is ours (`read/readahead`); the
#: kernel's covers the path between kernel and process. Of 128, 256, 512 and 1024 KiB, each step was
#: some 10 % faster for one sequential reader. Only with the last, a random read of 1 MiB is a
#: single request.
READ_AHEAD_KB = 1024
#: Bytes that the program does not read are wasted. A Parquet reader fetched 1.30, 1.38,
#: 1.55 and 1.88 times the bytes that it read, a zip reader 2.7 to 5 times. So for formats that are
#: read in pieces, the kernel's default stays.
PIECES_READ_AHEAD_KB = 128
READ_IN_PIECES = frozenset(
    b"7z arrow avro bgz db duckdb feather h5 hdf hdf5 ipc jar lance nc npz orc parquet pq sqlite"
    b" sqlite3 tif tiff vortex whl xlsx zarr zip".split()
)

#: For programs that only look at each file of a directory. The kernel then leaves a read of 4 KiB
#: as it is and doubles a larger one. Otherwise it turns 4 KiB into 16 KiB, and 300 KiB into 1 MiB.
LOOK_READ_AHEAD_KB = 4


def mount_points() -> dict[str, str]:
    """Return all mount points that this process sees, with their devices as "major:minor".

    If several are mounted on one directory, the last one counts (proc_pid_mountinfo(5)). autofs
    does not: nothing is mounted there yet, and the process that triggered it waits for us
    (x-systemd.automount).
    """
    return {each.directory: each.device for each in mounts() if each.kind != "autofs"}


def knows(kind: str) -> bool:
    """Whether the kernel supports file systems of this type."""
    with open("/proc/filesystems", encoding="ascii") as file:
        return any(line.split()[-1:] == [kind] for line in file)


#: The type of this program's mounts, and what fuse(4) adds to its own.
SUBTYPE = "mount-s3"
TYPE = f"fuse.{SUBTYPE}"


class FuseMount(NamedTuple):
    """A FUSE mount: its directory and its user."""

    directory: str
    uid: int


def fuse_mounts(kind: str) -> list[FuseMount]:
    """Return all mounts of a type, such as fuse.mount-s3, that this process sees."""
    found = []
    for each in mounts():
        options = dict(option.partition("=")[::2] for option in each.options)
        if each.kind == kind and "user_id" in options:
            found.append(FuseMount(each.directory, int(options["user_id"])))
    return found


class ReadAhead:
    """The kernel's read-ahead for the mount on `directory`, by the kind of file.

    The mount has one setting, and a file takes it when it is opened. So it is set, if it must
    change, before each open is answered. Two opens at the same time may get each other's setting;
    that costs only speed or bytes. Set it only after the kernel has the answer to INIT, which would
    lower it again. `directory` is without symbolic links: to resolve it here would ask the mount
    itself, from a thread that answers the kernel.
    """

    def __init__(self, directory: str) -> None:
        # constants
        self._directory = directory
        # mutable; every change is one step of the interpreter
        self._setting: Path | None = None
        self._kb = 0
        self._refused = False

    def set_for(self, key: bytes, looked_at: bool = False) -> bool:
        """Set the read-ahead for a file being opened; `looked_at`: only a little will be read.

        Return whether the kernel then reads little more than the program does. Only root may set
        it, and /sys is read-only in many containers; then it stays unchanged.
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
                device = mount_points()[self._directory]
                self._setting = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
            self._setting.write_text(str(kb), "ascii")
            self._kb = kb
        except (OSError, KeyError) as error:
            self._refused = True
            log.debug(
                "read-ahead could not be set: buffered reads may be slower", reason=str(error)
            )
            return False
        return looked_at
