"""The command `mount-s3ctl warm`: its options, its progress and its result."""

import os
import sys
from itertools import chain
from typing import Any, BinaryIO

import click

from mountpoint.cli.command import files as complete_files
from mountpoint.ctl import mounts
from mountpoint.ctl.group import INTERRUPTED, json_option, write_json
from mountpoint.ctl.progress import Bar
from mountpoint.ctl.warm.files import Finder, Share, expanded, listed, mount_of
from mountpoint.ctl.warm.tally import Tally
from mountpoint.ctl.warm.warming import Warming
from mountpoint.ctl.words import count, size
from mountpoint.log.format import printable

#: As many as a mount has threads (--max-threads).
JOBS = 16
MAX_JOBS = 256
#: Failures that are shown, and that are in the result as JSON.
MAX_SHOWN = 20
MAX_LISTED = 1000


def share(text: str) -> Share:
    """Return the share that an option means."""
    try:
        return Share.parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_files)
@click.option(
    "-j", "--jobs", type=click.IntRange(1, MAX_JOBS), default=JOBS, metavar="N", show_default=True,
    help="Number of files to read at the same time.",
)  # fmt: skip
@click.option(
    "--from-file", "list_file", type=click.File("rb"), metavar="LIST",
    help="Also take paths from this file, one in a line; - for standard input.",
)  # fmt: skip
@click.option("--null", is_flag=True, help="In LIST, a NUL ends each path, not a line feed.")
@click.option(
    "--share", type=share, default="1/1", metavar="K/N",
    help="Warm only the K-th of N shares of the files, such as 2/8: one for each machine.",
)  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Only show files, bytes and requests.")
@json_option
def warm(
    paths: tuple[str, ...],
    jobs: int,
    list_file: BinaryIO | None,
    null: bool,
    share: Share,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fill the data cache of a mount with the files at PATH, and below it.

    PATH may be a pattern: put it in quotes, also with ** for any directories. What the cache has
    is not fetched again, so an interrupted command can be repeated. All paths are in one mount,
    which has a cache (mount-s3 --cache, --cache-xz).
    """
    if null and list_file is None:
        raise click.UsageError("--null is about the LIST of --from-file.")
    if not paths and list_file is None:
        raise click.UsageError("Give a PATH, or a list of them with --from-file.")
    given = [] if list_file is None else list(listed(list_file, null=null))
    found = mounts.answering(os.environ)
    mount = mount_of([*paths, *given], found)
    report = _Report(as_json)
    tally = Tally(report.failed)
    patterns = (each for path in paths for each in expanded(path, tally.fail))
    wanted = Finder(mount, found, tally.fail).files(chain(patterns, given), share)
    warming = Warming(mount, tally, jobs=jobs)
    interrupted = False
    try:
        if dry_run:
            warming.estimate(wanted, lambda: report.look(tally))
        else:
            warming.run(wanted, lambda: report.show(tally))
    except KeyboardInterrupt:
        interrupted = True
    report.end(tally, dry_run=dry_run, interrupted=interrupted)
    code = INTERRUPTED if interrupted else 1 if tally.failures else 0
    click.get_current_context().exit(code)


class _Report:
    """Shows progress and failures on standard error, and the result on standard output."""

    def __init__(self, as_json: bool) -> None:
        # constants
        self._as_json = as_json
        # mutable
        self._bar = Bar(None if as_json else sys.stderr)
        self._failures: list[dict[str, str]] = []

    def failed(self, path: str, why: str) -> None:
        """Show that a path cannot be warmed."""
        if len(self._failures) < MAX_LISTED:
            self._failures.append({"path": path, "why": why})
        if len(self._failures) <= MAX_SHOWN:
            self._bar.note(f"{printable(path)}: {printable(why)}")

    def show(self, tally: Tally) -> None:
        """Show the progress."""
        self._bar.show(f"Warming {count(tally.files, 'file')}", tally.share, tally.figures())

    def look(self, tally: Tally) -> None:
        """Show the progress of a dry run, which does not know how many files there are."""
        figures = f"{size(tally.to_fetch_bytes)} to fetch"
        self._bar.show(f"Looking at {count(tally.files, 'file')}", 0.0, figures)

    def end(self, tally: Tally, *, dry_run: bool, interrupted: bool) -> None:
        """Show the result."""
        if self._as_json:
            result: dict[str, Any] = tally.as_json()
            ended = {"dry_run": dry_run, "interrupted": interrupted}
            write_json({**result, **ended, "failures": self._failures})
            return
        self._bar.leave()
        if tally.failures > MAX_SHOWN:
            click.echo(f"{tally.failures - MAX_SHOWN} more failed", err=True)
        click.echo(tally.estimate() if dry_run else tally.summary())
