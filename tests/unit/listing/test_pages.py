"""Pages of a listing: their coverage, their beginning, and their cost."""

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.listing import pages
from mountpoint.listing.pages import END, PageCredit, Span, Spans, just_before, reach_of
from mountpoint.listing.tree import DirectoryMerge, is_name
from mountpoint.s3.client import ListPage, ObjectInfo
from tests.unit.fake_client import list_page, path_page
from tests.unit.tree_model import tree_of

#: Names around "/" (0x2f).
NAMES = [
    b"a",
    b"a!",
    b"a-",
    b"a-1",
    b"a.",
    b"a0",
    b"a/b",
    b"a0/b",
    b"a-/b",
    b"b",
    b"",
    b".",
    b"\xff",
]
KEY_SETS = st.frozensets(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(b"/".join).filter(bool),
    max_size=14,
)
POSITIONS = st.sampled_from([b"", b"a", b"a!", b"a-", b"a-~", b"`~", b"a0", b"b", b"~"])
Lister = Callable[..., ListPage]


def objects_of(keys: Iterable[bytes]) -> dict[bytes, ObjectInfo]:
    return {key: ObjectInfo(key, len(key), 0, f'"{key.hex()}"') for key in keys}


# --- What a page tells ---


@settings(deadline=None)
@given(KEY_SETS, POSITIONS, st.integers(1, 6), st.sampled_from([list_page, path_page]))
@example(frozenset({b"a", b"a-1", b"a/b"}), b"", 2, list_page)
@example(frozenset({b"a/b", b"a-1"}), b"", 1, path_page)
@example(frozenset({b"a/b", b"a-/b"}), b"", 2, path_page)
def test_a_page_is_right_about_the_names_it_covers(
    keys: frozenset[bytes], after: bytes, page_size: int, lister: Lister
) -> None:
    """In either order, a covered name is in the page with its kind, or does not exist."""
    for prefix in (b"", b"d/"):
        objects = objects_of(prefix + key for key in keys)
        start_after = prefix + after if after else None
        page = lister(objects, prefix, None, page_size, start_after)
        reach = reach_of(prefix, after, page)
        if reach is None:
            continue
        span = Span(after, reach, 0.0)
        named = {
            entry.name: entry.is_directory
            for entry in DirectoryMerge(prefix).feed(ListPage(page.objects, page.prefixes))
        }
        exists = {name: isinstance(child, dict) for name, child in tree_of(keys).items()}
        for name in filter(is_name, {*NAMES, *exists, *named}):
            if span.covers(name):
                assert named.get(name) == exists.get(name)


def page_of(*names: bytes, more: bool = True, skipped: int = 0) -> ListPage:
    """Return a page of the directory `d/`; a name that ends in "/" is a directory."""
    keys = [b"d/" + name for name in names]
    objects = objects_of(key for key in keys if not key.endswith(b"/") or key == b"d/")
    prefixes = [key for key in keys if key.endswith(b"/") and key != b"d/"]
    return ListPage(list(objects.values()), prefixes, "more" if more else None, skipped)


@pytest.mark.parametrize(
    ("page", "after", "reach"),
    [
        (page_of(b"a", b"b"), b"", b"b"),
        (page_of(b"a", b"b"), b"9", b"b"),
        (page_of(b"a", b"b", more=False), b"", END),
        (page_of(b"a", b"b/"), b"", b"b"),
        (page_of(b"a-1/", b"a/"), b"", b"a-1"),
        (page_of(b"", b"a"), b"", b"a"),  # the directory's own marker
        (page_of(more=False), b"", END),
        (page_of(b"", more=False), b"", END),
    ],
)
def test_reach(page: ListPage, after: bytes, reach: bytes) -> None:
    """A page reaches its greatest name; the last one reaches the end."""
    assert reach_of(b"d/", after, page) == reach


@pytest.mark.parametrize(
    ("page", "after"),
    [
        (page_of(b"b", b"a"), b""),  # no order
        (page_of(b"a/", b"a-1/"), b""),  # ordered as folders
        (page_of(b"b", b"a", more=False), b""),
        (page_of(b"a", b"b"), b"a"),  # begins too early: the store has no start-after
        (page_of(b"a", b"b", more=False), b"b"),
        (page_of(b"a/", b"b"), b"ab"),
        (page_of(more=False), b"a"),
        (page_of(), b""),
        (page_of(b"a", b"b", skipped=1), b""),
        (page_of(b""), b""),
    ],
)
def test_a_page_that_tells_nothing(page: ListPage, after: bytes) -> None:
    """A page without order, with a wrong start, with gaps, or empty proves nothing."""
    assert reach_of(b"d/", after, page) is None


# --- Where a page begins ---


@given(st.binary(min_size=1, max_size=12).filter(is_name) | st.text(min_size=1).map(str.encode))
@example(b"a0")  # the character before "0" is "/"
@example("\ue000".encode())  # the character before it is a surrogate
@example(b"\xc3")
def test_just_before(name: bytes) -> None:
    """The position is before the name, adds no slash, and is UTF-8 if the name is."""
    before = just_before(name)
    assert before < name
    assert before.count(b"/") <= name.count(b"/")
    try:
        name.decode()
    except UnicodeDecodeError:
        return
    before.decode()


@pytest.mark.parametrize(
    ("name", "between"),
    [(b"12", [b"1", b"11", b"110", b"1199"]), ("第3".encode(), ["第".encode(), "第29".encode()])],
)
def test_just_before_is_close(name: bytes, between: list[bytes]) -> None:
    """Numbers without leading zeros are still on the page that begins there."""
    assert all(other < just_before(name) for other in between)


