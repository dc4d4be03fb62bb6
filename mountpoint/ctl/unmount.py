"""`mount-s3ctl unmount`: wait until all files being written are in S3, then unmount.

umount(8) fails while a file is open, and a file is in S3 once the program has closed it: so this
waits while any file is being written. It does not wait for anything else that keeps the mount busy
(a program that reads a file, a shell in a directory), but names it.
"""

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.progress import Progress, still_written
from mountpoint.errors import MountError
from mountpoint.log.format import printable
from mountpoint.mount import dead_mount
from mountpoint.system.procfs import program_of

POLL_S = 0.5
#: Seconds; programs that have just closed their files may take a moment to exit.
BUSY_S = 3.0
#: The longest time in seconds that a mount's process takes to end (`upload.uploads.ABORT_S`).
END_S = 30.0
#: The number of programs to name.
MAX_NAMED = 5


def unmount(directory: str, mount: Mount | None, timeout_s: float, progress: Progress) -> None:
    """Unmount; `mount` is None if its process is dead or does not answer.

    Raises MountError if the mount stays busy, or writing takes longer than `timeout_s` seconds.
    """
    if mount is None and dead_mount.remove(directory):
        return
    process = _process(mount)
    try:
        _until_unmounted(directory, mount, timeout_s, progress)
    finally:
        progress.leave()
    _wait_for_end(process, directory)


def _until_unmounted(
    directory: str, mount: Mount | None, timeout_s: float, progress: Progress
) -> None:
    began_s = time.monotonic()
    busy_since_s: float | None = None
    has_waited = False
    while True:
        writing = mount.ask("status")["being_written"] if mount is not None else []
        if not writing:
            progress.done()
        if not (writing and has_waited):
            problem = _try(directory)
            if problem is None:
                return
        now_s = time.monotonic()
        if writing:
            has_waited, busy_since_s = True, None
            progress.show(writing)
            if now_s - began_s > timeout_s:
                raise still_written(directory, writing)
        else:
            busy_since_s = busy_since_s or now_s
            if now_s - busy_since_s > BUSY_S:
                users = ", ".join(_users(directory))
                raise MountError(
                    f"'{directory}' cannot be unmounted: {problem}"
                    + (f"; it is used by {users}" if users else ""),
                    "stop these programs, and leave the directory",
                )
        time.sleep(POLL_S)


def _try(directory: str) -> str | None:
    """Unmount, if nothing is open; return the obstacle otherwise."""
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
    if done.returncode == 0:
        return None
    # For example "umount: /mnt: target is busy."
    lines = done.stderr.strip().splitlines() or ["it is busy"]
    return lines[-1].rsplit(": ", 1)[-1].rstrip(".")


def _users(directory: str) -> Iterator[str]:
    """Yield the names and numbers of processes that use the mount."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _uses(entry, directory):
            found += 1
            if found > MAX_NAMED:
                yield "others"
                return
            yield f"{printable(program_of(int(entry.name))[0])} ({entry.name})"


def _uses(process: Path, directory: str) -> bool:
    links = [process / "cwd", process / "root"]
    with contextlib.suppress(OSError):
        links += list((process / "fd").iterdir())
    for link in links:
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            target = os.readlink(link)
            if target == directory or target.startswith(directory.rstrip("/") + "/"):
                return True
    return False


def _process(mount: Mount | None) -> int | None:
    """Return a descriptor of the mount's process, which stays valid if its number is reused."""
    if mount is None:
        return None
    try:
        return os.pidfd_open(int(mount.status["pid"]))
    except OSError:  # in another container, or ended
        return None


def _wait_for_end(process: int | None, directory: str) -> None:
    """Wait until the process has finished its work. Raises MountError."""
    if process is None:
        return
    try:
        if not select.select([process], [], [], END_S)[0]:
            raise MountError(
                f"'{directory}' is unmounted, but its process still runs", "its log says why"
            )
    finally:
        os.close(process)
