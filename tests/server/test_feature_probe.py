"""The probe of an endpoint at mount, and how the client adapts.

The stores that support less than S3 are made from real ones (tests/lesser.py).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from mountpoint._fastpath import Part, slice_of
from mountpoint.config import BucketConfig, ClientConfig, CredentialsConfig
from mountpoint.errors import MountError, PreconditionFailed
from mountpoint.metrics.recorder import Meters
from mountpoint.s3 import connect, feature_probe
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.capabilities import READ_FEATURES
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.lesser import (
    only_v1,
    refuse_checksums,
    refuse_if_match,
    without_header,
    without_parameter,
)

pytestmark = pytest.mark.server

SAFE_S = 30.0
DEFAULTS = ClientConfig()
KEYS = [b"probed/dir/%d" % n for n in range(3)] + [b"probed/file", b"probed/to\x01"]


@pytest.fixture(scope="module")
def filled(flat_store: Store) -> Store:
    """The flat store, with some keys below `probed/`."""
    for key in KEYS:
        flat_store.put(key.decode(), b"body of " + key)
    return flat_store


@contextmanager
def connected(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *faults: Fault,
    prefix: bytes = b"probed/",
    config: ClientConfig = DEFAULTS,
) -> Iterator[SimpleNamespace]:
    """Connect as a mount does, through a proxy: `client`, `lines` of the log, `proxy`."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    with FaultyProxy(store.endpoint_url) as proxy, capture_logs() as lines:
        proxy.before.extend(faults)
        client = connect.connect(
            BucketConfig(
                store.bucket,
                prefix,
                "us-east-1",
                endpoint_url=proxy.url,
                force_path_style=True,
            ),
            CredentialsConfig(),
            config,
            os.environ,
            threading.Event(),
            Meters(),
        )
        found = [line["event"] for line in lines if line["log_level"] == "info"]
        yield SimpleNamespace(client=client, found=found, proxy=proxy, seen=list(proxy.seen))
        client.close()


def read(client: CrtClient, key: bytes, size: int, etag: str, *, whole: bool = True) -> Part:
    """Get an object of this version."""
    part = Part(0, size, etag)
    version = ObjectInfo(key, size if whole else size + 1, 0, etag)
    part.attach(client.get(version, 0, size, part))
    part.wait(SAFE_S)
    return part


def content(part: Part) -> bytes:
    assert part.ready, part.error
    return bytes(slice_of([part], part.start, part.stop))


def all_pages(client: CrtClient, prefix: bytes, size: int) -> list[bytes]:
    """List a directory, page by page; return its keys and prefixes."""
    found: list[bytes] = []
    token = None
    while True:
        page: ListPage = client.list(prefix, token=token, max_keys=size).result(SAFE_S)
        found += [*(info.key for info in page.objects), *page.prefixes]
        token = page.next_token
        if token is None:
            return found


# --- tests ---


