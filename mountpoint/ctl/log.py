"""`mount-s3ctl log`: show the last lines of a mount's log, and follow it.

A terminal shows them like `mount-s3 --foreground`, with the date. A pipe or file gets them as the
mount stores them.
"""

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from mountpoint.ctl import terminal
from mountpoint.ctl.group import write_json
from mountpoint.ctl.mounts import Mount
from mountpoint.log.format import console_line, parsed, printable
from mountpoint.log.setup import is_terminal, wants_colours

POLL_S = 0.5
INDENT = "    "


def show(mount: Mount, *, max_lines: int, follow: bool, as_json: bool) -> None:
    """Write the last `max_lines` lines; with `follow`, also all later ones until Ctrl-C.

    Raises MountError when the mount ends.
    """
    write = _writer(as_json)
    with contextlib.suppress(KeyboardInterrupt):
        lines = mount.ask("log")["lines"]
        last = lines[-1][0] if lines else 0
        _write_all(lines[-max_lines:] if max_lines else [], write)
        while follow:
            time.sleep(POLL_S)
            lines = mount.ask("log", after=last)["lines"]
            last = lines[-1][0] if lines else last
            _write_all(lines, write)


def _write_all(lines: Sequence[tuple[int, str]], write: Callable[[str], None]) -> None:
    for _, line in lines:
        write(line)


def _writer(as_json: bool) -> Callable[[str], None]:
    if as_json:
        return lambda line: write_json(_described(line))
    if is_terminal(sys.stdout):
        colours = wants_colours(sys.stdout)
        return lambda line: click.echo(_for_a_person(line, colours), color=True)
    return lambda line: click.echo(printable(line))


def _for_a_person(line: str, colours: bool) -> str:
    head, *traceback = console_line(parsed(line), colours, dated=True).split("\n")
    # Wrap between words: the terminal would break lines anywhere.
    wrapped = textwrap.wrap(
        head,
        terminal.columns(sys.stdout),
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([*wrapped, *traceback])


def _described(line: str) -> dict[str, Any]:
    """Return a line as JSON: the common fields and the event's own."""
    event = parsed(line)
    found: dict[str, Any] = {"timestamp": line.partition(" ")[0].partition("=")[2]}
    found |= {name: event.pop(name, "") for name in ("level", "logger", "event", "exception")}
    del event["timestamp"]
    return {**found, "fields": event}
