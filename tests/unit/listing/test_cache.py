"""The cache of listed entries: their validity, their precedence, and their number."""

import math
import threading
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.listing import cache
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.pages import END, Span
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def entry(name: bytes, version: int = 0) -> Entry:
    return Entry(name, ObjectInfo(b"d/" + name, version, version, f'"{version}"'))


def names(*list_: bytes) -> list[Entry]:
    return [entry(name) for name in list_]


def test_good_for_a_lookup_until_the_page_is_old() -> None:
    """An entry is found, with its expiry, until its page is ttl seconds old."""
    clock = Clock()
    listings = ListingCache(1.0, clock)
    listings.add(b"d/", names(b"a", b"b"), requested_at_s=99.5)
    assert listings.find(b"d/", b"a") == (entry(b"a"), 100.5)
    clock.now_s = 100.49
    assert listings.find(b"d/", b"b") == (entry(b"b"), 100.5)
    clock.now_s = 100.5
    assert listings.find(b"d/", b"b") is None
    listings.sweep()
    assert len(listings) == 0


def test_names_of_a_page_share_its_end() -> None:
    """Inodes keep the expiry: a million of them share one object per page."""
    listings = ListingCache(0.3, Clock())
    listings.add(b"d/", names(b"a", b"b"), 99.9)
    one, two = listings.find(b"d/", b"a"), listings.find(b"d/", b"b")
    assert one is not None
    assert two is not None
    assert one[1] is two[1]


def test_unlisted_names_are_unknown() -> None:
    """Nothing is known about other names, other directories, or names above and below."""
    listings = ListingCache(1.0, Clock())
    listings.add(b"d/", names(b"a"), 100.0)
    assert listings.find(b"d/", b"b") is None
    assert listings.find(b"", b"a") is None
    assert listings.find(b"d/a/", b"a") is None


def test_a_page_with_names_proves_its_directories() -> None:
    """While it is valid, a page with names proves that all directories above them exist."""
    clock = Clock()
    listings = ListingCache(1.0, clock)
    listings.add(b"d/e/f/", names(b"a"), 99.5)
    listings.add(b"g/", [], 99.5)
    for directory, name in ((b"d/e/", b"f"), (b"d/", b"e"), (b"", b"d")):
        assert listings.find(directory, name) == (Entry(name, None), 100.5)
    for directory, name in ((b"", b"e"), (b"", b"g"), (b"e/", b"f")):
        assert listings.find(directory, name) is None
    listings.record_nonempty(b"d/", 99.9)
    listings.record_nonempty(b"d/", 99.2)
    assert listings.find(b"", b"d") == (Entry(b"d", None), 100.9)
    clock.now_s = 100.6
    assert listings.find(b"d/", b"e") is None
    assert listings.find(b"", b"d") == (Entry(b"d", None), 100.9)
    clock.now_s = 100.9
    assert listings.find(b"", b"d") is None
    listings.record_nonempty(b"x/", 100.9)
    listings.sweep()
    assert list(listings._nonempty_at_s) == [b"x/"]


def test_files_without_versions_are_not_cached() -> None:
    """If listings have no ETags, each file needs a request; its directories are known."""
    listings = ListingCache(1.0, Clock())
    file = Entry(b"a", ObjectInfo(b"d/a", 1, 1, ""))
    listings.add(b"d/", [file, Entry(b"b", None)], 100.0)
    assert listings.find(b"d/", b"a") is None
    assert listings.find(b"d/", b"b") == (Entry(b"b", None), 101.0)


def test_spans_outlive_their_pages() -> None:
    """The start and reach of a page outlive its names."""
    clock = Clock()
    listings = ListingCache(1.0, clock)
    span = Span(b"", b"b", 100.0)
    listings.add(b"d/", names(b"a", b"b"), 100.0, span)
    clock.now_s = 5000.0
    assert listings.find(b"d/", b"a") is None
    assert listings.span_of(b"d/", b"a") == span
    assert listings.span_of(b"d/", b"c") is None
    assert listings.span_of(b"", b"a") is None


