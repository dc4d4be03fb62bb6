"""The exports match the work of the mount, and a collector cannot disturb a mount."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from tests.collector import Collector, key
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import environment, eventually, mounted, run, store_options
from tools import mounting

pytestmark = pytest.mark.mount

DELTA = pb.AGGREGATION_TEMPORALITY_DELTA
EVERY_SECOND = ("--otlp-export-interval", "1")
GETS = key("s3.request_count", s3_request="GetObject")
#: The metrics of AWS's mount-s3: kind, unit, attributes.
METRICS = {
    "fuse.io_size": ("exponential_histogram", "By", {"fuse_request"}),
    "fuse.request_errors": ("sum", "1", {"fuse_request"}),
    "fuse.request_latency": ("exponential_histogram", "us", {"fuse_request"}),
    "process.memory_usage": ("gauge", "By", set()),
    "s3.request_count": ("sum", "1", {"s3_request"}),
    "s3.request_errors": ("sum", "1", {"s3_request", "http_status"}),
    "s3.request_first_byte_latency": ("exponential_histogram", "us", {"s3_request"}),
    "s3.request_total_latency": ("exponential_histogram", "us", {"s3_request"}),
    "experimental.fuse.idle_threads": ("exponential_histogram", "1", set()),
    "experimental.fuse.total_threads": ("gauge", "1", set()),
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that answers."""
    with Collector() as it:
        yield it


def test_all_that_was_done_arrives(store: Store, folder: Path, collector: Collector) -> None:
    """Names, units and attributes are those of AWS's mount-s3; the deltas add up exactly."""
    sizes = {f"otlp/{number}": 1000 * number + 1 for number in range(20)}
    for name, size in sizes.items():
        store.put(name, b"x" * size)
    seen: list[Exchange] = []
    slow = iter([True])

    def slow_down(exchange: Exchange) -> None:
        if exchange.is_data and next(slow, False):
            exchange.refuse(503, "SlowDown")

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(seen.append)
        options = ("--prefix", "otlp/", "--otlp-endpoint", collector.url, *EVERY_SECOND)
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            del seen[1:]  # the first LIST stays; the probe of the store is not counted
            proxy.faults.append(slow_down)
            for number, (name, size) in enumerate(sizes.items()):
                assert len((mount.path / name.rpartition("/")[2]).read_bytes()) == size
                if number == 10:  # to get several exports
                    eventually(lambda: collector.sums()[GETS] > 0)
            (mount.path / "new").write_bytes(b"y" * 300_000)
            with pytest.raises(PermissionError):
                (mount.path / "0").unlink()
            with pytest.raises(FileNotFoundError):
                (mount.path / "none").read_bytes()
            os.kill(mount.pid, signal.SIGTERM)
            eventually(mount.has_ended)
    exports = len(collector.exports)
    time.sleep(1.5)
    assert len(collector.exports) == exports > 1  # no export after the end
    assert {export.path for export in collector.exports} == {"/v1/metrics"}

    found = {metric.name: metric for export in collector.exports for metric in export.metrics}
    assert set(found) == set(METRICS)
    for export in collector.exports:
        for metric in export.metrics:
            kind, unit, attributes = METRICS[metric.name]
            assert (metric.WhichOneof("data"), metric.unit) == (kind, unit)
            data = getattr(metric, kind)
            if kind != "gauge":
                assert data.aggregation_temporality == DELTA
            if kind == "sum":
                assert data.is_monotonic
            for point in data.data_points:
                assert {each.key for each in point.attributes} == attributes
    for resource in (each for export in collector.exports for each in export.body.resource_metrics):
        assert list(resource.resource.attributes) == []
        assert [scope.scope.name for scope in resource.scope_metrics] == ["mountpoint-s3"]

    sums, counts = collector.sums(), collector.counts()
    assert sums[key("fuse.io_size", fuse_request="read")] == sum(sizes.values())
    assert sums[key("fuse.io_size", fuse_request="write")] == 300_000
    gets = sum(exchange.is_data for exchange in seen)
    lists = sum(exchange.is_list for exchange in seen)
    assert gets > len(sizes)
    assert sums[key("s3.request_errors", s3_request="GetObject", http_status="503")] == 1
    assert sums[GETS] == gets
    assert sums[key("s3.request_count", s3_request="ListObjectsV2")] == lists
    assert sums[key("s3.request_count", s3_request="PutObject")] == 1
    assert counts[key("s3.request_total_latency", s3_request="PutObject")] == 1
    assert counts[key("fuse.request_latency", fuse_request="open")] == len(sizes)
    assert sums[key("fuse.request_errors", fuse_request="unlink")] == 1
    assert counts[key("experimental.fuse.idle_threads")] == sum(
        count for (name, _), count in counts.items() if name == "fuse.request_latency"
    )


