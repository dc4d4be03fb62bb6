"""`mount-s3ctl stats`: show a mount's activity, once or repeatedly.

The first table covers the time since the mount, each later one the time since the previous answer.
"""

import contextlib
import functools
import time
from typing import Any

import click

from mountpoint.ctl.group import write_json
from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.stats import screen
from mountpoint.ctl.stats.prices import Prices
from mountpoint.ctl.stats.table import Activity, Block, lines, table


def show(
    mount: Mount, *, interval_s: float, once: bool, as_json: bool, given: Prices | None
) -> None:
    """Show the activity until Ctrl-C; with `once` only the first table.

    `given` are prices that replace the region's. Raises MountError when the mount ends.
    """
    watch = _Watch(mount, given)
    if not once and not as_json and screen.is_possible():
        screen.use(lambda whole: _live(watch, interval_s, whole))
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if as_json:
                write_json(mount.ask("stats"))
            else:
                click.echo("\n".join([*lines(watch.table()), ""]))
            if once:
                return
            time.sleep(interval_s)


def _live(watch: "_Watch", interval_s: float, whole: screen.Screen) -> None:
    goes_on = True
    while goes_on:
        blocks = watch.table()
        goes_on = whole.show(functools.partial(lines, blocks), interval_s)


class _Watch:
    """Asks a mount for its statistics again and again."""

    def __init__(self, mount: Mount, given: Prices | None) -> None:
        self._mount = mount
        self._given = given
        self._activity = Activity()
        self._before: dict[str, Any] | None = None

    def table(self) -> list[Block]:
        """Return the activity since the previous table, or since the mount."""
        now, before = self._mount.ask("stats"), self._before
        self._before = now
        return table(now, before, self._given, self._activity.note(now, before))
