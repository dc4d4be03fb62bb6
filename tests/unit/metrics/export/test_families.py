"""Exported metrics: their values, and the differences between two exports."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.metrics.counters import CounterName, Counters
from mountpoint.metrics.export.families import Family, own_families, since
from mountpoint.metrics.recorder import Meters
from tests.unit.metrics.export.events import EVENTS, happen, now


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
