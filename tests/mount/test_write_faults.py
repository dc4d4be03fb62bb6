"""Writes through bad networks, with bad servers, and with abrupt ends.

Each file whose close or fsync returned 0 is in S3 with the right bytes. Every other file is absent,
or has an earlier version, complete. After an orderly end the bucket has no parts of uploads.
"""

import concurrent.futures
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, refuse, times
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted, pending
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

MIB = 1 << 20
#: Empty, one request, exactly one part, several parts.
SIZES = [0, 1, 5000, 100_000, 8 * MIB, 8 * MIB + 1, 20 * MIB]
BLOB = partial(random_bytes, 5, 24 * MIB)
WRITERS = 4
CUTS = 15


@pytest.fixture(scope="module")
def shared_proxy(store: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the store."""
    with FaultyProxy(store.endpoint_url) as it:
        yield it


@pytest.fixture
def proxy(shared_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """The proxy, without faults."""
    yield shared_proxy
    shared_proxy.before.clear()
    shared_proxy.faults.clear()


@pytest.fixture(scope="module")
def shared_mount(
    store: Store, tmp_path_factory: pytest.TempPathFactory, shared_proxy: FaultyProxy
) -> Iterator[Mount]:
    """A mount by way of the proxy, for tests that do not end it."""
    options = ["--prefix", "faulty/", "--allow-overwrite", "--read-timeout", "30"]
    folder = tmp_path_factory.mktemp("faulty")
    with mounted(store, folder, *options, endpoint_url=shared_proxy.url) as it:
        yield it


@pytest.fixture
def place(shared_mount: Mount, own: str) -> Path:
    """A directory of a test's own on that mount."""
    path = shared_mount.path / own
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def readable(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with credentials that permit no writes."""

    def deny(exchange: Exchange) -> None:
        if exchange.is_write:
            exchange.refuse(403, "AccessDenied")

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.append(deny)
        folder = tmp_path_factory.mktemp("readable")
        with mounted(store, folder, "--prefix", "readable/", endpoint_url=proxy.url) as it:
            yield it


def write(path: Path, data: bytes, step: int, *, sync: bool = False) -> bool:
    """Write a file; return whether its close or fsync succeeded."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError:
        return False
    synced = failed = False
    try:
        for offset in range(0, len(data), step):
            os.write(file, data[offset : offset + step])
        # The close of an empty file does not wait for its upload.
        if sync or not data:
            os.fsync(file)
            synced = True
    except OSError:
        failed = True
    try:
        os.close(file)
    except OSError:
        failed = True
    return synced or not failed


class Attempts:
    """The tries of each file in order: its bytes, and whether its close succeeded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of: dict[str, list[tuple[bytes, bool]]] = {}

    def write(self, name: str, source: random.Random) -> None:
        """Write a file of random size in pieces of random size."""
        size = source.choice(SIZES)
        start = source.randrange(len(BLOB()) - size)
        data = BLOB()[start : start + size]
        step = source.choice([MIB, 100_000 if size > MIB else 4096, 3 * MIB])
        done = write(self.folder / name, data, step, sync=source.random() < 0.3)
        self.of.setdefault(name, []).append((data, done))

    def check(self, store: Store, prefix: str) -> None:
        """Raise AssertionError if S3 has something other than was promised."""
        for name, attempts in self.of.items():
            found = content(store, prefix + name)
            promised = [index for index, (_, done) in enumerate(attempts) if done]
            if not promised:
                # A completion whose answer was lost at the end may have succeeded.
                assert found is None or found in [data for data, _ in attempts], name
                continue
            assert found is not None, f"{name} was closed and is not there"
            assert found in [data for data, _ in attempts[promised[-1] :]], name

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of tries and of failures."""
        every = [done for attempts in self.of.values() for _, done in attempts]
        return len(every), every.count(False)


def write_many(attempts: Attempts, seed: int, rounds: int) -> None:
    """Write files from several threads, each its own, repeatedly."""

    def work(number: int) -> None:
        source = random.Random(seed + number)
        for _ in range(rounds):
            attempts.write(f"{number}-{source.randrange(3)}", source)

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))


