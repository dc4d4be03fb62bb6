"""Pure: the table of `mount-s3ctl stats`, and the rows that fit a terminal's height.

The rows of a block are in order of importance. If not all fit, the empty lines between blocks go
first, then the last rows of the longest block, and a line gives their number.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mountpoint.ctl.stats import prices
from mountpoint.ctl.stats.rates import difference
from mountpoint.ctl.words import age, count, dollars, milliseconds, number, size, title
from mountpoint.log.format import printable
from mountpoint.metrics.recorder import quantile

NAME_CHARS = 23
CELL_CHARS = 10
#: Seconds after which an idle program is no longer shown.
IDLE_S = 60.0


class Heading(str):
    """A line that a terminal shows in bold."""


class Block(NamedTuple):
    """Rows below a heading; those of `head` are always shown."""

    head: Sequence[str]
    rows: Sequence[str] = ()


class Activity:
    """Remembers when each program was last active."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def note(self, now: Mapping[str, Any], before: Mapping[str, Any] | None) -> set[str]:
        """Compare two consecutive answers of a mount; return the programs to show."""
        done = difference(now, before)["meters"]["programs"]
        for name, numbers in done.items():
            if _busy(numbers) or name not in self._last_s:
                self._last_s[name] = now["at_s"]
        return {name for name in done if now["at_s"] - self._last_s[name] < IDLE_S}


def table(
    now: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    given: prices.Prices | None = None,
    programs: Collection[str] | None = None,
) -> list[Block]:
    """Return the activity between two answers of a mount, or in total without `before`.

    `given` are prices that replace the region's, `programs` those to show (None: all).
    """
    status = now["status"]
    since_s = status["uptime_s"] if before is None else now["at_s"] - before["at_s"]
    since_s = max(since_s, 1e-3)
    done = difference(now, before)
    shown = [
        (name, each)
        for name, each in _costliest(done["meters"]["programs"], now["meters"]["programs"])
        if programs is None or name in programs
    ]
    priced, whose = given, "given"
    if priced is None and status["is_aws"]:
        priced, region = prices.of_region(status["region"])
        whose = f"list, {region}"
    when = "since it was mounted" if before is None else f"in the last {number(since_s)} s"
    return [
        Block(_head(status)),
        Block([Heading(row(when, "per s", "in all")), *_bytes(done, now, since_s)]),
        _operations(done["meters"]["operations"], since_s),
        _requests(done["meters"]["requests"], since_s),
        Block(_hits(done, since_s)),
        _programs(shown, since_s, priced),
        *_costs(now, priced, whose),
    ]


def lines(blocks: Sequence[Block], height: int | None = None) -> list[str]:
    """Return the lines of a table, at most `height` of them."""
    kept = [len(block.rows) for block in blocks]
    if height is None or _height(blocks, kept) + len(blocks) - 1 <= height:
        return _joined(blocks, kept, [""])
    while _height(blocks, kept) > height and any(kept):
        kept[kept.index(max(kept))] -= 1
    return _joined(blocks, kept, [])[:height]


def _height(blocks: Sequence[Block], kept: Sequence[int]) -> int:
    """Return the number of lines with this many rows of each block."""
    return sum(
        len(block.head) + rows + (rows < len(block.rows))
        for block, rows in zip(blocks, kept, strict=True)
    )


def _joined(blocks: Sequence[Block], kept: Sequence[int], between: list[str]) -> list[str]:
    found: list[str] = []
    for block, rows in zip(blocks, kept, strict=True):
        more = len(block.rows) - rows
        found += between if found else []
        found += [*block.head, *block.rows[:rows], *([f"{more} more"] if more else [])]
    return found


def _head(status: Mapping[str, Any]) -> list[str]:
    return [
        title(status),
        f"up {age(status['uptime_s'])}, pid {status['pid']}, {size(status['rss_bytes'])} RSS, "
        f"{count(status['open_files'], 'open file')}, {len(status['being_written'])} being written",
    ]


def _bytes(done: Mapping[str, Any], now: Mapping[str, Any], since_s: float) -> list[str]:
    rows = [
        ("read by programs", *_pair(done, now, "meters", "read_bytes", "total")),
        ("fetched from S3", *_pair(done, now, "counters", "bytes_fetched")),
        ("written by programs", *_pair(done, now, "meters", "written_bytes", "total")),
        ("sent to S3", *_pair(done, now, "counters", "bytes_sent")),
    ]
    return [row(name, size(part / since_s), size(total)) for name, part, total in rows]


