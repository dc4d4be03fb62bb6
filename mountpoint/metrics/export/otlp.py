"""Send metrics to a collector: OTLP over HTTP, as AWS's mount-s3 does.

Each export sends the *deltas* since the last successful one; histograms keep their exponential
buckets. This program aggregates the numbers itself (`metrics/recorder`). It uses only the data
classes and the exporter of OpenTelemetry's SDK, with its handling of headers, certificates,
compression, retries and variables (OTEL_EXPORTER_OTLP_HEADERS ...).

If the collector does not accept an export, the next one includes its values, so nothing is lost
while the collector is away. If it accepts one but the confirmation comes too late, it gets the same
values twice.

The extra `otlp` installs the libraries. https://opentelemetry.io/docs/specs/otlp/
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mountpoint.errors import MountError
from mountpoint.log.format import Redactor
from mountpoint.log.throttle import LogThrottle
from mountpoint.metrics._histogram import SCALE
from mountpoint.metrics.export.families import Family, since

log = structlog.get_logger(__name__)

#: The collectors' path for metrics; AWS's mount-s3 appends it to the given URL, too.
PATH = "/v1/metrics"
#: The scope name of AWS's mount-s3.
SCOPE = InstrumentationScope("mountpoint-s3")
#: Seconds; the last export must not delay the end of the mount.
LAST_EXPORT_S = 3.0
LIBRARY = "opentelemetry"
#: Variables that may hold the collector's credentials: `name=value`, comma-separated and encoded.
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS")
#: OpenTelemetry's variable; the default here is our own.
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class Otlp:
    """Sends the metrics from `collect`. One thread calls `export`, at the end `export_last`."""

    def __init__(
        self, endpoint: str, collect: Callable[[], list[Family]], environ: Mapping[str, str]
    ) -> None:
        # dependencies
        self._collect = collect
        self._messages = _LibraryMessages(environ)
        self._throttle = LogThrottle()
        # constants
        self._url = endpoint.rstrip("/").removesuffix(PATH) + PATH
        self._cumulative = environ.get(TEMPORALITY, "").strip().lower() == "cumulative"
        # AWS's mount-s3 sets no resource, because collectors turn it into dimensions. Here it holds
        # only OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        self._resource = OTELResourceDetector().detect()
        # mutable, used by the exporting thread
        self._sent: list[Family] = []
        self._sent_ns = time.time_ns()
        self._failing = False
        library = logging.getLogger(LIBRARY)
        library.handlers, library.propagate = [self._messages], False
        self._exporter = self._made(None)

    def export(self) -> None:
        """Send the changes since the last successful export."""
        self._send(self._exporter)

    def export_last(self) -> None:
        """Send the remaining changes, within LAST_EXPORT_S."""
        self._messages.messages.clear()
        self._send(self._made(LAST_EXPORT_S))

    def interrupt(self) -> None:
        """Stop waiting between the tries of an export."""
        self._exporter.shutdown()

    def _made(self, timeout_s: float | None) -> OTLPMetricExporter:
        """Return an exporter. Raises MountError for variables that the library rejects."""
        try:
            exporter = OTLPMetricExporter(endpoint=self._url, timeout=timeout_s)
        except Exception as error:  # the library may raise anything while it reads them
            self._messages.messages.append(str(error))
        if self._messages.messages:
            raise MountError(
                f"OpenTelemetry's library: {self._messages.messages[0]}",
                "check the variables OTEL_EXPORTER_OTLP_*",
            )
        return exporter

    def _send(self, exporter: OTLPMetricExporter) -> None:
        found, now_ns = self._collect(), time.time_ns()
        # The clock may have been set back.
        begun_ns = min(self._sent_ns, now_ns)
        data = self._data(since(self._sent, found), begun_ns, now_ns)
        self._messages.messages.clear()
        if exporter.export(data) is MetricExportResult.SUCCESS:
            if not self._cumulative:
                self._sent, self._sent_ns = found, now_ns
            if self._failing:
                log.info("metrics are being sent again", url=self._url)
            self._failing = False
            return
        self._failing = True
        before = self._throttle.note(self._url)
        if before is not None:
            log.warning(
                "metrics could not be sent",
                url=self._url,
                reason=next(iter(self._messages.messages), "no answer"),
                times_before=before or None,
                hint="the mount keeps them until the collector accepts them",
            )

    def _data(self, found: Sequence[Family], begun_ns: int, now_ns: int) -> MetricsData:
        temporality = AggregationTemporality.DELTA
        if self._cumulative:
            temporality = AggregationTemporality.CUMULATIVE
        metrics = [_metric(family, temporality, begun_ns, now_ns) for family in found]
        scope = ScopeMetrics(scope=SCOPE, metrics=metrics, schema_url="")
        resource = ResourceMetrics(
            resource=self._resource, scope_metrics=[scope], schema_url=self._resource.schema_url
        )
        return MetricsData([resource])


class _LibraryMessages(logging.Handler):
    """Collects the library's messages during an export, without secrets. We log them ourselves.

    The first message is the one that explains a failure.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(logging.WARNING)
        pairs = [pair for name in HEADERS for pair in environ.get(name, "").split(",")]
        values = [pair.partition("=")[2].strip() or pair.strip() for pair in pairs]
        self._redact = Redactor([*values, *map(unquote, values)])
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self._redact(record.getMessage()))


def _metric(
    family: Family, temporality: AggregationTemporality, begun_ns: int, now_ns: int
) -> Metric:
    data: Any
    if family.kind == "histogram":
        points = [_distribution(*point, begun_ns, now_ns) for point in family.labelled()]
        data = ExponentialHistogram(points, temporality)
    else:
        values = family.labelled()
        if family.kind == "gauge":  # doubles, as in AWS's mount-s3
            data = Gauge([NumberDataPoint(labels, 0, now_ns, float(n)) for labels, n in values])
        else:
            numbers = [NumberDataPoint(labels, begun_ns, now_ns, n) for labels, n in values]
            data = Sum(numbers, temporality, is_monotonic=True)
    return Metric(name=family.name, description=family.help, unit=family.unit, data=data)


def _distribution(
    labels: dict[str, str], numbers: Mapping[str, Any], begun_ns: int, now_ns: int
) -> ExponentialHistogramDataPoint:
    """Return a histogram's numbers as a data point.

    The first bucket here holds only ones, which are the upper end of OpenTelemetry's bucket -1.
    """
    ones, *others = numbers["buckets"] or [0]
    counts, offset = ([ones, 0, *others] if others else [ones]), -1
    while counts and not counts[0]:
        del counts[0]
        offset += 1
    return ExponentialHistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=begun_ns,
        time_unix_nano=now_ns,
        count=numbers["count"],
        sum=numbers["total"],
        scale=SCALE,
        zero_count=numbers["zeros"],
        positive=Buckets(offset, counts),
        negative=Buckets(0, []),
        flags=0,
        min=numbers["least"],
        max=numbers["most"],
    )
