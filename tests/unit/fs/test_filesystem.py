"""The bucket as a file system: names, versions, freshness, archives, without a mount."""

import os
import stat
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.errors import (
    AccessDenied,
    BadHandle,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    ObjectArchived,
    PreconditionFailed,
    ServerFault,
    StaleInode,
    Stalled,
)
from mountpoint.fs import filesystem
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.listing.batch_lookup import RENEW_BEFORE_S
from mountpoint.listing.directory import MAX_PARALLEL
from mountpoint.listing.tree import FEW_KEYS
from mountpoint.s3.client import ListPage, ObjectInfo
from tests.soak import examples
from tests.unit.fake_client import MTIME_NS, FakeClient, Fault, Request
from tests.unit.mounted import GID, MOUNTED_AT_NS, UID, mounted
from tests.unit.tree_model import Tree, tree_of

MIB = 1 << 20


# --- Names ---


def test_a_file() -> None:
    """A file has its object's size and time, the configured mode and owner, one link."""
    with mounted({b"a": b"12345"}, file_mode=0o640) as world:
        found = world.look(b"a")
        assert found.mode == stat.S_IFREG | 0o640
        assert (found.links, found.size_bytes, found.mtime_ns) == (1, 5, MTIME_NS)
        assert (found.uid, found.gid, found.ttl_s) == (UID, GID, 1.0 - RENEW_BEFORE_S)
        (listing,) = world.client.requests
        assert (listing.kind, listing.key, listing.max_keys) == ("list", b"a", FEW_KEYS)


@pytest.mark.parametrize("key", [b"d/a", b"d/", b"d//", b"d/..", b"d/e/f"])
def test_a_directory(key: bytes) -> None:
    """Every common prefix is a directory, even with only a marker or unnameable keys."""
    with mounted({key: b"1"}, dir_mode=0o711) as world:
        found = world.look(b"d")
        assert found.mode == stat.S_IFDIR | 0o711
        assert (found.links, found.size_bytes, found.mtime_ns) == (2, 0, MOUNTED_AT_NS)
        assert (found.uid, found.gid) == (UID, GID)


def test_a_directory_shadows_a_file() -> None:
    """Of the objects `a` and `a/b`, the first is invisible: `a` is a directory."""
    with mounted({b"a": b"file", b"a/b": b"1"}) as world:
        assert stat.S_ISDIR(world.look(b"a").mode)
        assert [line.mode for line in world.lines(ROOT)[2:]] == [stat.S_IFDIR]
        world.client.delete(b"a/b")
        world.pass_s(1.0)
        assert stat.S_ISREG(world.look(b"a").mode)


@pytest.mark.parametrize("name", [b"b", b"aa", b"a ", b"A"])
def test_no_such_name(name: bytes) -> None:
    """A name without an object or a prefix does not exist."""
    with mounted({b"a": b"1", b"ab/c": b"2"}) as world, pytest.raises(NoSuchEntry):
        world.fs.lookup(ROOT, name)


@pytest.mark.parametrize("name", [b".", b"..", b"", b"x\0y", b"a/b"])
def test_impossible_names(name: bytes) -> None:
    """A name that Linux does not allow is never looked up, with any bucket."""
    with mounted({b"./a": b"", b"../a": b"", b"x\0y": b"", b"a/b": b"", b"/a": b""}) as world:
        with pytest.raises(NoSuchEntry):
            world.fs.lookup(ROOT, name)
        assert world.client.count() == 0


def test_long_names() -> None:
    """A name of 255 bytes works; a longer one is too long, and sends no request."""
    with mounted({b"n" * 255: b"1", b"n" * 256: b"2"}) as world:
        assert world.look(b"n" * 255).size_bytes == 1
        count = world.client.count()
        with pytest.raises(NameTooLong, match="256 bytes"):
            world.fs.lookup(ROOT, b"n" * 256)
        assert world.client.count() == count


@pytest.mark.parametrize("name", [b"\xff\xfe", "ü 😀".encode(), b"a\nb", b"-", b" ", b"%2F", b"\\"])
def test_odd_names(name: bytes) -> None:
    """Names are bytes: all of them can be listed, looked up and read."""
    with mounted({b"d/" + name: b"content"}) as world:
        directory = world.look(b"d")
        assert world.names(directory.inode) == [name]
        world.pass_s(2.0)
        assert world.read_file(world.look(b"d/" + name).inode) == b"content"


