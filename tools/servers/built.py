"""MinIO and versitygw, which `make stores` builds from their Go modules if Go is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.processes import Ports
from tools.servers.server import Server, ServerError

#: Where `tools/build-stores` puts them.
FOLDER = Path(__file__).parent.parent.parent / ".state" / "stores"


class _Built(Server):
    """A server with its data in a folder. A request creates its bucket."""

    def _program(self) -> str:
        reason = why_missing(type(self))
        if reason is not None:
            raise ServerError(reason)
        return str(FOLDER / self.name)

    def _data(self) -> Path:
        """Return an empty folder: a second attempt must not find files of the first one."""
        data = self._folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        return data

    def _prepare(self) -> None:
        self.client(retries={"total_max_attempts": 1}).create_bucket(Bucket=self.bucket)


class MinIO(_Built):
    """MinIO with one folder: mostly like S3, but its keys are paths."""

    name = "minio"

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        port, console = ports.one(), ports.one()
        self._ports = [port, console]
        command = [self._program(), "server", str(self._data()), "--quiet"]
        command += ["--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}"]
        environment = {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",  # do not look for newer versions on the Internet
            "MINIO_CI_CD": "1",  # permit the system disk
        }
        return port, command, environment


class VersityGW(_Built):
    """versitygw over a folder: each object is a file with the key as its name."""

    name = "versitygw"

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        port = ports.one()
        self._ports = [port]
        data, beside = self._data(), self._folder / "attributes"
        beside.mkdir(exist_ok=True)
        command = [self._program(), "--port", f"127.0.0.1:{port}", "--region", self.region]
        command += ["--quiet", "posix", "--sidecar", str(beside), str(data)]
        environment = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        return port, command, environment


def why_missing(server: type[Server]) -> str | None:
    """Return why this server cannot run here, or None. Servers from PyPI are in .venv."""
    if not issubclass(server, _Built) or os.access(FOLDER / server.name, os.X_OK):
        return None
    if shutil.which("go") is None:
        return f"{server.name} is not built, and Go, which builds it, is not installed"
    return f"{server.name} is not built: make stores"
