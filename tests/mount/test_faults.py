"""A real mount with a bad network or a bad server returns the right bytes or an error."""

import concurrent.futures
import errno
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, on_data, on_lists, refuse
from tests.mount.mounting import Mount, errno_of, eventually, mounted
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

SIZE = 20 << 20
BODY = partial(random_bytes, 3, SIZE)
#: Seconds; three such totals one after another are more than one and what a busy machine adds.
BRIEF_S = 3


@pytest.fixture(scope="module")
def shared_proxy(store: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the store."""
    with FaultyProxy(store.endpoint_url) as it:
        yield it


@pytest.fixture
def proxy(shared_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """The proxy, without faults."""
    shared_proxy.seen.clear()
    yield shared_proxy
    shared_proxy.faults.clear()


def through(
    store: Store, folder: Path, proxy: FaultyProxy, read_timeout_s: int
) -> AbstractContextManager[Mount]:
    """Mount the store through the proxy."""
    options = ["--read-timeout", str(read_timeout_s), "--prefix", "faults/"]
    return mounted(store, folder, *options, endpoint_url=proxy.url)


@pytest.fixture(scope="module")
def patient(
    store: Store, tmp_path_factory: pytest.TempPathFactory, shared_proxy: FaultyProxy
) -> Iterator[Mount]:
    """A mount for all tests in which S3 answers in the end."""
    with through(store, tmp_path_factory.mktemp("patient"), shared_proxy, 8) as it:
        yield it


@pytest.fixture(scope="module")
def hasty(
    store: Store, tmp_path_factory: pytest.TempPathFactory, shared_proxy: FaultyProxy
) -> Iterator[Mount]:
    """A mount for all tests that wait until --read-timeout is over."""
    with through(store, tmp_path_factory.mktemp("hasty"), shared_proxy, BRIEF_S) as it:
        yield it


@pytest.fixture
def objects(store: Store, own: str) -> None:
    """Objects that no other test has read."""
    store.put(f"faults/{own}/file", BODY())
    store.put(f"faults/{own}/other", b"other")
    store.put(f"faults/{own}/small/file", b"small")


@pytest.fixture
def mount(patient: Mount, objects: None, own: str) -> Mount:
    """The directory of a test."""
    return patient.part(own)


@pytest.fixture
def brief(hasty: Mount, objects: None, own: str) -> Mount:
    """The same with a --read-timeout that is soon over."""
    return hasty.part(own)


@pytest.fixture
def ending(
    store: Store, folder: Path, proxy: FaultyProxy, objects: None, own: str
) -> Iterator[Mount]:
    """A mount for one test that ends it."""
    with through(store, folder, proxy, 8) as it:
        yield it.part(own)


def fails_with(path: Path) -> int | None:
    """Read the file; return the errno of the failure."""
    return errno_of(path.read_bytes)


def one_line(mount: Mount, *parts: str) -> None:
    """Wait until a line of the log has all of `parts`: it may come after the answer."""

    def found() -> bool:
        return any(all(part in line for part in parts) for line in mount.log.splitlines())

    eventually(found)


def test_denied(mount: Mount, proxy: FaultyProxy) -> None:
    """403 is EACCES, with one log line that identifies the request."""
    (mount.path / "file").stat()
    proxy.faults.append(on_data(refuse(403, "AccessDenied")))
    assert fails_with(mount.path / "file") == errno.EACCES
    one_line(
        mount,
        "operation=open",
        f"path=/{mount.path.name}/file",
        "errno=EACCES",
        "AccessDenied",
        "FAULT00",
    )


def test_listing_denied(mount: Mount, proxy: FaultyProxy) -> None:
    """A directory that may not be listed is EACCES, not empty."""
    proxy.faults.append(on_lists(refuse(403, "AccessDenied")))
    with pytest.raises(PermissionError):
        os.listdir(mount.path)


def test_other_version_in_the_answer(mount: Mount, proxy: FaultyProxy) -> None:
    """If a server ignores If-Match, the ETag shows it: ESTALE, and no byte of the new version."""
    count = 0

    def other_etag(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        if count > 1:  # the first GET is that of open
            exchange.headers = [
                (name, '"another"' if name.lower() == "etag" else value)
                for name, value in exchange.headers
            ]

    proxy.faults.append(on_data(other_etag))
    with open(mount.path / "file", "rb", buffering=0) as file:
        with pytest.raises(OSError, match="Stale file handle"):
            os.pread(file.fileno(), 1 << 20, 10 << 20)
        proxy.faults.clear()
        assert os.pread(file.fileno(), 100, 15 << 20) == BODY()[15 << 20 :][:100]


def test_silence_without_end(brief: Mount, proxy: FaultyProxy) -> None:
    """If a server stays silent, the read is EIO after --read-timeout, and the mount continues."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 0

    (brief.path / "file").stat()
    proxy.faults.append(on_data(silent))
    assert fails_with(brief.path / "file") == errno.EIO
    one_line(brief, f"path=/{brief.path.name}/file", "errno=EIO", "--read-timeout")
    proxy.faults.clear()
    assert (brief.path / "file").read_bytes() == BODY()


def test_one_total_for_a_file(brief: Mount, proxy: FaultyProxy) -> None:
    """All that the kernel reads of one file, ahead and again, fails after one --read-timeout."""
    good = 3

    def other_range(exchange: Exchange) -> None:
        nonlocal good
        if exchange.is_data:
            good -= 1
        if exchange.is_data and good < 0:
            exchange.headers = [
                (name, re.sub(r"bytes \d+-", "bytes 1-", value)) for name, value in exchange.headers
            ]

    proxy.faults.append(other_range)
    begun_s = time.monotonic()
    assert fails_with(brief.path / "file") == errno.EIO
    # With a total for each of three reads it is three times as long.
    assert time.monotonic() - begun_s < BRIEF_S + 5


def test_unmount_during_silence(ending: Mount, proxy: FaultyProxy) -> None:
    """SIGTERM ends a mount at once while readers wait for a silent server."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 0

    (ending.path / "file").stat()
    proxy.faults.append(silent)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(fails_with, ending.path / "file") for _ in range(3)]
        readers.append(pool.submit(fails_with, ending.path / "small" / "file"))
        eventually(lambda: sum(method == "GET" for method, _ in proxy.seen) > 3)
        started = threading.Event()
        threading.Timer(0.3, started.set).start()
        started.wait()
        os.kill(ending.pid, signal.SIGTERM)
        # Less than --read-timeout: nobody waits for that any longer.
        eventually(ending.has_ended, within_s=6)
        assert all(reader.result(timeout=10) is not None for reader in readers)
    assert not ending.is_mounted()


def endless(exchange: Exchange) -> None:
    """Answer with an endless body."""
    exchange.endless = True
    exchange.drop_header("content-length")
    exchange.headers.append(("Content-Length", str(1 << 40)))


def another_range(exchange: Exchange) -> None:
    """Answer with another range than the requested one."""
    exchange.status = 206
    exchange.drop_header("content-range")
    exchange.headers.append(("Content-Range", f"bytes 7-{6 + len(exchange.body)}/{1 << 41}"))


@pytest.mark.parametrize("aborted", [False, True])
def test_the_end_during_wrong_answers(ending: Mount, proxy: FaultyProxy, aborted: bool) -> None:
    """The process ends within 5 s, by a signal or `umount -f`, while reads are tried again."""
    if aborted and os.geteuid() != 0:
        pytest.skip("only root may force an unmount")
    faults = {"file": endless, "other": another_range}

    def wrong(exchange: Exchange) -> None:
        faults[exchange.target.rpartition("/")[2]](exchange)

    (ending.path / "file").stat()
    pid = ending.pid
    proxy.seen.clear()
    proxy.faults.append(on_data(wrong))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(fails_with, ending.path / name) for name in faults]
        for name in faults:
            eventually(lambda name=name: any(t.endswith(f"/{name}") for _, t in proxy.seen))  # type: ignore[misc]
        if aborted:
            subprocess.run(["umount", "-f", ending.root], check=False, capture_output=True)
            subprocess.run(["umount", "-l", ending.root], check=False, capture_output=True)
        else:
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), within_s=5)
        assert all(reader.result(timeout=10) is not None for reader in readers)


def test_one_percent_of_everything(mount: Mount, proxy: FaultyProxy) -> None:
    """With some answers refused and some bodies cut, all bytes are right and nothing fails."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    source, lock = random.Random(seed), threading.Lock()

    def sometimes(exchange: Exchange) -> None:
        with lock:
            dice = source.random()
        if dice < 0.05:
            exchange.refuse(503, "SlowDown")
        elif dice < 0.10 and exchange.is_data:
            exchange.cut_at = len(exchange.body) // 3

    proxy.faults.append(sometimes)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(lambda _: (mount.path / "file").read_bytes(), range(4)))
    assert all(body == BODY() for body in bodies)
    for _ in range(30):
        assert sorted(os.listdir(mount.path)) == ["file", "other", "small"]
        assert (mount.path / "small" / "file").read_bytes() == b"small"


@pytest.mark.usefixtures("objects")
def test_the_server_stops_and_comes_back(store: Store, folder: Path, own: str) -> None:
    """A reader gets EIO within --read-timeout, and the same open file reads on afterwards."""
    with FaultyProxy(store.endpoint_url) as proxy:
        port = proxy.port
        with through(store, folder, proxy, BRIEF_S) as whole:
            mount = whole.part(own)
            file = os.open(mount.path / "file", os.O_RDONLY)
            try:
                assert os.pread(file, 1 << 20, 0) == BODY()[: 1 << 20]
                proxy.__exit__(None, None, None)
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file, 1 << 20, 17 << 20)
                with FaultyProxy(store.endpoint_url, port=port):
                    assert os.pread(file, 1 << 20, 17 << 20) == BODY()[17 << 20 : 18 << 20]
                    assert (mount.path / "file").read_bytes() == BODY()
            finally:
                os.close(file)
            one_line(mount, "operation failed", "read", f"/{own}/file", "EIO", "retries failed")
