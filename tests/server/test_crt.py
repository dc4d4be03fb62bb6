"""The CRT client with real servers: signatures, requests from start to end, memory."""

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from awscrt.auth import AwsCredentialsProvider

from mountpoint._fastpath import Part
from mountpoint.config import ClientConfig, CredentialsConfig
from mountpoint.errors import CredentialsUnavailable, Interrupted, NotFound, S3Error
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.directory import DirectoryListing
from mountpoint.listing.pages import Span, just_before, reach_of
from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.credentials import Credentials, Keys
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, on_data
from tests.signatures import Authorization, signature

pytestmark = pytest.mark.server

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0

ODD_KEYS = [
    b"plain",
    b"with space and+plus",
    b"per%cent%20",
    b"//leading//and/double",
    b"dots/./../x",
    b"query?a=b&c=d#fragment",
    "ünïcödé/日本語".encode(),
    b"control\x01\x7f",
    b"tilde~-_.parens()*'!",
    b"trailing/",
    b"not-utf8\xff\xfe",
]


@pytest.fixture(params=["native", "python"])
def seen(
    store: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[SimpleNamespace]:
    """A client behind a proxy, on each data plane, and its exchanges."""
    exchanges: list[Exchange] = []
    native = request.param == "native"
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(exchanges.append)
        with connected(store, proxy.url, monkeypatch, native=native) as client:
            yield SimpleNamespace(client=client, exchanges=exchanges, proxy=proxy)


@contextmanager
def connected(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch, *, native: bool = True
) -> Iterator[CrtClient]:
    """Create a client for the store at `url`."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    credentials = Credentials(CredentialsConfig())
    host = urlsplit(url).netloc
    endpoint = Endpoint("http", host, f"/{store.bucket}", "us-east-1", "s3", "v4")
    config = ClientConfig(native=native)
    client = CrtClient(endpoint, credentials, config, counters=Counters())
    yield client
    client.close()
    credentials.close()


def outcome(future: "Future[Any]") -> object:
    try:
        return future.result(SAFE_S)
    except S3Error as error:
        return error


def any_version(key: bytes) -> ObjectInfo:
    """Return what names no version of an object."""
    return ObjectInfo(key, 0, 0, "")


def get(client: CrtClient, key: bytes, start: int, stop: int) -> Part:
    """Get a range of any version."""
    part = Part(start, stop, "")
    part.attach(client.get(any_version(key), start, stop, part))
    return part


def check_signature(exchange: Exchange, url: str, secret: str) -> None:
    """Check that botocore gives the same request the same signature."""
    given = {name.lower(): value for name, value in exchange.request_headers.items()}
    authorization = Authorization.parse(given["authorization"])
    headers = {name: given[name] for name in authorization.signed}
    target = url + exchange.target
    expected = signature(exchange.method, target, headers, authorization.scope, secret)
    assert authorization.signature == expected, headers


@pytest.mark.parametrize("key", ODD_KEYS)
def test_signatures(seen: SimpleNamespace, store: Store, key: bytes) -> None:
    """Requests for any key have botocore's signatures, over the path as it is sent."""
    outcome(seen.client.head(key))
    outcome(seen.client.list(key, token="token with +/=&", max_keys=7))
    outcome(seen.client.list(b"", start_after=key))
    get(seen.client, key, 0, 10).wait(SAFE_S)
    assert [exchange.method for exchange in seen.exchanges] == ["HEAD", "GET", "GET", "GET"]
    for exchange in seen.exchanges:
        secret = store.environment["AWS_SECRET_ACCESS_KEY"]
        check_signature(exchange, seen.proxy.url, secret)


#: Names around "/". Those that end in it are directories with files.
SIBLINGS = [b"a", b"a!", b"a-", b"a-1/", b"a.", b"a0", b"b/", b"b-1", b"b-2/", b"c", "ü".encode()]


def test_each_request_has_the_keys_of_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the keys once, until they change, and never asks for them."""
    made: list[str] = []
    new_static = AwsCredentialsProvider.new_static

    def counting(*keys: str) -> Any:
        made.append(keys[0])
        return new_static(*keys)

    monkeypatch.setattr(AwsCredentialsProvider, "new_static", counting)
    good = store.environment["AWS_ACCESS_KEY_ID"]
    with connected(store, store.endpoint_url, monkeypatch) as client:
        for _ in range(3):
            assert isinstance(outcome(client.list(b"", max_keys=1)), ListPage)
        assert made == [good]
        credentials = client._credentials
        assert credentials is not None
        keys, source = credentials._state
        credentials._state = Keys("AKIANOBODYHASTHIS", "secret", None), source
        assert isinstance(outcome(client.list(b"", max_keys=1)), CredentialsUnavailable)
        credentials._state = keys, source
        assert isinstance(outcome(client.list(b"", max_keys=1)), ListPage)
    assert made[:2] == [good, "AKIANOBODYHASTHIS"]


@pytest.mark.parametrize("which", ["store", "flat_store"])
def test_a_page_is_right_about_the_names_it_covers(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any start, each name that a page covers is in the page or does not exist."""
    server: Store = request.getfixturevalue(which)
    for name in SIBLINGS:
        server.put(f"siblings/{name.decode()}{'file' if name.endswith(b'/') else ''}", b"x")
    exists = {name.rstrip(b"/"): name.endswith(b"/") for name in SIBLINGS}
    names = sorted({b"a-2", b"b!", b"z", *exists, *(just_before(name) for name in exists)})
    told = 0
    with connected(server, server.endpoint_url, monkeypatch) as client:
        for after, size in itertools.product([b"", *names], [1, 3, 5, 1000]):
            start_after = b"siblings/" + after if after else None
            listing = client.list(b"siblings/", start_after=start_after, max_keys=size)
            page = listing.result(SAFE_S)
            reach = reach_of(b"siblings/", after, page)
            if reach is None:
                continue
            entries = DirectoryMerge(b"siblings/").feed(ListPage(page.objects, page.prefixes))
            named = {entry.name: entry.is_directory for entry in entries}
            for name in names:
                if Span(after, reach, 0.0).covers(name):
                    assert named.get(name) == exists.get(name), (after, size, name)
                    told += 1
    assert told > 200


class SmallPages:
    """A client that requests pages of `size` names, and counts them."""

    lists_in_order = True

    def __init__(self, client: CrtClient, size: int) -> None:
        self._client = client
        self._size = size
        self.guessed = 0

    def list(self, prefix: bytes, **options: Any) -> "Future[ListPage]":
        self.guessed += "start_after" in options
        return self._client.list(prefix, max_keys=self._size, **options)


@pytest.mark.parametrize("which", ["store", "flat_store"])
def test_pages_side_by_side(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages from guessed positions return each name once, with directories at their edges."""
    server: Store = request.getfixturevalue(which)
    expected = {}
    for number in range(60):
        is_directory = number % 4 == 3
        name = f"n{number:02}" + "-" * (number % 7 == 0)
        expected[name.encode()] = is_directory
        server.put(f"pages/{name}" + "/file" * is_directory, b"x")
    with connected(server, server.endpoint_url, monkeypatch) as client:
        retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
        guessed = 0
        for size in (2, 3, 4, 5, 7, 16):
            pages: Any = SmallPages(client, size)
            listing = DirectoryListing(b"pages/", pages, retry_policy, ListingCache(1.0))
            entries: list[Entry] = []
            while some := listing.read(len(entries), 9):
                entries += some
            assert len(entries) == len(expected)
            assert {entry.name: entry.is_directory for entry in entries} == expected
            guessed += pages.guessed
        assert guessed > 20


def test_nothing_is_kept(seen: SimpleNamespace, store: Store) -> None:
    """A finished request is freed with its callbacks and body, without the cycle collector."""
    store.put("crt/body", b"x" * 100_000)
    gc.collect()
    gc.disable()
    try:
        ends = []
        for _ in range(20):
            part = get(seen.client, b"crt/body", 0, 100_000)
            assert part.wait(SAFE_S)
            sink = Sink()
            ends.append(weakref.ref(sink))
            seen.client.get(any_version(b"crt/body"), 0, 100_000, sink)
            assert sink.ended.wait(SAFE_S)
            del sink
        # The CRT releases its callbacks on its own thread, shortly after the end.
        gone = threading.Event()
        for _ in range(int(SAFE_S / 0.01)):
            if not any(reference() for reference in ends):
                break
            gone.wait(0.01)
        assert [reference() for reference in ends] == [None] * 20
    finally:
        gc.enable()


class Sink:
    """Counts the bytes that it gets."""

    def __init__(self) -> None:
        self.received = 0
        self.ends: list[Exception | None] = []
        self.ended = threading.Event()

    def on_headers(self, info: object) -> None:
        """Receive the headers."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """Count bytes."""
        self.received += len(chunk)

    def finish(self, error: Exception | None) -> None:
        """Receive the end."""
        self.ends.append(error)
        self.ended.set()


def test_cancel(seen: SimpleNamespace, store: Store) -> None:
    """A cancelled GET ends once, with an error."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 5

    store.put("crt/cancel", b"x" * 1000)
    seen.proxy.faults.append(on_data(silent))
    sink = Sink()
    transfer = seen.client.get(any_version(b"crt/cancel"), 0, 1000, sink)
    transfer.cancel()
    assert sink.ended.wait(SAFE_S)
    transfer.cancel()
    assert len(sink.ends) == 1
    assert sink.ends[0] is not None


def test_interrupt(seen: SimpleNamespace, store: Store) -> None:
    """`interrupt` ends requests in flight, and all later ones, with Interrupted."""

    def silent(exchange: Exchange) -> None:
        exchange.delay_s = SAFE_S

    store.put("crt/interrupt", b"x" * 1000)
    seen.proxy.faults.append(silent)
    sink = Sink()
    seen.client.get(any_version(b"crt/interrupt"), 0, 1000, sink)
    future = seen.client.head(b"crt/interrupt")
    seen.client.interrupt()
    assert sink.ended.wait(SAFE_S)
    assert isinstance(sink.ends[0], Interrupted)
    assert isinstance(future.exception(SAFE_S), Interrupted)
    later = Sink()
    seen.client.get(any_version(b"crt/interrupt"), 0, 1000, later)
    assert isinstance(later.ends[0], Interrupted)
    assert isinstance(seen.client.list(b"").exception(SAFE_S), Interrupted)


def test_cancelled_future(seen: SimpleNamespace) -> None:
    """If the future of a metadata request is cancelled, the answer does no harm."""
    future = seen.client.head(b"crt/nothing")
    future.cancel()
    assert isinstance(outcome(seen.client.head(b"crt/nothing")), NotFound)


def test_error_details(seen: SimpleNamespace) -> None:
    """A refusal has S3's code and status, and the request's id."""
    part = get(seen.client, b"crt/nothing", 0, 10)
    assert part.wait(SAFE_S)
    assert isinstance(part.error, NotFound)
    assert (part.error.code, part.error.status) == ("NoSuchKey", 404)
    assert part.error.request_id


@pytest.mark.parametrize("throughput_gbps", [0.01, 10.0, 10_000.0])
@pytest.mark.parametrize("part_bytes", [64 << 10, 5 << 30])
def test_any_part_size(throughput_gbps: float, part_bytes: int) -> None:
    """A client can be created with any valid --part-size and --maximum-throughput-gbps."""
    endpoint = Endpoint("http", "127.0.0.1:9", "/b", "us-east-1", "s3", "v4")
    client = CrtClient(
        endpoint, None, ClientConfig(throughput_gbps, part_bytes), counters=Counters()
    )
    client.close()
    assert isinstance(client.head(b"k").exception(SAFE_S), Interrupted)
