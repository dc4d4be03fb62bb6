"""The CRT client compares bodies with checksums, of real servers and in S3's form for ranges."""

import base64
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mountpoint._fastpath import Part
from mountpoint.config import ClientConfig
from mountpoint.errors import ChecksumMismatch
from mountpoint.metrics.counters import CounterName, Counters
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, flip_bit, on_data

pytestmark = pytest.mark.server

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
MIB = 1 << 20
BODY = bytes(range(256)) * 400
PARTS = [b"p" * (5 * MIB), b"q" * 1000]


class Tally(Counters):
    """Records the client's checksum counters."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def add(self, name: CounterName, amount: int = 1) -> None:
        """Add to a counter."""
        if name.startswith("checksums_"):
            self.seen[name] += amount

    def __eq__(self, other: object) -> bool:
        return other == self.seen

    __hash__ = None  # type: ignore[assignment]


class Client:
    """A client of a server, through a proxy, with its counters and its requests."""

    def __init__(self, server: Store, proxy: FaultyProxy, **config: Any) -> None:
        self.counted = Tally()
        self.exchanges: list[Exchange] = []
        self.proxy = proxy
        self.server = server
        proxy.faults[:] = [self.exchanges.append]
        host = urlsplit(proxy.url).netloc
        endpoint = Endpoint("http", host, f"/{server.bucket}", "us-east-1", "s3", "v4")
        # Unsigned requests, which ministack accepts.
        self.crt = CrtClient(endpoint, None, ClientConfig(**config), counters=self.counted)

    def put(self, key: str, **details: Any) -> str:
        """Put BODY; return the ETag."""
        client = self.server.client()
        answer = client.put_object(Bucket=self.server.bucket, Key=key, Body=BODY, **details)
        return str(answer["ETag"])

    def put_parts(self, key: str, parts: list[bytes], algorithm: str) -> str:
        """Upload an object in parts; return the ETag."""
        client, where = self.server.client(), {"Bucket": self.server.bucket, "Key": key}
        upload = client.create_multipart_upload(**where, ChecksumAlgorithm=algorithm)["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            details = {"PartNumber": number, "ChecksumAlgorithm": algorithm}
            answer = client.upload_part(**where, UploadId=upload, Body=part, **details)
            name = f"Checksum{algorithm}"
            done.append({"PartNumber": number, "ETag": answer["ETag"], name: answer[name]})
        complete = {"UploadId": upload, "MultipartUpload": {"Parts": done}}
        return str(client.complete_multipart_upload(**where, **complete)["ETag"])

    def get(self, key: str, etag: str, start: int, stop: int, *, whole: bool) -> Part:
        """Get a range and wait for its end."""
        part = Part(start, stop, etag)
        version = ObjectInfo(key.encode(), stop if whole else stop + 1, 0, etag)
        part.attach(self.crt.get(version, start, stop, part))
        assert part.wait(SAFE_S)
        while not part.finished:  # the counters follow the bytes
            time.sleep(0.001)
        return part

    def asked(self, name: str) -> list[str | None]:
        """Return a header of each request."""
        headers = (
            {key.lower(): value for key, value in exchange.request_headers.items()}
            for exchange in self.exchanges
        )
        return [each.get(name) for each in headers]


@pytest.fixture(params=["native", "python"])
def client(flat_store: Store, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of ministack, on each data plane."""
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        client = Client(flat_store, proxy, native=request.param == "native")
        yield client
        client.crt.close()


def part_checksum(exchange: Exchange) -> None:
    """Send the checksum that S3 sends with a range that is one part of the upload."""
    value = base64.b64encode(zlib.crc32(exchange.body).to_bytes(4, "big")).decode()
    exchange.headers += [("x-amz-checksum-crc32", value), ("x-amz-checksum-type", "COMPOSITE")]


