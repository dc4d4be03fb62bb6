"""Show the results of a checklist: lines for a person, as they arrive, or one JSON object.

All output passes through the log's redaction and contains only printable text. Colour and the
progress bar are for terminals only.
"""

import contextlib
import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from mountpoint.checks.checklist import Outcome, Result
from mountpoint.checks.subject import Advance
from mountpoint.config import BucketConfig, Config
from mountpoint.log.format import printable
from mountpoint.log.setup import is_terminal, wants_colours
from mountpoint.log.words import display_name

COLOURS: dict[Outcome, str] = {
    "ok": "green",
    "warning": "yellow",
    "failed": "red",
    "skipped": "bright_black",
}
#: Widths of the first two columns, in characters.
MARK = 9
NAME = 14
#: The minimum width of the third column, on narrow terminals.
MIN_WIDTH = 40

Clean = Callable[[str], str]


def clean_by(redact: Clean) -> Clean:
    """Return a function that redacts a text and makes it printable."""
    return lambda text: redact(printable(text))


def write_text(bucket: BucketConfig, results: Iterable[tuple[str, Result]], clean: Clean) -> bool:
    """Write a line per check, its hint below it, and a summary; return whether all succeeded."""
    colours = wants_colours(sys.stdout)
    width = _width()
    counts: Counter[Outcome] = Counter()
    for name, result in results:
        counts[result.outcome] += 1
        mark = f"{result.outcome:<{MARK}}"
        if colours:
            mark = click.style(mark, fg=COLOURS[result.outcome])
        first, *others = _lines(clean(result.finding), width)
        if result.hint:
            hint, *more = _lines(clean(result.hint), width and width - len("> "))
            others += [f"> {hint}", *(f"  {line}" for line in more)]
        click.echo(f"{mark}{name.replace('_', ' '):<{NAME}}{first}")
        for line in others:
            click.echo(f"{'':<{MARK + NAME}}{line}")
    good = not counts["failed"]
    verdict = "can be mounted" if good else "cannot be mounted"
    shown = ", ".join(_count(counts[outcome], outcome) for outcome in COLOURS if counts[outcome])
    click.echo(f"\n{display_name(bucket)} {verdict}: {shown}")
    return good


def _width() -> int | None:
    """Return the columns that a terminal has for findings; None without a terminal."""
    if not is_terminal(sys.stdout):
        return None
    columns, _ = shutil.get_terminal_size()
    return max(columns - MARK - NAME, MIN_WIDTH)


def _lines(text: str, width: int | None) -> list[str]:
    """Break text only at spaces: words, paths and URLs stay whole."""
    if width is None:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _count(number: int, outcome: Outcome) -> str:
    return f"{number} warnings" if outcome == "warning" and number > 1 else f"{number} {outcome}"


def write_json(config: Config, results: Iterable[tuple[str, Result]], clean: Clean) -> bool:
    """Write one JSON object after all checks; return whether all succeeded."""
    checks = [_as_json(name, result, clean) for name, result in results]
    good = all(check["outcome"] != "failed" for check in checks)
    whole = {
        "bucket": config.bucket.name,
        "prefix": config.bucket.prefix.decode("utf-8", "surrogateescape"),
        "directory": config.mount.directory or None,
        "ok": good,
        "checks": checks,
    }
    click.echo(json.dumps(whole, indent=2))
    return good


def _as_json(name: str, result: Result, clean: Clean) -> dict[str, Any]:
    details = {
        key: clean(value) if isinstance(value, str) else value
        for key, value in result.details.items()
    }
    return {
        "name": name,
        "outcome": result.outcome,
        "finding": clean(result.finding),
        "hint": clean(result.hint),
        "details": details,
    }


@contextlib.contextmanager
def bar(total_bytes: int) -> Iterator[Advance]:
    """Show on stderr, if that is a terminal, the share of `total_bytes` that has arrived."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    with click.progressbar(length=total_bytes, label="throughput", file=sys.stderr) as shown:
        yield shown.update
    # Delete the line: the result takes its place.
    click.echo("\x1b[1A\x1b[2K", nl=False, err=True)
