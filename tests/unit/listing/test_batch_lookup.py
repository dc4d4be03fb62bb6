"""Batch lookups: their requests, what they must not answer, and their callers."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.errors import (
    AccessDenied,
    Interrupted,
    NoSuchEntry,
    OperationError,
    ServerFault,
    StaleInode,
    Throttled,
)
from mountpoint.fs.attributes import Attributes
from mountpoint.fs.inodes import ROOT
from mountpoint.listing import batch_lookup
from mountpoint.listing.batch_lookup import RENEW_BEFORE_S
from mountpoint.listing.directory import MAX_PARALLEL
from mountpoint.listing.pages import SINGLE_LOOKUPS
from mountpoint.listing.tree import FEW_KEYS, is_name
from mountpoint.s3.client import ListPage, ObjectInfo
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request, list_page, path_page
from tests.unit.mounted import Mounted, mounted
from tests.unit.tree_model import tree_of


def names(count: int) -> list[bytes]:
    return [b"f%04d" % index for index in range(count)]


def files(count: int) -> dict[bytes, bytes]:
    return dict.fromkeys(names(count), b"x")


def asked(world: Mounted) -> tuple[int, int]:
    """Return the numbers of pages and of lookups alone, and reset them."""
    lists = [request for request in world.client.requests if request.kind == "list"]
    alone = sum(request.max_keys == FEW_KEYS for request in lists)
    assert world.client.count("head") == 0
    world.client.requests.clear()
    return len(lists) - alone, alone


def exists(world: Mounted, name: bytes) -> bool:
    try:
        world.fs.lookup(ROOT, name)
    except NoSuchEntry:
        return False
    return True


# --- How many requests ---


@pytest.mark.slow
def test_one_after_another() -> None:
    """1,000 listed names, 22 ms each: only pages that have become too old are requested again."""
    with mounted(files(1000)) as world:
        assert world.names() == names(1000)
        assert asked(world) == (1, 0)
        for name in names(1000):
            world.look(name)
            world.pass_s(0.022)
        # The 35th lookup, 0.77 s after the request of its page, requests the next one.
        assert asked(world) == (999 // 35, 0)


@pytest.mark.slow
def test_one_after_another_where_nothing_was_listed() -> None:
    """Two lookups alone; then a page from the name on that is looked up."""
    with mounted(files(1000)) as world:
        for name in names(1000):
            world.look(name)
            world.pass_s(0.022)
        assert asked(world) == (997 // 35 + 1, 2)


@pytest.mark.slow
def test_on_and_on() -> None:
    """The next page begins where the last one ended:

    a page per 1,000 names, its last name alone.
    """
    with mounted(files(3000)) as world:
        for name in names(3000):
            world.look(name)
        first = world.client.requests[2].start_after, world.client.requests[3].key
        assert first == (b"f0001~", b"f1001")
        assert asked(world) == (3, 4)


def test_lookups_do_not_wait_for_a_page_in_use() -> None:
    """A page in use is renewed once before it is too old, and lookups do not wait."""
    with stepped(files(100)) as world:
        world.start(b"f0001")
        world.answer(1)
        for pass_s, requests in ((0.5, 0), (0.3, 1), (0.1, 1)):
            world.world.pass_s(pass_s)
            for name in names(20):
                world.world.look(name)
            assert world.world.client.under_way() == requests
        world.answer(1)
        world.world.pass_s(0.5)
        for name in names(20):
            world.world.look(name)
        assert asked(world.world) == (2, 0)


def test_a_page_that_is_seldom_of_use_is_not_renewed() -> None:
    """One lookup late in the life of a page is no reason to renew it."""
    with mounted(files(200)) as world:
        world.names()
        world.pass_s(1.0)
        world.look(b"f0001")
        world.pass_s(0.8)
        world.look(b"f0002")
        assert asked(world) == (2, 0)


def test_one_file_again_and_again() -> None:
    """In a small directory: one LIST per ttl, for the name and all directories above it."""
    with mounted(dict.fromkeys([b"d/e/%03d" % index for index in range(20)], b"x")) as world:
        world.look(b"d/e/003")
        assert asked(world) == (0, 3)
        for _ in range(40):
            world.pass_s(0.1)
            world.look(b"d/e/003")
            while world.client.under_way():
                time.sleep(0.001)
        assert asked(world) == (5, 0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 2000, 2500])
def test_in_any_order(count: int) -> None:
    """Names of a listed directory in any order: each of its pages once a second.

    The last name of a page needs its own request: a directory of that name may begin the next page.
    """
    with mounted(files(count)) as world:
        world.names()
        pages = -(-count // 1000)
        lists, *lone = asked(world)  # some are asked for beyond the end
        assert pages <= lists <= pages + MAX_PARALLEL
        assert lone == [0]
        for second in range(3):
            world.pass_s(1.0)
            order = names(count)
            random.Random(second).shuffle(order)
            for name in order:
                world.look(name)
            assert asked(world) == (pages, pages - 1)


def test_getattr_too() -> None:
    """Expired attributes are renewed in the same way."""
    with mounted(files(500)) as world:
        numbers = [line.inode for line in world.lines(ROOT)[2:]]
        for name in names(500):
            world.look(name)
        asked(world)
        world.pass_s(1.0)
        for number in numbers:
            assert world.fs.getattr(number).ttl_s == 1.0 - RENEW_BEFORE_S
        assert asked(world) == (1, 0)


@pytest.mark.slow
def test_at_random_where_pages_are_many() -> None:
    """If pages seldom answer a second lookup, most lookups are sent alone."""
    with mounted(files(3000), page_size=120) as world:
        chance = random.Random(1)
        for _ in range(200):
            world.look(chance.choice(names(3000)))
            world.pass_s(0.05)
        pages, lone = asked(world)
        assert lone > 160
        assert pages < 20


def test_names_of_a_directory_that_grows_and_shrinks() -> None:
    """Pages stay adjacent after names were added or removed, and are requested once a second."""
    with mounted(files(2000), page_size=500) as world:
        world.names()
        for index in range(0, 2000, 20):
            world.client.put(b"f%04d+" % index, b"new")
        for index in range(1000, 1100):
            world.client.delete(b"f%04d" % index)
        world.pass_s(1.0)
        for name in sorted(world.client._objects):
            world.look(name)
        asked(world)
        world.pass_s(1.0)
        for name in sorted(world.client._objects):
            world.look(name)
        pages, lone = asked(world)
        assert (pages, lone) == (4, 3)


def test_reading_shows_that_the_directory_exists() -> None:
    """While files in a directory are opened, the directory itself needs no lookup."""
    with mounted({b"d/e/%03d" % index: b"x" for index in range(200)}) as world:
        number = world.look(b"d/e").inode
        assert asked(world) == (0, 2)
        for index in range(200):
            world.look(b"d/e")
            world.read_file(world.fs.lookup(number, b"%03d" % index).inode)
            world.pass_s(0.05)
        assert asked(world) == (197 // 16 + 1, 2)


# --- Batches ---


class World:
    """A stepped world; its lookups run in threads."""

    def __init__(self, world: Mounted, waiting: threading.Semaphore) -> None:
        self.world = world
        self.waiting = waiting  # released once by each thread that waits for another one's page
        self.results: dict[bytes, Attributes | OperationError] = {}
        self.threads: list[threading.Thread] = []

    def start(self, name: bytes) -> None:
        """Look up a name in a thread."""

        def look() -> None:
            try:
                self.results[name] = self.world.fs.lookup(ROOT, name)
            except OperationError as error:
                self.results[name] = error

        self.threads.append(threading.Thread(target=look))
        self.threads[-1].start()

    def start_behind(self, first: bytes, second: bytes) -> None:
        """Look up a name, and another one that waits for the first one's page."""
        self.start(first)
        self._under_way(1)
        self.start(second)
        self.waiting.acquire()

    def answer(self, count: int) -> None:
        """Wait for this many requests in flight, and answer them."""
        self._under_way(count)
        assert self.world.client.step(count) == count

    def end(self) -> None:
        """Wait for all lookups."""
        for thread in self.threads:
            thread.join(SAFE_S)
            assert not thread.is_alive()

    def _under_way(self, count: int) -> None:
        until_s = time.monotonic() + SAFE_S
        while self.world.client.under_way() < count:
            assert time.monotonic() < until_s
            time.sleep(0.001)


