"""The HTTP server: Prometheus text at /metrics, health checks at /healthz and /livez.

Names follow OpenTelemetry's rules for Prometheus, applied to the names of AWS's mount-s3, so its
dashboards fit: fuse.request_latency becomes fuse_request_latency_microseconds. Eight adjacent
exponential buckets become one bucket that ends at a power of two.

Threads of its own answer, a few at a time and each for a short time. So clients cannot make memory
grow, and a slow client does not block the others.

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
The extra `prometheus` installs the library.
"""

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from mountpoint.errors import MountError
from mountpoint.metrics._histogram import SCALE
from mountpoint.metrics.export.families import Family, Unit
from mountpoint.metrics.export.health import Health
from mountpoint.system.addresses import authority

log = structlog.get_logger(__name__)

#: Enough for two scrapers, a probe and a person with curl; further connections are closed.
MAX_CONNECTIONS = 8
LONGEST_S = 10.0
#: Seconds between checks for slow connections.
LOOK_S = 0.5

UNITS: Mapping[Unit, str] = {
    "By": "_bytes", "us": "_microseconds", "1": "", "{file}": "", "{thread}": ""
}  # fmt: skip
#: The powers of two at which buckets end, by unit: 16 us to 134 s, 512 bytes to 1 MiB (the largest
#: read of the kernel), 1 to 1024.
POWERS: Mapping[Unit, range] = {"By": range(9, 21), "us": range(4, 28), "1": range(0, 11)}

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Prometheus:
    """Serves the metrics from `collect` at `host` and `port`. Raises MountError if it cannot."""

    def __init__(
        self, host: str, port: int, collect: Callable[[], list[Family]], health: Health
    ) -> None:
        registry = CollectorRegistry(auto_describe=True)
        registry.register(_Collector(collect))
        application = _Application(make_wsgi_app(registry), health)
        family, address = _resolved(host, port)
        try:
            self._server = _Server(family, address, application)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise MountError(
                f"--prometheus cannot listen at {authority(host, port)}: {reason}",
                "use another ADDRESS:PORT; port 0 takes any free port",
            ) from None
        threading.Thread(
            target=self._server.serve_forever, args=(LOOK_S,), name="prometheus", daemon=True
        ).start()
        self.url = f"http://{authority(host, self._server.server_port)}/metrics"
        log.info("metrics can be fetched", url=self.url)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise MountError(
            f"--prometheus: '{host}' is not an address of this machine: {error.strerror}",
            "for example: --prometheus 127.0.0.1:9100",
        ) from None
    family, _, _, _, address = found[0]
    return family, address


# Contents


class _Collector(Collector):
    """Converts the families for Prometheus' library at each scrape."""

    def __init__(self, collect: Callable[[], list[Family]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Any]:
        for family in self._collect():
            yield _converted(family)


def _converted(family: Family) -> Any:
    name = family.name.replace(".", "_") + UNITS[family.unit]
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.label_names)
        for labels, numbers in family.points.items():
            histogram.add_metric(labels, _buckets(numbers, POWERS[family.unit]), numbers["total"])
        return histogram
    if family.kind == "gauge":
        # OpenTelemetry's rules treat any plain number as a ratio.
        name += "_ratio" if family.unit == "1" else ""
        gauge = GaugeMetricFamily(name, family.help, labels=family.label_names)
        for labels, value in family.points.items():
            gauge.add_metric(labels, value)
        return gauge
    counter = CounterMetricFamily(name, family.help, labels=family.label_names)
    for labels, value in family.points.items():
        counter.add_metric(labels, value)
    return counter


def _buckets(numbers: Mapping[str, Any], powers: range) -> list[tuple[str, float]]:
    """Return how many values did not exceed each power of two. The first bucket holds the ones."""
    below = list(accumulate(numbers["buckets"], initial=numbers["zeros"]))
    ends = [max(power << SCALE, 1) for power in powers]
    found = [
        (f"{1 << power}.0", below[min(end, len(below) - 1)])
        for power, end in zip(powers, ends, strict=True)
    ]
    return [*found, ("+Inf", numbers["count"])]


class _Application:
    """The WSGI application: answers by path."""

    def __init__(self, metrics: Application, health: Health) -> None:
        self._metrics = metrics
        self._checks = {"/healthz": health.why_not_well, "/livez": health.why_not_alive}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                return self._metrics(environ, start_response)
            if path in self._checks:
                reason = self._checks[path]()
                status = "503 Service Unavailable" if reason else "200 OK"
                return _text(start_response, status, reason or "ok")
            return _text(start_response, "404 Not Found", "use /metrics, /healthz or /livez")
        except Exception:
            log.exception("a request for metrics failed: a bug", path=path)
            return _text(start_response, "500 Internal Server Error", "see the log")


def _text(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    start_response(status, headers)
    return [f"{text}\n".encode("utf-8", "replace")]


# Server


class _Handler(WSGIRequestHandler):
    """One connection. The server closes it if it takes too long."""

    timeout = LONGEST_S

    def log_message(self, *_: Any) -> None:
        """Log nothing: scrapers connect all the time."""

    def get_stderr(self) -> Any:
        """Return the stream for wsgiref's tracebacks of broken connections."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """A few threads at a time, one per connection, each with a time limit."""

    daemon_threads = True

    def __init__(
        self, family: socket.AddressFamily, address: Any, application: _Application
    ) -> None:
        self.address_family = family
        # mutable, guarded by _lock: when to close each connection
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind without looking up this machine's name, which may take long (http.server)."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on its own thread, unless there are too many."""
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS
            if not full:
                self._open[request] = time.monotonic() + LONGEST_S
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that take too long; their threads then end."""
        now_s = time.monotonic()
        with self._lock:
            late = [request for request, until_s in self._open.items() if until_s < now_s]
            for request in late:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client has closed it
                    self._open.pop(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of a connection that was cut or broke."""
        log.debug("a connection for metrics was lost", exc_info=True)
