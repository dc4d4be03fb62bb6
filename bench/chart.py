"""One chart of several runs of the bench, as SVG: `python -m bench.chart a.json b.json -o out.svg`.

Everything is relative to the first run, on logarithmic scales to the base 2: bars to the right are
faster, or need more CPU. `make bench-chart` installs matplotlib first.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Result

#: Height of a group's bars, as a share of the group; the rest is space.
GROUP_HEIGHT = 0.8
INCHES_PER_BAR = 0.12
INCHES_PER_GROUP = 0.12
INCHES_OF_FRAME = 1.0
#: Smaller ratios are drawn as this one: on a logarithmic scale they would take all the space.
MIN_RATIO = 1 / 64


@dataclass(frozen=True)
class Report:
    """One file of `bench.run --json`."""

    label: str
    results: dict[str, Result]


@dataclass(frozen=True)
class Row:
    """A workload, and for each run its speed and CPU relative to the first; None: not measured."""

    name: str
    rate: str
    speeds: list[float | None]
    costs: list[float | None]


def read_report(path: Path) -> Report:
    """Read a file of `bench.run --json`."""
    report: dict[str, Any] = json.loads(path.read_text())
    results = {each["name"]: Result(**each) for each in report["results"]}
    return Report(f"{path.stem} ({report['commit']})", results)


def compared(reports: list[Report]) -> list[Row]:
    """Return the rows of the chart: the workloads of the first run, in its order. Pure."""
    rows = []
    for name, first in reports[0].results.items():
        found = [report.results.get(name) for report in reports]
        speeds = [_ratio(each.rate_per_s, first.rate_per_s) if each else None for each in found]
        costs = [_ratio(each.cpu_each(), first.cpu_each()) if each else None for each in found]
        rows.append(Row(name, first.rate(), speeds, costs))
    return rows


def draw(reports: list[Report], path: Path) -> None:
    """Draw the chart of two or more runs."""
    import matplotlib
    from matplotlib.figure import Figure

    # Keep text as text, and make the file reproducible.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mount-s3"})
    rows = compared(reports)
    labels = [report.label for report in reports]
    bars = len(rows) * (len(reports) - 1)
    height = INCHES_OF_FRAME + len(rows) * INCHES_PER_GROUP + bars * INCHES_PER_BAR
    figure = Figure(figsize=(10, height), layout="constrained")
    speed, cost = figure.subplots(1, 2, sharey=True)
    _bars(speed, [row.speeds for row in rows], labels)
    _bars(cost, [row.costs for row in rows], labels)
    speed.set_title("speed: to the right is faster")
    cost.set_title("CPU of the mount: to the right is more")
    speed.set_yticks(range(len(rows)), [f"{row.name}  {row.rate}" for row in rows], fontsize=8)
    speed.set_ylim(len(rows) - 0.5, -0.5)
    handles, names = speed.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _bars(axes: Any, groups: list[list[float | None]], labels: list[str]) -> None:
    """Draw the first run as the line at 1. In each group, draw a bar from it for each other run."""
    axes.axvline(1.0, color="black", linewidth=0.8, label=f"1: {labels[0]}")
    thickness = GROUP_HEIGHT / (len(labels) - 1)
    for number, label in enumerate(labels[1:], 1):
        ratios = [group[number] or 1.0 for group in groups]  # no bar for missing figures
        top = (number - 0.5) * thickness - GROUP_HEIGHT / 2
        positions = [group + top for group in range(len(groups))]
        widths = [ratio - 1.0 for ratio in ratios]
        axes.barh(positions, widths, left=1.0, height=thickness, label=label)
        for position, ratio, group in zip(positions, ratios, groups, strict=True):
            if group[number] is not None:
                side = "right" if ratio < 1 else "left"
                axes.text(ratio, position, f" ×{ratio:.2f} ", ha=side, va="center", fontsize=6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.15)


def _ratio(value: float, first: float) -> float | None:
    return max(value / first, MIN_RATIO) if value and first else None


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.chart", description=__doc__.partition("\n")[0])
    parser.add_argument("reports", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SVG")
    arguments = parser.parse_args()
    if len(arguments.reports) < 2:
        parser.error("a comparison needs at least two runs")
    draw([read_report(path) for path in arguments.reports], arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
