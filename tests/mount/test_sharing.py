"""Files that several programs, or one program several times, have open for reading or writing."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted, pending
from tests.mount.test_rename import OPTIONS
from tests.soak import rounds

OLD = os.urandom(300_000)
ALL = ["--allow-overwrite", "--allow-append", "--allow-delete"]


@pytest.fixture(scope="module", params=["channel", "no-channel"])
def streamed(
    request: pytest.FixtureRequest, flat_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount with streamed writes, with and without the channel."""
    options = [*ALL, "--prefix", f"shared-{request.param}/"]
    options += ["--no-channel"] if request.param == "no-channel" else []
    with mounted(flat_store, tmp_path_factory.mktemp("streamed"), *options) as it:
        it.prefix = f"shared-{request.param}/"  # type: ignore[attr-defined]
        yield it


@pytest.fixture(scope="module")
def staged(flat_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with staged writes."""
    folder = tmp_path_factory.mktemp("staged")
    (folder / "stage").mkdir()
    options = [*OPTIONS, "--staged-writes", str(folder / "stage"), "--prefix", "shared-staged/"]
    with mounted(flat_store, folder, *options) as it:
        it.prefix = "shared-staged/"  # type: ignore[attr-defined]
        it.stage = folder / "stage"  # type: ignore[attr-defined]
        yield it


@pytest.fixture
def place(streamed: Mount, request: pytest.FixtureRequest) -> Path:
    """A directory on the mount for one test."""
    path = streamed.path / f"{abs(hash(request.node.name)):x}"
    path.mkdir()
    return path


def stored(store: Store, mount: Mount, path: Path) -> bytes | None:
    """Return the bytes of a file's object."""
    prefix: str = mount.prefix  # type: ignore[attr-defined]
    return content(store, prefix + str(path.relative_to(mount.path)))


def replace_it(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, b"more")
    finally:
        os.close(descriptor)


CHANGES: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "truncated": (lambda path: replace_it(path, os.O_WRONLY | os.O_TRUNC), b"more"),
    "read and written anew": (lambda path: replace_it(path, os.O_RDWR | os.O_TRUNC), b"more"),
    "appended to": (lambda path: replace_it(path, os.O_WRONLY | os.O_APPEND), OLD + b"more"),
    "read and appended to": (lambda path: replace_it(path, os.O_RDWR | os.O_APPEND), OLD + b"more"),
    "cut by its name": (lambda path: os.truncate(path, 0), b""),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_reader_blocks_no_writer(
    streamed: Mount, place: Path, flat_store: Store, case: str
) -> None:
    """A program changes a file that it also has open: that descriptor keeps its version."""
    change, expected = CHANGES[case]
    path = place / "file"
    path.write_bytes(OLD)
    with path.open("rb", buffering=0) as reader:
        assert reader.read() == OLD
        change(path)
        assert stored(flat_store, streamed, path) == expected
        assert os.fstat(reader.fileno()).st_size == len(OLD)
        assert os.pread(reader.fileno(), len(OLD) + 10, 0) == OLD
        assert path.read_bytes() == expected
        assert path.stat().st_size == len(expected)
    assert path.read_bytes() == expected


STAGED_CHANGES = CHANGES | {
    "changed in place": (lambda path: replace_it(path, os.O_WRONLY), b"more" + OLD[4:]),
    "cut in the middle": (lambda path: os.truncate(path, 100), OLD[:100]),
}


@pytest.mark.parametrize("case", STAGED_CHANGES)
def test_a_reader_and_a_staged_file(staged: Mount, flat_store: Store, case: str) -> None:
    """A reader from before the change keeps its version; later readers see all changes."""
    change, expected = STAGED_CHANGES[case]
    path = staged.path / case.replace(" ", "-")
    path.write_bytes(OLD)
    stage: Path = staged.stage  # type: ignore[attr-defined]
    eventually(lambda: not list(stage.glob("*/*.data")))  # or the reader joins it
    with path.open("rb", buffering=0) as reader:
        assert reader.read() == OLD
        change(path)
        assert os.fstat(reader.fileno()).st_size == len(OLD)
        assert os.pread(reader.fileno(), len(OLD) + 10, 0) == OLD
        assert path.read_bytes() == expected
    eventually(lambda: stored(flat_store, staged, path) == expected)


def test_two_loops_append(streamed: Mount, place: Path, flat_store: Store) -> None:
    """If two shells append at the same time, no line is lost."""
    append(place / "log", flat_store, streamed)


def test_two_loops_append_to_a_staged_file(staged: Mount, flat_store: Store) -> None:
    """The same for a staged file."""
    append(staged.path / "appended", flat_store, staged)


def append(path: Path, store: Store, mount: Mount) -> None:
    loop = "for i in $(seq 50); do echo {}-$i >> {} || exit 1; done"
    shells = [
        subprocess.Popen(["bash", "-c", loop.format(name, path)], stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    said = [shell.communicate(timeout=120)[1] for shell in shells]
    assert (said, [shell.returncode for shell in shells]) == (["", ""], [0, 0])
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name}-{i}" for name in "ab" for i in range(1, 51))
    eventually(lambda: stored(store, mount, path) == path.read_bytes())


def test_appended_while_it_is_followed(place: Path, tmp_path: Path) -> None:
    """`tail -F` beside `>>`: every append works, and tail shows the last one."""
    follow(place / "followed", tmp_path)


def test_staged_while_it_is_followed(staged: Mount, tmp_path: Path) -> None:
    """The same for a staged file."""
    follow(staged.path / "followed", tmp_path)


def follow(path: Path, tmp_path: Path) -> None:
    path.write_text("first\n")
    said = tmp_path / "said"
    with said.open("wb") as output:
        tail = subprocess.Popen(
            ["tail", "-s", "0.1", "-F", path], stdout=output, stderr=subprocess.DEVNULL
        )
        try:
            eventually(lambda: b"first" in said.read_bytes())
            for number in range(5):
                subprocess.run(
                    ["bash", "-c", f"echo line-{number} >> {path}"], check=True, timeout=60
                )
            eventually(lambda: b"line-4" in said.read_bytes())
            assert tail.poll() is None
        finally:
            tail.kill()
            tail.wait()


def test_readers_come_all_the_time(streamed: Mount, place: Path, flat_store: Store) -> None:
    """A file with ever new readers can be replaced, and each reader sees one version."""
    for number in rounds(2):
        _replace_while_it_is_read(place / f"busy{number}", streamed, flat_store)


def _replace_while_it_is_read(path: Path, mount: Mount, store: Store) -> None:
    ended = threading.Event()
    versions = [bytes([number]) * 50_000 for number in range(10)]
    path.write_bytes(versions[0])
    mixed: list[bytes] = []

    def read() -> None:
        while not ended.is_set():
            try:
                found = path.read_bytes()
            except OSError as error:  # EPERM: the file is being written
                if error.errno not in (errno.EPERM, errno.ESTALE):
                    raise
                continue
            if found not in versions:
                mixed.append(found)

    readers = [threading.Thread(target=read) for _ in range(20)]  # more than the mount's threads
    for reader in readers:
        reader.start()
    try:
        for version in versions:
            path.write_bytes(version)
            assert stored(store, mount, path) == version
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    assert mixed == []


def test_appended_to_while_others_truncate_it(staged: Mount) -> None:
    """No zeros appear: O_APPEND writes at the end, of which the kernel learns a moment later."""
    path, ended = staged.path / "truncated", threading.Event()
    path.write_bytes(b"")
    gaps: list[bytes] = []

    def append() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), path.open("ab") as file:
                file.write(b"appended.")

    def truncate() -> None:
        for _ in rounds(150):
            with contextlib.suppress(OSError):
                path.write_bytes(b"written." * 1000)
            with contextlib.suppress(OSError):
                found = path.read_bytes()
                if b"\0" in found:
                    gaps.append(found)
        ended.set()

    threads = [threading.Thread(target=each) for each in (append, append, append, truncate)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(len(each), each.count(0)) for each in gaps] == []


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> None:
    """Skip without the channel: it refuses to open a non-empty file for reading and writing."""
    if "no-channel" in request.node.name:
        pytest.skip("such a file could be mapped for writing: see test_channel")


@pytest.mark.usefixtures("channel")
def test_read_and_written_anew_by_one_program(
    streamed: Mount, place: Path, flat_store: Store
) -> None:
    """As PHP's `c+` and Samba: open for reading and writing, truncate to zero, and write."""
    path = place / "counter"
    for number in range(3):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        found = os.read(descriptor, 100)
        assert found == (b"%d" % number if number else b"")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"%d" % (number + 1))
        os.close(descriptor)
        assert stored(flat_store, streamed, path) == b"%d" % (number + 1)


