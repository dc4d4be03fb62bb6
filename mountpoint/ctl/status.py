"""`mount-s3ctl status`: list the mounts and their state."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mountpoint.ctl.terminal import NO_WIDTH
from mountpoint.ctl.words import age, count, number, size, title
from mountpoint.log.format import printable
from mountpoint.system.kernel import FuseMount

NAME_CHARS = 10
MIB = 1 << 20


def text(
    mounts: Sequence[Mapping[str, Any]], dead: Sequence[FuseMount], width: int = NO_WIDTH
) -> str:
    """Return some lines per mount: its status (`ControlCommands.status`), or that it is silent."""
    blocks = []
    for status in mounts:
        lines = [_lines(*fact, width) for fact in _rows(status)]
        blocks.append("\n".join([title(status), *lines]))
    blocks += [f"{printable(each.directory)} does not answer" for each in dead]
    return "\n\n".join(blocks) or "nothing is mounted"


def _lines(name: str, fact: str, width: int) -> str:
    return textwrap.fill(
        printable(fact),
        width,
        initial_indent=f"  {name:<{NAME_CHARS}} ",
        subsequent_indent=" " * (NAME_CHARS + 3),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rows(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        return _facts(status)
    except KeyError:  # the mount runs an older version of the program
        return [
            (
                "version",
                f"{status['version']}, not that of mount-s3ctl: mount again to see more",
            )
        ]


def _facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("running", _running(status)),
        ("changes", _changes(status)),
        ("endpoint", f"{status['endpoint']}, region {status['region']}"),
        ("rates", _rates(status["rates"])),
        ("memory", _memory(status)),
        ("files", _files(status)),
        ("data plane", status["data_plane"]),
        ("cache", _cache(status)),
        ("log", status["log"] or "standard error"),
    ]
    if status["trouble"]:
        facts.insert(0, ("trouble", status["trouble"]))
    return facts


def _running(status: Mapping[str, Any]) -> str:
    running = f"for {age(status['uptime_s'])}, process {status['pid']}"
    if not status["keep_alive"]:
        return running
    restarts = status["restarts"]
    times = f"restarted {count(restarts, 'time')}" if restarts else "restarted if it dies"
    return f"{running}, {times}"


def _changes(status: Mapping[str, Any]) -> str:
    if status["read_only"]:
        return "none, it is read-only"
    return ", ".join(["new files", *status["options"]])


def _cache(status: Mapping[str, Any]) -> str:
    caches = []
    if status["cache_directory"] is not None:
        limit = status["cache_limit_bytes"]
        limited = "leaves 5 % of the disk free" if limit is None else f"at most {limit // MIB} MiB"
        caches.append(f"{status['cache_directory']}, {limited}")
    if status["cache_bucket"] is not None:
        caches.append(f"shared in bucket {status['cache_bucket']}")
    return "; ".join(caches) or "none"


def _rates(rates: Mapping[str, float]) -> str:
    read, written = size(rates["read_bytes_per_s"]), size(rates["written_bytes_per_s"])
    return f"{read}/s read, {written}/s written, {number(rates['requests_per_s'])} requests/s"


def _memory(status: Mapping[str, Any]) -> str:
    # Use the unit of the option.
    sizes = ("rss_bytes", "memory_held_bytes", "memory_limit_bytes")
    rss, held, limit = (round(status[name] / MIB) for name in sizes)
    return f"{rss} MiB resident; data {held} of {limit} MiB (--memory-target)"


def _files(status: Mapping[str, Any]) -> str:
    writing = status["being_written"]
    opened = f"{status['open_files']} open"
    if not writing:
        return opened
    pending = size(sum(each["pending_bytes"] for each in writing))
    return f"{opened}, {count(len(writing), 'file')} being written ({pending} not yet in S3)"
