"""`mount-s3ctl stats`: what a mount does, once a second, as a table like top(1)'s."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from mountpoint.ctl import prices
from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.rates import difference
from mountpoint.ctl.words import age, dollars, milliseconds, number, size
from mountpoint.log_render import printable
from mountpoint.meters import quantile

#: How many programs are shown: those that cost most.
MOST_PROGRAMS = 10
NAME_CHARS = 23
CELL_CHARS = 10
CLEAR = "\x1b[H\x1b[J"


def show(mount: Mount, *, interval_s: float, once: bool, as_json: bool, given: Any) -> None:
    """Write what a mount does until it ends, or Ctrl-C. Raises MountError when it ends.

    `given` are prices in place of the region's. With `once` it is what it has done so far.
    """
    before = None if once else mount.ask("stats")
    live = sys.stdout.isatty() and not once and not as_json
    while True:
        if not once:
            time.sleep(interval_s)
        now = mount.ask("stats")
        if as_json:
            click.echo(json.dumps(now))
        else:
            text = "\n".join(table(now, before, given))
            click.echo(CLEAR + text if live else text + "\n")
        if once:
            return
        before = now


def table(now: Mapping[str, Any], before: Mapping[str, Any] | None, given: Any) -> list[str]:
    """Return the lines: what was done between two answers, or, without the first, in all."""
    status = now["status"]
    since_s = status["uptime_s"] if before is None else now["at_s"] - before["at_s"]
    since_s = max(since_s, 1e-3)
    done = difference(now, before)
    place = status["bucket"] + ("/" + status["prefix"] if status["prefix"] else "")
    lines = [
        f"{printable(place)} at {printable(status['directory'])}: up {age(status['uptime_s'])}, "
        f"pid {status['pid']}, {size(status['rss_bytes'])} RSS, {status['open_files']} open files, "
        f"{len(status['being_written'])} being written",
        "",
        *_bytes(done, now, since_s),
        "",
        *_operations(done["meters"]["operations"], since_s),
        "",
        *_requests(done["meters"]["requests"], since_s),
        "",
        _hits(done),
        *_costs(done, now, since_s, status, given),
    ]
    return lines


def _bytes(done: Mapping[str, Any], now: Mapping[str, Any], since_s: float) -> list[str]:
    rows = [
        ("read by programs", *_pair(done, now, "meters", "read_bytes", "total")),
        ("fetched from S3", *_pair(done, now, "counters", "bytes_fetched")),
        ("written by programs", *_pair(done, now, "meters", "written_bytes", "total")),
        ("sent to S3", *_pair(done, now, "counters", "bytes_sent")),
    ]
    return [
        row("", "per s", "in all"),
        *(row(name, size(part / since_s), size(total)) for name, part, total in rows),
    ]


def _pair(done: Mapping[str, Any], now: Mapping[str, Any], *path: str) -> tuple[int, int]:
    part: Any = done
    total: Any = now
    for name in path:
        part, total = part[name], total[name]
    return int(part), int(total)


def _operations(operations: Mapping[str, Any], since_s: float) -> list[str]:
    lines = [row("operation", "per s", "p50", "p99", "", "failed")]
    for name, each in _busiest(operations):
        count, us = each["us"]["count"], each["us"]
        times = (milliseconds(quantile(us, 0.5)), milliseconds(quantile(us, 0.99)))
        lines.append(row(name, number(count / since_s), *times, "", number(each["failures"])))
    return lines


def _requests(requests: Mapping[str, Any], since_s: float) -> list[str]:
    lines = [row("request", "per s", "first byte", "p50", "p99", "failed")]
    for name, each in _busiest(requests):
        us = each["us"]
        times = (
            milliseconds(quantile(each["first_byte_us"], 0.5)),
            milliseconds(quantile(us, 0.5)),
            milliseconds(quantile(us, 0.99)),
        )
        failed = sum(each["failures"].values())
        lines.append(row(name, number(us["count"] / since_s), *times, number(failed)))
    return lines


def _busiest(measured: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what there was any of, most often first."""
    busy = [(name, each) for name, each in measured.items() if each["us"]["count"]]
    return sorted(busy, key=lambda item: -item[1]["us"]["count"])


def _hits(done: Mapping[str, Any]) -> str:
    counters = done["counters"]
    reads = done["meters"]["read_bytes"]["count"]
    waited = min(counters["reads_waited"], reads)
    share = f"{100 * (reads - waited) / reads:.1f} %" if reads else "-"
    ahead, in_vain = counters["bytes_prefetched"], counters["bytes_prefetched_in_vain"]
    return (
        f"reads that found their bytes here {share}; fetched ahead of opens {size(ahead)}, "
        f"in vain {size(in_vain)}; retries {counters['retries']}, second requests "
        f"{counters['hedges']}"
    )


def _costs(
    done: Mapping[str, Any],
    now: Mapping[str, Any],
    since_s: float,
    status: Mapping[str, Any],
    given: prices.Prices | None,
) -> list[str]:
    priced, whose = given, "given"
    if priced is None and status["is_aws"]:
        priced, region = prices.of_region(status["region"])
        whose = f"list, {region}"
    programs = done["meters"]["programs"]
    heading = row("program", "read/s", "written/s", "requests/s", "" if priced is None else "$/h")
    lines = ["", heading]
    ranked = sorted(programs.items(), key=lambda item: -sum(item[1]["requests"].values()))
    for name, each in ranked[:MOST_PROGRAMS]:
        cells = [size(each["bytes_read"] / since_s), size(each["bytes_written"] / since_s)]
        cells.append(number(sum(each["requests"].values()) / since_s))
        if priced is not None:
            cells.append(dollars(prices.cost(each["requests"], priced) / since_s * 3600))
        lines.append(row(printable(name), *cells))
    if priced is not None:
        total = prices.cost(_counts(now["meters"]["requests"]), priced)
        lines += ["", f"requests so far {dollars(total)} (prices: {whose})"]
    return lines


def _counts(requests: Mapping[str, Any]) -> dict[str, float]:
    return {name: each["us"]["count"] for name, each in requests.items()}


def row(name: str, *cells: str) -> str:
    """Return a line of the table."""
    return f"{name:<{NAME_CHARS}}{''.join(f' {cell:>{CELL_CHARS}}' for cell in cells)}".rstrip()
