"""GETs on the native plane from a server that answers wrongly, slowly, or not at all.

A part is ready with exactly its bytes, or has failed. No answer writes outside of a block, and none
keeps one: `make asan` runs these tests with a sanitizer.
"""

import gc
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from mountpoint._fastpath import Part, PartMap
from mountpoint.config import ClientConfig
from mountpoint.errors import Interrupted, OperationError, TransportFault
from mountpoint.metrics.counters import Counters
from mountpoint.native import _blocks
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.crt.native import symbols
from tests.soak import seeds
from tests.unit.native.building import probe

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
KIB = 1024
ETAG = '"0123456789abcdef0123456789abcdef"'
#: Blocks of parts this large count as held; those of 10 KiB come from malloc.
SIZES = (10 * KIB, 300 * KIB)
DATA = os.urandom(1 << 20)
VERSION = ObjectInfo(b"key", len(DATA), 0, ETAG)


def _why_not() -> str:
    try:
        symbols.addresses()
    except symbols.Unavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "available")

#: What a server may do. All but the first two are wrong.
RIGHT = ("right", "trickle")
WRONG = (
    "cut",  # the connection ends early
    "short",  # fewer bytes, as Content-Length says
    "long",  # more bytes, as Content-Length says
    "long chunked",
    "short chunked",
    "no length",  # more bytes, and the connection ends
    "version",
    "moved",  # another range
    "size",  # of an object of another size
    "many headers",
    "large refusal",
    "crc",
    "no headers",
)


