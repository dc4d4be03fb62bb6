"""Metrics as log lines (`--log-metrics`): the changes since the last lines.

Each metric and label has one line. Counters and histograms show `n`, the number of events, and
their rate per second. Histograms add the sum and the percentiles 50, 90 and 99.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog

from mountpoint.log.setup import METRICS
from mountpoint.metrics.export.families import Family, since
from mountpoint.metrics.recorder import quantile

log = structlog.get_logger(METRICS)

#: The interval of AWS's mount-s3.
INTERVAL_S = 5.0


class Lines:
    """Writes the metrics that `collect` returns. One thread calls `write`."""

    def __init__(
        self, collect: Callable[[], list[Family]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        # dependencies
        self._collect = collect
        # constants
        self._clock = clock
        # mutable, used by that thread
        self._before: list[Family] = []
        self._at_s = clock()

    def write(self) -> None:
        """Write the changes since the last call."""
        found, now_s = self._collect(), self._clock()
        elapsed_s = max(now_s - self._at_s, 0.001)
        gauges = {family.name: family.points for family in self._before if family.kind == "gauge"}
        for family in since(self._before, found):
            if gauges.get(family.name) == family.points:
                continue
            for labels, value in family.labelled():
                unit = {} if family.unit == "1" else {"unit": family.unit}
                log.info(family.name, **labels, **unit, **_fields(family, value, elapsed_s))
        self._before, self._at_s = found, now_s


def _fields(family: Family, value: Any, elapsed_s: float) -> dict[str, Any]:
    if family.kind == "gauge":
        return {"value": value}
    if family.kind == "counter":
        return {"n": value, "per_s": _short(value / elapsed_s)}
    return {
        "n": value["count"],
        "per_s": _short(value["count"] / elapsed_s),
        "sum": value["total"],
        "min": value["least"],
        **{
            f"p{percent}": min(round(quantile(value, percent / 100)), value["most"])
            for percent in (50, 90, 99)
        },
        "max": value["most"],
    }


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"