def test_histograms_are_whole(store: Store, folder: Path, collector: Collector) -> None:
    """The buckets of each histogram contain all its values, between its minimum and maximum."""
    store.put("otlp-sizes/a", b"x" * 100_000)
    options = ("--prefix", "otlp-sizes/", "--otlp-endpoint", collector.url, *EVERY_SECOND)
    with mounted(store, folder, *options) as mount:
        with (mount.path / "a").open("rb", buffering=0) as file:
            for size in (1, 2, 3, 1000, 1, 1 << 16):
                os.pread(file.fileno(), size, 0)
        (mount.path / "b").write_bytes(b"1")
    points = [point for export in collector.exports for _, point in export.points()]
    histograms = [each for each in points if isinstance(each, pb.ExponentialHistogramDataPoint)]
    assert len(histograms) > 10
    now_ns = time.time_ns()
    for each in histograms:
        assert each.scale == 3
        assert each.count == each.zero_count + sum(each.positive.bucket_counts) > 0
        assert each.min * each.count <= each.sum <= each.max * each.count
        assert now_ns - 60e9 < each.start_time_unix_nano <= each.time_unix_nano <= now_ns
        if each.positive.bucket_counts:
            end = each.positive.offset + len(each.positive.bucket_counts)
            assert each.max <= 2 ** (end / 8) * 1.000_001
            assert each.zero_count or each.min > 2 ** (each.positive.offset / 8) * 0.999_999
    (wrote,) = (
        point
        for export in collector.exports
        for name, point in export.points()
        if name == key("fuse.io_size", fuse_request="write")
    )
    assert (wrote.count, wrote.sum, wrote.min, wrote.max, wrote.positive.offset) == (1, 1, 1, 1, -1)


def test_variables_of_the_library_hold(store: Store, folder: Path, collector: Collector) -> None:
    """The library's variables work: headers, compression, resource attributes, totals."""
    store.put("otlp/0", b"x")
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=secret-of-mine",
        "OTEL_SERVICE_NAME": "my-mount",
        "OTEL_RESOURCE_ATTRIBUTES": "team=a",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative",
        "AWS_ENDPOINT_URL_S3": store.endpoint_url,
    }
    options = (
        "--otlp-endpoint",
        f"{collector.url}/v1/metrics",
        *EVERY_SECOND,
        "--debug",
        "--force-path-style",
    )
    with mounted(store, folder, *options, environ=variables) as mount:
        assert (mount.path / "otlp" / "0").read_bytes() == b"x"
        eventually(lambda: len(collector.exports) > 2)
        assert "secret-of-mine" not in mount.log
    assert {export.path for export in collector.exports} == {"/v1/metrics"}
    last = collector.exports[-1]
    assert last.headers["x-api-key"] == "secret-of-mine"
    (resource,) = last.body.resource_metrics
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes == {"service.name": "my-mount", "team": "a"}
    points = [dict(export.points()) for export in collector.exports]
    values = [each[GETS] for each in points if GETS in each]
    assert [value.as_int for value in values] == [1] * len(values)
    assert len({value.start_time_unix_nano for value in values}) == 1


