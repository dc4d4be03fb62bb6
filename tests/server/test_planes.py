"""Both data planes judge every answer to a GET in the same way."""

import base64
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mountpoint._fastpath import Part
from mountpoint.config import ClientConfig
from mountpoint.errors import BadAnswer, S3Error
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy

pytestmark = pytest.mark.server

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
BODY = bytes(range(256)) * 400
START, STOP = 1000, 51_000

Change = Callable[[Exchange], None]
Outcome = tuple[Any, ...]


def header(name: str, value: str) -> Change:
    """Replace a header, or add it."""

    def change(exchange: Exchange) -> None:
        without(name)(exchange)
        exchange.headers.append((name, value))

    return change


def again(name: str, value: str) -> Change:
    """Add a header of a name that the answer has already."""
    return lambda exchange: exchange.headers.append((name, value))


def without(name: str) -> Change:
    """Remove a header."""

    def change(exchange: Exchange) -> None:
        exchange.headers[:] = [each for each in exchange.headers if each[0].lower() != name.lower()]

    return change


def lower(exchange: Exchange) -> None:
    """Send all names in lower case."""
    exchange.headers[:] = [(name.lower(), value) for name, value in exchange.headers]


def etag(form: str) -> Change:
    """Send the ETag in another form."""

    def change(exchange: Exchange) -> None:
        value = value_of(exchange, "ETag").strip('"')
        header("ETag", form.replace("X", value))(exchange)

    return change


def value_of(exchange: Exchange, name: str) -> str:
    return next(value for key, value in exchange.headers if key.lower() == name.lower())


def checksum(
    kind: str | None, name: str = "crc32", *, wrong: bool = False, form: str = "X"
) -> Change:
    """Send a checksum of the body, with this type."""

    def change(exchange: Exchange) -> None:
        for each in ("type", "crc32", "crc32c", "crc64nvme", "sha1", "sha256"):
            without(f"x-amz-checksum-{each}")(exchange)
        value = zlib.crc32(exchange.body) ^ wrong
        text = base64.b64encode(value.to_bytes(4, "big")).decode()
        exchange.headers.append((f"x-amz-checksum-{name}", form.replace("X", text)))
        if kind is not None:
            exchange.headers.append(("x-amz-checksum-type", kind))

    return change


def short(exchange: Exchange) -> None:
    """Send fewer bytes than Content-Range says, and the right Content-Length for them."""
    exchange.body = exchange.body[:-10]
    header("Content-Length", str(len(exchange.body)))(exchange)


def longer(exchange: Exchange) -> None:
    """Send more bytes than Content-Range says."""
    exchange.body += b"0123456789"
    header("Content-Length", str(len(exchange.body)))(exchange)