@contextmanager
def stepped(objects: Mapping[bytes, bytes], **options: Any) -> Iterator[World]:
    """Create a world whose root directory was listed more than a second ago."""
    waiting = threading.Semaphore(0)

    class Arrival(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.release()
            return super().wait(timeout)

    with mounted(objects, stepped=True, **options) as world, pytest.MonkeyPatch.context() as patch:
        listing = threading.Thread(target=world.names)
        listing.start()
        while listing.is_alive():
            world.client.step()
            time.sleep(0.001)
        world.client.requests.clear()
        world.pass_s(1.0)
        original = batch_lookup._Batch.__init__

        def init(self: batch_lookup._Batch, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.arrived = Arrival()

        patch.setattr(batch_lookup._Batch, "__init__", init)
        yield World(world, waiting)


def test_threads_share_a_batch() -> None:
    """Sixteen threads with any names of 2,000 make two requests, and wait for those."""
    with stepped(files(2000)) as world:
        for index in range(16):
            world.start(b"f%04d" % (index * 125 + 7))
        for _ in range(14):
            world.waiting.acquire()
        world.answer(2)
        world.end()
        assert len(world.results) == 16
        assert all(isinstance(found, Attributes) for found in world.results.values())
        assert asked(world.world) == (2, 0)


def test_waiting_lookups_do_not_trust_absence() -> None:
    """A name that the answer lacks may be newer than the request: it needs its own."""
    with stepped(files(10)) as world:
        world.start_behind(b"f0001", b"new")
        world.answer(1)  # an answer without the name
        world.world.client.put(b"new", b"12345")
        world.answer(1)
        world.end()
        found = world.results[b"new"]
        assert isinstance(found, Attributes)
        assert found.size_bytes == 5
        assert asked(world.world) == (1, 1)


def test_the_requesting_lookup_trusts_absence() -> None:
    """The lookup that sent the request may treat a missing name as absent."""
    with stepped(files(10)) as world:
        world.start(b"new")
        world.answer(1)
        world.end()
        assert isinstance(world.results[b"new"], NoSuchEntry)
        assert asked(world.world) == (1, 0)


def test_the_end_of_the_mount_ends_all_waits() -> None:
    """The end of the mount wakes all waiting lookups."""
    with stepped(files(10)) as world:
        world.start_behind(b"f0001", b"f0002")
        world.world.client.interrupt()
        world.end()
        assert all(isinstance(error, Interrupted) for error in world.results.values())


def test_an_answer_that_comes_late() -> None:
    """An expired answer serves only the lookup that requested it; the others send their own."""
    with stepped(files(10)) as world:
        world.start_behind(b"f0001", b"f0002")
        world.world.pass_s(1.5)
        world.answer(1)
        world.answer(1)
        world.end()
        assert isinstance(world.results[b"f0001"], Attributes)
        assert world.results[b"f0001"].ttl_s == 0.0
        assert isinstance(world.results[b"f0002"], Attributes)
        assert asked(world.world) == (1, 1)


# --- What changes meanwhile ---


def test_a_new_object_is_visible_at_once() -> None:
    """A new object is found immediately, even if its name was often missing."""
    with mounted(files(50)) as world:
        world.names()
        for round_ in range(40):
            world.pass_s(random.Random(round_).choice([0.0, 0.3, 1.0]))
            name = b"new%02d" % round_
            assert not exists(world, name)
            world.client.put(name, b"x")
            assert exists(world, name)
            assert exists(world, name)


def test_deleted_and_replaced() -> None:
    """After a second a deleted name is ENOENT, and a new version is another inode."""
    with mounted(files(5)) as world:
        numbers = {line.name: line.inode for line in world.lines(ROOT)[2:]}
        for name in names(5):
            world.look(name)
        world.client.delete(b"f0001")
        world.client.put(b"f0002", b"another")
        world.client.put(b"f0003/below", b"x")
        world.pass_s(1.0)
        asked(world)
        with pytest.raises(StaleInode):
            world.fs.getattr(numbers[b"f0002"])
        assert world.look(b"f0002").size_bytes == 7
        assert world.look(b"f0003").mode & 0o170000 == 0o040000
        assert world.look(b"f0004").inode == numbers[b"f0004"]
        assert asked(world) == (1, 0)
        assert not exists(world, b"f0001")
        world.pass_s(1.0)
        assert not exists(world, b"f0001")
        assert asked(world) == (1, 1)


def test_a_version_that_open_refused_is_not_found_again() -> None:
    """A page from before open found another version no longer counts for that name."""
    with mounted(files(5)) as world:
        world.names()
        world.pass_s(1.0)
        number = world.look(b"f0001").inode
        world.look(b"f0002")
        world.client.put(b"f0001", b"another")
        with pytest.raises(StaleInode):
            world.fs.open(number, 0)
        assert world.look(b"f0001").size_bytes == 7


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_names_around_the_slash(page_size: int) -> None:
    """Names that sort before and after "/" are found, wherever a page ends."""
    keys = [b"a", b"a!", b"a-/x", b"a.", b"a/b", b"a0", b"b"]
    with mounted(dict.fromkeys(keys, b"x"), page_size=page_size) as world:
        world.names()
        for _ in range(4):
            world.pass_s(1.0)
            for name in (b"a", b"a!", b"a-", b"a.", b"a0", b"b"):
                is_directory = world.look(name).mode & 0o040000 != 0
                assert is_directory == (name in (b"a", b"a-")), name
            for name in (b"a ", b"a-x", b"a1", b"a~", b"0", b"c"):
                assert not exists(world, name)


@pytest.mark.parametrize("name", [b"\xff\xfe", "ü😀".encode(), b"a\nb", b"%2F+ ", b"n" * 255, b"!"])
def test_odd_names(name: bytes) -> None:
    """Pages begin at names with any bytes, listed before or not."""
    for listed in (True, False):
        with mounted({name: b"x", name[:-1] + b"\x02": b"y", b"zz": b"z"}) as world:
            if listed:
                world.names()
            for _ in range(5):
                world.pass_s(1.0 if listed else 0.3)
                assert world.look(name).size_bytes == 1
                assert not exists(world, b"m")
            assert asked(world)[0] >= 1


# --- Where there are no pages ---


class Unordered(FakeClient):
    """A directory bucket."""

    lists_in_order = False


class NoStartAfter(FakeClient):
    """A store without start-after."""

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        return list_page(objects, request.key, request.token, min(request.max_keys, 1000))


def test_a_bucket_without_order() -> None:
    """Without order in listings every lookup is sent alone."""
    with mounted(files(5), client_class=Unordered) as world:
        world.names()
        world.pass_s(1.0)
        world.client.requests.clear()
        for name in names(5):
            world.look(name)
        assert [each.max_keys for each in world.client.requests if each.kind == "list"] == [1] * 5
        assert world.client.count("head") == 5


def test_a_store_that_ignores_where_to_begin() -> None:
    """A page with a wrong beginning proves nothing, and lookups are sent alone."""
    with mounted(files(20), client_class=NoStartAfter) as world:
        for name in names(18):
            world.look(name)
        assert asked(world) == (1, 18)


@pytest.mark.parametrize("error", [AccessDenied, ServerFault, Throttled])
def test_a_page_that_is_refused(error: type[OperationError]) -> None:
    """If a page is refused, this lookup and the next ones are sent alone."""
    with mounted(files(50)) as world:
        world.names()
        world.pass_s(1.0)
        asked(world)
        world.client.inject("list", Fault(error=error("no")))
        for name in names(1 + SINGLE_LOOKUPS):
            world.look(name)
        assert asked(world) == (1, 1 + SINGLE_LOOKUPS)
        world.look(b"f0030")
        assert asked(world) == (1, 0)


def test_a_page_that_does_not_come() -> None:
    """A page without an answer leaves half of the time for the lookup alone."""
    with mounted(files(5), total_s=1.0) as world:
        world.names()
        world.pass_s(1.0)
        asked(world)
        world.client.inject("list", Fault(silent=True))
        assert world.look(b"f0001").size_bytes == 1
        assert asked(world) == (1, 1)
        assert world.client.cancelled == 1


# --- Against a model ---

KEYS = st.lists(
    st.sampled_from([b"a", b"a!", b"a-", b"a.", b"a0", b"b", b"c", b"\xff"]),
    min_size=1,
    max_size=2,
).map(b"/".join)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("look"), st.sampled_from([b"a", b"a!", b"a-", b"a0", b"b", b"c", b"\xff"])
        ),
        st.tuples(st.just("put"), KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("list"), st.just(b"")),
        st.tuples(st.just("pass"), st.sampled_from([b"0.1", b"0.5", b"1.0"])),
    ),
    max_size=40,
)


