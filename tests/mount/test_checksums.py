"""A bit that is changed on the way to a real mount: noticed where S3 has a checksum of it."""

import base64
import errno
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, flip_bit, on_data, times
from tests.mount.mounting import errno_of, mounted

pytestmark = pytest.mark.mount

SMALL = random.Random(5).randbytes(300_000)
LARGE = random.Random(6).randbytes(20 << 20)


@pytest.fixture(params=["store", "flat_store"])
def server(request: pytest.FixtureRequest) -> Store:
    """Each of the servers: SeaweedFS says nothing of a checksum's type, ministack does."""
    server: Store = request.getfixturevalue(request.param)
    server.put("checksums/small", SMALL)
    server.put("checksums/large", LARGE)
    return server


@pytest.fixture
def proxy(server: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the server."""
    with FaultyProxy(server.endpoint_url) as it:
        yield it


def part_checksum(exchange: Exchange) -> None:
    """Send what S3 sends where a range is one part of an upload, if asked for."""
    names = {name.lower() for name in exchange.request_headers}
    if exchange.status == 206 and "x-amz-checksum-mode" in names:
        value = base64.b64encode(zlib.crc32(exchange.body).to_bytes(4, "big")).decode()
        exchange.headers += [("x-amz-checksum-crc32", value), ("x-amz-checksum-type", "COMPOSITE")]


def test_once(server: Store, folder: Path, proxy: FaultyProxy) -> None:
    """Bytes that were changed on the way are fetched again, and no reader sees them."""
    with mounted(server, folder, "--prefix", "checksums/", endpoint_url=proxy.url) as mount:
        proxy.faults.append(times(2, on_data(flip_bit)))
        assert (mount.path / "small").read_bytes() == SMALL
        proxy.faults[:] = [on_data(part_checksum), times(4, on_data(flip_bit))]
        assert (mount.path / "large").read_bytes() == LARGE
        assert "WARN" not in mount.log


@pytest.mark.parametrize("name", ["small", "large"])
def test_always(server: Store, folder: Path, proxy: FaultyProxy, name: str) -> None:
    """Bytes that never are what S3 says are EIO, and the log says so; the mount lives on."""
    options = ("--prefix", "checksums/", "--read-timeout", "5")
    with mounted(server, folder, *options, endpoint_url=proxy.url) as mount:
        path = mount.path / name
        path.stat()
        if name == "large":  # of the small one only the whole has a checksum
            proxy.faults.append(on_data(part_checksum))
        proxy.faults.append(on_data(flip_bit))
        assert errno_of(path.read_bytes) == errno.EIO
        lines = [line for line in mount.log.splitlines() if "errno=EIO" in line]
        said = (f"path=/{name}", "does not match its crc32 checksum", "--read-checksums")
        # On a slow machine the time may run out in the middle of a try, which then says so.
        assert any(all(part in line for part in said) for line in lines), "\n".join(lines)
        proxy.faults.clear()
        assert path.read_bytes() == (SMALL if name == "small" else LARGE)


def test_turned_off(server: Store, folder: Path, proxy: FaultyProxy) -> None:
    """With --read-checksums off nothing is compared: the changed bit arrives."""
    options = ("--prefix", "checksums/", "-o", "read-checksums=off")
    with mounted(server, folder, *options, endpoint_url=proxy.url) as mount:
        proxy.faults += [on_data(part_checksum), on_data(flip_bit)]
        for name, right in (("small", SMALL), ("large", LARGE)):
            body = (mount.path / name).read_bytes()
            assert len(body) == len(right)
            assert body != right
