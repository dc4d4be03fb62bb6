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
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, on_data, on_lists, refuse, times
from tests.mount.mounting import Mount, errno_of, eventually, mounted

pytestmark = pytest.mark.mount

SIZE = 20 << 20
BODY = random.Random(3).randbytes(SIZE)


@pytest.fixture(scope="module", autouse=True)
def _objects(store: Store) -> None:
    store.put("faults/file", BODY)
    store.put("faults/other", b"other")
    store.put("faults/small/file", b"small")


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the store."""
    with FaultyProxy(store.endpoint_url) as it:
        yield it


@pytest.fixture
def mount(store: Store, folder: Path, proxy: FaultyProxy) -> Iterator[Mount]:
    """The store behind the proxy, with a short --read-timeout."""
    with mounted(
        store, folder, "--read-timeout", "8", "--prefix", "faults/", endpoint_url=proxy.url
    ) as it:
        yield it


@pytest.fixture
def brief(store: Store, folder: Path, proxy: FaultyProxy) -> Iterator[Mount]:
    """The same, for tests that wait until --read-timeout is over."""
    with mounted(
        store, folder, "--read-timeout", "3", "--prefix", "faults/", endpoint_url=proxy.url
    ) as it:
        yield it


def fails_with(path: Path) -> int | None:
    """Read the file; return the errno of the failure."""
    return errno_of(path.read_bytes)


def one_line(mount: Mount, *parts: str) -> None:
    """Wait until a line of the log has all of `parts`: it may come after the answer."""

    def found() -> bool:
        return any(all(part in line for part in parts) for line in mount.log.splitlines())

    eventually(found)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_retried(mount: Mount, proxy: FaultyProxy, status: int, code: str) -> None:
    """Failed requests are retried until the bytes are right."""
    proxy.faults.append(times(3, on_data(refuse(status, code))))
    assert (mount.path / "file").read_bytes() == BODY


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_retries_end(brief: Mount, proxy: FaultyProxy, status: int, code: str) -> None:
    """A failing server is EIO after --read-timeout, never ENOENT; later reads work."""
    (brief.path / "file").stat()
    proxy.faults.append(refuse(status, code))
    assert fails_with(brief.path / "file") == errno.EIO
    time.sleep(1.1)  # until cached names have expired
    assert fails_with(brief.path / "other") == errno.EIO
    one_line(
        brief, "operation=open", "path=/file", "errno=EIO", f"s3_code={code}", "--read-timeout"
    )
    proxy.faults.clear()
    assert (brief.path / "file").read_bytes() == BODY


def test_denied(mount: Mount, proxy: FaultyProxy) -> None:
    """403 is EACCES, with one log line that identifies the request."""
    (mount.path / "file").stat()
    proxy.faults.append(on_data(refuse(403, "AccessDenied")))
    assert fails_with(mount.path / "file") == errno.EACCES
    one_line(mount, "operation=open", "path=/file", "errno=EACCES", "AccessDenied", "FAULT00")


def test_listing_denied(mount: Mount, proxy: FaultyProxy) -> None:
    """A directory that may not be listed is EACCES, not empty."""
    proxy.faults.append(on_lists(refuse(403, "AccessDenied")))
    with pytest.raises(PermissionError):
        os.listdir(mount.path)


def test_bodies_cut_in_the_middle(mount: Mount, proxy: FaultyProxy) -> None:
    """A body that ends early is fetched again, and no reader gets a short read."""

    def cut(exchange: Exchange) -> None:
        exchange.cut_at = len(exchange.body) // 2

    proxy.faults.append(times(4, on_data(cut)))
    assert (mount.path / "file").read_bytes() == BODY


def test_always_cut(brief: Mount, proxy: FaultyProxy) -> None:
    """If all bodies end early, the read is EIO."""

    def cut(exchange: Exchange) -> None:
        exchange.cut_at = len(exchange.body) - 1

    proxy.faults.append(on_data(cut))
    assert fails_with(brief.path / "file") == errno.EIO


def test_wrong_bodies(mount: Mount, proxy: FaultyProxy) -> None:
    """Wrong ranges and wrong lengths are rejected."""

    def shorter(exchange: Exchange) -> None:
        exchange.body = exchange.body[:-100]
        exchange.headers = [
            (name, str(len(exchange.body)) if name.lower() == "content-length" else value)
            for name, value in exchange.headers
        ]

    def shifted(exchange: Exchange) -> None:
        exchange.headers = [
            (name, re.sub(r"bytes \d+-(\d+)", r"bytes 7-\1", value))
            for name, value in exchange.headers
        ]

    proxy.faults += [times(2, on_data(shorter)), times(2, on_data(shifted))]
    assert (mount.path / "file").read_bytes() == BODY


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
        assert os.pread(file.fileno(), 100, 15 << 20) == BODY[15 << 20 :][:100]


def test_silence_is_not_waited_for(mount: Mount, proxy: FaultyProxy) -> None:
    """A GET that delivers nothing is sent again, and the bytes arrive."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 1000

    proxy.faults.append(times(1, on_data(silent)))
    assert (mount.path / "other").read_bytes() == b"other"
    proxy.faults.append(times(1, on_data(silent)))
    assert (mount.path / "small" / "file").read_bytes() == b"small"


