"""The bucket of the shared cache: its address, and the check at the start."""

import threading

import pytest

from mountpoint.config import BucketConfig, CacheConfig, Config, FileSystemConfig, MountConfig
from mountpoint.errors import AccessDenied, MountError, NotOffered
from mountpoint.mount.shared_cache import CHECK_KEY, cache_bucket, check_usable
from mountpoint.s3.retry import RetryPolicy
from tests.unit.fake_client import SAFE_S, FakeClient, Fault


def config(cache: str | None, *, prefix: bytes = b"") -> Config:
    """Return the configuration of a mount of the bucket `mounted`."""
    return Config(
        bucket=BucketConfig(
            "mounted",
            prefix,
            region="eu-west-1",
            endpoint_url="http://store",
            expected_owner="123456789012",
        ),
        mount=MountConfig("/mnt"),
        filesystem=FileSystemConfig(uid=1, gid=1),
        cache=CacheConfig(bucket=cache),
    )


def test_the_address() -> None:
    """The cache bucket is addressed as the mounted one is, and has the same owner."""
    assert cache_bucket(config(None)) is None
    bucket = cache_bucket(config("other", prefix=b"data/"))
    assert bucket == BucketConfig(
        "other",
        b"mount-s3-cache/v1/",
        region="eu-west-1",
        endpoint_url="http://store",
        expected_owner="123456789012",
    )


@pytest.mark.parametrize("prefix", [b"", b"mount-s3-cache/", b"mount-s3-cache/v1/x/"])
def test_blocks_would_be_files(prefix: bytes) -> None:
    """A bucket can be its own cache only if the mount does not show the blocks."""
    with pytest.raises(MountError, match="cannot be its own cache"):
        cache_bucket(config("mounted", prefix=prefix))
    assert cache_bucket(config("mounted", prefix=b"data/")) is not None


@pytest.mark.parametrize("kind", ["put_object", "head"])
def test_a_bucket_that_refuses(kind: str) -> None:
    """The message names the bucket, the error and the permissions."""
    retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
    with FakeClient() as client:
        check_usable(client, "other", retry_policy)
        assert client.keys() == [CHECK_KEY]
        client.inject(kind, Fault(error=AccessDenied("not you")))
        with pytest.raises(MountError, match=r"'other' cannot be .*not you") as found:
            check_usable(client, "other", retry_policy)
        assert "s3:PutObject" in found.value.hint


def test_a_store_without_checksums() -> None:
    """The check asks for no checksum that the store may lack."""
    retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
    with FakeClient() as client:
        client.refuses_checksums = NotOffered("x-amz-checksum", status=501)
        check_usable(client, "other", retry_policy)
        assert client.keys() == [CHECK_KEY]
