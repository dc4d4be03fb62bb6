"""Small GETs are sent on connections of their own.

Reads get exactly their bytes, or none, and then the connection is not used again.
"""

import datetime
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mountpoint._fastpath import Part
from mountpoint.config import CredentialsConfig
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.crt.native import connections, plane
from mountpoint.s3.crt.native.plane import NativePlane
from tests.signatures import Authorization, signature
from tests.unit import waiting
from tests.unit.native.building import probe
from tests.unit.s3.crt.native.faulty_server import (
    DATA,
    RIGHT,
    SAFE_S,
    VERSION,
    WRONG,
    Server,
    connected,
    needs_native_plane,
)

pytestmark = needs_native_plane

#: The S3 client adds this to User-Agent.
BY_CLIENT = b"CRTS3NativeClient"


def read(client: CrtClient, start: int, size: int = 100, *, late_s: float = SAFE_S) -> bytes | None:
    """Read as a lane does; None if no bytes arrive in time."""
    source = client.lane_source(VERSION)
    assert source is not None
    data: bytes | None = probe().fetch(source, start, start + size, late_s)
    return data


def plane_of(client: CrtClient) -> NativePlane:
    assert client._native is not None
    return client._native


def opened(client: CrtClient) -> int:
    """Return how many connections are open."""
    return plane_of(client)._connections.count


def paused(client: CrtClient) -> bool:
    """Whether no more connections are opened for a while."""
    return plane_of(client)._opener._next_try_s > 0


def open_one(client: CrtClient) -> None:
    """Open a connection: the first read goes through the S3 client."""
    assert read(client, 1000) == DATA[1000:1100]
    until(lambda: opened(client) == 1)


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    waiting.until(condition, SAFE_S)


def direct(server: Server) -> list[bool]:
    """Return for each request whether it went past the S3 client."""
    return [BY_CLIENT not in request for request in server.requests]


def test_past_the_s3_client(server: Server) -> None:
    """The first read opens a connection, and later ones use it."""
    with connected(server) as client:
        open_one(client)
        for place in (5_000, 700_000, len(DATA) - 100):
            assert read(client, place) == DATA[place : place + 100]
        assert direct(server) == [False, True, True, True]
        assert len(server.connections) == 2
        assert opened(client) == 1


def test_requests_have_the_same_headers(server: Server) -> None:
    """On both ways a GET has the same headers, except for what the S3 client says of itself."""
    with connected(server, user_agent_prefix="mine") as client:
        open_one(client)
        assert read(client, 1000) is not None
    texts = [re.sub(rb" *CRTS3NativeClient\S* *[^\r]*", b"", each) for each in server.requests]
    first, second = ({line.strip().lower() for line in text.split(b"\r\n")} for text in texts)
    assert first == second
    assert b"if-match: " + VERSION.etag.encode() in second


@pytest.mark.parametrize("size", [100, 300_000, len(DATA)])
@pytest.mark.parametrize("fault", [*RIGHT, *WRONG])
def test_answers(server: Server, fault: str, size: int) -> None:
    """A read gets exactly its bytes or none, and the next one is right."""
    with connected(server) as client:
        open_one(client)
        server.fault = fault
        place = 0 if size == len(DATA) else 5_000
        data = read(client, place, size)
        assert direct(server)[1]
        unseen = size == len(DATA) and fault in ("moved", "size")  # there is no Content-Range
        assert (data is not None) == (fault in RIGHT or unseen)
        assert data is None or data == DATA[place : place + size]
        server.fault = "right"
        assert read(client, 9_000) == DATA[9_000:9_100]


def test_an_endless_body(server: Server) -> None:
    """A body that is too long is not received to its end."""
    with connected(server) as client:
        open_one(client)
        server.fault = "endless"
        assert read(client, 5_000) is None
        until(lambda: opened(client) == 0)
        until(lambda: len(server.connections) <= 1)
        assert server.sent_bytes < 64 << 20
        server.fault = "right"
        assert read(client, 9_000) == DATA[9_000:9_100]


def test_headers_after_the_body(server: Server) -> None:
    """They do not change what Python may be reading."""
    with connected(server) as client:
        open_one(client)
        for fault in ("right", "trailers"):
            server.fault = fault
            part = Part(5_000, 5_100, VERSION.etag)
            part.attach(client.get(VERSION, 5_000, 5_100, part))
            assert part.wait(SAFE_S)
            assert part.ready
            assert part.info is not None
            assert part.info.metadata == {}
        assert direct(server) == [False, True, True]


def test_a_dead_connection(server: Server) -> None:
    """A read whose connection has ended without an answer is sent once more, by the S3 client."""
    with connected(server) as client:
        open_one(client)
        server.fault = "none"
        assert read(client, 5_000) == DATA[5_000:5_100]
        assert direct(server) == [False, True, False]


def test_a_store_that_hangs_up(server: Server) -> None:
    """Connections that are closed before they bring anything are not opened again and again."""
    with connected(server) as client:
        open_one(client)
        server.hangs_up = True
        server.hang_up()
        until(lambda: not server.connections)
        time.sleep(0.05)
        for _ in range(20):
            read(client, 5_000, late_s=0.2)
        until(lambda: paused(client))
        accepted = server.accepted
        time.sleep(2 * plane.LOOK_S)
        assert server.accepted == accepted


def test_no_certificates(server: Server) -> None:
    """If a connection cannot be begun, the S3 client gets the GETs, and they are counted."""
    with connected(server) as client:

        def fail() -> None:
            raise OSError("no certificates")

        plane_of(client)._opener._connect = fail  # type: ignore[assignment]
        assert read(client, 5_000) == DATA[5_000:5_100]
        until(lambda: paused(client))
        assert read(client, 6_000) == DATA[6_000:6_100]
        until(lambda: client.counters.snapshot()["gets"] == 2)
        thread = plane_of(client)._thread
        assert thread is not None
        assert thread.is_alive()


