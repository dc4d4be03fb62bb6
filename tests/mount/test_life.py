"""From start to end: background, foreground, signals, unmounting, fstab, remains."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    environment,
    eventually,
    foreground,
    mounted,
    run,
    run_anew,
    store_options,
)
from tests.soak import rounds
from tools.mounting import is_mounted, mount_processes, serving_process

pytestmark = pytest.mark.mount

#: Ways to end a mount, as functions of its process and its directory.
ENDINGS: dict[str, Callable[[int, Path], object]] = {
    "SIGTERM": lambda pid, path: os.kill(pid, signal.SIGTERM),
    "SIGINT": lambda pid, path: os.kill(pid, signal.SIGINT),
    "SIGHUP": lambda pid, path: os.kill(pid, signal.SIGHUP),
    "umount": lambda pid, path: subprocess.run(["umount", path], check=True),
    "fusermount": lambda pid, path: subprocess.run(["fusermount", "-u", path], check=True),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_background(store: Store, folder: Path, ending: str) -> None:
    """The parent returns once files can be read; each ending removes mount and process."""
    store.put("life/file", b"alive")
    with mounted(store, folder, how=run_anew) as mount:
        assert (mount.path / "life" / "file").read_bytes() == b"alive"
        ENDINGS[ending](mount.pid, mount.path)
        eventually(mount.has_ended)
        assert not mount.is_mounted()
        assert list(mount.path.iterdir()) == []
        assert mount.log == "", "an orderly end is nothing to warn about"


def test_ends_every_time(store: Store, folder: Path) -> None:
    """SIGTERM ends an idle mount each time: none of its threads waits for its own mount.

    It hung once in ten times, when a worker dropped a request of the mount's own process.
    """
    for _ in rounds(1):
        with mounted(store, folder) as mount:
            os.kill(mount.pid, signal.SIGTERM)
            eventually(mount.has_ended)
            assert not mount.is_mounted()


@pytest.mark.parametrize("ending", ["SIGINT", "SIGHUP", "umount"])
def test_foreground(store: Store, folder: Path, ending: str) -> None:
    """In the foreground the program runs until a signal ends it, and then exits with 0."""
    store.put("life/file", b"alive")
    before = ["env", "--default-signal=HUP,INT"]
    with foreground(store, folder, "--debug", before=before) as (program, path):
        assert (path / "life" / "file").read_bytes() == b"alive"
        ENDINGS[ending](program.pid, path)
        output, _ = program.communicate(timeout=20)
        assert program.returncode == 0, output
        assert not is_mounted(path)


def test_ignored_signals_stay_ignored(store: Store, folder: Path) -> None:
    """`nohup mount-s3 --foreground` survives its terminal, and SIGTERM still ends it."""
    before = ["env", "--ignore-signal=HUP,INT"]
    with foreground(store, folder, "--debug", before=before) as (program, path):
        program.send_signal(signal.SIGHUP)
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=20)
        assert program.returncode == 0, output
        assert "ending the mount signal=SIGTERM" in output
        assert not is_mounted(path)


def test_relative_directory(store: Store, folder: Path) -> None:
    """A relative directory is the caller's, although the daemon leaves for /.

    The one line on standard output names bucket and directory.
    """
    path = folder / "here"
    path.mkdir()
    try:
        result = subprocess.run(
            [PROGRAM, store.bucket, "here", *store_options(store)],
            cwd=folder,
            env=environment(store.environment),
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"bucket {store.bucket} is mounted at {path}\n"
        assert is_mounted(path)
        pid = serving_process(Path("here"))
        if os.geteuid() == 0:  # other users may not look
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
        subprocess.run(["umount", path], check=True)
        eventually(lambda: not mount_processes(Path("here")))
    finally:
        clean_up(path)


@pytest.mark.parametrize("name", ["a b,c\\d\\040\te\nf\r", "no-break\u00a0raw\udcff"])
def test_odd_directory(store: Store, folder: Path, name: str) -> None:
    """A directory with any name can be mounted on, recognised as a mount, and unmounted."""
    path = folder / name
    path.mkdir()
    try:
        for expected in (0, 1):
            result = run(store.bucket, path, *store_options(store), env=store.environment)
            assert result.returncode == expected, result.stderr
        assert "is already a mount point" in result.stderr
        pid = serving_process(path)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not mount_processes(path))
        assert not is_mounted(path)
    finally:
        clean_up(path)


def test_unmount_while_reading(store: Store, folder: Path) -> None:
    """umount fails for a mount in use; a signal ends the mount nevertheless."""
    store.put("life/large", os.urandom(64 << 20))
    with mounted(store, folder) as mount:
        stop, errors = threading.Event(), []

        def read() -> None:
            try:
                with open(mount.path / "life" / "large", "rb", buffering=0) as file:
                    while not stop.is_set():
                        file.seek(0)
                        while file.read(1 << 20):
                            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        time.sleep(0.5)
        busy = subprocess.run(["umount", mount.path], capture_output=True, text=True, check=False)
        assert busy.returncode != 0
        assert "busy" in busy.stderr
        os.kill(mount.pid, signal.SIGTERM)
        eventually(mount.has_ended)
        stop.set()
        for reader in readers:
            reader.join(timeout=20)
            assert not reader.is_alive()
        assert not mount.is_mounted()


def test_auto_unmount(store: Store, folder: Path) -> None:
    """With --auto-unmount even SIGKILL leaves no mount."""
    with mounted(store, folder, "--auto-unmount") as mount:
        os.kill(mount.pid, signal.SIGKILL)
        eventually(lambda: not mount.is_mounted())
        assert list(mount.path.iterdir()) == []


@pytest.mark.parametrize(("option", "flag"), [("--read-only", "ro"), ("--no-channel", "rw")])
def test_flags(store: Store, folder: Path, option: str, flag: str) -> None:
    """The mount is nosuid,nodev and checks permissions; options add ro and allow_other."""
    with mounted(store, folder, "--allow-other", option) as mount:
        (line,) = [
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if str(mount.path) in line
        ]
    name, _, kind, options = line.split()[:4]
    assert (name, kind) == (f"s3://{store.bucket}", "fuse.mount-s3")
    wanted = {flag, "nosuid", "nodev", "default_permissions", "allow_other"}
    assert wanted <= set(options.split(","))


#: A prefix with characters that are special to mount(8), libfuse and the kernel's tables.
ODD_PREFIX = "life/a b,c\\d\te\nf#g/"


@pytest.mark.parametrize(
    ("mounter", "fsname"),
    [((), ""), (("--auto-unmount",), ""), (("--auto-unmount",), "a,b\\")],
    ids=["mount(2)", "fusermount", "fsname"],
)
def test_source(store: Store, folder: Path, fsname: str, mounter: tuple[str, ...]) -> None:
    """findmnt and df show bucket and prefix, with any characters, or the --fsname."""
    options = [*mounter, *(("--fsname", fsname) if fsname else ())]
    with mounted(store, folder, "--prefix", ODD_PREFIX, *options) as mount:
        entry = subprocess.run(
            ["findmnt", "--json", "--target", mount.path], capture_output=True, check=True
        )
        (found,) = json.loads(entry.stdout)["filesystems"]
    assert found["source"] == (fsname or f"s3://{store.bucket}/{ODD_PREFIX}")
    assert found["fstype"] == "fuse.mount-s3"


#: Common options of mount(8) in fstab that have no effect here.
USUAL = "_netdev,nofail,noatime,relatime,async,comment=logs,default_permissions,x-systemd.automount"


@pytest.mark.skipif(os.getuid() != 0, reason="mount(8) with a file of its own is for root")
def test_fstab(store: Store, folder: Path) -> None:
    """mount(8) mounts lines in fstab with the type fuse.mount-s3, and only once.

    With "user" it adds noexec, which the kernel obeys.
    """
    if shutil.which("mount.fuse") is None:
        pytest.skip("mount.fuse, of the fuse package, is not installed")
    store.put("life/fstab/program", b"#!/bin/sh\necho runs\n")
    fstab, programs = folder / "fstab", folder / "bin"
    programs.mkdir()
    (programs / "mount-s3").symlink_to(PROGRAM)
    of_store = f"endpoint-url={store.endpoint_url},region=us-east-1,force-path-style,file-mode=755"
    odd = "".join(f"\\{ord(each):03o}" if each in " \\\t\n#" else each for each in ODD_PREFIX)
    lines = {
        "a": (f"s3://{store.bucket}/life/fstab/", f"{USUAL},uid=7"),
        "b": (store.bucket, "prefix=life/fstab/,user,ro"),
        "c": (f"s3://{store.bucket}/{odd}", "exec"),
    }
    for name, (source, options) in lines.items():
        (folder / name).mkdir()
        with fstab.open("a") as file:
            file.write(f"{source} {folder}/{name} fuse.mount-s3 {of_store},{options} 0 0\n")
    # mount(8) looks for programs only in the system's folders, so the program is placed there, in a
    # separate mount namespace.
    script = f"""
        cd {folder}
        set -e
        mount --bind {programs} /usr/local/sbin
        mount --all --fstab fstab >&2
        mount --all --fstab fstab
        findmnt --noheadings --output TARGET --types fuse.mount-s3 | grep --count {folder}
        findmnt --noheadings --output SOURCE,VFS-OPTIONS b
        stat --format %u a/program
        for each in a b; do $each/program 2>/dev/null || echo $?; done
        umount a b c
    """
    try:
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=environment(store.environment),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert result.stderr.count("is mounted at") == len(lines)
        count, shown, owner, *ran = result.stdout.splitlines()
        assert (count, owner, ran) == ("3", "7", ["runs", "126"])
        source, options = shown.split()
        assert source == store.bucket
        assert {"ro", "noexec"} <= set(options.split(","))
        for name in lines:

            def has_ended(path: Path = folder / name) -> bool:
                return not mount_processes(path)

            eventually(has_ended)
    finally:
        for name in lines:
            clean_up(folder / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_other_users(store: Store) -> None:
    """Without --allow-other another user has no access; with it the modes apply."""
    store.put("life/file", b"alive")
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def cat(path: Path) -> subprocess.CompletedProcess[str]:
        command = [*as_nobody, "cat", str(path / "life" / "file")]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    # Other users cannot enter pytest's own folders.
    with tempfile.TemporaryDirectory(prefix="mount-s3-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with mounted(store, folder) as mount:
            assert "Permission denied" in cat(mount.path).stderr
        with mounted(store, folder, "--allow-other") as mount:
            assert cat(mount.path).stdout == "alive"
        with mounted(store, folder, "--allow-other", "--file-mode", "0600") as mount:
            assert "Permission denied" in cat(mount.path).stderr
