"""Metadata options: the age of cached answers, the requests, and what is never cached."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.errors import (
    NoSuchEntry,
    NotFound,
    ObjectArchived,
    OperationError,
    PreconditionFailed,
    StaleInode,
)
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.listing.batch_lookup import RENEW_BEFORE_S
from tests.soak import examples
from tests.unit.fake_client import FakeClient, Fault
from tests.unit.mounted import Mounted, mounted
from tests.unit.tree_model import tree_of

KIB = 1 << 10
MIB = 1 << 20
#: The settings of `--metadata-ttl 60`.
SIXTY: Mapping[str, Any] = {"ttl_s": 60.0, "negative_ttl_s": 60.0, "asks_on_open": False}


def kinds(world: Mounted) -> list[str]:
    """Return the kinds of the requests so far, and reset them."""
    found = [request.kind for request in world.client.requests]
    world.client.requests.clear()
    return found


def listed(world: Mounted, name: bytes = b"a") -> InodeNumber:
    """List the root, look a name up, and reset the request counts."""
    world.names()
    number = world.look(name).inode
    kinds(world)
    return number


# --- Opens ---


@pytest.mark.parametrize("size", [1, 100 * KIB, MIB])
def test_a_small_file_is_one_request_at_its_first_read(size: int) -> None:
    """A known version is opened without a request, and read with one GET of that version."""
    with mounted({b"a": b"x" * size}, **SIXTY) as world:
        number = listed(world)
        world.pass_s(59.0)
        handle = world.fs.open(number, os.O_RDONLY)
        assert kinds(world) == []
        assert bytes(world.fs.read(handle, 0, min(size, 4096))) == b"x" * min(size, 4096)
        (request,) = world.client.requests
        assert (request.start, request.stop) == (0, size)
        assert request.if_match == world.client.info(b"a").etag
        world.fs.release(handle)
        assert world.read_file(number) == b"x" * size
        world.pass_s(1.0)
        kinds(world)
        world.look(b"a")
        assert kinds(world) == ["list"]
        assert world.budget.held_bytes == 0


def test_after_the_ttl_open_asks() -> None:
    """After the ttl the request for the first bytes checks the version."""
    with mounted({b"a": b"x"}, **SIXTY) as world:
        number = listed(world)
        world.pass_s(60.0)
        handle = world.fs.open(number, os.O_RDONLY)
        assert kinds(world) == ["get"]
        world.fs.release(handle)


def test_o_direct_asks() -> None:
    """O_DIRECT opens the newest version, whatever is cached."""
    with mounted({b"a": b"x"}, **SIXTY) as world:
        number = listed(world)
        world.fs.release(world.fs.open(number, os.O_DIRECT))
        assert kinds(world) == ["get"]
        world.client.put(b"a", b"new")
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_DIRECT)
        assert world.read_file(world.look(b"a").inode) == b"new"


def test_open_and_close_without_a_read() -> None:
    """Open and close without a read send no request, and the next reader gets the initial range."""
    with mounted({b"a": b"x" * 900 * KIB}, **SIXTY) as world:
        number = listed(world)
        for _ in range(3):
            world.fs.release(world.fs.open(number, os.O_RDONLY))
        assert kinds(world) == []
        assert world.read_file(number, 128 * KIB) == b"x" * 900 * KIB
        assert kinds(world) == ["get"]


def test_an_empty_file_is_never_asked_for() -> None:
    """A known empty object needs no request."""
    with mounted({b"a": b""}, **SIXTY) as world:
        number = listed(world)
        assert world.read_file(number) == b""
        assert kinds(world) == []


def test_a_large_file_is_read_as_ever() -> None:
    """The first read of a large file fetches its initial range."""
    with mounted({b"a": b"x" * 9 * MIB}, **SIXTY) as world:
        number = listed(world)
        handle = world.fs.open(number, os.O_RDONLY)
        world.fs.read(handle, 0, 4096)
        assert world.client.ranges() == [(0, 32 * KIB)]
        world.fs.release(handle)
        handle = world.fs.open(number, os.O_RDONLY)
        world.fs.read(handle, 5 * MIB, 4096)
        assert world.client.ranges()[1:] == [(5 * MIB, 5 * MIB + 4096)]
        world.fs.release(handle)


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_asked_for(storage_class: str) -> None:
    """A listing does not show whether an archived object is restored, so open asks."""
    with mounted(**SIXTY) as world:
        world.client.put(b"a", b"cold", storage_class=storage_class)
        number = listed(world)
        with pytest.raises(ObjectArchived):
            world.fs.open(number, os.O_RDONLY)
        world.client.put(b"a", b"cold", storage_class=storage_class, restored=True)
        assert world.read_file(number) == b"cold"


# --- Objects that change under the ttl ---


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_replaced(size: int) -> None:
    """The first read of a replaced object fails; the next open finds the new version."""
    with mounted({b"a": b"1" * size}, **SIXTY) as world:
        number = listed(world)
        world.client.put(b"a", b"2" * size)
        handle = world.fs.open(number, os.O_RDONLY)
        for _ in range(2):
            with pytest.raises(PreconditionFailed):
                world.fs.read(handle, 0, 10)
        world.fs.release(handle)
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_RDONLY)
        again = world.look(b"a").inode
        assert again != number
        assert world.read_file(again) == b"2" * size
        assert world.budget.held_bytes == 0


def test_deleted() -> None:
    """The first read of a deleted object fails; the next open and lookup find nothing."""
    with mounted({b"a": b"1"}, **SIXTY) as world:
        number = listed(world)
        world.client.delete(b"a")
        handle = world.fs.open(number, os.O_RDONLY)
        with pytest.raises(NotFound):
            world.fs.read(handle, 0, 10)
        world.fs.release(handle)
        with pytest.raises(NoSuchEntry):
            world.fs.open(number, os.O_RDONLY)
        with pytest.raises(NoSuchEntry):
            world.look(b"a")


def test_replaced_while_it_is_read() -> None:
    """An open file has one version, up to the error that ends it."""
    with mounted({b"a": b"1" * 9 * MIB}, **SIXTY) as world:
        number = listed(world)
        handle = world.fs.open(number, os.O_RDONLY)
        assert bytes(world.fs.read(handle, 0, 4096)) == b"1" * 4096
        world.client.put(b"a", b"2" * 9 * MIB)
        with pytest.raises(PreconditionFailed):
            world.fs.read(handle, 5 * MIB, 4096)
        world.fs.release(handle)
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_RDONLY)


def test_a_listing_refreshes_what_open_believes() -> None:
    """If a listing shows another version, or none, the next open asks S3."""
    with mounted({b"a": b"1", b"b": b"1", b"c": b"1"}, **SIXTY) as world:
        world.names()
        numbers = {name: world.look(name).inode for name in (b"a", b"b", b"c")}
        world.client.put(b"a", b"2")
        world.client.delete(b"b")
        world.names()
        with pytest.raises(StaleInode):
            world.fs.open(numbers[b"a"], os.O_RDONLY)
        with pytest.raises(NoSuchEntry):
            world.fs.open(numbers[b"b"], os.O_RDONLY)
        with pytest.raises(NoSuchEntry):
            world.look(b"b")
        kinds(world)
        assert world.look(b"c").inode == numbers[b"c"]
        world.fs.release(world.fs.open(numbers[b"c"], os.O_RDONLY))
        assert kinds(world) == []


def test_a_read_that_fails_otherwise_changes_nothing() -> None:
    """A network fault says nothing about the version."""
    with mounted({b"a": b"1"}, **SIXTY) as world:
        number = listed(world)
        handle = world.fs.open(number, os.O_RDONLY)
        world.client.inject("get", Fault(error=OSError("broken")))
        with pytest.raises(OSError, match="broken"):
            world.fs.read(handle, 0, 1)
        world.fs.release(handle)
        kinds(world)
        world.fs.release(world.fs.open(number, os.O_RDONLY))
        assert kinds(world) == []


# --- Names and attributes ---


def test_names_are_believed_for_the_ttl() -> None:
    """For 60 s after a listing names and attributes need no request."""
    with mounted({b"%03d" % index: b"x" for index in range(100)}, **SIXTY) as world:
        numbers = [line.inode for line in world.lines(ROOT)[2:]]
        for _ in range(6):
            for index in range(100):
                world.look(b"%03d" % index)
            world.pass_s(9.9)
        assert kinds(world) == ["list"]
        assert world.fs.getattr(numbers[0]).ttl_s == pytest.approx(0.6 - RENEW_BEFORE_S)
        world.pass_s(0.6)
        for index in range(100):
            assert world.look(b"%03d" % index).ttl_s == 60.0 - RENEW_BEFORE_S
        assert kinds(world) == ["list"]


def test_indefinitely() -> None:
    """With an infinite ttl nothing is requested again, after any time."""
    forever = 100 * 365 * 86_400.0
    with mounted({b"a": b"x"}, ttl_s=forever, negative_ttl_s=forever, asks_on_open=False) as world:
        number = listed(world)
        world.pass_s(10 * 365 * 86_400.0)
        assert world.look(b"a").inode == number
        world.fs.release(world.fs.open(number, os.O_RDONLY))
        assert kinds(world) == []


def test_a_listing_is_always_made_anew() -> None:
    """Listings never come from the cache."""
    with mounted({b"a": b"x"}, **SIXTY) as world:
        assert world.names() == [b"a"]
        world.client.put(b"b", b"y")
        assert world.names() == [b"a", b"b"]
        assert world.read_file(world.look(b"b").inode) == b"y"


def test_no_ttl_at_all() -> None:
    """With 0 every lookup, getattr and open asks S3, and the kernel caches nothing."""
    with mounted({b"a": b"x"}, ttl_s=0.0) as world:
        world.names()
        kinds(world)
        for content in (b"y", b"z"):
            found = world.look(b"a")
            assert found.ttl_s == 0.0
            assert kinds(world) == ["list"]
            assert world.fs.getattr(found.inode).ttl_s == 0.0
            assert kinds(world) == ["list"]
            world.client.put(b"a", content)
            with pytest.raises(StaleInode):
                world.fs.open(found.inode, os.O_RDONLY)
            kinds(world)


def test_the_default_for_one_file() -> None:
    """By default one file that is checked again and again costs two requests a second."""
    with mounted({b"a": b"x"}) as world:
        for _ in range(400):
            world.look(b"a")
            world.pass_s(0.01)
        assert len(kinds(world)) <= 10


# --- Names that do not exist ---


def missing(world: Mounted, name: bytes) -> float | None:
    """Return how long a name counts as missing; None if it exists."""
    try:
        world.fs.lookup(ROOT, name)
    except NoSuchEntry as error:
        return error.ttl_s
    return None


def test_a_lookup_that_found_nothing_is_believed() -> None:
    """For the negative ttl a missing name needs no request."""
    with mounted(negative_ttl_s=10.0, ttl_s=60.0) as world:
        assert missing(world, b"a") == 10.0
        assert kinds(world) == ["list"]
        world.client.put(b"a", b"x")
        world.pass_s(9.0)
        assert missing(world, b"a") == pytest.approx(1.0)
        assert kinds(world) == []
        world.pass_s(1.0)
        assert missing(world, b"a") is None


def test_a_listing_tells_of_absence() -> None:
    """A listed directory proves that other names are missing, without a request."""
    with mounted({b"m": b"x"}, **SIXTY) as world:
        world.names()
        for name in (b"a", b"m ", b"z"):
            assert missing(world, name) == 60.0
        assert missing(world, b"m") is None
        assert kinds(world) == ["list"]


def test_a_listing_replaces_cached_absence() -> None:
    """A listing replaces the cached absence of a name."""
    with mounted(**SIXTY) as world:
        assert missing(world, b"a") == 60.0
        world.client.put(b"a", b"x")
        world.client.put(b"d/e", b"x")
        assert missing(world, b"a") == 60.0
        assert world.names() == [b"a", b"d"]
        assert missing(world, b"a") is None
        assert missing(world, b"d") is None


@pytest.mark.parametrize("options", [{}, {"ttl_s": 60.0, "asks_on_open": False}])
def test_without_a_negative_ttl_a_new_object_is_there_at_once(options: dict[str, Any]) -> None:
    """Absence is not cached by default."""
    with mounted({b"m": b"x"}, **options) as world:
        world.names()
        assert missing(world, b"a") == 0.0
        world.client.put(b"a", b"x")
        assert missing(world, b"a") is None


def test_a_lookup_that_failed_is_not_believed() -> None:
    """An error of S3 is not an absence."""
    with mounted(**SIXTY) as world:
        world.client.inject("list", Fault(error=OSError("no")))
        with pytest.raises(OSError, match="no"):
            world.look(b"a")
        world.client.put(b"a", b"x")
        assert missing(world, b"a") is None


# --- Against a model ---

NAMES = [b"a", b"a-", b"b", b"c"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["look", "read", "put", "delete"]), st.sampled_from(NAMES)),
        st.tuples(st.just("put"), st.sampled_from([b"a/x", b"b/x"])),
        st.tuples(st.just("delete"), st.sampled_from([b"a/x", b"b/x"])),
        st.tuples(st.just("list"), st.just(b"")),
        st.tuples(st.just("pass"), st.sampled_from([b"0.5", b"1", b"3", b"7"])),
    ),
    max_size=40,
)
State = dict[bytes, object]


def state_of(client: FakeClient) -> State:
    """Return the present state of the root's names: True for a directory, else the content."""
    objects = {key: data for key, (_, data) in client._objects.items()}
    tree = tree_of(objects)
    return {
        name: True if isinstance(child, dict) else objects[name] for name, child in tree.items()
    }


