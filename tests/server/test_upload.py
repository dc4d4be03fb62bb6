"""Uploads to real servers, over the CRT client and connections that fail."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from mountpoint import errors
from mountpoint.budget import Budget
from mountpoint.config import WriteConfig
from mountpoint.metrics import Counters
from mountpoint.s3.client import Condition
from mountpoint.s3.crt import CrtClient
from mountpoint.s3.retry import Patience
from mountpoint.writing.uploads import Uploads
from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, refuse, times
from tests.server.test_crt import connected

pytestmark = pytest.mark.server

SAFE_S = 30.0
MIB = 1 << 20
PART = 5 * MIB
ABSENT = Condition(absent=True)


class Bucket:
    """Uploads to a server through a proxy."""

    def __init__(self, store: Store, proxy: FaultyProxy, client: CrtClient) -> None:
        self.store = store
        self.proxy = proxy
        self.client = client
        self.budget = Budget(8 * PART)
        patience = Patience(
            try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event(), counters=Counters()
        )
        config = WriteConfig(part_size_bytes=PART)
        self.uploads = Uploads(client, config, self.budget, patience)

    def upload(self, key: bytes, data: bytes, condition: Condition = ABSENT) -> str:
        """Upload an object; return its ETag."""
        upload = self.uploads.upload(key, condition=condition)
        try:
            for start in range(0, len(data), MIB):
                upload.write(start, data[start : start + MIB])
            return upload.finish().etag
        finally:
            upload.abort()

    def check(self, key: bytes, data: bytes) -> None:
        """Check that the object has these bytes, and that nothing else is left."""
        answer = self.store.client().get_object(Bucket=self.store.bucket, Key=key.decode())
        found = hashlib.sha256(answer["Body"].read()).digest()
        assert found == hashlib.sha256(data).digest()
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        assert self.client.list_uploads(b"").result(SAFE_S).uploads == []
        assert self.budget.held_bytes == 0


@pytest.fixture(params=["store", "flat_store"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of each server."""
    store: Store = request.getfixturevalue(request.param)
    for prefix in ("upload/", "abort/"):
        for item in (
            store.client().list_objects_v2(Bucket=store.bucket, Prefix=prefix).get("Contents", [])
        ):
            store.delete(item["Key"])
    client = store.client()
    for pending in client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", []):
        client.abort_multipart_upload(
            Bucket=store.bucket, Key=pending["Key"], UploadId=pending["UploadId"]
        )
    with FaultyProxy(store.endpoint_url) as proxy, connected(store, proxy.url, monkeypatch) as crt:
        yield Bucket(store, proxy, crt)


def data_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def on(method: str, part: str, fault: Fault) -> Fault:
    """Return a fault of requests with this method and this in their target."""

    def filtered(exchange: Exchange) -> None:
        if exchange.method == method and part in exchange.target:
            fault(exchange)

    return filtered


def lost(exchange: Exchange) -> None:
    """Do what was asked, and say nothing."""
    exchange.lost = True


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART + 12345])
def test_upload(bucket: Bucket, size: int) -> None:
    """Files of all sizes arrive whole."""
    data = data_of(size)
    bucket.upload(b"upload/plain", data)
    bucket.check(b"upload/plain", data)


@pytest.mark.parametrize(
    "fault",
    [
        on("PUT", "partNumber=1", times(1, lost)),
        on("PUT", "partNumber=2", times(1, refuse(503, "SlowDown"))),
        on("PUT", "partNumber=2", times(1, refuse(400, "BadDigest"))),
        on("POST", "uploadId=", times(1, lost)),
        on("POST", "uploadId=", times(1, refuse(500, "InternalError"))),
        on("PUT", "upload/faults", times(3, lost)),
    ],
    ids=["part-lost", "slow-down", "bad-digest", "complete-lost", "complete-500", "three-lost"],
)
@pytest.mark.parametrize("size", [100, 2 * PART])
def test_faults(bucket: Bucket, fault: Fault, size: int) -> None:
    """Whatever was refused, lost, or done without an answer: the file arrives, once."""
    bucket.proxy.faults.append(fault)
    data = data_of(size)
    bucket.upload(b"upload/faults", data)
    bucket.check(b"upload/faults", data)


@pytest.mark.parametrize("size", [100, 2 * PART])
def test_conflict(bucket: Bucket, size: int) -> None:
    """What is there stays as it is."""
    bucket.upload(b"upload/conflict", b"first")
    with pytest.raises(errors.AlreadyExists):
        bucket.upload(b"upload/conflict", data_of(size))
    bucket.check(b"upload/conflict", b"first")


def test_a_part_is_refused(bucket: Bucket) -> None:
    """An upload that fails leaves nothing."""
    bucket.proxy.faults.append(on("PUT", "partNumber=2", refuse(403, "AccessDenied")))
    with pytest.raises(errors.AccessDenied):
        bucket.upload(b"upload/refused", data_of(3 * PART))
    bucket.check_nothing_left()