def test_limit_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the least recently used directories are dropped."""
    monkeypatch.setattr(cache, "MAX_SPANS", 10)
    listings = ListingCache(1.0, Clock())

    def add(directory: bytes, count: int) -> None:
        for index in range(count):
            listings.add(directory, [], 100.0, Span(b"%02d" % index, b"%02d" % (index + 1), 100.0))

    add(b"a/", 4)
    add(b"b/", 4)
    assert listings.span_of(b"a/", b"04") is not None
    add(b"c/", 4)
    kept = [listings.span_of(name, b"04") is not None for name in (b"a/", b"b/", b"c/")]
    assert kept == [True, False, True]
    add(b"huge/", 25)
    assert listings._span_count == sum(map(len, listings._spans.values())) <= 10


def test_no_ttl_remembers_nothing() -> None:
    """With a ttl of 0 nothing is cached."""
    listings = ListingCache(0.0, Clock())
    listings.add(b"d/", names(b"a"), 100.0)
    assert listings.find(b"d/", b"a") is None
    listings.sweep()
    assert len(listings) == 0


def test_the_newest_page_counts() -> None:
    """Of two listings of a directory the later request counts, in any order of arrival."""
    listings = ListingCache(1.0, Clock())
    listings.add(b"d/", [entry(b"a", 2)], 99.9)
    listings.add(b"d/", [entry(b"a", 1)], 99.5)
    found = listings.find(b"d/", b"a")
    assert found is not None
    assert found[0] == entry(b"a", 2)
    assert found[1] == pytest.approx(100.9)


def test_an_old_page_that_comes_late_is_not_used_too_long() -> None:
    """A page that arrives late expires by the time of its request."""
    clock = Clock()
    listings = ListingCache(1.0, clock)
    listings.add(b"d/", names(b"a"), 100.0)
    listings.add(b"d/", names(b"b"), 99.1)
    clock.now_s = 100.2
    assert listings.find(b"d/", b"a") is not None
    assert listings.find(b"d/", b"b") is None


def test_discard() -> None:
    """A discarded name is removed from all older pages.

    Older pages are those requested before, even if they arrive later.
    """
    clock = Clock()
    listings = ListingCache(1.0, clock)
    listings.add(b"d/", names(b"a", b"b"), 99.5)
    listings.add(b"d/", names(b"a"), 99.6)
    listings.discard(b"d/", b"a")
    listings.discard(b"e/", b"a")
    assert listings.find(b"d/", b"a") is None
    assert listings.find(b"d/", b"b") is not None
    listings.add(b"d/", names(b"a"), 99.9)
    assert listings.find(b"d/", b"a") is None
    listings.add(b"d/", names(b"a"), 100.1)
    assert listings.find(b"d/", b"a") is not None


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest pages are dropped first."""
    monkeypatch.setattr(cache, "MAX_NAMES", 10)
    listings = ListingCache(1000.0, Clock())
    for page in range(5):
        listings.add(b"d/", names(*(b"%d-%d" % (page, index) for index in range(4))), 99.0 + page)
        assert len(listings) <= 10
    assert listings.find(b"d/", b"2-0") is None
    assert listings.find(b"d/", b"3-0") is not None
    assert listings.find(b"d/", b"4-3") is not None


def test_used_pages_outlive_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a page that a lookup has used stays once more."""
    monkeypatch.setattr(cache, "MAX_NAMES", 10)
    listings = ListingCache(1000.0, Clock())
    for page in range(10):
        listings.add(b"d/", names(*(b"%d-%d" % (page, index) for index in range(4))), 90.0 + page)
        assert listings.find(b"d/", b"0-1") is not None
    assert listings.find(b"d/", b"9-0") is not None
    assert listings.find(b"d/", b"7-0") is None
    listings.check()


def test_small_pages_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with few or no names count as well."""
    monkeypatch.setattr(cache, "MAX_PAGES", 10)
    listings = ListingCache(1000.0, Clock())
    for page in range(100):
        listings.add(b"%d/" % page, [], 100.0, Span(b"", END, 100.0))
    assert len(listings._pages) == 10
    listings.check()


def test_a_directory_listed_again_and_again_is_kept_once() -> None:
    """A page is dropped when newer ones name all its names, before it expires."""
    listings = ListingCache(1000.0, Clock())
    for time_s in range(50):
        listings.add(b"d/", names(b"a", b"b"), 50.0 + time_s, Span(b"", END, 50.0 + time_s))
    assert (len(listings), len(listings._pages)) == (2, 1)
    listings.add(b"d/", names(b"a", b"b"), 40.0)  # one that arrives late
    assert (len(listings), len(listings._pages)) == (2, 1)
    listings.check()


