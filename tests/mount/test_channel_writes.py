"""Writes, closes and the processes that cause them, with and without the channel. No S3."""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mounting import eventually
from tools import mounting

pytestmark = pytest.mark.mount

MIB = 1 << 20
BODY = random.Random(6).randbytes(5 * MIB + 123)


class Recorder:
    """A mount of `tests.mount.recorder`, and the kernel's requests to it."""

    def __init__(self, path: Path, log: Path, pid: int) -> None:
        self.path = path
        self._pid = pid
        self._log = log

    def requests(self, name: str) -> list[dict[str, Any]]:
        """Return all requests of that name so far."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if line["request"] == name]

    def memory_bytes(self) -> int:
        """Return the resident memory of its process."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) << 10

    def released(self, count: int = 1) -> None:
        """Wait for the RELEASE of that many files, which no program waits for."""
        eventually(lambda: len(self.requests("release")) == count)


@contextlib.contextmanager
def serving(folder: Path, channel: str) -> Iterator[Recorder]:
    """Mount in `folder`, and unmount in any case."""
    path, log = folder / "mnt", folder / "requests"
    path.mkdir()
    with log.open("w") as output:
        command = [sys.executable, "-m", "tests.mount.recorder", str(path), channel]
        process = subprocess.Popen(command, stdout=output)
    recorder = Recorder(path, log, process.pid)
    try:
        eventually(lambda: bool(recorder.requests("init")))
        yield recorder
    finally:
        if mounting.is_mounted(path):
            subprocess.run(["fusermount", "-uz", path], check=True)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.fixture(params=["wide", "narrow"])
def channel(request: pytest.FixtureRequest) -> str:
    """With the channel, and without it."""
    return str(request.param)


@pytest.fixture
def recorder(tmp_path: Path, channel: str) -> Iterator[Recorder]:
    """A mount with or without the channel."""
    with serving(tmp_path, channel) as it:
        yield it


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Recorder]:
    """A mount with the channel."""
    with serving(tmp_path, "wide") as it:
        yield it


def write(path: Path, flags: int, body: bytes = BODY) -> None:
    """Write a file with one call."""
    descriptor = os.open(path, flags, 0o644)
    try:
        assert os.write(descriptor, body) == len(body)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_large_writes(recorder: Recorder, channel: str, flags: int, exists: bool) -> None:
    """The kernel writes 1 MiB at a time, or 128 KiB, in order, and the bytes are the same."""
    path = recorder.path / "file"
    if exists:
        path.touch()
    write(path, flags | os.O_CREAT)
    writes = recorder.requests("write")
    assert max(each["size"] for each in writes) == (MIB if channel == "wide" else MIB // 8)
    assert [each["off"] for each in writes] == sorted(each["off"] for each in writes)
    assert path.read_bytes() == BODY


def test_a_direct_write_arrives_in_order(recorder: Recorder) -> None:
    """A large write with O_DIRECT is several requests, each of which waits for the previous one."""
    path = recorder.path / "file"
    size = 16 * MIB
    with mmap.mmap(-1, size) as body:
        body.write(random.Random(7).randbytes(size))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
        try:
            assert os.write(descriptor, body) == size
        finally:
            os.close(descriptor)
        offsets = [each["off"] for each in recorder.requests("write")]
        assert len(offsets) > 1
        assert offsets == sorted(offsets)
        assert path.read_bytes() == body[:]


def test_operations_run_at_the_same_time(recorder: Recorder) -> None:
    """llfuse's lock is never held: two fsyncs can wait for each other."""
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context((recorder.path / name).open("xb")) for name in "ab"]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(os.fsync, [file.fileno() for file in files]))


def test_opening_to_overwrite_is_one_request(recorder: Recorder) -> None:
    """The kernel does not truncate the file itself, but passes O_TRUNC to open."""
    path = recorder.path / "file"
    path.touch()
    write(path, os.O_WRONLY | os.O_TRUNC, b"x")
    assert recorder.requests("open")[-1]["flags"] & os.O_TRUNC
    assert not recorder.requests("setattr")


FORKING = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
child = os.fork()
if child == 0:
    os.close(descriptor)
    os._exit(0)
