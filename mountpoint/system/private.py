"""Directories that other users must not change, or not even enter."""

import os
import stat
from pathlib import Path

ENTERED, WRITTEN = 0o077, 0o022


def make_private(directory: Path, forbidden: int = ENTERED) -> None:
    """Make `directory`, unless it exists and is this user's own.

    `forbidden` are the permissions that it must not have. A symbolic link in its place is refused:
    another user may have made it. Raises OSError.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(0, "it is a symbolic link")
    if status.st_uid != os.geteuid():
        raise PermissionError(0, f"it belongs to another user ({status.st_uid})")
    if status.st_mode & forbidden:
        raise PermissionError(
            0, f"other users can {'enter' if forbidden == ENTERED else 'change'} the directory"
        )
