"""The table of rates and costs, from made-up answers."""

from mountpoint.ctl.stats.table import lines, table
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from tests.unit.ctl.answers import answer


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of a table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in lines if line}


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
