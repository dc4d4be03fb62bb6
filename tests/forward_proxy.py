"""An HTTP proxy as companies have one: it forwards http, and opens tunnels for https.

`with ForwardProxy() as proxy:` and then HTTP_PROXY or HTTPS_PROXY is `proxy.url`. `proxy.seen` has
each request's method, target and Proxy-Authorization. With `closed` it refuses all tunnels.
"""

import contextlib
import http.client
import http.server
import select
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """The proxy, on loopback."""

    def __init__(self, *, closed: bool = False) -> None:
        self.seen: list[tuple[str, str, str]] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                self._note()
                if closed:
                    self.send_error(403)
                    return
                name, _, port = self.path.rpartition(":")
                with socket.create_connection((name, int(port)), timeout=30) as there:
                    self.send_response_only(200)
                    self.end_headers()
                    _relay(self.connection, there)
                self.close_connection = True

            def do_GET(self) -> None:
                self._note()
                parts = urlsplit(self.path)
                there = http.client.HTTPConnection(parts.netloc, timeout=30)
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                there.request(self.command, target, headers=dict(self.headers.items()))
                answer = there.getresponse()
                body = answer.read()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                there.close()

            do_HEAD = do_GET  # noqa: N815

            def _note(self) -> None:
                authorization = self.headers.get("Proxy-Authorization", "")
                proxy.seen.append((self.command, self.path, authorization))

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # clients go away

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both directions until one side has ended."""
    with contextlib.suppress(OSError):
        while True:
            for ready in select.select([one, other], [], [], 60)[0]:
                piece = ready.recv(1 << 16)
                if not piece:
                    return
                (other if ready is one else one).sendall(piece)
