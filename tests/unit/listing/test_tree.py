"""Keys and names, compared with a model of nested dictionaries and S3's listings."""

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.listing.tree import DirectoryMerge, Entry, decide, decide_by_page, is_name
from mountpoint.s3.client import ListPage, ObjectInfo
from tests.unit.fake_client import list_page, path_page
from tests.unit.tree_model import Tree, directories, linux_can_name, tree_of

#: Bytes around "/" (0x2f), segments that are no names, bytes that are no UTF-8.
ODD_SEGMENTS = [
    b"a", b"b", b"a-1", b"a-2", b"a.", b"a0", b"a!", b"a~", b"A", b" ", b"-", b"0", b"\x01",
    b"", b".", b"..", b"...", b"\0", b"x\0y", b"\xff\xfe", b"\xc3", "ü".encode(), "😀".encode(),
    b"n" * 255, b"n" * 256,
]  # fmt: skip
SEGMENTS = st.sampled_from(ODD_SEGMENTS) | st.binary(min_size=1, max_size=2)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map(b"/".join).filter(bool)
KEY_SETS = st.frozensets(KEYS, max_size=25)
Objects = dict[bytes, ObjectInfo]


def entries_of(prefix: bytes, pages: Iterable[ListPage]) -> list[Entry]:
    """Return all entries of a complete listing."""
    merge = DirectoryMerge(prefix)
    return [entry for page in pages for entry in merge.feed(page)]


def objects_of(keys: frozenset[bytes]) -> Objects:
    return {key: ObjectInfo(key, len(key), 0, f'"{key.hex()}"') for key in keys}


def pages_of(objects: Objects, prefix: bytes, page_size: int) -> list[ListPage]:
    pages = [list_page(objects, prefix, None, page_size)]
    while pages[-1].next_token is not None:
        pages.append(list_page(objects, prefix, pages[-1].next_token, page_size))
    return pages


def walk(objects: Objects, prefix: bytes, page_size: int) -> Tree:
    """Return the tree below `prefix` as DirectoryMerge shows it."""
    tree: Tree = {}
    for entry in entries_of(prefix, pages_of(objects, prefix, page_size)):
        assert entry.name not in tree, "a name came twice"
        if entry.info is None:
            tree[entry.name] = walk(objects, prefix + entry.name + b"/", page_size)
        else:
            tree[entry.name] = entry.info.key
    return tree


def key_of(prefix: bytes, entry: Entry) -> bytes:
    """Return an entry's position in S3's order."""
    return prefix + entry.name + (b"/" if entry.is_directory else b"")


@settings(deadline=None)
@given(KEY_SETS, st.integers(1, 8))
@example(frozenset({b"a", b"a-1", b"a-2", b"a-3", b"a/b"}), 2)
@example(frozenset({b"a", b"a/", b"a//b", b"//", b"/", b"a/b", b"a/b/"}), 1)
@example(frozenset({b"x/./y", b"x/../y", b"x/y\0/z", b"x/" + b"n" * 256}), 3)
def test_walk_gives_the_tree(keys: frozenset[bytes], page_size: int) -> None:
    """A walk from the root, with pages of any size, gives exactly the model's tree."""
    assert walk(objects_of(keys), b"", page_size) == tree_of(keys)


@settings(deadline=None)
@given(KEY_SETS, st.integers(1, 8))
def test_order_is_that_of_s3(keys: frozenset[bytes], page_size: int) -> None:
    """Entries come in S3's order, and none are held back at the end of a listing."""
    objects = objects_of(keys)
    for prefix, _ in directories(tree_of(keys)):
        merge = DirectoryMerge(prefix)
        entries = [
            entry
            for page in pages_of(objects, prefix, page_size)
            for entry in merge.feed(page)
        ]  # fmt: skip
        found = [key_of(prefix, entry) for entry in entries]
        assert found == sorted(found)
        assert not merge.holds


@settings(deadline=None)
@given(KEY_SETS, st.frozensets(SEGMENTS, max_size=6))
def test_decide_agrees_with_the_listing(keys: frozenset[bytes], others: frozenset[bytes]) -> None:
    """A lookup from one page agrees with the directory's listing, or is undecided."""
    objects = objects_of(keys)
    for prefix, tree in directories(tree_of(keys)):
        listed = {entry.name: entry for entry in entries_of(prefix, pages_of(objects, prefix, 3))}
        assert listed.keys() == tree.keys()
        for name in listed.keys() | {other for other in others if is_name(other)}:
            page = list_page(objects, prefix + name + b"/", None, 1)
            below = bool(page.objects or page.prefixes)
            assert decide(name, objects.get(prefix + name), below) == listed.get(name)


@settings(deadline=None)
@given(KEY_SETS, st.integers(1, 8))
def test_unnameable_keys_are_counted(keys: frozenset[bytes], page_size: int) -> None:
    """Each skipped key or prefix counts once; a directory's own marker does not count."""
    objects = objects_of(keys)
    merge = DirectoryMerge(b"")
    left_out = set()
    for page in pages_of(objects, b"", page_size):
        merge.feed(page)
        items = [info.key for info in page.objects] + page.prefixes
        left_out |= {item for item in items if not linux_can_name(item.removesuffix(b"/"))}
    assert merge.unnameable == len(left_out)


