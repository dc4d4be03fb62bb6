"""Clean up after mounts that did not end in order: they were killed, or the machine stopped.

Each mount has its own directory in the staging directory, and holds a lock in it (flock) while it
lives. If the lock is free, the mount is dead. (If the mount has a keeper, the next process takes
the lock, and goes on with what was open: see StagedFile.) Files of a dead mount that are in S3,
those without a journal, are removed, and so are those without a key, which a program had removed.
The other files stay, whatever their bucket, and get a description. Each mount of that bucket logs
them when it starts, until the user removes them.
"""

import fcntl
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from mountpoint.errors import OperationError
from mountpoint.staging import journal
from mountpoint.staging.extents import Extents
from mountpoint.staging.journal import Journal, Subject

log = structlog.get_logger(__name__)

PREFIX = "mount-s3-"
LOCK = "lock"
DATA_SUFFIX = ".data"


def clear(directory: Path, bucket: str) -> None:
    """Remove files of dead mounts in a staging directory that are in S3; log the others.

    Other users' directories are left alone. Raises nothing: a mount works without this.
    """
    with suppress(OSError):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            with suppress(OSError):
                mine = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                if entry.name.startswith(PREFIX) and mine and entry.is_dir(follow_symlinks=False):
                    _clear_one(Path(entry.path), bucket)


def _clear_one(own: Path, bucket: str) -> None:
    with _dead(own / LOCK) as dead:
        if dead:
            clear_files(own, bucket)
            remove_if_empty(own)


def clear_files(own: Path, bucket: str, used: Container[Path] = ()) -> None:
    """Do so with all files in a mount's directory but `used`. Raises OSError."""
    for data in data_files(own):
        if data in used:
            continue
        if data.with_suffix(journal.SUFFIX).exists():
            _keep(data, bucket)
        else:
            data.unlink(missing_ok=True)
    for other in own.glob("*.new"):
        other.unlink(missing_ok=True)


def data_files(own: Path) -> list[Path]:
    """Return the paths of the staged files in a mount's directory, oldest first."""
    return sorted(own.glob(f"*{DATA_SUFFIX}"))


@contextmanager
def _dead(lock: Path) -> Iterator[bool]:
    """Yield whether a lock is free; it is then held inside the context."""
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
        if subject.key is None:
            Journal(data).remove()  # first: the rest of it would not be found without its data
            data.unlink(missing_ok=True)
            return
        os.truncate(data, extents.size_bytes)  # later bytes belong to a write that did not return
        journal.write_description(data, subject, extents)
    except (OSError, ValueError, OperationError) as error:
        log.warning(
            "a mount left a staged file, but its description cannot be read",
            path=os.fspath(data),
            reason=str(error),
        )
        return
    if subject.bucket == bucket:
        say_kept(data, subject, extents)


def say_kept(data: Path, subject: Subject, extents: Extents) -> None:
    """Log that a local file is not in S3."""
    missing_bytes = sum(stop - start for start, stop in extents.missing(0, extents.size_bytes))
    log.warning(
        "a staged file was not uploaded; it is kept on disk",
        path=os.fspath(data),
        bucket=subject.bucket,
        key=subject.key,
        size=extents.size_bytes,
        missing=missing_bytes,
        hint="docs/staging.md shows how to recover it; delete the file to stop this message",
    )


def remove_if_empty(own: Path) -> None:
    """Remove a mount's directory and its lock, unless it has other files."""
    if {entry.name for entry in os.scandir(own)} <= {LOCK}:
        (own / LOCK).unlink(missing_ok=True)
        own.rmdir()
