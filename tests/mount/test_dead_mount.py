"""After a mount-s3 was killed, the next one on its directory removes the dead mount."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from mountpoint.mount import preflight
from tests.conftest import Store
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    environment,
    errno_of,
    eventually,
    mounted,
    run,
    store_options,
)
from tools.mounting import is_mounted

pytestmark = pytest.mark.mount

REMOVED = "removed the dead mount"


def test_the_next_mount_removes_it(store: Store, folder: Path) -> None:
    """It says so, and works, also while a program has a file of the dead one open."""
    store.put("dead/file", b"content")
    with mounted(store, folder, "--no-keep-alive", "--prefix", "dead/") as mount:
        file = os.open(mount.path / "file", os.O_RDONLY)
        try:
            os.kill(mount.pid, signal.SIGKILL)
            eventually(mount.has_ended)
            eventually(lambda: errno_of(lambda: os.listdir(mount.path)) == errno.ENOTCONN)
            options = [*store_options(store), "--prefix", "dead/"]
            for expected in (0, 1):  # a living one is left alone
                done = run(store.bucket, mount.path, *options, env=store.environment)
                assert done.returncode == expected, done.stderr
                assert (REMOVED in done.stderr) == (expected == 0)
            assert "is already a mount point" in done.stderr
            assert (mount.path / "file").read_bytes() == b"content"
        finally:
            os.close(file)


def test_with_a_keeper(store: Store, folder: Path) -> None:
    """If the keeper is killed, too, that is a dead mount like any other."""
    with mounted(store, folder) as mount:
        subprocess.run(["pkill", "-KILL", "-f", str(mount.path)], check=True)
        eventually(mount.has_ended)
        eventually(lambda: errno_of(lambda: os.listdir(mount.path)) == errno.ENOTCONN)
        done = run(store.bucket, mount.path, *store_options(store), env=store.environment)
        assert done.returncode == 0, done.stderr
        assert REMOVED in done.stderr
        os.listdir(mount.path)


def test_one_that_hangs(store: Store, folder: Path) -> None:
    """It is left alone, and the command does not wait for it for long."""
    with mounted(store, folder) as mount:
        pid = mount.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            done = subprocess.run(
                [PROGRAM, store.bucket, mount.path, *store_options(store)],
                env=environment(store.environment),
                capture_output=True,
                text=True,
                timeout=4 * preflight.ANSWER_S,
                check=False,
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert done.returncode == 1
        assert "is already a mount point that no longer answers (it hangs)" in done.stderr
        assert mount.is_mounted()
        os.listdir(mount.path)


#: A file system of another program: it mounts, and dies.
OTHER = """
import os, sys
import llfuse
llfuse.init(llfuse.Operations(), sys.argv[1], {"fsname=other", "subtype=other"})
os._exit(0)
"""


def test_another_programs(store: Store, folder: Path) -> None:
    """It is left alone."""
    path = folder / "mnt"
    path.mkdir()
    try:
        subprocess.run([PROGRAM.with_name("python"), "-c", OTHER, path], check=True, timeout=60)
        assert is_mounted(path)
        done = run(store.bucket, path, *store_options(store), env=store.environment)
        assert done.returncode == 1
        assert "is already a mount point that no longer answers" in done.stderr
        assert REMOVED not in done.stderr
        assert is_mounted(path)
    finally:
        clean_up(path)
