"""Exported metrics: deltas, Prometheus' buckets, log lines; health."""

import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse
from structlog.testing import capture_logs

import mountpoint
from mountpoint.errors import CredentialsUnavailable, MountError
from mountpoint.metrics.counters import CounterName, Counters
from mountpoint.metrics.export import exports, health
from mountpoint.metrics.export.families import Family, families, own_families, since
from mountpoint.metrics.export.health import Health
from mountpoint.metrics.export.lines import Lines
from mountpoint.metrics.export.otlp import _distribution
from mountpoint.metrics.export.prometheus import _Collector, _converted
from mountpoint.metrics.recorder import Meters
from mountpoint.system.kernel import mount_points

DOCUMENT = Path(mountpoint.__file__).parent.parent / "docs" / "metrics.md"
#: Events of a mount, in any order.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1 << 21)),
        st.tuples(st.just("written"), st.integers(0, 1 << 21)),
        st.tuples(st.sampled_from(("open", "lookup")), st.booleans()),
        st.tuples(st.sampled_from(("GetObject", "HeadObject")), st.sampled_from((None, 0, 404))),
    ),
    max_size=30,
)


def happen(meters: Meters, events: list[tuple[str, Any]]) -> None:
    """Record these events."""
    for name, value in events:
        if name in ("read", "written"):
            getattr(meters, name)(value)
        elif name[0].islower():
            timer = meters.operation(name)
            timer.end(timer.begin(), value)
        else:
            meters.request(name).end(value)


def now(meters: Meters) -> list[Family]:
    """Return the metrics that AWS's mount-s3 has."""
    return families(meters.snapshot(), 1 << 20)


def amounts(found: list[Family]) -> dict[tuple[str, ...], int]:
    """Return all additive values of counters and histograms, by name and labels."""
    return {
        (family.name, *labels, part): number
        for family in found
        if family.kind != "gauge"
        for labels, value in family.points.items()
        for part, number in parts(value)
    }


def parts(value: Any) -> list[tuple[str, int]]:
    """Return the summands of a value."""
    if isinstance(value, int):
        return [("", value)]
    buckets = [(f"bucket {index}", count) for index, count in enumerate(value["buckets"])]
    return [(name, value[name]) for name in ("count", "total", "zeros")] + buckets


@pytest.mark.slow
@given(st.lists(EVENTS, max_size=6))
def test_deltas_add_up(groups: list[list[tuple[str, Any]]]) -> None:
    """All exports together equal the last snapshot, with any events between them."""
    meters, sums = Meters(threads=4), dict[tuple[str, ...], int]()
    before: list[Family] = []
    for group in groups:
        happen(meters, group)
        after = now(meters)
        for name, number in amounts(since(before, after)).items():
            sums[name] = sums.get(name, 0) + number
        before = after
    assert {name: n for name, n in sums.items() if n} == {
        name: n for name, n in amounts(before).items() if n
    }


def test_unchanged_values_are_omitted() -> None:
    """Unchanged values are omitted, except gauges."""
    meters = Meters(threads=4)
    happen(meters, [("read", 5), ("open", True), ("GetObject", 404)])
    first = now(meters)
    assert {family.name for family in since(first, now(meters)) if family.points} == {
        "process.memory_usage",
        "experimental.fuse.total_threads",
    }
    happen(meters, [("GetObject", None)])
    found = {family.name: family.points for family in since(first, now(meters))}
    assert found["s3.request_count"] == {("GetObject",): 1}
    assert "s3.request_errors" not in found
    assert "fuse.io_size" not in found


def test_a_request_without_an_answer() -> None:
    """Its status is the one of AWS's mount-s3."""
    meters = Meters()
    happen(meters, [("GetObject", 0), ("GetObject", 503)])
    found = {family.name: family.points for family in now(meters)}
    assert found["s3.request_errors"] == {("GetObject", "-1"): 1, ("GetObject", "503"): 1}


def test_cancelled_requests_are_counted() -> None:
    """Cancelled requests are counted, because they cost the same, but have no duration."""
    meters = Meters()
    meters.request("GetObject").drop()
    found = {family.name: family.points for family in now(meters)}
    assert found["s3.request_count"] == {("GetObject",): 1}
    assert found["s3.request_total_latency"][("GetObject",)]["count"] == 0


def test_all_counters_are_exported() -> None:
    """Each of `Counters` has a metric and a description."""
    counters = Counters()
    found = {family.name: family for family in own_families(counters.snapshot(), {}, {})}
    for name in get_args(CounterName):
        assert found[f"mount_s3.{name}"].help
        assert found[f"mount_s3.{name}"].points == {(): 0}


# OpenTelemetry


