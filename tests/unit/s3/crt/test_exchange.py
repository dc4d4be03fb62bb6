"""GETs over the CRT from a server on loopback: their headers, and answers that are rejected."""

import base64
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mountpoint.config import ClientConfig
from mountpoint.errors import BadAnswer, ChecksumMismatch, PreconditionFailed, S3Error, Unusable
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
DATA = b"some bytes of an object"
ETAG = '"0123456789abcdef0123456789abcdef"'
MODIFIED = "Wed, 01 May 2024 10:11:12 GMT"


@dataclass
class OneObject:
    """A server with one object, and its behaviour. `asked` has the headers of each GET."""

    etag: str = ETAG
    checksum_of: bytes | None = None  # the body whose CRC32 it sends
    ignores_range: bool = False
    shift: int = 0  # it sends a range that begins this much later
    host: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def answer(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to a GET."""
        self.asked.append(headers)
        if headers.get("if-match", self.etag) != self.etag:
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        told = {"ETag": self.etag, "Last-Modified": MODIFIED}
        if self.checksum_of is not None and "x-amz-checksum-mode" in headers:
            digest = zlib.crc32(self.checksum_of).to_bytes(4, "big")
            told["x-amz-checksum-crc32"] = base64.b64encode(digest).decode()
            told["x-amz-checksum-type"] = "FULL_OBJECT"
        if self.ignores_range or "range" not in headers:
            return 200, told, DATA
        first, last = headers["range"].removeprefix("bytes=").split("-")
        start, stop = int(first) + self.shift, int(last) + 1
        told["Content-Range"] = f"bytes {start}-{stop - 1}/{len(DATA)}"
        return 206, told, DATA[start:stop]


class Sink:
    """Receives one answer."""

    def __init__(self) -> None:
        self.info: ObjectInfo | None = None
        self.body = b""
        self.error: Exception | None = None
        self._ended = threading.Event()

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink."""
        self.info = info

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink."""
        self.body += chunk

    def finish(self, error: Exception | None) -> None:
        """See BodySink."""
        self.error = error
        self._ended.set()

    def end(self) -> "Sink":
        """Wait for the end."""
        assert self._ended.wait(SAFE_S)
        return self


@contextmanager
def served(store: OneObject) -> Iterator[OneObject]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            status, headers, body = store.answer(asked)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # connections that the client keeps open
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        store.host = f"127.0.0.1:{server.server_port}"
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def store() -> Iterator[OneObject]:
    """A server that behaves like S3."""
    with served(OneObject()) as made:
        yield made


@contextmanager
def connected(store: OneObject) -> Iterator[CrtClient]:
    """Create a client that does not sign."""
    endpoint = Endpoint("http", store.host, "/bucket", "us-east-1", "s3", "v4", False, False)
    client = CrtClient(endpoint, None, ClientConfig(), counters=Counters())
    yield client
    client.close()


def get(client: CrtClient, start: int = 0, stop: int = len(DATA), etag: str = ETAG) -> Sink:
    """GET a range of this version."""
    sink = Sink()
    client.get(ObjectInfo(b"key", len(DATA), 0, etag), start, stop, sink)
    return sink.end()


def test_a_get_names_version_and_range(store: OneObject) -> None:
    """Each GET has If-Match, so a replaced object delivers nothing."""
    with connected(store) as client:
        part, whole = get(client, 5, 10), get(client)
        assert (part.body, part.error) == (DATA[5:10], None)
        assert (whole.body, whole.error) == (DATA, None)
        assert [each.get("if-match") for each in store.asked] == [ETAG, ETAG]
        assert store.asked[0]["range"] == "bytes=5-9"
        store.etag = '"another"'
        for replaced in (get(client, 5, 10), get(client)):
            assert type(replaced.error) is PreconditionFailed
            assert replaced.body == b""
            assert replaced.info is None


def test_a_store_whose_if_match_does_not_hold_is_not_asked_for_it(store: OneObject) -> None:
    """If the store's If-Match does not work, the part compares the ETag of the answer instead."""
    with connected(store) as client:
        client.capabilities.matches = False
        assert get(client, 5, 10).body == DATA[5:10]
    assert "if-match" not in store.asked[0]


@pytest.mark.parametrize("right", [True, False])
def test_a_body_is_compared_with_its_checksum(store: OneObject, right: bool) -> None:
    """A body that does not match its checksum is an error, and is not counted as verified."""
    store.checksum_of = DATA if right else DATA[::-1]
    with connected(store) as client:
        sink = get(client)
        counted = client.counters.snapshot()
    assert type(sink.error) is (type(None) if right else ChecksumMismatch)
    assert counted["checksums_verified"] == right
    assert counted["checksums_absent"] == 0


@pytest.mark.parametrize(
    ("store", "error"),
    [(OneObject(ignores_range=True), Unusable), (OneObject(shift=1), BadAnswer)],
    ids=["all of it", "another range"],
)
def test_another_range_than_asked_is_an_error(store: OneObject, error: type[S3Error]) -> None:
    """An answer with other bytes never reaches the sink."""
    with served(store), connected(store) as client:
        sink = get(client, 5, 10)
    assert type(sink.error) is error
    assert sink.body == b""