def test_below_a_file() -> None:
    """A file is no directory: nothing is looked up or listed in it."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        with pytest.raises(NotADirectory):
            world.fs.lookup(number, b"b")
        with pytest.raises(NotADirectory):
            world.fs.opendir(number)


def test_a_mounted_prefix() -> None:
    """With a prefix, its directory is the root, and nothing outside is accessible."""
    objects = {b"p/a": b"1", b"p/d/b": b"22", b"p": b"x", b"pa": b"x", b"q/c": b"x"}
    with mounted(objects, prefix=b"p/") as world:
        assert world.names() == [b"a", b"d"]
        assert world.read_file(world.look(b"d/b").inode) == b"22"
        with pytest.raises(NoSuchEntry):
            world.look(b"q")
        assert world.fs.path_of(ROOT) == "/"
        assert world.fs.path_of(world.look(b"d/b").inode) == "/d/b"


KEYS = st.lists(
    st.sampled_from([b"a", b"b", b"a-1", b"a.", b"", b".", b"..", b"\xff", b"n" * 256]),
    min_size=1,
    max_size=4,
).map(b"/".join).filter(bool)  # fmt: skip


@settings(deadline=None, max_examples=examples(20))
@given(st.frozensets(KEYS, max_size=12), st.integers(1, 4), st.booleans())
def test_any_keys(keys: frozenset[bytes], page_size: int, fresh: bool) -> None:
    """Listing, lookups and reads from the root down give exactly the model's tree."""
    with mounted({key: b"<%b>" % key for key in keys}, page_size=page_size) as world:

        def walk(number: InodeNumber) -> Tree:
            tree: Tree = {}
            for line in world.lines(number)[2:]:
                assert line.name not in tree
                if not fresh:
                    world.pass_s(2.0)
                child = world.fs.lookup(number, line.name)
                assert stat.S_IFMT(child.mode) == line.mode
                if stat.S_ISDIR(child.mode):
                    tree[line.name] = walk(child.inode)
                else:
                    tree[line.name] = world.read_file(child.inode)[1:-1]
            return tree

        assert walk(ROOT) == tree_of(keys)


# --- Freshness ---


def test_a_listed_name_costs_no_request() -> None:
    """Within the ttl the page that named it answers a lookup; afterwards S3 is asked."""
    with mounted({b"a": b"1", b"d/b": b"2"}) as world:
        world.names()
        assert world.client.count() == 1
        world.pass_s(0.75)
        for name in (b"a", b"d"):
            assert world.look(name).ttl_s == pytest.approx(0.25)
        assert world.client.count() == 1
        world.pass_s(0.25)
        assert world.look(b"a").ttl_s == 1.0 - RENEW_BEFORE_S
        assert world.client.count() == 2


def test_an_attribute_is_never_older_than_the_ttl() -> None:
    """The age of our cache and of the kernel's together are at most the ttl."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        for passed_s in (0.0, 0.3, 0.6):
            world.clock.now_s = 1000.0 + passed_s
            assert world.fs.getattr(number).ttl_s == pytest.approx(1.0 - RENEW_BEFORE_S - passed_s)
        world.clock.now_s = 1000.8  # the kernel asks in time for it to be renewed
        assert world.fs.getattr(number).ttl_s == pytest.approx(0.2)
        assert world.client.count() == 1
        world.clock.now_s = 1001.0
        assert world.fs.getattr(number).ttl_s == 1.0 - RENEW_BEFORE_S
        assert world.client.count() == 2


def test_no_staleness_allowed() -> None:
    """With a ttl of 0 every lookup and getattr asks S3, and the kernel caches nothing."""
    with mounted({b"a": b"1"}, ttl_s=0.0) as world:
        world.names()
        found = world.look(b"a")
        assert found.ttl_s == 0.0
        count = world.client.count()
        assert world.fs.getattr(found.inode).ttl_s == 0.0
        assert world.client.count() == count + 1


def test_a_new_object_is_visible_at_once() -> None:
    """A name that did not exist a moment ago is found: absence is not cached."""
    with mounted({b"a": b"1"}) as world:
        world.names()
        with pytest.raises(NoSuchEntry):
            world.look(b"b")
        world.client.put(b"b", b"new")
        assert world.look(b"b").size_bytes == 3
        assert world.names() == [b"a", b"b"]


def test_getattr_revalidates() -> None:
    """After the ttl getattr asks S3: same version, same inode, new expiry."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        world.client.put(b"a", b"1", mtime_ns=MTIME_NS + 5)
        assert world.fs.getattr(number).mtime_ns == MTIME_NS
        world.pass_s(1.0)
        assert world.fs.getattr(number).mtime_ns == MTIME_NS + 5