@pytest.mark.usefixtures("channel")
def test_copied_and_cut(streamed: Mount, place: Path, flat_store: Store) -> None:
    """Logrotate's `copytruncate` works, and later appends start from zero."""
    path = place / "log"
    path.write_bytes(OLD)
    with path.open("r+b", buffering=0) as file:
        (place / "log.1").write_bytes(file.read())
        file.truncate(0)
    subprocess.run(["bash", "-c", f"echo later >> {path}"], check=True, timeout=60)
    assert stored(flat_store, streamed, path) == b"later\n"
    assert stored(flat_store, streamed, place / "log.1") == OLD


@pytest.mark.usefixtures("channel")
def test_written_behind_its_end(streamed: Mount, place: Path, flat_store: Store) -> None:
    """A file opened for reading and writing can be appended to, but not changed in place."""
    path = place / "file"
    path.write_bytes(OLD)
    with path.open("r+b", buffering=0) as file:
        assert errno_of(lambda: file.write(b"x")) == errno.EBADF
        file.seek(0, os.SEEK_END)
        file.write(b"more")
    assert stored(flat_store, streamed, path) == OLD + b"more"
    assert path.read_bytes() == OLD + b"more"
    lines = [line for line in streamed.log.splitlines() if f"{place.name}/file" in line]
    assert any("a write at 0" in line and "--staged-writes" in line for line in lines)


