"""Progress of a long step: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

# Called with the number of items (files, bytes) done since the last call.
Advance = Callable[[int], None]

LABEL_WIDTH = 34
PLAIN_STEPS = 4


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show a step of `total` items; yields what any thread calls as items are done."""
    lock = threading.Lock()
    if sys.stdout.isatty():
        with click.progressbar(length=total, label=f"{label:<{LABEL_WIDTH}}") as bar:

            def update(amount: int) -> None:
                with lock:
                    bar.update(amount)

            yield update
        return

    started = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        with lock:
            before = done * PLAIN_STEPS // max(total, 1)
            done += amount
            after = done * PLAIN_STEPS // max(total, 1)
        if after > before:
            seconds = time.monotonic() - started
            print(f"{label:<{LABEL_WIDTH}} {after * 100 // PLAIN_STEPS:3} %  {seconds:5.1f} s")
            sys.stdout.flush()

    yield advance
