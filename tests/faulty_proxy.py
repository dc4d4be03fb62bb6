"""An HTTP proxy in front of a real S3 server. It causes faults that a real server cannot cause.

Use `with FaultyProxy(store.endpoint_url) as proxy:` and `proxy.faults.append(fault)`. A fault
gets each exchange and may replace or damage the server's answer. Without faults the proxy passes
everything on, including the Host header, so that signatures stay valid. With `tls` it speaks TLS to
its clients. The faults in `proxy.before` get a request before its body is read and before the
server gets it. If such a fault answers or cuts the connection, the server gets nothing.

It supports only a small part of HTTP: one request, one answer, with Content-Length or in chunks.
"""

import contextlib
import http.client
import http.server
import socket
import socketserver
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 64 << 10
#: Pause between two bodies of an endless answer.
PAUSE_S = 0.02


@dataclass
class Exchange:
    """A request and its answer; a fault changes the answer.

    `cut_at` closes the connection after this many bytes of the body. `delay_s` is a pause before
    the headers. `stall_at` stops before this byte of the body until the proxy ends. `lost` closes
    the connection without an answer. `endless` repeats the body until the client closes the
    connection; the headers must allow that. `chunked` sends the body in chunks, without its length;
    with `unended` the last chunk is missing, and the connection stays open. `headers_at` stops
    after this many bytes of status and headers. `drip_s` is a pause before each byte of the answer.
    With `reset` the connection ends by a reset (RST) where it would be closed.
    In all these cases the server has carried out the request, except for faults in `before`. These
    may also set `taken`, which closes the connection after this many bytes of the request, and
    `flipped`, which changes a bit of its body.
    """

    method: str
    target: str
    request_headers: dict[str, str]
    request_body: bytes = b""
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    cut_at: int | None = None
    stall_at: int | None = None
    delay_s: float = 0.0
    lost: bool = False
    endless: bool = False
    chunked: bool = False
    unended: bool = False
    headers_at: int | None = None
    drip_s: float = 0.0
    reset: bool = False
    taken: int | None = None
    flipped: bool = False

    @property
    def body_size(self) -> int:
        """The size of the request's body."""
        for name, value in self.request_headers.items():
            if name.lower() == "content-length":
                return int(value)
        return 0

    def header(self, name: str) -> str | None:
        """Return a header of the request; its case does not matter."""
        found = {key.lower(): value for key, value in self.request_headers.items()}
        return found.get(name.lower())

    @property
    def is_write(self) -> bool:
        """Whether the request would change the bucket."""
        return self.method in ("PUT", "POST", "DELETE")

    @property
    def begins_upload(self) -> bool:
        """Whether it is a CreateMultipartUpload."""
        return self.method == "POST" and "uploadId=" not in self.target

    @property
    def is_data(self) -> bool:
        """Whether it is a GET of an object."""
        return self.method == "GET" and "list-type=2" not in self.target

    @property
    def is_list(self) -> bool:
        """Whether it is a ListObjectsV2."""
        return self.method == "GET" and "list-type=2" in self.target

    def drop_header(self, name: str) -> None:
        """Remove a header from the answer."""
        self.headers = [each for each in self.headers if each[0].lower() != name]

    def refuse(self, status: int, code: str) -> None:
        """Answer with an S3 error."""
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()
        self.headers = [
            ("Content-Type", "application/xml"),
            ("Content-Length", str(len(self.body))),
            ("x-amz-request-id", "FAULT0000000001"),
        ]
        if self.method == "HEAD":
            self.body = b""


Fault = Callable[[Exchange], None]