def test_a_newer_page_that_does_not_name_it() -> None:
    """A covered name that a newer page does not list is gone."""
    listings = ListingCache(1000.0, Clock())
    listings.add(b"d/", names(b"a", b"b", b"c"), 90.0, Span(b"", END, 90.0))
    listings.add(b"d/", names(b"a", b"bb"), 95.0, Span(b"", b"bb", 95.0))
    assert listings.find(b"d/", b"a") == (entry(b"a"), 1095.0)
    assert listings.find(b"d/", b"b") is None
    assert listings.find(b"d/", b"c") == (entry(b"c"), 1090.0)


def test_a_page_whose_names_are_gone_is_very_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span whose names were dropped may be requested again immediately."""
    monkeypatch.setattr(cache, "MAX_NAMES", 2)
    listings = ListingCache(1000.0, Clock())
    listings.add(b"d/", names(b"a", b"b"), 90.0, Span(b"", END, 90.0))
    assert listings.span_of(b"d/", b"a") == Span(b"", END, 90.0)
    listings.add(b"e/", names(b"a", b"b"), 91.0)
    assert listings.span_of(b"d/", b"a") == Span(b"", END, -math.inf)
    assert listings.absent_until(b"d/", b"x") is None


# --- Names that do not exist ---


def test_absent_by_a_page() -> None:
    """A page proves a name's absence for its own ttl, unless something newer shows the name."""
    clock = Clock()
    listings = ListingCache(1.0, clock, negative_ttl_s=10.0)
    assert listings.absent_until(b"d/", b"x") is None
    listings.add(b"d/", [*names(b"a", b"m"), Entry(b"q", None)], 99.0, Span(b"", b"q", 99.0))
    assert listings.absent_until(b"d/", b"b") == 109.0
    assert listings.absent_until(b"d/", b"a") is None
    assert listings.absent_until(b"d/", b"q") is None
    assert listings.absent_until(b"d/", b"z") is None  # beyond the page
    assert listings.absent_until(b"e/", b"b") is None
    clock.now_s = 108.9
    assert listings.find(b"d/", b"a") is None
    assert listings.absent_until(b"d/", b"a") is None
    assert listings.absent_until(b"d/", b"b") == 109.0
    clock.now_s = 109.0
    assert listings.absent_until(b"d/", b"b") is None


def test_files_without_versions_are_not_absent() -> None:
    """A listed file without a version exists."""
    listings = ListingCache(1.0, Clock(), negative_ttl_s=10.0)
    file = Entry(b"a", ObjectInfo(b"d/a", 1, 1, ""))
    listings.add(b"d/", [file], 100.0, Span(b"", END, 100.0))
    assert listings.absent_until(b"d/", b"a") is None
    assert listings.absent_until(b"d/", b"b") == 110.0


def test_absent_by_a_lookup() -> None:
    """A name that a lookup did not find counts as missing until something lists it."""
    clock = Clock()
    listings = ListingCache(1.0, clock, negative_ttl_s=10.0)
    listings.record_absent(b"d/", b"x", 99.0)
    listings.record_absent(b"d/", b"y", 99.0)
    listings.record_absent(b"d/", b"z", 99.0)
    assert listings.absent_until(b"d/", b"x") == 109.0
    listings.add(b"d/", names(b"x"), 98.0)  # an older page that arrives late
    assert listings.absent_until(b"d/", b"x") == 109.0
    listings.add(b"d/", names(b"x"), 99.5)
    listings.discard(b"d/", b"y")
    listings.record_nonempty(b"d/z/a/", 99.5)
    for name in (b"x", b"y", b"z"):
        assert listings.absent_until(b"d/", name) is None


def test_a_name_that_was_discarded_is_not_absent() -> None:
    """A discarded name is unknown, not missing."""
    listings = ListingCache(10.0, Clock(), negative_ttl_s=10.0)
    listings.add(b"d/", names(b"a"), 99.0, Span(b"", END, 99.0))
    listings.discard(b"d/", b"a")
    assert listings.find(b"d/", b"a") is None
    assert listings.absent_until(b"d/", b"a") is None


def test_absence_is_not_cached_by_default() -> None:
    """By default absence is not cached."""
    listings = ListingCache(10.0, Clock())
    listings.add(b"d/", names(b"a"), 100.0, Span(b"", END, 100.0))
    listings.record_absent(b"d/", b"x", 100.0)
    assert listings.absent_until(b"d/", b"x") is None
    assert not listings._absent_at_s