def test_a_marker_is_not_counted() -> None:
    """The key that is a directory's own prefix is neither a child nor skipped."""
    objects = objects_of(frozenset({b"d/", b"d/a", b"d//", b"d/.."}))
    merge = DirectoryMerge(b"d/")
    (page,) = pages_of(objects, b"d/", 10)
    assert [entry.name for entry in merge.feed(page)] == [b"a"]
    assert merge.unnameable == 2


@settings(deadline=None)
@given(KEY_SETS, st.integers(0, 2**32), st.integers(1, 5), st.booleans())
def test_odd_order_makes_no_doubles(
    keys: frozenset[bytes], seed: int, page_size: int, repeat: bool
) -> None:
    """Pages in any order, with repeated entries, give each name exactly once."""
    objects = objects_of(keys)
    whole = list_page(objects, b"", None, len(keys) + 1)
    items = [info.key for info in whole.objects] + whole.prefixes
    items += items[:3] if repeat else []
    random.Random(seed).shuffle(items)
    merge = DirectoryMerge(b"")
    entries: list[Entry] = []
    for start in range(0, max(len(items), 1), page_size):
        chunk = items[start : start + page_size]
        page = ListPage(
            [objects[item] for item in chunk if item in objects and item not in whole.prefixes],
            [item for item in chunk if item in whole.prefixes],
            "more" if start + page_size < len(items) else None,
        )
        entries += merge.feed(page)
    names = [entry.name for entry in entries]
    assert sorted(names) == sorted(tree_of(keys))
    for entry in entries:
        assert key_of(b"", entry) in items


def test_a_file_waits_for_the_directory_that_may_shadow_it() -> None:
    """A file is returned as soon as the listing has passed its name and "/", not before."""
    objects = objects_of(frozenset({b"a", b"a-1", b"a-2", b"b", b"c"}))
    merge = DirectoryMerge(b"")
    given_out = [
        [entry.name for entry in merge.feed(page)] for page in pages_of(objects, b"", 1)
    ]  # fmt: skip
    assert given_out == [[], [], [], [b"a", b"a-1", b"a-2"], [b"b", b"c"]]


def test_a_shadowed_file_is_never_shown() -> None:
    """A directory that comes pages after a file of its name replaces the file."""
    objects = objects_of(frozenset({b"a", b"a-1", b"a-2", b"a/b"}))
    merge = DirectoryMerge(b"")
    entries = [entry for page in pages_of(objects, b"", 1) for entry in merge.feed(page)]
    assert [(entry.name, entry.is_directory) for entry in entries] == [
        (b"a-1", False), (b"a-2", False), (b"a", True),
    ]  # fmt: skip


def test_an_empty_page_with_a_token_loses_nothing() -> None:
    """An empty page with a token neither ends nor disturbs the listing."""
    objects = objects_of(frozenset({b"a", b"b/c", b"d"}))
    first, second, third = pages_of(objects, b"", 1)
    empty = ListPage([], [], "again")
    entries = entries_of(b"", [empty, first, empty, second, empty, third])
    assert [entry.name for entry in entries] == [b"a", b"b", b"d"]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * 256])
def test_is_no_name(name: bytes) -> None:
    """Linux does not allow these names."""
    assert not is_name(name)


@pytest.mark.parametrize("name", [b"...", b" ", b"\n", b"\xff", b"n" * 255, b"\\", b"-"])
def test_is_name(name: bytes) -> None:
    """Linux allows these names."""
    assert is_name(name)


@settings(deadline=None)
@given(
    st.frozensets(
        st.sampled_from([b"a", b"a!", b"a-/x", b"a.", b"a/", b"a/b", b"a//b", b"a0", b"ab/c"])
    ),
    st.integers(1, 4),
    st.sampled_from([list_page, path_page]),
)
def test_one_page_of_keys_with_a_prefix(
    keys: frozenset[bytes], max_keys: int, lister: Callable[..., ListPage]
) -> None:
    """A LIST of keys that begin with a name is correct where it is certain; a complete one is."""
    objects = {key: ObjectInfo(key, 1, 0, '"e"') for key in keys}
    page = lister(objects, b"a", None, max_keys)
    certain, entry = decide_by_page(page, b"a", b"a")
    below = any(key.startswith(b"a/") for key in keys)
    expected = decide(b"a", objects.get(b"a"), below)
    assert certain or page.next_token is not None
    if certain:
        assert entry == expected


def test_a_page_without_versions() -> None:
    """If a listing has no ETag, or an invalid one, S3 must be asked."""
    bare = ObjectInfo(b"a", 1, 0, "")
    assert decide_by_page(ListPage([bare], []), b"a", b"a") == (False, None)
    assert decide_by_page(ListPage([], [], None, 1), b"a", b"a") == (False, None)
