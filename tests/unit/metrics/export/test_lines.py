"""Lines of the log with the changes."""

from typing import Any

from structlog.testing import capture_logs

from mountpoint.metrics.export.families import families
from mountpoint.metrics.export.lines import Lines
from mountpoint.metrics.recorder import Meters
from tests.unit.metrics.export.events import happen


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
