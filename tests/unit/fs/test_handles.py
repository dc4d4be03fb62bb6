"""Handles: their numbers, and directories read page by page."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint.errors import AccessDenied, BadAnswer, BadHandle, Interrupted, ServerFault
from mountpoint.fs.handles import DirectoryHandle, HandleNumber, HandleTable
from mountpoint.fs.inodes import ROOT, Inode
from mountpoint.listing import directory
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.page_chain import PageRequest
from mountpoint.listing.pages import END
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from tests.soak import examples
from tests.unit.fake_client import FakeClient, Fault, Request
from tests.unit.tree_model import tree_of

#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0


class Opened:
    """A fake client, and a handle of its directory `prefix`."""

    def __init__(self, client: FakeClient, prefix: bytes = b"", ttl_s: float = SAFE_S) -> None:
        self.client = client
        self.listings = ListingCache(ttl_s)
        self.inode = Inode(ROOT, None, prefix, None)
        self.handle = self.new_handle()

    def new_handle(self, first: PageRequest | None = None) -> DirectoryHandle:
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
        return DirectoryHandle(self.inode, 0, self.client, retry_policy, self.listings, first)

    def read_all(self, count: int = 128, position: int = 0) -> list[Entry]:
        """Read from a position to the end; the start begins a new listing."""
        if position == 0:
            self.handle.rewind()
        entries: list[Entry] = []
        while some := self.handle.read(position, count):
            entries += some
            position += len(some)
        return entries


def names(entries: list[Entry]) -> list[bytes]:
    return [entry.name for entry in entries]


def wait_for_requests(client: FakeClient, count: int) -> None:
    until_s = time.monotonic() + SAFE_S
    while client.count() < count:
        assert time.monotonic() < until_s
        time.sleep(0.001)


@pytest.fixture
def client() -> Iterator[FakeClient]:
    with FakeClient() as client:
        yield client


# --- The table ---


def test_numbers_are_never_used_again() -> None:
    """Each handle has a unique number, even after others were closed."""
    table: HandleTable[object] = HandleTable()
    seen = set()
    for _ in range(5):
        handle = object()
        number = table.add(handle)
        assert number not in seen
        seen.add(number)
        assert table.get(number) is handle
        assert table.remove(number) is handle


@pytest.mark.parametrize("number", [0, 2, -1])
def test_a_handle_that_is_not_open(number: int) -> None:
    """Unknown and closed numbers are BadHandle."""
    table: HandleTable[object] = HandleTable()
    first = table.add(object())
    table.remove(first)
    for wrong in (HandleNumber(number), first):
        with pytest.raises(BadHandle):
            table.get(wrong)
        with pytest.raises(BadHandle):
            table.remove(wrong)


def test_another_handle_takes_a_number() -> None:
    """Only the number of that handle is another's; a handle that is not open has none to give."""
    table: HandleTable[object] = HandleTable()
    handles = [object() for _ in range(3)]
    numbers = [table.add(each) for each in handles]
    other = object()
    table.replace(handles[1], other)
    assert [table.get(each) for each in numbers] == [handles[0], other, handles[2]]
    table.replace(handles[1], object())
    assert len(table) == 3


# --- Directories ---

KEYS = st.lists(
    st.sampled_from([b"a", b"b", b"a-1", b"a.", b"c", b"", b"..", b"\xff"]), min_size=1, max_size=3
).map(b"/".join).filter(bool)  # fmt: skip


@settings(deadline=None, max_examples=examples(30))
@given(st.frozensets(KEYS, max_size=20), st.integers(1, 5), st.integers(1, 7))
def test_reading_to_the_end(keys: frozenset[bytes], page_size: int, count: int) -> None:
    """Reads of any size over pages of any size give each name once, and request no page twice."""
    with FakeClient(dict.fromkeys(keys, b""), page_size=page_size) as client:
        opened = Opened(client)
        entries = opened.read_all(count)
        tree = tree_of(keys)
        assert sorted(names(entries)) == sorted(tree)
        assert all(entry.is_directory == isinstance(tree[entry.name], dict) for entry in entries)
        asked = [(request.token, request.start_after) for request in client.requests]
        assert len(set(asked)) == len(asked)
        for position in range(1, len(entries) + 1):
            assert opened.handle.read(position, 2) == entries[position : position + 2]
        assert len(client.requests) == len(asked), "positions need no request"


