"""Writes through the kernel: files, their closes, overwriting, deleting, directories."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted, pending

MIB = 1 << 20
SIZES = [0, 1, 4095, 4096, 128 << 10, MIB + 1, 8 * MIB, 8 * MIB + 1, 33 * MIB + 7]


@pytest.fixture(scope="module", params=["channel", "no-channel"])
def mount(
    request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount without any --allow option, on its own empty prefix."""
    prefix = f"write-{request.param}/"
    options = [] if request.param == "channel" else ["--no-channel"]
    folder = tmp_path_factory.mktemp("write")
    with mounted(store, folder, "--prefix", prefix, *options) as it:
        it.prefix = prefix  # type: ignore[attr-defined]
        yield it


@pytest.fixture(scope="module")
def free(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that may overwrite, delete and rename."""
    allowed = ["--allow-overwrite", "--allow-delete", "--allow-rename"]
    options = [*allowed, "--prefix", "free/"]
    with mounted(store, tmp_path_factory.mktemp("free"), *options) as it:
        yield it


# --- New files ---


@pytest.mark.parametrize(
    ("step", "size"),
    [(1000, size) for size in SIZES[:-1]]  # the last one would be 35,000 pieces
    + [(step, size) for step in (100_000, 3 * MIB) for size in SIZES],
)
def test_a_new_file(mount: Mount, store: Store, step: int, size: int) -> None:
    """A file of any size, written in pieces of any size, is the same in S3 and when read back."""
    data = os.urandom(size)
    path = mount.path / f"new-{size}-{step}"
    with path.open("wb", buffering=0) as file:
        for offset in range(0, size, step):
            assert file.write(data[offset : offset + step]) == len(data[offset : offset + step])
        assert os.fstat(file.fileno()).st_size == size
    eventually(lambda: content(store, mount.prefix + path.name) == data)  # type: ignore[attr-defined]
    assert path.read_bytes() == data
    assert path.stat().st_size == size


SHELL = {
    "redirection": ("echo one > {}", b"one\n"),
    "subshell": ("(echo one; /bin/echo two; /bin/echo three) > {}", b"one\ntwo\nthree\n"),
    "brace group": ("{{ /bin/echo one; echo two; }} > {}", b"one\ntwo\n"),
    "pipe": ("printf 'b\\na\\n' | sort | tee {} >/dev/null", b"a\nb\n"),
    "empty": (": > {}", b""),
    "touch": ("touch {}", b""),
    "touch with a time": ("touch -d 2001-01-01 {}", b""),
    "dd": ("dd if=/dev/zero of={} bs=100k count=50 status=none", bytes(5_000 << 10)),
    "cp": ("cp /bin/true {}", Path("/bin/true").read_bytes()),
    "cp -p": ("cp -p /bin/true {}", Path("/bin/true").read_bytes()),
    "cat": ("cat /bin/true > {}", Path("/bin/true").read_bytes()),
    "head of a pipe": ("yes | head -c 1000000 > {}", (b"y\n" * 500_000)),
    "background child": ("(sleep 0.2; echo late) > {} & wait", b"late\n"),
    "tar": ("tar -C /etc -cf {} passwd; tar -C /dev/null -tf {} >/dev/null 2>&1; :", None),
    "gzip": ("gzip -c /bin/true > {}; gzip -t {}", None),
    "python": (f"{sys.executable} -c \"open('{{}}', 'w').write('x')\"", b"x"),
}


@pytest.mark.parametrize("case", SHELL)
def test_programs(mount: Mount, store: Store, case: str) -> None:
    """The files of shells and ordinary programs exist when the programs have ended."""
    command, expected = SHELL[case]
    path = mount.path / case.replace(" ", "-")
    done = subprocess.run(
        ["bash", "-c", command.format(*[path] * command.count("{}"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    key = mount.prefix + path.name  # type: ignore[attr-defined]
    eventually(lambda: content(store, key) is not None)
    if expected is not None:
        assert content(store, key) == expected
        assert path.read_bytes() == expected


def test_many_writers(mount: Mount, store: Store) -> None:
    """Files written at the same time do not mix."""
    script = "import sys; open(sys.argv[1], 'wb').write(sys.argv[2].encode() * 3_000_000)"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, mount.path / f"many-{name}", name * 4])
        for name in "abcdefgh"
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 8
    for name in "abcdefgh":
        found = content(store, mount.prefix + f"many-{name}")  # type: ignore[attr-defined]
        assert found == name.encode() * 12_000_000


def test_seen_while_it_is_written(mount: Mount, store: Store) -> None:
    """A new file is listed with its size immediately, and can be read once it is closed."""
    path = mount.path / "growing"
    key = mount.prefix + path.name  # type: ignore[attr-defined]
    with path.open("wb", buffering=0) as file:
        file.write(b"123")
        assert "growing" in os.listdir(mount.path)
        assert path.stat().st_size == 3
        assert errno_of(path.read_bytes) == errno.EPERM
        assert errno_of(lambda: path.open("wb")) == errno.EPERM
        assert content(store, key) is None
        file.write(b"45")
    assert content(store, key) == b"12345"
    assert path.read_bytes() == b"12345"


def test_fsync(mount: Mount, store: Store) -> None:
    """After fsync the file is in S3, can be read, and can be continued."""
    path = mount.path / "fsync"
    with path.open("wb", buffering=0) as file:
        file.write(b"123")
        os.fsync(file.fileno())
        assert content(store, mount.prefix + path.name) == b"123"  # type: ignore[attr-defined]
        assert path.read_bytes() == b"123"
        file.write(b"4")
    assert path.read_bytes() == b"1234"


def test_another_offset(mount: Mount, store: Store) -> None:
    """A write at another offset is EINVAL, and so is the close; no object appears."""
    path = mount.path / "offset"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"123")
    assert errno_of(lambda: os.pwrite(descriptor, b"x", 10)) == errno.EINVAL
    assert errno_of(lambda: os.close(descriptor)) == errno.EINVAL
    assert not path.exists()
    assert content(store, mount.prefix + path.name) is None  # type: ignore[attr-defined]


def test_errors_name_the_remedy(mount: Mount) -> None:
    """A refused operation is one line in the log, with path, reason and option."""
    path = mount.path / "refused"
    path.write_bytes(b"1")
    assert errno_of(path.unlink) == errno.EPERM
    assert errno_of(lambda: path.write_bytes(b"2")) == errno.EPERM
    lines = [line for line in mount.log.splitlines() if "path=/refused" in line]
    assert len(lines) == 2
    assert "--allow-delete" in lines[0]
    assert "--allow-overwrite" in lines[1]


def test_operations_that_s3_lacks(mount: Mount) -> None:
    """The errnos are those of AWS's mount-s3."""
    path, other = mount.path / "there", mount.path / "other"
    path.write_bytes(b"1")
    attempts = {
        "symlink": (lambda: other.symlink_to("there"), errno.EPERM),
        "link": (lambda: other.hardlink_to(path), errno.EPERM),
        "fifo": (lambda: os.mkfifo(other), errno.EINVAL),
        "rename": (lambda: path.rename(other), errno.ENOSYS),
        "chmod": (lambda: path.chmod(0o600), errno.EPERM),
        "chown": (lambda: os.chown(path, 1, 1), errno.EPERM),
        "utime": (lambda: os.utime(path), errno.EPERM),
        "truncate": (lambda: os.truncate(path, 0), errno.EPERM),
        "setxattr": (lambda: os.setxattr(path, "user.name", b"1"), errno.ENOTSUP),
        "append": (lambda: path.open("ab"), errno.EPERM),
        "O_SYNC": (lambda: os.open(other, os.O_CREAT | os.O_WRONLY | os.O_SYNC), errno.EINVAL),
    }
    found = {name: errno_of(attempt) for name, (attempt, _) in attempts.items()}
    assert found == {name: expected for name, (_, expected) in attempts.items()}
    assert path.read_bytes() == b"1"


# --- Processes that do not come to their end ---

WRITER = """
import os, sys, time
file = open(sys.argv[1], "wb", buffering=0)
file.write(bytes(int(sys.argv[2])))
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("size", [0, 1000, 20 * MIB])
def test_the_writer_is_killed(mount: Mount, store: Store, size: int, end: int) -> None:
    """A killed process leaves neither an object nor parts."""
    path = mount.path / f"killed-{size}-{end}"
    key = mount.prefix + path.name  # type: ignore[attr-defined]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    writer.send_signal(end)
    writer.wait()
    writer.stdout.close()
    # The name goes first: S3 may take a while to answer that the upload is aborted.
    eventually(lambda: not path.exists() and pending(store, key) == [])
    assert content(store, key) is None


def test_a_process_that_ends_without_closing(mount: Mount, store: Store) -> None:
    """An orderly end closes all files, with any exit code."""
    path = mount.path / "exit"
    script = f"import os; os.write(os.open({str(path)!r}, 0o101), b'123'); os._exit(3)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3
    assert content(store, mount.prefix + path.name) == b"123"  # type: ignore[attr-defined]


def test_threads(mount: Mount, store: Store) -> None:
    """Different threads of a process may open, write and close a file."""
    path = mount.path / "threads"
    script = f"""
import os, threading
descriptor = []
def run(action):
    thread = threading.Thread(target=action); thread.start(); thread.join()
run(lambda: descriptor.append(os.open({str(path)!r}, 0o101)))
run(lambda: os.write(descriptor[0], b"123"))
run(lambda: os.close(descriptor[0]))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert content(store, mount.prefix + path.name) == b"123"  # type: ignore[attr-defined]


def test_the_mount_ends_while_a_file_is_written(store: Store, folder: Path) -> None:
    """At SIGTERM writers get an error, the mount ends, and no parts are left."""
    with mounted(store, folder, "--prefix", "ending/") as mount:
        descriptor = os.open(mount.path / "a", os.O_WRONLY | os.O_CREAT)
        for _ in range(20):
            os.write(descriptor, bytes(MIB))
        os.kill(mount.pid, signal.SIGTERM)
        eventually(mount.has_ended)
        assert errno_of(lambda: os.write(descriptor, b"1")) is not None
        assert errno_of(lambda: os.close(descriptor)) is not None
    assert content(store, "ending/a") is None
    assert pending(store, "ending/") == []


def test_unmounted_right_after_a_close(store: Store, folder: Path) -> None:
    """A closed file exists, even an empty one, if `umount` follows immediately."""
    for number in range(5):
        with mounted(store, folder, "--prefix", f"quick-{number}/") as mount:
            command = f"echo 1 > {mount.path}/a; touch {mount.path}/b; umount {mount.path}"
            subprocess.run(["bash", "-c", command], check=True, timeout=60)
            eventually(mount.has_ended)
        assert content(store, f"quick-{number}/a") == b"1\n"
        assert content(store, f"quick-{number}/b") == b""


# --- Overwriting and deleting ---


def test_overwriting(free: Mount, store: Store) -> None:
    """A file is replaced when its new content is closed; readers see one or the other version."""
    path = free.path / "over"
    for number in range(5):
        data = os.urandom(3 * MIB + number)
        path.write_bytes(data)
        assert content(store, "free/over") == data
        assert path.read_bytes() == data
        assert path.stat().st_size == len(data)
    with path.open("wb") as file:
        file.write(b"later")
        file.flush()
        assert content(store, "free/over") == data
    assert path.read_bytes() == b"later"
    os.truncate(path, 0)
    assert (path.read_bytes(), content(store, "free/over")) == (b"", b"")


def test_a_size_that_is_set_first(free: Mount, store: Store) -> None:
    """A size that is set first survives syncs, closes and renames; a file also grows by name."""
    data = os.urandom(9 * MIB)
    (free.path / "sized").mkdir()
    with (free.path / "sized/a").open("wb", buffering=0) as file:
        os.ftruncate(file.fileno(), len(data))
        file.write(data[:MIB])
        os.fsync(file.fileno())
        assert content(store, "free/sized/a") == data[:MIB] + bytes(8 * MIB)
        os.close(os.dup(file.fileno()))
        file.write(data[MIB : 2 * MIB])
        os.close(os.dup(file.fileno()))
        (free.path / "sized").rename(free.path / "renamed")
        file.write(data[2 * MIB :])
    assert (free.path / "renamed/a").read_bytes() == data
    assert content(store, "free/renamed/a") == data
    assert content(store, "free/sized/a") is None
    (free.path / "renamed/b").write_bytes(b"12")
    assert (free.path / "renamed/b").read_bytes() == b"12"
    os.truncate(free.path / "renamed/b", 4)
    assert (free.path / "renamed/b").read_bytes() == b"12\0\0"
    assert content(store, "free/renamed/b") == b"12\0\0"


def test_seen_by_another_mount(free: Mount, store: Store, folder: Path) -> None:
    """Another mount sees files that one mount writes, replaces and deletes."""
    with mounted(store, folder, "--prefix", "free/", "--metadata-ttl", "0") as other:
        path, theirs = free.path / "shared", other.path / "shared"
        for data in (b"one", b"two"):
            path.write_bytes(data)
            assert theirs.read_bytes() == data
        path.unlink()
        assert not theirs.exists()
        theirs.write_bytes(b"theirs")
        assert path.read_bytes() == b"theirs"


def test_two_mounts_create_the_same_name(free: Mount, store: Store, folder: Path) -> None:
    """The second close fails, and the first file stays."""
    with mounted(store, folder, "--prefix", "free/") as other:
        descriptor = os.open(other.path / "race", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"second")
        (free.path / "race").write_bytes(b"first")
        assert errno_of(lambda: os.close(descriptor)) == errno.EEXIST
        assert "another writer created the object" in other.log
    assert content(store, "free/race") == b"first"


def test_directories(flat_store: Store, folder: Path) -> None:
    """Directories can be created, filled, emptied and removed, as elsewhere."""
    with mounted(flat_store, folder, "--allow-delete", "--prefix", "free/") as mount:
        check_directories(mount.path / "tree", flat_store)


def check_directories(root: Path, store: Store) -> None:
    subprocess.run(["mkdir", "-p", root / "a/b/c"], check=True)
    assert os.listdir(root / "a") == ["b"]
    (root / "a/b/c/file").write_bytes(b"1")
    assert content(store, "free/tree/a/b/c/file") == b"1"
    assert errno_of((root / "a/b").rmdir) == errno.ENOTEMPTY
    (root / "a/b/c/file").unlink()
    assert os.listdir(root / "a/b/c") == []
    (root / "a/b/c").rmdir()
    assert os.listdir(root / "a/b") == []
    assert errno_of((root / "a").mkdir) == errno.EEXIST
    subprocess.run(["cp", "-r", "/etc/apt", root / "copy"], check=True)
    found = subprocess.run(["diff", "-r", "/etc/apt", root / "copy"], check=False)
    assert found.returncode == 0
    subprocess.run(["rm", "-r", root], check=True)
    assert not root.exists()
    listed = store.client().list_objects_v2(Bucket=store.bucket, Prefix="free/tree/")
    assert listed["KeyCount"] == 0


def test_the_log_names_the_refused_program(mount: Mount, store: Store) -> None:
    """A hundred tries of a program are one line, with the program and the option."""
    store.put(mount.prefix + "kept", b"x")  # type: ignore[attr-defined]
    path = mount.path / "kept"
    script = (
        "import os, sys\n"
        "for _ in range(100):\n"
        "    try: os.unlink(sys.argv[1])\n"
        "    except PermissionError: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path])
    assert process.wait(timeout=60) == 0
    lines = [line for line in mount.log.splitlines() if "path=/kept" in line]
    (line,) = [line for line in lines if "operation=unlink" in line]
    assert "--allow-delete" in line
    if mount.prefix == "write-channel/":  # type: ignore[attr-defined]
        assert f"pid={process.pid}" in line
        assert "program=python" in line
