"""What mounts left behind that ended without being asked: killed, or with the machine.

Each mount has a directory of its own in the staging directory, and holds a lock in it (flock) for
as long as it lives. Where nobody holds the lock the mount is dead. What is in S3 (a file without a
journal) goes then; what is not stays, of whichever bucket, with a description beside it, and each
mount of that bucket says so when it starts, until somebody has taken it away.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from mountpoint.errors import OperationError
from mountpoint.staging import journal
from mountpoint.staging.extents import Extents
from mountpoint.staging.journal import Subject

log = structlog.get_logger(__name__)

PREFIX = "mount-s3-"
LOCK = "lock"
DATA_SUFFIX = ".data"


def clear(directory: Path, bucket: str) -> None:
    """Remove what dead mounts left in a staging directory, as far as it is in S3; log the rest.

    What belongs to other users is left alone. Nothing is raised: a mount comes to be without.
    """
    with suppress(OSError):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            with suppress(OSError):
                mine = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                if entry.name.startswith(PREFIX) and mine and entry.is_dir(follow_symlinks=False):
                    _clear_one(Path(entry.path), bucket)


def _clear_one(own: Path, bucket: str) -> None:
    with _dead(own / LOCK) as dead:
        if not dead:
            return
        for data in sorted(own.glob(f"*{DATA_SUFFIX}")):
            if data.with_suffix(journal.SUFFIX).exists():
                _keep(data, bucket)
            else:
                data.unlink(missing_ok=True)
        for other in own.glob("*.new"):
            other.unlink(missing_ok=True)
        remove_if_empty(own)


@contextmanager
def _dead(lock: Path) -> Iterator[bool]:
    """Whether nobody holds a lock; then it is held meanwhile."""
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = True
        except BlockingIOError:
            dead = False
        yield dead
    finally:
        os.close(fd)


def _keep(data: Path, bucket: str) -> None:
    try:
        subject, extents = journal.replay(data.with_suffix(journal.SUFFIX))
        os.truncate(data, extents.size_bytes)  # what its writer was not told of any more
        journal.write_description(data, subject, extents)
    except (OSError, ValueError, OperationError) as error:
        log.warning(
            "a mount left a file behind, and what it says of it cannot be read",
            path=os.fspath(data),
            reason=str(error),
        )
        return
    if subject.bucket == bucket:
        say_kept(data, subject, extents)


def say_kept(data: Path, subject: Subject, extents: Extents) -> None:
    """Log that a file is here and not in S3."""
    missing_bytes = sum(stop - start for start, stop in extents.missing(0, extents.size_bytes))
    log.warning(
        "a file was written and is not in S3: it is kept",
        path=os.fspath(data),
        bucket=subject.bucket,
        key=subject.key,
        size=extents.size_bytes,
        missing=missing_bytes,
        hint="docs/staging.md says how to have it back; remove it to hear no more of it",
    )


def remove_if_empty(own: Path) -> None:
    """Remove a mount's directory with its lock, unless there is something else in it."""
    if {entry.name for entry in os.scandir(own)} <= {LOCK}:
        (own / LOCK).unlink(missing_ok=True)
        own.rmdir()
