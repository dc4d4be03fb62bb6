"""The listing of one directory: parallel pages, joined without gaps or repetition."""

import random
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mountpoint.errors import AccessDenied, Interrupted, ServerFault
from mountpoint.listing import flat
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.directory import (
    FIRST_PARALLEL,
    MAX_PARALLEL,
    READY_NAMES,
    DirectoryListing,
)
from mountpoint.listing.page_chain import PageRequest
from mountpoint.listing.pages import END
from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from tests.soak import examples
from tests.unit.fake_client import FakeClient, Fault, Request, list_page, path_page
from tests.unit.tree_model import tree_of

#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0
Lister = Callable[..., ListPage]


class Rounds(FakeClient):
    """A client without threads: a wait answers the requests in flight.

    It answers all of them, as if each took the same time (a round); with a `seed` some of them, in
    any order.
    """

    def __init__(
        self,
        keys: Iterable[bytes],
        *,
        lister: Lister = list_page,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dict.fromkeys(keys, b""), stepped=True, threads=1, **options)
        self.lister = lister
        self.rounds = 0
        self._chance = None if seed is None else random.Random(seed)

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        size = min(request.max_keys, self.page_size)
        return self.lister(objects, request.key, request.token, size, request.start_after)

    def list(self, *arguments: Any, **options: Any) -> "Future[ListPage]":
        future = super().list(*arguments, **options)
        future.result = lambda timeout=None: self._answered(future, timeout)  # type: ignore[method-assign]
        return future

    def _answered(self, future: "Future[ListPage]", timeout: float | None) -> ListPage:
        if not future.done():
            self.rounds += 1
        while not future.done() and timeout != 0:
            if self._chance is None:
                self.step(self.under_way())
            else:
                self.step(last_first=self._chance.random() < 0.5)
        return Future.result(future, 0)


class Listed:
    """A listing of the directory `prefix`, and the actions of its readers."""

    def __init__(self, client: FakeClient, prefix: bytes = b"", **options: Any) -> None:
        self.client = client
        self.listings = ListingCache(SAFE_S)
        retry_policy = RetryPolicy(
            try_s=options.pop("try_s", SAFE_S), total_s=SAFE_S, stopping=threading.Event()
        )
        self.listing = DirectoryListing(prefix, client, retry_policy, self.listings, **options)

    def read_all(self, count: int = 128, position: int = 0) -> list[Entry]:
        entries: list[Entry] = []
        while some := self.listing.read(position, count):
            self.listing.check()
            entries += some
            position += len(some)
        return entries


def names(entries: Iterable[Entry]) -> list[bytes]:
    return [entry.name for entry in entries]


def shown(entries: Iterable[Entry]) -> dict[bytes, bool]:
    """Return the names, and whether each is a directory."""
    found = {entry.name: entry.is_directory for entry in entries}
    assert len(found) == len(list(entries)), "a name came twice"
    return found


def truth(keys: Iterable[bytes]) -> dict[bytes, bool]:
    return {name: isinstance(child, dict) for name, child in tree_of(keys).items()}


def check_truth(found: dict[bytes, bool], keys: Iterable[bytes], order: Lister) -> None:
    """Check that every name is listed with its kind.

    A shadowed file may also be listed if the order is by name, because its directory comes too
    late.
    """
    expected = truth(keys)
    assert found.keys() == expected.keys()
    if order is path_page:
        expected |= {name: found[name] for name in expected if name in keys}
    assert found == expected


def plain(client: FakeClient, prefix: bytes = b"") -> tuple[list[Entry], int]:
    """Return the names of sequential pages, and the number of pages."""
    merge = DirectoryMerge(prefix)
    entries: list[Entry] = []
    objects = {key: info for key, (info, _) in client._objects.items()}
    token, count = None, 0
    while count == 0 or token is not None:
        page = client.page(objects, Request("list", prefix, token=token, max_keys=1000))
        entries += merge.feed(page)
        token, count = page.next_token, count + 1
    return entries, count


# --- Whatever the keys are ---

#: Names around "/" and digits, not ASCII, not UTF-8, no names; files shadowed by directories.
ODD = [b"a", b"a!", b"a-1", b"a.", b"a0", b"a0/x", b"a/b", b"a-/c", b"b", b"b/x", "ü".encode(),
       "ü/x".encode(), b"\xff", b"\xc3/x", b"", b"..", b"/", b"~", b"0", b"9"]  # fmt: skip
