"""Test the network path to an endpoint step by step: name, connection, TLS, the server's clock.

The CRT takes the same steps, but its errors do not say which step failed or why. Its TLS library
delays the error of a failed handshake by up to 30 seconds and does not name the certificate it
rejected (https://aws.github.io/s2n-tls/usage-guide/ch03-error-handling.html, blinding). A proxy's
answer appears only in the CRT's log.

Nothing here is signed. The only request is one HEAD without credentials. Each step takes at most
`STEP_S`, except name resolution, which resolv.conf(5) limits.
"""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from mountpoint.errors import TransportFault
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.aws.proxy import Proxy
from mountpoint.s3.wire.reading import http_date_ns

STEP_S = 5.0
#: Addresses tried per name and family. S3 returns eight of each, and a host may have IPv6
#: addresses without an IPv6 route.
MAX_ADDRESSES = 2

TRUST = "name a file with the certificates to trust: --ca-bundle or AWS_CA_BUNDLE"
OTHER_NAME = (
    "check --endpoint-url; with --force-path-style the host name does not include the bucket"
)
#: Hints by OpenSSL's verification error number.
#: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
HINTS = {
    9: "the certificate is not valid yet: check the clock of this machine",
    10: "the server needs a new certificate, or the clock of this machine is wrong",
    62: OTHER_NAME,
    64: OTHER_NAME,
}

Address = tuple[socket.AddressFamily, tuple[str, int]]


def host_and_port(endpoint: Endpoint) -> tuple[str, int]:
    """Return the host name, without brackets, and the port."""
    parts = urlsplit(f"{endpoint.scheme}://{endpoint.host}")
    return parts.hostname or "", parts.port or (443 if endpoint.scheme == "https" else 80)


def addresses(name: str, port: int) -> list[Address]:
    """Resolve a name. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [(family, (str(where[0]), port)) for family, _, _, _, where in found]


def connected(to: Sequence[Address], interface: str = "") -> socket.socket:
    """Connect to the first of a few addresses that accepts. Raises OSError."""
    failure: OSError = OSError("the name has no address")
    of_kind: dict[socket.AddressFamily, list[Address]] = {}
    for each in to:
        of_kind.setdefault(each[0], []).append(each)
    for family, address in (each for kind in of_kind.values() for each in kind[:MAX_ADDRESSES]):
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
    """Return a connection to the endpoint through an http proxy (CONNECT). Raises OSError."""
    client = http.client.HTTPConnection(by.host, by.port, timeout=STEP_S)
    client.set_tunnel(*host_and_port(endpoint), headers=by.headers)
    try:
        client.connect()
    except http.client.HTTPException as error:
        raise OSError(f"no answer to CONNECT: {error or type(error).__name__}") from error
    return client.sock


def handshake(connection: socket.socket, name: str, ca_bundle: str | None) -> ssl.SSLSocket:
    """Start TLS on a connection. Raises TransportFault if TLS fails, and OSError."""
    context = ssl.create_default_context(cafile=ca_bundle)
    try:
        return context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        raise TransportFault(
            f"its TLS certificate is not trusted: {error.verify_message}",
            hint=HINTS.get(error.verify_code, TRUST),
        ) from error
    except ssl.SSLError as error:
        reason = error.reason or "the handshake failed"
        raise TransportFault(f"TLS: {reason}", hint="is it https? check --endpoint-url") from error


def problem(endpoint: Endpoint, ca_bundle: str | None, by: Proxy | None) -> TransportFault | None:
    """Return the fault of an endpoint's TLS or of a proxy; None if there is none."""
    proxy = f"the proxy {by} of {by.variable}" if by is not None else ""
    try:
        _go(endpoint, ca_bundle, by)
    except TransportFault as fault:
        if by is None or by.scheme == "http":
            return fault
        hint = "the system must trust the proxy's certificate"
        return TransportFault(f"{proxy}: {fault}", hint=hint)
    except OSError as error:
        if by is None:
            return None  # the CRT reports this one itself
        hint = f"check {by.variable}; list hosts to reach without a proxy in NO_PROXY"
        if " 407 " in str(error):
            hint = f"give the proxy's user and password: http://USER:PASSWORD@{by.host}"
        return TransportFault(f"{proxy}: {error}", hint=hint)
    return None


def _go(endpoint: Endpoint, ca_bundle: str | None, by: Proxy | None) -> None:
    """Connect as the CRT does, up to the first handshake. Raises TransportFault and OSError."""
    name, port = host_and_port(endpoint)
    if by is None:
        handshake(connected(addresses(name, port)), name, ca_bundle).close()
    elif by.scheme == "https":
        handshake(connected(addresses(by.host, by.port)), by.host, None).close()
    elif endpoint.scheme == "https":
        handshake(tunnel(endpoint, by), name, ca_bundle).close()
    else:
        connected(addresses(by.host, by.port)).close()


def skew_s(connection: socket.socket, endpoint: Endpoint, by: Proxy | None = None) -> float | None:
    """Return the seconds by which the server's clock is ahead of ours, by its Date header.

    `by` is the http proxy at the other end of `connection`, if the endpoint is http. None if the
    answer has no date. The error is at most one second, because the header is rounded, plus half
    of the round trip. Raises OSError.
    """
    client = http.client.HTTPConnection(host_and_port(endpoint)[0])
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
    # The header drops fractions, so the true time is half a second later on average.
    return there_ns / 1e9 + 0.5 - (asked_s + time.time()) / 2 if there_ns else None