def sometimes(seed: int, share: float, fault: Fault, which: Callable[[Exchange], bool]) -> Fault:
    """Return `fault` for a share of the requests for which `which` is true."""
    source, lock = random.Random(seed), threading.Lock()

    def filtered(exchange: Exchange) -> None:
        if which(exchange):
            with lock:
                hit = source.random() < share
            if hit:
                fault(exchange)

    return filtered


def cut_request(exchange: Exchange) -> None:
    exchange.taken = exchange.body_size // 2


def lose(exchange: Exchange) -> None:
    exchange.lost = True


def cut_answer(exchange: Exchange) -> None:
    exchange.cut_at = len(exchange.body) // 2


def delay(exchange: Exchange) -> None:
    exchange.delay_s = 0.2


def every(exchange: Exchange) -> bool:
    return True


def is_write(exchange: Exchange) -> bool:
    # If the answer with the upload's id is lost, its parts stay until a cleanup.
    return exchange.is_write and not exchange.begins_upload


def test_a_bad_network(store: Store, place: Path, proxy: FaultyProxy) -> None:
    """With requests refused, cut and delayed, and answers lost, no file is wrong or missing."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    prefix = f"faulty/{place.name}/"
    proxy.before += [
        sometimes(seed + 1, 0.05, refuse(503, "SlowDown"), every),
        sometimes(seed + 2, 0.05, cut_request, every),
    ]
    proxy.faults += [
        sometimes(seed + 3, 0.05, lose, is_write),
        sometimes(seed + 4, 0.03, refuse(500, "InternalError"), is_write),
        sometimes(seed + 5, 0.05, cut_answer, is_write),
        sometimes(seed + 6, 0.05, delay, every),
    ]
    attempts = Attempts(place)
    write_many(attempts, seed, 8)
    proxy.before.clear()
    proxy.faults.clear()
    attempts.check(store, prefix)
    for name in attempts.of:
        found = content(store, prefix + name)
        assert errno_of((place / name).stat) == (errno.ENOENT if found is None else None)
        assert found is None or (place / name).read_bytes() == found
    assert attempts.counts[1] == 0, "retries do not help"
    eventually(lambda: pending(store, prefix) == [])


LOSSES = {"lost": lose, "cut": cut_answer, "refused": refuse(500, "InternalError")}


@pytest.mark.parametrize("size", [5000, 9 * MIB])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("exists", [False, True])
def test_the_last_answer_is_lost(
    store: Store,
    shared_mount: Mount,
    own: str,
    proxy: FaultyProxy,
    size: int,
    loss: str,
    exists: bool,
) -> None:
    """The object has come to be, and nobody was told: closing is no error, also of a new file."""
    path, key = shared_mount.path / own / "a", f"faulty/{own}/a"
    if exists:
        store.put(key, b"earlier")
    else:
        path.parent.mkdir()
    limited = times(1, LOSSES[loss])

    def lose_the_last(exchange: Exchange) -> None:
        completion = exchange.method == "POST" and "uploadId=" in exchange.target
        if completion or (exchange.method == "PUT" and "partNumber=" not in exchange.target):
            limited(exchange)

    proxy.faults.append(lose_the_last)
    assert write(path, BLOB()[:size], MIB)
    assert content(store, key) == BLOB()[:size]
    assert path.read_bytes() == BLOB()[:size]
    eventually(lambda: pending(store, key) == [])


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("command", ["echo a > f", "/bin/echo a > f"])
def test_nothing_may_be_written(readable: Mount, shell: str, command: str) -> None:
    """Shells ignore the result of close(2), so the redirection itself fails, each time."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for _ in range(2):
        done = subprocess.run([shell, "-c", command], cwd=readable.path, check=False)
        assert done.returncode != 0
    assert list(readable.path.iterdir()) == []
    denied = [line for line in readable.log.splitlines() if "operation=create" in line]
    assert all("path=/f" in line and "s3:PutObject" in line for line in denied)
    assert len(denied) % 2 == 0
    assert denied