@settings(deadline=None, max_examples=examples(100))
@given(
    st.sampled_from([0.0, 1.0, 5.0]),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.booleans(),
    st.integers(1, 4),
    STEPS,
)
def test_against_a_model(
    ttl_s: float, negative_ttl_s: float, asks: bool, page_size: int, steps: list[tuple[str, bytes]]
) -> None:
    """Found names are as old as the ttl, missing ones as the negative ttl; no content is mixed.

    No answer contradicts a later listing.
    """
    options = {"ttl_s": ttl_s, "negative_ttl_s": negative_ttl_s, "asks_on_open": asks}
    with mounted({b"b": b"first"}, page_size=page_size, **options) as world:
        history: list[tuple[float, State]] = [(world.clock.now_s, state_of(world.client))]

        def within(age_s: float) -> list[State]:
            """Return all states of the last seconds, including the present one."""
            now_s = world.clock.now_s
            ends = [begun for begun, _ in history[1:]] + [now_s]
            old = [
                state
                for (_, state), end in zip(history[:-1], ends, strict=False)
                if end > now_s - age_s
            ]
            return [*old, history[-1][1]]

        for version, (step, what) in enumerate(steps):
            if step == "pass":
                world.pass_s(float(what))
            elif step == "put":
                world.client.put(what, b"%d" % version)
            elif step == "delete" and what in world.client._objects:
                world.client.delete(what)
            elif step == "list":
                assert set(world.names()) == set(history[-1][1])
            if step not in ("look", "read"):
                history.append((world.clock.now_s, state_of(world.client)))
                continue
            try:
                inode = world.fs._inodes.get(world.fs.lookup(ROOT, what).inode)
            except NoSuchEntry:
                assert any(what not in state for state in within(negative_ttl_s))
                continue
            if inode.info is None:
                assert any(state.get(what) is True for state in within(ttl_s))
                continue
            assert any(what in state for state in within(ttl_s))
            if step == "look":
                continue
            try:
                content = world.read_file(inode.number)
            except OperationError:
                assert history[-1][1].get(what) is True or any(
                    state.get(what) != history[-1][1].get(what) for state in within(ttl_s)
                )
                with pytest.raises((StaleInode, NoSuchEntry)):
                    world.fs.open(inode.number, os.O_RDONLY)
            else:
                # Bytes come from S3 when they are read: never of a deleted version.
                assert content == world.client._objects[what][1]
        world.fs._caches._listings.check()
        assert world.budget.held_bytes == 0


def test_names_removed_by_this_mount() -> None:
    """With a negative ttl, names deleted or renamed here need no request."""
    options = {"negative_ttl_s": 1.0, "allow_delete": True, "allow_rename": True}
    with mounted({b"a": b"", b"b": b""}, **options) as world:
        for name in (b"a", b"b"):
            world.look(name)
        world.fs.unlink(ROOT, b"a")
        world.fs.rename(ROOT, b"b", ROOT, b"c")
        count = world.client.count()
        for name in (b"a", b"b"):
            with pytest.raises(NoSuchEntry):
                world.look(name)
        assert world.client.count() == count
        world.pass_s(2)
        world.client.put(b"a", b"")
        world.look(b"a")
