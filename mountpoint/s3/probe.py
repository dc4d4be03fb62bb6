"""What the network says of an endpoint, step by step: name, connection, TLS, the server's clock.

The CRT goes the same steps by itself, but its errors do not tell which one failed, nor why: its
TLS library keeps a failed handshake to itself for up to 30 seconds, and then does not say which
certificate it did not like (https://aws.github.io/s2n-tls/usage-guide/ch03-error-handling.html,
blinding); what a proxy has answered is only in its log.

Nothing is signed here, and nothing asked but for one HEAD without credentials. Each step takes at
most `STEP_S`, but for names: resolv.conf(5) says how long these take.
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
#: Of the addresses of a name, of either kind: S3 tells eight of each, and of IPv6 there may be
#: addresses without a way to them.
MOST_ADDRESSES = 2

TRUST = "--ca-bundle or AWS_CA_BUNDLE names a file with the certificates to trust"
OTHER_NAME = "check --endpoint-url; --force-path-style leaves the bucket out of the host's name"
#: By OpenSSL's number of what is wrong with a certificate.
#: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
HINTS = {
    9: "the certificate is not valid yet: check the clock of this machine",
    10: "the server needs a new one; or the clock of this machine is wrong",
    62: OTHER_NAME,
    64: OTHER_NAME,
}

Address = tuple[socket.AddressFamily, tuple[str, int]]


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
    """Return a connection to an endpoint that an http proxy has opened. Raises OSError."""
    client = http.client.HTTPConnection(by.host, by.port, timeout=STEP_S)
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
            hint=HINTS.get(error.verify_code, TRUST),
        ) from error
    except ssl.SSLError as error:
        reason = error.reason or "the handshake failed"
        raise TransportFault(f"TLS: {reason}", hint="is it https? check --endpoint-url") from error


def problem(endpoint: Endpoint, ca_bundle: str | None, by: Proxy | None) -> TransportFault | None:
    """Return what is wrong with TLS at an endpoint, or with a proxy, if that is the problem."""
    proxy = f"the proxy {by} of {by.variable}" if by is not None else ""
    try:
        _go(endpoint, ca_bundle, by)
    except TransportFault as fault:
        if by is None or by.scheme == "http":
            return fault
        hint = "the proxy's certificate has to be one that the system trusts"
        return TransportFault(f"{proxy}: {fault}", hint=hint)
    except OSError as error:
        if by is None:
            return None  # the CRT says that, too
        hint = f"check {by.variable}; NO_PROXY names what is reached without a proxy"
        if " 407 " in str(error):
            hint = f"the proxy wants another user and password: http://USER:PASSWORD@{by.host}"
        return TransportFault(f"{proxy}: {error}", hint=hint)
    return None


def _go(endpoint: Endpoint, ca_bundle: str | None, by: Proxy | None) -> None:
    """Connect as the CRT does, to the first handshake's end. Raises TransportFault, OSError."""
    name, port = place(endpoint)
    if by is None:
        handshake(connected(addresses(name, port)), name, ca_bundle).close()
    elif by.scheme == "https":
        handshake(connected(addresses(by.host, by.port)), by.host, None).close()
    elif endpoint.scheme == "https":
        handshake(tunnel(endpoint, by), name, ca_bundle).close()
    else:
        connected(addresses(by.host, by.port)).close()


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
