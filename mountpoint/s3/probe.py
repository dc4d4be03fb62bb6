"""What the network says of an endpoint, step by step: name, connection, TLS, the server's clock.

The CRT goes the same steps by itself, but its errors do not tell which one failed, nor why: its
TLS library keeps a failed handshake to itself for up to 30 seconds.
https://aws.github.io/s2n-tls/usage-guide/ch03-error-handling.html (blinding)

A proxy that variables name is used here because the CRT uses it.

Nothing is signed here, and nothing asked but for one HEAD without credentials. Each step takes at
most `STEP_S`, but for names: resolv.conf(5) says how long these take.
"""

import base64
import contextlib
import http.client
import socket
import ssl
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mountpoint.errors import TransportFault
from mountpoint.s3.endpoint import Endpoint
from mountpoint.s3.wire import http_date_ns

STEP_S = 5.0
#: Of the addresses of a name, of either kind: S3 tells eight of each, and of IPv6 there may be
#: addresses without a way to them.
MOST_ADDRESSES = 2

Address = tuple[socket.AddressFamily, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `headers` may have a password."""

    name: str
    port: int
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


def proxy(endpoint: Endpoint) -> Proxy | None:
    """Return the proxy that HTTPS_PROXY or HTTP_PROXY names for an endpoint, and NO_PROXY does not.

    Raises ValueError for what is no URL.
    """
    url = urllib.request.getproxies().get(endpoint.scheme)
    if not url or urllib.request.proxy_bypass(endpoint.host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if not parts.hostname:
        raise ValueError("it names no host")
    headers = {}
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(words.encode()).decode()}"
    return Proxy(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), headers)


def place(endpoint: Endpoint) -> tuple[str, int]:
    """Return host name, without brackets, and port."""
    parts = urlsplit(f"{endpoint.scheme}://{endpoint.host}")
    return parts.hostname or "", parts.port or (443 if endpoint.scheme == "https" else 80)


def addresses(name: str, port: int) -> list[Address]:
    """Return what a name resolves to. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [(family, (str(where[0]), port)) for family, _, _, _, where in found]


def connected(to: Sequence[Address], interface: str = "") -> socket.socket:
    """Return a connection to the first that takes it, of a few. Raises OSError."""
    failure: OSError = OSError("the name has no address")
    of_kind: dict[socket.AddressFamily, list[Address]] = {}
    for each in to:
        of_kind.setdefault(each[0], []).append(each)
    for family, address in (each for kind in of_kind.values() for each in kind[:MOST_ADDRESSES]):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(STEP_S)
            if interface:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0"
                )
            connection.connect(address)
            return connection
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
    raise failure


def tunnel(endpoint: Endpoint, by: Proxy) -> socket.socket:
    """Return a connection to an endpoint that a proxy has opened. Raises OSError."""
    client = http.client.HTTPConnection(by.name, by.port, timeout=STEP_S)
    client.set_tunnel(*place(endpoint), headers=by.headers)
    try:
        client.connect()
    except http.client.HTTPException as error:
        raise OSError(f"no answer to CONNECT: {error or type(error).__name__}") from error
    return client.sock


def handshake(connection: socket.socket, name: str, ca_bundle: str | None) -> ssl.SSLSocket:
    """Return the connection with TLS. Raises TransportFault where TLS fails, and OSError."""
    context = ssl.create_default_context(cafile=ca_bundle)
    try:
        return context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        raise TransportFault(
            f"its TLS certificate is not trusted: {error.verify_message}",
            hint="--ca-bundle or AWS_CA_BUNDLE names a file with the certificates to trust",
        ) from error
    except ssl.SSLError as error:
        reason = error.reason or "the handshake failed"
        raise TransportFault(f"TLS: {reason}", hint="is it https? check --endpoint-url") from error


def tls_problem(endpoint: Endpoint, ca_bundle: str | None) -> TransportFault | None:
    """Return what is wrong with TLS at an endpoint, if that is the problem."""
    name, port = place(endpoint)
    try:
        by = proxy(endpoint)
        with (
            tunnel(endpoint, by) if by else connected(addresses(name, port)) as connection,
            handshake(connection, name, ca_bundle),
        ):
            return None
    except TransportFault as problem:
        return problem
    except (OSError, ValueError):
        return None


def skew_s(connection: socket.socket, endpoint: Endpoint, by: Proxy | None = None) -> float | None:
    """Return by how many seconds the server's clock is ahead of ours, by its Date header.

    `by` is the proxy that `connection` leads to, if that is as far as it goes: for http. None
    where it tells no date. It is right to a second, for which the header is rounded, and half
    of what the answer took. Raises OSError.
    """
    client = http.client.HTTPConnection(place(endpoint)[0])
    client.sock = connection
    target = endpoint.base_path or "/"
    headers = {"Host": endpoint.host}
    if by is not None and endpoint.scheme == "http":
        target, headers = f"http://{endpoint.host}{target}", headers | by.headers
    asked_s = time.time()
    try:
        client.request("HEAD", target, headers=headers)
        date = client.getresponse().getheader("Date")
    except http.client.HTTPException as error:
        raise OSError(f"no answer to HEAD: {error or type(error).__name__}") from error
    finally:
        with contextlib.suppress(OSError):
            client.close()
    there_ns = http_date_ns(date or "")
    # A date is the beginning of its second.
    return there_ns / 1e9 + 0.5 - (asked_s + time.time()) / 2 if there_ns else None
