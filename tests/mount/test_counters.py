"""The counters of a mount match the requests at the server, and are available at any time."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.mount.control import ask
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import (
    PROGRAM,
    Mount,
    clean_up,
    environment,
    eventually,
    mounted,
    store_options,
)
from tests.mount.test_ctl import own_socket
from tools.mounting import is_mounted, logged_counters

pytestmark = pytest.mark.mount


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultyProxy]:
    """A proxy that sees every request."""
    with FaultyProxy(store.endpoint_url) as it:
        yield it


def all_are_closed(mount: Mount) -> bool:
    """Whether the mount knows that no file is open: the kernel tells it after close(2)."""
    return bool(ask(own_socket(mount), "status")["open_files"] == 0)


def test_counters(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """SIGUSR2 logs exact numbers each time, and the end of the mount logs them once more."""
    store.put("counters/file", b"x" * 5000)
    store.put("counters/other", b"y" * 70)
    seen: list[Exchange] = []
    proxy.faults.append(seen.append)

    def asked() -> tuple[int, int, int]:
        gets = sum(exchange.is_data for exchange in seen)
        lists = sum(exchange.is_list for exchange in seen)
        return gets, len(seen) - gets - lists, lists

    options = ("--prefix", "counters/", "--debug")
    with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
        first = mount.counters()
        # The probe of the endpoint comes before the mount, and is not counted.
        assert (first["gets"], first["heads"], first["lists"]) == (0, 0, 1)
        seen.clear()
        assert (mount.path / "file").read_bytes() == b"x" * 5000
        eventually(lambda: all_are_closed(mount))  # what was read is counted then
        second = mount.counters()
        assert (second["gets"], second["bytes_fetched"]) == (1, 5000)
        assert (second["gets"], second["heads"], second["lists"] - 1) == asked()
        assert (mount.path / "other").read_bytes() == b"y" * 70
        eventually(lambda: all_are_closed(mount))
        third = mount.counters()
        assert (third["gets"], third["bytes_fetched"], third["retries"]) == (2, 5070, 0)
        os.kill(mount.pid, signal.SIGTERM)
        eventually(mount.has_ended)
        assert logged_counters(folder / "log") == [first, second, third, third]


def test_a_retry_is_counted(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """A second GET fetches the rest of a cut body.

    It counts as a retry, with the bytes received.
    """
    store.put("counters/file", b"x" * 5000)
    cuts = iter([1000])

    def cut(exchange: Exchange) -> None:
        if exchange.is_data:
            exchange.cut_at = next(cuts, None)

    with mounted(store, folder, "--debug", endpoint_url=proxy.url) as mount:
        proxy.faults.append(cut)
        assert (mount.path / "counters" / "file").read_bytes() == b"x" * 5000
        values = mount.counters()
        assert (values["gets"], values["retries"]) == (2, 1)
        assert 5000 <= values["bytes_fetched"] <= 6000


def test_asked_before_it_serves(store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """SIGUSR2 during the first request to the bucket gets its line, and the mount succeeds."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(exchange: Exchange) -> None:
        arrived.set()
        go_on.wait(8)

    proxy.faults.append(hold)
    path = folder / "mnt"
    path.mkdir()
    logs = folder / "log"
    options = ["--foreground", "--debug", "--log-directory", str(logs)]
    program = subprocess.Popen(
        [PROGRAM, store.bucket, path, *options, *store_options(store, endpoint_url=proxy.url)],
        env=environment(store.environment),
        stderr=subprocess.DEVNULL,
    )
    try:
        assert arrived.wait(20)
        program.send_signal(signal.SIGUSR2)
        eventually(lambda: len(logged_counters(logs)) == 1, within_s=5)
        assert not is_mounted(path)
        go_on.set()
        eventually(lambda: is_mounted(path))
        program.send_signal(signal.SIGTERM)
        assert program.wait(20) == 0
    finally:
        go_on.set()
        program.kill()
        program.wait()
        clean_up(path)