def test_getattr_of_another_version() -> None:
    """After the ttl a replaced object's old inode is ESTALE, a deleted one's ENOENT."""
    with mounted({b"a": b"1", b"b": b"1", b"c": b"1"}) as world:
        numbers = [world.look(name).inode for name in (b"a", b"b", b"c")]
        world.client.put(b"a", b"2")
        world.client.delete(b"b")
        world.client.put(b"c/d", b"now a directory")
        world.pass_s(1.0)
        for number, kind in zip(numbers, (StaleInode, NoSuchEntry, StaleInode), strict=True):
            with pytest.raises(kind):
                world.fs.getattr(number)


def test_directories_have_nothing_that_changes() -> None:
    """A directory's attributes never expire."""
    with mounted({b"d/a": b"1"}) as world:
        found = world.look(b"d")
        count = world.client.count()
        world.pass_s(100.0)
        assert world.fs.getattr(found.inode)._replace(ttl_s=0.0) == found._replace(ttl_s=0.0)
        assert world.client.count() == count


class NoETags(FakeClient):
    """A store that omits ETags in listings."""

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        page = super().page(objects, request)
        return replace(page, objects=[replace(each, etag="") for each in page.objects])


def test_a_store_that_lists_no_etags() -> None:
    """If the listing has no version, S3 is asked for it."""
    with mounted({b"a": b"1"}, client_class=NoETags) as world:
        assert world.names() == [b"a"]
        assert world.read_file(world.look(b"a").inode) == b"1"
        assert world.client.count("head") == 1


# --- Forgetting ---


def test_forgotten_names_are_known_no_more() -> None:
    """Forgotten inodes are gone, and so is the cached listing of a forgotten directory."""
    with mounted({b"d/%d" % index: b"1" for index in range(5)}) as world:
        directory = world.look(b"d").inode
        numbers = [world.fs.lookup(directory, name).inode for name in world.names(directory)]
        world.pass_s(1.0)
        world.client.requests.clear()
        world.fs.lookup(directory, b"0")
        assert world.client.count() == 1, "its page is requested again"
        for number in [*numbers, numbers[0], directory]:
            world.fs.forget(number, 1)
        with pytest.raises(StaleInode):
            world.fs.getattr(directory)
        world.pass_s(1.0)
        directory = world.look(b"d").inode
        world.client.requests.clear()
        world.fs.lookup(directory, b"0")
        (request,) = world.client.requests
        assert request.max_keys == FEW_KEYS, "no page is known"


def test_expired_listings_are_dropped() -> None:
    """A sweep drops listings that no lookup can use, even without any access."""
    with mounted({b"a": b"1"}) as world:
        world.names()
        world.fs.sweep()
        assert len(world.fs._caches._listings) == 1
        world.pass_s(1.0)
        world.fs.sweep()
        assert len(world.fs._caches._listings) == 0


