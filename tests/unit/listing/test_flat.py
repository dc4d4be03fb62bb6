"""Directories from a flat listing equal their own listings, or are unknown."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.listing.flat import FlatListing
from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectInfo
from tests.unit.fake_client import FakeClient, Request, list_page

KEYS = st.lists(
    st.sampled_from([b"a", b"a!", b"a-", b"a0", b"b", b"", b".", b"\xff", "ü".encode()]),
    min_size=1,
    max_size=5,
).map(b"/".join)


def infos(keys: set[bytes]) -> dict[bytes, ObjectInfo]:
    return {key: ObjectInfo(key, 1, 0, '"e"') for key in keys if key}


def directories(keys: set[bytes]) -> set[bytes]:
    return {key[: index + 1] for key in keys for index in range(len(key)) if key[index] == 0x2F}


def own_listing(objects: dict[bytes, ObjectInfo], directory: bytes) -> list[Entry]:
    return DirectoryMerge(directory).feed(list_page(objects, directory, None, 10_000))


def feed_all(
    objects: dict[bytes, ObjectInfo], base: bytes, start: bytes, page_size: int
) -> dict[bytes, tuple[list[Entry], float, int]]:
    """Return the directories by prefix: entries, age, and the number of the page that ended it."""
    with FakeClient(page_size=page_size) as client:
        listing = FlatListing(base, start)
        found: dict[bytes, tuple[list[Entry], float, int]] = {}
        token, number = None, 0
        while True:
            request = Request("list", base, token=token, start_after=start, max_keys=1000)
            page = client.flat_page(objects, request)
            whole = listing.feed(page, float(number))
            assert whole is not None
            for each in whole:
                assert each.prefix not in found
                found[each.prefix] = each.entries, each.requested_at_s, number
            token, number = page.next_token, number + 1
            if token is None:
                return found


@settings(deadline=None)
@given(st.sets(KEYS, max_size=12), st.integers(1, 6), st.data())
@example({b"a/b", b"a-/b", b"a0/b"}, 1, None)
def test_complete_directories(keys: set[bytes], page_size: int, data: st.DataObject | None) -> None:
    """From any start on, each later directory is complete and equals its own listing."""
    objects = infos(keys)
    known = sorted(directories(set(objects)) | {b""})
    base = known[0] if data is None else data.draw(st.sampled_from(known))
    below = [each for each in known if each.startswith(base)]
    start = below[-1] if data is None else data.draw(st.sampled_from(below))
    found = feed_all(objects, base, start, page_size)
    behind = {each for each in below if each >= start}
    # A directory with only a marker, at which the listing starts, is not included.
    assert behind - found.keys() <= {start}
    for prefix, (entries, _, _) in found.items():
        assert prefix in behind
        assert entries == own_listing(objects, prefix)


def test_ages() -> None:
    """A directory has the age of its first page, and is known with its last page."""
    objects = infos({b"t/a/%d" % n for n in range(5)} | {b"t/b/1", b"u"})
    found = feed_all(objects, b"", b"", 2)
    assert {prefix: each[1:] for prefix, each in found.items()} == {
        b"t/a/": (0.0, 2),
        b"t/b/": (2.0, 3),
        b"t/": (0.0, 3),
        b"": (0.0, 3),
    }


def test_begun_directories() -> None:
    """It knows which directories have begun, from `start` on."""
    listing = FlatListing(b"", b"t/a/")
    objects = infos({b"t/a/1", b"t/b/c/1", b"t/b/c/2"})
    listing.feed(ListPage(list(objects.values())[:0], [], "token"), 0.0)
    listing.feed(ListPage([objects[b"t/a/1"], objects[b"t/b/c/1"]], [], "token"), 0.0)
    inside = [each for each in (b"t/", b"t/a/", b"t/b/", b"t/b/c/") if listing.is_in(each)]
    assert inside == [b"t/b/", b"t/b/c/"]


def test_pages_that_are_no_part_of_it() -> None:
    """Another order, a beginning before `start`, other prefixes or skipped entries: no result."""
    objects = infos({b"t/a/1", b"t/a/2", b"u/1"})
    first, second, other = (objects[key] for key in (b"t/a/1", b"t/a/2", b"u/1"))
    for page in (
        ListPage([second, first], []),
        ListPage([first, other], []),
        ListPage([first], [b"t/b/"]),
        ListPage([first], [], None, 1),
    ):
        assert FlatListing(b"t/", b"t/a/").feed(page, 0.0) is None
    assert FlatListing(b"t/", b"t/b/").feed(ListPage([second], []), 0.0) is None
    listing = FlatListing(b"t/", b"t/")
    assert listing.feed(ListPage([first], [], "token"), 0.0) == []
    assert listing.feed(ListPage([first, second], []), 0.0) is None