def test_late(server: Server) -> None:
    """A read that gives up closes its connection: bytes that come later are nobody's."""
    with connected(server) as client:
        open_one(client)
        server.go.clear()
        assert read(client, 5_000, 300_000, late_s=0.05) is None
        until(lambda: opened(client) == 0)
        server.go.set()
        assert read(client, 5_000, 300_000) == DATA[5_000:305_000]
        assert direct(server)[:2] == [False, True]


def test_closed_while_idle(server: Server) -> None:
    """A connection that the store has closed is replaced."""
    with connected(server) as client:
        open_one(client)
        assert read(client, 5_000) == DATA[5_000:5_100]
        server.hang_up()
        until(lambda: not server.connections)
        time.sleep(0.05)  # the client learns of it
        for _ in range(20):
            assert read(client, 5_000) == DATA[5_000:5_100]
        until(lambda: opened(client) == 1)
        assert read(client, 6_000) == DATA[6_000:6_100]
        assert direct(server)[-1]


def test_idle_for_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that nobody needs is closed."""
    with connected(server) as client:
        open_one(client)
        monkeypatch.setattr(connections, "MAX_IDLE_S", 0.0)
        until(lambda: opened(client) == 0)
        monkeypatch.setattr(connections, "MAX_IDLE_S", 20.0)
        open_one(client)


def test_as_many_as_reads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many connections as reads at the same time, up to a limit."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 6)
    with connected(server) as client, ThreadPoolExecutor(12) as threads:

        def read_at_once(readers: int) -> None:
            server.go.clear()
            asked = server.asked + readers
            reads = [threads.submit(read, client, 1000 * n, 50_000) for n in range(readers)]
            until(lambda: server.asked >= asked)
            server.go.set()
            for n, each in enumerate(reads):
                assert each.result(SAFE_S) == DATA[1000 * n : 1000 * n + 50_000]

        read_at_once(4)
        until(lambda: opened(client) == 4)
        read_at_once(12)
        until(lambda: opened(client) == 6)


def test_none_where_they_do_not_lead(server: Server) -> None:
    """With a proxy or with sessions, the S3 client alone knows the way."""
    sessions = Endpoint("http", server.host, "/bucket", "us-east-1", "s3", "v4-s3express")
    for endpoint, options in ((None, {"proxied": True}), (sessions, {})):
        with connected(server, endpoint, **options) as client:
            for _ in range(3):
                assert read(client, 5_000) == DATA[5_000:5_100]
            assert not any(direct(server))
            assert opened(client) == 0


def test_nothing_listens(server: Server) -> None:
    """A store that cannot be reached is not asked for a connection again and again."""
    with connected(server) as client:
        open_one(client)
        server.stop_listening()
        server.hang_up()
        until(lambda: not server.connections)
        time.sleep(0.05)
        for _ in range(3):
            assert read(client, 5_000, late_s=1.0) is None
        until(lambda: paused(client))


def test_the_end(server: Server) -> None:
    """A client that is closed closes its connections, also one that is in use."""
    with connected(server) as client:
        open_one(client)
        server.go.clear()
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(read, client, 5_000, 300_000)
            until(lambda: server.asked == 2)
            client.close()
            server.go.set()
            assert reading.result(SAFE_S) == DATA[5_000:305_000]
        native = plane_of(client)
        until(lambda: native._connections.count == 0)
        thread = native._thread
        assert thread is not None
        thread.join(SAFE_S)
        accepted = server.accepted
        native._opener.open_missing()
        assert not native._opener._opening
        assert server.accepted == accepted


def test_signatures(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GET is signed when it is sent, as botocore would sign it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    credentials = Credentials(CredentialsConfig())
    with connected(server, credentials=credentials) as client:
        open_one(client)
        begun = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        assert read(client, 5_000) == DATA[5_000:5_100]
    assert direct(server) == [False, True]
    target, *lines = server.requests[-1].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    stamp = headers["x-amz-date"]
    sent = datetime.datetime.strptime(stamp + "+0000", "%Y%m%dT%H%M%SZ%z")
    assert 0 <= (sent - begun).total_seconds() < SAFE_S
    assert headers["x-amz-security-token"] == "token"
    authorization = Authorization.parse(headers["authorization"])
    assert {"host", "if-match", "range"} <= set(authorization.signed)
    signed = {name: headers[name] for name in authorization.signed}
    url = f"http://{server.host}{target.split()[1]}"
    expected = signature("GET", url, signed, authorization.scope, "secret")
    assert authorization.signature == expected


def test_a_storm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads by many threads get their own bytes, while connections are closed under them."""
    monkeypatch.setattr(connections, "PAUSE_S", 0.0)
    stop = threading.Event()

    def hang_up() -> None:
        while not stop.wait(0.02):
            server.hang_up()

    def reads(number: int) -> int:
        found = 0
        for n in range(100):
            place = (number * 7919 + n * 104_729) % (len(DATA) - 20_000)
            data = read(client, place, 20_000, late_s=5.0)
            assert data is None or data == DATA[place : place + 20_000]
            found += data is not None
        return found

    with connected(server) as client, ThreadPoolExecutor(9) as threads:
        threads.submit(hang_up)
        try:
            assert sum(threads.map(reads, range(8))) > 400
        finally:
            stop.set()
        assert sum(direct(server)) > 100
