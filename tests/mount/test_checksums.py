"""A bit that changes on the way to a real mount is noticed if S3 has a checksum for it."""

import base64
import errno
import random
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy, flip_bit, on_data, times
from tests.mount.mounting import Mount, errno_of, eventually, mounted
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

SMALL = random.Random(5).randbytes(300_000)
LARGE = partial(random_bytes, 6, 20 << 20)


@pytest.fixture(scope="module", params=["store", "flat_store"])
def server(request: pytest.FixtureRequest) -> Store:
    """Each of the servers: SeaweedFS does not send the type of a checksum, ministack does."""
    server: Store = request.getfixturevalue(request.param)
    server.put("checksums/small", SMALL)
    server.put("checksums/large", LARGE())
    return server


@pytest.fixture
def proxy(server: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the server."""
    with FaultyProxy(server.endpoint_url) as it:
        yield it


def part_checksum(exchange: Exchange) -> None:
    """Send the checksum that S3 sends on request if a range is one part of the upload."""
    names = {name.lower() for name in exchange.request_headers}
    if exchange.status == 206 and "x-amz-checksum-mode" in names:
        value = base64.b64encode(zlib.crc32(exchange.body).to_bytes(4, "big")).decode()
        exchange.headers += [("x-amz-checksum-crc32", value), ("x-amz-checksum-type", "COMPOSITE")]


def test_once(server: Store, folder: Path, proxy: FaultyProxy) -> None:
    """Changed bytes are fetched again, and no reader sees them."""
    with mounted(server, folder, "--prefix", "checksums/", endpoint_url=proxy.url) as mount:
        proxy.faults.append(times(2, on_data(flip_bit)))
        assert (mount.path / "small").read_bytes() == SMALL
        proxy.faults[:] = [on_data(part_checksum), times(4, on_data(flip_bit))]
        assert (mount.path / "large").read_bytes() == LARGE()
        assert "WARN" not in mount.log


@pytest.mark.parametrize("name", ["small", "large"])
def test_always(server: Store, folder: Path, proxy: FaultyProxy, name: str) -> None:
    """If the bytes never match, the read is EIO with a line in the log, and the mount continues."""
    options = ("--prefix", "checksums/", "--read-timeout", "5")
    with mounted(server, folder, *options, endpoint_url=proxy.url) as mount:
        path = mount.path / name
        path.stat()
        if name == "large":  # the small object has only a checksum of the whole
            proxy.faults.append(on_data(part_checksum))
        proxy.faults.append(on_data(flip_bit))
        assert errno_of(path.read_bytes) == errno.EIO
        lines = [line for line in mount.log.splitlines() if "errno=EIO" in line]
        said = (f"path=/{name}", "does not match its crc32 checksum", "--read-checksums")
        # On a slow machine the time may run out during a try; the log then says that.
        assert any(all(part in line for part in said) for line in lines), "\n".join(lines)
        proxy.faults.clear()
        assert path.read_bytes() == (SMALL if name == "small" else LARGE())


def in_the_middle(fault: Fault) -> Fault:
    """Return `fault`, but only for GETs from the middle of an object."""

    def filtered(exchange: Exchange) -> None:
        found = re.fullmatch(r"bytes=(\d+)-\d+", exchange.header("Range") or "")
        if exchange.is_data and found is not None and int(found[1]) >= 2 << 20:
            fault(exchange)

    return filtered


def heads_of(proxy: FaultyProxy, file: str) -> int:
    """Return the number of HEADs."""
    return sum(method == "HEAD" and file in target for method, target in proxy.seen)


def put_in_parts(server: Store, key: str, data: bytes) -> str:
    """Upload in parts, with a checksum of the whole; return its name if the server keeps it."""
    client = server.client()
    at = {"Bucket": server.bucket, "Key": key}
    kind = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    upload = {**at, "UploadId": client.create_multipart_upload(**at, **kind)["UploadId"]}
    parts = []
    for number in (1, 2):
        body = data[: 7 << 20] if number == 1 else data[7 << 20 :]
        sent = {"Body": body, "ChecksumAlgorithm": "CRC64NVME"}
        done = client.upload_part(**upload, PartNumber=number, **sent)
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    head = client.head_object(**at, ChecksumMode="ENABLED")
    return "crc64nvme" if head["ChecksumType"] == "FULL_OBJECT" else ""


def lines_about(mount: Mount, file: str) -> list[str]:
    """Return the log's lines about a file that could not be read, when there are any.

    If two reads fail at the same time, one may be answered before the other has logged the reason.
    """
    eventually(lambda: f"path=/{file}" in mount.log)
    return [line for line in mount.log.splitlines() if f"path=/{file}" in line]


def test_the_whole(server: Store, folder: Path, proxy: FaultyProxy) -> None:
    """A changed bit in a large object without part checksums is EIO at its end, once."""
    names = {"large": "crc32"}
    if name := put_in_parts(server, "checksums/parts", LARGE()):
        names["parts"] = name
    with mounted(server, folder, "--prefix", "checksums/", endpoint_url=proxy.url) as mount:
        for file, checksum in names.items():
            path = mount.path / file
            proxy.faults[:] = [in_the_middle(flip_bit)]
            assert errno_of(path.read_bytes) == errno.EIO
            proxy.faults.clear()
            (line,) = lines_about(mount, file)
            assert f"does not match its {checksum} checksum" in line
            assert "operation=read" in line
            assert heads_of(proxy, file) == 1
            assert path.read_bytes() == LARGE()


def test_turned_off(server: Store, folder: Path, proxy: FaultyProxy) -> None:
    """With --read-checksums off nothing is compared: the reader gets the changed bit."""
    options = ("--prefix", "checksums/", "-o", "read-checksums=off")
    with mounted(server, folder, *options, endpoint_url=proxy.url) as mount:
        proxy.faults += [on_data(part_checksum), on_data(flip_bit)]
        for name, right in (("small", SMALL), ("large", LARGE())):
            body = (mount.path / name).read_bytes()
            assert len(body) == len(right)
            assert body != right