def test_retries_end(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """If all requests are refused, the close is EIO, and the old object stays."""
    store.put("refused/over", b"earlier")
    options = ["--prefix", "refused/", "--allow-overwrite", "--read-timeout", "3"]
    with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
        assert sorted(os.listdir(mount.path)) == ["over"]
        files = [os.open(mount.path / name, os.O_WRONLY | os.O_CREAT) for name in ("new", "large")]
        files.append(os.open(mount.path / "over", os.O_WRONLY | os.O_TRUNC))
        os.write(files[0], b"new")
        for _ in range(12):
            os.write(files[1], bytes(MIB))
        os.write(files[2], b"later")
        proxy.before.append(refuse(503, "SlowDown"))
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            codes = list(pool.map(lambda file: errno_of(lambda: os.close(file)), files))
        assert codes == [errno.EIO] * 3
        proxy.before.clear()
        assert (mount.path / "over").read_bytes() == b"earlier"
        assert sorted(os.listdir(mount.path)) == ["over"]
        assert write(mount.path / "new", b"again", MIB)
        assert content(store, "refused/new") == b"again"
        # Nothing could remove the parts.
        left = "parts of an upload may remain in the bucket"
        eventually(lambda: pending(store, "refused/") == [] or left in mount.log)


def test_the_network_is_cut_and_comes_back(store: Store, place: Path, proxy: FaultyProxy) -> None:
    """All connections end in the middle of everything, several times; all files are right."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    attempts, done = Attempts(place), threading.Event()

    def cut_again_and_again() -> None:
        # Not for as long as it takes: where a part takes longer, nothing would ever end.
        for _ in range(CUTS):
            if done.wait(0.4):
                return
            proxy.cut_all()

    cutter = threading.Thread(target=cut_again_and_again)
    cutter.start()
    try:
        write_many(attempts, seed, 5)
    finally:
        done.set()
        cutter.join()
    attempts.check(store, f"faulty/{place.name}/")
    assert attempts.counts[1] == 0


# --- Ends ---


def begin(mount: Mount, name: str, size: int) -> int:
    """Start to write a file; return its descriptor."""
    file = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for offset in range(0, size, MIB):
        os.write(file, BLOB()[offset : min(offset + MIB, size)])
    return file


def close_all(files: list[int]) -> list[int | None]:
    return [errno_of(lambda file=file: os.close(file)) for file in files]  # type: ignore[misc]


def test_the_mount_is_killed(store: Store, folder: Path) -> None:
    """Closed files exist, others do not, and the next mount works."""
    store.put("dead/over", b"earlier")
    options = ["--no-keep-alive", "--prefix", "dead/", "--allow-overwrite"]
    with mounted(store, folder, *options) as mount:
        closed = {f"closed-{size}": BLOB()[:size] for size in SIZES}
        for name, data in closed.items():
            assert write(mount.path / name, data, MIB)
        files = [begin(mount, f"open-{size}", size) for size in SIZES]
        files.append(begin(mount, "over", 20 * MIB))
        os.kill(mount.pid, signal.SIGKILL)
        eventually(mount.has_ended)
        assert None not in close_all(files)
    for name, data in closed.items():
        assert content(store, "dead/" + name) == data
    assert content(store, "dead/over") == b"earlier"
    assert [content(store, f"dead/open-{size}") for size in SIZES] == [None] * len(SIZES)
    with mounted(store, folder, *options) as mount:
        assert sorted(os.listdir(mount.path)) == sorted([*closed, "over"])
        assert write(mount.path / f"open-{SIZES[-1]}", BLOB()[: SIZES[-1]], MIB)


def test_the_mount_is_killed_while_files_are_closed(
    store: Store, folder: Path, proxy: FaultyProxy
) -> None:
    """The files of all successful closes exist, whenever the mount was killed."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    options = ["--no-keep-alive", "--prefix", "dying/"]
    with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
        proxy.faults.append(sometimes(seed, 0.5, delay, every))
        attempts = Attempts(mount.path)
        sources = [random.Random(seed + number) for number in range(WRITERS)]

        def work(number: int) -> None:
            for count in range(1000):
                attempts.write(f"{number}-{count}", sources[number])
                if mount.has_ended():
                    break

        with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
            working = [pool.submit(work, number) for number in range(WRITERS)]
            eventually(lambda: attempts.counts[0] > 10)
            os.kill(mount.pid, signal.SIGKILL)
            for each in working:
                each.result()
    attempts.check(store, "dying/")


@pytest.mark.parametrize("end", ["SIGTERM", "umount -l"])
def test_the_mount_ends_while_files_are_written(store: Store, folder: Path, end: str) -> None:
    """At SIGTERM open files fail and leave nothing; umount -l lets their writers finish."""
    prefix = f"ends-{end[:3]}/"
    store.put(prefix + "over", b"earlier")
    with mounted(store, folder, "--prefix", prefix, "--allow-overwrite") as mount:
        sizes = {f"open-{size}": size for size in SIZES} | {"over": 20 * MIB}
        files = [begin(mount, name, size) for name, size in sizes.items()]
        if end == "SIGTERM":
            os.kill(mount.pid, signal.SIGTERM)
            eventually(mount.has_ended)
            assert None not in close_all(files)
        else:
            subprocess.run(["umount", "-l", mount.path], check=True)
            assert not mount.is_mounted()
            assert close_all(files) == [None] * len(files)
            eventually(mount.has_ended)
    for name, size in sizes.items():
        left = b"earlier" if name == "over" else None
        expected = left if end == "SIGTERM" else BLOB()[:size]
        assert content(store, prefix + name) == expected, name
    assert pending(store, prefix) == []


def test_the_mount_ends_while_files_are_closed(
    store: Store, folder: Path, proxy: FaultyProxy
) -> None:
    """SIGTERM during closes: each close reports the truth, and no parts are left."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    with mounted(store, folder, "--prefix", "ending/", endpoint_url=proxy.url) as mount:
        proxy.faults.append(sometimes(seed, 0.5, delay, is_write))
        # Not in the root, because the mount's directory still exists afterwards.
        (mount.path / "d").mkdir()
        attempts = Attempts(mount.path / "d")
        sources = [random.Random(seed + number) for number in range(WRITERS)]

        def work(number: int) -> None:
            for count in range(1000):
                attempts.write(f"{number}-{count}", sources[number])
                if not mount.is_mounted():
                    break

        with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
            working = [pool.submit(work, number) for number in range(WRITERS)]
            eventually(lambda: attempts.counts[0] > 10)
            os.kill(mount.pid, signal.SIGTERM)
            for each in working:
                each.result()
        eventually(mount.has_ended)
    attempts.check(store, "ending/d/")
    assert pending(store, "ending/") == []


WRITER = """
import os, sys
for number in range(1000):
    file = os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT)
    for _ in range(int(sys.argv[2])):
        os.write(file, b"x" * (1 << 20))
    os.close(file)
    print(number, flush=True)
"""


def test_writers_are_killed(store: Store, folder: Path) -> None:
    """Of a process that is killed at any time the files are whole or absent, and no parts stay."""
    with mounted(store, folder, "--prefix", "victims/") as mount:
        for number, size_mib in itertools.product(range(4), (1, 12)):
            place = mount.path / f"{size_mib}-{number}"
            place.mkdir()
            command = [sys.executable, "-c", WRITER, str(place), str(size_mib)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                for _ in range(number + 1):
                    writer.stdout.readline()
                time.sleep(random.random() * 0.2)
                writer.kill()
                said = number + 1 + writer.stdout.read().count(b"\n")
            for done in range(said):
                found = content(store, f"victims/{place.name}/{done}")
                assert found == b"x" * (size_mib << 20)
            rest = content(store, f"victims/{place.name}/{said}")
            assert rest is None or rest == b"x" * (size_mib << 20)
        eventually(lambda: pending(store, "victims/") == [])
