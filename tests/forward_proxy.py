"""A real HTTP proxy (proxy.py), as in company networks: the only way out.

Use `with ForwardProxy(folder) as proxy:` and `proxy.url`. It resolves every name that ends in
".test" to loopback. Nothing else resolves such names, so a request to one must have gone through
the proxy. The proxy runs in its own process.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin

from tools.processes import end_process_group

START_TIMEOUT_S = 30.0
REPOSITORY = Path(__file__).parents[1]


class Names(HttpProxyBasePlugin):
    """The proxy's only extension: it resolves its own names."""

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, None]:
        return ("127.0.0.1" if host.endswith(".test") else None), None

    def handle_client_request(self, request: HttpParser) -> HttpParser:
        return request

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview:
        return chunk


class ForwardProxy:
    """The proxy. `login` is "user:password", which clients must send."""

    def __init__(self, folder: Path, login: str = "") -> None:
        self._folder = folder
        self._options = ["--basic-auth", login] if login else []
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its address, without the login."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """The log: a line for each ended connection, with its client and its destination."""
        return (self._folder / "log").read_text()

    def start(self) -> Self:
        """Start the proxy, at its previous port if it had one."""
        self._folder.mkdir(exist_ok=True)
        port_file = self._folder / "port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1"]
        command += ["--port", str(self.port), "--port-file", str(port_file)]
        command += [
            "--num-acceptors",
            "1",
            "--num-workers",
            "1",
            "--log-file",
            str(self._folder / "log"),
        ]
        command += ["--plugins", f"{Names.__module__}.{Names.__name__}", *self._options]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (port_file.exists() and port_file.read_text()):
            assert self._process.poll() is None, "the proxy has ended"
            assert time.monotonic() < deadline, "the proxy did not start"
            time.sleep(0.02)
        self.port = int(port_file.read_text())
        return self

    def stop(self) -> None:
        """End the proxy and all connections through it."""
        process, self._process = self._process, None
        if process is not None:
            end_process_group(process.pid, process)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
