"""Real S3 servers on loopback, for the tests and the demo.

`SeaweedFS` checks what S3 checks (signatures, clock, checksums, conditions), but keeps keys as
paths: odd keys change, and listings are ordered by path. `Ministack` has S3's flat key space and
binary order, but checks no signatures. Each test uses the one whose behaviour it needs. `Moto`,
`MinIO` and `VersityGW` serve only the tests of stores (docs/stores.md).

All are context managers:

    with SeaweedFS() as server:
        server.client().put_object(Bucket=server.bucket, Key="a", Body=b"1")
"""

from tools.servers.built import MinIO, VersityGW
from tools.servers.emulators import Ministack, Moto
from tools.servers.seaweedfs import SeaweedFS
from tools.servers.server import REGION, Server, ServerError, end_noted

__all__ = [
    "REGION",
    "MinIO",
    "Ministack",
    "Moto",
    "SeaweedFS",
    "Server",
    "ServerError",
    "VersityGW",
    "end_noted",
]
