"""Metrics as lines of the log (`--log-metrics`): what has changed since the last ones.

One line for each metric and label. Counters and histograms have `n`, how many there were, and
their rate per second; histograms their sum, and what 50, 90 and 99 of 100 values did not exceed.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog

from mountpoint.log.setup import METRICS
from mountpoint.metrics.export.families import Family, since
from mountpoint.metrics.recorder import quantile

log = structlog.get_logger(METRICS)

#: The reference's.
INTERVAL_S = 5.0


class Lines:
    """Writes what `collect` returns. One thread calls `write`."""

    def __init__(
        self, collect: Callable[[], list[Family]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        # dependencies
        self._collect = collect
        # constants
        self._clock = clock
        # mutable, of that thread
        self._before: list[Family] = []
        self._at_s = clock()

    def write(self) -> None:
        """Write what has changed since the last time."""
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
