"""`mount-s3ctl unmount`: wait until what is written is in S3, then unmount.

umount(8) refuses as long as a file is open, and what a program has written is in S3 when it has
closed the file: so it is tried again and again while anything is being written. What else keeps the
mount busy (an open file that is read, a shell that stands in it) is not waited for, but named.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.stats import size
from mountpoint.errors import MountError
from mountpoint.log_render import printable
from mountpoint.processes import program_of

POLL_S = 0.5
#: Programs that have just closed their files may take a moment to go away.
BUSY_S = 3.0
#: What the process of a mount takes at most to give up what is left (`writing.uploads.ABORT_S`).
END_S = 30.0
#: How many programs are named.
MOST_NAMED = 5


def unmount(directory: str, mount: Mount | None, timeout_s: float) -> None:
    """Unmount; `mount` None: its process has died, or does not answer.

    Raises MountError when it stays busy, or writing takes longer than `timeout_s`.
    """
    began_s = time.monotonic()
    busy_since_s: float | None = None
    process = _process(mount)
    with contextlib.ExitStack() as stack:
        bar: Any = None
        while True:
            writing = mount.ask("status")["being_written"] if mount is not None else []
            if not writing or bar is None:
                problem = _try(directory)
                if problem is None:
                    break
            now_s = time.monotonic()
            if writing:
                busy_since_s = None
                bar = bar or stack.enter_context(_bar(writing))
                _advance(bar, writing)
                if now_s - began_s > timeout_s:
                    raise MountError(
                        f"'{directory}' is still being written to: {_files(writing)}",
                        "wait for longer with --timeout, or end what writes",
                    )
            else:
                busy_since_s = busy_since_s or now_s
                if now_s - busy_since_s > BUSY_S:
                    users = ", ".join(_users(directory))
                    raise MountError(
                        f"'{directory}' cannot be unmounted: {problem}"
                        + (f"; it is used by {users}" if users else ""),
                        "end what uses it, and leave the directory",
                    )
            time.sleep(POLL_S)
    _wait_for_end(process, directory)


def _try(directory: str) -> str | None:
    """Unmount, if nothing is open; return what prevents it."""
    command = ["umount"] if os.geteuid() == 0 else ["fusermount", "-u"]
    try:
        done = subprocess.run(
            [*command, "--", directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=END_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise MountError(
            f"{command[0]} is missing", "install it: apt install fuse mount, or dnf install fuse"
        ) from None
    except subprocess.TimeoutExpired:
        return "the kernel does not answer"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else lines[-1].rstrip(".") if lines else "it is busy"


def _bar(writing: list[dict[str, Any]]) -> Any:
    total = sum(each["size_bytes"] for each in writing)
    label = f"Waiting for {_files(writing)}"
    return click.progressbar(length=max(total, 1), label=label, file=sys.stderr)


def _advance(bar: Any, writing: list[dict[str, Any]]) -> None:
    """Show how much of what is known to be written is in S3."""
    pending = sum(each["pending_bytes"] for each in writing)
    bar.length = max(bar.length, sum(each["size_bytes"] for each in writing))
    bar.update(max(bar.length - pending - bar.pos, 0))


def _files(writing: list[dict[str, Any]]) -> str:
    if len(writing) == 1:
        return f"{printable(writing[0]['path'])} ({size(writing[0]['size_bytes'])})"
    return f"{len(writing)} files ({size(sum(each['size_bytes'] for each in writing))})"


def _users(directory: str) -> Iterator[str]:
    """Yield the names and numbers of processes that use what is mounted."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _uses(entry, directory):
            found += 1
            if found > MOST_NAMED:
                yield "others"
                return
            yield f"{printable(program_of(int(entry.name))[0])} ({entry.name})"


def _uses(process: Path, directory: str) -> bool:
    links = [process / "cwd", process / "root"]
    with contextlib.suppress(OSError):
        links += list((process / "fd").iterdir())
    for link in links:
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            target = os.readlink(link)
            if target == directory or target.startswith(directory.rstrip("/") + "/"):
                return True
    return False


def _process(mount: Mount | None) -> int | None:
    """Return a descriptor of the mount's process, whatever becomes of its number."""
    if mount is None:
        return None
    try:
        return os.pidfd_open(int(mount.status["pid"]))
    except OSError:  # of another container, or ended
        return None


def _wait_for_end(process: int | None, directory: str) -> None:
    """Wait until the process has done all that was left to do. Raises MountError."""
    if process is None:
        return
    try:
        if not select.select([process], [], [], END_S)[0]:
            raise MountError(
                f"'{directory}' is unmounted, and its process still runs", "its log says why"
            )
    finally:
        os.close(process)