def test_silence_without_end(brief: Mount, proxy: FaultyProxy) -> None:
    """If a server stays silent, the read is EIO after --read-timeout, and the mount continues."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 0

    (brief.path / "file").stat()
    proxy.faults.append(on_data(silent))
    assert fails_with(brief.path / "file") == errno.EIO
    one_line(brief, "path=/file", "errno=EIO", "--read-timeout")
    proxy.faults.clear()
    assert (brief.path / "file").read_bytes() == BODY


def test_one_total_for_a_file(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """All reads of one file, ahead and again, fail within one --read-timeout."""
    good = 3

    def other_range(exchange: Exchange) -> None:
        nonlocal good
        if exchange.is_data:
            good -= 1
        if exchange.is_data and good < 0:
            exchange.headers = [
                (name, re.sub(r"bytes \d+-", "bytes 1-", value)) for name, value in exchange.headers
            ]

    with mounted(
        store, folder, "--read-timeout", "6", "--prefix", "faults/", endpoint_url=proxy.url
    ) as mount:
        proxy.faults.append(other_range)
        begun_s = time.monotonic()
        assert fails_with(mount.path / "file") == errno.EIO
        assert time.monotonic() - begun_s < 11  # three full timeouts would be 17


def test_unmount_during_silence(mount: Mount, proxy: FaultyProxy) -> None:
    """SIGTERM ends a mount immediately while readers wait for a silent server."""

    def silent(exchange: Exchange) -> None:
        exchange.stall_at = 0

    (mount.path / "file").stat()
    proxy.faults.append(silent)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(fails_with, mount.path / "file") for _ in range(3)]
        readers.append(pool.submit(fails_with, mount.path / "small" / "file"))
        eventually(lambda: sum(method == "GET" for method, _ in proxy.seen) > 3)
        started = threading.Event()
        threading.Timer(0.3, started.set).start()
        started.wait()
        os.kill(mount.pid, signal.SIGTERM)
        # This is less than --read-timeout, so the mount no longer waits.
        eventually(mount.has_ended, within_s=6)
        assert all(reader.result(timeout=10) is not None for reader in readers)
    assert not mount.is_mounted()


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


@pytest.mark.parametrize("fault", [endless, another_range])
@pytest.mark.parametrize("aborted", [False, True])
def test_the_end_during_wrong_answers(
    mount: Mount, proxy: FaultyProxy, fault: Fault, aborted: bool
) -> None:
    """During retries the process ends within 5 s, by a signal or `umount -f`."""
    if aborted and os.geteuid() != 0:
        pytest.skip("only root may force an unmount")
    (mount.path / "file").stat()
    pid = mount.pid
    proxy.seen.clear()
    proxy.faults.append(on_data(fault))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(fails_with, mount.path / name) for name in ("file", "other")]
        eventually(lambda: sum(target.endswith("/other") for _, target in proxy.seen) > 0)
        if aborted:
            subprocess.run(["umount", "-f", mount.path], check=False, capture_output=True)
            subprocess.run(["umount", "-l", mount.path], check=False, capture_output=True)
        else:
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), within_s=5)
        assert all(reader.result(timeout=10) is not None for reader in readers)


def test_hostile_listings(brief: Mount, proxy: FaultyProxy) -> None:
    """An invalid listing is EIO after the retries, and the mount continues."""
    bodies = [
        b"<html>hello</html>",
        b"<!DOCTYPE r [<!ENTITY a 'b'>]><ListBucketResult>&a;</ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents>",
        b"",
    ]
    for body in bodies:

        def replace(exchange: Exchange, body: bytes = body) -> None:
            exchange.body = body
            exchange.headers = [("Content-Length", str(len(body)))]

        proxy.faults[:] = [on_lists(replace)]
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(brief.path)
        proxy.faults.clear()
        assert sorted(os.listdir(brief.path)) == ["file", "other", "small"]


def test_token_that_repeats(brief: Mount, proxy: FaultyProxy) -> None:
    """A listing that loops is EIO, and does not hang."""

    def circle(exchange: Exchange) -> None:
        exchange.body = re.sub(
            rb"<IsTruncated>false</IsTruncated>",
            b"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>",
            re.sub(rb"<NextContinuationToken>.*</NextContinuationToken>", b"", exchange.body),
        )
        exchange.headers = [("Content-Length", str(len(exchange.body)))]

    proxy.faults.append(on_lists(circle))
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(brief.path)


def test_one_percent_of_everything(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """With some refusals and some cut bodies, all bytes are right and nothing fails."""
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

    with mounted(store, folder, "--prefix", "faults/", endpoint_url=proxy.url) as mount:
        proxy.faults.append(sometimes)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            bodies = list(pool.map(lambda _: (mount.path / "file").read_bytes(), range(4)))
        assert all(body == BODY for body in bodies)
        for _ in range(30):
            assert sorted(os.listdir(mount.path)) == ["file", "other", "small"]
            assert (mount.path / "small" / "file").read_bytes() == b"small"


def test_the_server_stops_and_comes_back(store: Store, folder: Path) -> None:
    """A reader gets EIO within --read-timeout, and the same open file can be read afterwards."""
    with FaultyProxy(store.endpoint_url) as proxy:
        port = proxy.port
        with mounted(
            store, folder, "--read-timeout", "3", "--prefix", "faults/", endpoint_url=proxy.url
        ) as mount:
            file = os.open(mount.path / "file", os.O_RDONLY)
            try:
                assert os.pread(file, 1 << 20, 0) == BODY[: 1 << 20]
                proxy.__exit__(None, None, None)
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file, 1 << 20, 17 << 20)
                with FaultyProxy(store.endpoint_url, port=port):
                    assert os.pread(file, 1 << 20, 17 << 20) == BODY[17 << 20 : 18 << 20]
                    assert (mount.path / "file").read_bytes() == BODY
            finally:
                os.close(file)
            one_line(mount, "operation failed", "read", "/file", "EIO", "retries failed")
