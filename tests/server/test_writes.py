"""The CRT client writes: the bytes and headers at real servers, and their answers."""

import base64
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint.config import ClientConfig
from mountpoint.errors import (
    BadDigest,
    Interrupted,
    NoSuchUpload,
    NotFound,
    PreconditionFailed,
    S3Error,
    ServerFault,
    Throttled,
    TransportFault,
)
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import (
    Body,
    Checksum,
    ChecksumName,
    Condition,
    PartDone,
    PutOptions,
    Written,
)
from mountpoint.s3.crt.body import BodyStream
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.wire import checksum
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.server.test_crt import ODD_KEYS, check_signature, connected

pytestmark = pytest.mark.server

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
MIB = 1 << 20
PLAIN = PutOptions()
NAMES: list[ChecksumName] = ["crc32c", "crc64nvme"]


def digest(name: ChecksumName, *pieces: bytes) -> bytes:
    hashed = checksum.ALGORITHMS[name].new()
    for piece in pieces:
        hashed.update(piece)
    return hashed.digest()


def body(*pieces: bytes, name: ChecksumName | None = None) -> Body:
    """Return a body of these pieces, with the named checksum."""
    value = None
    if name is not None:
        value = Checksum(name, base64.b64encode(digest(name, *pieces)).decode())
    return Body(pieces, sum(map(len, pieces)), value)


def wait(future: "Future[Any]") -> Any:
    return future.result(SAFE_S)


def failure(future: "Future[Any]") -> BaseException | None:
    return future.exception(SAFE_S)


@pytest.fixture(params=["store", "flat_store"])
def server(request: pytest.FixtureRequest) -> Store:
    """Each of the two servers."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def seen(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A client of the server behind a proxy, and its exchanges."""
    exchanges: list[Exchange] = []
    with FaultyProxy(server.endpoint_url) as proxy:
        proxy.faults.append(exchanges.append)
        with connected(server, proxy.url, monkeypatch) as client:
            yield SimpleNamespace(client=client, exchanges=exchanges, proxy=proxy, store=server)


