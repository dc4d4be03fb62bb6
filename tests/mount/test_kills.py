"""SIGKILL for the mount's process, its keeper, both of them, and the server, while programs write.

Each file whose close or fsync returned 0 is in S3, whole. Any other one is whole or absent; if it
was staged, all that was written is in S3 or in the staging directory.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from mountpoint.mount.kept import keeper
from tests.conftest import Store
from tests.mount.mounting import (
    PROGRAM,
    Mount,
    clean_up,
    content,
    environment,
    eventually,
    run,
    store_options,
)
from tests.mount.test_keep_alive import Kept
from tests.random_bytes import random_bytes
from tests.soak import SEED, TIMES, rounds
from tools.servers import SeaweedFS

pytestmark = pytest.mark.mount

MIB = 1 << 20
#: One request, exactly one part, several parts.
SIZES = [1, 5000, 100_000, MIB, 8 * MIB, 20 * MIB]
BLOB = partial(random_bytes, 5, 24 * MIB)
WRITERS = 3
PREFIX = "kills/"
#: Where nothing is mounted, there is no such directory.
BELOW = "in-the-mount/"


class WrittenFile:
    """A file that a program has begun to write, from its start on.

    `written_bytes` of `data` were accepted; `done`: its close or fsync has returned 0.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self.written_bytes = 0
        self.done = False


class Writer:
    """A program that writes one file after another, and goes on after errors."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        self._drawn = random.Random(SEED + number)
        self.files: list[WrittenFile] = []

    def run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            size = self._drawn.choice(SIZES)
            start = self._drawn.randrange(len(BLOB()) - size)
            file = WrittenFile(f"{self._number}-{len(self.files)}", BLOB()[start : start + size])
            self.files.append(file)
            with contextlib.suppress(OSError):
                self._write(file)
                continue
            time.sleep(0.05)  # not thousands of tries while nothing is mounted

    def _write(self, file: WrittenFile) -> None:
        step = self._drawn.choice([100_000, MIB, 3 * MIB])
        with (self._folder / file.name).open("xb", buffering=0) as opened:
            while file.written_bytes < len(file.data):
                piece = file.data[file.written_bytes : file.written_bytes + step]
                file.written_bytes += opened.write(piece)
            if self._drawn.random() < 0.3:
                os.fsync(opened.fileno())
                file.done = True
        file.done = True
        print(f"{time.time():.3f} {file.name} is complete")


class Victim:
    """A mount with a keeper, over a server of its own."""

    def __init__(self, server: SeaweedFS, folder: Path, *, staged: bool) -> None:
        self.store = Store(server.endpoint_url, server.bucket, server.environment)
        self.server = server
        self.is_staged = staged
        self.staging = folder / "staging"
        self.staging.mkdir()
        self._options = ["--staged-writes", str(self.staging)] if staged else []
        self._logs = folder / "log"
        self.path = folder / "mnt"
        self.path.mkdir()
        self.store.put(f"{PREFIX}{BELOW}first", b"")
        self.mount()

    @property
    def _kept(self) -> Kept:
        return Kept(Mount(self.path, self._logs))

    def mount(self) -> None:
        """Mount it, also where a dead mount is left."""
        result = run(
            self.store.bucket,
            self.path,
            *store_options(self.store),
            *("--keep-alive", "--prefix", PREFIX, "--read-timeout", "40"),
            *("--log-directory", str(self._logs), *self._options),
            env=self.store.environment,
        )
        assert result.returncode == 0, result.stderr

    def kill_worker(self) -> None:
        """Another one goes on."""
        time.sleep(keeper.SERVED_S)  # otherwise its death would count as one at its start
        self._kept.kill()

    def kill_keeper(self) -> None:
        """The mount works on; when it has been unmounted, it is mounted again."""
        pid = self._kept.keeper
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        subprocess.run(
            [PROGRAM.with_name("mount-s3ctl"), "unmount", "--timeout", "0", self.path],
            env=environment(self.store.environment),
            capture_output=True,
            check=False,
        )
        clean_up(self.path)
        self.mount()

    def kill_both(self) -> None:
        """The dead mount is removed when it is mounted again."""
        pids = [self._kept.keeper, self._kept.worker]  # the keeper first: it would start another
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        eventually(Mount(self.path, self._logs).has_ended)
        self.mount()

    def kill_server(self) -> None:
        """It comes back."""
        self.server.kill()
        time.sleep(0.3)
        self.server.start_again()


@pytest.fixture(params=["streamed", "staged"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    with SeaweedFS(folder=tmp_path / "server") as server:
        it = Victim(server, tmp_path, staged=request.param == "staged")
        try:
            yield it
        finally:
            clean_up(it.path)


@pytest.mark.timeout(120 * TIMES)
def test_what_was_written_is_somewhere(victim: Victim) -> None:
    """See above. Everything is killed once, in any order; in `make soak` often."""
    ending = threading.Event()
    writers = [Writer(victim.path / BELOW, number) for number in range(WRITERS)]
    kills: list[Callable[[], None]] = [
        victim.kill_worker,
        victim.kill_keeper,
        victim.kill_both,
        victim.kill_server,
    ]
    drawn = random.Random(SEED)
    with ThreadPoolExecutor(WRITERS) as pool:
        runs = [pool.submit(each.run, ending) for each in writers]
        try:
            for _ in rounds(1):
                for kill in drawn.sample(kills, len(kills)):
                    so_far = sum(each.done for writer in writers for each in writer.files)
                    eventually(
                        lambda so_far=so_far: (  # type: ignore[misc]
                            sum(each.done for writer in writers for each in writer.files)
                            > so_far + WRITERS
                        ),
                        within_s=60,
                    )
                    time.sleep(drawn.random() / 4)
                    print(f"{time.time():.3f} {kill.__name__}")
                    kill()
                    print(f"{time.time():.3f} done")
        finally:
            ending.set()
        for each in runs:
            each.result(60)
    clean_up(victim.path)
    kept = kept_files(victim.staging)
    for writer in writers:
        for file in writer.files:
            key = PREFIX + BELOW + file.name
            check(file, content(victim.store, key), kept.get(key), staged=victim.is_staged)


def kept_files(staging: Path) -> dict[str, bytes]:
    """Return the contents of the files that were kept, by key."""
    found = {}
    for path in staging.rglob("*.json"):
        described = json.loads(path.read_text())
        assert described["complete"], described
        found[described["key"]] = path.with_suffix(".data").read_bytes()
    return found


def check(file: WrittenFile, stored: bytes | None, kept: bytes | None, *, staged: bool) -> None:
    """Raise AssertionError unless a file is where it was promised to be."""
    where = f"{file.name}: {file.written_bytes} of {len(file.data)} bytes written; seed {SEED}"
    if file.done:
        assert stored == file.data, where
    elif not staged:
        assert stored in (None, file.data), where
    else:
        for each in (stored, kept):
            assert each is None or file.data.startswith(each), where
        assert max(len(stored or b""), len(kept or b"")) >= file.written_bytes, where