def kinds(client: FakeClient) -> dict[bytes, object]:
    """Return the present state of the root's names: True for a directory, else the ETag."""
    return {
        name: True if isinstance(child, dict) else client.info(child).etag
        for name, child in tree_of(client._objects).items()
        if is_name(name)
    }


@pytest.mark.parametrize("lister", [list_page, path_page])
@settings(deadline=None, max_examples=examples(60))
@given(st.frozensets(KEYS, max_size=10), st.integers(1, 4), STEPS)
@example(frozenset({b"a"}), 1, [("list", b""), ("pass", b"1.0"), ("put", b"b"), ("look", b"b")])
def test_against_a_model(
    lister: Callable[..., ListPage],
    keys: frozenset[bytes],
    page_size: int,
    steps: list[tuple[str, bytes]],
) -> None:
    """Found names existed within the last second; missing names do not exist now."""

    class Store(FakeClient):
        def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
            max_keys = min(request.max_keys, page_size)
            return lister(objects, request.key, request.token, max_keys, request.start_after)

    with mounted(dict.fromkeys(keys, b"0"), client_class=Store) as world:
        history = [(world.clock.now_s, kinds(world.client))]
        for version, (step, what) in enumerate(steps):
            if step == "pass":
                world.pass_s(float(what))
            elif step == "put":
                world.client.put(what, b"%d" % version)
            elif step == "delete" and what in world.client._objects:
                world.client.delete(what)
            elif step == "list" and lister is list_page:
                world.names()
            now_s = world.clock.now_s
            if step != "look":
                history.append((now_s, kinds(world.client)))
                continue
            ends = [begun for begun, _ in history[1:]] + [now_s]
            recent = [
                state for (_, state), end in zip(history, ends, strict=True) if end > now_s - 1
            ]
            try:
                found = world.fs.lookup(ROOT, what)
            except NoSuchEntry:
                assert what not in history[-1][1]
            else:
                kind = world.fs._inodes.get(found.inode).info
                assert (True if kind is None else kind.etag) in [
                    state[what] for state in recent if what in state
                ]
