"""`mount-s3ctl refresh`: a mount forgets what it knows of a path.

A path that the mount has never heard of may exist in the bucket, so only the mount can tell a wrong
one: by looking it up after it has forgotten.
"""

import os
import time

from mountpoint.ctl.mounts import Mount
from mountpoint.errors import MountError

#: How long the kernel remembers that a name is absent (`operations.LONGEST_ABSENCE_S`), and a bit.
ABSENCE_S = 1.1


def refresh(mount: Mount, path: str) -> int:
    """Refresh a path below the mount, and all below it; return how many names were forgotten.

    Raises MountError where there was nothing to forget and the path does not exist.
    """
    forgotten = int(mount.ask("refresh", path=path)["forgotten"])
    if not forgotten and path and not _exists(mount, path):
        raise MountError(
            f"'{path}' does not exist in the mount at '{mount.directory}'",
            "nothing was known of it, and S3 has no such object or directory: check the path",
        )
    return forgotten


def _exists(mount: Mount, path: str) -> bool:
    """Look a path up; it counts as existing where that cannot be found out."""
    place = os.path.join(mount.directory, path)
    if _is_there(place):
        return True
    if not mount.status["negative_metadata_ttl_s"]:
        return False
    time.sleep(ABSENCE_S)  # the answer may have been the kernel's own
    return _is_there(place)


def _is_there(place: str) -> bool:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
