"""The local file of a staged file, and failures of the disk."""

import errno
import os
from pathlib import Path

import pytest

from mountpoint.errors import StagingFault, StagingFull, outcome, staging_error
from mountpoint.staging.area import StagingArea
from mountpoint.staging.sparse_file import LocalFile
from tests.unit.staging_world import MIB, World, data_of


def test_a_shortened_local_file_is_an_error(tmp_path: Path) -> None:
    """A file that another program has shortened is an error, not a shorter file."""
    area = StagingArea(str(tmp_path), "bucket", 16 * MIB)
    file = LocalFile(area, area.new_path())
    file.write(0, b"abc")
    os.truncate(file.path, 1)
    with pytest.raises(StagingFault, match="shortened"):
        file.read(0, 3)
    with pytest.raises(StagingFault):
        LocalFile(area, file.path)
    file.close(keep=False)
    area.close()


def test_errors_of_the_disk_have_their_errno() -> None:
    """No space and quotas are ENOSPC, too large is EFBIG, anything else EIO."""
    for number, expected in (
        (errno.ENOSPC, errno.ENOSPC),
        (errno.EDQUOT, errno.ENOSPC),
        (errno.EFBIG, errno.EFBIG),
        (errno.EIO, errno.EIO),
        (errno.EROFS, errno.EIO),
    ):
        error = staging_error(OSError(number, os.strerror(number)))
        assert outcome(error).errno == expected


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    """On a full disk, fetched bytes are fetched again, and zeros beyond the end stay."""
    world = World(tmp_path)
    file = world.file(world.bucket.put(data_of(MIB)))
    file.read(0, 10)
    local = file._content._local

    class Full(LocalFile):
        def write(self, offset: int, data: bytes | memoryview) -> int:
            super().write(offset, data[: len(data) // 2])
            raise StagingFull("halfway")

    local.__class__ = Full
    with pytest.raises(StagingFull):
        file.write(MIB - 100, b"x" * 1000)
    assert file.size_bytes == MIB
    local.__class__ = LocalFile
    file.truncate(MIB + 1000)
    assert file.read(MIB - 100, 1100) == data_of(MIB)[-100:] + bytes(1000)
    world.area.close()