COUNTED = st.builds(
    lambda head, number, width, tail: head + b"%0*d" % (width, number) + tail,
    st.sampled_from([b"", b"a", b"a-", b"f", "ü".encode()]),
    st.integers(0, 60),
    st.integers(1, 3),
    st.sampled_from([b"", b".txt", b"/x", b"!", b"-"]),
)
KEYS = (COUNTED | st.sampled_from(ODD) | st.binary(max_size=3)).filter(bool)
KEY_SETS = st.frozensets(KEYS, max_size=60)
ORDERS = st.sampled_from([list_page, path_page])


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(KEY_SETS, st.integers(1, 8), st.integers(1, 20), ORDERS, st.integers(0, 99))
@example(frozenset(b"%02d" % number for number in range(40)), 4, 5, list_page, 0)
@example(frozenset(b"%02d/x" % number for number in range(40)), 4, 5, list_page, 0)
@example(frozenset(b"%02d/x" % number for number in range(40)), 4, 5, path_page, 0)
def test_any_keys(
    keys: frozenset[bytes], page_size: int, count: int, order: Lister, seed: int
) -> None:
    """In both orders, with pages of any size and answers in any order:

    each name once, correctly.
    """
    with Rounds(keys, lister=order, seed=seed, page_size=page_size) as client:
        listed = Listed(client)
        entries = listed.read_all(count)
        check_truth(shown(entries), keys, order)
        if order is list_page:
            assert entries == plain(client)[0], "in the order of S3"
        asked = client.count()
        for position in range(1, len(entries) + 1):
            assert listed.listing.read(position, 2) == entries[position : position + 2]
        assert client.count() == asked, "positions need no request"


@settings(deadline=None, max_examples=examples(40))
@given(KEY_SETS, st.integers(2, 8), st.integers(0, 99))
def test_a_directory_below(keys: frozenset[bytes], page_size: int, seed: int) -> None:
    """The same below a prefix, beside keys of other directories."""
    below = {b"d/" + key for key in keys} | {b"d", b"d!", b"d0", b"e/x"}
    with Rounds(below, seed=seed, page_size=page_size) as client:
        assert shown(Listed(client, b"d/").read_all()) == truth(keys)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(st.frozensets(KEYS, min_size=20, max_size=120), st.integers(4, 9), ORDERS, st.integers(0, 9))
def test_requests_are_bounded(
    keys: frozenset[bytes], page_size: int, order: Lister, seed: int
) -> None:
    """With any guesses there are at most half as many extra requests, and those in flight."""
    with Rounds(keys, lister=order, seed=seed, page_size=page_size) as client:
        Listed(client).read_all()
        assert client.count() <= 1.5 * plain(client)[1] + MAX_PARALLEL


@settings(deadline=None, max_examples=examples(40))
@given(KEY_SETS, KEY_SETS, st.integers(2, 6), ORDERS, st.integers(0, 2**16))
def test_changes_in_the_middle(
    keys: frozenset[bytes], others: frozenset[bytes], page_size: int, order: Lister, seed: int
) -> None:
    """Names that appear or disappear during the listing do not affect the others."""
    chance = random.Random(seed)
    tops = {key.split(b"/")[0] for key in keys}
    others = frozenset(key for key in others if key.split(b"/")[0] not in tops)
    with Rounds({*keys, *others}, lister=order, seed=seed, page_size=page_size) as client:

        def script(request: Request) -> None:
            for key in others:
                if chance.random() < 0.2:
                    client.put(key, b"new")
                elif chance.random() < 0.2:
                    client._objects.pop(key, None)

        client.script = script
        found = shown(Listed(client).read_all())
        stay = truth(keys)
        check_truth({name: found[name] for name in found if name in stay}, keys, order)
        assert found.keys() <= truth({*keys, *others}).keys()


@settings(deadline=None, max_examples=examples(30))
@given(KEY_SETS, st.integers(2, 6), st.lists(st.integers(0, 12), max_size=3, unique=True))
def test_any_request_may_fail(keys: frozenset[bytes], page_size: int, failing: list[int]) -> None:
    """A failed request, guessed or not, is repeated when needed; nothing is missing."""
    with Rounds(keys, page_size=page_size) as client:

        def script(request: Request) -> Fault | None:
            index = client.requests.index(request)
            if index in failing:
                failing.remove(index)
                return Fault(error=ServerFault("500"))
            return None

        client.script = script
        assert shown(Listed(client).read_all()) == truth(keys)


