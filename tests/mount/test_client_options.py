"""Options for the connection to S3, on real mounts."""

import socket
from pathlib import Path

import pytest

from mountpoint import __version__
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import clean_up, mounted, run, store_options

pytestmark = pytest.mark.mount


def test_user_agent(store: Store, folder: Path) -> None:
    """The prefix comes before our own User-Agent in every request."""
    store.put("agent/file", b"content")
    seen = []

    def note(exchange: Exchange) -> None:
        headers = {name.lower(): value for name, value in exchange.request_headers.items()}
        seen.append(headers.get("user-agent", ""))

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(note)
        options = ["--user-agent-prefix", "job/7 (team a)", "--prefix", "agent/"]
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            assert (mount.path / "file").read_bytes() == b"content"
            (mount.path / "new").write_bytes(b"more")
    assert len(seen) >= 4
    assert all(each.startswith(f"job/7 (team a) mount-s3/{__version__}") for each in seen)


def test_bound_to_an_interface(store: Store, folder: Path) -> None:
    """A server on loopback is reached through the loopback interface."""
    store.put("bound/file", b"content")
    with mounted(store, folder, "--bind", "lo", "--prefix", "bound/") as mount:
        assert (mount.path / "file").read_bytes() == b"content"


def test_bound_to_the_wrong_interface(store: Store, folder: Path) -> None:
    """The mount fails if the interface does not lead to the server, even if others do."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        pytest.skip("this machine has no network interface but loopback")
    path = folder / "mnt"
    path.mkdir()
    try:
        result = run(
            store.bucket, path, *store_options(store), "--bind", others[0], env=store.environment
        )
        assert result.returncode == 1
        assert "no answer from" in result.stderr
    finally:
        clean_up(path)
