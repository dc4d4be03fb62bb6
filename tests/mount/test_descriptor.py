"""`/dev/fd/N` instead of the directory: the test mounts, and an unprivileged mount-s3 serves."""

import contextlib
import errno
import functools
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import Store
from tests.mount.mounting import (
    PROGRAM,
    content,
    environment,
    errno_of,
    eventually,
    store_options,
)
from tools import mounting

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount for another user"),
]

#: The user that serves; root without capabilities if other users cannot read this program.
NOBODY = 65534
MOUNTER = Path(__file__).parents[2] / "packaging" / "kubernetes" / "mounter.py"


def _module() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("mounter", MOUNTER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mounter = _module()


def become(user: int) -> list[str]:
    """Return a command prefix that drops all privileges."""
    drop = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--clear-groups"]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", *drop]


@functools.cache
def unprivileged() -> int:
    """Return the user that serves."""
    # Use a shell: setpriv itself looks up its command with its original privileges.
    script = 'exec "$0" -c "import mountpoint.mount.run"'
    done = subprocess.run(
        [*become(NOBODY), "sh", "-c", script, sys.executable],
        capture_output=True,
        check=False,
    )
    return NOBODY if done.returncode == 0 else 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can reach. At the end nothing is mounted there."""
    with tempfile.TemporaryDirectory(prefix="mount-s3-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "mnt"
        path.mkdir()
        try:
            yield path
        finally:
            mounter.unmount(str(path))


def command(store: Store, number: int, *options: str) -> list[str]:
    """Return the command that serves the descriptor."""
    where = store_options(store)
    return [str(PROGRAM), store.bucket, f"/dev/fd/{number}", *options, "--no-log", *where]


def start(store: Store, fuse: int, *options: str) -> "subprocess.Popen[str]":
    """Serve the descriptor without privileges, fusermount, or access to the mount."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    return subprocess.Popen(
        [*become(unprivileged()), *command(store, fuse, *options)],
        executable=setpriv,
        env=environment(store.environment) | {"PATH": "/nowhere"},
        pass_fds=[fuse],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def served(
    store: Store, place: Path, *options: str, **how: bool
) -> Iterator["subprocess.Popen[str]"]:
    """Mount, pass the descriptor on, close our copy, and wait until the mount answers."""
    fuse = mounter.mount(str(place), user=NOBODY, group=NOBODY, **how)
    program = start(store, fuse, "--foreground", *options)
    os.close(fuse)
    try:
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.endswith(f"bucket {store.bucket} is mounted at {place}\n")
        yield program
    finally:
        mounter.unmount(str(place))
        program.kill()
        program.communicate()


