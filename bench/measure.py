"""Make the lines of the table from counters of a process and a workload.

CPU and memory are the mounting process's, from /proc (proc_pid_stat(5), proc_pid_status(5));
requests and bytes are the mount's own counters.
"""

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.reading import Work

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: The columns of the table, and their widths on a terminal.
COLUMNS = {
    "workload": 17,
    "rate": 10,
    "p50, p99": 17,
    "CPU": 12,
    "interpreter": 12,
    "GET, HEAD, LIST": 15,
    "kernel": 7,
    "fetched": 7,
    "of alone": 8,
    "memory, peak": 12,
}


@dataclass(frozen=True)
class Measurement:
    """One run of one workload. `counters` are the mount's own, for the time of the run.

    `held_share` is the share of the time for which the interpreter's lock was held, if known.
    """

    work: Work
    seconds: float
    cpu_seconds: float
    counters: dict[str, int]
    rss_bytes: int
    peak_rss_bytes: int
    held_share: float | None = None


@dataclass(frozen=True)
class Result:
    """The medians of a workload's runs; the latencies come from all runs together.

    `unit` says what `rate_per_s` counts: bytes or operations. `cpu_seconds` is for the whole run.
    So is `held_seconds`, the time with the interpreter's lock held. `of_alone` is the rate divided
    by the rate of the same streams, each alone.
    """

    name: str
    unit: str
    runs: int
    read_bytes: int
    operations: int
    seconds: float
    rate_per_s: float
    cpu_seconds: float
    p50_ms: float | None
    p99_ms: float | None
    gets: int
    heads: int
    lists: int
    kernel_bytes: int
    bytes_asked: int
    of_alone: float | None
    rss_bytes: int
    peak_rss_bytes: int
    held_seconds: float | None = None

    def each(self, seconds: float) -> float:
        """Return seconds per GB, or per operation."""
        return seconds / (self.read_bytes / 1e9 if self.unit == "bytes" else self.operations)

    def cpu_each(self) -> float:
        """Return CPU seconds per GB, or per operation."""
        return self.each(self.cpu_seconds)

    def cell_of(self, seconds: float | None) -> str:
        """Return seconds per GB, or per operation, with the unit."""
        if seconds is None:
            return "-"
        if self.unit == "bytes":
            return f"{self.each(seconds):.2f} s/GB"
        return f"{self.each(seconds) * 1e3:.2f} ms each"

    def rate(self) -> str:
        """Return the rate with its unit."""
        if self.unit == "bytes":
            return f"{self.rate_per_s / 1e6:.0f} MB/s"
        return f"{self.rate_per_s:.0f} /s"

    def kernel(self) -> float | None:
        """Return the bytes that the kernel read per byte of the program; None if it read none."""
        return self.kernel_bytes / self.read_bytes if self.read_bytes else None

    def fetched(self) -> float | None:
        """Return the bytes requested from S3 per byte of the program; None if it read none."""
        return self.bytes_asked / self.read_bytes if self.read_bytes else None

    def line(self) -> str:
        """Return one line of the table, in Markdown."""
        latency = "-" if self.p50_ms is None else f"{self.p50_ms:.2f}, {self.p99_ms:.2f} ms"
        cells = [
            self.name,
            self.rate(),
            latency,
            self.cell_of(self.cpu_seconds),
            self.cell_of(self.held_seconds),
            f"{self.gets}, {self.heads}, {self.lists}",
            _times(self.kernel()),
            _times(self.fetched()),
            _times(self.of_alone),
            f"{self.rss_bytes >> 20}, {self.peak_rss_bytes >> 20} MiB",
        ]
        return table_line(cells)


def result(name: str, unit: str, runs: Sequence[Measurement], alone: Sequence[float]) -> Result:
    """Sum up the runs of a workload; `alone` is the rate of each stream alone. Pure."""
    latencies_ms = sorted(each * 1e3 for run in runs for each in run.work.latencies_s)
    amounts = [run.work.read_bytes if unit == "bytes" else run.work.operations for run in runs]
    rates = [amount / run.seconds for amount, run in zip(amounts, runs, strict=True)]
    rate = statistics.median(rates)

    held = [run.held_share * run.seconds for run in runs if run.held_share is not None]

    def counted(counter: str) -> int:
        return round(statistics.median(run.counters[counter] for run in runs))

    return Result(
        name=name,
        unit=unit,
        runs=len(runs),
        read_bytes=runs[0].work.read_bytes,
        operations=runs[0].work.operations,
        seconds=statistics.median(run.seconds for run in runs),
        rate_per_s=rate,
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        p50_ms=percentile(latencies_ms, 0.50),
        p99_ms=percentile(latencies_ms, 0.99),
        gets=counted("gets"),
        heads=counted("heads"),
        lists=counted("lists"),
        kernel_bytes=counted("bytes_read"),
        bytes_asked=counted("bytes_asked"),
        of_alone=rate / statistics.median(alone) if alone else None,
        rss_bytes=round(statistics.median(run.rss_bytes for run in runs)),
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        held_seconds=statistics.median(held) if held else None,
    )


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the quantile `part` of sorted values; None if there are none. Pure."""
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None


def header() -> list[str]:
    """Return the lines above the table. Pure."""
    return [table_line(list(COLUMNS)), table_line(["-" * width for width in COLUMNS.values()])]


def table_line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table with aligned columns. Pure."""
    padded = [f"{cell:{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)]
    return f"| {' | '.join(padded)} |"


def _times(value: float | None) -> str:
    return "-" if value is None else f"×{value:.2f}" if value < 100 else f"×{value:.0f}"


# -- processes -----------------------------------------------------------------------------------


def cpu_seconds(stat: str) -> float:
    """Return the CPU time in the text of /proc/PID/stat. Pure."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_bytes(status: str, name: str) -> int:
    """Return a size, such as VmRSS or VmHWM, in the text of /proc/PID/status. Pure."""
    (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10


class Process:
    """The mounting process, seen from outside."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used."""
        return cpu_seconds((self._folder / "stat").read_text())

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return memory_bytes((self._folder / "status").read_text(), "VmRSS")

    def peak_rss_bytes(self) -> int:
        """Return its peak memory since `reset_peak`."""
        return memory_bytes((self._folder / "status").read_text(), "VmHWM")

    def reset_peak(self) -> None:
        """Reset the peak, if that is allowed (proc_pid_clear_refs(5))."""
        with contextlib.suppress(OSError):
            (self._folder / "clear_refs").write_text("5")


def drop_caches() -> None:
    """Make the kernel forget cached pages and names, if that is allowed."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
