"""Buckets and labels for Prometheus, and the names in the document."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

import mountpoint
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.export.families import Family, families, own_families
from mountpoint.metrics.export.prometheus import _Collector, _converted
from mountpoint.metrics.recorder import Meters
from tests.unit.metrics.export.events import now

DOCUMENT = Path(mountpoint.__file__).parent.parent / "docs" / "metrics.md"


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
