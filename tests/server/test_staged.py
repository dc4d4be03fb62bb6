"""Staged files are uploaded to a real server, which copies the unchanged ranges."""

import functools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.config import WriteConfig
from mountpoint.errors import PreconditionFailed
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import Condition, ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.area import StagingArea
from mountpoint.staging.staged_file import StagedFile
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload import source
from mountpoint.upload.parts import Limits
from mountpoint.upload.upload import Upload
from mountpoint.upload.uploads import Uploads
from tests.conftest import Store
from tests.server.test_crt import connected
from tests.server.test_upload import SAFE_S

pytestmark = pytest.mark.server

MIB = 1 << 20
PART = 5 * MIB
KEY = "staged/file"


class World:
    """Staged files in a bucket of a real server."""

    def __init__(self, store: Store, client: CrtClient, directory: Path) -> None:
        self.s3 = store.client()
        self.name = store.bucket
        self.client = client
        self.stopping = threading.Event()
        self.counters = Counters()
        self.retry_policy = RetryPolicy(
            try_s=SAFE_S, total_s=SAFE_S, stopping=self.stopping, counters=self.counters
        )
        self.uploads = Uploads(
            client,
            WriteConfig(part_size_bytes=PART),
            Budget(8 * PART),
            self.retry_policy,
            Limits(copied_part_bytes=PART),
        )
        self.area = StagingArea(str(directory), store.bucket, 64 * MIB)
        self.fetched_bytes = 0

    def fetch(self, info: ObjectInfo, start: int, stop: int) -> bytes:
        self.fetched_bytes += stop - start
        ask = functools.partial(source.fetch, self.client, info, start, stop)
        return self.retry_policy.ask(ask).answer()

    def begin(self, key: bytes, base: ObjectInfo | None) -> Upload:
        condition = Condition(absent=True) if base is None else Condition(etag=base.etag)
        return self.uploads.upload(key, condition=condition)

    def open(self, *, new: bool = False) -> StagedFile:
        base = None if new else self.client.head(KEY.encode()).result(SAFE_S)
        return StagedFile(
            self.area,
            KEY.encode(),
            base,
            fetch=self.fetch,
            begin=self.begin,
            part_bytes=PART,
            stopping=self.stopping,
        )

    def get(self) -> bytes:
        data: bytes = self.s3.get_object(Bucket=self.name, Key=KEY)["Body"].read()
        return data


@pytest.fixture(params=["store", "flat_store"])
def world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[World]:
    """A world for each server; its object does not exist yet."""
    store: Store = request.getfixturevalue(request.param)
    with connected(store, store.endpoint_url, monkeypatch) as client:
        world = World(store, client, tmp_path)
        yield world
        world.uploads.interrupt()
        world.area.close()
        world.s3.delete_object(Bucket=store.bucket, Key=KEY)


def test_changes_are_uploaded_and_the_rest_copied(world: World) -> None:
    """A new file, a change in the middle, a truncation and an append are uploaded correctly."""
    data = bytearray(random.Random(1).randbytes(33 * MIB + 5))
    file = world.open(new=True)
    for start in range(0, len(data), MIB):
        file.write(start, bytes(data[start : start + MIB]))
    assert file.sync() is not None
    assert file.close()
    assert world.get() == data

    file = world.open()
    file.write(14 * MIB + 3, b"changed")
    data[14 * MIB + 3 : 14 * MIB + 10] = b"changed"
    file.truncate(31 * MIB)
    del data[31 * MIB :]
    file.write(31 * MIB + 10, b"appended")
    data += bytes(10) + b"appended"
    info = file.sync()
    assert info is not None
    assert info.size_bytes == len(data)
    assert world.get() == data
    assert world.fetched_bytes <= PART + MIB  # whole blocks

    file.write(0, b"once more")
    data[:9] = b"once more"
    assert file.sync() is not None
    assert world.get() == data
    assert file.read(20 * MIB, 100) == data[20 * MIB : 20 * MIB + 100]
    assert file.close()
    assert world.area.used_bytes == 0


def test_objects_replaced_by_others_are_not_overwritten(world: World) -> None:
    """If others have replaced the object, the local file is kept on the disk."""
    world.s3.put_object(Bucket=world.name, Key=KEY, Body=bytes(12 * MIB))
    file = world.open()
    file.write(0, b"mine")
    world.s3.put_object(Bucket=world.name, Key=KEY, Body=b"theirs")
    with pytest.raises(PreconditionFailed) as caught:
        file.sync()
    assert str(world.area.path) in caught.value.hint
    assert world.get() == b"theirs"
