"""The bytes of large new files that a data cache gets: all of them, or none."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from mountpoint import errors
from mountpoint.s3.client import Body, ObjectInfo
from tests.unit.fake_client import FakeClient, Fault
from tests.unit.uploading import KEY, PART, World, data_of


@pytest.fixture
def world() -> Iterator[World]:
    with FakeClient() as client:
        yield World(client)


class FakeRoom:
    """Memory for so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.taken_bytes = 0
        self.most_bytes = 0

    def take_room(self, size_bytes: int) -> bool:
        """See Room."""
        if self.taken_bytes + size_bytes > self.size_bytes:
            return False
        self.taken_bytes += size_bytes
        self.most_bytes = max(self.most_bytes, self.taken_bytes)
        return True

    def give_room(self, size_bytes: int) -> None:
        """See Room."""
        assert 0 < size_bytes <= self.taken_bytes
        self.taken_bytes -= size_bytes


class Cache:
    """Gets what was written."""

    def __init__(self, world: World, room_bytes: int) -> None:
        self.room = FakeRoom(room_bytes)
        self.found: list[tuple[ObjectInfo, bytes]] = []
        world.configure(on_written=self._written, room=self.room)

    def _written(self, info: ObjectInfo, body: Body) -> None:
        # The bytes count as long as they are here.
        assert self.room.taken_bytes == (body.size_bytes if body.size_bytes > PART else 0)
        self.found.append((info, b"".join(body.pieces)))  # type: ignore[arg-type]
        assert body.size_bytes == info.size_bytes


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 3 * PART + 7])
def test_large_files_are_kept(world: World, size: int) -> None:
    """All bytes in order, once, with the object; their memory is given back."""
    cache = Cache(world, size)
    upload = world.upload()
    world.write(upload, data_of(size), 700_001)
    assert cache.found == []
    for _ in range(2):
        upload.finish()
    assert cache.found == [(world.client.info(KEY), data_of(size))]
    assert (cache.room.most_bytes, cache.room.taken_bytes) == (size, 0)
    world.check_over()


def test_a_small_file_needs_no_room(world: World) -> None:
    """It is one body, which is in memory until it is complete."""
    cache = Cache(world, 0)
    upload = world.upload()
    world.write(upload, data_of(PART))
    upload.finish()
    assert cache.found == [(world.client.info(KEY), data_of(PART))]


def test_what_has_no_room(world: World) -> None:
    """If one part finds no room, nothing is kept, and the memory is given back at once."""
    cache = Cache(world, 2 * PART)
    upload = world.upload()
    world.write(upload, data_of(3 * PART))
    assert cache.room.taken_bytes == 2 * PART
    world.write(upload, data_of(PART))
    assert cache.room.taken_bytes == 0
    upload.finish()
    assert (cache.found, cache.room.most_bytes) == ([], 2 * PART)
    world.check_over()


@pytest.mark.parametrize("kind", ["create_upload", "upload_part", "complete_upload"])
def test_uploads_that_fail(world: World, kind: str) -> None:
    """Nothing is kept of an object that was not created."""
    cache = Cache(world, 8 * PART)
    world.client.inject(kind, Fault(error=errors.AccessDenied("no right")))
    upload = world.upload()
    with suppress(errors.AccessDenied):
        world.write(upload, data_of(2 * PART + 1))
    with pytest.raises(errors.AccessDenied):
        upload.finish()
    assert (cache.found, cache.room.taken_bytes) == ([], 0)
    world.check_over()


def test_uploads_that_are_given_up(world: World) -> None:
    """Their memory is given back."""
    cache = Cache(world, 8 * PART)
    upload = world.upload()
    world.write(upload, data_of(2 * PART + 1))
    assert cache.room.taken_bytes == 2 * PART
    upload.abort()
    assert (cache.found, cache.room.taken_bytes) == ([], 0)
    world.check_over()


def test_bytes_that_the_server_copies(world: World) -> None:
    """Nothing is kept of an object with bytes that are not here."""
    cache = Cache(world, 80 * PART)
    source = world.client.put(b"source", data_of(3 * PART))
    upload = world.upload()
    world.write(upload, data_of(PART))
    upload.copy(source, 0, source.size_bytes)
    world.write(upload, data_of(PART + 1))
    upload.finish()
    assert "copy_part" in world.kinds()
    assert (cache.found, cache.room.taken_bytes) == ([], 0)


def test_bytes_in_a_temporary_file(world: World) -> None:
    """Nothing is kept if memory was short."""
    cache = Cache(world, 80 * PART)
    upload = world.upload()
    world.write(upload, data_of(PART))
    lease = world.budget.lease()
    lease.take(world.budget.limit_bytes)
    world.write(upload, data_of(PART))
    assert world.spill.files > 0
    lease.give(world.budget.limit_bytes)
    upload.finish()
    assert (cache.found, cache.room.taken_bytes) == ([], 0)