def test_a_collector_that_comes_and_goes(store: Store, folder: Path) -> None:
    """Without a collector the mount works and logs one warning; the values are sent later."""
    store.put("otlp-late/0", b"x" * 1234)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    read = key("fuse.io_size", fuse_request="read")
    options = (
        "--prefix",
        "otlp-late/",
        "--otlp-endpoint",
        f"http://127.0.0.1:{port}",
        *EVERY_SECOND,
    )
    with mounted(store, folder, *options) as mount:
        assert (mount.path / "0").read_bytes() == b"x" * 1234
        eventually(lambda: "metrics could not be sent" in mount.log, within_s=30)
        with Collector(port=port) as collector:
            eventually(lambda: collector.sums()[read] == 1234, within_s=30)
            collector.status = 400
            eventually(lambda: collector.arrived > len(collector.exports) + 1)
            collector.status = 200
            (mount.path / "new").write_bytes(b"y" * 10)
            written = key("fuse.io_size", fuse_request="write")
            eventually(lambda: collector.sums()[written] == 10)
            assert collector.sums()[read] == 1234
        (warning,) = [line for line in mount.log.splitlines() if "level=warning" in line]
        assert "Connection refused" in warning
        assert f"url=http://127.0.0.1:{port}/v1/metrics" in warning


def test_a_collector_that_does_not_answer(store: Store, folder: Path) -> None:
    """Reads work, and the unmount waits for the collector at most a few seconds."""
    store.put("otlp-silent/0", b"x" * 100)
    with Collector(silent=True) as collector:
        options = ("--prefix", "otlp-silent/", "--otlp-endpoint", collector.url, *EVERY_SECOND)
        with mounted(store, folder, *options) as mount:
            eventually(lambda: collector.arrived > 0)
            begun_s = time.monotonic()
            assert (mount.path / "0").read_bytes() == b"x" * 100
            assert time.monotonic() - begun_s < 3
            begun_s = time.monotonic()
            os.kill(mount.pid, signal.SIGTERM)
            eventually(lambda: not mount.is_mounted(), within_s=3)
            eventually(mount.has_ended, within_s=12)
            assert "last metrics were not sent in time" in mount.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--otlp-export-interval", "5"], "is given without --otlp-endpoint"),
        (["--otlp-endpoint", "localhost:4318"], "'localhost:4318' is not the URL of a collector"),
        (["--log-metrics", "--no-log"], "--no-log excludes"),
    ],
)  # fmt: skip
def test_wrong_options(options: list[str], said: str, store: Store, folder: Path) -> None:
    """Each wrong option is refused in one message, and nothing is mounted."""
    path = folder / "mnt"
    path.mkdir()
    result = run(store.bucket, path, *store_options(store), *options, env=store.environment)
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert not mounting.is_mounted(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "Unsupported compression type: zip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "Invalid timeout value 'soon'"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret-of-mine", "Header format invalid!"),
    ],
)
def test_wrong_variables(name: str, value: str, said: str, store: Store, folder: Path) -> None:
    """Variables that the library would ignore are refused; a header's value is not shown."""
    path = folder / "mnt"
    path.mkdir()
    options = [*store_options(store), "--otlp-endpoint", "http://127.0.0.1:1"]
    result = run(store.bucket, path, *options, env=store.environment | {name: value})
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert "secret-of-mine" not in result.stderr
    assert not mounting.is_mounted(path)


def test_a_header_that_cannot_be_sent(store: Store, folder: Path, collector: Collector) -> None:
    """The warning names the header without its value."""
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=secret-of%0Amine",
        "AWS_ENDPOINT_URL_S3": store.endpoint_url,
    }
    options = ("--otlp-endpoint", collector.url, *EVERY_SECOND, "--force-path-style", "--debug")
    with mounted(store, folder, *options, environ=variables) as mount:
        eventually(lambda: "metrics could not be sent" in mount.log)
        (warning,) = [line for line in mount.log.splitlines() if "level=warning" in line]
    assert "header value" in warning
    assert "[redacted]" in warning
    assert "secret-of" not in mount.log
    assert collector.exports == []


def test_without_the_library(store: Store, folder: Path) -> None:
    """The missing library is reported before the mount, with the command that installs it."""
    path, hidden = folder / "mnt", folder / "hidden"
    path.mkdir()
    for name in ("opentelemetry", "prometheus_client"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('it is not there')")
    for option, extra in (
        ("--otlp-endpoint=http://127.0.0.1:1", "otlp"),
        ("--prometheus=:0", "prometheus"),
    ):
        environ = environment(store.environment) | {"PYTHONPATH": str(hidden)}
        result = run(store.bucket, path, *store_options(store), option, env=environ)
        assert result.returncode == 1, result.stderr
        assert re.search(rf"pip install 'mount-s3\[{extra}\]'", result.stderr)
        assert not mounting.is_mounted(path)
