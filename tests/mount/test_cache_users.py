"""Two users of one machine who give the same directory to --cache."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.caches import blocks
from tests.mount.mounting import environment, eventually, mounted, run_anew, store_options

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
]

OTHER = 65534
DATA = b"x" * 50_000

#: Run the program as another user, who may be unable to read the interpreter's files.
AS_ANOTHER = f"""
import importlib, os, sys
from tests.mount.starter import MAINS, MODULES
for name in [*MODULES, "encodings.ascii", "encodings.idna", "encodings.latin_1"]:
    importlib.import_module(name)
os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})
sys.argv = ["mount-s3", *sys.argv[1:]]
sys.exit(sys.modules[MAINS["mount-s3"]].main())
"""

#: Give a command a /dev/fuse that every user can open, whatever the machine's own permits.
WITH_DEVICE = 'mount --bind "$0" /dev/fuse && exec "$@"'


@pytest.fixture
def cache(store: Store, public_path: Path) -> Path:
    """A directory in which everyone may write, like /tmp."""
    store.put("users/file", DATA)
    (path := public_path / "cache").mkdir()
    path.chmod(0o1777)
    return path


def as_another(store: Store, folder: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Run the program as another user, with a mount point and a home of their own in `folder`."""
    home = folder / "other"
    path = home / "mnt"
    path.mkdir(parents=True)
    for each in (home, path):
        os.chown(each, OTHER, OTHER)
    device = home / "fuse"
    os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
    device.chmod(0o666)
    own = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    return subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", WITH_DEVICE, str(device)),
            *(sys.executable, "-c", AS_ANOTHER, store.bucket, str(path), "--foreground"),
            # That user may not be able to start this interpreter, which a keeper needs.
            *("--no-keep-alive", "--cache", str(cache), *store_options(store)),
        ],
        env=environment(store.environment | own),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_second_user_is_refused(
    store: Store, folder: Path, cache: Path, public_path: Path
) -> None:
    """Another user's mount ends with a message that says whose cache it is; the first goes on."""
    with mounted(store, folder, "--cache", str(cache)) as mount:
        assert (mount.path / "users" / "file").read_bytes() == DATA
        eventually(lambda: len(blocks(cache)) == 1)
        done = as_another(store, public_path, cache)
        assert done.returncode == 1, done
        assert f"the cache in '{cache}' belongs to another user (0)" in done.stderr
        assert "each user has a cache of their own" in done.stderr
        assert (mount.path / "users" / "file").read_bytes() == DATA
    assert {each.stat().st_uid for each in cache.rglob("*")} == {0}


def test_root_is_refused(store: Store, folder: Path, cache: Path) -> None:
    """So is root, who could use another user's cache: the files would be root's."""
    with mounted(store, folder, "--cache", str(cache)) as mount:
        assert (mount.path / "users" / "file").read_bytes() == DATA
        eventually(lambda: len(blocks(cache)) == 1)
    theirs = list(cache.rglob("*"))
    for each in theirs:
        os.chown(each, OTHER, OTHER)
    done = run_anew(
        store.bucket,
        folder / "mnt",
        *("--cache", str(cache), *store_options(store)),
        env=store.environment,
    )
    assert done.returncode == 1
    assert f"the cache in '{cache}' belongs to another user ({OTHER})" in done.stderr
    assert list(cache.rglob("*")) == theirs
    assert {each.stat().st_uid for each in theirs} == {OTHER}
