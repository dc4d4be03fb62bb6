"""Small GETs over TLS, on connections of our own."""

import ssl
from pathlib import Path

import pytest
import trustme

from mountpoint.s3.aws.endpoint import Endpoint
from tests.unit.s3.crt.native.faulty_server import DATA, Server, connected, needs_native_plane
from tests.unit.s3.crt.native.test_connections import direct, open_one, opened, read

pytestmark = [pytest.mark.server, needs_native_plane]


def test_tls(tmp_path: Path) -> None:
    """The certificate must be the store's, and of a CA that is trusted."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    server = Server(tls)
    port = server.host.rpartition(":")[2]
    try:
        right = Endpoint("https", f"localhost:{port}", "/bucket", "us-east-1", "s3", "v4")
        with connected(server, right, ca_bundle=str(bundle)) as client:
            open_one(client)
            assert read(client, 5_000, 300_000) == DATA[5_000:305_000]
            assert direct(server) == [False, True]
        wrong = Endpoint("https", server.host, "/bucket", "us-east-1", "s3", "v4")
        with connected(server, wrong, ca_bundle=str(bundle)) as client:
            assert read(client, 5_000, late_s=1.0) is None
            assert opened(client) == 0
        assert len(server.requests) == 2
    finally:
        server.close()
