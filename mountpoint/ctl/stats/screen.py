"""A table on the whole terminal that is redrawn at an interval, like top(1).

curses draws on the alternate screen, so the user's own screen comes back at the end. It also
reports changes of the terminal's size, and restores the terminal when the program is stopped or
killed.
"""

import contextlib
import curses
import locale
import sys
import time
from collections.abc import Callable

from mountpoint.ctl.stats.table import Heading
from mountpoint.ctl.terminal import fit

#: Returns the lines to draw, given the number that fit.
Draw = Callable[[int], list[str]]


def is_possible() -> bool:
    """Whether standard output is a terminal that can show the table."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        curses.setupterm()
    except curses.error:
        return False
    return curses.tigetstr("cup") is not None


class Screen:
    """The screen that `use` passes to its caller."""

    def __init__(self, window: "curses.window") -> None:
        self._window = window

    def show(self, draw: Draw, seconds: float) -> bool:
        """Show the table for some seconds; False if the user wants to leave."""
        until_s = time.monotonic() + seconds
        while True:
            self._draw(draw)
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return True
            self._window.timeout(max(int(left_s * 1000), 1))
            if self._window.getch() in (ord("q"), ord("Q")):
                return False

    def _draw(self, draw: Draw) -> None:
        height, width = self._window.getmaxyx()
        self._window.erase()
        for number, line in enumerate(draw(height)):
            # Leave the last column free: writing the last cell of the screen is a curses error.
            with contextlib.suppress(curses.error):  # the screen has just become smaller
                attribute = curses.A_BOLD if isinstance(line, Heading) else curses.A_NORMAL
                self._window.addstr(number, 0, fit(line, width - 1), attribute)
        self._window.refresh()


def use(run: Callable[[Screen], None]) -> None:
    """Call `run` with the whole terminal, until it returns or the user presses Ctrl-C."""
    locale.setlocale(locale.LC_ALL, "")  # without it, curses treats text as bytes

    def inside(window: "curses.window") -> None:
        with contextlib.suppress(curses.error):  # some terminals cannot hide the cursor
            curses.use_default_colors()
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        run(Screen(window))

    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(inside)
