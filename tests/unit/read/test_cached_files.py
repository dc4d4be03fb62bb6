"""Small files that the data cache has: which reads come from disk, and which from S3."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.cache.cached_object import INLINE_BYTES
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import InodeNumber
from mountpoint.fs.reads.handle import ReadHandle
from tests.unit.cache.objects import SAFE_S, content
from tests.unit.mounted import Mounted, mounted

SIZES = {b"one": 1, b"small": 100_000, b"largest": INLINE_BYTES, b"larger": INLINE_BYTES + 1}
TRUSTING = {"ttl_s": 300.0, "asks_on_open": False}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Mounted]:
    """A mount that trusts its listings, and whose cache has all files."""
    objects = {name: content(size) for name, size in SIZES.items()}
    with mounted(objects, cache=str(tmp_path), **TRUSTING) as world:
        for name in SIZES:
            inode = world.look(name).inode
            assert world.read_file(inode) == content(SIZES[name])
            world.fs.forget(inode, 1)  # with its pages
        assert world.cache is not None
        assert world.cache.wait(SAFE_S)
        world.client.requests.clear()
        yield world


def opened(world: Mounted, name: bytes) -> tuple[InodeNumber, HandleNumber]:
    inode = world.look(name).inode
    return inode, world.fs.open(inode, os.O_RDONLY)


def block(tmp_path: Path, size: int) -> Path:
    """Return the only file of blocks for an object of this size: its trailer is short."""
    (found,) = [each for each in tmp_path.rglob("*.0") if 0 < each.stat().st_size - size < 500]
    return found


@pytest.mark.parametrize("name", SIZES)
def test_from_the_disk(world: Mounted, name: bytes) -> None:
    """No read of a file in the cache sends a request; a small one takes no memory of the budget."""
    data = content(SIZES[name])
    _, handle = opened(world, name)
    for offset, size in [(0, len(data)), (len(data) // 2, 100), (len(data) - 1, 10), (0, 1)]:
        assert bytes(world.fs.read(handle, offset, size)) == data[offset : offset + size]
        assert name == b"larger" or world.budget.held_bytes == 0
    assert world.fs.read(handle, len(data), 10) == b""
    world.fs.release(handle)
    assert world.client.requests == []
    assert world.budget.held_bytes == 0


def test_pages_that_the_kernel_has_lost(world: Mounted) -> None:
    """A file that was read before is read from disk, too, if some of its pages are missing."""
    data = content(SIZES[b"small"])
    inode, handle = opened(world, b"small")
    assert bytes(world.fs.read(handle, 0, len(data))) == data
    world.fs.release(handle)
    handle = world.fs.open(inode, os.O_RDONLY)
    for offset in range(0, len(data), 8192):
        assert bytes(world.fs.read(handle, offset, 4096)) == data[offset:][:4096]
        assert world.budget.held_bytes == 0
    world.fs.release(handle)
    assert world.client.requests == []


def test_nothing_is_read_before_it_is_needed(world: Mounted) -> None:
    """Opening a file does not touch its block."""
    assert world.cache is not None
    before = world.cache.directory.store.counts()
    _, handle = opened(world, b"small")
    world.fs.release(handle)
    assert world.cache.directory.store.counts() == before


@pytest.mark.parametrize("how", ["removed", "damaged"])
@pytest.mark.parametrize("reads", [0, 1])
def test_a_block_that_is_lost(world: Mounted, tmp_path: Path, how: str, reads: int) -> None:
    """If the block is gone or damaged, before the first read or after it, S3 is asked once; the
    block is written again.
    """
    data = content(SIZES[b"small"])
    _, handle = opened(world, b"small")
    for _ in range(reads):
        assert bytes(world.fs.read(handle, 0, 10)) == data[:10]
    path = block(tmp_path, len(data))
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    for offset in (0, 50_000, 0):
        assert bytes(world.fs.read(handle, offset, 50_000)) == data[offset:][:50_000]
    world.fs.release(handle)
    ranges = [(each.kind, each.start, each.stop) for each in world.client.requests]
    assert ranges == [("get", 0, len(data))]
    assert world.cache is not None
    assert world.cache.wait(SAFE_S)
    assert path.stat().st_size > len(data)
    assert world.cache.directory.store.counts()[3] == (how == "damaged")


def test_a_closed_file_reads_nothing(world: Mounted) -> None:
    """The lane of a closed file has no source: another handle may have taken over its number."""
    _, handle = opened(world, b"small")
    file = world.fs.file(handle)
    assert isinstance(file, ReadHandle)
    lane = file.lane
    assert lane is not None
    assert bytes(lane.read_whole(0, 10) or b"") == content(SIZES[b"small"])[:10]
    file.close()
    assert lane.read_whole(0, 10) is None
    world.fs.release(handle)


def test_what_was_read_is_known(world: Mounted) -> None:
    """Files that were read from disk count as files that were read completely."""
    for name in (b"small", b"largest"):
        world.read_file(world.look(name).inode)
    history = world.streams._history
    assert [each.whole for each in history._last(b"small", 0)][-2:] == [True, True]
