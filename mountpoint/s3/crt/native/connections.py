"""Open the connections on which reads in the lane send their GETs (`_connections`).

There are as many as reads have waited for S3 at the same time. Opening one takes some round trips,
so reads do not wait for it: until it is open, the S3 client gets their GETs.
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

#: The most connections. Further reads use the S3 client's.
MAX_CONNECTIONS = 64
#: One that was idle for so long is closed: what is between may have forgotten it, and not say so.
MAX_IDLE_S = 20.0
#: After one could not be opened, the next one is tried so much later.
PAUSE_S = 10.0


class ConnectionOpener:
    """Opens connections for one pool. `connect` None: none are opened."""

    def __init__(self, connections: Connections, connect: Connect | None) -> None:
        # dependencies
        self._connections = connections
        self._connect = connect
        # mutable
        self._opening: set[Future[HttpClientConnection]] = set()  # each change is one step
        self._next_try_s = 0.0

    def open_missing(self) -> None:
        """Begin to open those that reads could have used since the last call."""
        missing = self._connections.missing(MAX_IDLE_S)
        if self._connect is None or time.monotonic() < self._next_try_s:
            return
        opening = len(self._opening)
        most = MAX_CONNECTIONS - self._connections.count
        for _ in range(min(missing, most) - opening):
            future = self._connect()
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
        log.debug("no connection for reads in the lane", error=str(error))
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
