"""Copies and moves by real servers, over connections that fail."""

import random
import threading
from collections.abc import Iterator

import pytest

from mountpoint import errors
from mountpoint.config import WriteConfig
from mountpoint.copy.objects import Copies
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import ALWAYS, Condition, ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.parts import Limits
from mountpoint.upload.uploads import Uploads
from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy, refuse, times
from tests.server.test_crt import connected
from tests.server.test_upload import SAFE_S, lost, on

pytestmark = pytest.mark.server

MIB = 1 << 20
PART = 5 * MIB
ABSENT = Condition(absent=True)
#: Here larger objects are copied in parts; with S3 those above 5 GiB.
MAX_COPY = 6 * MIB


class Bucket:
    """Copies in a bucket of a server, through a proxy."""

    def __init__(self, store: Store, proxy: FaultyProxy, client: CrtClient) -> None:
        self.proxy = proxy
        self.client = client
        self.s3 = store.client()
        self.name = store.bucket
        retry_policy = RetryPolicy(
            try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event(), counters=Counters()
        )
        config = WriteConfig(part_size_bytes=PART)
        limits = Limits(copied_part_bytes=PART)
        uploads = Uploads(client, config, Budget(8 * PART), retry_policy, limits)
        self.copies = Copies(client, config, uploads, retry_policy, max_copy_bytes=MAX_COPY)

    def put(self, key: str, data: bytes, **more: object) -> ObjectInfo:
        self.s3.put_object(Bucket=self.name, Key=key, Body=data, **more)
        return self.client.head(key.encode()).result(SAFE_S)

    def get(self, key: str) -> bytes:
        data: bytes = self.s3.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str = "moves/") -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        return [item["Key"] for item in found]


@pytest.fixture(params=["store", "flat_store"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of each server."""
    store: Store = request.getfixturevalue(request.param)
    with FaultyProxy(store.endpoint_url) as proxy, connected(store, proxy.url, monkeypatch) as crt:
        bucket = Bucket(store, proxy, crt)
        for key in reversed(bucket.keys()):
            bucket.s3.delete_object(Bucket=bucket.name, Key=key)
        yield bucket


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1000, MAX_COPY + 1, 2 * PART])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
def test_moves(bucket: Bucket, size: int, condition: Condition) -> None:
    """An object of any size is moved with all its properties."""
    kept = {
        "ContentType": "text/x-test",
        "CacheControl": "no-store",
        "ContentLanguage": "de",
        "Metadata": {"mode": "33188", "b": "c d"},
        "StorageClass": "STANDARD_IA",
    }
    source = bucket.put("moves/from", data_of(size), **kept)
    info = bucket.copies.move(source, b"moves/to", condition=condition)
    assert bucket.keys() == ["moves/to"]
    assert bucket.get("moves/to") == data_of(size)
    found = bucket.client.head(b"moves/to").result(SAFE_S)
    assert info == found
    head = bucket.s3.head_object(Bucket=bucket.name, Key="moves/to")
    assert {name: head.get(name) for name in kept} == kept


@pytest.mark.parametrize("size", [1000, 2 * PART])
def test_conditions(bucket: Bucket, size: int) -> None:
    """An existing object is not overwritten, and a changed source is not moved."""
    source = bucket.put("moves/from", data_of(size))
    bucket.put("moves/to", b"there")
    with pytest.raises(errors.AlreadyExists):
        bucket.copies.move(source, b"moves/to", condition=ABSENT)
    bucket.put("moves/from", b"changed")
    with pytest.raises(errors.PreconditionFailed):
        bucket.copies.move(source, b"moves/other", condition=ABSENT)
    assert bucket.keys() == ["moves/from", "moves/to"]
    assert (bucket.get("moves/from"), bucket.get("moves/to")) == (b"changed", b"there")


@pytest.mark.parametrize("size", [1000, 2 * PART])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize("fault", [lost, refuse(503, "SlowDown")], ids=["lost", "slow-down"])
def test_faults(bucket: Bucket, size: int, method: str, fault: object) -> None:
    """With any lost request or lost answer, the object is moved exactly once."""
    source = bucket.put("moves/from", data_of(size))
    bucket.proxy.faults.append(on(method, "moves/", times(1, fault)))  # type: ignore[arg-type]
    bucket.copies.move(source, b"moves/to", condition=ABSENT)
    assert bucket.keys() == ["moves/to"]
    assert bucket.get("moves/to") == data_of(size)


def test_directories(bucket: Bucket) -> None:
    """All objects below a prefix are moved, with names of all kinds, and no others."""
    names = ["a", "b c+d", "sub/x", "sub/deep/ü", *(f"{number:03}" for number in range(60))]
    for name in names:
        bucket.put(f"moves/old/{name}", name.encode())
    bucket.put("moves/older", b"other")
    assert bucket.copies.move_all(b"moves/old/", b"moves/new/") == len(names)
    assert bucket.keys() == sorted(
        ["moves/older", *(f"moves/new/{name}" for name in names)], key=str.encode
    )
    for name in names:
        assert bucket.get(f"moves/new/{name}") == name.encode()


def test_markers(bucket: Bucket) -> None:
    """Markers of directories are moved, too; SeaweedFS neither copies them nor keeps metadata."""
    bucket.put("moves/old/", b"")
    bucket.put("moves/old/empty/", b"")
    bucket.put("moves/old/file", b"content")
    assert bucket.copies.move_all(b"moves/old/", b"moves/new/") == 3
    assert bucket.keys() == ["moves/new/", "moves/new/empty/", "moves/new/file"]
    assert bucket.get("moves/new/file") == b"content"


def test_a_directory_that_cannot_be_moved(bucket: Bucket) -> None:
    """If an object cannot be moved, all objects exist once or twice, and the error says so."""
    for number in range(20):
        bucket.put(f"moves/old/{number:02}", b"%d" % number)
    bucket.proxy.faults.append(on("HEAD", "moves/old/07", refuse(403, "AccessDenied")))
    with pytest.raises(errors.AccessDenied, match="objects of 'moves/old/' have been moved"):
        bucket.copies.move_all(b"moves/old/", b"moves/new/")
    keys = bucket.keys()
    for number in range(20):
        assert {f"moves/old/{number:02}", f"moves/new/{number:02}"} & set(keys)
    assert "moves/old/07" in keys
