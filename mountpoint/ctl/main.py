"""The commands of `mount-s3ctl` and their options."""

import os
import sys

import click

from mountpoint import __version__
from mountpoint.cli.command import directories
from mountpoint.ctl import log, mounts, refresh, status, terminal, unmount, upgrade
from mountpoint.ctl.cache.command import cache
from mountpoint.ctl.cleanup.command import cleanup
from mountpoint.ctl.group import Group, json_option, write_json
from mountpoint.ctl.progress import Progress
from mountpoint.ctl.stats import command as stats
from mountpoint.ctl.stats.prices import Prices
from mountpoint.ctl.warm.command import warm
from mountpoint.ctl.words import count
from mountpoint.errors import MountError
from mountpoint.log.format import printable
from mountpoint.system.mounts import real_path


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.version_option(__version__, prog_name="mount-s3ctl", message="%(prog)s %(version)s")
def main() -> None:
    """Inspect and control mounts of mount-s3, and clean up after killed ones."""


main.add_command(cache)
main.add_command(cleanup)
main.add_command(warm)

argument = click.argument("directory", metavar="DIR", shell_complete=directories)
timeout_option = click.option(
    "--timeout", type=click.FloatRange(0), default=3600, metavar="SECONDS", show_default=True,
    help="Longest wait for files that are being written.",
)  # fmt: skip


@main.command(name="status")
@click.argument("directory", required=False, metavar="[DIR]", shell_complete=directories)
@json_option
def status_(directory: str | None, as_json: bool) -> None:
    """List the mounts of this user, or only the one at DIR."""
    found, dead = mounts.answering(os.environ), []
    if directory is None:
        dead = mounts.silent(found)
    else:
        found = [mounts.at(directory, found)[0]]
    if as_json:
        answers = [{**mount.status, "answers": True} for mount in found]
        write_json([*answers, *({"directory": each.directory, "answers": False} for each in dead)])
    else:
        width = terminal.columns(sys.stdout)
        click.echo(status.text([mount.status for mount in found], dead, width))


@main.command(name="stats")
@argument
@click.option(
    "-i", "--interval", type=click.FloatRange(0.1, 3600), default=1, metavar="SECONDS",
    show_default=True, help="Time between two tables.",
)  # fmt: skip
@click.option(
    "--once", is_flag=True, help="Show one table with totals since the bucket was mounted."
)
@click.option(
    "--prices", type=(float, float), metavar="WRITES READS",
    help="Price in dollars of 1,000 PUT, COPY, POST or LIST requests, and of 1,000 GET or HEAD.",
)  # fmt: skip
@json_option
def stats_(
    directory: str,
    interval: float,
    once: bool,
    prices: tuple[float, float] | None,
    as_json: bool,
) -> None:
    """Show what the mount at DIR does, until you press q or Ctrl-C.

    The table has rates, latencies, failures, and the programs that cause them. If standard output
    is not a terminal, the tables follow one another.
    """
    mount, _ = mounts.at(directory, mounts.answering(os.environ))
    given = Prices(*prices) if prices else None
    stats.show(mount, interval_s=interval, once=once, as_json=as_json, given=given)


@main.command(name="log")
@argument
@click.option("-n", "--lines", type=click.IntRange(0), default=50, metavar="N", show_default=True,
              help="Number of last lines to show; a mount keeps 1000.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Then follow the log until Ctrl-C.")
@json_option
def log_(directory: str, lines: int, follow: bool, as_json: bool) -> None:
    """Show the log of the mount at DIR, wherever the mount writes it."""
    mount, _ = mounts.at(directory, mounts.answering(os.environ))
    log.show(mount, max_lines=lines, follow=follow, as_json=as_json)


@main.command(name="refresh")
@argument
@click.argument("path", required=False, default="", metavar="[PATH]")
@json_option
def refresh_(directory: str, path: str, as_json: bool) -> None:
    """Make the mount at DIR ask S3 again about PATH.

    The mount forgets PATH and everything below it. Without PATH it forgets everything. Use this
    with --metadata-ttl, after another program has changed the bucket. An open file keeps its
    version.
    """
    full_path = os.path.join(directory, path.lstrip("/")) if path else directory
    mount, below = mounts.at(full_path, mounts.answering(os.environ))
    forgotten = refresh.refresh(mount, below)
    if as_json:
        write_json({"directory": mount.directory, "path": below, "forgotten": forgotten})
        return
    shown = printable(os.path.join(mount.directory, below))
    click.echo(f"forgotten: {count(forgotten, 'name')} at or below {shown}")


@main.command(name="upgrade")
@argument
@timeout_option
@json_option
def upgrade_(directory: str, timeout: float, as_json: bool) -> None:
    """Replace the process of the mount at DIR by one of the installed version.

    Nothing is unmounted: programs keep their open files. The mount must not have --no-keep-alive or
    --auto-unmount. The options stay the same. If the installed version cannot mount, nothing
    changes.
    """
    mount, _ = mounts.at(directory, mounts.answering(os.environ))
    following = upgrade.upgrade(mount, timeout, Progress(None if as_json else sys.stderr))
    versions = {"from": mount.status["version"], "to": following.status["version"]}
    if as_json:
        facts = {"directory": mount.directory, "pid": following.status["pid"]}
        write_json(facts | versions)
        return
    shown = printable(mount.directory)
    click.echo(
        f"{shown} is upgraded from version {versions['from']} to {versions['to']}, "
        f"process {following.status['pid']}"
    )


@main.command(name="unmount")
@argument
@timeout_option
@json_option
def unmount_(directory: str, timeout: float, as_json: bool) -> None:
    """Wait until all files in DIR are uploaded to S3, then unmount it."""
    found = mounts.answering(os.environ)
    dead = {each.directory for each in mounts.silent(found)}
    mount_directory = real_path(directory)
    mount = None
    if mount_directory not in dead:
        mount, below = mounts.at(directory, found)
        if below:
            raise MountError(
                f"'{directory}' is a directory inside a mount", f"unmount '{mount.directory}'"
            )
        mount_directory = mount.directory
    unmount.unmount(mount_directory, mount, timeout, Progress(None if as_json else sys.stderr))
    if as_json:
        write_json({"directory": mount_directory, "unmounted": True})
    else:
        click.echo(f"{printable(mount_directory)} is unmounted")
