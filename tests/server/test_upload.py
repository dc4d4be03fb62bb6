"""Uploads to real servers, through the CRT client and connections that fail."""

import hashlib
import random
import threading
from collections.abc import Iterator

import pytest

from mountpoint import errors
from mountpoint.config import WriteConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import ChecksumName, Condition, ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.parts import Limits
from mountpoint.upload.upload import Upload
from mountpoint.upload.uploads import Uploads
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

    def __init__(self, store: Store, proxy: FaultyProxy, client: CrtClient, *, flat: bool) -> None:
        self.store = store
        self.flat = flat
        self.proxy = proxy
        self.client = client
        self.budget = Budget(8 * PART)
        retry_policy = RetryPolicy(
            try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event(), counters=Counters()
        )
        self.retry_policy = retry_policy
        self.uploads = self.with_checksum("crc32c")

    def with_checksum(self, name: ChecksumName) -> Uploads:
        """Return uploads with another checksum than the usual one."""
        config = WriteConfig(part_size_bytes=PART, checksum=name)
        limits = Limits(copied_part_bytes=PART)
        return Uploads(self.client, config, self.budget, self.retry_policy, limits)

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
        """Check that the object has these bytes, and that no parts are left."""
        answer = self.store.client().get_object(Bucket=self.store.bucket, Key=key.decode())
        found = hashlib.sha256(answer["Body"].read()).digest()
        assert found == hashlib.sha256(data).digest()
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        assert self.client.list_uploads(b"upload/").result(SAFE_S).uploads == []
        assert self.budget.held_bytes == 0


@pytest.fixture(params=["store", "flat_store"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of each server."""
    store: Store = request.getfixturevalue(request.param)
    client = store.client()
    ours = {"Bucket": store.bucket, "Prefix": "upload/"}
    for item in client.list_objects_v2(**ours).get("Contents", []):
        store.delete(item["Key"])
    for pending in client.list_multipart_uploads(**ours).get("Uploads", []):
        client.abort_multipart_upload(
            Bucket=store.bucket, Key=pending["Key"], UploadId=pending["UploadId"]
        )
    with FaultyProxy(store.endpoint_url) as proxy, connected(store, proxy.url, monkeypatch) as crt:
        yield Bucket(store, proxy, crt, flat=request.param == "flat_store")


def data_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def on(method: str, part: str, fault: Fault) -> Fault:
    """Return a fault for requests with this method and this text in their target."""

    def filtered(exchange: Exchange) -> None:
        if exchange.method == method and part in exchange.target:
            fault(exchange)

    return filtered


def lost(exchange: Exchange) -> None:
    """Carry out the request, and drop the answer."""
    exchange.lost = True


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART + 12345])
def test_upload(bucket: Bucket, size: int) -> None:
    """Files of all sizes arrive completely."""
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
    """With any refused request, lost request or lost answer, the file arrives exactly once."""
    bucket.proxy.faults.append(fault)
    data = data_of(size)
    bucket.upload(b"upload/faults", data)
    bucket.check(b"upload/faults", data)


@pytest.mark.parametrize("size", [100, 2 * PART])
def test_conflict(bucket: Bucket, size: int) -> None:
    """The existing object stays unchanged."""
    bucket.upload(b"upload/conflict", b"first")
    with pytest.raises(errors.AlreadyExists):
        bucket.upload(b"upload/conflict", data_of(size))
    bucket.check(b"upload/conflict", b"first")


def test_copies_and_writes(bucket: Bucket) -> None:
    """Ranges of other objects, copied or read, and new bytes are in the right order."""
    data = random.Random(1).randbytes(3 * PART + 77)
    bucket.upload(b"upload/source", data)
    source = bucket.client.head(b"upload/source").result(SAFE_S)
    upload = bucket.uploads.upload(b"upload/mixed", condition=ABSENT)
    upload.copy(source, 0, source.size_bytes)
    upload.write(source.size_bytes, b"new")
    upload.copy(source, 5, 2 * PART)
    upload.copy(source, 100, 200)
    upload.finish()
    bucket.check(b"upload/mixed", data + b"new" + data[5 : 2 * PART] + data[100:200])


def test_appending_to_itself(bucket: Bucket) -> None:
    """An object is replaced by itself with bytes appended, small or large."""
    for size in (1000, PART + 1):
        data = data_of(size)
        bucket.upload(b"upload/append", data, Condition())
        source = bucket.client.head(b"upload/append").result(SAFE_S)
        condition = Condition(etag=source.etag)
        upload = bucket.uploads.upload(b"upload/append", condition=condition)
        upload.copy(source, 0, size)
        upload.write(size, b"more")
        upload.finish()
        bucket.check(b"upload/append", data + b"more")


@pytest.mark.parametrize("size", [1000, 2 * PART])
def test_a_source_that_has_changed(bucket: Bucket, size: int) -> None:
    """No object is made from another version of the source."""
    bucket.upload(b"upload/source", data_of(size), Condition())
    source = bucket.client.head(b"upload/source").result(SAFE_S)
    bucket.upload(b"upload/source", data_of(size)[::-1], Condition())
    upload = bucket.uploads.upload(b"upload/changed", condition=ABSENT)
    with pytest.raises(errors.PreconditionFailed):
        copy_all(upload, source)
    upload.abort()
    bucket.check_nothing_left()


def copy_all(upload: Upload, source: ObjectInfo) -> None:
    """Make a copy; the caller does not need to know which of the two calls fails."""
    upload.copy(source, 0, source.size_bytes)
    upload.finish()


@pytest.mark.parametrize("name", ["crc32c", "crc64nvme"])
def test_faults_of_copies(bucket: Bucket, name: ChecksumName) -> None:
    """Copies are repeated after a lost answer or an error, even in a 200."""
    error = b"<Error><Code>InternalError</Code><Message>m</Message></Error>"

    def broken(exchange: Exchange) -> None:
        exchange.status, exchange.body = 200, error
        exchange.headers = [("Content-Length", str(len(error)))]

    data = data_of(3 * PART + 1)
    bucket.upload(b"upload/source", data, Condition())
    source = bucket.client.head(b"upload/source").result(SAFE_S)
    if name == "crc64nvme" and bucket.flat:
        pytest.skip("ministack takes the object's checksum for that of the request's XML")
    bucket.proxy.faults += [
        on("PUT", "partNumber=1", times(1, lost)),
        on("PUT", "partNumber=2", times(1, broken)),
        on("POST", "uploadId=", times(1, lost)),
    ]
    upload = bucket.with_checksum(name).upload(b"upload/copied", condition=ABSENT)
    copy_all(upload, source)
    bucket.check(b"upload/copied", data)


def test_a_part_is_refused(bucket: Bucket) -> None:
    """A failed upload leaves nothing."""
    bucket.proxy.faults.append(on("PUT", "partNumber=2", refuse(403, "AccessDenied")))
    with pytest.raises(errors.AccessDenied):
        bucket.upload(b"upload/refused", data_of(3 * PART))
    bucket.check_nothing_left()
