"""Staged writes through the kernel: writes in any order, and programs that need them."""

import contextlib
import errno
import json
import mmap
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted, pending
from tests.mount.test_fault_table import KILLED_S
from tests.mount.test_rename import OPTIONS, sh
from tests.soak import rounds

MIB = 1 << 20


def staged(
    store: Store, folder: Path, *options: str, endpoint_url: str | None = None
) -> "contextlib.AbstractContextManager[Mount]":
    """Mount with files staged in `folder/stage`."""
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    return mounted(
        store, folder, *OPTIONS, "--staged-writes", str(stage), *options, endpoint_url=endpoint_url
    )


@pytest.fixture(scope="module", params=["channel", "no-channel"])
def mount(
    request: pytest.FixtureRequest, flat_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount with staged writes, with and without the channel."""
    options = ["--prefix", "staged/"] + (["--no-channel"] if request.param == "no-channel" else [])
    with staged(flat_store, tmp_path_factory.mktemp("staged"), *options) as it:
        yield it


@pytest.fixture
def place(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """A directory on the mount for one test."""
    path = mount.path / f"{abs(hash(request.node.name)):x}"
    path.mkdir()
    return path


def stored(store: Store, mount: Mount, path: Path) -> bytes | None:
    """Return the bytes of a file's object."""
    return content(store, f"staged/{path.relative_to(mount.path)}")


# --- Files ---


def test_any_order(mount: Mount, place: Path, flat_store: Store) -> None:
    """Random writes, reads and truncations match a local file, also in S3 after each sync."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    path, model = place / "file", bytearray()
    with path.open("w+b", buffering=0) as file:
        for step in rounds(30):
            offset, size = rng.randrange(12 * MIB), rng.randrange(1, 2 * MIB)
            kind = rng.choice(["write", "write", "write", "read", "truncate", "sync"])
            if kind == "write":
                data = rng.randbytes(size)
                assert os.pwrite(file.fileno(), data, offset) == size
                model.extend(bytes(max(0, offset + size - len(model))))
                model[offset : offset + size] = data
            elif kind == "read":
                assert os.pread(file.fileno(), size, offset) == model[offset : offset + size], step
            elif kind == "truncate":
                os.ftruncate(file.fileno(), offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            else:
                os.fsync(file.fileno())
                assert stored(flat_store, mount, path) == bytes(model)
            assert os.fstat(file.fileno()).st_size == len(model)
    assert stored(flat_store, mount, path) == bytes(model)
    assert path.read_bytes() == model


def test_a_small_change_of_a_large_file(mount: Mount, place: Path, flat_store: Store) -> None:
    """The server copies the unchanged bytes: less is fetched than the file's size."""
    data = bytearray(os.urandom(30 * MIB))
    path = place / "large"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        file.seek(15 * MIB)
        file.write(b"changed")
    data[15 * MIB : 15 * MIB + 7] = b"changed"
    assert stored(flat_store, mount, path) == bytes(data)
    assert path.read_bytes() == data
    assert pending(flat_store, "staged/") == []


def test_seen_by_all(mount: Mount, place: Path) -> None:
    """All programs that have a file open see each other's writes immediately."""
    path = place / "shared"
    path.write_bytes(b"0123456789")
    assert path.read_bytes() == b"0123456789"  # now the kernel has its page
    with path.open("r+b", buffering=0) as one, path.open("r+b", buffering=0) as two:
        one.write(b"abc")
        assert os.pread(two.fileno(), 20, 0) == b"abc3456789"
        with path.open("rb", buffering=0) as reader:
            os.pwrite(two.fileno(), b"XYZ", 10)
            assert reader.read() == b"abc3456789XYZ"
        assert path.stat().st_size == 13
    assert path.read_bytes() == b"abc3456789XYZ"


def test_removed_while_it_is_open(mount: Mount, place: Path, flat_store: Store) -> None:
    """An open file can be removed, and can still be written and read."""
    path = place / "temporary"
    with path.open("w+b", buffering=0) as file:
        file.write(b"123")
        path.unlink()
        assert not path.exists()
        file.write(b"456")
        assert os.pread(file.fileno(), 10, 0) == b"123456"
    assert stored(flat_store, mount, path) is None


def test_renamed_while_it_is_open(mount: Mount, place: Path, flat_store: Store) -> None:
    """A renamed file appears under its new name, and replaces the file there."""
    (place / "target").write_bytes(b"earlier")
    with (place / "source").open("w+b", buffering=0) as file:
        file.write(b"123")
        (place / "source").rename(place / "target")
        file.seek(0)
        file.write(b"X")
    assert stored(flat_store, mount, place / "target") == b"X23"
    assert stored(flat_store, mount, place / "source") is None
    assert (place / "target").read_bytes() == b"X23"


def test_a_private_mapping(place: Path) -> None:
    """A file can be mapped for reading."""
    path = place / "mapped"
    path.write_bytes(b"0123" * 5000)
    private = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, **private) as mapping:
        assert mapping[:8] == b"01230123"