def test_three_thousand_names() -> None:
    """Opening requests one page of a directory, further reads several in parallel."""
    keys = [b"big/%04d" % index for index in range(3000)]
    with FakeClient(dict.fromkeys(keys, b"x")) as client:
        opened = Opened(client, b"big/")
        assert client.count() == 0, "nothing is asked before the first read"
        first = opened.handle.read(0, 128)
        assert len(first) == 128
        assert client.count() == 1
        rest = opened.read_all(128, 128)
        assert [b"big/" + name for name in names(first + rest)] == keys
        assert 4 <= client.count() <= 11
        assert len(opened.listings) == 3000
        assert opened.listings.find(b"big/", b"2999") is not None


def test_pages_leave_adjacent_spans() -> None:
    """Each page of a listing leaves a span, adjacent to the previous one."""
    with FakeClient(
        dict.fromkeys([b"%02d" % index for index in range(10)], b""), page_size=4
    ) as it:
        opened = Opened(it)
        opened.read_all()
        for name, after, reach in ((b"00", b"", b"03"), (b"04", b"03", b"07"), (b"08", b"07", END)):
            span = opened.listings.span_of(b"", name)
            assert span is not None
            assert (span.after, span.reach) == (after, reach)


def test_rewinding_lists_anew(client: FakeClient) -> None:
    """After a rewind, and not before, reading shows changes."""
    client.put(b"a", b"")
    opened = Opened(client)
    assert names(opened.read_all()) == [b"a"]
    client.put(b"b", b"")
    assert names(opened.handle.read(0, 10)) == [b"a"]
    assert opened.handle.read(1, 10) == [], "the end stays the end"
    assert names(opened.read_all()) == [b"a", b"b"]
    client.delete(b"a")
    assert names(opened.read_all()) == [b"b"]


def test_positions_stay_while_the_directory_changes() -> None:
    """Names that appear or disappear before the position neither hide nor repeat others."""
    with FakeClient({b"%02d" % index: b"" for index in range(10)}, page_size=4) as client:
        opened = Opened(client)
        entries = opened.handle.read(0, 4)
        client.delete(b"01")
        client.put(b"00a", b"")
        entries += opened.read_all(3, position=len(entries))
        assert names(entries) == [b"%02d" % index for index in range(10)]


def test_closing_cancels_requests_in_flight() -> None:
    """Closing or rewinding the handle cancels requests ahead."""
    for end in (DirectoryHandle.rewind, DirectoryHandle.close):
        with FakeClient({b"%03d" % index: b"" for index in range(500)}, page_size=50) as client:
            client.script = lambda request: Fault(silent=request.start_after is not None)
            handle = Opened(client).handle
            handle.read(50, 1)
            assert client.under_way() > 0
            end(handle)
            assert client.under_way() == 0


def test_a_first_page_that_was_asked_before(client: FakeClient) -> None:
    """A handle may get a prefetched first page, which is only for its first listing."""
    client.put(b"a", b"")
    opened = Opened(client)
    first = PageRequest(client.list(b""), time.monotonic())
    opened.handle = opened.new_handle(first)
    opened.handle.rewind()
    assert names(opened.handle.read(0, 10)) == [b"a"]
    assert client.count() == 1
    opened.handle.rewind()
    opened.handle.read(0, 10)
    assert client.count() == 2


def test_an_empty_directory(client: FakeClient) -> None:
    """An empty directory, also with only its own marker, has no entries."""
    assert Opened(client).read_all() == []
    client.put(b"d/", b"")
    assert Opened(client, b"d/").read_all() == []


def test_unnameable_keys_are_omitted(client: FakeClient) -> None:
    """Keys that Linux cannot name are omitted."""
    for key in (b"a", b"..", b"//b", b"x\0y", b"n" * 256):
        client.put(key, b"")
    opened = Opened(client)
    assert names(opened.read_all()) == [b"a"]


class Circle(FakeClient):
    """A store with an endless listing."""

    tokens: tuple[str, ...] = ()

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        """Answer with one name, and always with a token."""
        count = self.count("list")
        info = ObjectInfo(b"%d" % count, 0, 0, '"e"')
        return ListPage([info], [], self.tokens[(count - 1) % len(self.tokens)])


@pytest.mark.parametrize("tokens", [("one",), ("one", "two", "one"), ("", "")])
def test_a_token_that_repeats(tokens: tuple[str, ...]) -> None:
    """A listing that loops is an error, not an endless directory."""
    client = Circle()
    client.tokens = tokens
    with client:
        opened = Opened(client)
        with pytest.raises(BadAnswer, match="listing loops"):
            opened.read_all()
        assert client.count() <= 3


