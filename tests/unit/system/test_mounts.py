"""The mounts of this machine, from a table as the kernel writes it."""

import os
from pathlib import Path

import pytest

from mountpoint.errors import ABORTED, DISCONNECTED
from mountpoint.system.mounts import MountInfo, failure, file_system, mounts, real_path

LINES = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 22 0:27 /sub /mnt/a\040b\134c rw,nosuid shared:7 master:1 - fuse.mount-s3 s3://b ro,user_id=0
40 22 0:30 / /mnt/caf\303\251 rw - tmpfs tmpfs rw
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A file of three mounts."""
    (tmp_path / "mountinfo").write_bytes(LINES)
    return str(tmp_path / "mountinfo")


def test_fields_of_each_mount(table: str) -> None:
    """Optional fields, of which there may be any number, are skipped, and escapes undone."""
    first, second, third = mounts(table)
    assert first == MountInfo("254:0", "/", "/", "ext4", ("rw",))
    assert second == MountInfo("0:27", "/sub", "/mnt/a b\\c", "fuse.mount-s3", ("ro", "user_id=0"))
    assert third.directory == "/mnt/café"


def test_this_machine() -> None:
    """The root is mounted."""
    assert "/" in {each.directory for each in mounts()}


def test_the_file_system_of_a_path(tmp_path: Path) -> None:
    """Its type is that of the mount with its device."""
    assert file_system("/proc") == "proc"
    assert file_system("/sys") == "sysfs"
    with pytest.raises(FileNotFoundError):
        file_system(str(tmp_path / "missing"))


def test_a_process_that_goes_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount is as dead as one whose process has gone before."""
    errors = [OSError(ABORTED, "aborted"), OSError(DISCONNECTED, "not connected")]

    def statvfs(path: str) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(os, "statvfs", statvfs)
    error = failure("/mnt", 10)
    assert error is not None
    assert error.errno == DISCONNECTED


def test_failures(tmp_path: Path) -> None:
    """A file system that works has none."""
    assert failure(str(tmp_path), 10) is None
    error = failure(str(tmp_path / "missing"), 10)
    assert isinstance(error, FileNotFoundError)


def test_a_path_without_links(tmp_path: Path) -> None:
    """Links are followed, also in front of "..", but nothing is asked of a mount point."""
    (tmp_path / "there" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("there/inner")
    for path, expected in (
        ("link", "there/inner"),
        ("link/..", "there"),
        ("link/new", "there/inner/new"),
    ):
        assert real_path(f"{tmp_path}/{path}") == str(tmp_path / expected)
    assert real_path("/proc/") == "/proc"
    assert real_path("/") == "/"