def test_reads_and_writes(store: Store, place: Path) -> None:
    """Files can be read and written, and the program ends when the bucket is unmounted."""
    written = os.urandom(20 << 20)
    store.put("descriptor/file", written)
    with served(store, place, "--prefix", "descriptor/") as program:
        status = Path(f"/proc/{program.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert (place / "file").read_bytes() == written
        (place / "new").write_bytes(written)
        assert sorted(os.listdir(place)) == ["file", "new"]
        assert (place / "new").stat().st_uid == unprivileged()
        (line,) = lines_of("/proc/mounts", place)
        assert line.startswith(f"mountpoint-s3 {place} fuse.mount-s3 rw,nosuid,nodev,noatime,")
        mounter.unmount(str(place))
        assert program.wait(timeout=30) == 0
    assert content(store, "descriptor/new") == written


def test_terminated(store: Store, place: Path) -> None:
    """SIGTERM ends the program, and later operations do not hang. The mount itself stays."""
    store.put("terminated/file", b"content")
    with served(store, place, "--prefix", "terminated/") as program:
        assert (place / "file").read_bytes() == b"content"
        program.terminate()
        assert program.wait(timeout=30) == 0
        assert mounting.is_mounted(place)
        assert errno_of(lambda: os.listdir(place)) == errno.ENOTCONN


def test_in_the_background(store: Store, place: Path) -> None:
    """The descriptor survives the fork. The command returns when files can be read."""
    store.put("background/file", b"content")
    fuse = mounter.mount(str(place), user=NOBODY, group=NOBODY)
    program = start(store, fuse, "--prefix", "background/")
    os.close(fuse)
    said, _ = program.communicate(timeout=60)
    assert (program.returncode, said) == (
        0,
        f"prefix background/ of bucket {store.bucket} is mounted at {place}\n",
    )
    assert (place / "file").read_bytes() == b"content"
    (line,) = lines_of("/proc/self/mountinfo", place)
    device = line.split()[2]
    assert Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text() == "1024\n"
    mounter.unmount(str(place))
    eventually(lambda: not serving(store))


def workers_of(keeper: int) -> list[int]:
    """Return the children of a process."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text()
    return [int(child) for child in children.split()]


@pytest.mark.parametrize("signalled", ["keeper", "worker"])
def test_kept_alive(store: Store, place: Path, signalled: str) -> None:
    """Open files go on if the serving process is killed. SIGTERM ends both; the mount stays."""
    data = os.urandom(4 << 20)
    store.put("descriptor-kept/file", data)
    with served(store, place, "--keep-alive", "--prefix", "descriptor-kept/") as program:
        with (place / "file").open("rb", buffering=0) as file:
            assert file.read(1000) == data[:1000]
            for _ in range(2):
                (died,) = workers_of(program.pid)
                os.kill(died, signal.SIGKILL)
                assert os.pread(file.fileno(), 4096, 3 << 20) == data[3 << 20 : (3 << 20) + 4096]
                assert os.listdir(place) == ["file"]
                assert died not in workers_of(program.pid)
        (worker,) = workers_of(program.pid)
        os.kill(program.pid if signalled == "keeper" else worker, signal.SIGTERM)
        assert program.wait(timeout=30) == 0
        assert mounting.is_mounted(place)
        assert errno_of(lambda: os.listdir(place)) == errno.ENOTCONN


def test_kept_alive_in_the_background(store: Store, place: Path) -> None:
    """When the bucket is unmounted, both processes end."""
    store.put("kept-background/file", b"content")
    fuse = mounter.mount(str(place), user=NOBODY, group=NOBODY)
    program = start(store, fuse, "--keep-alive", "--prefix", "kept-background/")
    os.close(fuse)
    said, _ = program.communicate(timeout=60)
    assert program.returncode == 0, said
    assert (place / "file").read_bytes() == b"content"
    (keeper,) = mounting.mount_processes(place)  # the first worker's command has /dev/fd/N
    (died,) = workers_of(keeper)
    os.kill(died, signal.SIGKILL)
    assert os.listdir(place) == ["file"]
    assert died not in workers_of(keeper)
    mounter.unmount(str(place))
    eventually(lambda: not mounting.mount_processes(place))
    assert serving(store) == []


def lines_of(table: str, place: Path) -> list[str]:
    """Return the lines about the mount from one of the kernel's tables."""
    return [line for line in Path(table).read_text().split("\n") if f" {place} " in line]


def serving(store: Store) -> list[str]:
    """Return the processes that serve a descriptor from this store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if store.endpoint_url in words and any(word.startswith("/dev/fd/") for word in words):
                found.append(path.parent.name)
    return found


def cat(path: Path, user: int) -> str:
    """Return the output of cat as another user, or the error."""
    done = subprocess.run(
        [*become(user), "cat", path], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout or done.stderr


def test_users_allowed_by_the_mount(store: Store, place: Path) -> None:
    """Without allow_other in the mount's options, only the named user has access."""
    store.put("who/file", b"content")
    with served(store, place, "--prefix", "who/", "--allow-other", allow_other=False):
        assert errno_of(lambda: os.listdir(place)) == errno.EACCES
        assert cat(place / "file", NOBODY) == "content"
    with served(store, place, "--prefix", "who/"):
        assert cat(place / "file", 1000) == "content"


def test_allow_root(store: Store, place: Path) -> None:
    """--allow-root restricts a mount that all users may access."""
    store.put("root/file", b"content")
    with served(store, place, "--prefix", "root/", "--allow-root"):
        assert (place / "file").read_bytes() == b"content"
        assert "Permission denied" in cat(place / "file", 1000)


def test_read_only(store: Store, place: Path) -> None:
    """The mount is read-only if its mounter says so, with and without the channel."""
    with served(store, place, "--no-channel", read_only=True):
        assert errno_of((place / "new").touch) == errno.EROFS


@pytest.mark.parametrize("option", ["--read-only", "--auto-unmount"])
def test_options_of_the_mounter(store: Store, option: str) -> None:
    """Options that only the mounting process can set are refused, as in AWS's mount-s3."""
    done = refused(store, 9, option)
    assert f"Error: {option} has no effect with /dev/fd/9, which is already mounted" in done


def refused(
    store: Store, number: int, *options: str, inherit: bool = False, stdin: IO[bytes] | None = None
) -> str:
    """Run mount-s3 with the descriptor, as root, and return its message."""
    done = subprocess.run(
        command(store, number, *options),
        env=environment(store.environment),
        pass_fds=[number] if inherit else [],
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert len(done.stderr.splitlines()) == 2
    return done.stderr


def test_wrong_descriptors(store: Store, place: Path) -> None:
    """Each wrong descriptor has its own message, before any request to S3."""
    assert "'/dev/fd/9' is not an open descriptor" in refused(store, 9)
    with open(place.parent / "file", "w+b") as file:
        number = file.fileno()
        assert f"'/dev/fd/{number}' is not /dev/fuse" in refused(store, number, inherit=True)
    with open("/dev/fuse", "rb", buffering=0) as device:
        number = device.fileno()
        said = refused(store, number, inherit=True)
        assert f"'/dev/fd/{number}' is not open for reading and writing" in said
    with open("/dev/fuse", "r+b", buffering=0) as device:
        number = device.fileno()
        assert f"nothing is mounted with '/dev/fd/{number}'" in refused(store, number, inherit=True)
        assert "'/dev/fd/0' is standard input or output" in refused(store, 0, stdin=device)


def test_unmounted_before(store: Store, place: Path) -> None:
    """The message says that nothing is mounted any more."""
    fuse = mounter.mount(str(place), user=0, group=0)
    try:
        mounter.unmount(str(place))
        assert f"nothing is mounted with '/dev/fd/{fuse}'" in refused(store, fuse, inherit=True)
    finally:
        os.close(fuse)


def test_served_before(store: Store, place: Path) -> None:
    """A mount cannot be taken over, because the kernel sends INIT only once."""
    fuse = mounter.mount(str(place), user=0, group=0)
    try:
        os.read(fuse, 1 << 20)  # INIT
        said = refused(store, fuse, inherit=True)
        assert f"'/dev/fd/{fuse}' was served before" in said
    finally:
        os.close(fuse)


def test_checked(store: Store, place: Path) -> None:
    """--check runs the relevant checks, and does not consume the mount."""
    fuse = mounter.mount(str(place), user=NOBODY, group=NOBODY)
    try:
        done = subprocess.run(
            [*command(store, fuse), "--check", "--json"],
            env=environment(store.environment),
            pass_fds=[fuse],
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        program = start(store, fuse)
    finally:
        os.close(fuse)
    said, _ = program.communicate(timeout=60)
    assert program.returncode == 0, said
    found = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert found["directory"]["finding"] == f"'{place}' is mounted and not served yet"
    for name in ("fuse_device", "permissions", "fusermount", "allow_other"):
        assert found[name]["outcome"] == "skipped"
    failed = [each for each in found.values() if each["outcome"] == "failed"]
    assert (done.returncode, failed) == (0, [])


def test_no_bucket(store: Store, place: Path) -> None:
    """Without a bucket the program ends with the reason, and waiting programs get an error."""
    fuse = mounter.mount(str(place), user=0, group=0)
    program = subprocess.Popen(
        [*command(store, fuse, "--foreground")],
        env=environment({"AWS_ACCESS_KEY_ID": "no", "AWS_SECRET_ACCESS_KEY": "such"}),
        pass_fds=[fuse],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(fuse)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert f"Error: the credentials for bucket '{store.bucket}' cannot be used" in said
    assert errno_of(lambda: os.listdir(place)) == errno.ENOTCONN


#: Three mount namespaces, as of three containers that share a volume. The program's namespace lacks
#: the volume.
CONTAINERS = """
set -e
mount --bind {volume} {volume}
mount --make-shared {volume}
mount_for="{python} {mounter} serve --user={user} {socket} {volume}/data"
unshare --mount --propagation unchanged $mount_for &
unshare --mount --propagation slave sh -c '
    for try in $(seq 200); do ! cat {volume}/data/file 2>/dev/null || exit 0; sleep 0.1; done
    exit 1' &
app=$!
unshare --mount --propagation private sh -c '
    umount --lazy {volume}
    exec {become} {python} {mounter} run {socket} {serve}' &
wait $app
"""


def test_in_containers(store: Store, place: Path) -> None:
    """Containers that share the volume see its files; the serving one does not see the volume."""
    store.put("containers/file", b"content")
    volume = place.parent / "volume"
    volume.mkdir()
    (place.parent / "socket").mkdir()
    words = [PROGRAM, "-f", store.bucket, "/dev/fd/N", "--prefix", "containers/"]
    script = CONTAINERS.format(
        volume=volume,
        python=sys.executable,
        mounter=MOUNTER,
        user=unprivileged(),
        socket=place.parent / "socket" / "socket",
        become=shlex.join(become(unprivileged())),
        serve=shlex.join(map(str, [*words, *store_options(store)])),
    )
    # The script is process 1 of its namespace: when it ends, all its processes end.
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*inside, "sh", "-c", script],
        env=environment(store.environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "content" in done.stdout
    assert f"mounter: {volume}/data is mounted" in done.stderr


def test_handed_on(store: Store, place: Path) -> None:
    """The example mounts for a process that may not mount, and again for the next one."""
    store.put("handed/file", b"content")
    shared = place.parent / "shared"
    shared.mkdir()
    address = shared / "socket"
    serving = subprocess.Popen(
        [sys.executable, MOUNTER, "serve", address, place, "--user", str(unprivileged())],
        stderr=subprocess.PIPE,
        text=True,
    )

    def client() -> "subprocess.Popen[str]":
        words = [str(PROGRAM), "--foreground", store.bucket, "/dev/fd/N", "--prefix", "handed/"]
        words += store_options(store)
        return subprocess.Popen(
            [*become(unprivileged()), sys.executable, str(MOUNTER), "run", str(address), *words],
            env=environment(store.environment),
            text=True,
        )

    programs = [client()]
    try:
        eventually(lambda: mounting.is_mounted(place))
        assert (place / "file").read_bytes() == b"content"
        programs[0].kill()
        eventually(lambda: not mounting.is_mounted(place))
        programs.append(client())
        eventually(lambda: mounting.is_mounted(place))
        assert (place / "file").read_bytes() == b"content"
        serving.terminate()
        assert serving.wait(timeout=30) == 0
        assert programs[1].wait(timeout=30) == 0
        assert not mounting.is_mounted(place)
        assert not address.exists()
    finally:
        for process in (serving, *programs):
            process.kill()
            process.wait()
        assert serving.stderr is not None
        serving.stderr.close()