CHANGES: dict[str, Change] = {
    "nothing": lambda exchange: None,
    "names in lower case": lower,
    "no ETag": without("ETag"),
    "an empty ETag": header("ETag", '""'),
    "an ETag without quotes": etag("X"),
    "a weak ETag": etag('W/"X"'),
    "another ETag": header("ETag", '"0123456789abcdef0123456789abcdef"'),
    "an ETag with more letters": etag('"Xa"'),
    "the same ETag twice": lambda exchange: again("ETag", value_of(exchange, "ETag"))(exchange),
    "another ETag, too": again("ETag", '"0123456789abcdef0123456789abcdef"'),
    "no Last-Modified": without("Last-Modified"),
    "another Last-Modified": header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
    "another Last-Modified, too": again("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
    "a storage class": header("X-Amz-Storage-Class", "GLACIER_IR"),
    "a restored object": header(
        "x-amz-restore", 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"'
    ),
    "two states of a restored object": lambda exchange: (
        again("x-amz-restore", 'ongoing-request="true"')(exchange),
        again("x-amz-restore", 'ongoing-request="false", expiry-date="X"')(exchange),
    )[0],
    "metadata": header("x-amz-meta-Mode", " 33188 "),
    "no Content-Range": without("Content-Range"),
    "another range": header("Content-Range", f"bytes {START + 1}-{STOP}/{len(BODY)}"),
    "another start": header("Content-Range", f"bytes {START - 1}-{STOP - 1}/{len(BODY)}"),
    "a range with zeros": header("Content-Range", f"bytes 0{START}-{STOP - 1}/{len(BODY)}"),
    "another size": header("Content-Range", f"bytes {START}-{STOP - 1}/{len(BODY) + 1}"),
    "an unknown size": header("Content-Range", f"bytes {START}-{STOP - 1}/*"),
    "a body that is too short": short,
    "a body that is too long": longer,
    "a CRC of the whole": checksum("FULL_OBJECT"),
    "a CRC of the part": checksum("COMPOSITE"),
    "a CRC of the part, in small letters": checksum("composite"),
    "a wrong CRC of the part": checksum("COMPOSITE", wrong=True),
    "a wrong CRC of the whole": checksum("FULL_OBJECT", wrong=True),
    "a wrong CRC without a type": checksum(None, wrong=True),
    "a CRC of an unknown type": checksum("OTHER", wrong=True),
    "a CRC that is no Base64": checksum("COMPOSITE", form="!!!!"),
    "a CRC with digits left": checksum("COMPOSITE", form="AAAAAB=="),
    "a CRC of parts": checksum("COMPOSITE", wrong=True, form="X-1"),
    "a wrong CRC32C as well": lambda exchange: (
        checksum("COMPOSITE")(exchange),
        again("x-amz-checksum-crc32c", "AAAAAA==")(exchange),
    )[0],
    "a checksum of an unknown name": checksum("COMPOSITE", "crc16"),
    "a wrong SHA-256": header("x-amz-checksum-sha256", base64.b64encode(bytes(32)).decode()),
}


@pytest.fixture(scope="module")
def proxy(flat_store: Store) -> Iterator[FaultyProxy]:
    """A proxy before ministack."""
    with FaultyProxy(flat_store.endpoint_url) as it:
        yield it


@pytest.fixture(scope="module")
def clients(flat_store: Store, proxy: FaultyProxy) -> Iterator[dict[str, CrtClient]]:
    """A client for each plane; the one called "direct" sends its GETs past the S3 client."""
    host = urlsplit(proxy.url).netloc
    endpoint = Endpoint("http", host, f"/{flat_store.bucket}", "us-east-1", "s3", "v4")
    made = {
        name: CrtClient(
            endpoint,
            None,
            ClientConfig(native=name != "python"),
            counters=Counters(),
            proxied=name != "direct",
        )
        for name in ("native", "python", "direct")
    }
    assert made["native"].data_plane == "native"
    yield made
    for each in made.values():
        each.close()


def open_connection(client: CrtClient, proxy: FaultyProxy, version: ObjectInfo) -> None:
    """Open a connection for the next GET, which the last answer may have closed."""
    proxy.faults.clear()
    native = client._native
    assert native is not None
    limit_s = time.monotonic() + SAFE_S
    while True:
        outcome(client, version, 0, 1)  # finds connections that were closed
        if native._connections.count:
            break
        assert time.monotonic() < limit_s
        time.sleep(0.01)


def outcome(client: CrtClient, version: ObjectInfo, start: int, stop: int) -> Outcome:
    """Return the bytes, or the error as a reader sees it; and what was counted."""
    before = client.counters.snapshot()
    part = Part(start, stop, version.etag)
    part.attach(client.get(version, start, stop, part))
    assert part.wait(SAFE_S)
    while not part.finished:
        time.sleep(0.001)
    after = client.counters.snapshot()
    names = ("gets", "bytes_asked", "checksums_verified", "checksums_absent")
    counted = [after[name] - before[name] for name in names]
    if part.ready:
        assert part.info is not None
        return bytes(part.data), part.info, part.info.metadata, counted
    error = part.error
    assert isinstance(error, S3Error)
    return type(error), str(error), error.status, error.code, bool(error.request_id), counted[:2]


def alike(direct: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are alike: the S3 client judges some answers itself, and says less."""
    if isinstance(other[0], bytes) or isinstance(direct[0], bytes):
        return direct == other
    return direct[0] in (other[0], BadAnswer) and direct[-1] == other[-1]


@pytest.mark.parametrize("whole", [False, True], ids=["range", "whole"])
@pytest.mark.parametrize("change", CHANGES)
def test_answers(
    clients: dict[str, CrtClient], flat_store: Store, proxy: FaultyProxy, change: str, whole: bool
) -> None:
    """A changed answer has the same outcome on both planes."""
    put = flat_store.client().put_object(Bucket=flat_store.bucket, Key="planes/answer", Body=BODY)
    version = ObjectInfo(b"planes/answer", len(BODY), 0, put["ETag"])
    start, stop = (0, len(BODY)) if whole else (START, STOP)

    def fault(exchange: Exchange) -> None:
        if exchange.is_data:
            CHANGES[change](exchange)

    open_connection(clients["direct"], proxy, version)
    proxy.faults[:] = [fault]
    outcomes = {name: outcome(each, version, start, stop) for name, each in clients.items()}
    assert outcomes["native"] == outcomes["python"]
    assert alike(outcomes["direct"], outcomes["python"])


def test_a_refusal_is_counted_even_if_the_part_is_given_up(
    flat_store: Store, proxy: FaultyProxy
) -> None:
    """A reader gives a failed part up at once; its failure counts, by status, on both planes."""
    host = urlsplit(proxy.url).netloc
    endpoint = Endpoint("http", host, f"/{flat_store.bucket}", "us-east-1", "s3", "v4")
    proxy.faults[:] = [lambda exchange: exchange.refuse(503, "SlowDown")]
    for native in (True, False):
        meters = Meters()
        config = ClientConfig(native=native)
        client = CrtClient(endpoint, None, config, counters=Counters(), meters=meters)
        part = Part(START, STOP, '"0123456789abcdef0123456789abcdef"')
        version = ObjectInfo(b"planes/answer", len(BODY), 0, part.etag)
        part.attach(client.get(version, START, STOP, part))
        assert part.wait(SAFE_S)
        part.cancel()
        while not part.finished:
            time.sleep(0.001)
        assert meters.requests["GetObject"].failures == {503: 1}
        client.close()


@pytest.mark.parametrize("status", [301, 400, 403, 404, 412, 416, 500, 503])
def test_refusals(
    clients: dict[str, CrtClient], flat_store: Store, proxy: FaultyProxy, status: int
) -> None:
    """A refusal is the same error on both planes, with status, code and request id."""
    put = flat_store.client().put_object(Bucket=flat_store.bucket, Key="planes/answer", Body=BODY)
    version = ObjectInfo(b"planes/answer", len(BODY), 0, put["ETag"])

    def fault(exchange: Exchange) -> None:
        exchange.status = status
        exchange.body = b"<Error><Code>Odd</Code><RequestId>Q7</RequestId></Error>"
        exchange.headers[:] = [("Content-Length", str(len(exchange.body)))]

    open_connection(clients["direct"], proxy, version)
    proxy.faults[:] = [fault]
    outcomes = {name: outcome(each, version, START, STOP) for name, each in clients.items()}
    assert outcomes["native"] == outcomes["python"]
    assert alike(outcomes["direct"], outcomes["python"])
