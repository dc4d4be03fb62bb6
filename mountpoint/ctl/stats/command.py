"""`mount-s3ctl stats`: what a mount does, once and again.

First what it has done since it was mounted, then what it does from one answer to the next.
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
    """Show it until Ctrl-C; with `once` only the first. Raises MountError when the mount ends.

    `given` are prices in place of the region's.
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
    """Asks a mount again and again."""

    def __init__(self, mount: Mount, given: Prices | None) -> None:
        self._mount = mount
        self._given = given
        self._activity = Activity()
        self._before: dict[str, Any] | None = None

    def table(self) -> list[Block]:
        """Return what has been done since the table before, or since it was mounted."""
        now, before = self._mount.ask("stats"), self._before
        self._before = now
        return table(now, before, self._given, self._activity.note(now, before))
