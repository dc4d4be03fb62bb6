"""Metrics to be fetched: Prometheus' text at /metrics, and how the mount is at /healthz and /livez.

Names are what OpenTelemetry's rules make of the reference's for Prometheus, so that what was made
for those fits: fuse.request_latency is fuse_request_latency_microseconds. Of the exponential
buckets eight neighbours make one whose end is a power of two.

It answers on threads of its own, some at a time and each for a short time: whoever connects cannot
make it grow, and a client that is slow does not keep others from an answer.

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
The extra `prometheus` brings the library.
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

#: Two scrapers, a probe, a person with curl; what comes on top is not answered.
MOST_CONNECTIONS = 8
LONGEST_S = 10.0
#: How often who takes too long is looked for.
LOOK_S = 0.5

UNITS: Mapping[Unit, str] = {
    "By": "_bytes", "us": "_microseconds", "1": "", "{file}": "", "{thread}": ""
}  # fmt: skip
#: Powers of two at which buckets end, by unit: 16 us to 134 s, 512 bytes to 1 MiB (the most that
#: the kernel reads at once), 1 to 1024.
POWERS: Mapping[Unit, range] = {"By": range(9, 21), "us": range(4, 28), "1": range(0, 11)}

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Prometheus:
    """Serves what `collect` returns, at `host` and `port`. Raises MountError if it cannot."""

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
                "give another ADDRESS:PORT; port 0 takes any that is free",
            ) from None
        threading.Thread(
            target=self._server.serve_forever, args=(LOOK_S,), name="prometheus", daemon=True
        ).start()
        self.url = f"http://{authority(host, self._server.server_port)}/metrics"
        log.info("metrics can be fetched", url=self.url)

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise MountError(
            f"--prometheus: '{host}' is no address of this machine: {error.strerror}",
            "for example: --prometheus 127.0.0.1:9100",
        ) from None
    family, _, _, _, address = found[0]
    return family, address


# What is served


class _Collector(Collector):
    """The families as those of Prometheus' library, made anew for each scrape."""

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
        # What is a share of one to OpenTelemetry's rules is any plain number.
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
    """Return how many values did not exceed each power of two. Our first bucket has the ones."""
    below = list(accumulate(numbers["buckets"], initial=numbers["zeros"]))
    ends = [max(power << SCALE, 1) for power in powers]
    found = [
        (f"{1 << power}.0", below[min(end, len(below) - 1)])
        for power, end in zip(powers, ends, strict=True)
    ]
    return [*found, ("+Inf", numbers["count"])]


class _Application:
    """Paths to answers."""

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
            return _text(start_response, "404 Not Found", "there are /metrics, /healthz and /livez")
        except Exception:
            log.exception("a request for metrics failed: a bug", path=path)
            return _text(start_response, "500 Internal Server Error", "see the log")


def _text(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    start_response(status, headers)
    return [f"{text}\n".encode("utf-8", "replace")]


# The server


class _Handler(WSGIRequestHandler):
    """One connection. The server cuts it when it takes too long."""

    timeout = LONGEST_S

    def log_message(self, *_: Any) -> None:
        """Log nothing: who fetches does so all the time."""

    def get_stderr(self) -> Any:
        """Return where wsgiref writes tracebacks of connections that broke."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """Threads for some connections at a time, each for a while."""

    daemon_threads = True

    def __init__(
        self, family: socket.AddressFamily, address: Any, application: _Application
    ) -> None:
        self.address_family = family
        # mutable, guarded by _lock: when each connection is cut
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind, and do not look for this machine's name, which can take long (http.server)."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve on a thread of its own, unless there are too many."""
        with self._lock:
            full = len(self._open) >= MOST_CONNECTIONS
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
        """Cut what takes too long; its thread notices."""
        now_s = time.monotonic()
        with self._lock:
            late = [request for request, until_s in self._open.items() if until_s < now_s]
            for request in late:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:  # it has ended by itself
                    self._open.pop(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note what went wrong with a connection: it was cut, or has broken."""
        log.debug("a connection for metrics broke", exc_info=True)
