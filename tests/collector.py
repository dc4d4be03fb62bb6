"""An OpenTelemetry collector on loopback. It records the exports, or does not answer."""

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

#: A metric's name and its attributes.
Key = tuple[str, frozenset[tuple[str, str]]]


def key(name: str, **attributes: str) -> Key:
    """Return the key of a data point."""
    return name, frozenset(attributes.items())


@dataclass
class Export:
    """One export request."""

    path: str
    headers: dict[str, str]
    body: ExportMetricsServiceRequest

    @property
    def metrics(self) -> list[pb.Metric]:
        """All its metrics."""
        return [
            metric
            for resource in self.body.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self) -> Iterator[tuple[Key, Any]]:
        """Yield each point with its name and attributes."""
        for metric in self.metrics:
            kind = metric.WhichOneof("data")
            assert kind is not None
            data = getattr(metric, kind)
            for point in data.data_points:
                pairs = {each.key: each.value.string_value for each in point.attributes}
                yield key(metric.name, **pairs), point


@dataclass
class Collector:
    """The collector listens inside the `with`.

    `port` is a port that is known to be free. `status` is the status of its answers. With `silent`
    it reads requests and does not answer.
    """

    port: int = 0
    status: int = 200
    silent: bool = False
    exports: list[Export] = field(default_factory=list)
    arrived: int = 0

    def __enter__(self) -> Self:
        self._end = threading.Event()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.arrived += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.silent:
                    collector._end.wait(30)
                    return
                if collector.status == 200:
                    parsed = ExportMetricsServiceRequest.FromString(body)
                    collector.exports.append(Export(self.path, dict(self.headers), parsed))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The value for --otlp-endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def sums(self) -> "Counter[Key]":
        """Return the total of all counters and histograms over all exports: values and sums."""
        found: Counter[Key] = Counter()
        for export in self.exports:
            for name, point in export.points():
                exact = point.as_int if isinstance(point, pb.NumberDataPoint) else int(point.sum)
                found[name] += exact
        return found

    def counts(self) -> "Counter[Key]":
        """Return the number of values in all histograms over all exports."""
        found: Counter[Key] = Counter()
        for export in self.exports:
            for name, point in export.points():
                if isinstance(point, pb.ExponentialHistogramDataPoint):
                    found[name] += point.count
        return found
