"""The effect of open(2)'s flags on an existing file, and the options that permit it. Pure."""

import os

from mountpoint.config import ChangeConfig
from mountpoint.errors import NO_OPTION, BadArgument, NotPermitted

#: Refused: a write with these flags would have to wait until its bytes are in S3, which is not
#: before the upload ends.
SYNC_FLAGS = os.O_SYNC | os.O_DSYNC


def check_flags(flags: int) -> None:
    """Raise BadArgument for flags that no file can be written with."""
    if flags & SYNC_FLAGS:
        raise BadArgument(
            "O_SYNC and O_DSYNC are not supported: a file is in S3 when it is closed",
            f"{NO_OPTION}omit the flag, and use fsync(2)",
        )


def file_exists(option: str = "--allow-overwrite") -> NotPermitted:
    """Return the error for changing an existing file, which `option` permits."""
    return NotPermitted("the file exists", f"mount with {option} to permit it")


def may_write(flags: int) -> bool:
    """Whether a handle with these flags can write."""
    return flags & os.O_ACCMODE != os.O_RDONLY


def appends(flags: int) -> bool:
    """Whether each write goes to the end of the present content."""
    return bool(flags & os.O_APPEND) and not flags & os.O_TRUNC and may_write(flags)


def changes(flags: int) -> bool:
    """Whether an open with these flags changes the file; O_RDWR alone does not count."""
    if flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_TRUNC:
        return True
    return bool(flags & os.O_APPEND) and appends(flags)


def takes_turns(flags: int) -> bool:
    """Whether a program with these flags waits for another writer of the file."""
    return may_write(flags) and not flags & os.O_TRUNC


def allows(config: ChangeConfig, flags: int) -> bool:
    """Whether the options allow opening an existing file for writing with these flags."""
    if flags & os.O_TRUNC:
        return config.allow_overwrite
    if flags & os.O_APPEND:
        return config.allow_append or config.incremental_upload
    return config.allow_overwrite or config.incremental_upload