# --- Costs ---


def counted(count: int, width: int = 4) -> list[bytes]:
    return [b"f%0*d" % (width, number) for number in range(count)]


def hashed(count: int) -> list[bytes]:
    chance = random.Random(5)
    return [str(uuid.UUID(int=chance.getrandbits(128))).encode() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "requests", "rounds"),
    [
        (counted(1000), 1, 1),
        (counted(1001), 1 + FIRST_PARALLEL, 2),
        (counted(5000), 1 + FIRST_PARALLEL + 6, 3),
        (counted(10_000), 11, 4),
        (counted(10_000, width=9), 11 + MAX_PARALLEL, 4),
        (hashed(10_000), 13.5, 5),
        ([b"%s/x" % name for name in counted(10_000)], 11, 4),
    ],
    ids=["one page", "one more", "five", "ten", "ten, wide", "hashes", "directories"],
)
def test_requests_and_rounds(keys: list[bytes], requests: float, rounds: int) -> None:
    """The largest number of requests, and of rounds."""
    with Rounds(keys) as client:
        assert len(Listed(client).read_all()) == len(keys)
        assert client.count() <= requests
        assert client.rounds <= rounds


def test_the_first_page_alone() -> None:
    """A reader that needs only the first page causes no other request."""
    with Rounds(counted(10_000)) as client:
        listed = Listed(client)
        for position in range(0, 999, 100):
            listed.listing.read(position, 100)
        assert client.count() == 1


@pytest.mark.slow
def test_a_reader_that_stops() -> None:
    """The requests and names ahead of a reader are bounded, in a directory of any size."""
    with Rounds(counted(40_000, width=5)) as client:
        listed = Listed(client)
        for _ in range(200):
            listed.listing.read(1000, 10)
            client.step(client.under_way())
        assert client.count() <= 1 + READY_NAMES // 1000 + 1 + MAX_PARALLEL


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 5])
def test_uneven_names(width: int) -> None:
    """Clusters of names with gaps cost at most half as many extra requests."""
    keys = [
        b"%s%0*d" % (head, width, number)
        for head in (b"alpha", b"beta-", b"delta/x", b"m", b"zz")
        for number in range(0, 3000, 1)
    ]
    with Rounds(keys) as client:
        entries = Listed(client).read_all()
        assert sorted(names(entries)) == sorted(truth(keys))
        assert client.count() <= 1.5 * plain(client)[1] + MAX_PARALLEL


# --- Stores that know no start-after ---


class Unordered(Rounds):
    lists_in_order = False


def test_no_order_no_guesses() -> None:
    """If keys are listed in no order, pages come only by tokens."""
    with Unordered(counted(5000)) as client:
        assert len(Listed(client).read_all()) == 5000
        assert client.count() == 5
        assert all(request.start_after is None for request in client.requests)


def ignoring(objects: Any, prefix: bytes, token: Any, size: int, start_after: Any) -> ListPage:
    return list_page(objects, prefix, token, size)


def empty(objects: Any, prefix: bytes, token: Any, size: int, start_after: Any) -> ListPage:
    return ListPage([], []) if start_after else list_page(objects, prefix, token, size)


def too_late(objects: Any, prefix: bytes, token: Any, size: int, start_after: Any) -> ListPage:
    """Begin some names after the requested position."""
    page = list_page(objects, prefix, token, size + 5 * bool(start_after), start_after)
    return ListPage(page.objects[-size:], page.prefixes, page.next_token)


def backwards(objects: Any, prefix: bytes, token: Any, size: int, start_after: Any) -> ListPage:
    page = list_page(objects, prefix, token, size, start_after)
    return ListPage(page.objects[:: -1 if start_after else 1], page.prefixes, page.next_token)


@pytest.mark.slow
@pytest.mark.parametrize("store", [ignoring, empty, too_late, backwards])
def test_a_store_that_misunderstands(store: Lister) -> None:
    """Wrong pages are noticed, and then all pages come by tokens."""
    with Rounds(counted(9000), lister=store) as client:
        assert names(Listed(client).read_all()) == counted(9000)
        starts = [request for request in client.requests if request.start_after is not None]
        assert len(starts) <= FIRST_PARALLEL
        assert client.count() <= 9 + FIRST_PARALLEL


