"""Mounts that end under load leave nothing, and a mount under load does not grow."""

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.measure import Process
from mountpoint.s3.crt.native.connections import MAX_CONNECTIONS
from tests.conftest import Store
from tests.mount.mounting import eventually, mounted
from tests.soak import SEED, TIMES, rounds
from tools.mounting import mount_processes

pytestmark = [pytest.mark.mount, pytest.mark.slow]

MIB = 1 << 20
#: Small files, a large one, and one of several parts.
SIZES = {"small": 100_000, "medium": 3 * MIB + 5, "large": 40 * MIB + 17}
#: Ways to end a mount while files are open.
ENDINGS: dict[str, Callable[[int, Path], object]] = {
    "SIGTERM": lambda pid, path: os.kill(pid, signal.SIGTERM),
    "SIGINT": lambda pid, path: os.kill(pid, signal.SIGINT),
    "fusermount -uz": lambda pid, path: subprocess.run(["fusermount", "-uz", path], check=True),
    "umount -f": lambda pid, path: subprocess.run(["umount", "-f", "-l", path], check=True),
}
#: More than the memory of parts that stay for their next use.
GROWTH_BYTES = 96 * MIB


class Readers:
    """Threads that read files of a mount, in order and at random places, until they fail."""

    def __init__(self, folder: Path, contents: dict[str, bytes], seed: int) -> None:
        self._folder = folder
        self._contents = contents
        self._stopping = threading.Event()
        self.wrong: list[str] = []
        self.reads = 0
        self.short = 0
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + number),))
            for number in range(6)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait until all have ended."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a read hangs"
        assert not self.wrong, self.wrong

    def _run(self, drawn: random.Random) -> None:
        while not self._stopping.is_set():
            name = drawn.choice(list(self._contents))
            direct = os.O_DIRECT if drawn.random() < 0.5 else 0
            try:
                file = os.open(self._folder / name, os.O_RDONLY | direct)
            except OSError:
                return  # the mount has ended
            try:
                if drawn.random() < 0.5:
                    self._read_in_order(file, name, drawn)
                else:
                    self._read_at_random(file, name, drawn)
            except OSError:
                return
            finally:
                os.close(file)

    def _read_in_order(self, file: int, name: str, drawn: random.Random) -> None:
        step = drawn.choice([64 << 10, MIB])
        for offset in range(0, drawn.randrange(len(self._contents[name])) + 1, step):
            self._compare(name, offset, step, os.pread(file, step, offset))

    def _read_at_random(self, file: int, name: str, drawn: random.Random) -> None:
        for _ in range(40):
            offset = drawn.randrange(len(self._contents[name])) & ~4095
            self._compare(name, offset, 4096, os.pread(file, 4096, offset))

    def _compare(self, name: str, offset: int, size: int, data: bytes) -> None:
        self.reads += 1
        expected = self._contents[name][offset : offset + size]
        if data != expected[: len(data)]:
            self.wrong.append(f"{name}: other bytes at {offset}")
        if len(data) < len(expected):
            self.short += 1  # read(2) returns the bytes before an error
        if self._stopping.is_set():
            raise InterruptedError


@pytest.fixture(scope="module")
def contents(store: Store) -> dict[str, bytes]:
    """The files, by name; they are in the store."""
    made = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}
    store.put_all({f"many-mounts/{name}": data for name, data in made.items()})
    return made


def surroundings(folder: Path) -> dict[str, int]:
    """What must not grow; it may shrink while what earlier tests used ends."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": Path("/proc/self/mounts").read_text().count(f" {folder}/"),
        "threads": threading.active_count(),
    }


def test_mounts_that_end_under_load(store: Store, folder: Path, contents: dict[str, bytes]) -> None:
    """Each way to end a mount ends its process and its readers' reads, and leaves nothing."""
    drawn = random.Random(SEED)
    before: dict[str, int] = {}
    peak = []
    for number in rounds(4):
        ending = list(ENDINGS)[number % len(ENDINGS)]
        with mounted(store, folder, "--prefix", "many-mounts/") as mount:
            readers = Readers(mount.path, contents, SEED + 100 * number)
            time.sleep(drawn.random())
            pid = mount.pid
            peak.append(Process(pid).rss_bytes())
            ENDINGS[ending](pid, mount.path)
            eventually(lambda: not mount_processes(folder / "mnt"), within_s=40)
            readers.end()
            assert not mount.is_mounted(), ending
            assert "Traceback" not in mount.log, mount.log
        if number == 0:  # the first one leaves the starter
            before = surroundings(folder)
        grown = {
            name: (before[name], now)
            for name, now in surroundings(folder).items()
            if now > before[name]
        }
        assert not grown, ending
    assert peak[-1] < peak[0] + GROWTH_BYTES


def test_a_mount_under_load(store: Store, folder: Path, contents: dict[str, bytes]) -> None:
    """A mount that is read for a while keeps its descriptors and threads, and its memory."""
    with mounted(store, folder, "--prefix", "many-mounts/", "--debug") as mount:
        process, sizes = Process(mount.pid), []
        counts = []
        for number in range(2 + min(TIMES, 60)):
            readers = Readers(mount.path, contents, SEED + 100 * number)
            time.sleep(2.0)
            readers.end()
            assert readers.reads > 20
            assert not readers.short
            sizes.append(process.rss_bytes())
            folders = Path(f"/proc/{mount.pid}")
            counts.append([len(list((folders / each).iterdir())) for each in ("task", "fd")])
        assert sizes[-1] < sizes[0] + GROWTH_BYTES, sizes
        (threads, descriptors), (last_threads, last_descriptors) = counts[0], counts[-1]
        assert last_threads <= threads + 8
        assert last_descriptors <= descriptors + 8 + MAX_CONNECTIONS
        name, data = "medium", contents["medium"]
        read = (mount.path / name).read_bytes()
        assert hashlib.sha256(read).digest() == hashlib.sha256(data).digest()