def test_memory_of_the_forgotten_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is freed once as many inodes were forgotten as are left, and after a quiet sweep."""
    given_back: list[int] = []
    monkeypatch.setattr(filesystem, "give_back", lambda: given_back.append(1))
    monkeypatch.setattr(filesystem, "MANY_FORGOTTEN", 4)
    with mounted({b"%02d" % index: b"1" for index in range(20)}) as world:
        numbers = [world.fs.lookup(ROOT, name).inode for name in world.names()]

        def forget(count: int) -> int:
            for _ in range(count):
                world.fs.forget(numbers.pop(), 1)
            world.fs.sweep()
            return len(given_back)

        assert forget(9) == 0, "more are left"
        assert forget(2) == 0, "there may be more to come"
        assert forget(0) == 1
        assert forget(0) == 1
        assert forget(6) == 1
        assert forget(0) == 2
        assert forget(3) == 2
        assert forget(0) == 2, "too few"


# --- Versions ---


def test_same_version_same_number() -> None:
    """An unchanged object has the same inode number in every lookup."""
    with mounted({b"a": b"1"}) as world:
        first = world.look(b"a").inode
        world.pass_s(5.0)
        assert world.look(b"a").inode == first
        world.names()
        assert world.look(b"a").inode == first
        world.client.put(b"a", b"1", mtime_ns=1)  # the same content again
        world.pass_s(5.0)
        assert world.look(b"a").inode == first
        world.client.put(b"a", b"2")
        world.pass_s(5.0)
        assert world.look(b"a").inode != first


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("old", [b"", b"old", b"o" * 300_000])
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("new", [b"", b"new", b"n" * 300_000])
def test_open_of_a_changed_object(listed: bool, old: bytes, read_before: bool, new: bytes) -> None:
    """Opening a replaced object is ESTALE; the next lookup finds the new version."""
    with mounted({b"a": old}) as world:
        if listed:
            world.names()
        number = world.look(b"a").inode
        if read_before:
            assert world.read_file(number) == old
        world.client.put(b"a", new)
        if old == new:
            assert world.read_file(number) == old
            return
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_RDONLY)
        again = world.look(b"a")  # before the ttl has passed
        assert again.inode != number
        assert again.size_bytes == len(new)
        assert world.read_file(again.inode) == new
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_RDONLY)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("content", [b"", b"1"])
def test_open_of_a_deleted_object(listed: bool, content: bytes) -> None:
    """Opening a deleted object is ENOENT, and so is the next lookup."""
    with mounted({b"a": content}) as world:
        if listed:
            world.names()
        number = world.look(b"a").inode
        world.client.delete(b"a")
        with pytest.raises(NoSuchEntry):
            world.fs.open(number, os.O_RDONLY)
        with pytest.raises(NoSuchEntry):
            world.look(b"a")
        world.client.put(b"a", content)
        assert world.look(b"a").size_bytes == len(content)


def test_open_of_a_file_that_became_a_directory() -> None:
    """If a deleted object's name is now a directory, open makes the kernel look up again."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        world.client.delete(b"a")
        world.client.put(b"a/b", b"2")
        with pytest.raises(StaleInode):
            world.fs.open(number, os.O_RDONLY)
        assert stat.S_ISDIR(world.look(b"a").mode)


def test_an_open_file_is_one_version() -> None:
    """The open handle of a replaced object keeps its attributes, and never reads new bytes."""
    with mounted({b"a": b"1" * 16 * MIB}) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDONLY)
        old = world.fs.getattr(number)._replace(ttl_s=0.0)
        assert bytes(world.fs.read(handle, 0, 10)) == b"1" * 10
        world.client.put(b"a", b"2" * 3 * MIB, mtime_ns=1)
        world.pass_s(10.0)
        count = world.client.count()
        assert world.fs.getattr(number)._replace(ttl_s=0.0) == old
        assert world.client.count() == count
        assert world.look(b"a").inode != number
        assert bytes(world.fs.read(handle, 10, 10)) == b"1" * 10
        with pytest.raises(PreconditionFailed):
            world.fs.read(handle, 12 * MIB, 10)
        world.fs.release(handle)
        assert world.budget.held_bytes == 0


def test_a_small_file_is_one_request_more() -> None:
    """Open and read of a small file send one GET; opening it again only checks the version."""
    with mounted({b"a": b"content"}) as world:
        world.names()
        number = world.look(b"a").inode
        assert world.read_file(number) == b"content"
        assert [each.kind for each in world.client.requests] == ["list", "get"]
        handle = world.fs.open(number, os.O_RDONLY)
        assert [each.kind for each in world.client.requests] == ["list", "get", "head"]
        assert bytes(world.fs.read(handle, 2, 3)) == b"nte"
        world.fs.release(handle)


def test_an_empty_file() -> None:
    """An empty object is opened with a HEAD, and read without a request."""
    with mounted({b"a": b""}) as world:
        number = world.look(b"a").inode
        before = world.client.count()
        assert world.read_file(number) == b""
        assert [each.kind for each in world.client.requests[before:]] == ["head"]


