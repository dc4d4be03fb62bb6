"""Mounts of stores that can do less than S3: nothing is lost, mixed or missing."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Fault, FaultyProxy
from tests.lesser import (
    only_v1,
    refuse_checksums,
    refuse_conditions,
    refuse_copied_parts,
    without_header,
    without_parameter,
)
from tests.mount.mounting import Mount, content, mounted, pending

pytestmark = pytest.mark.mount

MIB = 1 << 20
OLD = random.Random(1).randbytes(20 * MIB)
NEW = random.Random(2).randbytes(20 * MIB)


@contextmanager
def mounted_as(
    store: Store, folder: Path, fault: Fault, prefix: str, *more: str
) -> Iterator[Mount]:
    """Mount what is below a prefix of the store, as one that can do less."""
    options = ["--debug", "--prefix", prefix, "--allow-overwrite", "--allow-append", *more]
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.append(fault)
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            yield mount


@pytest.mark.parametrize(
    "fault", [only_v1, without_parameter("start-after")], ids=["ListObjects", "no start-after"]
)
def test_listed_whole(flat_store: Store, folder: Path, fault: Fault) -> None:
    """All names of several pages are listed, once each, and each can be looked up."""
    names = [f"{n:04d}" for n in range(2500)]
    client = flat_store.client()

    def each(call: Callable[..., object]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(lambda name: call(Bucket=flat_store.bucket, Key=f"lesser/{name}/x"), names)
            )

    each(client.put_object)
    with mounted_as(flat_store, folder, fault, "lesser/") as mount:
        assert sorted(os.listdir(mount.path)) == names
        for name in names[::250]:
            assert os.listdir(mount.path / name) == ["x"]
            assert (mount.path / name / "x").stat().st_size == 0
        assert not (mount.path / "1250-none").exists()
    each(client.delete_object)  # others look through the whole bucket


@pytest.mark.parametrize("size", [MIB // 2, len(OLD)])
def test_replaced_where_if_match_is_ignored(flat_store: Store, folder: Path, size: int) -> None:
    """A reader still sees one version, by the ETag of what comes: old bytes, then ESTALE."""
    flat_store.put("ignored/file", OLD[:size])
    with mounted_as(flat_store, folder, without_header("If-Match"), "ignored/") as mount:
        with open(mount.path / "file", "rb", buffering=0) as file:
            got = file.read(100_000)
            flat_store.put("ignored/file", NEW[:size])
            error = None
            try:
                while chunk := file.read(MIB):
                    got += chunk
            except OSError as failure:
                error = failure.errno
        assert OLD.startswith(got)
        assert error == errno.ESTALE or (error is None and got == OLD[:size])
        assert (mount.path / "file").read_bytes() == NEW[:size]


@pytest.mark.parametrize("first", [100, len(OLD)])
def test_written_where_checksums_are_refused(flat_store: Store, folder: Path, first: int) -> None:
    """Files of any size are written, and read, without; the log has one warning."""
    prefix = f"refused-{first}/"
    with mounted_as(flat_store, folder, refuse_checksums, prefix) as mount:
        for size in (first, 100, len(OLD)):
            path = mount.path / f"{size}"
            for data in (OLD[:size], NEW[:size]):
                path.write_bytes(data)
                assert content(flat_store, f"{prefix}{size}") == data
                assert path.read_bytes() == data
        with (mount.path / "100").open("ab") as file:
            file.write(b"more")
        assert content(flat_store, f"{prefix}100") == NEW[:100] + b"more"
        warnings = [line for line in mount.log.splitlines() if "level=warning" in line]
        assert len(warnings) == 1
        assert "this server takes no checksums" in warnings[0]
    assert pending(flat_store, prefix) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "InvalidRequest"), (405, "MethodNotAllowed")],
)
@pytest.mark.parametrize("staged", [False, True])
def test_written_where_no_parts_are_copied(
    flat_store: Store, folder: Path, status: int, code: str, staged: bool
) -> None:
    """What is appended to large files, or changed in them, is there; the log has one line."""
    prefix = f"uncopied-{status}-{staged}/"
    staging = folder / "staging"
    staging.mkdir(mode=0o700)
    more = ["--staged-writes", str(staging)] if staged else []
    flat_store.put(f"{prefix}file", OLD)
    expected = bytearray(OLD)
    fault = refuse_copied_parts(status, code)
    with mounted_as(flat_store, folder, fault, prefix, *more) as mount:
        for line in (b"first\n", b"second\n"):
            with (mount.path / "file").open("r+b" if staged else "ab") as file:
                file.write(line)
            if staged:
                expected[: len(line)] = line
            else:
                expected += line
            assert content(flat_store, f"{prefix}file") == expected
            assert (mount.path / "file").read_bytes() == expected
        assert mount.log.count("this server copies no parts of objects") == 1
    assert pending(flat_store, prefix) == []


def test_written_where_conditions_are_refused(flat_store: Store, folder: Path) -> None:
    """Many files that are written at once are all there."""
    with mounted_as(flat_store, folder, refuse_conditions, "unconditional/") as mount:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: (mount.path / f"{n}").write_bytes(b"%d" % n), range(40)))
        for n in range(40):
            assert content(flat_store, f"unconditional/{n}") == b"%d" % n
