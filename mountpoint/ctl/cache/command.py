"""The command `mount-s3ctl cache`."""

import os
import sys
from typing import Any

import click

from mountpoint.cache.directory import NAME, CacheDirectory
from mountpoint.cli.command import directories
from mountpoint.config import LogConfig
from mountpoint.ctl import mounts
from mountpoint.ctl.cache.checking import Check, check_all
from mountpoint.ctl.cache.hits import Hits, hits
from mountpoint.ctl.cache.inventory import BucketBlocks, inventory, total
from mountpoint.ctl.group import confirm, json_option, write_json
from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.progress import Bar
from mountpoint.ctl.words import age, count, size
from mountpoint.errors import MountError
from mountpoint.log.format import printable
from mountpoint.log.setup import configure_log

#: Bad blocks that are shown.
MAX_SHOWN = 20
NAME_CHARS, CELL_CHARS = 32, 13


@click.command()
@click.argument("directory", metavar="DIR", shell_complete=directories)
@click.option("--verify", is_flag=True, help="Compare all blocks with their checksums.")
@click.option("--clear", is_flag=True, help="Remove all blocks.")
@click.option("-y", "--yes", is_flag=True, help="Remove them without confirmation.")
@json_option
def cache(directory: str, verify: bool, clear: bool, yes: bool, as_json: bool) -> None:
    """Show what the data cache in DIR has, by bucket.

    DIR is the directory of --cache, or that of a mount with a cache. --verify removes bad blocks;
    their bytes are fetched from S3 again when they are needed. Mounts may go on using the cache.
    """
    if verify and clear:
        raise click.UsageError("--verify and --clear exclude each other.")
    configure_log(LogConfig(foreground=True, filter=os.environ.get("MOUNTPOINT_LOG") or None))
    found = mounts.answering(os.environ)
    opened = _opened(directory, found)
    try:
        if clear:
            _clear(opened, ask=not yes, as_json=as_json)
        elif verify:
            click.get_current_context().exit(1 if _verify(opened, as_json=as_json) else 0)
        else:
            _show(opened, hits(opened.path, found), as_json=as_json)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MountError(f"the cache in '{opened.path}' cannot be used: {reason}") from error


def _opened(path: str, found: list[Mount]) -> CacheDirectory:
    """Open the cache in a directory, or that of the mount there. Raises MountError."""
    try:
        mount, _ = mounts.at(path, found)
    except MountError:
        if not os.path.isdir(os.path.join(path, NAME)):
            raise MountError(
                f"there is no data cache in '{path}'",
                "give the directory of --cache, or that of a mount",
            ) from None
        return CacheDirectory.open(path, create=False)
    used = mount.status.get("cache_directory")
    if used is None:
        raise MountError(
            f"the mount at '{mount.directory}' has no data cache",
            "mount the bucket with --cache DIRECTORY",
        )
    return CacheDirectory.open(used, create=False)


def _show(directory: CacheDirectory, used: list[Hits], *, as_json: bool) -> None:
    buckets = inventory(directory)
    free_bytes, disk_bytes = directory.free_bytes()
    if as_json:
        result: dict[str, Any] = {"directory": directory.path, **total(buckets).as_json()}
        result |= {"free_bytes": free_bytes, "disk_bytes": disk_bytes}
        result["buckets"] = [
            {"bucket": each.name, "endpoint": each.endpoint, **each.as_json()} for each in buckets
        ]
        result["mounts"] = [each.as_json() for each in used]
        write_json(result)
        return
    in_all = total(buckets)
    free = f"{size(free_bytes)} of the disk's {size(disk_bytes)} are free"
    click.echo(
        f"{printable(directory.path)}: {count(in_all.blocks, 'block')}, {size(in_all.size_bytes)}; "
        f"{free}"
    )
    if buckets:
        click.echo("\n" + _row("bucket", "blocks", "bytes", "oldest use", "newest use"))
    for each in buckets:
        click.echo(_bucket_row(each))
    if used:
        click.echo("\nread by running mounts:")
    for mount in used:
        click.echo(mount.line())


def _bucket_row(bucket: BucketBlocks) -> str:
    ages = [f"{age(seconds)} ago" for seconds in bucket.ages_s()]
    name = printable(bucket.name) or "(damaged)"
    return _row(name, str(bucket.blocks), size(bucket.size_bytes), *ages)


def _row(name: str, *cells: str) -> str:
    return f"{name:<{NAME_CHARS}}{''.join(f' {cell:>{CELL_CHARS}}' for cell in cells)}"


def _verify(directory: CacheDirectory, *, as_json: bool) -> bool:
    """Check all blocks; return whether there were bad ones."""
    bar = Bar(None if as_json else sys.stderr)
    check = Check(sum(file.allocated_bytes for file in directory.files()))
    shown = 0

    def show() -> None:
        nonlocal shown
        for path, why in check.bad[shown:MAX_SHOWN]:
            bar.note(f"{printable(path)}: {why}")
            shown += 1
        bar.show("Checking the cache", check.share, check.figures())

    check_all(directory, check, show)
    bar.leave()
    if as_json:
        bad = [{"path": path, "why": why} for path, why in check.bad]
        numbers = {"blocks": check.blocks, "size_bytes": check.size_bytes}
        write_json({"directory": directory.path, **numbers, "bad": bad, "removed": check.removed})
        return bool(check.bad)
    if len(check.bad) > shown:
        click.echo(f"{len(check.bad) - shown} more are bad", err=True)
    checked = f"{count(check.blocks, 'block')} of {size(check.size_bytes)} checked"
    bad_blocks = f"{count(len(check.bad), 'bad block')} removed" if check.bad else "all are right"
    click.echo(f"{checked}: {bad_blocks}")
    return bool(check.bad)


def _clear(directory: CacheDirectory, *, ask: bool, as_json: bool) -> None:
    if ask:
        confirm(f"Remove all blocks of the cache in {directory.path}?", "removed", "remove")
    removed, removed_bytes = directory.clear()
    if as_json:
        write_json(
            {"directory": directory.path, "removed": removed, "removed_bytes": removed_bytes}
        )
    else:
        click.echo(f"removed: {count(removed, 'block')} of {size(removed_bytes)}")