# --- Archives ---


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
@pytest.mark.parametrize("content", [b"cold", b"c" * 2 * MIB])
def test_archived(storage_class: str, content: bytes) -> None:
    """An archived object is listed, and can be opened only after it was restored."""
    with mounted() as world:
        world.client.put(b"a", content, storage_class=storage_class)
        world.names()
        number = world.look(b"a").inode
        with pytest.raises(ObjectArchived, match=storage_class):
            world.fs.open(number, os.O_RDONLY)
        assert world.client.count("get") == 0
        world.client.put(b"a", content, storage_class=storage_class, restored=True)
        assert world.read_file(number) == content
        assert world.look(b"a").inode == number
        world.client.put(b"a", content, storage_class=storage_class, restored=False)
        with pytest.raises(ObjectArchived):
            world.fs.open(number, os.O_RDONLY)


@pytest.mark.parametrize("storage_class", ["GLACIER_IR", "STANDARD_IA", "EXPRESS_ONEZONE"])
def test_other_storage_classes(storage_class: str) -> None:
    """Objects of other storage classes are read without additional requests."""
    with mounted() as world:
        world.client.put(b"a", b"warm", storage_class=storage_class)
        assert world.read_file(world.look(b"a").inode) == b"warm"
        assert world.client.count("get") == 1


# --- Refusals and failures ---


def test_open_of_a_directory() -> None:
    """A directory cannot be opened as a file."""
    with mounted({b"d/a": b"1"}) as world:
        number = world.look(b"d").inode
        with pytest.raises(IsADirectory):
            world.fs.open(number, os.O_RDONLY)


#: So many names between `a` and `a/` that one LIST does not settle what `a` is.
BESIDE = {b"a-%02d" % number: b"" for number in range(FEW_KEYS + 1)}


@pytest.mark.parametrize(
    ("keys", "is_directory"),
    [([b"a"], False), ([b"a/b"], True), ([b"a", b"a/b"], True), ([], None)],
)
def test_many_names_beside(keys: list[bytes], is_directory: bool | None) -> None:
    """If one LIST is not enough, HEAD and LIST are sent in parallel."""
    with mounted({**BESIDE, **dict.fromkeys(keys, b"1")}) as world:
        if is_directory is None:
            with pytest.raises(NoSuchEntry):
                world.look(b"a")
        else:
            assert stat.S_ISDIR(world.look(b"a").mode) == is_directory
        asked = [(each.kind, each.key, each.max_keys) for each in world.client.requests]
        assert asked[0] == ("list", b"a", FEW_KEYS)
        assert sorted(asked[1:]) == [("head", b"a", 0), ("list", b"a/", 1)]


@pytest.mark.parametrize(("kind", "beside"), [("list", {}), ("list", BESIDE), ("head", BESIDE)])
def test_a_failed_lookup_is_not_an_absent_name(kind: str, beside: dict[bytes, bytes]) -> None:
    """A lookup that S3 refuses is an error, and never a missing name."""
    with mounted({b"a": b"1", **beside}) as world:
        world.client.inject(kind, Fault(error=AccessDenied("no")))
        with pytest.raises(AccessDenied):
            world.look(b"a")
        world.client.inject(kind, Fault(error=ServerFault("500")))
        assert world.look(b"a").size_bytes == 1, "this one is retried"


