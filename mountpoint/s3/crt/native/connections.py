"""Open the connections on which small GETs are sent (`_connections`).

There are as many as there were such GETs at the same time. Opening one takes some round trips, so
nobody waits for it: until it is open, the S3 client gets the GETs. awscrt tells Python of each
connection that was opened or has ended, on the event loop's thread.
"""

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from urllib.parse import urlsplit

import structlog
from awscrt.http import HttpClientConnection, HttpVersion
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    SocketOptions,
    TlsConnectionOptions,
    TlsContextOptions,
)

from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.crt.native._connections import Connections

log = structlog.get_logger(__name__)

#: Begins to open a connection.
Connect = Callable[[], "Future[HttpClientConnection]"]

#: The most connections. Further GETs use the S3 client's.
MAX_CONNECTIONS = 64
#: One that was idle for so long is closed: what is between may have forgotten it, and not say so.
MAX_IDLE_S = 20.0
#: After one could not be opened, or was closed at once, the next one is opened so much later.
PAUSE_S = 10.0


class ConnectionOpener:
    """Opens connections for one pool. `connect` None: none are opened."""

    def __init__(self, connections: Connections, connect: Connect | None) -> None:
        # dependencies
        self._connections = connections
        self._connect = connect
        self._connections.grow(connect is not None)
        # mutable
        self._opening: set[Future[HttpClientConnection]] = set()  # each change is one step
        self._next_try_s = 0.0

    def open_missing(self) -> None:
        """Begin to open those that GETs could have used since the last call."""
        if self._connect is None:
            return
        missing = self._connections.missing(MAX_IDLE_S)
        if self._connections.take_useless():
            self._pause("the store has closed one at once")
        room = MAX_CONNECTIONS - self._connections.count - len(self._opening)
        grows = room > 0 and time.monotonic() >= self._next_try_s
        self._connections.grow(grows)
        if not grows:
            return
        for _ in range(min(missing - len(self._opening), room)):
            try:
                future = self._connect()
            except Exception as error:  # no certificates, no file descriptors
                self._pause(str(error))
                return
            self._opening.add(future)
            future.add_done_callback(self._opened)

    def _opened(self, future: "Future[HttpClientConnection]") -> None:
        self._opening.discard(future)
        error = future.exception()
        if error is None:
            connection = future.result()
            if connection.version == HttpVersion.Http1_1:
                self._connections.add(connection)
                return
            error = Exception(f"it speaks {connection.version.name}")
        self._pause(str(error))

    def _pause(self, reason: str) -> None:
        log.debug("no connection for small requests", reason=reason)
        self._next_try_s = time.monotonic() + PAUSE_S


def connector(
    endpoint: Endpoint,
    bootstrap: ClientBootstrap,
    tls: ClientTlsContext | None,
    *,
    timeout_ms: int,
) -> Connect:
    """Return a function that connects to an endpoint. `tls` None: with the system's CAs."""
    secure = endpoint.scheme == "https"
    where = urlsplit(f"{endpoint.scheme}://{endpoint.host}")
    host = where.hostname or ""
    port = where.port or (443 if secure else 80)
    options = SocketOptions()
    options.connect_timeout_ms = timeout_ms

    @functools.cache
    def tls_options() -> TlsConnectionOptions | None:
        if not secure:
            return None
        context = tls or ClientTlsContext(TlsContextOptions())  # takes some ms
        found = context.new_connection_options()
        found.set_server_name(host)
        found.set_alpn_list(["http/1.1"])
        return found

    def connect() -> "Future[HttpClientConnection]":
        future: Future[HttpClientConnection] = HttpClientConnection.new(
            host, port, bootstrap, options, tls_options()
        )
        return future

    return connect