@pytest.mark.parametrize("which", ["store", "flat_store"])
def test_a_store_like_s3(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe costs two LISTs and two GETs of a byte, and logs nothing."""
    server: Store = request.getfixturevalue(which)
    server.put("probed/dir/1", b"x")
    server.put("probed/file", b"x")
    with connected(server, monkeypatch) as it:
        assert it.found == []
        assert it.client.lists_in_order
        assert [method for method, _ in it.seen] == ["GET"] * 5
        lists = ["list-type=2" in target for _, target in it.seen]
        assert lists[:2] == [True, True]
        assert sum(lists) == 3


def test_reconnected(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client made of what another has learned sends no request, and works as that one."""
    with connected(filled, monkeypatch, only_v1) as it:
        capabilities = it.client.capabilities
        features = {name: getattr(capabilities, name) for name in READ_FEATURES}
        assert not capabilities.pages_by_token
        reached = connect.Reached(it.client.endpoint, features)
        bucket = BucketConfig(filled.bucket, b"probed/", endpoint_url=it.proxy.url)
        credentials = CredentialsConfig()
        before = len(it.proxy.seen)
        client = connect.reconnect(reached, bucket, credentials, DEFAULTS, os.environ, Meters())
        try:
            assert len(it.proxy.seen) == before
            assert client.capabilities == capabilities
            assert all_pages(client, b"probed/", 2) == all_pages(it.client, b"probed/", 2)
        finally:
            client.close()


def test_aws_is_not_asked(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At AWS the mount sends one LIST, and no probe."""

    def resolve(bucket: BucketConfig, region: str) -> Endpoint:
        host = urlsplit(bucket.endpoint_url or "").netloc
        return Endpoint("http", host, f"/{bucket.name}", region, "s3", "v4", aws=True)

    monkeypatch.setattr(connect, "resolve", resolve)
    with connected(filled, monkeypatch) as it:
        assert len(it.seen) == 1


def test_an_empty_bucket(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key shows whether the store accepts x-amz-checksum-mode."""
    with connected(filled, monkeypatch, prefix=b"nothing/") as it:
        assert it.found == []
        assert len(it.seen) == 2
    with connected(filled, monkeypatch, refuse_checksums, prefix=b"nothing/") as it:
        assert len(it.found) == 1
    assert filled.client().list_objects_v2(Bucket=filled.bucket, Prefix="nothing/")["KeyCount"] == 0


def test_list_objects_only(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without ListObjectsV2 is listed with markers: all keys, for any page size."""
    with connected(filled, monkeypatch, only_v1) as it:
        assert it.found == [
            "the store does not support ListObjectsV2: the mount lists with markers (ListObjects)"
        ]
        for size in (1, 2, 3, 1000):
            expected = [b"probed/dir/", b"probed/file", b"probed/to\x01"]
            assert sorted(all_pages(it.client, b"probed/", size)) == expected
            assert all_pages(it.client, b"probed/dir/", size) == KEYS[:3]
        page = it.client.list(b"probed/dir/", start_after=KEYS[1]).result(SAFE_S)
        assert [info.key for info in page.objects] == KEYS[2:3]


def test_start_after_ignored(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not use start-after with a store that ignores it."""
    with connected(filled, monkeypatch, without_parameter("start-after")) as it:
        assert it.found == ["the store ignores start-after: the mount looks names up one by one"]
        assert not it.client.lists_in_order


def test_if_match_ignored(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a store ignores If-Match, the client sends ranges, and still notices other versions."""
    with connected(filled, monkeypatch, without_header("If-Match")) as it:
        assert it.found == [
            "the store ignores If-Match: the mount compares the ETags of its answers, as always"
        ]
        key, body = b"probed/file", b"body of probed/file"
        etag = it.client.head(key).result(SAFE_S).etag
        ranges: list[str | None] = []
        it.proxy.before.append(
            lambda exchange: ranges.append(exchange.request_headers.get("Range"))
        )
        assert content(read(it.client, key, len(body), etag)) == body
        assert ranges == [f"bytes=0-{len(body) - 1}"]
        for whole in (True, False):
            other = read(it.client, key, len(body), '"another"', whole=whole)
            assert isinstance(other.error, PreconditionFailed)


def test_if_match_never_holds(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store that sends only weak ETags, the client omits If-Match."""
    with connected(filled, monkeypatch, refuse_if_match) as it:
        assert it.found == [
            "the store ignores If-Match: the mount compares the ETags of its answers, as always"
        ]
        key, body = b"probed/file", b"body of probed/file"
        etag = it.client.head(key).result(SAFE_S).etag
        for whole in (True, False):
            assert content(read(it.client, key, len(body), etag, whole=whole)) == body
            other = read(it.client, key, len(body), '"another"', whole=whole)
            assert isinstance(other.error, PreconditionFailed)


@pytest.mark.parametrize("verify", [True, False])
def test_checksums_refused(filled: Store, monkeypatch: pytest.MonkeyPatch, verify: bool) -> None:
    """If a store refuses x-amz-checksum-mode, the client omits it, and reads work."""
    config = ClientConfig(verify_checksums=verify)
    with connected(filled, monkeypatch, refuse_checksums, config=config) as it:
        assert it.found == ["the store refuses x-amz-checksum-mode: reads are not verified"]
        key, body = b"probed/file", b"body of probed/file"
        etag = it.client.head_with_checksums(key).result(SAFE_S).info.etag
        for whole in (True, False):
            assert content(read(it.client, key, len(body), etag, whole=whole)) == body


def test_no_answer(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question without a timely answer counts as supported, and does not delay the mount."""
    monkeypatch.setattr(feature_probe, "TRY_S", 0.2)

    def slow(exchange: Exchange) -> None:
        if exchange.is_data or "start-after" in exchange.target:
            exchange.delay_s = SAFE_S

    with connected(filled, monkeypatch, slow) as it:
        assert it.found == []
        assert it.client.lists_in_order


# --- virtual hosts ---


def resolve_virtual_to(host_of: Callable[[str], str]) -> Callable[[BucketConfig, str], Endpoint]:
    """Return a resolver that finds virtual hosts at the test's address, without a name service."""

    def resolve(bucket: BucketConfig, region: str) -> Endpoint:
        host = urlsplit(bucket.endpoint_url or "").netloc
        if bucket.force_path_style:
            return Endpoint("http", host, f"/{bucket.name}", region, "s3", "v4")
        return Endpoint("http", host_of(host), "", region, "s3", "v4")

    return resolve


CLOSED = "127.0.0.1:9"  # no server listens there


@pytest.mark.parametrize("which", ["store", "flat_store"])
@pytest.mark.parametrize("host_of", [lambda host: host, lambda host: CLOSED])
def test_no_virtual_hosts(
    which: str,
    host_of: Callable[[str], str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If BUCKET.HOST lists the store's buckets or does not exist, the client uses path style."""
    server: Store = request.getfixturevalue(which)
    server.put("by-path/file", b"x")
    monkeypatch.setattr(connect, "resolve", resolve_virtual_to(host_of))
    client, lines = _connect_by_name(server, monkeypatch)
    page = client.list(b"by-path/").result(SAFE_S)
    assert [info.key for info in page.objects] == [b"by-path/file"]
    assert "requests have the bucket in the path" in lines[-1]
    client.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [("", "bucket 'no-such-bucket' does not exist at"), ("http://127.0.0.1:7", "from 127.0.0.1:9")],
)
def test_neither_virtual_nor_path(
    filled: Store, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    """The error is the store's, if it answers; otherwise that of the first address."""
    monkeypatch.setattr(connect, "resolve", resolve_virtual_to(lambda host: CLOSED))
    with pytest.raises(MountError, match=message):
        _connect_by_name(filled, monkeypatch, bucket="no-such-bucket", url=url)


def _connect_by_name(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, bucket: str = "", url: str = ""
) -> tuple[CrtClient, list[str]]:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        client = connect.connect(
            BucketConfig(
                bucket or store.bucket, region="us-east-1", endpoint_url=url or store.endpoint_url
            ),
            CredentialsConfig(),
            ClientConfig(),
            os.environ,
            threading.Event(),
            Meters(),
        )
    return client, [line["event"] for line in lines if line["log_level"] == "info"]