def test_a_failed_open_leaves_nothing() -> None:
    """A failed open keeps neither the inode nor memory."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        world.client.inject("get", Fault(error=AccessDenied("no")))
        with pytest.raises(AccessDenied):
            world.fs.open(number, os.O_RDONLY)
        assert world.budget.held_bytes == 0
        world.fs.forget(number, 1)
        with pytest.raises(StaleInode):
            world.fs.getattr(number)


def test_closed_handles() -> None:
    """A closed handle cannot be read or closed, and a file's number is not a directory's."""
    with mounted({b"a": b"1"}) as world:
        handle = world.fs.open(world.look(b"a").inode, os.O_RDONLY)
        world.fs.release(handle)
        directory = world.fs.opendir(ROOT)
        world.fs.releasedir(directory)
        for call in (
            lambda: world.fs.read(handle, 0, 1),
            lambda: world.fs.release(handle),
            lambda: world.fs.readdir(directory, 0),
            lambda: world.fs.releasedir(directory),
            lambda: world.fs.readdir(HandleNumber(99), 0),
        ):
            with pytest.raises(BadHandle):
                call()


# --- Inodes ---


def test_forget() -> None:
    """A forgotten inode is gone; the next lookup gives it a unique number."""
    with mounted({b"a": b"1", b"d/b": b"2"}) as world:
        first, directory = world.look(b"a").inode, world.look(b"d").inode
        world.look(b"a")
        world.fs.forget(first, 1)
        assert world.fs.getattr(first).inode == first
        world.fs.forget(first, 1)
        world.fs.forget(directory, 1)
        for number in (first, directory):
            with pytest.raises(StaleInode):
                world.fs.getattr(number)
        with pytest.raises(StaleInode):
            world.fs.lookup(directory, b"b")
        assert world.read_file(world.look(b"a").inode) == b"1"
        world.fs._inodes.check()


def test_an_open_file_outlives_its_lookups() -> None:
    """A forgotten inode that is open can be read until it is closed."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        handle = world.fs.open(number, os.O_RDONLY)
        world.fs.forget(number, 1)
        assert bytes(world.fs.read(handle, 0, 10)) == b"1"
        world.fs.release(handle)
        with pytest.raises(StaleInode):
            world.fs.getattr(number)


# --- Directories ---


def test_readdir() -> None:
    """A directory begins with itself and its parent; kinds and numbers agree with lookups."""
    with mounted({b"d/a": b"1", b"d/e/f": b"2", b"d/z": b"3"}) as world:
        number = world.look(b"d").inode
        known = {name: world.look(b"d/" + name).inode for name in (b"a", b"e")}
        lines = world.lines(number)
        assert [line.name for line in lines] == [b".", b"..", b"a", b"e", b"z"]
        assert [line.inode for line in lines[:2]] == [number, ROOT]
        assert {line.name: line.inode for line in lines if line.name in known} == known
        kinds = [stat.S_ISDIR(line.mode) for line in lines]
        assert kinds == [True, True, False, True, False]
        assert [line.next_position for line in lines] == [1, 2, 3, 4, 5]
        assert len({line.inode for line in lines}) == 5
        root = world.lines(ROOT)
        assert [line.inode for line in root[:2]] == [ROOT, ROOT]


def test_a_replaced_file_is_listed_with_another_number() -> None:
    """A listing never shows another version's number."""
    with mounted({b"a": b"1"}) as world:
        number = world.look(b"a").inode
        assert world.lines(ROOT)[2].inode == number
        world.client.put(b"a", b"2")
        assert world.lines(ROOT)[2].inode != number


def test_every_position_can_be_gone_on_from() -> None:
    """Reading can continue at any position, in the same listing."""
    keys = [b"%03d" % index for index in range(300)]
    with mounted(dict.fromkeys(keys, b"")) as world:
        handle = world.fs.opendir(ROOT)
        expected = [b".", b"..", *keys]
        assert [line.name for line in world.fs.readdir(handle, 0)] == expected[:130]
        world.client.put(b"000a", b"")
        count = world.client.count()
        for position in (1, 2, 3, 129, 130, 131, 299, 301):
            lines = world.fs.readdir(handle, position)
            assert [line.name for line in lines] == expected[position : position + len(lines)]
            assert lines[0].next_position == position + 1
        assert world.fs.readdir(handle, 302) == []
        assert world.fs.readdir(handle, 1000) == []
        assert world.client.count() == count
        world.fs.releasedir(handle)


def test_rewinding_lists_anew() -> None:
    """Reading from the start again shows new names."""
    with mounted({b"a": b""}) as world:
        handle = world.fs.opendir(ROOT)
        assert [line.name for line in world.fs.readdir(handle, 0)] == [b".", b"..", b"a"]
        world.client.put(b"b", b"")
        assert world.fs.readdir(handle, 3) == []
        assert [line.name for line in world.fs.readdir(handle, 0)] == [b".", b"..", b"a", b"b"]
        world.fs.releasedir(handle)


