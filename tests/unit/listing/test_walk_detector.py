"""Programs that walk through a tree, and others."""

from collections.abc import Iterable, Iterator

import pytest

from mountpoint.listing.walk_detector import FEW_STEPS, MAX_LISTED, WITHIN_S, WalkDetector

TREE = {
    b"t/": [b"t/a/", b"t/b/", b"t/c/"],
    b"t/a/": [b"t/a/1/", b"t/a/2/"],
    b"t/a/1/": [],
    b"t/a/2/": [],
    b"t/b/": [],
    b"t/c/": [b"t/c/1/"],
    b"t/c/1/": [],
}


def steps(order: Iterable[bytes], pause_s: float = 0.1) -> list[bool]:
    """Open directories one after another, reading each to its end."""
    walk = WalkDetector()
    seen = []
    for number, directory in enumerate(order):
        seen.append(walk.opened(directory, number * pause_s))
        walk.listed(directory, TREE[directory])
    return seen


def depth_first(directory: bytes = b"t/") -> Iterator[bytes]:
    yield directory
    for child in TREE[directory]:
        yield from depth_first(child)


def breadth_first() -> Iterator[bytes]:
    level = [b"t/"]
    while level:
        yield from level
        level = [child for directory in level for child in TREE[directory]]


@pytest.mark.parametrize("order", [depth_first, breadth_first])
def test_a_walk(order: type[Iterator[bytes]]) -> None:
    """A walk is detected from the third subdirectory on, in both orders."""
    assert steps(order()) == [False] * FEW_STEPS + [True] * (len(TREE) - FEW_STEPS)


def test_some_are_left_out() -> None:
    """`find -prune`: only the order matters."""
    assert steps([b"t/", b"t/a/", b"t/a/2/", b"t/c/", b"t/c/1/"])[-2:] == [True, True]


def test_one_directory_and_then_another() -> None:
    """Directories with an unlisted parent, or in another order, are no walk."""
    assert not any(steps([b"t/a/", b"t/b/", b"t/c/", b"t/a/1/"]))
    assert not any(steps([b"t/", b"t/c/", b"t/b/", b"t/a/", b"t/a/2/", b"t/a/1/"]))
    assert not any(steps([b"t/", b"t/a/", b"t/a/", b"t/a/", b"t/a/", b"t/a/"]))


def test_a_slow_walk() -> None:
    """A program that takes a second for a few directories would find prefetches too old."""
    assert any(steps(depth_first(), pause_s=WITHIN_S / (FEW_STEPS - 1) - 0.01))
    assert not any(steps(depth_first(), pause_s=WITHIN_S / (FEW_STEPS - 1)))


def test_the_top_of_a_walk() -> None:
    """`top` is the last directory that was opened without a step."""
    walk = WalkDetector()
    for directory, top in [
        (b"t/", b"t/"),
        (b"t/a/", b"t/"),
        (b"t/a/1/", b"t/"),
        (b"t/c/", b"t/"),
        (b"u/", b"u/"),
        (b"t/c/", b"t/c/"),
    ]:
        walk.opened(directory, 0.0)
        walk.listed(directory, TREE.get(directory, []))
        assert walk.top == top


def test_page_by_page() -> None:
    """Further pages of a directory continue its list; a new listing restarts it."""
    walk = WalkDetector()
    walk.opened(b"t/", 0.0)
    walk.listed(b"t/", [b"t/a/"])
    walk.opened(b"t/a/", 0.0)
    walk.listed(b"t/", [b"t/b/", b"t/c/"])
    assert walk.next_after(b"t/a/", 5) == [b"t/b/", b"t/c/"]
    assert walk.next_after(b"t/a/", 1) == [b"t/b/"]
    walk.opened(b"t/b/", 0.0)
    assert walk.opened(b"t/c/", 0.0)
    walk.listed(b"t/", [b"t/a/", b"t/c/"])
    assert walk.opened(b"t/a/", 0.0)
    assert walk.next_after(b"t/a/", 5) == [b"t/c/"]
    assert walk.next_after(b"u/a/", 5) == []


def test_the_root() -> None:
    """The root's prefix is empty, and the root is not its own child."""
    walk = WalkDetector()
    assert not walk.opened(b"", 0.0)
    walk.listed(b"", [b"a/", b"b/", b"c/"])
    assert [walk.opened(name, 0.0) for name in (b"a/", b"b/", b"c/")] == [False, False, True]
    assert walk.top == b""
    assert not walk.opened(b"", 0.0)


def test_memory_is_bounded() -> None:
    """Only the most recently used directories are remembered."""
    walk = WalkDetector()
    walk.opened(b"", 0.0)
    for number in range(10 * MAX_LISTED):
        walk.listed(b"%04d/" % number, [b"%04d/a/" % number])
    assert len(walk._listed) == MAX_LISTED
    assert walk.next_after(b"%04d/" % 0, 1) == []
    assert walk.opened(b"%04d/a/" % (10 * MAX_LISTED - 1), 0.0) is False
    assert walk.top == b""
