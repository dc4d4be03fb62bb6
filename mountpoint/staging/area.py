"""The directory where a mount stages its files, and the room that they may take.

Room is counted in blocks on the disk, which sparse files have fewer of than their size says. It is
taken before bytes are written. It is refused at the limit, and when the disk itself gets full,
which other programs may cause: a share of the disk always stays free.

A file that gets no room calls `reclaim`. That drops local copies of bytes that are in S3 (it
punches holes), beginning with the least recently used file. Changed bytes stay.

Each mount has its own directory, with a lock that tells others that the mount lives (`recovery`).
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
from mountpoint.staging import recovery
from mountpoint.system.mounts import is_below

log = structlog.get_logger(__name__)

#: The default limit: this share of the space that is free when the mount starts.
LIMIT_SHARE = 0.5
#: This share of a disk stays free, as much as root's share on ext4. On large disks less is enough.
FREE_SHARE = 0.05
MAX_FREE_BYTES = 4 << 30
#: How many bytes may be taken before the disk's free space is checked again.
LOOK_BYTES = 16 * MIB
#: The smallest limit: a file needs room for a few parts.
MIN_LIMIT_BYTES = 16 * MIB
#: Room is made in pieces of at least this size, because finding clean bytes takes the most time.
RECLAIM_BYTES = 16 * MIB


class Reclaimable(Protocol):
    """A file of the area that can give back room."""

    @property
    def used_s(self) -> float:
        """When it was last read or written (monotonic clock, seconds)."""

    def reclaim(self, size_bytes: int) -> int:
        """Give back about `size_bytes` of bytes that are also in S3; return how many."""

    def end(self) -> None:
        """End with the mount: remove the file if it is in S3, keep it if not."""


class Room(NamedTuple):
    """The limit, how much of the disk stays free, and what may be used now."""

    limit_bytes: int
    keep_free_bytes: int
    usable_bytes: int


class StagingArea:
    """Room for the staged files of one mount of `bucket`. Thread-safe.

    `limit_bytes` None: a share of the free space. `name` is that of the mount's own directory, if
    another process of this mount has made it. `_lock` is taken with a file's lock held, never the
    other way round. Raises MountError if `directory` cannot be used.
    """

    def __init__(
        self,
        directory: str,
        bucket: str,
        limit_bytes: int | None = None,
        *,
        name: str | None = None,
    ) -> None:
        # constants
        self.bucket = bucket
        root = Path(directory).absolute()
        try:
            # Before the others are cleared: as long as it is not locked, it looks dead.
            found = None if name is None else _found_directory(root / name)
            recovery.clear(root, bucket)
            room = check_room(directory, limit_bytes) if found is None else _room(root, limit_bytes)
            self.limit_bytes, self._keep_free_bytes = room.limit_bytes, room.keep_free_bytes
            self.path, self._lock_fd = found or _own_directory(root)
            # Of a file that is gone, the journal must not become that of another one.
            last = max((int(each.stem) for each in self.path.glob("[0-9]*")), default=0)
        except OSError as error:
            raise MountError(
                f"files cannot be staged in '{directory}': {error.strerror}",
                "--staged-writes needs a writable directory on a local disk",
            ) from None
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._unlooked_bytes = LOOK_BYTES  # bytes taken since the disk was last checked
        self._tenants: set[Reclaimable] = set()
        self._numbers = itertools.count(last + 1)

    @property
    def used_bytes(self) -> int:
        """The room that all files take on the disk."""
        return self._used_bytes

    def new_path(self) -> Path:
        """Return the path for the data of a new file."""
        return self.path / f"{next(self._numbers):06}{recovery.DATA_SUFFIX}"

    def add(self, tenant: Reclaimable) -> None:
        """Add a file that may give back room."""
        with self._lock:
            self._tenants.add(tenant)

    def remove(self, tenant: Reclaimable) -> None:
        """Remove a file, which has given its room back."""
        with self._lock:
            self._tenants.discard(tenant)

    def try_take(self, size_bytes: int) -> bool:
        """Take room for `size_bytes`; False if there is none."""
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

    def take(self, size_bytes: int) -> None:
        """Take room that is in use on the disk, even above the limit."""
        with self._lock:
            self._used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._used_bytes -= size_bytes
            assert self._used_bytes >= 0

    def reclaim(self, size_bytes: int) -> bool:
        """Make room; False if no file could give any back. Call it without a lock."""
        wanted_bytes = max(size_bytes, RECLAIM_BYTES)
        with self._lock:
            tenants = list(self._tenants)
        freed_bytes = 0
        for tenant in sorted(tenants, key=lambda each: each.used_s):
            freed_bytes += tenant.reclaim(wanted_bytes - freed_bytes)
            if freed_bytes >= wanted_bytes:
                break
        log.debug("freed space for staged files", bytes=freed_bytes)
        return freed_bytes > 0

    def clear(self, used: set[Path]) -> None:
        """Treat what another process of this mount has left, but `used`, as that of a dead one."""
        with suppress(OSError):
            recovery.clear_files(self.path, self.bucket, used)

    def close(self) -> None:
        """Remove the files that are in S3; keep and log the others.

        Called at the end of the mount, after its uploads have been given up (`Uploads.interrupt`).
        """
        with self._lock:
            tenants = list(self._tenants)
        for tenant in tenants:
            tenant.end()
        with suppress(OSError):
            recovery.remove_if_empty(self.path)
        os.close(self._lock_fd)

    def _free_bytes(self) -> int:
        try:
            status = os.statvfs(self.path)
        except OSError:  # the write itself will report the error
            return self.limit_bytes + self._keep_free_bytes
        return status.f_bavail * status.f_frsize


def check_room(directory: str, limit_bytes: int | None) -> Room:
    """Return the room in `directory`. Raises MountError if there is too little, and OSError.

    `limit_bytes` None: a share of the free space.
    """
    room = _room(Path(directory), limit_bytes)
    if room.usable_bytes < MIN_LIMIT_BYTES:
        raise MountError(
            f"there is too little space for staged writes in '{directory}': "
            f"{max(room.usable_bytes, 0) // MIB} MiB",
            f"at least {MIN_LIMIT_BYTES // MIB} MiB are needed: free disk space, "
            "raise --staged-limit, or choose another directory",
        )
    return room


def _room(directory: Path, limit_bytes: int | None) -> Room:
    """Return the room in `directory`, even if it is too little for a new mount. Raises OSError."""
    status = os.statvfs(directory)
    free_bytes = status.f_bavail * status.f_frsize
    disk_bytes = status.f_blocks * status.f_frsize
    keep_free_bytes = min(int(disk_bytes * FREE_SHARE), MAX_FREE_BYTES)
    limit_bytes = int(free_bytes * LIMIT_SHARE) if limit_bytes is None else limit_bytes
    return Room(limit_bytes, keep_free_bytes, min(limit_bytes, free_bytes - keep_free_bytes))


def check_staging_directory(directory: str, mount_directory: str | None) -> None:
    """Raise MountError unless files can be staged in `directory`. Called before mounting.

    `mount_directory` None: it is not known.
    """
    hint = "--staged-writes needs a writable directory on a local disk"
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
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise MountError(
            f"every user can replace what is in the staging directory '{directory}'",
            f"choose a directory of your own, or protect this one: chmod o-w {directory}",
        )
    if mount_directory is not None and is_below(directory, mount_directory):
        raise MountError(
            f"the staging directory '{directory}' is inside the mount '{mount_directory}'",
            "choose another directory, outside the bucket",
        )


def _own_directory(root: Path) -> tuple[Path, int]:
    """Make a directory for this mount, and lock it. Raises OSError."""
    # Until it is locked, it has a name that `recovery` ignores.
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    fd = _locked(made, os.O_CREAT)
    own = root / (recovery.PREFIX + made.name.removeprefix(".new-"))
    made.rename(own)
    return own, fd


def _found_directory(own: Path) -> tuple[Path, int] | None:
    """Lock the directory of another process of this mount; None if it is gone, or still in use."""
    try:
        return own, _locked(own)
    except OSError:
        return None


def _locked(own: Path, flags: int = 0) -> int:
    """Lock a mount's directory; return the descriptor that holds the lock. Raises OSError."""
    fd = os.open(own / recovery.LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
