"""Listings ahead of a walk: their requests, their readers, and their age."""

import random
import stat
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.errors import AccessDenied, Interrupted, NoSuchEntry, ServerFault
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.listing.prefetch import FIRST_ALLOWED, MAX_AGE_S, MAX_SIBLINGS, MAX_WALKERS
from mountpoint.listing.tree import is_name
from tests.soak import examples
from tests.unit.fake_client import FakeClient, Fault, Request
from tests.unit.mounted import Mounted, mounted
from tests.unit.tree_model import directories, tree_of

PROCESS = 4711


def tree(width: int, below: int, files: int) -> dict[bytes, bytes]:
    """`width` directories of `below` directories of `files` files, below `t`."""
    return {
        b"t/%03d/%03d/%05d" % (a, b, c): b""
        for a in range(width)
        for b in range(below)
        for c in range(files)
    }


def walk(
    world: Mounted,
    number: InodeNumber = ROOT,
    process: int = PROCESS,
    pause_s: float = 0.0,
    stats: bool = True,
) -> Iterator[tuple[bytes, list[bytes]]]:
    """Walk like `find`: depth first, looking up each name. Yields paths and contents."""
    todo = [(b"", number)]
    while todo:
        path, number = todo.pop()
        lines = world.lines(number, process)[2:]
        yield path, [line.name for line in lines]
        world.pass_s(pause_s)
        below = []
        for line in lines:
            if stats or stat.S_ISDIR(line.mode):
                found = world.fs.lookup(number, line.name)
                assert found.inode == line.inode
            if stat.S_ISDIR(line.mode):
                below.append((path + line.name + b"/", line.inode))
        todo += reversed(below)


def asked(world: Mounted) -> tuple[int, int, int]:
    """Return the numbers of directory pages, flat pages and other requests."""
    pages = [
        each for each in world.client.requests if each.kind == "list" and each.max_keys == 1000
    ]
    flat = sum(each.flat for each in pages)
    others = len(world.client.requests) - len(pages)
    world.client.requests.clear()
    return len(pages) - flat, flat, others


def begun(world: Mounted) -> list[bytes]:
    """Return the directories whose first page was requested alone, in that order."""
    return [
        each.key
        for each in world.client.requests
        if each.max_keys == 1000 and not (each.flat or each.token or each.start_after)
    ]


def model(keys: Any) -> dict[bytes, list[bytes]]:
    return {
        prefix: sorted(
            (name for name in below if is_name(name)),
            key=lambda name: name + b"/" * isinstance(below[name], dict),
        )
        for prefix, below in directories(tree_of(keys))
    }


# --- How many requests ---


@pytest.mark.slow
def test_a_tree_of_small_directories() -> None:
    """421 directories with 4,000 files: three ordinary listings, then a page per 1,000 keys."""
    objects = tree(20, 20, 10)
    with mounted(objects) as world:
        assert dict(walk(world)) == model(objects)
        assert asked(world) == (3, 4, 0)


@pytest.mark.slow
def test_breadth_first() -> None:
    """By levels: prefetched listings are too old for the next level, and are requested again."""
    objects = tree(20, 20, 10)
    with mounted(objects) as world:
        level, seen = [ROOT], 0
        while level:
            below = []
            for number in level:
                lines = world.lines(number, PROCESS)[2:]
                below += [line.inode for line in lines if stat.S_ISDIR(line.mode)]
                for line in lines:
                    world.fs.lookup(number, line.name)
                seen += len(lines)
            level = below
            world.pass_s(MAX_AGE_S)
        assert seen == 1 + 20 + 400 + 4000
        pages, flat, others = asked(world)
        assert pages + flat <= 20
        assert others == 0


def test_without_stat() -> None:
    """Plain `find` looks up only directories."""
    objects = tree(20, 20, 10)
    with mounted(objects) as world:
        assert dict(walk(world, stats=False)) == model(objects)
        assert asked(world) == (3, 4, 0)


@pytest.mark.slow
def test_each_directory_twice() -> None:
    """Python's `glob` lists each directory twice in a row, and one prefetch serves both."""
    objects = tree(20, 20, 10)
    with mounted(objects) as world:
        for path, names in walk(world, stats=False):
            number = world.look(path[:-1]).inode if path else ROOT
            assert [line.name for line in world.lines(number, PROCESS)[2:]] == names
        assert asked(world) == (6, 4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.05, 0.15, 0.3])
def test_a_slow_walk(pause_s: float) -> None:
    """A slow walk outruns its pages, but still needs fewer of them than directories."""
    objects = tree(10, 10, 10)
    with mounted(objects) as world:
        assert dict(walk(world, pause_s=pause_s, stats=False)) == model(objects)
        pages, flat, _ = asked(world)
        assert pages + flat <= 4 + 110 / (MAX_AGE_S / pause_s - 1) * 1.5


