"""The directory where a mount stages files, and how much it may hold.

What counts is what takes room on the disk: blocks of the sparse files, not their sizes. Room is
taken before bytes are written. It is refused at the limit, and when the disk itself gets full,
which others may cause: a share of it always stays free.

Who is refused asks for room to be made (`reclaim`): copies of what is in S3 are dropped (holes are
punched), of the files first that were not used for the longest time. What was changed stays.

A mount has a directory of its own, and a lock in it that tells others that it lives (`recovery`).
"""

import fcntl
import itertools
import os
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog

from mountpoint.config import MIB
from mountpoint.errors import MountError
from mountpoint.staging import recovery as leftovers

log = structlog.get_logger(__name__)

#: Without a limit: this share of what is free when the mount starts.
LIMIT_SHARE = 0.5
#: So much of a disk stays free: root's share on ext4 is as large. On large disks less is enough.
FREE_SHARE = 0.05
MOST_FREE_BYTES = 4 << 30
#: How much is taken until the disk is asked again how full it is.
LOOK_BYTES = 16 * MIB
#: With less than a few parts of a file nothing can be done.
LEAST_LIMIT_BYTES = 16 * MIB
#: Room is made in pieces, because finding what can go takes longer than letting it go.
RECLAIM_BYTES = 16 * MIB


class Reclaimable(Protocol):
    """A file of the area."""

    @property
    def used_s(self) -> float:
        """When it was last read or written."""

    def reclaim(self, size_bytes: int) -> int:
        """Give back about so much of what is in S3 too; return how much it was."""

    def end(self) -> None:
        """Remove what is in S3, keep what is not: the mount ends."""


class Room(NamedTuple):
    """How much may be staged, how much of the disk stays free, and what that leaves now."""

    limit_bytes: int
    keep_free_bytes: int
    usable_bytes: int


