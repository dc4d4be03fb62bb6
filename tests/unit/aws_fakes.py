"""What AWS gives around S3, in small: an empty environment, and services on loopback."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def isolate(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave nothing of the machine's own AWS settings; files are looked for in `home`."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    return home


class Service(BaseHTTPRequestHandler):
    """Answers with what `answer` returns; `requests` has every request line."""

    requests: list[str]

    def answer(self, body: str) -> tuple[int, str]:
        raise NotImplementedError

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.requests.append(f"{self.command} {self.path}")
        status, text = self.answer(self.rfile.read(length).decode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(service: type[Service]) -> Iterator[tuple[str, type[Service]]]:
    """Serve a fresh copy of `service` on a free port; yield its URL and the copy."""
    fresh = type(service.__name__, (service,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), fresh) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fresh
        finally:
            server.shutdown()
            thread.join()