# --- Spans ---


def spans_of(*pairs: tuple[bytes, bytes]) -> Spans:
    spans = Spans()
    for after, reach in pairs:
        spans.add(Span(after, reach, 0.0))
    return spans


def listed(spans: Spans) -> list[tuple[bytes, bytes]]:
    return [(span.after, span.reach) for span in spans._spans]


def test_a_span_is_found_by_the_names_in_it() -> None:
    """A name is in the span whose page would list it, if any."""
    spans = spans_of((b"", b"f"), (b"f", b"m"), (b"p", END))
    for name, reach in ((b"a", b"f"), (b"f", b"f"), (b"f!", b"m"), (b"m", b"m"), (b"z" * 255, END)):
        span = spans.find(name)
        assert span is not None
        assert span.reach == reach
    assert spans.find(b"n") is None
    assert spans_of().find(b"n") is None


def test_the_last_name_of_a_page_is_uncertain() -> None:
    """A name that may become a directory on the next page is in a span that does not cover it."""
    span = Span(b"c", b"f-9", 0.0)
    assert span.covers(b"d")
    assert span.covers(b"f-8")
    assert not span.covers(b"f-9")
    assert not span.covers(b"f")
    assert not span.covers(b"c")


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ((b"f", b"m"), [(b"", b"f"), (b"f", b"m"), (b"m", b"t")]),
        ((b"f", b"k"), [(b"", b"f"), (b"f", b"k"), (b"k", b"t")]),  # names were added
        ((b"f", b"o"), [(b"", b"f"), (b"f", b"o"), (b"o", b"t")]),  # names were removed
        ((b"f", b"z"), [(b"", b"f"), (b"f", b"z")]),
        ((b"f", END), [(b"", b"f"), (b"f", END)]),
        ((b"c", b"h"), [(b"", b"c"), (b"c", b"h"), (b"h", b"m"), (b"m", b"t")]),
        ((b"u", b"w"), [(b"", b"f"), (b"f", b"m"), (b"m", b"t"), (b"u", b"w")]),
    ],
)
def test_a_new_span(new: tuple[bytes, bytes], expected: list[tuple[bytes, bytes]]) -> None:
    """A new span replaces those that it overlaps, and adjacent pages stay adjacent."""
    spans = spans_of((b"", b"f"), (b"f", b"m"), (b"m", b"t"), new)
    assert listed(spans) == expected


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=12))
def test_spans_never_overlap(pairs: list[tuple[int, int]]) -> None:
    """Spans stay in order, and the newest one is found for all its names."""
    spans = Spans()
    for time, (low, high) in enumerate(pairs):
        new = Span(b"%d" % low if low else b"", b"%d" % max(low + 1, high), float(time))
        spans.add(new)
        spans.check()
        for position in range(low + 1, max(low + 1, high) + 1):
            assert spans.find(b"%d" % position) == new
        assert len(spans) <= time + 1


# --- Page credit ---


def bought(credit: PageCredit, lookups: int, *, known: bool = True) -> list[bool]:
    """Return whether each of some lookups that no page answers may ask for a page."""
    return [credit.buy_page(0.0, known=known) for _ in range(lookups)]


def test_useless_pages() -> None:
    """After two useless pages sixteen lookups are sent alone, then one more page is tried."""
    credit = PageCredit(1.0)
    cycle = [False] * pages.SINGLE_LOOKUPS
    assert bought(credit, 53) == [True, True, *cycle, True, *cycle, True, *cycle, True]


def test_a_page_has_to_answer_two_more() -> None:
    """With two further answers per page there is no limit to pages; with one there is."""
    for answers, ends in ((2, False), (1, True)):
        credit = PageCredit(1.0)
        seen = []
        for _ in range(20):
            seen += bought(credit, 1)
            for _ in range(answers):
                credit.record_hit(0.0)
        assert (False in seen) == ends


def test_answers_are_not_saved_for_ever() -> None:
    """Earlier answers do not accumulate: at most sixteen useless pages follow."""
    credit = PageCredit(1.0)
    for _ in range(1000):
        credit.record_hit(0.0)
    assert bought(credit, 18) == [True] * 16 + [False] * 2


def test_first_lookups_without_a_listing() -> None:
    """The first two lookups within the ttl are sent alone, whether or not a page answers."""
    credit = PageCredit(1.0)
    assert bought(credit, 3, known=False) == [False, False, True]
    credit = PageCredit(1.0)
    credit.record_hit(0.0)
    credit.record_hit(0.0)
    assert bought(credit, 1, known=False) == [True]


def test_lookups_far_between() -> None:
    """Without a listing, occasional lookups never request a page."""
    credit = PageCredit(1.0)
    assert not any(credit.buy_page(0.5 * index, known=False) for index in range(50))
    assert credit.buy_page(100.0, known=True)


def test_a_pause() -> None:
    """After a page that proved nothing sixteen lookups are sent alone."""
    credit = PageCredit(1.0)
    for _ in range(50):
        credit.record_hit(0.0)
    credit.pause()
    assert bought(credit, 18) == [False] * 16 + [True, False]


def test_a_directory_of_millions_at_random() -> None:
    """If pages hardly answer a second lookup, one lookup in seventeen requests a page."""
    credit, chance = PageCredit(1.0), random.Random(5)
    count = 0
    for _ in range(10_000):
        if chance.random() < 0.01:
            credit.record_hit(0.0)
        else:
            count += credit.buy_page(0.0, known=False)
    assert 500 < count < 700