class Server:
    """Answers each request on a connection by the next of `faults`, and waits while `held`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault = "right"
        self.random: random.Random | None = None  # else a fault by chance
        self.go = threading.Event()
        self.go.set()
        self.asked = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.go.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    more = connection.recv(4096)
                    if not more:
                        return
                    received += more
                request, _, received = received.partition(b"\r\n\r\n")
                self.asked += 1
                fault = self.random.choice((*RIGHT * 4, *WRONG)) if self.random else self.fault
                if not self._answer(connection, request, fault):
                    return

    def _answer(self, connection: socket.socket, request: bytes, fault: str) -> bool:
        """Answer; return whether the connection goes on."""
        found = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", request)
        start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, len(DATA))
        body = DATA[start:stop]
        etag, size = ETAG, len(DATA)
        extra = ""
        if fault == "version":
            body, etag = body[::-1], '"other"'
        elif fault == "moved":
            body, start, stop = DATA[: len(body)], start + 1, stop + 1
        elif fault == "size":
            size += 1
        elif fault == "short" or fault == "short chunked":
            body = body[:-1]
        elif fault in ("long", "long chunked", "no length"):
            body += os.urandom(100_000)
        elif fault == "many headers":
            extra = "".join(f"x-amz-meta-{n}: {'v' * 1000}\r\n" for n in range(100))
            body = body[::-1]
            etag = '"other"'
        elif fault == "crc":
            extra = "x-amz-checksum-crc32: AAAAAA==\r\n"
            extra += "x-amz-checksum-type: COMPOSITE\r\n" if found else ""
            body = body[::-1]
        status = "206 Partial Content" if found else "200 OK"
        head = f"ETag: {etag}\r\n{extra}"
        head += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n" if found else ""
        if fault == "large refusal":
            status, body, head = "503 Slow Down", b"<Error>" + bytes(200_000), ""
        elif fault == "no headers":
            head, body = "", body[::-1]
        if "chunked" in fault:
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif fault == "no length":
            head += "Connection: close\r\n"
        else:
            head += f"Content-Length: {len(body)}\r\n"
        connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode())
        half = len(body) // 2
        if fault == "cut":
            connection.sendall(body[:half])
            return False
        if fault == "trickle" or not self.go.is_set():
            connection.sendall(body[:half])
            self.go.wait(SAFE_S)
            time.sleep(0.001)
            body = body[half:]
        connection.sendall(body)
        return fault != "no length"


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()
    yield it
    it.close()


@contextmanager
def connected(server: Server) -> Iterator[CrtClient]:
    """Make a client; at the end it holds no block."""
    gc.collect()
    used = _blocks.held_bytes()[0]
    endpoint = Endpoint("http", server.host, "/bucket", "us-east-1", "s3", "v4")
    client = CrtClient(endpoint, None, ClientConfig(), counters=Counters())
    assert client.data_plane == "native"
    yield client
    client.close()
    server.go.set()
    limit_s = time.monotonic() + SAFE_S
    while _blocks.held_bytes()[0] > used and time.monotonic() < limit_s:
        time.sleep(0.02)
        gc.collect()
    assert _blocks.held_bytes()[0] == used


def send(client: CrtClient, start: int, stop: int) -> Part:
    part = Part(start, stop, ETAG)
    part.attach(client.get(VERSION, start, stop, part))
    return part


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", [*RIGHT, *WRONG])
def test_answers(server: Server, fault: str, size: int) -> None:
    """A part has exactly its bytes, or has failed."""
    server.fault = fault
    with connected(server) as client:
        parts = [send(client, start, start + size) for start in (0, 1234, len(DATA) - size)]
        parts.append(send(client, 0, len(DATA)))
        for part in parts:
            assert part.wait(SAFE_S)
            if part.ready:
                assert bytes(part.data) == DATA[part.start : part.stop]
            else:
                assert fault in WRONG
                assert isinstance(part.error, OperationError)
                assert part.data is None
        del parts, part


@pytest.mark.parametrize("fault", [*RIGHT, *WRONG])
def test_lane(server: Server, fault: str) -> None:
    """So has a read at a random place, which the lane fetches."""
    server.fault = fault
    with connected(server) as client:
        parts = PartMap(len(DATA))
        source = client.lane_source(VERSION)
        assert source is not None
        for place in (5_000, 500_000, len(DATA) - 10):
            parts.allow_random(source, [(250_000, 250_001), (800_000, 800_001)], 5, 60.0, SAFE_S)
            pieces, data, _ = probe().read(parts, place, 100)
            assert bool(pieces) == (fault in RIGHT)
            assert not pieces or data == DATA[place : place + 100]
        parts.take_random()


def test_cancelled_in_the_middle(server: Server) -> None:
    """The CRT may write into the memory of a cancelled part, which nobody else has then."""
    server.go.clear()
    with connected(server) as client:
        parts = [send(client, 0, 300 * KIB) for _ in range(8)]
        time.sleep(0.1)
        for part in parts:
            part.cancel()
            assert part.failed
        del parts, part
        blocks = [probe().filled(b"mine" * 75 * KIB) for _ in range(8)]
        server.go.set()
        time.sleep(0.1)
        for block in blocks:
            assert bytes(probe().block_view(block, 300 * KIB)) == b"mine" * 75 * KIB
            probe().block_release(block)


def test_closed_in_the_middle(server: Server) -> None:
    """A client that is closed interrupts all parts; the reads that wait wake."""
    server.go.clear()
    with connected(server) as client:
        parts = [send(client, 0, 300 * KIB) for _ in range(4)]
        threading.Timer(0.05, client.close).start()
        for part in parts:
            assert part.wait(SAFE_S)
            assert isinstance(part.error, Interrupted)


def test_without_memory(server: Server) -> None:
    """A part for which there is no memory fails, and can be tried again."""
    with connected(server) as client:
        client._part_bytes = 1 << 50  # no block is as large
        part = Part(0, 1 << 40, ETAG)
        part.attach(client.get(ObjectInfo(b"key", 1 << 41, 0, ETAG), 0, 1 << 40, part))
        assert part.wait(0)
        assert isinstance(part.error, TransportFault)
        assert part.error.retryable
    assert server.asked == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_many(server: Server, seed: int) -> None:
    """Threads that send, hedge and cancel at any moment, and answers of all kinds."""
    drawn = random.Random(seed)
    server.random = random.Random(seed + 1)
    with connected(server) as client:
        until_s = time.monotonic() + 2.0

        def work() -> None:
            while time.monotonic() < until_s:
                start = drawn.randrange(len(DATA) - SIZES[1])
                stop = start + drawn.choice(SIZES)
                part = send(client, start, stop)
                hedge = None
                if drawn.random() < 0.5:
                    hedge = Part(start, stop, ETAG)
                    hedge.serve(part)
                    hedge.attach(client.get(VERSION, start, stop, hedge))
                if drawn.random() < 0.3:
                    time.sleep(drawn.random() * 0.005)
                    part.cancel()
                elif not part.wait(SAFE_S):
                    wrong.append("a part hangs")
                if part.ready and bytes(part.data or b"") != DATA[start:stop]:
                    wrong.append(f"other bytes of [{start}, {stop})")
                if hedge is not None:
                    hedge.cancel()

        wrong: list[str] = []
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
