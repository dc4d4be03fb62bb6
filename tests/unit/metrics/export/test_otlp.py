"""Histograms for OpenTelemetry, compared with those of its library."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from mountpoint.metrics.export.otlp import _distribution
from mountpoint.metrics.recorder import Meters
from tests.unit.metrics.export.events import happen


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