def careless(exchange: Exchange) -> None:
    """Send the whole object's checksum with a range."""
    value = base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode()
    exchange.headers += [("x-amz-checksum-crc32", value), ("x-amz-checksum-type", "FULL_OBJECT")]


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_whole_objects(client: Client, algorithm: str) -> None:
    """A whole object is requested without a range, with its checksum; one bit is noticed."""
    etag = client.put(f"whole-{algorithm}", ChecksumAlgorithm=algorithm)
    part = client.get(f"whole-{algorithm}", etag, 0, len(BODY), whole=True)
    assert part.ready
    assert client.asked("range") == [None]
    assert client.asked("if-match") == [etag]
    assert client.asked("x-amz-checksum-mode") == ["ENABLED"]
    assert client.counted == {"checksums_verified": 1}

    client.proxy.faults.append(on_data(flip_bit))
    part = client.get(f"whole-{algorithm}", etag, 0, len(BODY), whole=True)
    assert isinstance(part.error, ChecksumMismatch)
    assert algorithm.lower() in str(part.error)
    assert part.error.request_id
    assert client.counted == {"checksums_verified": 1}


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC64NVME", "SHA256"])
def test_uploaded_in_parts(client: Client, algorithm: str) -> None:
    """The checksum of an upload with one part is verified; with several parts there is none."""
    for count, known in ((1, "checksums_verified"), (2, "checksums_absent")):
        key, body = f"parts-{algorithm}-{count}", b"".join(PARTS[-count:])
        etag = client.put_parts(key, PARTS[-count:], algorithm)
        client.counted.seen.clear()
        assert client.get(key, etag, 0, len(body), whole=True).ready
        assert client.counted == {known: 1}


@pytest.mark.parametrize(
    ("answer", "error", "counted"),
    [
        ([], None, {"checksums_absent": 1}),
        ([flip_bit], None, {"checksums_absent": 1}),  # nothing is known about this one
        ([part_checksum], None, {"checksums_verified": 1}),
        ([part_checksum, flip_bit], ChecksumMismatch, {}),
        ([careless], None, {"checksums_absent": 1}),
    ],
)
def test_ranges(
    client: Client, answer: list[Fault], error: type[Exception] | None, counted: dict[str, int]
) -> None:
    """A range is verified if S3 has a checksum of exactly this range, and otherwise counted."""
    etag = client.put("range")
    client.proxy.faults += [on_data(each) for each in answer]
    part = client.get("range", etag, 1000, 50_000, whole=False)
    assert (type(part.error) if part.error else None) == error
    assert client.asked("range") == ["bytes=1000-49999"]
    assert client.asked("x-amz-checksum-mode") == ["ENABLED"]
    assert client.counted == counted


def test_an_error_is_no_checksum(client: Client) -> None:
    """A request that fails for another reason counts as neither."""
    assert client.get("nothing", '"e"', 0, 10, whole=True).failed
    client.put("replaced")
    assert client.get("replaced", '"e"', 0, 10, whole=True).failed
    assert client.counted == {}


def turned_off(client: Client) -> Client:
    return Client(client.server, client.proxy, verify_checksums=False)


def small_parts(client: Client) -> Client:
    return Client(client.server, client.proxy, part_size_bytes=64 << 10)


@pytest.mark.parametrize(
    ("other", "asked", "counted"),
    [(turned_off, {None}, {}), (small_parts, {None}, {"checksums_absent": 1})],
)
def test_nothing_is_asked(
    client: Client,
    other: Callable[[Client], Client],
    asked: set[str | None],
    counted: dict[str, int],
) -> None:
    """Without verification, and for ranges that the CRT splits, only ranges are requested."""
    etag = client.put("range")
    client = other(client)
    client.proxy.faults.append(on_data(flip_bit))
    assert client.get("range", etag, 0, len(BODY), whole=other is turned_off).ready
    assert set(client.asked("x-amz-checksum-mode")) == asked
    assert None not in client.asked("range")
    assert client.counted == counted
    client.crt.close()


def test_an_object_that_has_grown(client: Client) -> None:
    """If the object has changed, a request for the whole is refused and delivers nothing."""
    etag = client.put("grown")
    large = client.server.client()
    large.put_object(Bucket=client.server.bucket, Key="grown", Body=b"x" * (5 * MIB))
    part = client.get("grown", etag, 0, len(BODY), whole=True)
    assert part.failed
    assert [exchange.status for exchange in client.exchanges] == [412]
