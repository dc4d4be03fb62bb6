"""Emulators of AWS, from PyPI. They keep any key unchanged, in memory, and check no signatures."""

from __future__ import annotations

import sys

from tools.processes import Ports
from tools.servers.server import Server, executable

#: Ministack with the CRT's checksums: its own, loops in Python, take a quarter of a second per MiB.
MINISTACK = """
from awscrt import checksums
from ministack.app import main
from ministack.services import s3
assert callable(s3._crc32c) and callable(s3._crc64nvme)
s3._crc32c, s3._crc64nvme = checksums.crc32c, checksums.crc64nvme
main()
"""


class Ministack(Server):
    """Ministack, with S3 only."""

    name = "ministack"

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        port = ports.one()
        self._ports = [port]
        environment = {
            **self.environment,
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
            "S3_DATA_DIR": str(self._folder / "data"),
            "LOG_LEVEL": "WARNING",
            # Other listeners, at fixed ports.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            # At start it would remove containers of this machine that it takes for its own.
            "DOCKER_HOST": f"unix://{self._folder}/no-docker.sock",
        }
        executable("ministack", "ministack")  # or it says what is missing
        return port, [sys.executable, "-c", MINISTACK], environment

    def _prepare(self) -> None:
        self.client(retries={"total_max_attempts": 1}).create_bucket(Bucket=self.bucket)


class Moto(Server):
    """Moto. It speaks HTTP/1.0, so each request needs a new connection."""

    name = "moto"

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        port = ports.one()
        self._ports = [port]
        command = [executable("moto_server", "moto"), "-H", "127.0.0.1", "-p", str(port)]
        return port, command, self.environment

    def _prepare(self) -> None:
        self.client(retries={"total_max_attempts": 1}).create_bucket(Bucket=self.bucket)
