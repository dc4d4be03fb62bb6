"""The options for writing: accepted values, and refusals with a reason."""

from typing import Any

import pytest

from mountpoint.config import BucketConfig, WriteConfig
from mountpoint.errors import MountError


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"part_size_bytes": 5 << 20},
        {"part_size_bytes": 5 << 30},
        {"storage_class": "INTELLIGENT_TIERING"},
        {"sse": "AES256"},
        {"sse": "aws:kms"},
        {"sse": "aws:kms:dsse", "sse_kms_key_id": "arn:aws:kms:us-east-1:111122223333:key/a-1"},
        {"sse": "aws:kms", "sse_kms_key_id": "alias/mine"},
    ],
)
def test_accepted(settings: dict[str, Any]) -> None:
    """Values that S3 supports are accepted."""
    WriteConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"part_size_bytes": (5 << 20) - 1}, "--write-part-size"),
        ({"part_size_bytes": (5 << 30) + 1}, "--write-part-size"),
        ({"storage_class": "a b"}, "--storage-class"),
        ({"storage_class": "X\r\ny: z"}, "--storage-class"),
        ({"sse": "aes"}, "--sse"),
        ({"sse_kms_key_id": "k"}, "--sse"),
        ({"sse": "AES256", "sse_kms_key_id": "k"}, "--sse"),
        ({"sse": "aws:kms", "sse_kms_key_id": "k\r\ny: z"}, "--sse-kms-key-id"),
    ],
)
def test_refused(settings: dict[str, Any], option: str) -> None:
    """The message for an invalid value names its option."""
    with pytest.raises(MountError) as caught:
        WriteConfig(**settings)
    assert option in str(caught.value)


def test_expected_owner() -> None:
    """An account id has twelve digits."""
    assert BucketConfig("bucket", expected_owner="111122223333").expected_owner
    for wrong in ("", "11112222333", "11112222333a", "1111-2222-3333", "111122223333\n"):
        with pytest.raises(MountError, match="account id"):
            BucketConfig("bucket", expected_owner=wrong)
