"""A process that is killed while it opens a file for writing: the kernel only releases it."""

import os

import pytest

from mountpoint.errors import WriterKilled
from tests.unit.mounted import mounted


def test_a_new_file() -> None:
    """A new file is not created."""
    with mounted() as world:
        handle = world.create(b"a")
        with pytest.raises(WriterKilled):
            world.fs.release(handle)
        assert world.client.keys() == []
        assert world.names() == []


def test_a_file_that_is_there() -> None:
    """An existing file keeps its content."""
    with mounted({b"a": b"earlier"}, allow_overwrite=True) as world:
        handle = world.fs.open(world.look(b"a").inode, os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(WriterKilled):
            world.fs.release(handle)
        assert world.read_file(world.look(b"a").inode) == b"earlier"


def test_written_and_never_closed() -> None:
    """A written file had a descriptor, even if no close was reported (io_uring)."""
    with mounted() as world:
        handle = world.create(b"a")
        world.fs.write(handle, 0, b"123")
        world.fs.release(handle)
        assert world.client.content(b"a") == b"123"
