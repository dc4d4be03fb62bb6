"""A server of one object that answers wrongly, slowly, or not at all, and a client for it."""

import gc
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mountpoint.config import ClientConfig
from mountpoint.metrics.counters import Counters
from mountpoint.native import _blocks
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.crt.native import symbols

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
ETAG = '"0123456789abcdef0123456789abcdef"'
DATA = os.urandom(1 << 20)
VERSION = ObjectInfo(b"key", len(DATA), 0, ETAG)


def _why_not() -> str:
    try:
        symbols.addresses()
    except symbols.Unavailable as error:
        return str(error)
    return ""


#: A mark for tests of the native plane.
needs_native_plane = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "available")


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
    """Answers each request with `fault`, and waits in the middle of it unless `go` is set."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault = "right"
        self.random: random.Random | None = None  # else a fault by chance
        self.go = threading.Event()
        self.go.set()
        self.requests: list[bytes] = []
        self.connections: set[socket.socket] = set()  # that are open
        self.accepted = 0
        self.sent_bytes = 0  # of bodies, about
        self.hangs_up = False  # at once
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.go.set()
        self.stop_listening()

    def stop_listening(self) -> None:
        """Refuse new connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()

    @property
    def asked(self) -> int:
        return len(self.requests)

    def hang_up(self) -> None:
        """Close all connections."""
        for connection in self.connections.copy():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                if self.hangs_up:
                    connection.close()
                    continue
                self.connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        connection = accepted
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(accepted, server_side=True)
                self.connections.add(connection)
            self._answer_all(connection)
        except OSError:
            pass
        finally:
            connection.close()
            accepted.close()
            self.connections -= {accepted, connection}

    def _answer_all(self, connection: socket.socket) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                more = connection.recv(4096)
                if not more:
                    return
                received += more
            request, _, received = received.partition(b"\r\n\r\n")
            self.requests.append(request)
            fault = self.random.choice((*RIGHT * 4, *WRONG)) if self.random else self.fault
            if not self._answer(connection, request, fault):
                return

    def _answer(self, connection: socket.socket, request: bytes, fault: str) -> bool:
        """Answer; return whether the connection goes on."""
        if fault == "none":  # once
            self.fault = "right"
            return False
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
        elif fault == "trailers":
            extras = b"".join(b"x-amz-meta-%d: %s\r\n" % (n, b"v" * 900) for n in range(60))
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%s\r\n0\r\nETag: other\r\n%s\r\n" % (len(body), body, extras)
        elif fault in ("no length", "endless"):
            head += "Connection: close\r\n"
        else:
            head += f"Content-Length: {len(body)}\r\n"
        connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode())
        if fault == "endless":
            while True:
                connection.sendall(bytes(1 << 16))
                self.sent_bytes += 1 << 16
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


@contextmanager
def connected(
    server: Server, endpoint: Endpoint | None = None, **options: Any
) -> Iterator[CrtClient]:
    """Make a client; at the end it holds no block. `options`: see ClientConfig and CrtClient."""
    gc.collect()
    used = _blocks.held_bytes()[0]
    endpoint = endpoint or Endpoint("http", server.host, "/bucket", "us-east-1", "s3", "v4")
    credentials = options.pop("credentials", None)
    proxied = options.pop("proxied", False)
    config = ClientConfig(**options)
    client = CrtClient(endpoint, credentials, config, counters=Counters(), proxied=proxied)
    assert client.data_plane == "native"
    yield client
    client.close()
    server.go.set()
    limit_s = time.monotonic() + SAFE_S
    while _blocks.held_bytes()[0] > used and time.monotonic() < limit_s:
        time.sleep(0.02)
        gc.collect()
    assert _blocks.held_bytes()[0] == used