def test_the_writer_is_killed(mount: Mount, place: Path, flat_store: Store) -> None:
    """Synced bytes stay; later bytes are discarded."""
    path = place / "killed"
    script = f"""
import os, time
file = open({str(path)!r}, "w+b", buffering=0)
file.write(b"synced"); os.fsync(file.fileno()); file.write(b" and not")
print(1, flush=True); time.sleep(60)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.kill()
    writer.wait()
    writer.stdout.close()
    eventually(lambda: path.stat().st_size == 6)
    assert path.read_bytes() == b"synced"
    assert stored(flat_store, mount, path) == b"synced"


# --- Programs ---


def test_sqlite(place: Path) -> None:
    """A database with transactions from several connections is intact at the end."""
    path = place / "db"
    with sqlite3.connect(path) as db:
        db.execute("create table t (a integer primary key, b text)")
        db.executemany("insert into t (b) values (?)", [("x" * 100,) for _ in range(2000)])
    db.close()
    other = sqlite3.connect(path)
    with other:
        other.execute("update t set b = 'changed' where a % 100 = 0")
    other.execute("delete from t")
    other.rollback()
    assert other.execute("pragma integrity_check").fetchone() == ("ok",)
    assert other.execute("select count(*) from t where b = 'changed'").fetchone() == (20,)
    assert other.execute("select count(*) from t").fetchone() == (2000,)
    other.close()
    assert os.listdir(place) == ["db"]


def test_zip(place: Path) -> None:
    """An archive can be created and extended."""
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        archive.writestr("one", b"1" * 100_000)
    with zipfile.ZipFile(place / "a.zip", "a") as archive:
        archive.writestr("two", b"2")
    with zipfile.ZipFile(place / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one", "two"]


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_inplace(place: Path, tmp_path: Path) -> None:
    """rsync updates a file in place."""
    source = tmp_path / "source"
    data = bytearray(os.urandom(3 * MIB))
    for _ in range(2):
        source.write_bytes(data)
        sh(f"rsync --inplace --no-whole-file --ignore-times {source} {place}/copy", tmp_path)
        assert (place / "copy").read_bytes() == data
        data[MIB : MIB + 4] = b"more"


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is not installed")
@pytest.mark.parametrize("backup", ["yes", "no", "auto"])
def test_vim(place: Path, backup: str) -> None:
    """vim edits and saves a file in each of its ways."""
    (place / "text").write_text("one\ntwo\n")
    command = f"vim -u NONE -i NONE -es -c 'set backupcopy={backup}' -c '%s/two/three/' -c wq text"
    subprocess.run(["bash", "-c", command], cwd=place, check=False, timeout=60, capture_output=True)
    assert (place / "text").read_text() == "one\nthree\n"
    assert os.listdir(place) == ["text"]


# --- When it goes wrong ---


def refuse_writes(exchange: Exchange) -> None:
    """Refuse all writes with a fault that may be retried."""
    if exchange.is_write:
        exchange.refuse(503, "SlowDown")


def test_an_upload_that_fails(flat_store: Store, folder: Path) -> None:
    """close fails, the file keeps its content, and the next close succeeds."""
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        with staged(flat_store, folder, "--prefix", "failing/", "--read-timeout", "3",
                    endpoint_url=proxy.url) as mount:  # fmt: skip
            path = mount.path / "a"
            path.write_bytes(b"earlier")
            proxy.before.append(refuse_writes)
            file = path.open("r+b", buffering=0)
            file.write(b"LATER")
            assert errno_of(file.close) == errno.EIO
            assert path.read_bytes() == b"LATERer"
            assert content(flat_store, "failing/a") == b"earlier"
            eventually(lambda: "is kept in" in mount.log)
            proxy.before.clear()
            with path.open("rb+"):
                subprocess.run(["sync", path], check=True, timeout=60)
            assert content(flat_store, "failing/a") == b"LATERer"
        eventually(mount.has_ended)


def deny_writes(exchange: Exchange) -> None:
    """Refuse all writes with a permanent error."""
    if exchange.is_write:
        exchange.refuse(403, "AccessDenied")


def killed(path: Path, *, writes: bytes) -> None:
    """Let a process open a file and write to it, and kill the process."""
    script = f"""
