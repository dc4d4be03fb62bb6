"""The fixtures of all tests: the S3 servers.

Servers start once per run and worker, when the first test needs one. `MOUNT_S3_TEST_ENDPOINT` and
`MOUNT_S3_TEST_BUCKET`, with credentials in the usual variables, name a running server to use
instead of the embedded SeaweedFS.
"""

import faulthandler
import functools
import gc
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

from tests.puts import put_all
from tests.soak import SEED
from tests.stores import STORES
from tools.servers import Ministack, SeaweedFS, Server
from tools.servers.built import why_missing

faulthandler.enable()


def pytest_report_header() -> str:
    """Show the seed of this run, with which its random cases can be repeated."""
    return f"MOUNT_S3_TEST_SEED={SEED}"


def pytest_collection_finish() -> None:
    """Exclude the collected tests from garbage collections, which take 0.3 s with them."""
    gc.collect()
    gc.freeze()


# A background process of a script ignores SIGINT, and so would all programs that tests start and
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Store:
    """A running S3 server, as a test sees it."""

    endpoint_url: str
    bucket: str
    environment: dict[str, str] = field(repr=False)
    name: str = ""  # of the server, for tests that need it

    def client(self) -> Any:
        """Return a boto3 client with the store's credentials; all calls share one."""
        return _shared_client(*self._settings())

    def new_client(self) -> Any:
        """Return a new boto3 client with the variables of the environment as they are."""
        return _client(*self._settings())

    def _settings(self) -> tuple[str, str, str, str]:
        return (
            self.endpoint_url,
            self.environment.get("AWS_REGION", "us-east-1"),
            self.environment["AWS_ACCESS_KEY_ID"],
            self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def put(self, key: str, body: bytes = b"") -> str:
        """Put an object; return its ETag."""
        return str(self.client().put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"])

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Put objects, several in parallel."""
        put_all(*self._settings(), self.bucket, objects)

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete objects, a thousand per request."""
        left = [{"Key": key} for key in keys]
        for start in range(0, len(left), 1000):
            some = {"Objects": left[start : start + 1000], "Quiet": True}
            assert "Errors" not in self.client().delete_objects(Bucket=self.bucket, Delete=some)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client().delete_object(Bucket=self.bucket, Key=key)


def _client(endpoint_url: str, region: str, access_key: str, secret_key: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}, proxies={}),
    )


#: A session loads its models from disk, which takes 0.1 s.
_shared_client = functools.cache(_client)


def _store(server: Server) -> Store:
    return Store(server.endpoint_url, server.bucket, server.environment, server.name)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """An empty directory that other users can reach; pytest's own are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="mount-s3-public-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """The server that checks the same as S3: signatures, the clock, conditions."""
    endpoint = os.environ.get("MOUNT_S3_TEST_ENDPOINT")
    if endpoint:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
        keys = {name: os.environ[name] for name in names if name in os.environ}
        yield Store(endpoint, os.environ["MOUNT_S3_TEST_BUCKET"], keys)
        return
    with SeaweedFS() as server:
        yield _store(server)


@pytest.fixture(scope="session")
def flat_store() -> Iterator[Store]:
    """The server with S3's flat key space and order, for odd keys."""
    with Ministack() as server:
        yield _store(server)


@pytest.fixture(scope="session", params=STORES)
def each_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Each available server in turn."""
    server = STORES[request.param].server
    reason = why_missing(server)
    if reason is not None:
        pytest.skip(reason)
    with server() as running:
        yield _store(running)