class StagingArea:
    """Room for the staged files of one mount of `bucket`. Thread-safe.

    `_lock` is taken with a file's lock held, and never the other way round. Raises MountError.
    """

    def __init__(self, directory: str, bucket: str, limit_bytes: int | None = None) -> None:
        # constants
        self.bucket = bucket
        root = Path(directory).absolute()
        try:
            leftovers.clear(root, bucket)
            room = check_room(directory, limit_bytes)
            self.limit_bytes, self._keep_free_bytes = room.limit_bytes, room.keep_free_bytes
            self.path, self._lock_fd = _own_directory(root)
        except OSError as error:
            raise MountError(
                f"files cannot be staged in '{directory}': {error.strerror}",
                "--staged-writes needs a directory on a local disk in which you can write",
            ) from None
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._unlooked_bytes = LOOK_BYTES  # taken since the disk was asked
        self._tenants: set[Reclaimable] = set()
        self._numbers = itertools.count(1)

    @property
    def used_bytes(self) -> int:
        """What all files take on the disk."""
        return self._used_bytes

    def new_path(self) -> Path:
        """Return the path of a new file's data."""
        return self.path / f"{next(self._numbers):06}{leftovers.DATA_SUFFIX}"

    def add(self, tenant: Reclaimable) -> None:
        """Note a file that has something to give back."""
        with self._lock:
            self._tenants.add(tenant)

    def remove(self, tenant: Reclaimable) -> None:
        """Note that a file is gone; its room it has given back."""
        with self._lock:
            self._tenants.discard(tenant)

    def try_take(self, size_bytes: int) -> bool:
        """Take room for so much; False if there is none."""
        with self._lock:
            if size_bytes <= 0:
                return True
            if self._used_bytes + size_bytes > self.limit_bytes:
                return False
            if self._unlooked_bytes + size_bytes >= LOOK_BYTES:
                if self._free_bytes() - size_bytes < self._keep_free_bytes:
                    return False
                self._unlooked_bytes = 0
            self._unlooked_bytes += size_bytes
            self._used_bytes += size_bytes
            return True

    def give(self, size_bytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._used_bytes -= size_bytes
            assert self._used_bytes >= 0

    def reclaim(self, size_bytes: int) -> bool:
        """Make room, with no lock held; False if nothing could be given back."""
        wanted_bytes = max(size_bytes, RECLAIM_BYTES)
        with self._lock:
            tenants = list(self._tenants)
        freed_bytes = 0
        for tenant in sorted(tenants, key=lambda each: each.used_s):
            freed_bytes += tenant.reclaim(wanted_bytes - freed_bytes)
            if freed_bytes >= wanted_bytes:
                break
        log.debug("room made for staged files", bytes=freed_bytes)
        return freed_bytes > 0

    def close(self) -> None:
        """End: what is in S3 goes, what is not stays and is logged.

        For the end of the mount, when its uploads have been given up (`Uploads.interrupt`).
        """
        with self._lock:
            tenants = list(self._tenants)
        for tenant in tenants:
            tenant.end()
        with suppress(OSError):
            leftovers.remove_if_empty(self.path)
        os.close(self._lock_fd)

    def _free_bytes(self) -> int:
        try:
            status = os.statvfs(self.path)
        except OSError:  # then writing will say what is wrong
            return self.limit_bytes + self._keep_free_bytes
        return status.f_bavail * status.f_frsize


def check_room(directory: str, limit_bytes: int | None) -> Room:
    """Return what may be staged in `directory`. Raises MountError if that is too little, OSError.

    `limit_bytes` None: a share of what is free.
    """
    status = os.statvfs(directory)
    free_bytes = status.f_bavail * status.f_frsize
    disk_bytes = status.f_blocks * status.f_frsize
    keep_free_bytes = min(int(disk_bytes * FREE_SHARE), MOST_FREE_BYTES)
    limit_bytes = int(free_bytes * LIMIT_SHARE) if limit_bytes is None else limit_bytes
    usable_bytes = min(limit_bytes, free_bytes - keep_free_bytes)
    if usable_bytes < LEAST_LIMIT_BYTES:
        raise MountError(
            f"there is too little room for staged writes in '{directory}': "
            f"{max(usable_bytes, 0) // MIB} MiB",
            f"at least {LEAST_LIMIT_BYTES // MIB} MiB are needed: free some, "
            "raise --staged-limit, or choose another directory",
        )
    return Room(limit_bytes, keep_free_bytes, usable_bytes)


def check_directory(directory: str, mount_directory: str | None) -> None:
    """Raise MountError unless files can be staged in `directory`, before anything is mounted.

    `mount_directory` None: it is not known where.
    """
    hint = "--staged-writes needs a directory on a local disk in which you can write"
    try:
        mode = os.stat(directory).st_mode
    except FileNotFoundError:
        raise MountError(
            f"the staging directory '{directory}' does not exist",
            f"make it first: mkdir -p -m 700 {directory}",
        ) from None
    except OSError as error:
        raise MountError(
            f"the staging directory '{directory}' cannot be used: {error.strerror}", hint
        ) from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"the staging directory '{directory}' is not a directory", hint)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise MountError(f"the staging directory '{directory}' cannot be written", hint)
    if mount_directory is None:
        return
    real, mount = os.path.realpath(directory), os.path.realpath(mount_directory)
    if os.path.commonpath([real, mount]) == mount:
        raise MountError(
            f"the staging directory '{directory}' is inside the mount '{mount_directory}'",
            "choose one elsewhere: files cannot be staged in the bucket that they are staged for",
        )


def _own_directory(root: Path) -> tuple[Path, int]:
    """Make a directory for this mount, and take its lock. Raises OSError."""
    # Under a name that `recovery` does not look at, until it is locked.
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(made / leftovers.LOCK, flags, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    own = root / (leftovers.PREFIX + made.name.removeprefix(".new-"))
    made.rename(own)
    return own, fd
