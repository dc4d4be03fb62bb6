"""The effect of open(2)'s flags on an existing file, and the options that permit it."""

import os

import pytest

from mountpoint.config import ChangeConfig
from mountpoint.errors import BadArgument
from mountpoint.fs.writes.open_flags import (
    allows,
    appends,
    changes,
    check_flags,
    may_write,
    takes_turns,
)

READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (READ, ""),
        (READ | os.O_TRUNC, "changes"),
        (READ | os.O_APPEND, ""),
        (WRITE, "writes changes turns"),
        (WRITE | os.O_TRUNC, "writes changes"),
        (WRITE | os.O_APPEND, "writes appends changes turns"),
        (WRITE | os.O_APPEND | os.O_TRUNC, "writes changes"),
        (BOTH, "writes turns"),
        (BOTH | os.O_APPEND, "writes appends changes turns"),
    ],
)
def test_flags(flags: int, found: str) -> None:
    """O_RDWR alone changes nothing: many programs open for both and only read."""
    answers = {
        "writes": may_write(flags),
        "appends": appends(flags),
        "changes": changes(flags),
        "turns": takes_turns(flags),
    }
    assert " ".join(name for name, answer in answers.items() if answer) == found


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (ChangeConfig(allow_overwrite=True), [os.O_TRUNC, 0]),
        (ChangeConfig(allow_append=True), [os.O_APPEND]),
        (ChangeConfig(incremental_upload=True), [os.O_APPEND, 0]),
        (ChangeConfig(allow_delete=True), []),
    ],
)
def test_options(config: ChangeConfig, allowed: list[int]) -> None:
    """Each option permits its own way to open a file, and O_TRUNC decides before O_APPEND."""
    ways = (os.O_TRUNC, os.O_APPEND, 0)
    assert [way for way in ways if allows(config, WRITE | way)] == [
        way for way in ways if way in allowed
    ]
    assert allows(config, WRITE | os.O_TRUNC | os.O_APPEND) == (os.O_TRUNC in allowed)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(flag: int) -> None:
    """These flags are refused, because bytes are in S3 only when the file is closed."""
    check_flags(WRITE)
    with pytest.raises(BadArgument, match="O_SYNC and O_DSYNC"):
        check_flags(WRITE | flag)