def test_a_failed_page_can_be_asked_again(client: FakeClient) -> None:
    """After an error the same position can be read again, without loss or repetition."""
    for index in range(10):
        client.put(b"%d" % index, b"")
    client.page_size = 3
    opened = Opened(client)
    entries = opened.handle.read(0, 2)  # the third entry is held back
    client.inject("list", Fault(error=AccessDenied("no")))
    with pytest.raises(AccessDenied):
        opened.handle.read(2, 3)
    entries += opened.read_all(3, 2)
    assert names(entries) == [b"%d" % index for index in range(10)]


def test_a_page_is_retried(client: FakeClient) -> None:
    """A page that fails once is requested again, and the reader does not notice."""
    client.put(b"a", b"")
    client.inject("list", Fault(error=ServerFault("500")))
    assert names(Opened(client).read_all()) == [b"a"]
    assert client.count() == 2


def test_readers_in_threads() -> None:
    """Threads that read the same handle all get each name once, in order."""
    keys = {b"%03d" % index: b"" for index in range(200)}
    with FakeClient(keys, page_size=7, threads=8) as client:
        opened = Opened(client)
        found: dict[int, list[Entry]] = {}

        def work(which: int) -> None:
            position = 0
            found[which] = []
            while some := opened.handle.read(position, which + 1):
                found[which] += some
                position += len(some)

        threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SAFE_S)
        for which in range(8):
            assert names(found[which]) == sorted(keys)


def test_two_readers_of_one_page() -> None:
    """Two threads that need one page wait for one request, and add its names once."""
    with FakeClient({b"a": b"", b"b": b""}, stepped=True) as client:
        opened = Opened(client)
        results: list[list[Entry]] = []

        def read() -> None:
            results.append(opened.handle.read(1, 10))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for_requests(client, 1)
        client.step()
        for thread in threads:
            thread.join(SAFE_S)
        assert client.count() == 1
        assert [names(result) for result in results] == [[b"b"], [b"b"]]
        assert opened.handle.read(2, 10) == []


def test_interrupt_ends_a_listing() -> None:
    """The end of the mount wakes a reader that waits for a page."""
    with FakeClient({b"a": b""}, stepped=True) as client:
        opened = Opened(client)
        caught: list[Exception] = []

        def read() -> None:
            try:
                opened.handle.read(0, 10)
            except Interrupted as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        wait_for_requests(client, 1)
        client.interrupt()
        thread.join(SAFE_S)
        assert len(caught) == 1


def test_held_entries_age_from_when_they_were_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry held back for a possible shadow has the age of its own page."""
    clock = [1000.0]
    monkeypatch.setattr(directory, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    keys = dict.fromkeys([b"a", b"a-1", b"b", b"c"], b"")
    with FakeClient(keys, page_size=1) as client:
        opened = Opened(client)
        opened.listings = ListingCache(50.0, lambda: clock[0])
        opened.handle = opened.new_handle()

        def script(request: Request) -> None:
            clock[0] += 1.0  # every page takes a second

        client.script = script
        opened.read_all()
        ages = {}
        for name in (b"a", b"a-1", b"b", b"c"):
            found = opened.listings.find(b"", name)
            assert found is not None
            ages[name] = found[1] - 50.0
        # Pages are requested at 1000, 1001, 1002 and 1003; no entry is newer than its page.
        pages = {b"a": 1000.0, b"a-1": 1001.0, b"b": 1002.0, b"c": 1003.0}
        assert all(ages[name] <= pages[name] for name in pages)
        assert ages[b"a"] == 1000.0
        # Held entries do not make others older.
        assert (ages[b"b"], ages[b"c"]) == (1002.0, 1003.0)


def test_omitted_entries_are_logged(client: FakeClient) -> None:
    """Invalid entries are a warning, unnameable keys a debug line, each with a count."""
    infos = [ObjectInfo(key, 1, 0, '"1"') for key in (b"a", b"n" * 256)]
    answer: Future[ListPage] = Future()
    answer.set_result(ListPage(infos, [b"/"], None, skipped=3))
    client.list = lambda *_, **__: answer  # type: ignore[method-assign]
    with capture_logs() as lines:
        assert names(Opened(client).read_all()) == [b"a"]
    assert [(line["log_level"], line["count"]) for line in lines] == [("warning", 3), ("debug", 2)]
