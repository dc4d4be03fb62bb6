"""`make demo`: an S3 server, a bucket of real files, a mount, and every byte compared.

    python -m tools.demo run [--keep]
    python -m tools.demo stop

Everything is in .state/demo: the server's data, the mount directory, the logs, and a note that
identifies the server's process. However a run ends, also by Ctrl-C, it unmounts, ends the server
and removes the folder. Only `--keep` leaves them. `stop` and the next run remove the remains of a
killed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from tools import demo_files, mounting
from tools.demo_files import LARGE_KEY, LARGE_SIZE_BYTES, TREE_PREFIX, OverdueError
from tools.fuse_check import why_no_fuse
from tools.mounting import MountError
from tools.progress import progress
from tools.servers import SeaweedFS, ServerError, end_noted

FOLDER = Path(__file__).resolve().parent.parent / ".state" / "demo"
MOUNT = FOLDER / "mount"
LOGS = FOLDER / "log"
SERVER = FOLDER / "server"
NOTE = FOLDER / "server.json"

BUCKET = "demo-bucket"
# The demo uses 1.2 GiB for the large object and the library; the rest is a margin.
DISK_NEEDED_BYTES = 1536 << 20
# For each step on the mount. The slowest step takes half a minute on two cores.
STEP_TIMEOUT_S = 600.0
SHOWN_PROBLEMS = 10


class DemoError(RuntimeError):
    """The demo cannot continue, or found a difference. The message is one line."""


# -- the steps -----------------------------------------------------------------------------------


def run(keep: bool) -> None:
    """Run the demo from start to end. Raises DemoError, MountError, OverdueError, ServerError."""
    if (problem := why_no_fuse()) is not None:
        raise DemoError(f"this machine cannot mount: {problem}")
    if stop():
        say("Stopped", "the server and the mount of an earlier demo")
    FOLDER.mkdir(parents=True)
    try:
        free = shutil.disk_usage(FOLDER).free
        if free < DISK_NEEDED_BYTES:
            raise DemoError(
                f"the demo needs {DISK_NEEDED_BYTES >> 20} MiB of disk space, "
                f"and {FOLDER} has {free >> 20} MiB: make room and run make demo again"
            )
        started = time.monotonic()
        files = demo_files.standard_library()
        with SeaweedFS(BUCKET, SERVER) as server:
            NOTE.write_text(json.dumps(server.note()))
            say("Server", f"SeaweedFS on {server.endpoint_url}, bucket {BUCKET}")
            sha256 = fill(server, files)
            with mounted(server):
                compare(files)
                read_large(sha256)
                seconds = time.monotonic() - started
                say("Identical", f"all {len(files) + 1} files; {seconds:.0f} s in all")
                if keep:
                    leave(server)
                    return
                mounting.unmount(MOUNT)
    except BaseException:
        # Report the first error, even if the removal fails as well.
        with contextlib.suppress(DemoError, OSError):
            remove_folder()
        raise
    remove_folder()
    say("Unmounted", "and stopped the server; nothing is left behind")


def fill(server: SeaweedFS, files: dict[str, Path]) -> str:
    """Upload everything; returns the large object's SHA-256."""
    client = server.client(max_pool_connections=demo_files.THREADS)
    size = sum(path.stat().st_size for path in files.values())
    source = sysconfig.get_path("stdlib")
    say("Filling", f"{len(files)} files ({size / 1e6:.0f} MB) of {source}, and one of 1 GiB")
    try:
        with progress(f"  {TREE_PREFIX}", len(files)) as advance:
            demo_files.upload_tree(client, BUCKET, files, advance)
        with progress(f"  {LARGE_KEY}", LARGE_SIZE_BYTES) as advance:
            return demo_files.upload_large(client, BUCKET, advance)
    except (BotoCoreError, ClientError) as error:
        raise DemoError(f"filling the bucket failed: {error}\n{server.log_tail()}") from error


@contextlib.contextmanager
def mounted(server: SeaweedFS) -> Iterator[None]:
    """Mount the bucket as a user would. On an error unmount and show the log; else stay mounted."""
    MOUNT.mkdir()
    options = ["--endpoint-url", server.endpoint_url, "--region", server.region]
    options.append("--force-path-style")
    say("Mounting", " ".join(["mount-s3", BUCKET, os.path.relpath(MOUNT), *options]))
    try:
        mounting.mount(BUCKET, MOUNT, options, server.environment, LOGS)
        yield
    except BaseException as error:
        # Report the first error: an error while unmounting is usually its consequence.
        with contextlib.suppress(MountError):
            mounting.unmount(MOUNT)
        if not isinstance(error, KeyboardInterrupt):
            print(f"The end of the log of mount-s3:\n{mounting.log_tail(LOGS)}", file=sys.stderr)
        raise


