"""`refresh` forgets names, including requested ones, and no others."""

import pytest

from mountpoint.config import INDEFINITE_TTL_S
from mountpoint.errors import NoSuchEntry
from mountpoint.fs.inodes import ROOT
from mountpoint.listing.cache import ListingCache
from tests.unit.fake_client import Fault, Request
from tests.unit.fs.test_ttl import kinds
from tests.unit.listing.test_cache import Clock, names
from tests.unit.mounted import Mounted, mounted

FOR_EVER = {"ttl_s": INDEFINITE_TTL_S, "negative_ttl_s": INDEFINITE_TTL_S, "asks_on_open": False}
OBJECTS = {b"a/x": b"1", b"a/b/y": b"1", b"ab/z": b"1", b"top": b"1"}


def known(world: Mounted) -> None:
    """Look everything up, and reset the request counts."""
    for path in OBJECTS:
        world.look(path)
    kinds(world)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (b"", {b"a/x", b"a/b/y", b"ab/z", b"top"}),
        (b"a", {b"a/x", b"a/b/y"}),
        (b"a/b", {b"a/b/y"}),
        (b"a/x", {b"a/x"}),
        (b"absent", set()),
    ],
)
def test_refreshed_names_are_requested_again(path: bytes, asked: set[bytes]) -> None:
    """A name and everything below it are forgotten, but not names that only begin with it."""
    with mounted(OBJECTS, **FOR_EVER) as world:
        for each in OBJECTS:
            known(world)
            world.fs.refresh(path)
            world.look(each)
            assert bool(kinds(world)) == (each in asked), each


def test_names_forgotten_by_the_kernel() -> None:
    """The kernel forgets names below the path that have inodes, but never the root."""
    with mounted(OBJECTS, **FOR_EVER) as world:
        known(world)
        a, b = world.look(b"a").inode, world.look(b"a/b").inode
        assert sorted(world.fs.refresh(b"a")) == sorted(
            [(ROOT, b"a"), (a, b"x"), (a, b"b"), (b, b"y")]
        )
        assert world.fs.refresh(b"top") == [(ROOT, b"top")]
        assert len(world.fs.refresh(b"")) == 7
        assert world.fs.refresh(b"absent") == []


def test_absent_names_are_requested_again() -> None:
    """Absent names are forgotten as well."""
    with mounted(OBJECTS, **FOR_EVER) as world:
        with pytest.raises(NoSuchEntry):
            world.look(b"a/new")
        world.client.put(b"a/new", b"1")
        with pytest.raises(NoSuchEntry):
            world.look(b"a/new")
        world.fs.refresh(b"a")
        assert world.look(b"a/new").size_bytes == 1


def test_absent_directories_above_are_requested_again() -> None:
    """The directories of the path may be new as well."""
    with mounted(OBJECTS, **FOR_EVER) as world:
        world.names()
        for path in (b"new", b"a/new"):
            with pytest.raises(NoSuchEntry):
                world.look(path)
        for path in (b"new/below/file", b"a/new/below/file"):
            world.client.put(path, b"1")
            with pytest.raises(NoSuchEntry):
                world.look(path)
            world.fs.refresh(path)
            assert world.look(path).size_bytes == 1


def test_answers_under_way_are_not_cached() -> None:
    """A lookup from before is answered, but its answer is not cached."""
    with mounted(OBJECTS, **FOR_EVER) as world:

        def meanwhile(request: Request) -> Fault | None:
            world.client.script = None
            world.fs.refresh(b"")
            return None

        world.client.script = meanwhile
        found = world.look(b"top")
        assert found.ttl_s <= 0  # the kernel asks again
        world.client.put(b"top", b"22")
        assert world.look(b"top").size_bytes == 2


def test_an_open_file_is_its_version() -> None:
    """An open file keeps its version."""
    with mounted({b"a/x": b"old"}, **FOR_EVER) as world:
        number = world.look(b"a/x").inode
        handle = world.fs.open(number, 0)
        assert bytes(world.fs.read(handle, 0, 10)) == b"old"
        world.fs.refresh(b"")
        world.client.put(b"a/x", b"newer")
        assert bytes(world.fs.read(handle, 0, 10)) == b"old"
        assert world.look(b"a/x").size_bytes == 5
        world.fs.release(handle)


def test_pages_that_were_asked_for_before() -> None:
    """Pages from before are dropped, with all their names and gaps; later pages are kept."""
    clock = Clock()
    listings = ListingCache(10.0, clock, negative_ttl_s=10.0)
    listings.discard_below(b"d/")
    for directory in (b"d/", b"d/e/"):
        listings.add(directory, names(b"a"), requested_at_s=99.0)
        listings.record_nonempty(directory, 99.0)
        listings.record_absent(directory, b"x", 99.0)
        assert listings.find(directory, b"a") is None
        assert listings.absent_until(directory, b"x") is None
    assert listings.find(b"", b"d") is None
    listings.add(b"de/", names(b"a"), requested_at_s=99.0)
    assert listings.find(b"de/", b"a") is not None
    clock.now_s = 100.5
    listings.add(b"d/", names(b"a"), requested_at_s=100.25)
    assert listings.find(b"d/", b"a") is not None
    listings.check()
