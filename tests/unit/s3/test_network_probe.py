"""The steps to an endpoint, with servers on loopback."""

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme

from mountpoint.errors import TransportFault
from mountpoint.s3 import network_probe
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.aws.proxy import Proxy, settle
from tests.forward_proxy import ForwardProxy


def endpoint(host: str, *, scheme: str = "http", path: str = "/bucket") -> Endpoint:
    """Return an endpoint with a path."""
    return Endpoint(scheme, host, path, "us-east-1", "s3", "v4")


class Server:
    """A web server whose clock is `ahead_s` ahead of ours; None: it sends no date."""

    def __init__(self, ahead_s: float | None, tls: ssl.SSLContext | None = None) -> None:
        server = self
        self.asked: list[tuple[str, str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                server.asked.append((self.command, self.path, self.headers["Host"]))
                assert "Authorization" not in self.headers
                self.send_response_only(403)
                if ahead_s is not None:
                    self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # clients that do not trust it close the connection

        self.http = Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.http.socket = tls.wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def connection(self) -> socket.socket:
        """Return a connection to the server."""
        return network_probe.connected(network_probe.addresses("127.0.0.1", self.http.server_port))

    def close(self) -> None:
        """Stop."""
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    """A server with TLS and a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = Server(0, context)
    yield server
    server.close()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The file with its certificate."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("host", "scheme", "expected"),
    [
        ("s3.eu-west-1.amazonaws.com", "https", ("s3.eu-west-1.amazonaws.com", 443)),
        ("minio", "http", ("minio", 80)),
        ("127.0.0.1:9000", "http", ("127.0.0.1", 9000)),
        ("[::1]:9000", "https", ("::1", 9000)),
        ("[::1]", "https", ("::1", 443)),
    ],
)
def test_host_and_port(host: str, scheme: str, expected: tuple[str, int]) -> None:
    """The host has a port only if it is not the scheme's default."""
    assert network_probe.host_and_port(endpoint(host, scheme=scheme)) == expected


def test_an_address_is_its_own() -> None:
    """An address needs no name service."""
    assert network_probe.addresses("127.0.0.1", 9) == [(socket.AF_INET, ("127.0.0.1", 9))]


def test_a_name_that_does_not_resolve() -> None:
    """The error is an OSError that says so."""
    with pytest.raises(OSError, match=r"."):
        network_probe.addresses("no-such-host.invalid", 80)


def test_the_next_address_is_tried() -> None:
    """An address that refuses does not prevent the next one."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        to = [(socket.AF_INET, each.getsockname()) for each in (closed, server)]
        network_probe.connected(to).close()
        with pytest.raises(ConnectionRefusedError):
            network_probe.connected(to[:1])


@pytest.mark.slow
def test_one_kind_of_address_does_not_hide_the_other() -> None:
    """If IPv6 leads nowhere, IPv4 is tried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        nowhere = [(socket.AF_INET6, (f"100::{n}", 9)) for n in range(8)]
        network_probe.connected([*nowhere, (socket.AF_INET, server.getsockname())]).close()


def test_an_interface_that_does_not_lead_there() -> None:
    """A connection uses the named interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = [(socket.AF_INET, server.getsockname())]
        network_probe.connected(to, "lo").close()
        with pytest.raises(OSError, match="No such device"):
            network_probe.connected(to, "no-such-if")


@pytest.mark.parametrize("ahead_s", [0, 90, -7200])
def test_the_servers_clock(ahead_s: int) -> None:
    """The server's date against ours, to a second, from an unsigned request for the bucket."""
    server = Server(ahead_s)
    skew_s = network_probe.skew_s(server.connection(), endpoint(server.host))
    server.close()
    assert skew_s == pytest.approx(ahead_s, abs=2)
    assert server.asked == [("HEAD", "/bucket", server.host)]


def test_no_clock() -> None:
    """A server without a date is not taken for one with a wrong clock."""
    server = Server(None)
    assert network_probe.skew_s(server.connection(), endpoint(server.host)) is None
    server.close()


def test_servers_that_do_not_speak_http() -> None:
    """An answer that is not HTTP is an error of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = network_probe.connected([(socket.AF_INET, server.getsockname())])
        there, _ = server.accept()
        there.sendall(b"220 smtp.example.com\r\n")
        with pytest.raises(OSError, match="no answer to HEAD"):
            network_probe.skew_s(client, endpoint("127.0.0.1"))
        there.close()


def test_tls(secure: Server, bundle: str) -> None:
    """With a trusted certificate the date arrives."""
    assert network_probe.problem(endpoint(secure.host, scheme="https"), bundle, None) is None
    with network_probe.handshake(secure.connection(), "127.0.0.1", bundle) as connection:
        skew_s = network_probe.skew_s(connection, endpoint(secure.host, scheme="https"))
    assert skew_s == pytest.approx(0, abs=2)


def test_tls_that_is_not_trusted(secure: Server) -> None:
    """The message names the option."""
    with secure.connection() as raw, pytest.raises(TransportFault, match="not trusted") as caught:
        network_probe.handshake(raw, "127.0.0.1", None)
    assert "--ca-bundle" in caught.value.hint
    problem = network_probe.problem(endpoint(secure.host, scheme="https"), None, None)
    assert problem is not None
    assert "not trusted" in str(problem)


def test_a_server_without_tls() -> None:
    """The message says that TLS failed."""
    server = Server(0)
    problem = network_probe.problem(endpoint(server.host, scheme="https"), None, None)
    server.close()
    assert problem is not None
    assert "TLS" in str(problem)


def test_an_unreachable_host_is_no_problem_of_tls() -> None:
    """Then the connection itself reports the error."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        assert network_probe.problem(endpoint(host, scheme="https"), None, None) is None


# --- Proxies ---


def proxied(proxy: ForwardProxy, scheme: str, login: str = "") -> Proxy:
    """Return a proxy, as from a variable."""
    url = proxy.url.replace("//", f"//{login}@") if login else proxy.url
    found = settle(scheme, "s3.example.com", {f"{scheme}_proxy": url})
    assert found is not None
    return found


@pytest.mark.slow
def test_the_clock_through_a_proxy(tmp_path: Path) -> None:
    """The proxy is asked for the endpoint's date, with its password."""
    server = Server(90)
    with ForwardProxy(tmp_path / "proxy", "me:x") as forward:
        where, by = endpoint(server.host), proxied(forward, "http", "me:x")
        connection = network_probe.connected(network_probe.addresses(by.host, by.port))
        assert network_probe.skew_s(connection, where, by) == pytest.approx(90, abs=2)
    server.close()


@pytest.mark.slow
def test_tls_through_a_proxy(tmp_path: Path, secure: Server, bundle: str) -> None:
    """A wrong certificate is noticed through a tunnel as well."""
    where = endpoint(secure.host, scheme="https")
    with ForwardProxy(tmp_path / "proxy") as forward:
        by = proxied(forward, "https")
        problem = network_probe.problem(where, None, by)
        assert problem is not None
        assert "not trusted" in str(problem)
        assert network_probe.problem(where, bundle, by) is None
        assert secure.host in forward.log


@pytest.mark.slow
def test_a_proxy_that_opens_no_tunnel(tmp_path: Path, secure: Server) -> None:
    """The message has the proxy's answer, and the variable that names it."""
    where = endpoint(secure.host, scheme="https")
    with ForwardProxy(tmp_path / "proxy", "me:x") as forward:
        by = proxied(forward, "https")
        with pytest.raises(OSError, match="Tunnel connection failed: 407"):
            network_probe.tunnel(where, by)
        problem = network_probe.problem(where, None, by)
        assert problem is not None
        assert f"the proxy {forward.url} of https_proxy" in str(problem)
        assert "user and password" in problem.hint


@pytest.mark.slow
def test_a_proxy_that_is_not_there(tmp_path: Path, secure: Server) -> None:
    """The message says that the proxy does not answer."""
    with ForwardProxy(tmp_path / "proxy") as forward:
        by = proxied(forward, "https")
    problem = network_probe.problem(endpoint(secure.host, scheme="https"), None, by)
    assert problem is not None
    assert "refused" in str(problem)
    assert "NO_PROXY" in problem.hint