def test_synced_and_written_on(streamed: Mount, place: Path, flat_store: Store) -> None:
    """After fsync a new file can be continued, and is complete at the last close."""
    path = place / "file"
    pieces = [os.urandom(3_000_000) for _ in range(4)]
    with path.open("wb", buffering=0) as file:
        for number, piece in enumerate(pieces):
            file.write(piece)
            os.fsync(file.fileno())
            assert stored(flat_store, streamed, path) == b"".join(pieces[: number + 1])
        assert path.stat().st_size == 12_000_000
        assert path.read_bytes() == b"".join(pieces)
        file.write(b"end")
    assert stored(flat_store, streamed, path) == b"".join([*pieces, b"end"])
    assert path.read_bytes() == b"".join([*pieces, b"end"])


def test_removed_while_it_is_written(streamed: Mount, place: Path, flat_store: Store) -> None:
    """A new file can be removed; no object appears, and its descriptor works without errors."""
    path = place / "temporary"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(9 << 20))
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"more")
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == (9 << 20) + 4
        path.write_bytes(b"another")
    assert path.read_bytes() == b"another"
    assert pending(flat_store, streamed.prefix) == []  # type: ignore[attr-defined]


LOCKER = """
import os, sys, time, filelock
lock, log = sys.argv[1:]
for number in range(5):
    with filelock.FileLock(lock):
        with open(log, "x"):
            time.sleep(0.05)
        os.unlink(log)
"""


def test_file_locks(streamed: Mount, place: Path, tmp_path: Path) -> None:
    """Locks of the package filelock work in turns, the first of them on a new file."""
    lock, log = place / "file.lock", tmp_path / "held"
    lockers = [
        subprocess.Popen([sys.executable, "-c", LOCKER, lock, log], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [locker.communicate(timeout=60)[1] for locker in lockers] == [b""] * 3


def test_a_lock_that_goes_with_its_file(streamed: Mount, place: Path, flat_store: Store) -> None:
    """Open twice, lock, remove, close (older filelock, `datasets`): no file is left."""
    path = place / "probe.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    with contextlib.ExitStack() as opened:
        one, two = os.open(path, flags, 0o644), os.open(path, flags, 0o644)
        opened.callback(os.close, one)
        opened.callback(os.close, two)
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert errno_of(lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EAGAIN
        assert os.read(two, 10) == b""
        path.unlink()
        assert os.fstat(two).st_nlink == 0
    assert not path.exists()
    assert stored(flat_store, streamed, path) is None