class FaultyProxy:
    """The proxy. Its faults see each exchange after the server has answered it."""

    def __init__(
        self, upstream_url: str, tls: ssl.SSLContext | None = None, *, port: int = 0
    ) -> None:
        self._upstream = urlsplit(upstream_url)
        self.faults: list[Fault] = []
        self.before: list[Fault] = []
        self.accepted = 0  # connections, so far
        self._connections: set[socket.socket] = set()
        self._cut: set[socket.socket] = set()  # by cut_all; still being served
        self._reset: set[socket.socket] = set()  # to be closed with a reset
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by path
        self.seen: list[tuple[str, str]] = []  # method and target of every request
        self._stopping = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.accepted += 1
                proxy._connections.add(self.connection)

            def finish(self) -> None:
                proxy._connections.discard(self.connection)
                proxy._cut.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                proxy._serve(self)

            # The names are those of http.server.
            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def shutdown_request(self, request: object) -> None:
                assert isinstance(request, socket.socket)
                if request in proxy._reset:
                    proxy._reset.discard(request)
                    # With a linger time of 0 s, and no shutdown before it, close() sends a reset.
                    request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_request(request)
                else:
                    super().shutdown_request(request)

            def handle_error(self, *_: object) -> None:
                pass  # the client has closed the connection, as clients of faulty servers do

        self._server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            # The handshake belongs to the connection's own thread, at its first read.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if tls is None else "https"
        self.port = self._server.server_port
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def cut_all(self) -> None:
        """Close all connections, with all requests in progress on them."""
        for connection in list(self._connections):
            self._cut.add(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if self._stopping.is_set():  # on a connection that was already open
            handler.close_connection = True
            return
        exchange = Exchange(handler.command, handler.path, dict(handler.headers.items()))
        self.seen.append((exchange.method, exchange.target))
        for fault in list(self.before):
            fault(exchange)
        size = exchange.body_size
        taken = size if exchange.taken is None else min(exchange.taken, size)
        exchange.request_body = handler.rfile.read(taken)
        if exchange.taken is not None or len(exchange.request_body) < size:
            handler.close_connection = True
            return
        if exchange.flipped and exchange.request_body:
            exchange.request_body = with_a_bit_flipped(exchange.request_body)
        if not exchange.status:
            with self._turn_of(exchange):
                if handler.connection in self._cut:
                    handler.close_connection = True
                    return
                self._ask_upstream(exchange)
            for fault in list(self.faults):
                fault(exchange)
        self._answer(handler, exchange)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, exchange: Exchange) -> None:
        if exchange.reset:
            self._reset.add(handler.connection)
        self._stopping.wait(exchange.delay_s)
        if exchange.lost:
            handler.close_connection = True
            return
        if exchange.chunked:
            exchange.drop_header("content-length")
            exchange.headers.append(("Transfer-Encoding", "chunked"))
            if exchange.method != "HEAD":
                exchange.body = in_chunks(exchange.body, ended=not exchange.unended)
        head = head_of(exchange)
        body = memoryview(exchange.body)
        if exchange.headers_at is not None:
            self._stall(handler, head[: exchange.headers_at])
        elif exchange.drip_s:
            for byte in head + exchange.body:
                if self._stopping.wait(exchange.drip_s):
                    break
                handler.wfile.write(bytes([byte]))
            handler.close_connection = True
        elif exchange.stall_at is not None:
            self._stall(handler, head + body[: exchange.stall_at])
        elif exchange.unended:
            self._stall(handler, head + body)
        elif exchange.endless:
            handler.wfile.write(head)
            while not self._stopping.wait(PAUSE_S):
                handler.wfile.write(body)
        elif exchange.cut_at is not None:
            handler.wfile.write(head + body[: exchange.cut_at])
            handler.close_connection = True
        else:
            handler.wfile.write(head)
            handler.wfile.write(body)

    def _stall(self, handler: http.server.BaseHTTPRequestHandler, sent: bytes) -> None:
        """Send this much of the answer, and nothing more until the proxy ends."""
        handler.wfile.write(sent)
        self._stopping.wait()
        handler.close_connection = True

    def _turn_of(self, exchange: Exchange) -> contextlib.AbstractContextManager[object]:
        """Return the lock that a request holds while the server works on it.

        Writes to one object arrive in the order in which they were sent. A network forgets a
        connection's bytes when the connection ends, but a thread of this proxy might not: after its
        connection was cut, it could deliver a request after the one that replaced it, or even after
        the next version of the object.
        """
        if not exchange.is_write or "partNumber=" in exchange.target:
            return contextlib.nullcontext()
        path, _, _ = exchange.target.partition("?")
        return self._writing[path]

    def _ask_upstream(self, exchange: Exchange) -> None:
        assert self._upstream.hostname is not None
        connection = http.client.HTTPConnection(
            self._upstream.hostname, self._upstream.port, timeout=30
        )
        try:
            connection.putrequest(
                exchange.method, exchange.target, skip_host=True, skip_accept_encoding=True
            )
            for name, value in exchange.request_headers.items():
                connection.putheader(name, value)
            connection.endheaders(exchange.request_body or None)
            answer = connection.getresponse()
            exchange.status = answer.status
            exchange.headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding")
            ]
            exchange.body = answer.read()
            if not any(name.lower() == "content-length" for name, _ in exchange.headers):
                exchange.headers.append(("Content-Length", str(len(exchange.body))))
        finally:
            connection.close()


def head_of(exchange: Exchange) -> bytes:
    """Return the status line and the headers of an answer."""
    lines = [f"HTTP/1.1 {exchange.status} {http.client.responses.get(exchange.status, '')}"]
    lines += [f"{name}: {value}" for name, value in exchange.headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def in_chunks(body: bytes, *, ended: bool = True) -> bytes:
    """Return a body in the form of `Transfer-Encoding: chunked`, with or without its end."""
    chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    last = [b""] if ended else []
    framed = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks + last]
    return b"".join(framed)


def with_a_bit_flipped(body: bytes) -> bytes:
    """Return a body with one changed bit in its middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 16]) + body[middle + 1 :]


def flip_bit(exchange: Exchange) -> None:
    """Change one bit in the middle of the body, as bad memory or a bad network card does."""
    exchange.body = with_a_bit_flipped(exchange.body)


def times(count: int, fault: Fault) -> Fault:
    """Return `fault`, but only for the first `count` exchanges that it gets."""
    lock = threading.Lock()
    left = count

    def limited(exchange: Exchange) -> None:
        nonlocal left
        with lock:
            if left <= 0:
                return
            left -= 1
        fault(exchange)

    return limited


def on_data(fault: Fault) -> Fault:
    """Return `fault`, but only for GETs of objects."""

    def filtered(exchange: Exchange) -> None:
        if exchange.is_data:
            fault(exchange)

    return filtered


def on_lists(fault: Fault) -> Fault:
    """Return `fault`, but only for listings."""

    def filtered(exchange: Exchange) -> None:
        if exchange.is_list:
            fault(exchange)

    return filtered


def refuse(status: int, code: str) -> Fault:
    """Return the fault that answers with an S3 error."""
    return lambda exchange: exchange.refuse(status, code)
