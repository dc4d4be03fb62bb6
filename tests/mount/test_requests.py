"""The requests of a real mount: their signatures, headers and number."""

import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.config import MINIMAL_TTL_S
from mountpoint.listing.batch_lookup import RENEW_BEFORE_S
from mountpoint.mount.control import ask
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import Mount, eventually, mounted
from tests.mount.test_ctl import own_socket

pytestmark = pytest.mark.mount

SIZE = 40 << 20


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultyProxy]:
    """A proxy that records every request."""
    with FaultyProxy(store.endpoint_url) as it:
        yield it


@pytest.fixture
def exchanges(proxy: FaultyProxy) -> list[Exchange]:
    """The recorded exchanges."""
    seen: list[Exchange] = []
    proxy.faults.append(seen.append)
    return seen


def nobody(store: Store, extra: dict[str, str]) -> Store:
    """Return the store without credentials in the environment."""
    return Store(store.endpoint_url, store.bucket, extra)


def test_every_request_is_signed(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """Each request is signed with the right key, and has our User-Agent."""
    store.put("requests/file", b"x" * 5000)
    with mounted(store, folder, endpoint_url=proxy.url) as mount:
        for _ in range(2):  # the second time the kernel has the pages: a HEAD suffices
            assert (mount.path / "requests" / "file").read_bytes() == b"x" * 5000
        os.listdir(mount.path)
    assert {exchange.method for exchange in exchanges} == {"GET", "HEAD"}
    for exchange in exchanges:
        authorization = exchange.header("Authorization") or ""
        assert store.environment["AWS_ACCESS_KEY_ID"] in authorization
        assert "mount-s3/" in (exchange.header("User-Agent") or "")
        assert exchange.header("x-amz-request-payer") is None


def test_requester_pays(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """With --requester-pays each request has the header."""
    store.put("requests/file", b"x" * 5000)
    with mounted(store, folder, "--requester-pays", endpoint_url=proxy.url) as mount:
        assert (mount.path / "requests" / "file").read_bytes() == b"x" * 5000
    assert exchanges
    assert all(exchange.header("x-amz-request-payer") == "requester" for exchange in exchanges)


def test_unsigned(flat_store: Store, folder: Path) -> None:
    """--no-sign-request signs nothing and needs no credentials."""
    flat_store.put("open/file", b"for all")
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        seen: list[Exchange] = []
        proxy.faults.append(seen.append)
        without = nobody(flat_store, {})
        with mounted(without, folder, "--no-sign-request", endpoint_url=proxy.url) as mount:
            assert (mount.path / "open" / "file").read_bytes() == b"for all"
    assert seen
    assert all(exchange.header("Authorization") is None for exchange in seen)


@pytest.mark.parametrize("how", ["--profile", "AWS_PROFILE", "default"])
def test_shared_files(store: Store, folder: Path, how: str) -> None:
    """Credentials come from the shared files, by option, variable or default profile."""
    name = "default" if how == "default" else "work"
    file = folder / "credentials"
    file.write_text(
        f"[{name}]\naws_access_key_id = {store.environment['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {store.environment['AWS_SECRET_ACCESS_KEY']}\n"
    )
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    if how == "AWS_PROFILE":
        environment["AWS_PROFILE"] = "work"
    options = ["--profile", "work"] if how == "--profile" else []
    store.put("requests/file", b"by profile")
    with mounted(nobody(store, environment), folder, *options) as mount:
        assert (mount.path / "requests" / "file").read_bytes() == b"by profile"


def test_credential_process(store: Store, folder: Path) -> None:
    """Credentials come from the profile's credential_process."""
    program = folder / "program"
    program.write_text(
        f"#!{sys.executable}\nimport json\n"
        "print(json.dumps({'Version': 1,"
        f" 'AccessKeyId': '{store.environment['AWS_ACCESS_KEY_ID']}',"
        f" 'SecretAccessKey': '{store.environment['AWS_SECRET_ACCESS_KEY']}'}}))\n"
    )
    program.chmod(0o700)
    config = folder / "config"
    config.write_text(f"[profile made]\ncredential_process = {program}\n")
    store.put("requests/file", b"by process")
    environment = {"AWS_CONFIG_FILE": str(config)}
    with mounted(nobody(store, environment), folder, "--profile", "made") as mount:
        assert (mount.path / "requests" / "file").read_bytes() == b"by process"


def test_every_range_names_its_version(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """Each GET of an object has If-Match, and a sequential read fetches each byte once.

    Hedged requests on a busy machine are the exception: the counters show their number.
    """
    body = random.Random(4).randbytes(SIZE)
    etag = store.put("requests/large", body)
    with mounted(store, folder, "--debug", endpoint_url=proxy.url) as mount:
        exchanges.clear()  # the probe at mount requests a missing version
        assert (mount.path / "requests" / "large").read_bytes() == body
        counted = mount.counters()
    gets = [exchange for exchange in exchanges if exchange.is_data]
    assert all(exchange.header("If-Match") == etag for exchange in gets)
    ranges = sorted(
        {
            tuple(int(edge) for edge in (get.header("Range") or "")[len("bytes=") :].split("-"))
            for get in gets
        }
    )
    assert len(gets) - len(ranges) <= counted["hedges"] + counted["retries"]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == SIZE - 1
    for (_, last), (first, _) in itertools.pairwise(ranges):
        assert first == last + 1


def counts(exchanges: list[Exchange]) -> tuple[int, int, int]:
    """Return the numbers of HEADs, LISTs and GETs, and reset them."""
    heads = sum(exchange.method == "HEAD" for exchange in exchanges)
    lists = sum(exchange.is_list for exchange in exchanges)
    gets = sum(exchange.is_data for exchange in exchanges)
    exchanges.clear()
    return heads, lists, gets


def most_lists(began_s: float) -> int:
    """Return how often a page may have been listed since then: on an idle machine once.

    On a busy machine the reads take longer, so the page expires meanwhile and is listed again.
    """
    return 1 + int((time.monotonic() - began_s) / (MINIMAL_TTL_S - RENEW_BEFORE_S))


def test_number_of_requests(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """Listed files cost no lookup, a small file one GET, an unchanged file one HEAD."""
    for number in range(20):
        store.put(f"requests/often/{number:02}", b"small")

    def read_all(mount: Mount) -> None:
        with os.scandir(mount.path) as entries:
            for entry in entries:
                entry.stat()
                assert Path(entry.path).read_bytes() == b"small"

    with mounted(store, folder, "--prefix", "requests/often/", endpoint_url=proxy.url) as mount:
        counts(exchanges)
        began_s = time.monotonic()
        read_all(mount)
        heads, lists, gets = counts(exchanges)
        assert (heads, gets) == (0, 20)
        assert 1 <= lists <= most_lists(began_s)
        time.sleep(1.1)
        counts(exchanges)
        began_s = time.monotonic()
        read_all(mount)
        heads, lists, gets = counts(exchanges)
        assert heads == 20
        assert 1 <= lists <= most_lists(began_s)
        # The kernel may have dropped some pages meanwhile, but not many.
        assert gets < 20
        time.sleep(1.1)
        counts(exchanges)
        (mount.path / "07").stat()
        assert counts(exchanges) == (0, 1, 0)


def test_pages_that_were_lost(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """If the page cache has lost every other MiB, the file is read as for the first time.

    With a request for each lost MiB, a file of 64 MiB took 84 requests instead of 19.
    """
    body = random.Random(4).randbytes(SIZE)
    store.put("requests/large", body)
    with mounted(store, folder, "--debug", endpoint_url=proxy.url) as mount:
        path = mount.path / "requests" / "large"
        path.stat()
        counts(exchanges)
        assert path.read_bytes() == body
        first = counts(exchanges)[2] - twice(mount)
        before = twice(mount)
        with path.open("rb") as file:
            for offset in range(0, SIZE, 2 << 20):
                os.posix_fadvise(file.fileno(), offset, 1 << 20, os.POSIX_FADV_DONTNEED)
        assert path.read_bytes() == body
        again = counts(exchanges)[2] - (twice(mount) - before)
    assert again <= 1.2 * first


def test_a_little_of_many_files(store: Store, folder: Path) -> None:
    """If programs read a little of each file, only the kernel's reads are fetched.

    These are the programs' reads, if the mount can set the kernel's read-ahead.
    """
    for number in range(60):
        store.put(f"requests/looks/{number:02}", b"x" * 100_000)
    with mounted(store, folder, "--prefix", "requests/looks/", "--debug") as mount:
        for number, path in enumerate(sorted(mount.path.iterdir())):
            with path.open("rb", buffering=0) as file:
                assert file.read(4096) == b"x" * 4096
            if number == 0:
                # The mount learns from a file that is closed, which the kernel reports afterwards.
                eventually(lambda: ask(own_socket(mount), "status")["open_files"] == 0)
                before = mount.counters()
        after = mount.counters()
        names = ("bytes_read", "bytes_asked", "hedges", "retries")
        read, asked, hedges, retries = (after[name] - before[name] for name in names)
        asked -= 4096 * (hedges + retries)  # the machine, or the store, was busy
        assert asked <= 1.1 * read, after
        if "read-ahead could not be set" not in mount.log:
            assert asked <= 1.1 * 59 * 4096


def asked(exchanges: list[Exchange]) -> int:
    """Return the number of bytes that GETs requested, and reset it."""
    edges = [
        (get.header("Range") or "").removeprefix("bytes=").split("-")
        for get in exchanges
        if get.is_data
    ]
    exchanges.clear()
    return sum(int(last) - int(first) + 1 for first, last in edges)


def test_a_little_of_64_open_files(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """If a thread opens many files and reads a little of each, they limit the initial ranges.

    Three times as much as the kernel's reads was fetched before.
    """
    for number in range(64):
        store.put(f"requests/open/{number:02}", b"x" * (2 << 20))
    options = ("--prefix", "requests/open/", "--debug")
    with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
        paths = sorted(mount.path.iterdir())
        before = mount.counters()["bytes_read"]
        exchanges.clear()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
            for file in files:
                assert len(file.read(200_000)) == 200_000
        read = mount.counters()["bytes_read"] - before
        assert asked(exchanges) <= 1.3 * read


def test_columns_of_parquet_files(
    store: Store, folder: Path, proxy: FaultyProxy, exchanges: list[Exchange]
) -> None:
    """If a reader reads footers and some columns, little more is fetched.

    It reads like pyarrow: the last 64 KiB, then each column chunk in one read.
    """
    size, chunk = 20 << 20, 100_077
    for number in range(2):
        store.put(f"requests/columns/{number}.parquet", b"x" * size)
    options = ("--prefix", "requests/columns/", "--debug")
    with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
        paths = sorted(mount.path.iterdir())
        exchanges.clear()
        wanted = 0
        for path in paths:
            with path.open("rb", buffering=0) as file:
                reads = [(size - 65536, 65536)]
                for group in range(0, size // chunk - 40, 40):
                    reads += [((group + column) * chunk, chunk) for column in (3, 17, 31)]
                for offset, length in reads:
                    wanted += len(os.pread(file.fileno(), length, offset))
        assert asked(exchanges) <= 1.3 * wanted


def twice(mount: Mount) -> int:
    """Return the number of hedged requests."""
    counted = mount.counters()
    return counted["hedges"] + counted["retries"]


@pytest.mark.parametrize("which", ["store", "flat_store"])
def test_siblings(which: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """A second after a listing, one request looks up all its files, in any order.

    A new file is visible immediately, and a deleted one is gone.
    """
    server: Store = request.getfixturevalue(which)
    for number in range(60):
        server.put(f"requests/siblings/d/{number:02}", b"x" * number)
    with FaultyProxy(server.endpoint_url) as proxy:
        seen: list[Exchange] = []
        proxy.faults.append(seen.append)
        options = ("--prefix", "requests/siblings/")
        with mounted(server, folder, *options, endpoint_url=proxy.url) as mount:
            directory = mount.path / "d"
            for order in (range(60), range(59, -1, -1), [7, 50, 3, 22]):
                assert len(os.listdir(directory)) == 60
                time.sleep(1.1)
                directory.stat()
                counts(seen)
                began_s = time.monotonic()
                for number in order:
                    assert (directory / f"{number:02}").stat().st_size == number
                heads, lists, gets = counts(seen)
                assert (heads, gets) == (0, 0)
                # If the page has expired, the directory itself is looked up first.
                assert 1 <= lists <= 2 * most_lists(began_s) - 1
            assert not (directory / "new").exists()
            server.put("requests/siblings/d/new", b"new")
            assert (directory / "new").read_bytes() == b"new"
            server.delete("requests/siblings/d/07")
            time.sleep(1.1)
            assert not (directory / "07").exists()
            assert (directory / "08").stat().st_size == 8
