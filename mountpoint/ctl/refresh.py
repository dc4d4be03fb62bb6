"""`mount-s3ctl refresh`: make a mount forget a path.

A path that the mount has never seen may exist in the bucket. So the mount can only find out that a
path is wrong by looking it up after it has forgotten it.
"""

import os
import time

from mountpoint.ctl.mounts import Mount
from mountpoint.errors import MountError

#: The longest time in seconds that the kernel remembers an absent name
#: (`operations.LONGEST_ABSENCE_S`), and a margin.
ABSENCE_S = 1.1


def refresh(mount: Mount, path: str) -> int:
    """Refresh a path of the mount and everything below it; return the number of names forgotten.

    Raises MountError if there was nothing to forget and the path does not exist.
    """
    forgotten = int(mount.ask("refresh", path=path)["forgotten"])
    if not forgotten and path and not _exists(mount, path):
        raise MountError(
            f"'{path}' does not exist in the mount at '{mount.directory}'",
            "neither the mount nor S3 knows it: check the path",
        )
    return forgotten


def _exists(mount: Mount, path: str) -> bool:
    """Whether a path exists, by looking it up; True if that fails."""
    full_path = os.path.join(mount.directory, path)
    if _is_there(full_path):
        return True
    if not mount.status["negative_metadata_ttl_s"]:
        return False
    time.sleep(ABSENCE_S)  # the kernel may have answered from memory
    return _is_there(full_path)


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
