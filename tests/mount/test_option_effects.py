"""What options do that no other test is about, on real mounts.

`tests/unit/test_option_table.py` has the test of every option.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.mount.mounting import mounted, run, store_options

pytestmark = pytest.mark.mount

#: Ends as the names of directory buckets do.
DIRECTORY = "files--use1-az4--x-s3"


@pytest.fixture
def proxy(flat_store: Store) -> Iterator[FaultyProxy]:
    """In front of the store; it sees every request."""
    with FaultyProxy(flat_store.endpoint_url) as made:
        yield made


# --- the bucket ---


def test_general_purpose(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without sessions is mounted, though its bucket is called like a directory bucket."""
    monkeypatch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
    client = store.client()
    client.create_bucket(Bucket=DIRECTORY)
    client.put_object(Bucket=DIRECTORY, Key="file", Body=b"content")
    path = folder / "mnt"
    path.mkdir()
    without = run(DIRECTORY, path, *store_options(store), env=store.environment)
    assert without.returncode == 1
    with mounted(store, folder, "--bucket-type", "general-purpose", bucket=DIRECTORY) as mount:
        assert os.listdir(mount.path) == ["file"]
        assert (mount.path / "file").read_bytes() == b"content"
        (mount.path / "new").write_bytes(b"more")
    assert client.get_object(Bucket=DIRECTORY, Key="new")["Body"].read() == b"more"


@pytest.mark.parametrize("bucket_type", ["directory", "general-purpose"])
def test_directory(flat_store: Store, folder: Path, proxy: FaultyProxy, bucket_type: str) -> None:
    """Of a bucket without order a listing tells nothing of other names: each is asked for alone."""
    names = [f"{number:02d}" for number in range(20)]
    for name in names:
        flat_store.put(f"unordered/{name}")
    seen = []
    options = ["--prefix", "unordered/", "--bucket-type", bucket_type, "--metadata-ttl", "0"]
    with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
        assert sorted(os.listdir(mount.path)) == names
        proxy.faults.append(lambda exchange: seen.append(exchange.method))
        for name in names:
            (mount.path / name).stat()
    if bucket_type == "directory":
        assert seen.count("HEAD") >= len(names)
    else:
        assert set(seen) == {"GET"}