os.waitpid(child, 0)
print(os.getpid(), child)
"""


def test_closes_name_their_process(recorder: Recorder) -> None:
    """A child closes the file, and its parent closes it later: both closes name their process."""
    output = subprocess.run(
        [sys.executable, "-c", FORKING, recorder.path / "file"],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    ).stdout
    parent, child = map(int, output.split())
    recorder.released()
    (created,) = recorder.requests("create")
    assert created["asker"] == created["pid"] == parent
    assert [each["asker"] for each in recorder.requests("flush")] == [child, parent]


def test_a_thread_closes(recorder: Recorder) -> None:
    """The request names the thread; its process can be found."""
    descriptor = os.open(recorder.path / "file", os.O_WRONLY | os.O_CREAT, 0o644)
    closer = threading.Thread(target=os.close, args=(descriptor,))
    closer.start()
    closer.join()
    (flush,) = recorder.requests("flush")
    assert flush["asker"] == closer.native_id
    assert flush["process"] == os.getpid()


@pytest.mark.parametrize(
    ("flags", "wide_flushes"), [(os.O_RDONLY, 0), (os.O_WRONLY, 1), (os.O_RDWR, 1)]
)
def test_close_after_reads_waits_for_nothing(
    recorder: Recorder, channel: str, flags: int, wide_flushes: int
) -> None:
    """With the channel, close(2) of a file that was only read waits for nothing."""
    path = recorder.path / "file"
    path.touch()
    recorder.released()
    before = len(recorder.requests("flush"))
    os.close(os.open(path, flags))
    recorder.released(2)
    flushes = len(recorder.requests("flush")) - before
    assert flushes == (wide_flushes if channel == "wide" else 1)


COPIES = {
    "cp": ["cp"],
    "dd": ["sh", "-c", 'dd if="$0" of="$1" bs=3000000 status=none'],
    "sendfile": [sys.executable, "-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])"],
    "splice": [
        sys.executable,
        "-c",
        "import os, sys\n"
        "source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], 65, 0o644)\n"
        "out, into = os.pipe()\n"
        "while count := os.splice(source, into, 1 << 16):\n"
        "    while count:\n"
        "        count -= os.splice(out, target, count)\n",
    ],
    "append": ["sh", "-c", 'split -b 700001 --filter="cat >> \'$1\'" "$0"'],
}


@pytest.mark.parametrize("command", COPIES.values(), ids=COPIES.keys())
def test_copies(recorder: Recorder, tmp_path: Path, command: list[str]) -> None:
    """The bytes are the same for writes in order, in pieces of any size."""
    source, path = tmp_path / "source", recorder.path / "file"
    source.write_bytes(BODY)
    subprocess.run([*command, source, path], check=True, timeout=30)
    offsets = [each["off"] for each in recorder.requests("write")]
    assert offsets == sorted(offsets)
    assert path.read_bytes() == BODY


def test_a_mapping_reads_written_bytes(wide: Recorder) -> None:
    """A mapping shows bytes that were written past the page cache."""
    path = wide.path / "file"
    write(path, os.O_WRONLY | os.O_CREAT)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:] == BODY


def test_memory_of_writes_goes_back(wide: Recorder) -> None:
    """Some time after the last large write its threads hold no memory, and writes still work."""
    path = wide.path / "file"
    for _ in range(20):
        write(path, os.O_WRONLY | os.O_CREAT)
    full_bytes = wide.memory_bytes()
    eventually(lambda: wide.memory_bytes() < full_bytes - 8 * MIB)
    write(path, os.O_WRONLY)
    assert path.read_bytes() == BODY


#: linux/fs.h
NOREPLACE = 1


def renameat2(old: Path, new: Path, flags: int) -> int:
    """Rename with flags; return the errno, or 0."""
    library = ctypes.CDLL(None, use_errno=True)
    done = library.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def test_renames_with_flags(recorder: Recorder, channel: str) -> None:
    """With the channel the flags and names arrive unchanged; without it flags are refused."""
    write(recorder.path / "a", os.O_WRONLY | os.O_CREAT)
    (recorder.path / "a").rename(recorder.path / "a somewhat longer name")
    expected = [(0, "a", "a somewhat longer name")]
    found = renameat2(recorder.path / "a somewhat longer name", recorder.path / "b", NOREPLACE)
    if channel == "wide":
        assert found == 0
        expected.append((NOREPLACE, "a somewhat longer name", "b"))
    else:
        assert found == errno.EINVAL
    asked = [(each["flags"], each["old"], each["new"]) for each in recorder.requests("rename")]
    assert asked == expected