def test_three_thousand_files() -> None:
    """`ls -l` of 3,000 files costs only the listing."""
    with mounted({b"d/%04d" % index: b"%d" % index for index in range(3000)}) as world:
        number = world.look(b"d").inode
        before = world.client.count()
        names = world.names(number)
        assert len(set(names)) == len(names) == 3000
        listed = world.client.count()
        assert listed <= before + 3 + MAX_PARALLEL
        for name in names:
            assert world.fs.lookup(number, name).size_bytes == len(b"%d" % int(name))
        assert world.client.count() == listed


# --- access, paths ---


@pytest.mark.parametrize(
    ("uid", "gid", "mask", "file", "directory"),
    [
        (UID, 1, os.R_OK, True, True),
        (UID, 1, os.X_OK, False, True),
        (UID, 1, os.R_OK | os.X_OK, False, True),
        (1, GID, os.R_OK, True, True),
        (1, GID, os.X_OK, False, True),
        (1, 1, os.R_OK, False, False),
        (1, 1, os.X_OK, False, True),
        (0, 0, os.R_OK, True, True),
        (0, 0, os.X_OK, False, True),
        (1, 1, os.F_OK, True, True),
        (UID, 1, os.W_OK, True, True),
        (1, GID, os.W_OK, False, False),
        (0, 0, os.W_OK, True, True),
    ],
)
def test_access(uid: int, gid: int, mask: int, file: bool, directory: bool) -> None:
    """access follows mode and owner; root may do everything but execute non-executables."""
    with mounted({b"a": b"", b"d/b": b""}, file_mode=0o640, dir_mode=0o751) as world:
        assert world.fs.access(world.look(b"a").inode, mask, uid, gid) is file
        assert world.fs.access(world.look(b"d").inode, mask, uid, gid) is directory


def test_paths_for_log_lines() -> None:
    """Any path can be printed, with any bytes, also of deleted files."""
    with mounted({b"d/\xff": b"", b"d/\n": b""}) as world:
        number = world.look(b"d").inode
        assert world.fs.path_of(number) == "/d/"
        assert world.fs.path_of(number, b"\xff") == "/d/\\xff"
        assert world.fs.path_of(InodeNumber(99), b"x") == "<inode 99>"
        assert world.fs.path_of_handle(HandleNumber(99)) == "<handle 99>"
        handle = world.fs.opendir(number)
        assert world.fs.path_of_handle(handle, directory=True) == "/d/"
        world.fs.releasedir(handle)


def test_a_key_as_long_as_keys_can_be() -> None:
    """Keys have at most 1,024 bytes: a longer path does not exist, and sends no request."""
    folders = b"/".join([b"d" * 255] * 4)  # 1,023 bytes
    deepest = folders[:-1]  # 1,022 bytes: with a slash and a name it is 1,024
    with mounted({deepest + b"/f": b"x", folders[:-255] + b"n" * 254: b"y"}) as world:
        parent = world.look(deepest).inode
        assert world.fs.lookup(parent, b"f").size_bytes == 1
        asked = world.client.count()
        with pytest.raises(NoSuchEntry):
            world.fs.lookup(parent, b"ff")
        assert world.client.count() == asked


class EmptyPages(FakeClient):
    """A store that sends some empty pages before the one that matters, or only empty ones."""

    endless = False

    def list(self, prefix: bytes, **options: Any) -> "Future[ListPage]":
        token = options.get("token") or "0"
        if token.isdigit() and (self.endless or int(token) < 3):
            answer: Future[ListPage] = Future()
            answer.set_result(ListPage([], [], str(int(token) + 1)))
            return answer
        return super().list(prefix, **options | {"token": None})


def test_empty_pages() -> None:
    """Empty pages before the first entry do not hide a directory, from lookup and readdir."""
    with mounted({b"d/f": b"x"}, client_class=EmptyPages) as world:
        assert world.names() == [b"d"]
        world.pass_s(2)
        assert stat.S_ISDIR(world.look(b"d").mode)


def test_empty_pages_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing with endless empty pages is an error after a while."""
    monkeypatch.setattr(EmptyPages, "endless", True)
    with mounted({b"d/f": b"x"}, client_class=EmptyPages, total_s=0.2) as world:
        with pytest.raises(Stalled):
            world.names()
        with pytest.raises(Stalled):
            world.look(b"d")
