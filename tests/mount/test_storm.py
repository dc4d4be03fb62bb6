"""Many threads do all operations on a few files at once: nothing is mixed up, and nothing sticks.

What an operation returns depends on the others, so it may fail as such programs must expect. But
files have only bytes that somebody wrote, whole pieces of them, and no holes. When the threads have
ended, each file can be read and written, and the bucket has the same.
"""

import errno
import itertools
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mountpoint.mount.control import ask
from tests.conftest import Store
from tests.mount.mounting import content, eventually, mounted
from tests.mount.test_ctl import own_socket
from tests.soak import SEED, count_cases, examples

pytestmark = pytest.mark.mount

THREADS = 12
NAMES = ["a", "b", "d/a", "d/b"]
#: What is written: numbers of nine bytes.
PIECE = re.compile(rb"\d{8}\.")
PIECE_BYTES = 9
PIECES = [1, 5, 500, 20_000]
OPTIONS = ["--allow-overwrite", "--allow-delete", "--allow-append", "--allow-rename"]
#: What an operation may fail with: the file is gone, was replaced, or is being written.
EXPECTED = {errno.ENOENT, errno.ESTALE, errno.EPERM, errno.EEXIST}
#: Streamed files are written by one program, from the beginning, and not read meanwhile.
STREAMED = {*EXPECTED, errno.EINVAL, errno.EBADF}
#: No operation waits for others longer than this; those take a tenth of a second.
LONGEST_S = 20.0


class Storm:
    """What the threads do to the files of one mount, and what they have found wrong."""

    def __init__(self, root: Path, expected: set[int], seed: int, operations: int) -> None:
        # dependencies
        self._root = root
        # constants
        self._expected = expected
        self._seed = seed
        self._operations = operations
        # mutable, changed in single steps of the interpreter
        self._numbers = itertools.count(1)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        """Let all threads do their operations."""
        threads = [threading.Thread(target=self._act, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _act(self, thread: int) -> None:
        random_ = random.Random(self._seed * THREADS + thread)
        actions: list[Callable[[random.Random], None]] = [
            self._read,
            self._read,
            self._write,
            self._append,
            self._replace,
            self._rename,
            self._unlink,
            self._truncate,
            self._list,
        ]
        for _ in range(self._operations):
            action = random_.choice(actions)
            began_s = time.monotonic()
            try:
                action(random_)
                self.done[action.__name__] += 1
            except OSError as error:
                if error.errno not in self._expected:
                    self.wrong.append(f"{action.__name__}: {error}")
            if time.monotonic() - began_s > LONGEST_S:
                self.wrong.append(f"{action.__name__} took longer than {LONGEST_S} s")

    def _path(self, random_: random.Random) -> Path:
        return self._root / random_.choice(NAMES)

    def data(self, random_: random.Random) -> bytes:
        """Return bytes that nobody else writes."""
        return b"%08d." % next(self._numbers) * random_.choice(PIECES)

    def _read(self, random_: random.Random) -> None:
        path = self._path(random_)
        found = path.read_bytes()
        if not is_whole(found):
            self.wrong.append(f"{path.name}: {described(found)}")

    def _write(self, random_: random.Random) -> None:
        self._path(random_).write_bytes(self.data(random_))

    def _append(self, random_: random.Random) -> None:
        with self._path(random_).open("ab") as file:
            file.write(self.data(random_))

    def _replace(self, random_: random.Random) -> None:
        new = self._root / f"new{next(self._numbers)}"
        new.write_bytes(self.data(random_))
        new.replace(self._path(random_))

    def _rename(self, random_: random.Random) -> None:
        self._path(random_).rename(self._path(random_))

    def _unlink(self, random_: random.Random) -> None:
        self._path(random_).unlink()

    def _truncate(self, random_: random.Random) -> None:
        os.truncate(self._path(random_), 0)

    def _list(self, random_: random.Random) -> None:
        os.listdir(self._path(random_).parent)


def pieces_of(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


def is_whole(data: bytes) -> bool:
    """Whether bytes are pieces that were written. The last one may lack its end: between two reads
    of a program another one may cut the file off.
    """
    *pieces, last = pieces_of(data) or [b""]
    whole = all(PIECE.fullmatch(each) for each in set(pieces))
    return whole and PIECE.fullmatch(last + b"00000000."[len(last) :]) is not None


def described(data: bytes) -> str:
    """Describe bytes: which pieces, and how often."""
    runs = [f"{each!r} x {len(list(them))}" for each, them in itertools.groupby(pieces_of(data))]
    return f"{len(data)} bytes: {', '.join(runs[:20])}"


@pytest.mark.parametrize("how", ["streamed", "staged"])
def test_a_storm(flat_store: Store, tmp_path: Path, how: str) -> None:
    """All operations by twelve threads on four names; then each name is read and written."""
    prefix = f"storm-{how}/"
    # What the kernel knows of names stays wrong for long, if it is wrong.
    options = ["--metadata-ttl", "300"]
    if how == "staged":
        (tmp_path / "stage").mkdir(mode=0o700)
        options = ["--staged-writes", str(tmp_path / "stage")]
    with mounted(flat_store, tmp_path, *OPTIONS, "--prefix", prefix, *options) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d/other").write_bytes(b"")
        expected = EXPECTED if how == "staged" else STREAMED
        storm = Storm(mount.path, expected, SEED, examples(60))
        count_cases(THREADS * examples(60))
        storm.run()
        assert storm.wrong == []
        assert min(storm.done.values()) > 0, storm.done
        assert "a bug" not in mount.log
        bodies = {name: storm.data(random.Random(name)) for name in NAMES}
        for name, body in bodies.items():
            (mount.path / name).write_bytes(body)
            assert (mount.path / name).read_bytes() == body
        for name, body in bodies.items():  # no write went to another name
            assert content(flat_store, prefix + name) == body
        socket = own_socket(mount)
        eventually(lambda: ask(socket, "status")["open_files"] == 0)