def test_a_walk_that_takes_a_second_for_three_directories() -> None:
    """Such a slow walk is none: each directory is listed at its open."""
    objects = tree(4, 4, 2)
    with mounted(objects) as world:
        assert dict(walk(world, pause_s=0.5, stats=False)) == model(objects)
        assert asked(world)[:2] == (1 + 1 + 4 + 16, 0)


@pytest.mark.slow
def test_large_directories() -> None:
    """Flat pages are given up for directories larger than a page, and tried again occasionally."""
    objects = tree(1, 40, 25)
    with mounted(objects, page_size=10) as world:
        assert dict(walk(world, stats=False)) == model(objects)
        assert sorted(begun(world)) == sorted(model(objects))
        assert asked(world)[1] <= 5


def test_a_walk_that_stops() -> None:
    """At most two flat pages and a few siblings were wasted."""
    for objects in (tree(20, 20, 1), tree(1, 40, 25)):
        with mounted(objects, page_size=10) as world:
            for count, _ in enumerate(walk(world, stats=False)):
                if count == 12:
                    break
            assert len(begun(world)) <= 13 + MAX_SIBLINGS
            assert asked(world)[1] <= 2


def test_only_some_directories() -> None:
    """A program that skips most prefetched directories soon gets no more."""
    objects = tree(1, 400, 5)
    with mounted(objects, page_size=10) as world:
        world.lines(world.look(b"t").inode, PROCESS)
        parent = world.look(b"t/000").inode
        lines = world.lines(parent, PROCESS)[2:]
        for line in lines[::10]:
            world.lines(world.fs.lookup(parent, line.name).inode, PROCESS)
        assert len(begun(world)) <= 1 + 40 + FIRST_ALLOWED
        assert asked(world)[1] <= 5


def test_siblings_side_by_side() -> None:
    """The next large directories are requested before their opens, once each."""
    objects = tree(1, 12, 15)
    with mounted(objects, page_size=10) as world:
        prefixes = []
        for path, _ in walk(world, stats=False):
            prefixes.append(path)
        first = begun(world)
        assert sorted(first) == sorted(prefixes)
        early = [first.index(path) < 2 * index for index, path in enumerate(prefixes)]
        assert any(early)


# --- For whom ---


def test_one_directory_and_then_another() -> None:
    """Scripts that list directories in their own order get no prefetch, in one process or many."""
    objects = tree(1, 20, 3)
    with mounted(objects) as world:
        parent = world.look(b"t/000").inode
        lines = world.lines(parent, PROCESS)[2:]
        for line in lines:
            world.fs.lookup(parent, line.name)
        random.Random(1).shuffle(lines)
        picked = [lines[index] for index in range(0, 20, 2)]
        world.client.requests.clear()
        for line in sorted(picked, key=lambda line: line.name, reverse=True):
            world.lines(line.inode, PROCESS)
        for process, line in enumerate(sorted(lines, key=lambda line: line.name)):
            world.lines(line.inode, 5000 + process)
        for line in sorted(lines, key=lambda line: line.name):
            world.lines(line.inode, 0)
        assert asked(world) == (10 + 20 + 20, 0, 0)


@pytest.mark.slow
def test_two_walks() -> None:
    """Each process has its own walk."""
    objects = tree(20, 20, 10)
    with mounted(objects) as world:
        walks = [walk(world, process=process) for process in (1, 2)]
        for (path, names), (path2, names2) in zip(*walks, strict=True):
            assert (path, names) == (path2, names2)
        assert asked(world) == (6, 8, 0)