import time
file = open({str(path)!r}, "r+b", buffering=0)
file.write({writes!r})
print(1, flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()


def test_kept_files_outlive_later_writers(flat_store: Store, folder: Path) -> None:
    """Neither a killed process nor a failed rename discards a kept file."""
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        with staged(flat_store, folder, "--prefix", "outlives/",
                    endpoint_url=proxy.url) as mount:  # fmt: skip
            path, other = mount.path / "a", mount.path / "b"
            path.write_bytes(b"earlier")
            other.write_bytes(b"other")
            proxy.before.append(deny_writes)
            file = path.open("r+b", buffering=0)
            file.write(b"LATER")
            assert errno_of(file.close) == errno.EACCES
            killed(path, writes=b"")
            eventually(lambda: "operation=release" in mount.log)
            killed(path, writes=b"partial!")
            eventually(lambda: "was killed" in mount.log)
            assert errno_of(lambda: other.rename(path)) == errno.EACCES
            assert errno_of(lambda: os.truncate(path, 2)) == errno.EACCES
            assert path.read_bytes() == b"LATERer"
            assert content(flat_store, "outlives/a") == b"earlier"
            proxy.before.clear()
            with path.open("rb"):
                subprocess.run(["sync", path], check=True, timeout=60)
            assert content(flat_store, "outlives/a") == b"LATERer"
            other.rename(path)
            assert path.read_bytes() == content(flat_store, "outlives/a") == b"other"
            assert list((folder / "stage").glob("*/*.data")) == []
        eventually(mount.has_ended)


def test_files_left_by_a_killed_mount(flat_store: Store, folder: Path) -> None:
    """The next mount names the kept file and says what to do, and leaves it there."""
    with staged(flat_store, folder, "--no-keep-alive", "--prefix", "left/") as mount:
        file = (mount.path / "a").open("w+b", buffering=0)
        file.write(b"123")
        os.kill(mount.pid, signal.SIGKILL)
        eventually(mount.has_ended)
        errno_of(file.close)
    with staged(flat_store, folder, "--prefix", "left/") as mount:
        (left,) = (folder / "stage").glob("*/*.data")
        assert left.read_bytes() == b"123"
        assert json.loads(left.with_suffix(".json").read_text())["key"] == "left/a"
        assert str(left) in mount.log
    assert left.exists()


def test_no_room(flat_store: Store, folder: Path) -> None:
    """Beyond the limit a write is ENOSPC; an upload makes room again."""
    with staged(flat_store, folder, "--prefix", "full/", "--staged-limit", "16") as mount:
        with (mount.path / "a").open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(bytes(b"x" * MIB))
            with (mount.path / "b").open("wb", buffering=0) as other:
                found = errno_of(lambda: [other.write(bytes(b"x" * MIB)) for _ in range(10)])
                assert found == errno.ENOSPC
        (mount.path / "c").write_bytes(b"x" * 10 * MIB)
        assert content(flat_store, "full/a") == b"x" * 10 * MIB


def test_readers_go_on_while_a_file_is_uploaded(mount: Mount, place: Path) -> None:
    """Reads and syncs of a file at the same time do not disturb each other."""
    path = place / "busy"
    data = os.urandom(20 * MIB)
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        file.write(data[:10])
        sync = threading.Thread(target=os.fsync, args=[file.fileno()])
        sync.start()
        assert path.read_bytes() == data
        sync.join()


CHANGES_LATER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
sys.stdin.readline()
{change}
"""


@pytest.mark.parametrize("change", ["os.pwrite(file, b'killed', 0)", "os.ftruncate(file, 1)"])
def test_killed_while_others_upload(flat_store: Store, folder: Path, change: str) -> None:
    """A program that waits in a change for another one's upload ends; its change is not made."""
    sent, goes_on = threading.Event(), threading.Event()

    def silent(exchange: Exchange) -> None:
        if exchange.is_write:
            sent.set()
            goes_on.wait(60)

    with (
        FaultyProxy(flat_store.endpoint_url) as proxy,
        staged(flat_store, folder, "--prefix", "uploading/", endpoint_url=proxy.url) as mount,
        (mount.path / "file").open("w+b", buffering=0) as file,
        subprocess.Popen(
            [sys.executable, "-c", CHANGES_LATER.format(change=change), mount.path / "file"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as program,
        ThreadPoolExecutor(1) as pool,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == b"open\n"
        closed = os.open(mount.path / "file", os.O_RDWR)
        os.write(closed, b"content")
        proxy.before.append(silent)
        closing = pool.submit(os.close, closed)
        try:
            assert sent.wait(20)
            program.stdin.write(b"\n")
            program.stdin.flush()
            waits_in = Path(f"/proc/{program.pid}/wchan")
            eventually(lambda: "request_wait_answer" in waits_in.read_text())
            program.kill()
            assert program.wait(KILLED_S) == -signal.SIGKILL
            assert not closing.done()
        finally:
            goes_on.set()
        closing.result(20)
        assert os.pread(file.fileno(), 100, 0) == b"content"
        assert content(flat_store, "uploading/file") == b"content"
        os.pwrite(file.fileno(), b", and more", 7)
        os.fsync(file.fileno())
        assert content(flat_store, "uploading/file") == b"content, and more"