def compare(files: dict[str, Path]) -> None:
    """List the mount, and compare names and contents with the originals."""
    started = time.monotonic()
    seen = demo_files.in_time(demo_files.list_tree, MOUNT, STEP_TIMEOUT_S)
    folders = {name.rpartition("/")[0] for name in seen}
    seconds = time.monotonic() - started
    say("Listed", f"{len(seen)} files in {len(folders)} directories in {seconds:.1f} s")
    check(demo_files.compare_names([*(TREE_PREFIX + name for name in files), LARGE_KEY], seen))

    started = time.monotonic()
    with progress("  SHA-256 of both", len(files)) as advance:
        root = MOUNT / TREE_PREFIX
        problems = demo_files.compare_contents(files, root, advance, STEP_TIMEOUT_S)
    check(problems)
    seconds = time.monotonic() - started
    say("Compared", f"{len(files)} files with their originals in {seconds:.1f} s")


def read_large(sha256: str) -> None:
    """Measure the read of the large object, then compare its checksum."""
    path = MOUNT / LARGE_KEY
    started = time.monotonic()
    size = demo_files.in_time(demo_files.read_through, path, STEP_TIMEOUT_S)
    seconds = time.monotonic() - started
    if size != LARGE_SIZE_BYTES:
        raise DemoError(f"{LARGE_KEY}: {size} of {LARGE_SIZE_BYTES} bytes were read")
    say("Read", f"{LARGE_KEY} in {seconds:.2f} s: {size / seconds / 1e6:,.0f} MB/s")
    # A second read, so that the time of hashing is not in the figure.
    if demo_files.in_time(demo_files.sha256_of, path, STEP_TIMEOUT_S) != sha256:
        raise DemoError(f"{LARGE_KEY}: its SHA-256 differs from that of the uploaded bytes")


def check(problems: list[str]) -> None:
    """Show the first problems and raise DemoError, if there are any."""
    if problems:
        print("\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]), file=sys.stderr)
        raise DemoError(f"the mount and the originals differ in {len(problems)} files, see above")


def say(what: str, text: str) -> None:
    """Print one line about a step."""
    print(f"{what:<10} {text}", flush=True)


# -- the end -------------------------------------------------------------------------------------


def leave(server: SeaweedFS) -> None:
    """Leave the server running, and say how to look around and how to stop it."""
    server.leave_running()
    keys = " ".join(f"{name}={value}" for name, value in server.environment.items())
    folder = os.path.relpath(MOUNT)
    print(
        f"""
The bucket stays mounted. Look around:
  ls -l {folder}/{TREE_PREFIX}
  grep -rl asyncio {folder}/{TREE_PREFIX}
  sha256sum {folder}/{LARGE_KEY}
The logs are in {os.path.relpath(LOGS)}. The same bucket with another program:
  {keys} \\
    aws s3 ls --endpoint-url {server.endpoint_url} s3://{BUCKET}/{TREE_PREFIX}
Stop and remove everything:
  make demo-stop""",
        flush=True,
    )


def stop() -> bool:
    """Remove the remains of an earlier demo. Return whether there were any."""
    if not FOLDER.exists():
        return False
    try:
        mounting.unmount(MOUNT)
    finally:
        if NOTE.exists():
            end_noted(json.loads(NOTE.read_text()))
        remove_folder()
    return True


def remove_folder() -> None:
    """Remove all files of the demo, but never through a mount."""
    if mounting.is_mounted(MOUNT):
        raise DemoError(f"{MOUNT} is still mounted: fusermount -uz {MOUNT}, then make demo-stop")
    shutil.rmtree(FOLDER)


def interrupt(number: int, frame: object) -> None:
    """End the run at the first signal. Later signals do not interrupt the cleanup."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="run the demo").add_argument(
        "--keep", action="store_true", help="leave it mounted"
    )
    commands.add_parser("stop", help="stop what run --keep left")
    arguments = parser.parse_args()
    try:
        if arguments.command == "stop":
            say("Stopped" if stop() else "No demo", "nothing is left behind")
            return 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        run(arguments.keep)
    except KeyboardInterrupt:
        print("demo: interrupted; unmounted, stopped and removed everything", file=sys.stderr)
        return 130
    except (DemoError, MountError, OverdueError, ServerError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
