"""--keep-alive with --staged-writes: written files stay open and complete when a process dies."""

import errno
import os
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mountpoint.mount.kept import keeper
from tests.conftest import Store
from tests.mount.mounting import content, errno_of, eventually
from tests.mount.test_keep_alive import Kept, ctl, kept
from tests.soak import SEED, rounds

pytestmark = pytest.mark.mount

MIB = 1 << 20


@pytest.fixture(scope="module")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staging directory of `shared`."""
    return tmp_path_factory.mktemp("staging")


@pytest.fixture(scope="module")
def shared(store: Store, staging: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One mount for all tests."""
    options = ("--allow-delete", "--allow-overwrite", "--allow-rename", "--staged-writes")
    with kept(store, tmp_path_factory.mktemp("kept"), *options, str(staging)) as it:
        yield it


def data_files(staging: Path) -> list[Path]:
    return sorted(staging.rglob("*.data"))


def test_an_open_file_goes_on(store: Store, shared: Kept, staging: Path, own: str) -> None:
    """A changed file keeps its changes and the rest of its version; its close uploads it."""
    old = random.Random(SEED).randbytes(20 * MIB)
    store.put(own, old)
    with (shared.path / own).open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"first", 3 * MIB + 1)
        shared.kill()
        assert (
            os.pread(file.fileno(), 7, 3 * MIB)
            == old[3 * MIB :][:1] + b"first" + (old[3 * MIB + 6 :][:1])
        )
        os.pwrite(file.fileno(), b"second", len(old))
        assert os.fstat(file.fileno()).st_size == len(old) + 6
        shared.kill()
        assert content(store, own) == old
    expected = old[: 3 * MIB + 1] + b"first" + old[3 * MIB + 6 :] + b"second"
    assert content(store, own) == expected
    eventually(lambda: data_files(staging) == [])


def test_a_temporary_file(store: Store, shared: Kept, staging: Path, own: str) -> None:
    """A file that was removed right after its creation goes on, and is never uploaded."""
    with tempfile.TemporaryFile(buffering=0, dir=shared.path, prefix=own) as file:
        file.write(b"first, ")
        shared.kill()
        file.write(b"second")
        os.fsync(file.fileno())
        shared.kill()
        assert os.pread(file.fileno(), 100, 0) == b"first, second"
        assert os.fstat(file.fileno()).st_nlink == 0
        file.truncate(5)
        shared.kill()
        assert os.pread(file.fileno(), 100, 0) == b"first"
        assert len(data_files(staging)) == 1
    eventually(lambda: data_files(staging) == [])
    assert store.client().list_objects_v2(Bucket=store.bucket, Prefix=own)["KeyCount"] == 0


def test_a_replaced_file(store: Store, shared: Kept, staging: Path, own: str) -> None:
    """Who has the old file open, goes on with it; the new one stays as it was saved."""
    old = random.Random(SEED).randbytes(3 * MIB)
    store.put(own, old)
    with (shared.path / own).open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 10, MIB) == old[MIB:][:10]
        os.pwrite(file.fileno(), b"changed", 0)
        (shared.path / f"{own}~").write_bytes(b"saved anew")
        (shared.path / f"{own}~").rename(shared.path / own)
        shared.kill()
        assert os.pread(file.fileno(), 7, 0) == b"changed"
        assert os.pread(file.fileno(), 10, MIB) == old[MIB:][:10]
        os.pwrite(file.fileno(), b"again", 0)
        assert (shared.path / own).read_bytes() == b"saved anew"
    assert content(store, own) == b"saved anew"
    eventually(lambda: data_files(staging) == [])


class Writer:
    """A program that writes, cuts, reads, syncs and removes files, one after another."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self._folder, self._name = folder, name
        self._drawn = random.Random(seed)
        self.operations = 0
        self.written: dict[str, bytes] = {}
        self.removed: set[str] = set()
        self.unknown: set[str] = set()

    def run(self, ending: threading.Event) -> None:
        """Write files until `ending` is set. Raises OSError if an operation fails."""
        while not ending.is_set():
            name = f"{self._name}-{len(self.written)}"
            expected = bytearray()
            with (self._folder / name).open("w+b", buffering=0) as file:
                if self._drawn.random() < 0.3:
                    # A process that dies within the removal may have removed the file, or not.
                    known = errno_of((self._folder / name).unlink) != errno.EIO
                    (self.removed if known else self.unknown).add(name)
                for _ in range(self._drawn.randrange(100)):
                    expected = self._change(file.fileno(), expected)
                    self.operations += 1
            self.written[name] = bytes(expected)

    def _change(self, file: int, expected: bytearray) -> bytearray:
        drawn = self._drawn
        offset, size = drawn.randrange(300_000), drawn.randrange(1, 50_000)
        match drawn.choice(["write"] * 5 + ["read"] * 4 + ["cut", "sync"]):
            case "write":
                data = drawn.randbytes(size)
                assert os.pwrite(file, data, offset) == size
                expected += bytes(max(offset - len(expected), 0))
                expected[offset : offset + size] = data
            case "read":
                assert os.pread(file, size, offset) == expected[offset : offset + size], self._name
            case "cut":
                os.ftruncate(file, offset)
                expected = expected[:offset] + bytes(max(offset - len(expected), 0))
            case "sync":
                os.fsync(file)
        return expected


def test_writers_notice_nothing(store: Store, shared: Kept, staging: Path, own: str) -> None:
    """Whatever the moment of a death: no operation fails, and all that was written is uploaded."""
    ending = threading.Event()
    writers = [Writer(shared.path, f"{own}-{each}", SEED + each) for each in range(3)]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(each.run, ending) for each in writers]
        try:
            for _ in rounds(3):
                before = sum(each.operations for each in writers)
                eventually(
                    lambda before=before: (  # type: ignore[misc]
                        sum(each.operations for each in writers) > before + 10
                        or any(each.done() for each in runs)
                    )
                )
                time.sleep(keeper.SERVED_S)  # otherwise its death would count as one at its start
                shared.kill()
        finally:
            ending.set()
        for each in runs:
            each.result(60)
    for writer in writers:
        for name, expected in writer.written.items():
            found = content(store, name)
            if name in writer.removed or (name in writer.unknown and found is None):
                assert found is None, f"{name}, seed {SEED}"
            else:
                assert found == expected, f"{name}, seed {SEED}"
    eventually(lambda: data_files(staging) == [])
    assert "Traceback" not in shared.mount.log


def test_a_database(shared: Kept, own: str) -> None:
    """sqlite goes on with its open files; all that it committed is there."""
    database = sqlite3.connect(shared.path / own, isolation_level=None)
    database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
    for number in range(3):
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO numbers VALUES (?)", [(number * 100 + each,) for each in range(100)]
        )
        shared.kill()
        database.execute("COMMIT")
    assert database.execute("SELECT count(*) FROM numbers").fetchone() == (300,)
    database.close()
    with sqlite3.connect(shared.path / own) as again:
        assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert again.execute("SELECT sum(number) FROM numbers").fetchone() == (sum(range(300)),)
    again.close()


def test_an_upgrade(store: Store, shared: Kept, own: str) -> None:
    """It does not wait for files that are staged: the next process goes on with them."""
    before = shared.worker
    with (shared.path / own).open("wb", buffering=0) as file:
        file.write(b"before ")
        done = ctl("upgrade", "--timeout", "5", shared.path)
        assert done.returncode == 0, done.stderr
        assert shared.worker != before
        file.write(b"and after")
    assert content(store, own) == b"before and after"
