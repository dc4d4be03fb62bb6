"""`mount-s3ctl`: numbers, prices and tables, from made-up answers."""

from typing import Any

import pytest

from mountpoint.ctl import status
from mountpoint.ctl.stats.prices import BY_REGION, FREE, READS, Prices, cost, of_region
from mountpoint.ctl.stats.rates import difference
from mountpoint.ctl.stats.table import lines, table
from mountpoint.ctl.words import age, dollars, milliseconds, size
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.crt.client import REQUESTS
from mountpoint.system.kernel import FuseMount

STATUS = {
    "bucket": "bucket", "prefix": "", "directory": "/mnt", "pid": 7, "uptime_s": 100.0,
    "rss_bytes": 50_000_000, "open_files": 1, "being_written": [], "is_aws": True,
    "region": "eu-central-1",
}  # fmt: skip


def answer(meters: Meters, counters: Counters, at_s: float) -> dict[str, Any]:
    """Return a mount's answer."""
    return {
        "at_s": at_s,
        "status": STATUS,
        "counters": counters.snapshot(),
        "meters": meters.snapshot(),
    }


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of a table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in lines if line}


def test_the_difference_of_two_answers() -> None:
    """Sums are subtracted, also in buckets; levels are those of the second answer."""
    meters, counters = Meters(), Counters()
    meters.read(100)
    meters.request("GetObject").end(404)
    counters.add("gets")
    before = answer(meters, counters, 10.0)
    meters.read(5000)
    meters.request("GetObject").end(404)
    meters.request("GetObject").end(500)
    meters.operation("open").begin()
    counters.add("gets", 2)
    found = difference(answer(meters, counters, 12.0), before)
    assert found["at_s"] == 12.0
    assert found["counters"]["gets"] == 2
    assert found["counters"]["heads"] == 0
    read = found["meters"]["read_bytes"]
    assert (read["count"], read["total"], sum(read["buckets"])) == (1, 5000, 1)
    assert found["meters"]["requests"]["GetObject"]["failures"] == {"404": 1, "500": 1}
    assert found["meters"]["operations"]["open"]["under_way"] == 1


def test_a_table_of_rates() -> None:
    """Rates per second between two answers, and totals."""
    meters, counters = Meters(), Counters()
    meters.read(1_000_000)
    before = answer(meters, counters, 10.0)
    for _ in range(4):
        meters.read(1_000_000)
        meters.operation("read").end(meters.operation("read").begin())
    counters.add("reads_waited")
    found = lines(table(answer(meters, counters, 12.0), before))
    assert found[:2] == [
        "bucket at /mnt",
        "up 1 min, pid 7, 50 MB RSS, 1 open file, 0 being written",
    ]
    assert "in the last 2 s" in found[3]
    assert rows(found)["read"][:1] == ["2"]
    assert "read by programs            2.0 MB" not in "\n".join(found)
    (total,) = [line for line in found if line.startswith("read by programs")]
    assert total.split()[3:] == ["2", "MB", "5", "MB"]
    assert "reads that did not wait for S3: 75.0 %" in "\n".join(found)


def test_costs_by_program() -> None:
    """List prices of the region for each program's requests: per hour, and in total."""
    meters, counters = Meters(), Counters()
    for _ in range(1000):
        meters.request("GetObject").end(None)
    for _ in range(100):
        meters.request("ListObjectsV2").end(None)
    found = "\n".join(lines(table(answer(meters, counters, 0.0), None)))
    # 1,000 GET and 100 LIST in 100 seconds.
    assert f"${(0.00043 + 0.1 * 0.0054) * 36:.2f}" in found
    assert "requests so far $0.000970 (prices: list, eu-central-1)" in found


def test_every_request_has_a_price() -> None:
    """Each operation is free, a read, or of the expensive kind; the first two kinds exist."""
    assert set(REQUESTS) >= FREE | READS
    prices = Prices(5000.0, 1000.0)
    priced = {operation: cost({operation: 1}, prices) for operation in REQUESTS}
    assert priced["GetObject"] == priced["HeadObject"] == 1.0
    assert priced["DeleteObject"] == priced["AbortMultipartUpload"] == 0.0
    assert {priced[name] for name in set(REQUESTS) - FREE - READS} == {5.0}


def test_a_region_without_prices_names_theirs() -> None:
    """The table names the region if its prices are another region's."""
    assert of_region("eu-central-1") == (BY_REGION["eu-central-1"], "eu-central-1")
    assert of_region("mars-north-1") == (BY_REGION["us-east-1"], "us-east-1")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_999, "1.0 MB"), (12e9, "12 GB")],
)  # fmt: skip
def test_sizes(value: float, text: str) -> None:
    """Sizes in the largest unit."""
    assert size(value) == text


def test_times_and_money() -> None:
    """Short, and never with exponents."""
    assert [milliseconds(us) for us in (0, 12, 999.6, 12_345)] == [
        "-",
        "12 us",
        "1.0 ms",
        "12.3 ms",
    ]
    assert [dollars(x) for x in (0, 1e-6, 0.5, 1234.5)] == [
        "$0.00",
        "$0.000001",
        "$0.50",
        "$1234.50",
    ]
    assert [age(s) for s in (5, 60, 7200, 200_000)] == ["5 s", "1 min", "2 h", "2 d"]


# --- status ---

FULL = STATUS | {
    "version": "1.2.3", "read_only": False, "options": ["--allow-delete"], "endpoint": "s3.x",
    "rates": {"read_bytes_per_s": 1.5e6, "written_bytes_per_s": 0, "requests_per_s": 2.5},
    "memory_held_bytes": 5 << 20, "memory_limit_bytes": 256 << 20, "trouble": "",
    "data_plane": "native", "cache_directory": "/c", "cache_limit_bytes": 64 << 20,
    "cache_bucket": "b--x-s3",
    "log": "see the newest log in /var/log/mount-s3",
    "being_written": [{"path": "/a", "size_bytes": 10_000_000, "pending_bytes": 4_000_000}],
}  # fmt: skip


def test_status_in_lines() -> None:
    """The lines for a user, the most important first."""
    assert status.text([FULL], []).splitlines() == [
        "bucket at /mnt",
        "  running    for 1 min, process 7",
        "  changes    new files, --allow-delete",
        "  endpoint   s3.x, region eu-central-1",
        "  rates      1.5 MB/s read, 0 B/s written, 2.5 requests/s",
        "  memory     48 MiB resident; data 5 of 256 MiB (--memory-target)",
        "  files      1 open, 1 file being written (4 MB not yet in S3)",
        "  data plane native",
        "  cache      /c, at most 64 MiB; shared in bucket b--x-s3",
        "  log        see the newest log in /var/log/mount-s3",
    ]


def test_status_of_others() -> None:
    """Mounts with failures, read-only, with long texts, of another version, or dead."""
    troubled = FULL | {
        "trouble": "all requests of the last 12 s have failed: SlowDown",
        "read_only": True,
        "log": "see the newest log in /" + "long/" * 20,
    }
    found = status.text([troubled, STATUS | {"version": "0.9"}], [FuseMount("/dead", 0)], 60)
    first, second, third = found.split("\n\n")
    assert first.splitlines()[1] == "  trouble    all requests of the last 12 s have failed:"
    assert first.splitlines()[2] == "             SlowDown"
    assert "  changes    none, it is read-only" in first
    assert first.splitlines()[-1] == "             /" + "long/" * 20
    assert second.startswith("bucket at /mnt\n  version    0.9, not that of")
    assert third == "/dead does not answer"
    assert status.text([], []) == "nothing is mounted"
