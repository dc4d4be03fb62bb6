"""`mount-s3 --check` with a shared cache, with real servers: it finds what mounting would."""

from collections.abc import Iterator
from typing import Any

import pytest

from mountpoint.mount.shared_cache import CHECK_KEY
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import run
from tests.mount.test_check import Found, check
from tools.servers import REGION

pytestmark = pytest.mark.mount

BUCKET = "cache-to-check"


@pytest.fixture(scope="module")
def prefix(store: Store) -> str:
    """A prefix with one small object."""
    store.put("check-cache/a", b"a")
    return "check-cache/"


@pytest.fixture
def bucket(store: Store) -> Iterator[Any]:
    """A boto3 client for the cache bucket, which is empty."""
    client = store.client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.delete_object(Bucket=BUCKET, Key=CHECK_KEY.decode())
    client.delete_bucket(Bucket=BUCKET)


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_it_can_be_used(store: Store, bucket: Any, prefix: str, used: bool) -> None:
    """The bucket is listed and read, and nothing is written, whether mounts have used it or not."""
    if used:
        bucket.put_object(Bucket=BUCKET, Key=CHECK_KEY.decode(), Body=b"mount-s3")
    with FaultyProxy(store.endpoint_url) as proxy:
        asked: list[Exchange] = []
        proxy.faults.append(asked.append)
        found = check(store, "--prefix", prefix, "--cache-xz", BUCKET, endpoint_url=proxy.url)
    row = found["cache_bucket"]
    assert (row["outcome"], row["details"]["region"]) == ("ok", REGION)
    assert f"'{BUCKET}' can be listed and read" in row["finding"]
    ours = [each for each in asked if each.target.startswith(f"/{BUCKET}")]
    assert any(each.is_list for each in ours)
    assert {each.method for each in ours} == {"GET", "HEAD"}
    assert len(bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])) == used


def test_there_is_none(store: Store, prefix: str) -> None:
    """Without the option the check is skipped; for a bucket that is missing, it fails."""
    assert check(store, "--prefix", prefix)["cache_bucket"]["outcome"] == "skipped"
    found = check(store, "--prefix", prefix, "--cache-xz", "there-is-no-such-bucket")
    assert found.failed == ["cache_bucket"]
    assert "the shared cache cannot be used" in found["cache_bucket"]["finding"]
    assert "'there-is-no-such-bucket' does not exist" in found["cache_bucket"]["finding"]


def test_the_mounted_bucket(store: Store) -> None:
    """A bucket whose blocks would be files of the mount is refused, as by mounting."""
    found = check(store, "--cache-xz", store.bucket)
    assert found.failed == ["cache_bucket"]
    assert "cannot be its own cache" in found["cache_bucket"]["finding"]


@pytest.mark.parametrize(
    ("lists", "says"),
    [(True, "the shared cache cannot be used: access to bucket"), (False, "cannot be read (")],
    ids=["list", "read"],
)
def test_access_is_denied(store: Store, bucket: Any, prefix: str, lists: bool, says: str) -> None:
    """The message says what is not permitted, and names the bucket."""

    def refuse(exchange: Exchange) -> None:
        if exchange.target.startswith(f"/{BUCKET}") and exchange.is_list == lists:
            exchange.refuse(403, "AccessDenied")

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.append(refuse)
        found = check(store, "--prefix", prefix, "--cache-xz", BUCKET, endpoint_url=proxy.url)
    assert found.failed == ["cache_bucket"]
    assert says in found["cache_bucket"]["finding"]
    assert BUCKET in found["cache_bucket"]["finding"]


def test_it_is_in_another_region(store: Store, bucket: Any, prefix: str) -> None:
    """That is a warning: such a cache is hardly faster."""

    def elsewhere(exchange: Exchange) -> None:
        authorization = exchange.request_headers.get("Authorization", "")
        if exchange.target.startswith(f"/{BUCKET}") and f"/{REGION}/" in authorization:
            exchange.refuse(301, "PermanentRedirect")
            exchange.headers.append(("x-amz-bucket-region", "eu-west-3"))

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(elsewhere)
        where = ["--endpoint-url", proxy.url, "--force-path-style", "--prefix", prefix]
        env = store.environment | {"AWS_REGION": REGION}
        found = Found(run("--check", "--json", store.bucket, *where, "--cache-xz", BUCKET, env=env))
    assert found.code == 0
    row = found["cache_bucket"]
    assert (row["outcome"], row["details"]["region"]) == ("warning", "eu-west-3")
    assert f"it is in eu-west-3, the mounted one in {REGION}" in row["finding"]