def _pair(done: Mapping[str, Any], now: Mapping[str, Any], *path: str) -> tuple[int, int]:
    part: Any = done
    total: Any = now
    for name in path:
        part, total = part[name], total[name]
    return int(part), int(total)


def _operations(operations: Mapping[str, Any], since_s: float) -> Block:
    rows = []
    for name, each in _busiest(operations):
        us = each["us"]
        times = (milliseconds(quantile(us, 0.5)), milliseconds(quantile(us, 0.99)))
        rate, failed = number(us["count"] / since_s), number(each["failures"])
        rows.append(row(name, rate, "", *times, failed))
    return Block([Heading(row("operation", "per s", "", "p50", "p99", "failed"))], rows)


def _requests(requests: Mapping[str, Any], since_s: float) -> Block:
    rows = []
    for name, each in _busiest(requests):
        us = each["us"]
        times = (
            milliseconds(quantile(each["first_byte_us"], 0.5)),
            milliseconds(quantile(us, 0.5)),
            milliseconds(quantile(us, 0.99)),
        )
        failed = sum(each["failures"].values())
        rows.append(row(name, number(us["count"] / since_s), *times, number(failed)))
    return Block([Heading(row("request", "per s", "first byte", "p50", "p99", "failed"))], rows)


def _busiest(measured: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries with any activity, the most frequent first."""
    busy = [(name, each) for name, each in measured.items() if each["us"]["count"]]
    return sorted(busy, key=lambda item: -item[1]["us"]["count"])


def _hits(done: Mapping[str, Any], since_s: float) -> list[str]:
    counters = done["counters"]
    reads = done["meters"]["read_bytes"]["count"]
    waited = min(counters["reads_waited"], reads)
    share = f"{100 * (reads - waited) / reads:.1f} %" if reads else "-"
    ahead, unused = counters["bytes_prefetched"], counters["bytes_prefetched_in_vain"]
    return [
        f"reads that did not wait for S3: {share}; retries: {counters['retries']}, "
        f"hedged requests: {counters['hedges']}",
        f"fetched before open: {size(ahead / since_s)} per s, "
        f"{size(unused / since_s)} of it unused",
    ]


def _programs(
    programs: Sequence[tuple[str, Any]], since_s: float, priced: prices.Prices | None
) -> Block:
    head = row("program", "read/s", "written/s", "requests/s", "" if priced is None else "$/h")
    rows = []
    for name, each in programs:
        cells = [size(each["bytes_read"] / since_s), size(each["bytes_written"] / since_s)]
        cells.append(number(sum(each["requests"].values()) / since_s))
        if priced is not None:
            cells.append(dollars(prices.cost(each["requests"], priced) / since_s * 3600))
        rows.append(row(printable(name), *cells))
    return Block([Heading(head)], rows)


def _costliest(
    done: Mapping[str, Any], in_all: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the most active programs first; inactive ones are sorted by their total."""
    return sorted(
        done.items(), key=lambda item: (*_cost(item[1]), *_cost(in_all[item[0]])), reverse=True
    )


def _cost(program: Mapping[str, Any]) -> tuple[float, float]:
    """Return a sort key for programs: requests cost most, then bytes."""
    return sum(program["requests"].values()), program["bytes_read"] + program["bytes_written"]


def _busy(program: Mapping[str, Any]) -> bool:
    return any(_cost(program)) or bool(program["reads"] or program["writes"])


def _costs(now: Mapping[str, Any], priced: prices.Prices | None, whose: str) -> list[Block]:
    if priced is None:
        return []
    counts = {name: each["us"]["count"] for name, each in now["meters"]["requests"].items()}
    total = dollars(prices.cost(counts, priced))
    return [Block([f"requests so far {total} (prices: {whose})"])]


def row(name: str, *cells: str) -> str:
    """Return a line of the table."""
    return f"{name:<{NAME_CHARS}}{''.join(f' {cell:>{CELL_CHARS}}' for cell in cells)}".rstrip()