def test_threads_of_a_process() -> None:
    """Directories opened by one thread and read by many are correct, in any order."""
    objects = tree(10, 10, 10)
    expected = model(objects)
    with mounted(objects) as world:
        paths = sorted(expected)
        numbers = {path: world.look(path[:-1]).inode if path else ROOT for path in paths}
        found: dict[bytes, list[bytes]] = {}

        def read(some: list[bytes]) -> None:
            for path in some:
                found[path] = [line.name for line in world.lines(numbers[path], PROCESS)[2:]]

        threads = [threading.Thread(target=read, args=(paths[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected


def test_walkers_are_forgotten() -> None:
    """Only the most recent processes are tracked."""
    with mounted(tree(2, 2, 2)) as world:
        for process in range(1, 10 * MAX_WALKERS):
            world.lines(ROOT, process)
        assert len(world.fs._caches._walks._walkers) == MAX_WALKERS


def test_no_staleness_allowed() -> None:
    """With a ttl of 0 nothing is prefetched."""
    objects = tree(5, 5, 2)
    with mounted(objects, ttl_s=0.0) as world:
        assert dict(walk(world, stats=False)) == model(objects)
        assert asked(world)[:2] == (32, 0)


class Unordered(FakeClient):
    """A directory bucket."""

    lists_in_order = False


class NoStartAfter(FakeClient):
    """A store without start-after."""

    def flat_page(self, objects: Any, request: Request) -> Any:
        if request.start_after is not None:
            request = Request("list", request.key, max_keys=request.max_keys, flat=True)
        return super().flat_page(objects, request)


@pytest.mark.parametrize(("store", "flat"), [(Unordered, 0), (NoStartAfter, 2)])
def test_stores_without_order(store: type[FakeClient], flat: int) -> None:
    """Each directory is listed alone."""
    objects = {b"a": b"", **tree(5, 5, 2)}
    with mounted(objects, client_class=store) as world:
        assert dict(walk(world)) == model(objects)
        pages, tried, _ = asked(world)
        assert pages == 32
        assert tried <= flat


# --- Faults ---


@pytest.mark.parametrize("error", [AccessDenied, ServerFault])
def test_refused(error: type[Exception]) -> None:
    """If flat pages are refused, each directory is listed alone."""
    objects = tree(5, 5, 2)
    with mounted(objects) as world:

        def script(request: Request) -> Fault | None:
            return Fault(error=error("no")) if request.flat else None

        world.client.script = script
        assert dict(walk(world)) == model(objects)
        pages, flat, _ = asked(world)
        assert pages == 32
        assert flat <= 3


def test_a_sibling_that_is_refused() -> None:
    """A failed prefetch is repeated at the open, and only then reported."""
    objects = tree(1, 12, 15)
    with mounted(objects, page_size=10) as world:
        refused = set()

        def script(request: Request) -> Fault | None:
            first = request.kind == "list" and not request.flat and request.token is None
            if not first or request.key in refused:
                return None
            refused.add(request.key)
            return Fault(error=ServerFault("500"))

        world.client.script = script
        assert dict(walk(world, stats=False)) == model(objects)


def test_a_page_that_does_not_come() -> None:
    """The open waits for one try, cancels the page, and lists the directory."""
    objects = tree(5, 5, 2)
    with mounted(objects, total_s=0.4) as world:

        def script(request: Request) -> Fault | None:
            return Fault(silent=True) if request.flat else None

        world.client.script = script
        assert dict(walk(world, stats=False)) == model(objects)
        assert world.client.cancelled >= 1


def test_the_end_of_the_mount() -> None:
    """A thread that waits for a page is woken."""
    objects = tree(5, 5, 2)
    with mounted(objects) as world:
        waits = threading.Event()

        def script(request: Request) -> Fault | None:
            if not request.flat:
                return None
            waits.set()
            return Fault(silent=True)

        world.client.script = script
        errors: list[Exception] = []

        def run() -> None:
            try:
                list(walk(world, stats=False))
            except Interrupted as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        waits.wait()
        world.client.interrupt()
        thread.join(30)
        assert len(errors) == 1


# --- What changes meanwhile ---


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "nothing"]),
        st.lists(st.sampled_from([b"a", b"b", b"c", b"a-"]), min_size=1, max_size=3).map(b"/".join),
        st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    ),
    max_size=30,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(STEPS, st.sampled_from([1, 2, 3, 1000]))
def test_against_a_model(steps: list[tuple[str, bytes, float]], page_size: int) -> None:
    """A walk shows states of the last half second, and everything that existed throughout."""
    names = (b"a", b"b", b"c")
    objects = {
        b"%b/%b/%b" % (first, second, third): b""
        for first in names
        for second in names
        for third in names
    }
    with mounted(objects, page_size=page_size) as world:
        history = [(world.clock.now_s, model(world.client._objects))]
        todo = list(steps)
        numbers = {b"": ROOT}
        pending = [b""]
        while pending:
            path = pending.pop()
            lines = world.lines(numbers[path], PROCESS)[2:]
            now_s = world.clock.now_s
            ends = [since_s for since_s, _ in history[1:]] + [now_s]
            recent = [
                state.get(path, [])
                for (_, state), end_s in zip(history, ends, strict=True)
                if end_s >= now_s - MAX_AGE_S
            ]
            shown = [line.name for line in lines]
            assert len(set(shown)) == len(shown)
            assert set.intersection(*map(set, recent)) <= set(shown) <= set.union(*map(set, recent))
            below = []
            for line in lines:
                numbers[path + line.name + b"/"] = line.inode
                if stat.S_ISDIR(line.mode):
                    try:
                        world.fs.lookup(numbers[path], line.name)
                    except NoSuchEntry:
                        continue
                    below.append(path + line.name + b"/")
            pending += reversed(below)
            if todo:
                step, key, pause_s = todo.pop()
                if step == "put":
                    world.client.put(key, b"new")
                elif step == "delete" and key in world.client._objects:
                    world.client.delete(key)
                world.pass_s(pause_s)
                history.append((world.clock.now_s - pause_s, model(world.client._objects)))