def test_limit_of_absent_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest are dropped first."""
    monkeypatch.setattr(cache, "MAX_ABSENT", 10)
    monkeypatch.setattr(cache, "MAX_TIMES", 5)
    listings = ListingCache(1000.0, Clock(), negative_ttl_s=1000.0)
    for index in range(50):
        listings.record_absent(b"d/", b"%02d" % index, 50.0 + index)
        listings.record_nonempty(b"%02d/" % index, 50.0 + index)
        listings.discard(b"e/", b"%02d" % index)
    assert listings.absent_until(b"d/", b"39") is None
    assert listings.absent_until(b"d/", b"40") is not None
    assert len(listings._nonempty_at_s) == len(listings._discarded_at_s) == 5


# --- In order ---


def test_following() -> None:
    """The files after a name come in order, across pages, without directories."""
    clock = Clock()
    listings = ListingCache(10.0, clock)
    listings.add(b"d/", [*names(b"a", b"b"), Entry(b"c", None), *names(b"e")], 99.0)
    listings.add(b"d/", [Entry(b"f", None)], 95.0)
    listings.add(b"d/", names(b"g", b"h"), 95.0)

    def following(name: bytes, count: int = 9) -> list[bytes]:
        return [each.name for each in listings.files_after(b"d/", name, count)]

    assert following(b"a") == [b"b", b"e", b"g", b"h"]
    assert following(b"a", 2) == [b"b", b"e"]
    assert following(b"e", 1) == [b"g"]
    assert following(b"h") == following(b"x") == []
    listings.discard(b"d/", b"e")
    listings.add(b"d/", names(b"b", b"bb"), 99.5)
    assert following(b"a") == [b"b", b"g", b"h"]
    assert following(b"b") == [b"bb", b"g", b"h"]  # the newest page has the names that follow
    clock.now_s = 108.0
    assert following(b"a") == [b"b"]


class Page(NamedTuple):
    directory: bytes
    requested_at_s: float
    entries: dict[bytes, Entry]


TTL_S = 10
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.sampled_from([b"", b"d/"]),
            st.integers(0, TTL_S),  # the age of the request
            st.sets(st.sampled_from([b"a", b"b", b"c"])),
        ),
        st.tuples(st.just("discard"), st.sampled_from([b"", b"d/"]), st.sampled_from([b"a", b"b"])),
        st.tuples(st.just("pass"), st.integers(1, TTL_S)),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(STEPS)
def test_against_a_list_of_pages(steps: list[tuple[object, ...]]) -> None:
    """find equals a search through all valid pages, newest first."""
    clock = Clock()
    listings = ListingCache(TTL_S, clock)
    pages: list[Page] = []
    discarded: dict[tuple[bytes, bytes], float] = {}
    for version, step in enumerate(steps):
        match step:
            case ("add", bytes() as directory, int() as ago, set() as found):
                entries = [entry(name, version) for name in sorted(found)]
                listings.add(directory, entries, clock.now_s - ago)
                pages.append(Page(directory, clock.now_s - ago, {e.name: e for e in entries}))
            case ("discard", bytes() as directory, bytes() as name):
                listings.discard(directory, name)
                discarded[directory, name] = clock.now_s
            case ("pass", int() as seconds):
                clock.now_s += seconds
        pages = [page for page in pages if page.requested_at_s > clock.now_s - TTL_S]
        for directory in (b"", b"d/"):
            for name in (b"a", b"b", b"c"):
                expected = None
                newest = -1.0
                for page in pages:
                    here = page.directory == directory and name in page.entries
                    here = here and page.requested_at_s > discarded.get((directory, name), 0.0)
                    if here and page.requested_at_s >= newest:
                        newest = page.requested_at_s
                        expected = (page.entries[name], newest + TTL_S)
                assert listings.find(directory, name) == expected
        listings.check()
    clock.now_s += 2 * TTL_S
    assert listings.find(b"", b"a") is None
    listings.sweep()
    assert len(listings) == 0


def test_threads() -> None:
    """Threads that add, find and discard in parallel leave a correct count."""
    clock = Clock()
    listings = ListingCache(1.0, clock)
    start = threading.Barrier(4)

    def work(mark: int) -> None:
        start.wait()
        for index in range(500):
            directory = b"%d/" % (index % 3)
            listings.add(directory, names(b"%d" % mark, b"x"), 99.5 + index / 2000)
            found = listings.find(directory, b"%d" % mark)
            assert found is not None
            listings.discard(directory, b"x")

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listings) <= 4 * 3 * 2
    listings.check()
    clock.now_s = 200.0
    assert listings.find(b"0/", b"1") is None
    listings.sweep()
    assert len(listings) == 0