def test_a_start_that_is_refused() -> None:
    """A permanent error ends the guesses, not the listing."""
    with Rounds(counted(9000)) as client:
        client.script = lambda request: (
            Fault(error=AccessDenied("no")) if request.start_after is not None else None
        )
        assert names(Listed(client).read_all()) == counted(9000)
        assert sum(request.start_after is not None for request in client.requests) <= FIRST_PARALLEL


# --- Waiting ---


def test_a_silent_guess_is_not_waited_for_long() -> None:
    """A guess without an answer is dropped after one try, and its names come by a token."""
    with FakeClient(dict.fromkeys(counted(4000), b"")) as client:
        client.script = lambda request: Fault(silent=request.start_after is not None)
        listed = Listed(client, try_s=0.05)
        assert names(listed.read_all()) == counted(4000)
        assert client.cancelled >= FIRST_PARALLEL - 1


@pytest.mark.parametrize("reader_needs", [0, 1000])
def test_interrupt(reader_needs: int) -> None:
    """After the end of the mount no thread waits, neither for a page nor for a guess."""
    with Rounds(counted(5000)) as client:
        listed = Listed(client)
        if reader_needs:
            listed.listing.read(0, 1)
        client.script = lambda request: client.interrupt()
        with pytest.raises(Interrupted):
            listed.listing.read(reader_needs, 1)
        assert client.under_way() == 0


def test_closing_cancels_requests_in_flight() -> None:
    """A closed listing has no requests in flight, and sends none ahead."""
    with Rounds(counted(9000)) as client:
        listed = Listed(client)
        listed.listing.read(1000, 1)
        client.step(1)
        listed.listing.read(2000, 1)
        assert client.under_way() > 0
        listed.listing.close()
        assert client.under_way() == 0
        asked = client.count()
        assert names(listed.read_all(position=2000)) == counted(9000)[2000:]
        assert client.count() <= asked + 8


def test_readers_in_threads() -> None:
    """Readers in any number of threads get each name once, in order."""
    keys = counted(600)
    with FakeClient(dict.fromkeys(keys, b""), page_size=10, threads=8) as client:
        listed = Listed(client)
        found: dict[int, list[bytes]] = {}

        def work(which: int) -> None:
            found[which] = names(listed.read_all(which + 1))

        threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SAFE_S)
        assert all(found[which] == keys for which in range(8))
        assert client.count() <= 2 * 60 + MAX_PARALLEL


# --- First pages from elsewhere ---


def test_a_first_page_that_was_asked_before() -> None:
    """The page is used, with the time of its request; a rewind lists again."""
    with Rounds(counted(1500)) as client:
        first = PageRequest(client.list(b""), 12.5)
        listed = Listed(client, first=first)
        begun = listed.listing.started
        assert listed.listing.read(0, 1)[0].name == b"f0000"
        assert client.count() == 1
        assert (begun, listed.listing.started) == (False, True)
        assert names(listed.read_all()) == counted(1500)
        span = listed.listings.span_of(b"", b"f0000")
        assert span is not None
        assert span.requested_at_s == 12.5


def test_a_first_page_that_failed() -> None:
    """A failed page is requested again."""
    failed: Future[ListPage] = Future()
    failed.set_exception(ServerFault("500"))
    with Rounds(counted(10)) as client:
        listed = Listed(client, first=PageRequest(failed, 0.0))
        assert names(listed.read_all()) == counted(10)
        assert client.count() == 1


def test_a_listing_that_is_known() -> None:
    """A complete listing needs no request, and lookups use it with its own age."""
    with Rounds(counted(100)) as client:
        entries, _ = plain(client)
        listed = Listed(client, first=flat.CompleteDirectory(b"", entries, 5.0))
        begun = listed.listing.started
        assert listed.read_all() == entries
        assert (begun, listed.listing.started) == (False, True)
        assert client.count() == 0
        span = listed.listings.span_of(b"", b"f0050")
        assert span is not None
        assert (span.after, span.reach, span.requested_at_s) == (b"", END, 5.0)


def test_pages_leave_spans_and_entries() -> None:
    """Guessed pages leave adjacent spans, and entries for lookups."""
    with Rounds(counted(5000)) as client:
        listed = Listed(client)
        listed.read_all()
        reach = b""
        while reach != END:
            span = listed.listings.span_of(b"", reach + b"!")
            assert span is not None
            assert span.after == reach
            reach = span.reach
        assert all(listed.listings.find(b"", name) for name in counted(5000))
