"""Progress of a long step: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

# Called with the number of items (files, bytes) done since the last call.
Advance = Callable[[int], None]

LABEL_WIDTH = 34
PLAIN_STEPS = 4


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Show a step of `total` items; yield the function that reports progress.

    `unit` is "bytes" for data, else the plural of the items, such as "files".
    """
    started = time.monotonic()
    if sys.stdout.isatty():
        columns: tuple[ProgressColumn, ...] = (
            (DownloadColumn(binary_units=True), TransferSpeedColumn())
            if unit == "bytes"
            else (MofNCompleteColumn(), TextColumn(unit))
        )
        with Progress(
            TextColumn(f"{{task.description:<{LABEL_WIDTH}}}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(elapsed_when_finished=True),
        ) as bar:
            task = bar.add_task(label, total=total)
            yield lambda amount: bar.advance(task, amount)
        return

    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        before = done * PLAIN_STEPS // max(total, 1)
        done += amount
        after = done * PLAIN_STEPS // max(total, 1)
        if after > before:
            seconds = time.monotonic() - started
            print(f"{label:<{LABEL_WIDTH}} {after * 100 // PLAIN_STEPS:3} %  {seconds:5.1f} s")
            sys.stdout.flush()

    yield advance