@given(st.lists(st.integers(0, 3) | st.integers(0, 1 << 39), min_size=1, max_size=50))
def test_points_are_those_of_the_library(values: list[int]) -> None:
    """OpenTelemetry's own histogram of the same values has the same buckets at our scale."""
    meters = Meters()
    happen(meters, [("read", value) for value in values])
    ours = _distribution({}, meters.snapshot()["read_bytes"], 1, 2)
    theirs = library_point(values)
    for name in ("count", "sum", "min", "max", "zero_count"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert not any(values) or ours.scale == theirs.scale  # with only zeros its scale is 0
    assert by_index(ours.positive) == by_index(theirs.positive)
    assert not ours.positive.bucket_counts or all(ours.positive.bucket_counts[i] for i in (0, -1))
    assert ours.count == ours.zero_count + sum(ours.positive.bucket_counts)


def library_point(values: list[int]) -> Any:
    """Return the data point of OpenTelemetry's library for some values."""
    reader = InMemoryMetricReader()
    buckets = ExponentialBucketHistogramAggregation(max_size=400, max_scale=3)
    view = View(instrument_name="values", aggregation=buckets)
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    histogram = provider.get_meter("test").create_histogram("values")
    for value in values:
        histogram.record(value)
    data: Any = reader.get_metrics_data()
    provider.shutdown()
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    return point


def by_index(buckets: Any) -> dict[int, int]:
    """Return the non-empty buckets by OpenTelemetry's index."""
    return {i: count for i, count in enumerate(buckets.bucket_counts, buckets.offset) if count}


# Prometheus


@given(st.lists(st.integers(0, 3) | st.integers(0, 1 << 22)))
def test_buckets_for_prometheus(values: list[int]) -> None:
    """Each bucket has the exact number of values that do not exceed its end."""
    meters = Meters(threads=1)
    for value in values:
        meters.read(value)
        meters.threads.idle.add(value)
    text = generate_latest(_Collector(lambda: now(meters))).decode()
    found = {
        (sample.name, sample.labels.get("fuse_request", ""), sample.labels.get("le")): sample.value
        for family in parse(text)
        for sample in family.samples
    }
    for name, request, powers in (
        ("fuse_io_size_bytes", "read", range(9, 21)),
        ("experimental_fuse_idle_threads", "", range(0, 11)),
    ):
        for power in powers:
            expected = sum(value <= 1 << power for value in values)
            assert found[f"{name}_bucket", request, f"{1 << power}.0"] == expected
        assert found[f"{name}_bucket", request, "+Inf"] == len(values)
        assert found[f"{name}_count", request, None] == len(values)
        assert found[f"{name}_sum", request, None] == sum(values)


def test_any_program_name_can_be_exported() -> None:
    """A program may have any name, with quotes and line ends."""
    name = 'a "b"\\\nc{d="e"} \x1b\u202e\\xff'
    numbers: Mapping[str, Any] = {
        "reads": 1, "bytes_read": 2, "writes": 3, "bytes_written": 4, "requests": {"GetObject": 5}
    }  # fmt: skip
    found = own_families(Counters().snapshot(), {name: numbers}, {})
    text = generate_latest(_Collector(lambda: found)).decode()
    labels = [
        sample.labels["program"]
        for family in parse(text)
        for sample in family.samples
        if "program" in sample.labels
    ]
    assert set(labels) == {name}


# The log


def test_lines_of_the_log() -> None:
    """Changed metrics have a line with rate and percentiles; unchanged ones have none."""
    meters, now_s, resident = Meters(threads=4), [0.0], [1 << 20]
    lines = Lines(lambda: families(meters.snapshot(), resident[0]), lambda: now_s[0])

    def written() -> dict[tuple[str, str], Any]:
        now_s[0] += 5
        with capture_logs() as logged:
            lines.write()
        assert {line["log_level"] for line in logged} <= {"info"}
        return {
            (line["event"], line.get("fuse_request") or line.get("s3_request") or ""): line
            for line in logged
        }

    happen(meters, [("read", 1000)] * 98 + [("read", 0), ("read", 1 << 20), ("GetObject", None)])
    first = written()
    read = first["fuse.io_size", "read"]
    assert {name: read[name] for name in ("unit", "n", "per_s", "sum", "min", "p50", "max")} == {
        "unit": "By", "n": 100, "per_s": "20", "sum": 98_000 + (1 << 20), "min": 0, "p50": 1024,
        "max": 1 << 20,
    }  # fmt: skip
    assert 1000 <= read["p99"] <= 1090
    count = first["s3.request_count", "GetObject"]
    assert (count["n"], count["per_s"]) == (1, "0.2")
    assert "unit" not in count
    assert first["process.memory_usage", ""]["value"] == 1 << 20
    assert ("fuse.io_size", "write") not in first
    assert written() == {}
    resident[0] += 4096
    happen(meters, [("written", 7)])
    second = written()
    assert set(second) == {("process.memory_usage", ""), ("fuse.io_size", "write")}
    write = second["fuse.io_size", "write"]
    assert [write[name] for name in ("n", "min", "p50", "p99", "max")] == [1, 7, 7, 7, 7]


# Health


class World:
    """A mount's health, with a clock that tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: str = "/") -> None:
        self.now_s = 1000.0
        self.meters = Meters(threads=2)
        self.stopping = threading.Event()
        monkeypatch.setattr("mountpoint.metrics.recorder.time.monotonic", lambda: self.now_s)
        self.health = Health(self.meters, self.stopping, directory, 60, lambda: self.now_s)

    def serve(self, check: Any = lambda: None) -> None:
        """Report the mount as serving."""
        self.health.serving(check)

    def both(self) -> tuple[str, str]:
        """The answers of /livez and /healthz."""
        return self.health.why_not_alive(), self.health.why_not_well()


def test_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount is healthy while it is mounted, and neither before nor after."""
    world = World(monkeypatch)
    assert world.both() == ("the bucket is not mounted yet", "the bucket is not mounted yet")
    world.serve()
    assert world.both() == ("", "")
    world.stopping.set()
    assert world.both() == ("the bucket is being unmounted", "the bucket is being unmounted")


def test_mounted_and_detached_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached mount serves no new program; one that was never visible proves nothing."""
    world = World(monkeypatch, "/detached")
    monkeypatch.setattr(health, "mount_points", lambda: {"/detached": "0:1"})
    world.serve()
    assert world.both() == ("", "")
    monkeypatch.setattr(health, "mount_points", mount_points)
    assert "the mount at /detached is gone" in world.both()[0]
    other = World(monkeypatch, "/dev/fd/5")
    other.serve()
    assert other.both() == ("", "")


def test_credentials_that_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired credentials show without a request; a restart does not help."""

    def check() -> None:
        raise CredentialsUnavailable("the credentials have expired")

    world = World(monkeypatch)
    world.serve(check)
    assert world.both() == ("", "the credentials have expired")


def test_s3_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing S3 shows for as long as requests may wait; a missing object is no failure."""
    world = World(monkeypatch)
    world.serve()
    world.meters.request("GetObject").end(503, "SlowDown")
    world.now_s += 59
    world.meters.request("GetObject").end(503, "SlowDown")
    assert world.both() == ("", "")
    world.now_s += 1
    assert world.both() == ("", "all requests of the last 60 s have failed: SlowDown")
    world.meters.request("HeadObject").end(404)
    assert world.both() == ("", "")


def test_threads_that_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are busy, and no operation or request has ended for three minutes."""
    world = World(monkeypatch)
    world.serve()
    timer = world.meters.operation("read")
    begun = [timer.begin(), timer.begin()]
    request = world.meters.request("GetObject")
    assert world.both() == ("", "")
    world.now_s += 100
    request.end(None)
    assert world.both() == ("", "")
    world.now_s += 179
    assert world.both() == ("", "")
    world.now_s += 1
    expected = "all 2 threads are busy, and no operation has ended for 180 s"
    assert world.both() == (expected, expected)
    timer.end(begun.pop())
    assert world.both() == ("", "")
    timer.begin()
    world.now_s += 10
    assert world.both() == ("", "")


# Missing libraries


def test_an_extra_that_is_missing() -> None:
    """The message has the reason and the command."""
    with pytest.raises(MountError) as caught, exports._extra("--prometheus", "prometheus"):
        raise ImportError("No module named 'prometheus_client'")
    assert "No module named 'prometheus_client'" in caught.value.what
    assert caught.value.hint == "pip install 'mount-s3[prometheus]'"


@pytest.mark.slow
def test_without_metrics_nothing_heavy_is_loaded() -> None:
    """The libraries are imported only with the options that need them."""
    program = "import sys, mountpoint.mount.run; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "mountpoint.metrics.export.exports" in loaded
    assert not {"opentelemetry", "prometheus_client", "requests"} & loaded


# The document


def test_all_metrics_are_explained() -> None:
    """The document has all metrics by both names, with their labels, and no others."""
    text = DOCUMENT.read_text()
    found = families(Meters().snapshot(), 0)
    own = own_families(Counters().snapshot(), {}, {})
    for family in found:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{family.name}` |")]
        assert f"| `{_exposed(family)}` |" in row
        assert f"| {family.kind}" in row
        assert all(f"`{label}`" in row for label in family.label_names)
    assert set(re.findall(r"`(mount_s3_\w+)`", text)) == {_exposed(each) for each in own}
    told = set(re.findall(r"^\| `([a-z0-9_]+\.[a-z0-9_.]+)` \|", text, re.MULTILINE))
    assert told == {family.name for family in found}


def _exposed(family: Family) -> str:
    name = str(_converted(family).name)
    return f"{name}_total" if family.kind == "counter" else name