@pytest.fixture
def client(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[CrtClient]:
    """A client of the server."""
    with connected(server, server.endpoint_url, monkeypatch) as client:
        yield client


def content(store: Store, key: bytes) -> bytes:
    answer = store.client().get_object(Bucket=store.bucket, Key=key.decode())
    data: bytes = answer["Body"].read()
    return data


def sent(exchange: Exchange) -> dict[str, str]:
    return {name.lower(): value for name, value in exchange.request_headers.items()}


@pytest.mark.parametrize("pieces", [(), (b"x",), (b"abc", b"", b"d" * 300_000, bytearray(b"e"))])
def test_put(seen: SimpleNamespace, pieces: tuple[bytes, ...]) -> None:
    """A body arrives complete, with its length, unsigned and not in chunks."""
    written = wait(seen.client.put_object(b"put/key", body(*pieces), PLAIN))
    assert content(seen.store, b"put/key") == b"".join(pieces)
    info = wait(seen.client.head(b"put/key"))
    assert written.etag == info.etag
    assert abs(written.date_ns - info.mtime_ns) <= 2_000_000_000
    headers = sent(seen.exchanges[0])
    assert headers["content-length"] == str(sum(map(len, pieces)))
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert not headers.keys() & {"transfer-encoding", "expect", "content-md5", "content-encoding"}


@pytest.mark.parametrize("key", ODD_KEYS)
def test_signatures(seen: SimpleNamespace, key: bytes) -> None:
    """Writes to any key have botocore's signatures."""
    client, options = seen.client, PutOptions("STANDARD", metadata={"a": "b c"})
    odd = "id with +/=&?%"
    for future in (
        client.put_object(key, body(b"data", name="crc32c"), options, Condition(etag='"e"')),
        client.create_upload(key, replace(options, checksum="crc32c")),
        client.upload_part(key, odd, 7, body(b"data")),
        client.complete_upload(key, odd, [], size_bytes=0, checksum=None),
        client.abort_upload(key, odd),
        client.list_uploads(key, after=(key, odd)),
        client.copy_object(key, key + b"2", source_etag='"e"', options=options),
        client.copy_part(key, key, odd, 1, 0, 5, source_etag='"e"'),
        client.delete_object(key),
        client.delete_object(key, etag='"e"'),
    ):
        failure(future)
    assert len(seen.exchanges) == 10
    for exchange in seen.exchanges:
        check_signature(exchange, seen.proxy.url, seen.store.environment["AWS_SECRET_ACCESS_KEY"])


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(flat_store: Store, monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    """Every key can be written, in one request and in parts, copied, listed and deleted."""
    key = b"odd/" + key
    with connected(flat_store, flat_store.endpoint_url, monkeypatch) as client:
        wait(client.put_object(key, body(b"1234567890"), PLAIN))
        etag = wait(client.head(key)).etag
        wait(client.copy_object(key, b"copies/" + key, source_etag=etag))
        assert wait(client.head(b"copies/" + key)).size_bytes == 10

        upload_id = wait(client.create_upload(key, PLAIN))
        if key.isascii() and key.decode().isprintable():  # ministack does not encode other keys
            found = wait(client.list_uploads(key)).uploads
            assert [(each.key, each.upload_id) for each in found] == [(key, upload_id)]
        part = wait(client.copy_part(key, key, upload_id, 1, 0, 10, source_etag=etag))
        parts = [PartDone(1, part.etag)]
        wait(client.complete_upload(key, upload_id, parts, size_bytes=10, checksum=None))
        assert wait(client.head(key)).size_bytes == 10

        wait(client.delete_object(key))
        wait(client.delete_object(key))
        assert isinstance(failure(client.head(key)), NotFound)


@pytest.mark.parametrize("name", NAMES)
def test_checksums(client: CrtClient, name: ChecksumName) -> None:
    """A matching checksum is stored with the body; a body that does not match is refused."""
    good = body(b"a" * 1000, b"b", name=name)
    written = wait(client.put_object(b"checksums/put", good, PLAIN))
    assert good.checksum is not None
    assert written.checksum in (good.checksum.value, "")
    stored = wait(client.head_with_checksums(b"checksums/put"))
    assert stored.info.size_bytes == 1001
    assert stored.checksums.get(name) in (good.checksum.value, None)
    bad = Body([b"x" * 1001], 1001, good.checksum)
    error = failure(client.put_object(b"checksums/put", bad, PLAIN))
    assert isinstance(error, S3Error)
    assert content_size(client, b"checksums/put") == 1001


def content_size(client: CrtClient, key: bytes) -> int:
    size: int = wait(client.head(key)).size_bytes
    return size


@pytest.mark.parametrize("name", [None, *NAMES])
def test_in_parts(
    client: CrtClient, server: Store, name: ChecksumName | None, request: pytest.FixtureRequest
) -> None:
    """An object of parts has their bytes, and the checksum computed from theirs."""
    if name == "crc64nvme" and server == request.getfixturevalue("flat_store"):
        pytest.skip("ministack takes the object's checksum for that of the request's XML")
    key = f"parts/{name}".encode()
    data = [b"p" * (5 * MIB), b"q" * 1000]
    upload_id = wait(client.create_upload(key, PutOptions(checksum=name)))
    parts = []
    for number, each in enumerate(data, 1):
        one = body(each, name=name)
        written = wait(client.upload_part(key, upload_id, number, one))
        parts.append(PartDone(number, written.etag, one.checksum if written.checksum else None))
    whole = None
    if name is not None:
        digests = [(digest(name, each), len(each)) for each in data]
        whole = Checksum(name, checksum.of_parts(name, digests))
    size = sum(map(len, data))
    written = wait(client.complete_upload(key, upload_id, parts, size_bytes=size, checksum=whole))
    assert content(server, key) == b"".join(data)
    assert written.etag == wait(client.head(key)).etag
    known = wait(client.head_with_checksums(key)).checksums.get(name or "")
    if whole is not None and known:
        assert known.partition("-")[0] == whole.value.partition("-")[0]
    assert wait(client.list_uploads(key)).uploads == []


def test_abort(client: CrtClient) -> None:
    """An aborted upload is gone, and more parts are refused."""
    upload_id = wait(client.create_upload(b"abort/key", PLAIN))
    wait(client.upload_part(b"abort/key", upload_id, 1, body(b"x")))
    assert [each.key for each in wait(client.list_uploads(b"abort/")).uploads] == [b"abort/key"]
    wait(client.abort_upload(b"abort/key", upload_id))
    assert wait(client.list_uploads(b"abort/")).uploads == []
    late = client.upload_part(b"abort/key", upload_id, 2, body(b"x"))
    assert isinstance(failure(late), NoSuchUpload)
    nothing = client.complete_upload(
        b"abort/key", upload_id, [PartDone(1, '"e"')], size_bytes=1, checksum=None
    )
    assert isinstance(failure(nothing), S3Error)
    assert isinstance(failure(client.head(b"abort/key")), NotFound)


def test_conditions(client: CrtClient) -> None:
    """A write that requires absence, or another version, does not overwrite an existing key."""
    wait(client.delete_object(b"conditions"))
    absent = Condition(absent=True)
    first = wait(client.put_object(b"conditions", body(b"1"), PLAIN, absent))
    assert isinstance(
        failure(client.put_object(b"conditions", body(b"22"), PLAIN, absent)), PreconditionFailed
    )
    wait(client.put_object(b"conditions", body(b"333"), PLAIN, Condition(etag=first.etag)))
    stale = client.put_object(b"conditions", body(b"4444"), PLAIN, Condition(etag=first.etag))
    assert isinstance(failure(stale), PreconditionFailed)
    assert content_size(client, b"conditions") == 3


def test_deletes_of_one_version(client: CrtClient) -> None:
    """With an ETag only that version is deleted."""
    first = wait(client.put_object(b"delete/key", body(b"1"), PLAIN))
    second = wait(client.put_object(b"delete/key", body(b"22"), PLAIN))
    stale = client.delete_object(b"delete/key", etag=first.etag)
    assert isinstance(failure(stale), PreconditionFailed)
    assert content_size(client, b"delete/key") == 2
    wait(client.delete_object(b"delete/key", etag=second.etag))
    gone = client.delete_object(b"delete/key", etag=second.etag)
    assert isinstance(failure(gone), NotFound | PreconditionFailed)  # stores differ


def test_copies_are_of_one_version(client: CrtClient) -> None:
    """A source that has changed or is gone is not copied."""
    first = wait(client.put_object(b"copy/from", body(b"1"), PLAIN))
    wait(client.put_object(b"copy/from", body(b"22"), PLAIN))
    stale = client.copy_object(b"copy/from", b"copy/to", source_etag=first.etag)
    assert isinstance(failure(stale), PreconditionFailed)
    gone = client.copy_object(b"copy/nothing", b"copy/to", source_etag=first.etag)
    assert isinstance(failure(gone), NotFound)
    assert isinstance(failure(client.head(b"copy/to")), NotFound)


def test_options(seen: SimpleNamespace) -> None:
    """PUT and multipart uploads have type, metadata and class; copies keep or replace them."""
    options = PutOptions(content_type="text/x-test", metadata={"mode": "33188"})
    client = seen.client
    written = wait(client.put_object(b"options/a", body(b"1"), options))
    wait(client.copy_object(b"options/a", b"options/b", source_etag=written.etag))
    other = PutOptions(content_type="text/y-test", metadata={"mode": "1"})
    wait(client.copy_object(b"options/a", b"options/c", source_etag=written.etag, options=other))
    wait(
        client.copy_object(
            b"options/a",
            b"options/e",
            source_etag=written.etag,
            options=replace(other, storage_class="STANDARD_IA"),
            keep_metadata=True,
        )
    )
    assert wait(client.head(b"options/e")).storage_class == "STANDARD_IA"
    described = wait(client.head_with_checksums(b"options/e")).options
    assert (described.content_type, described.metadata) == ("text/x-test", {"mode": "33188"})
    upload_id = wait(client.create_upload(b"options/d", options))
    part = wait(client.upload_part(b"options/d", upload_id, 1, body(b"1")))
    parts = [PartDone(1, part.etag)]
    wait(client.complete_upload(b"options/d", upload_id, parts, size_bytes=1, checksum=None))
    s3 = seen.store.client()
    kept = {"a": options, "b": options, "c": other, "d": options, "e": options}
    for key, expected in kept.items():
        head = s3.head_object(Bucket=seen.store.bucket, Key=f"options/{key}")
        assert (head["ContentType"], head["Metadata"]) == (
            expected.content_type,
            expected.metadata,
        )


def test_owner_and_payer(flat_store: Store) -> None:
    """Every request has the expected owner and requester pays."""
    exchanges: list[Exchange] = []
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.faults.append(exchanges.append)
        host = proxy.url.removeprefix("http://")
        endpoint = Endpoint("http", host, f"/{flat_store.bucket}", "us-east-1", "s3", "v4")
        client = CrtClient(
            endpoint,
            None,
            ClientConfig(),
            counters=Counters(),
            requester_pays=True,
            expected_owner="111122223333",
        )
        wait(client.put_object(b"owner", body(b"1"), PLAIN))
        failure(client.copy_object(b"owner", b"owner2", source_etag='"e"'))
        client.close()
    for exchange in exchanges:
        assert sent(exchange)["x-amz-expected-bucket-owner"] == "111122223333"
        assert sent(exchange)["x-amz-request-payer"] == "requester"
    assert sent(exchanges[1])["x-amz-source-expected-bucket-owner"] == "111122223333"


def answer(status: int, text: str) -> Any:
    def fault(exchange: Exchange) -> None:
        exchange.status, exchange.body = status, text.encode()
        exchange.headers = [("Content-Length", str(len(text))), ("x-amz-request-id", "FAULT1")]

    return fault


@pytest.mark.parametrize("operation", ["complete", "copy", "copy_part"])
@pytest.mark.parametrize(
    ("code", "error"),
    [("InternalError", ServerFault), ("SlowDown", Throttled), ("InvalidPart", S3Error)],
)
def test_errors_with_status_200(
    seen: SimpleNamespace, operation: str, code: str, error: type[S3Error]
) -> None:
    """An error in the body of a 200 is raised, also after the spaces that S3 sends first."""
    xml = f'   \n<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message></Error>'
    seen.proxy.faults.append(answer(200, xml))
    client = seen.client
    found = failure(
        {
            "complete": lambda: client.complete_upload(b"k", "u", [], size_bytes=0, checksum=None),
            "copy": lambda: client.copy_object(b"k", b"k2", source_etag='"e"'),
            "copy_part": lambda: client.copy_part(b"k", b"k", "u", 1, 0, 5, source_etag='"e"'),
        }[operation]()
    )
    assert type(found) is error
    assert found.code == code


def test_a_server_that_stores_something_else(seen: SimpleNamespace) -> None:
    """A success with another checksum than the sent one is a failure."""

    def lie(exchange: Exchange) -> None:
        exchange.headers = [
            pair for pair in exchange.headers if "checksum" not in pair[0].lower()
        ] + [("x-amz-checksum-crc32c", "AAAAAA==")]

    seen.proxy.faults.append(lie)
    found = failure(seen.client.put_object(b"lie", body(b"1", name="crc32c"), PLAIN))
    assert isinstance(found, BadDigest)
    assert found.request_id
    assert found.retryable


def test_lost_answers(seen: SimpleNamespace) -> None:
    """A connection that ends without an answer is a retryable fault."""
    seen.proxy.faults.append(lambda exchange: setattr(exchange, "lost", True))
    found = failure(seen.client.put_object(b"lost", body(b"1"), PLAIN))
    assert isinstance(found, TransportFault)


def test_interrupt(seen: SimpleNamespace) -> None:
    """The end of the mount ends writes in flight."""
    seen.proxy.faults.append(lambda exchange: setattr(exchange, "delay_s", SAFE_S))
    future = seen.client.put_object(b"late", body(b"1" * MIB), PLAIN)
    seen.client.interrupt()
    assert isinstance(failure(future), Interrupted)


def test_nothing_is_kept(client: CrtClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is freed at the end of its request, without the cycle collector."""
    streams: list[weakref.ref[BodyStream]] = []

    class Noted(BodyStream):
        def __init__(self, body: Body) -> None:
            super().__init__(body)
            streams.append(weakref.ref(self))

    monkeypatch.setattr("mountpoint.s3.crt.client.BodyStream", Noted)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            assert isinstance(wait(client.put_object(b"kept", body(b"x" * MIB), PLAIN)), Written)
        gone = threading.Event()
        for _ in range(int(SAFE_S / 0.01)):
            if not any(reference() for reference in streams):
                break
            gone.wait(0.01)
        assert [reference() for reference in streams] == [None] * 10
    finally:
        gc.enable()
