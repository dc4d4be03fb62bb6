"""--keep-alive in a service: its manager keeps the mount when both processes are gone.

The manager here is one of systemd's kind: it keeps the descriptors that the service's main process
sends, and passes them to the next one (sd_notify(3), sd_listen_fds(3)). `tests/boot` does the same
with systemd.
"""

import contextlib
import errno
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.mount.kept import keeper
from tests.conftest import Store
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    content,
    environment,
    errno_of,
    eventually,
    pending,
    store_options,
)
from tools.mounting import is_mounted, mount_processes

pytestmark = pytest.mark.mount

MIB = 1 << 20
DATA = os.urandom(8 * MIB)

#: Becomes a program, with descriptors from 3 on, as systemd starts it.
STARTER = """
import os, sys
names = dict(word.split("=") for word in sys.argv[1].split())
high = [os.dup2(int(number), 500 + index) for index, number in enumerate(names.values())]
for index, number in enumerate(high):
    os.dup2(number, 3 + index)
os.closerange(3 + len(high), 600)
if names:
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(names))
    os.environ["LISTEN_FDNAMES"] = ":".join(names)
os.execv(sys.argv[2], sys.argv[2:])
"""


#: Evaluates lines, and prints their results; the errno of an OSError.
OTHER = """
import hashlib, os, sys
def digest(data):
    return hashlib.sha256(data).hexdigest()
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


class Program:
    """A program that uses the mount. A process that forks while nobody serves would wait itself."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER], stdin=pipe, stdout=pipe, text=True
        )

    def begin(self, expression: str) -> None:
        """Let it evaluate a Python expression."""
        assert self._process.stdin is not None
        print(expression, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        """Return the result, or the errno."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def ask(self, expression: str) -> str:
        """Do both."""
        self.begin(expression)
        return self.answer()

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Open a file; return its descriptor there."""
        return int(self.ask(f"os.open({str(path)!r}, {flags})"))

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    try:
        yield program
    finally:
        program.end()


def pread(file: int, size: int, offset: int) -> str:
    """Return an expression that reads."""
    return f"digest(os.pread({file}, {size}, {offset}))"


def digest(begin: int, end: int) -> str:
    """Return its result."""
    return hashlib.sha256(DATA[begin:end]).hexdigest()


class Manager:
    """Starts the service, and keeps descriptors for it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self._store = store
        self._address = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._address))
        self._keeping = threading.Lock()
        self._kept: dict[str, int] = {}
        self._ready = 0
        self.program: subprocess.Popen[str] | None = None
        self._said = folder / "said"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, 4096, 4, socket.MSG_CMSG_CLOEXEC
            )
            state = dict(line.split("=", 1) for line in data.decode().split("\n"))
            if state.get("FDSTORE") == "1":
                (descriptor,) = descriptors
                with self._keeping:
                    self._kept[state["FDNAME"]] = descriptor
            elif state.get("FDSTOREREMOVE") == "1":
                self._drop(state["FDNAME"])
            elif state.get("READY") == "1":
                self._ready += 1
            elif state.get("END"):
                return

    def _drop(self, name: str) -> None:
        with self._keeping:
            descriptor = self._kept.pop(name, None)
            if descriptor is not None:  # else it had ended
                os.close(descriptor)

    @property
    def kept(self) -> dict[str, int]:
        """What it keeps; not what the kernel says has ended, as in systemd."""
        poll = select.poll()
        with self._keeping:
            by_number = {number: name for name, number in self._kept.items()}
            for number in by_number:
                poll.register(number, 0)
            ended = [by_number[number] for number, _ in poll.poll(0)]
        for name in ended:
            self._drop(name)
        return self._kept.copy()

    @property
    def kinds(self) -> list[str]:
        """The kinds of what it keeps."""
        return sorted(keeper.kind_of(name) for name in self.kept)

    @property
    def said(self) -> str:
        """What the programs have written."""
        return self._said.read_text()

    def start(self, *options: str) -> None:
        """Start the service, and wait until it is ready."""
        ready, kept = self._ready, self.kept
        command = [str(PROGRAM), self._store.bucket, str(self.path), "--foreground"]
        with self._said.open("a") as said:
            self.program = subprocess.Popen(
                [
                    *(sys.executable, "-c", STARTER),
                    " ".join(f"{name}={number}" for name, number in kept.items()),
                    *(*command, *options),
                    *store_options(self._store),
                ],
                env=environment(self._store.environment) | {"NOTIFY_SOCKET": str(self._address)},
                pass_fds=list(kept.values()),
                stdout=said,
                stderr=said,
                text=True,
            )
        eventually(lambda: self._ready > ready, within_s=40)

    def kill(self) -> None:
        """Kill the service's processes; the main one first, because it would start another."""
        program = self.program
        assert program is not None
        program.kill()
        program.wait()
        for pid in mount_processes(self.path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not mount_processes(self.path))

    @property
    def worker(self) -> int:
        """The process that serves."""
        assert self.program is not None
        (worker,) = set(mount_processes(self.path)) - {self.program.pid}
        return worker

    def begin_stop(self, *, restarts: bool = False) -> None:
        """Stop the service as the unit does; `restarts`: to start it again."""
        assert self.program is not None
        if restarts:
            self.program.send_signal(keeper.LEAVE)
        self.program.terminate()

    def end_stop(self) -> int:
        """Wait until it has stopped; return its exit code."""
        assert self.program is not None
        return self.program.wait(timeout=60)

    def stop(self) -> int:
        """Stop the service for good: nothing is kept then. Return its exit code."""
        self.begin_stop()
        code = self.end_stop()
        eventually(lambda: not self.kept)
        return code

    def end(self) -> None:
        """Stop the service in any case, and keep nothing."""
        if self.program is not None:
            self.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.sendto(b"END=1", str(self._address))
        self._thread.join(20)
        self._socket.close()
        for number in self._kept.values():
            os.close(number)
        clean_up(self.path)


@pytest.fixture
def manager(store: Store, folder: Path) -> Iterator[Manager]:
    store.put("stored/file", DATA)
    manager = Manager(store, folder)
    try:
        yield manager
    finally:
        manager.end()


def restarts(path: Path) -> int:
    ctl = [str(PROGRAM.with_name("mount-s3ctl")), "status", "--json", str(path)]
    done = subprocess.run(ctl, capture_output=True, timeout=60, check=True)
    found: int = json.loads(done.stdout)[0]["restarts"]
    return found


def test_both_processes_are_killed(
    store: Store, manager: Manager, program: Program, own: str
) -> None:
    """Open files, waiting reads and listings go on; a streamed upload is aborted."""
    manager.start()
    eventually(lambda: manager.kinds == ["device", "log", "requests", "state"])
    (manager.path / own).mkdir()
    written = program.open(manager.path / own / "new", os.O_WRONLY | os.O_CREAT)
    program.ask(f"os.write({written}, bytes({40 * MIB}))")
    eventually(lambda: bool(pending(store, own)))
    file = program.open(manager.path / "stored" / "file")
    assert program.ask(pread(file, 5000, 0)) == digest(0, 5000)
    for begin in (3 * MIB, 6 * MIB):
        manager.kill()
        program.begin(pread(file, MIB, begin))
        manager.start()
        assert program.answer() == digest(begin, begin + MIB)
        manager.kill()
        program.begin(f"os.listdir({str(manager.path / 'stored')!r})")
        manager.start()
        assert program.answer() == "['file']"
    assert program.ask(f"os.close({written})") == str(errno.EIO)
    eventually(lambda: not pending(store, own))
    assert os.listdir(manager.path / own) == []
    assert restarts(manager.path) == 4
    assert manager.stop() == 0
    assert not is_mounted(manager.path)


def test_a_restart(store: Store, manager: Manager, program: Program, own: str) -> None:
    """It waits for files that are being written, and what is open goes on, with other options."""
    manager.start("--read-timeout", "30")
    eventually(lambda: len(manager.kept) == 4)
    file = program.open(manager.path / "stored" / "file")
    written = program.open(manager.path / own, os.O_WRONLY | os.O_CREAT)
    assert program.ask(f"os.write({written}, b'content')") == "7"
    manager.begin_stop(restarts=True)
    program.ask(pread(file, 100, 0))  # it serves until then
    assert mount_processes(manager.path)
    assert program.ask(f"os.close({written})") == "None"
    assert manager.end_stop() == 0
    assert content(store, own) == b"content"
    assert is_mounted(manager.path)
    assert mount_processes(manager.path) == []
    program.begin(pread(file, MIB, 5 * MIB))
    manager.start("--read-timeout", "40")
    assert program.answer() == digest(5 * MIB, 6 * MIB)
    assert restarts(manager.path) == 0
    program.ask(f"os.close({file})")
    assert manager.stop() == 0
    assert not is_mounted(manager.path)


def test_a_stop(manager: Manager) -> None:
    """Nothing is mounted then, and nothing is kept; also if a worker has died before."""
    manager.start()
    eventually(lambda: len(manager.kept) == 4)
    os.kill(manager.worker, signal.SIGKILL)
    os.stat(manager.path / "stored" / "file")  # another one serves
    assert manager.stop() == 0
    assert not is_mounted(manager.path)
    manager.start()
    assert (manager.path / "stored" / "file").stat().st_size == len(DATA)


def test_a_stop_that_is_cut_short(manager: Manager) -> None:
    """The manager kills what does not stop in time: the mount does not go on."""
    manager.start()
    eventually(lambda: len(manager.kept) == 4)
    os.kill(manager.worker, signal.SIGSTOP)
    manager.begin_stop()
    eventually(lambda: not manager.kept)
    manager.kill()
    eventually(lambda: errno_of(lambda: os.listdir(manager.path)) == errno.ENOTCONN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--read-only"], "other settings now: --read-only"),
        (["--prefix", "stored/"], "other settings now: --prefix, --fsname"),
        (["--no-keep-alive"], "other settings now: --keep-alive"),
    ],
)
def test_other_settings(manager: Manager, program: Program, options: list[str], said: str) -> None:
    """The mount of before ends, and there is a new one: one line says why."""
    manager.start()
    eventually(lambda: len(manager.kept) == 4)
    file = program.open(manager.path / "stored" / "file")
    manager.kill()
    manager.start(*options)
    assert manager.said.count("has kept") == 1
    assert (
        f"the mount that the service manager has kept cannot go on ({said}): "
        "it is unmounted, and mounted anew\n"
    ) in manager.said
    assert program.ask(pread(file, MIB, 4 * MIB)) == str(errno.ENOTCONN)
    below = "file" if "--prefix" in options else "stored/file"
    assert (manager.path / below).stat().st_size == len(DATA)
    eventually(lambda: len(manager.kept) == (0 if "--no-keep-alive" in options else 4))


def test_unmounted_meanwhile(manager: Manager, program: Program) -> None:
    """There is a new mount, also if programs still have files of the one before open."""
    manager.start()
    eventually(lambda: len(manager.kept) == 4)
    file = program.open(manager.path / "stored" / "file")
    manager.kill()
    subprocess.run(["umount", "-l", manager.path], check=True, timeout=20)
    manager.start()
    assert f"(it is not mounted at {manager.path} any more)" in manager.said
    assert program.ask(pread(file, MIB, 4 * MIB)) == str(errno.ENOTCONN)
    eventually(lambda: len(manager.kept) == 4)
    manager.kill()
    subprocess.run(["umount", "-l", manager.path], check=True, timeout=20)
    eventually(lambda: "device" not in manager.kinds)
    manager.start()
    assert manager.said.count("cannot go on") == 1
    assert os.listdir(manager.path / "stored") == ["file"]
